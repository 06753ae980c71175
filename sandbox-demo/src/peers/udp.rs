//! Numbered datagrams: which came back, when the lost ones were sent, and from which port they were seen.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::event::epoll;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;

use super::protocol::DatagramPlan;
use super::protocol::DatagramReport;
use super::serve::Source;
use crate::clock;

/// The datagram flows of a peer: those it sends, and those it answers.
#[derive(Default)]
pub(super) struct Datagrams {
    flows: Vec<(OwnedFd, Numbered<u16>)>,
    servers: Vec<OwnedFd>,
    answered: BTreeMap<u32, Numbered<SocketAddr>>,
    tick: usize,
    finishing: bool,
}

/// Numbers sent and seen on one flow; `S` is what the flow looks like from outside.
pub(super) struct Numbered<S> {
    sent_at: Vec<u64>,
    seen: BTreeSet<u32>,
    duplicates: u64,
    outside: BTreeSet<S>,
    longest_trip: u64,
}

/// A datagram: its flow, its number, and, in the answer, the port it was seen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Datagram {
    flow: u32,
    number: u32,
    seen_port: u16,
}

impl Datagrams {
    pub(super) fn send_on(&mut self, poll: &OwnedFd, plan: &DatagramPlan) -> anyhow::Result<()> {
        let socket = datagram_socket(plan.from)?;
        rustix::net::connect(&socket, &plan.to).with_context(|| format!("joining {} to {}", plan.from, plan.to))?;
        epoll::add(poll, &socket, Source::DatagramFlow(self.flows.len()).token(), EventFlags::IN)?;
        self.flows.push((socket, Numbered::default()));
        Ok(())
    }

    pub(super) fn answer_at(&mut self, poll: &OwnedFd, at: SocketAddr) -> anyhow::Result<()> {
        let socket = datagram_socket(at)?;
        epoll::add(poll, &socket, Source::DatagramServer(self.servers.len()).token(), EventFlags::IN)?;
        self.servers.push(socket);
        Ok(())
    }

    pub(super) fn finish(&mut self) {
        self.finishing = true;
    }

    /// Every flow whose turn it is sends its next number.
    pub(super) fn tick(&mut self) {
        if !self.finishing {
            let turn = self.tick % TICKS_PER_ROUND;
            for (flow, (socket, numbered)) in self.flows.iter_mut().enumerate().skip(turn).step_by(TICKS_PER_ROUND) {
                let number = numbered.next_number();
                let datagram = Datagram { flow: flow as u32, number, seen_port: 0 };
                // What the local kernel refuses counts as lost, like what the network loses.
                let _ = rustix::net::send(&*socket, &datagram.to_bytes(), SendFlags::NOSIGNAL);
            }
        }
        self.tick = self.tick.wrapping_add(1);
    }

    /// Answers came on one of our flows.
    pub(super) fn flow_ready(&mut self, index: usize) {
        let Some((socket, numbered)) = self.flows.get_mut(index) else { return };
        let mut buffer = [0; DATAGRAM_LENGTH];
        loop {
            match rustix::net::recv(&*socket, &mut buffer, RecvFlags::empty()) {
                Ok((read, _)) => {
                    if let Some(datagram) = buffer.get(..read).and_then(Datagram::from_bytes) {
                        numbered.note(datagram.number, datagram.seen_port);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Questions came at one of our servers.
    pub(super) fn server_ready(&mut self, index: usize) {
        let Some(socket) = self.servers.get(index) else { return };
        let mut buffer = [0; DATAGRAM_LENGTH];
        loop {
            let (read, from) = match rustix::net::recvfrom(socket, &mut buffer, RecvFlags::empty()) {
                Ok((read, _, from)) => (read, from.and_then(|from| SocketAddr::try_from(from).ok())),
                Err(Errno::INTR) => continue,
                Err(_) => return,
            };
            let (Some(mut datagram), Some(from)) = (buffer.get(..read).and_then(Datagram::from_bytes), from) else {
                continue;
            };
            self.answered.entry(datagram.flow).or_default().note(datagram.number, from);
            datagram.seen_port = from.port();
            let _ = rustix::net::sendto(socket, &datagram.to_bytes(), SendFlags::NOSIGNAL, &from);
        }
    }

    pub(super) fn report(&self) -> DatagramReport {
        let sent = self.flows.iter().map(|(_, numbered)| numbered.report());
        let answered = self.answered.values().map(Numbered::report);
        sent.chain(answered).fold(DatagramReport::default(), DatagramReport::and)
    }
}

impl<S: Ord> Numbered<S> {
    /// Takes the next number and notes when it was sent.
    pub(super) fn next_number(&mut self) -> u32 {
        let number = self.sent_at.len() as u32;
        self.sent_at.push(clock::monotonic().as_nanos());
        number
    }

    /// Notes that a number came, from a flow that looks like `outside`.
    pub(super) fn note(&mut self, number: u32, outside: S) {
        self.duplicates += u64::from(!self.seen.insert(number));
        self.outside.insert(outside);
        if let Some(sent_at) = self.sent_at.get(number as usize) {
            self.longest_trip = self.longest_trip.max(clock::monotonic().as_nanos().saturating_sub(*sent_at));
        }
    }

    pub(super) fn report(&self) -> DatagramReport {
        let unseen = |number: &usize| !self.seen.contains(&(*number as u32));
        DatagramReport {
            flows: 1,
            sent: self.sent_at.len() as u64,
            received: self.seen.len() as u64,
            duplicates: self.duplicates,
            moved: usize::from(self.outside.len() > 1),
            lost_at: (0..self.sent_at.len()).filter(unseen).filter_map(|n| self.sent_at.get(n).copied()).collect(),
            longest_trip: self.longest_trip,
        }
    }
}

impl<S> Default for Numbered<S> {
    fn default() -> Self {
        Self { sent_at: Vec::new(), seen: BTreeSet::new(), duplicates: 0, outside: BTreeSet::new(), longest_trip: 0 }
    }
}

impl DatagramReport {
    pub(super) fn and(mut self, other: Self) -> Self {
        self.flows += other.flows;
        self.sent += other.sent;
        self.received += other.received;
        self.duplicates += other.duplicates;
        self.moved += other.moved;
        self.lost_at.extend(other.lost_at);
        self.longest_trip = self.longest_trip.max(other.longest_trip);
        self
    }
}

impl Datagram {
    fn to_bytes(self) -> [u8; DATAGRAM_LENGTH] {
        let mut bytes = [0; DATAGRAM_LENGTH];
        bytes[..4].copy_from_slice(&self.flow.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.number.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.seen_port.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; DATAGRAM_LENGTH] = bytes.try_into().ok()?;
        let [f0, f1, f2, f3, n0, n1, n2, n3, p0, p1, ..] = *bytes;
        Some(Self {
            flow: u32::from_be_bytes([f0, f1, f2, f3]),
            number: u32::from_be_bytes([n0, n1, n2, n3]),
            seen_port: u16::from_be_bytes([p0, p1]),
        })
    }
}

fn datagram_socket(at: SocketAddr) -> anyhow::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None).context("making a socket")?;
    rustix::net::bind(&socket, &at).with_context(|| format!("binding a datagram socket to {at}"))?;
    Ok(socket)
}

/// A small datagram, as voice sends them.
const DATAGRAM_LENGTH: usize = 64;
/// Every flow sends once in so many ticks.
const TICKS_PER_ROUND: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_survives_its_bytes() {
        let datagram = Datagram { flow: 3, number: 70_000, seen_port: 4242 };
        assert_eq!(Datagram::from_bytes(&datagram.to_bytes()), Some(datagram));
        assert_eq!(Datagram::from_bytes(b"short"), None);
    }

    #[test]
    fn losses_duplicates_and_moves_are_told_apart() {
        let mut numbered = Numbered::default();
        for _ in 0..4 {
            numbered.next_number();
        }
        for (number, port) in [(0, 1000), (1, 1000), (1, 1000), (3, 1001)] {
            numbered.note(number, port);
        }
        let report = numbered.report();
        assert_eq!((report.sent, report.received, report.duplicates, report.moved), (4, 3, 1, 1));
        assert_eq!(report.lost_at, vec![numbered.sent_at[2]]);
    }
}
