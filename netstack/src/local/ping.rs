//! Ping sockets: clients of ICMP and ICMPv6 echo, as the kernel's sockets of `SOCK_DGRAM` and `IPPROTO_ICMP`.

use core::net::{IpAddr, SocketAddr};
use core::task::Waker;

use hibernet_conntrack::proto;
use hibernet_snapshot::Instant;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol};

use super::error::SocketError;
use super::sockets::{Arrival, Notice, ReceiveLimits, in_range};
use super::{EPHEMERAL_TRIES, Local, LocalError};
use crate::drop_reason::DropReason;
use crate::packet::Packet;
use crate::reject::header;
use crate::stack::Stack;

/// A ping socket of this host. It stays valid through a save and a restore.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PingSocket(pub(super) u64);

/// An answer to an echo request of a ping socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PingReply {
    /// Who answers.
    pub from: IpAddr,
    /// The address of this host that it was sent to.
    pub to: IpAddr,
    /// Sequence number of the request.
    pub sequence: u16,
    /// Time to live or hop limit it arrived with.
    pub hop_limit: u8,
    /// The payload, which is that of the request.
    pub payload: Vec<u8>,
}

impl Stack {
    /// Opens a ping socket. The unspecified address stands for all: `0.0.0.0` for those of IPv4, `::` for both versions'.
    /// Identifier 0 stands for one that nobody can guess.
    ///
    /// # Errors
    /// If the identifier is taken, the address is not this host's, or there are 65,536 sockets.
    pub fn ping_bind(&mut self, addr: IpAddr, identifier: u16) -> Result<PingSocket, LocalError> {
        self.bindable(addr)?;
        let identifier = if identifier == 0 { self.local.free_identifier(addr)? } else { identifier };
        self.local.datagrams.ping.bind(addr, identifier).map(PingSocket)
    }

    /// Sends an echo request. A drop on the way out is an error here, as it is for a socket of the kernel.
    ///
    /// # Errors
    /// What an ICMP error has said of an earlier request (then nothing was sent); otherwise what became of this one.
    pub fn ping_send(
        &mut self,
        socket: PingSocket,
        to: IpAddr,
        sequence: u16,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), SocketError> {
        self.tell(now);
        let ping = &mut self.local.datagrams.ping;
        if let Some(notice) = ping.take_notice(socket.0) {
            return Err(notice.into());
        }
        let bound = ping.get(socket.0).ok_or(SocketError::Closed)?;
        let (addr, identifier) = (bound.addr, bound.number);
        let Some(from) = self.speaks_from(addr, SocketAddr::new(to, identifier))? else {
            return Err(self.not_sent(DropReason::NoRoute, payload.len()));
        };
        let Some(request) = echo_request(from, to, [identifier, sequence], payload) else {
            return Err(self.not_sent(DropReason::TooLong, payload.len()));
        };
        self.send_now(request, now)
    }

    /// The next answer that has arrived at a socket; `None` if there is none yet.
    ///
    /// # Errors
    /// What an ICMP error has said of an earlier request: that comes before what waits. A kernel's socket hears of it with
    /// `IP_RECVERR` alone. If the socket is closed.
    pub fn ping_recv(&mut self, socket: PingSocket) -> Result<Option<PingReply>, SocketError> {
        let arrival = self.local.datagrams.ping.pop(socket.0).ok_or(SocketError::Closed)??;
        Ok(arrival.map(|Arrival { from, number, to, hop_limit, payload }| PingReply {
            from,
            to,
            sequence: number,
            hop_limit,
            payload,
        }))
    }

    /// The address and identifier a socket is bound to; `None` if it is closed.
    pub fn ping_local(&self, socket: PingSocket) -> Option<(IpAddr, u16)> {
        self.local.datagrams.ping.get(socket.0).map(|bound| (bound.addr, bound.number))
    }

    /// Sets how much a socket holds until it is read. What it holds already it keeps.
    ///
    /// # Errors
    /// If a bound is out of range, or the socket is closed.
    pub fn ping_set_receive_limits(&mut self, socket: PingSocket, limits: ReceiveLimits) -> Result<(), SocketError> {
        in_range(&limits)?;
        let set = self.local.datagrams.ping.set_limits(socket.0, limits);
        if set { Ok(()) } else { Err(SocketError::Closed) }
    }

    /// How much a socket holds until it is read; `None` if it is closed.
    pub fn ping_receive_limits(&self, socket: PingSocket) -> Option<ReceiveLimits> {
        self.local.datagrams.ping.get(socket.0).map(|bound| bound.limits)
    }

    /// Wakes `waker` once, when [`Stack::ping_recv`] has something to give: at once if it has already. A later call takes the
    /// place of an earlier one. Wakers are not saved: after a restore they are registered anew.
    ///
    /// # Errors
    /// If the socket is closed.
    pub fn ping_wake_on_readable(&mut self, socket: PingSocket, waker: &Waker) -> Result<(), SocketError> {
        let registered = self.local.datagrams.ping.wake_on_readable(socket.0, waker);
        if registered { Ok(()) } else { Err(SocketError::Closed) }
    }

    /// All ping sockets, in the order they were opened: after a restore, those of the saved stack.
    pub fn ping_sockets(&self) -> impl Iterator<Item = PingSocket> {
        self.local.datagrams.ping.sockets.keys().copied().map(PingSocket)
    }

    /// Closes a socket. What it has not read is lost.
    pub fn ping_close(&mut self, socket: PingSocket) {
        self.local.datagrams.ping.close(socket.0);
    }
}

impl Local {
    /// Hands an echo reply to its socket. One that nobody waits for is no drop: nobody is to be told.
    pub(crate) fn feed_echo_reply(&mut self, packet: &Packet) -> Result<(), DropReason> {
        let l4 = packet.parsed().l4(packet.bytes());
        let [_, _, _, _, id1, id0, seq1, seq0, payload @ ..] = l4 else { return Err(DropReason::LocalMalformed) };
        let (identifier, sequence) = (u16::from_be_bytes([*id1, *id0]), u16::from_be_bytes([*seq1, *seq0]));
        let ping = &mut self.datagrams.ping;
        let Some(socket) = ping.find(packet.dst(), identifier, (packet.src(), 0)) else { return Ok(()) };
        let arrival = Arrival {
            from: packet.src(),
            number: sequence,
            to: packet.dst(),
            hop_limit: packet.parsed().ttl,
            payload: payload.to_vec(),
        };
        if ping.push(socket, arrival) { Ok(()) } else { Err(DropReason::SocketBufferFull) }
    }

    /// Leaves word with the socket that has sent an echo request an error is about.
    pub(super) fn fail_ping(&mut self, own: IpAddr, identifier: u16, to: IpAddr, notice: Notice) {
        let ping = &mut self.datagrams.ping;
        if let Some(socket) = ping.find(own, identifier, (to, 0)) {
            ping.notify(socket, notice);
        }
    }

    fn free_identifier(&mut self, addr: IpAddr) -> Result<u16, LocalError> {
        for _ in 0..EPHEMERAL_TRIES {
            let drawn = self.choices.draw([u64::from(proto::ICMP), 0]);
            let identifier = u16::try_from(drawn >> 48).unwrap_or(0);
            if identifier != 0 && self.datagrams.ping.is_free(addr, identifier) {
                return Ok(identifier);
            }
        }
        Err(LocalError::NoPort)
    }
}

/// The datagram of an echo request; `None` if it would be too long, or the families differ.
fn echo_request(from: IpAddr, to: IpAddr, numbers: [u16; 2], payload: &[u8]) -> Option<Vec<u8>> {
    let kind = if from.is_ipv4() { 8 } else { 128 };
    echo_datagram(kind, from, to, numbers, payload)
}

/// The datagram of an echo request or reply, with identifier and sequence number.
pub(super) fn echo_datagram(kind: u8, from: IpAddr, to: IpAddr, numbers: [u16; 2], payload: &[u8]) -> Option<Vec<u8>> {
    let protocol = if from.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    let len = payload.len().saturating_add(ECHO_HEADER);
    let mut bytes = header(from, to, protocol, len)?;
    let at = bytes.len().checked_sub(len)?;
    let message = bytes.get_mut(at..)?;
    let [identifier, sequence] = numbers.map(u16::to_be_bytes);
    message.get_mut(..2)?.copy_from_slice(&[kind, 0]);
    message.get_mut(4..6)?.copy_from_slice(&identifier);
    message.get_mut(6..ECHO_HEADER)?.copy_from_slice(&sequence);
    message.get_mut(ECHO_HEADER..)?.copy_from_slice(payload);
    match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => Icmpv6Packet::new_unchecked(message).fill_checksum(&from, &to),
        _ => Icmpv4Packet::new_unchecked(message).fill_checksum(),
    }
    Some(bytes)
}

const ECHO_HEADER: usize = 8;

#[cfg(test)]
mod tests;
