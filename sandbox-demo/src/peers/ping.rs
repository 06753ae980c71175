//! Numbered echo requests, and a watcher that notes the ids they arrive with.

use std::net::IpAddr;
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
use rustix::net::ipproto;

use super::protocol::DatagramReport;
use super::serve::Source;
use super::udp::Numbered;
use crate::fault::errno_fault;

/// The pings of a peer: those it sends, and those it sees arrive. The kernel answers them.
#[derive(Default)]
pub(super) struct Pings {
    pings: Vec<Ping>,
    watchers: Vec<(OwnedFd, Family, Numbered<u16>)>,
    tick: usize,
    finishing: bool,
}

struct Ping {
    socket: OwnedFd,
    family: Family,
    target: SocketAddr,
    id: u16,
    numbered: Numbered<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// An echo request or reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Echo {
    is_reply: bool,
    id: u16,
    number: u16,
}

impl Pings {
    pub(super) fn ping(&mut self, poll: &OwnedFd, target: IpAddr) -> anyhow::Result<()> {
        let family = Family::of(target);
        let socket = family.socket()?;
        epoll::add(poll, &socket, Source::Ping(self.pings.len()).token(), EventFlags::IN)?;
        let id = FIRST_ID + self.pings.len() as u16;
        let target = SocketAddr::new(target, 0);
        self.pings.push(Ping { socket, family, target, id, numbered: Numbered::default() });
        Ok(())
    }

    pub(super) fn watch(&mut self, poll: &OwnedFd, at: IpAddr) -> anyhow::Result<()> {
        let family = Family::of(at);
        let socket = family.socket()?;
        epoll::add(poll, &socket, Source::PingWatcher(self.watchers.len()).token(), EventFlags::IN)?;
        self.watchers.push((socket, family, Numbered::default()));
        Ok(())
    }

    pub(super) fn finish(&mut self) {
        self.finishing = true;
    }

    pub(super) fn tick(&mut self) {
        if !self.finishing && self.tick.is_multiple_of(TICKS_PER_ROUND) {
            for ping in &mut self.pings {
                let echo = Echo { is_reply: false, id: ping.id, number: ping.numbered.next_number() as u16 };
                let bytes = echo.to_bytes(ping.family);
                let _ = rustix::net::sendto(&ping.socket, &bytes, SendFlags::NOSIGNAL, &ping.target);
            }
        }
        self.tick = self.tick.wrapping_add(1);
    }

    /// Replies may have come for one of our pings.
    pub(super) fn ping_ready(&mut self, index: usize) {
        let Some(Ping { socket, family, id, numbered, .. }) = self.pings.get_mut(index) else { return };
        each_echo(socket, *family, |echo| {
            if echo.is_reply && echo.id == *id {
                numbered.note(u32::from(echo.number), echo.id);
            }
        });
    }

    /// Requests may have arrived from outside.
    pub(super) fn watcher_ready(&mut self, index: usize) {
        let Some((socket, family, numbered)) = self.watchers.get_mut(index) else { return };
        each_echo(socket, *family, |echo| {
            if !echo.is_reply {
                numbered.note(u32::from(echo.number), echo.id);
            }
        });
    }

    pub(super) fn report(&self) -> DatagramReport {
        let sent = self.pings.iter().map(|ping| ping.numbered.report());
        let watched = self.watchers.iter().map(|(_, _, numbered)| numbered.report());
        sent.chain(watched).fold(DatagramReport::default(), DatagramReport::and)
    }
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn socket(self) -> anyhow::Result<OwnedFd> {
        let (family, protocol) = match self {
            Self::V4 => (AddressFamily::INET, ipproto::ICMP),
            Self::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        rustix::net::socket_with(family, SocketType::RAW, flags, Some(protocol))
            .map_err(|errno| errno_fault("opening a raw ICMP socket", errno))
            .context("pinging")
    }

    /// Message types: request, reply (RFC 792, RFC 4443).
    fn types(self) -> (u8, u8) {
        match self {
            Self::V4 => (8, 0),
            Self::V6 => (128, 129),
        }
    }
}

impl Echo {
    fn to_bytes(self, family: Family) -> [u8; ECHO_LENGTH] {
        let mut bytes = [0; ECHO_LENGTH];
        let (request, reply) = family.types();
        bytes[0] = if self.is_reply { reply } else { request };
        bytes[4..6].copy_from_slice(&self.id.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.number.to_be_bytes());
        if family == Family::V4 {
            // The kernel fills in ICMPv6's checksum, whose pseudo-header only it knows, but not ICMP's.
            let checksum = checksum(&bytes);
            bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        bytes
    }

    /// Reads a message; IPv4 raw sockets show the IP header in front of it.
    fn from_bytes(bytes: &[u8], family: Family) -> Option<Self> {
        let header = match family {
            Family::V4 => usize::from(bytes.first()? & 15) * 4,
            Family::V6 => 0,
        };
        let &[kind, _, _, _, i0, i1, n0, n1] = bytes.get(header..header + 8)? else { return None };
        let (request, reply) = family.types();
        (kind == request || kind == reply).then_some(Self {
            is_reply: kind == reply,
            id: u16::from_be_bytes([i0, i1]),
            number: u16::from_be_bytes([n0, n1]),
        })
    }
}

fn each_echo(socket: &OwnedFd, family: Family, mut handle: impl FnMut(Echo)) {
    let mut buffer = [0; 2048];
    loop {
        match rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((read, _)) => {
                if let Some(echo) = buffer.get(..read).and_then(|bytes| Echo::from_bytes(bytes, family)) {
                    handle(echo);
                }
            }
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Header and 48 bytes of data.
const ECHO_LENGTH: usize = 56;
/// The first echo id used.
const FIRST_ID: u16 = 0x4242;
/// One request per address in so many ticks.
const TICKS_PER_ROUND: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_survives_its_bytes() {
        let echo = Echo { is_reply: false, id: 7, number: 9 };
        assert_eq!(Echo::from_bytes(&echo.to_bytes(Family::V6), Family::V6), Some(echo));
        let mut with_header = vec![0x45; 20];
        with_header.extend(echo.to_bytes(Family::V4));
        assert_eq!(Echo::from_bytes(&with_header, Family::V4), Some(echo));
        assert_eq!(Echo::from_bytes(&[0x45], Family::V4), None);
    }

    #[test]
    fn a_message_with_its_checksum_sums_to_zero() {
        let bytes = Echo { is_reply: true, id: 0xffff, number: 0xfffe }.to_bytes(Family::V4);
        assert_eq!(checksum(&bytes), 0);
    }
}
