//! UDP sockets and the echo service.
//!
//! They need no smoltcp: a datagram is a header in front of bytes, and what waits to be read is in queues of our own, which a
//! save can write without taking anything out. What is sent is sent at once, so nothing waits there.

use core::net::{IpAddr, SocketAddr};
use core::task::Waker;

use hibernet_snapshot::{Instant, Invalid};
use smoltcp::wire::{IpProtocol, UdpPacket};

use super::error::SocketError;
use super::sockets::{Arrival, Notice, ReceiveLimits, in_range};
pub(super) use super::sockets::{overlap, takes_any};
use super::{EPHEMERAL_TRIES, Local, LocalError};
use crate::drop_reason::DropReason;
use crate::packet::Packet;
use crate::reject::{has_jumbo_length, header};
use crate::route::is_own;
use crate::stack::{LocalSendError, Stack};

/// A UDP socket of this host. It stays valid through a save and a restore.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UdpSocket(pub(super) u64);

/// A datagram that has arrived at a UDP socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UdpDatagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// The address it was sent to: one of this host, or of a group or broadcast.
    pub to: IpAddr,
    /// Time to live or hop limit it arrived with.
    pub hop_limit: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Stack {
    /// Opens a UDP socket. The unspecified address stands for all: `0.0.0.0` for those of IPv4, `::` for both versions'.
    /// Port 0 stands for one that nobody can guess (RFC 6056).
    ///
    /// # Errors
    /// If the port is taken, the address is not this host's, or there are 65,536 sockets.
    pub fn udp_bind(&mut self, addr: IpAddr, port: u16) -> Result<UdpSocket, LocalError> {
        self.bindable(addr)?;
        let port = if port == 0 { self.local.free_udp_port(addr)? } else { port };
        self.local.datagrams.udp.bind(addr, port).map(UdpSocket)
    }

    /// Connects a socket: from now on it takes datagrams of `peer` alone, and is told what ICMP errors say of those it sends:
    /// that nobody has the port, and whatever else does not pass by itself. A socket bound to all addresses is narrowed to the one it reaches the peer from. What waits already stays.
    ///
    /// # Errors
    /// If the socket is closed, the peer is of the other family or has no address or port, or there is no route to it.
    pub fn udp_connect(&mut self, socket: UdpSocket, peer: SocketAddr) -> Result<(), SocketError> {
        let bound = self.local.datagrams.udp.get(socket.0).ok_or(SocketError::Closed)?.addr;
        let addr = self.speaks_from(bound, peer)?.ok_or(SocketError::NoRoute { to: peer.ip() })?;
        self.local.datagrams.udp.connect(socket.0, addr, (peer.ip(), peer.port()));
        Ok(())
    }

    /// Sends a datagram, also from a connected socket to another than its peer. A drop on the way out is an error here, as it
    /// is for a socket of the kernel.
    ///
    /// # Errors
    /// What an ICMP error has said of an earlier datagram (then nothing was sent); otherwise what became of this one.
    pub fn udp_send(
        &mut self,
        socket: UdpSocket,
        to: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), SocketError> {
        self.tell(now);
        let udp = &mut self.local.datagrams.udp;
        if let Some(notice) = udp.take_notice(socket.0) {
            return Err(notice.into());
        }
        let bound = udp.get(socket.0).ok_or(SocketError::Closed)?;
        let (addr, port) = (bound.addr, bound.number);
        let Some(from) = self.speaks_from(addr, to)? else {
            return Err(self.not_sent(DropReason::NoRoute, payload.len()));
        };
        let Some(datagram) = udp_datagram((from, port).into(), to, payload) else {
            return Err(self.not_sent(DropReason::TooLong, payload.len()));
        };
        self.send_now(datagram, now)
    }

    /// Sends a datagram to the socket's peer.
    ///
    /// # Errors
    /// As [`Stack::udp_send`]; and if the socket is not connected.
    pub fn udp_send_connected(&mut self, socket: UdpSocket, payload: &[u8], now: Instant) -> Result<(), SocketError> {
        let bound = self.local.datagrams.udp.get(socket.0).ok_or(SocketError::Closed)?;
        let peer = bound.peer.ok_or(SocketError::NotConnected)?;
        self.udp_send(socket, peer.into(), payload, now)
    }

    /// The next datagram that has arrived at a socket; `None` if there is none yet.
    ///
    /// # Errors
    /// What an ICMP error has said of an earlier datagram: that comes before what waits. If the socket is closed.
    pub fn udp_recv(&mut self, socket: UdpSocket) -> Result<Option<UdpDatagram>, SocketError> {
        let arrival = self.local.datagrams.udp.pop(socket.0).ok_or(SocketError::Closed)??;
        Ok(arrival.map(|Arrival { from, number, to, hop_limit, payload }| UdpDatagram {
            from: (from, number).into(),
            to,
            hop_limit,
            payload,
        }))
    }

    /// The address and port a socket is bound to; `None` if it is closed.
    pub fn udp_local_addr(&self, socket: UdpSocket) -> Option<SocketAddr> {
        self.local.datagrams.udp.get(socket.0).map(|bound| (bound.addr, bound.number).into())
    }

    /// The peer a socket is connected to.
    pub fn udp_peer_addr(&self, socket: UdpSocket) -> Option<SocketAddr> {
        self.local.datagrams.udp.get(socket.0)?.peer.map(SocketAddr::from)
    }

    /// Sets how much a socket holds until it is read. What it holds already it keeps.
    ///
    /// # Errors
    /// If a bound is out of range, or the socket is closed.
    pub fn udp_set_receive_limits(&mut self, socket: UdpSocket, limits: ReceiveLimits) -> Result<(), SocketError> {
        in_range(&limits)?;
        let set = self.local.datagrams.udp.set_limits(socket.0, limits);
        if set { Ok(()) } else { Err(SocketError::Closed) }
    }

    /// How much a socket holds until it is read; `None` if it is closed.
    pub fn udp_receive_limits(&self, socket: UdpSocket) -> Option<ReceiveLimits> {
        self.local.datagrams.udp.get(socket.0).map(|bound| bound.limits)
    }

    /// Wakes `waker` once, when [`Stack::udp_recv`] has something to give: at once if it has already. A later call takes the
    /// place of an earlier one. Wakers are not saved: after a restore they are registered anew.
    ///
    /// # Errors
    /// If the socket is closed.
    pub fn udp_wake_on_readable(&mut self, socket: UdpSocket, waker: &Waker) -> Result<(), SocketError> {
        let registered = self.local.datagrams.udp.wake_on_readable(socket.0, waker);
        if registered { Ok(()) } else { Err(SocketError::Closed) }
    }

    /// All UDP sockets, in the order they were opened: after a restore, those of the saved stack.
    pub fn udp_sockets(&self) -> impl Iterator<Item = UdpSocket> {
        self.local.datagrams.udp.sockets.keys().copied().map(UdpSocket)
    }

    /// Closes a socket. What it has not read is lost.
    pub fn udp_close(&mut self, socket: UdpSocket) {
        self.local.datagrams.udp.close(socket.0);
    }

    /// Hands a datagram to its socket, or to the echo service. `group`: its destination is a broadcast or multicast address.
    pub(crate) fn feed_udp(&mut self, packet: &Packet, group: bool, now: Instant) -> Result<(), DropReason> {
        let l4 = packet.parsed().l4(packet.bytes());
        let [s1, s0, d1, d0, _, _, _, _, rest @ ..] = l4 else { return Err(DropReason::LocalMalformed) };
        let payload = match UdpPacket::new_checked(l4) {
            Ok(datagram) => datagram.payload(),
            Err(_) if has_jumbo_length(l4) => rest,
            Err(_) => return Err(DropReason::LocalMalformed),
        };
        let port = u16::from_be_bytes([*d1, *d0]);
        let (from, to) = ((packet.src(), u16::from_be_bytes([*s1, *s0])), packet.dst());
        if self.local.datagrams.udp.is_reserved(port) {
            let answer_from = if group { self.routes.source_for(&self.links, packet.src()) } else { Some(to) };
            let answer = answer_from
                .filter(|_| is_answerable(from))
                .and_then(|own| udp_datagram((own, port).into(), from.into(), payload));
            if let Some(answer) = answer {
                let answer = self.identified(answer);
                // An answer has no sender who could be told of its drop; the drop is counted.
                let _outcome = self.originate(answer, now);
            }
            return Ok(());
        }
        let Some(socket) = self.local.datagrams.udp.find(to, port, from) else {
            return Err(if group { DropReason::NoListener } else { DropReason::PortUnreachable });
        };
        let payload = payload.to_vec();
        let arrival = Arrival { from: from.0, number: from.1, to, hop_limit: packet.parsed().ttl, payload };
        let kept = self.local.datagrams.udp.push(socket, arrival);
        if kept { Ok(()) } else { Err(DropReason::SocketBufferFull) }
    }

    /// Whether a socket may be bound to the address.
    pub(super) fn bindable(&self, addr: IpAddr) -> Result<(), LocalError> {
        let own = addr.is_unspecified() || is_own(&self.links, addr);
        if own { Ok(()) } else { Err(LocalError::AddressNotOwn { addr }) }
    }

    /// The address a socket bound so speaks to `to` from; `None` without a route.
    pub(super) fn speaks_from(&self, bound: IpAddr, to: SocketAddr) -> Result<Option<IpAddr>, SocketError> {
        if to.port() == 0 || to.ip().is_unspecified() {
            return Err(SocketError::BadDestination { to });
        }
        let takes_both = bound.is_unspecified() && bound.is_ipv6();
        if !takes_both && bound.is_ipv4() != to.is_ipv4() {
            return Err(SocketError::Family { bound, to: to.ip() });
        }
        if bound.is_unspecified() {
            return Ok(self.routes.source_for(&self.links, to.ip()));
        }
        // It had the address when it was bound.
        if is_own(&self.links, bound) { Ok(Some(bound)) } else { Err(SocketError::AddressNotOwn { bound }) }
    }

    /// Counts a datagram that was never made.
    pub(super) fn not_sent(&mut self, reason: DropReason, len: usize) -> SocketError {
        self.drop_unread(reason, None, len);
        LocalSendError::from(reason).into()
    }

    /// OUTPUT and what follows, at once.
    pub(super) fn send_now(&mut self, datagram: Vec<u8>, now: Instant) -> Result<(), SocketError> {
        let datagram = self.identified(datagram);
        let outcome = self.originate(datagram, now);
        self.settle(now);
        Ok(outcome?)
    }
}

impl Local {
    fn free_udp_port(&mut self, addr: IpAddr) -> Result<u16, LocalError> {
        for _ in 0..EPHEMERAL_TRIES {
            let port = self.ephemeral_port(0);
            if self.datagrams.udp.is_free(addr, port) {
                return Ok(port);
            }
        }
        Err(LocalError::NoPort)
    }

    /// Leaves word with the connected socket that has sent a datagram an error is about. Like a kernel's, one that is not
    /// connected does not hear of it.
    pub(super) fn fail_udp(&mut self, own: SocketAddr, peer: SocketAddr, notice: Notice) {
        let udp = &mut self.datagrams.udp;
        let sender = udp.find(own.ip(), own.port(), (peer.ip(), peer.port()));
        if let Some(id) = sender.filter(|id| udp.get(*id).is_some_and(|socket| socket.peer.is_some())) {
            udp.notify(id, notice);
        }
    }
}

impl From<Invalid> for SocketError {
    fn from(invalid: Invalid) -> Self {
        Self::Limits(invalid)
    }
}

/// Whether an answer can go back there.
fn is_answerable((addr, port): (IpAddr, u16)) -> bool {
    port != 0 && !addr.is_unspecified()
}

/// The datagram; `None` if it would be too long, or the families differ.
pub(super) fn udp_datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let len = payload.len().saturating_add(UDP_HEADER);
    let mut bytes = header(from.ip(), to.ip(), IpProtocol::Udp, len)?;
    let at = bytes.len().checked_sub(len)?;
    let mut datagram = UdpPacket::new_unchecked(bytes.get_mut(at..)?);
    datagram.set_src_port(from.port());
    datagram.set_dst_port(to.port());
    datagram.set_len(u16::try_from(len).ok()?);
    datagram.payload_mut().copy_from_slice(payload);
    datagram.fill_checksum(&from.ip().into(), &to.ip().into());
    Some(bytes)
}

const UDP_HEADER: usize = 8;

#[cfg(test)]
pub(super) mod tests;
