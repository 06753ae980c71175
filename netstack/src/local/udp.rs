//! UDP sockets.

use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeMap;

use hibernet_snapshot::Instant;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket, UdpMetadata};
use smoltcp::wire::{IpEndpoint, IpListenEndpoint};

use super::{ANY, EPHEMERAL_TRIES, Local, LocalError, Wire};
use crate::drop_reason::DropReason;
use crate::route::is_own;
use crate::stack::{LocalSendError, Stack};

/// A UDP socket of this host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UdpHandle(u64);

pub(super) struct UdpSockets {
    pub(super) wire: Wire,
    sockets: SocketSet<'static>,
    bound: BTreeMap<UdpHandle, Bound>,
    next: u64,
}

#[derive(Clone, Copy)]
struct Bound {
    addr: IpAddr,
    port: u16,
    socket: SocketHandle,
    echo: bool,
}

impl UdpSockets {
    pub(super) fn new(echo: Option<u16>, wire: Wire) -> Self {
        let mut sockets = Self { wire, sockets: SocketSet::new(Vec::new()), bound: BTreeMap::new(), next: 0 };
        if let Some(port) = echo {
            // Port 0 was refused, and no other socket is there yet that could have the port.
            let _echo = sockets.bind(ANY, port, true);
        }
        sockets
    }

    fn bind(&mut self, addr: IpAddr, port: u16, echo: bool) -> Result<UdpHandle, LocalError> {
        if port == 0 {
            return Err(LocalError::PortZero);
        }
        if self.bound.values().any(|other| other.port == port && overlap(other.addr, addr)) {
            return Err(LocalError::PortTaken { port });
        }
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; QUEUE_PACKETS], vec![0; QUEUE_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        let endpoint = IpListenEndpoint { addr: (!addr.is_unspecified()).then(|| addr.into()), port };
        socket.bind(endpoint).map_err(|_| LocalError::PortZero)?;
        let handle = UdpHandle(self.next);
        self.next = self.next.wrapping_add(1);
        self.bound.insert(handle, Bound { addr, port, socket: self.sockets.add(socket), echo });
        Ok(handle)
    }
}

impl core::fmt::Debug for UdpSockets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Sockets would print their buffers.
        f.debug_struct("UdpSockets").field("handles", &self.bound.keys()).finish_non_exhaustive()
    }
}

impl Local {
    /// The socket a datagram is for. One bound to the address goes before one bound to all.
    pub(crate) fn udp_socket(&self, dst: IpAddr, port: u16, group: bool) -> Option<UdpHandle> {
        let fits = |exact: bool| {
            self.udp.bound.iter().find(|(_, bound)| {
                let takes = if exact { bound.addr == dst && !group } else { takes_any(bound.addr, dst) };
                bound.port == port && takes
            })
        };
        fits(true).or_else(|| fits(false)).map(|(handle, _)| *handle)
    }

    /// Whether the socket can take a datagram of that size: smoltcp would drop it in silence.
    pub(crate) fn udp_has_room(&mut self, handle: UdpHandle, len: usize) -> bool {
        let Some(bound) = self.udp.bound.get(&handle) else { return false };
        let socket = self.udp.sockets.get_mut::<Socket<'_>>(bound.socket);
        // Half, because a datagram may have to be laid out behind a gap at the end of the ring.
        socket.recv_queue().saturating_add(len) <= socket.payload_recv_capacity() / 2
    }

    /// Gives a datagram to smoltcp.
    pub(crate) fn feed_datagram(&mut self, datagram: Vec<u8>, now: Instant) {
        self.udp.wire.feed(datagram, &mut self.udp.sockets, now);
    }

    /// If the socket is the echo service: sends back what has arrived, from the address it was sent to.
    pub(crate) fn echo_udp(&mut self, handle: UdpHandle, from: IpAddr, now: Instant) {
        let Some(bound) = self.udp.bound.get(&handle).filter(|bound| bound.echo) else { return };
        let socket = self.udp.sockets.get_mut::<Socket<'_>>(bound.socket);
        while let Ok((payload, meta)) = socket.recv() {
            let payload = payload.to_vec();
            let mut answer = UdpMetadata::from(meta.endpoint);
            answer.local_address = Some(from.into());
            // Port 0 cannot be answered, and a full queue loses the answer, as UDP may.
            let _sent = socket.send_slice(&payload, answer);
        }
        self.udp.wire.flush(&mut self.udp.sockets, now);
    }
}

impl Stack {
    /// Opens a UDP socket. The unspecified address stands for all: `0.0.0.0` for those of IPv4, `::` for both versions'.
    /// Port 0 stands for one that nobody can guess.
    pub fn listen_udp(&mut self, addr: IpAddr, port: u16) -> Result<UdpHandle, LocalError> {
        if port != 0 {
            return self.local.udp.bind(addr, port, false);
        }
        for _ in 0..EPHEMERAL_TRIES {
            let port = self.local.ephemeral_port(0);
            if let Ok(handle) = self.local.udp.bind(addr, port, false) {
                return Ok(handle);
            }
        }
        Err(LocalError::NoPort)
    }

    /// Sends a datagram from a socket. A drop on the way out is an error here, as it is for a socket of the kernel.
    pub fn udp_send(
        &mut self,
        handle: UdpHandle,
        to: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), LocalSendError> {
        self.tell(now);
        let closed = LocalSendError::from(DropReason::NoListener);
        let bound = *self.local.udp.bound.get(&handle).ok_or(closed)?;
        let own = Some(bound.addr).filter(|addr| !addr.is_unspecified() && is_own(&self.links, *addr));
        let Some(from) = own.or_else(|| self.routes.source_for(&self.links, to.ip())) else {
            self.drop_unread(DropReason::NoRoute, None, payload.len());
            return Err(DropReason::NoRoute.into());
        };
        let mut meta = UdpMetadata::from(IpEndpoint::from(to));
        meta.local_address = Some(from.into());
        let udp = &mut self.local.udp;
        let sent = udp.sockets.get_mut::<Socket<'_>>(bound.socket).send_slice(payload, meta);
        udp.wire.flush(&mut udp.sockets, now);
        let datagram = sent.ok().and_then(|()| udp.wire.device.take_last_sent());
        let Some(datagram) = datagram else {
            self.drop_unread(DropReason::TooLong, None, payload.len());
            return Err(DropReason::TooLong.into());
        };
        let datagram = self.identified(datagram);
        let outcome = self.originate(datagram, now);
        self.settle(now);
        outcome
    }

    /// The next datagram that has arrived at a socket, and who sent it.
    pub fn udp_recv(&mut self, handle: UdpHandle) -> Option<(SocketAddr, Vec<u8>)> {
        let bound = self.local.udp.bound.get(&handle)?;
        let (payload, meta) = self.local.udp.sockets.get_mut::<Socket<'_>>(bound.socket).recv().ok()?;
        Some((SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port), payload.to_vec()))
    }

    /// Closes a socket. What it has not read is lost.
    pub fn udp_close(&mut self, handle: UdpHandle) {
        if let Some(bound) = self.local.udp.bound.remove(&handle) {
            self.local.udp.sockets.remove(bound.socket);
        }
    }
}

/// Whether a socket bound to an unspecified address takes what is for `dst`.
pub(super) fn takes_any(bound: IpAddr, dst: IpAddr) -> bool {
    bound.is_unspecified() && (bound.is_ipv6() || dst.is_ipv4())
}

/// Whether two sockets at one port would take each other's packets.
pub(super) fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one == other || takes_any(one, other) || takes_any(other, one)
}

/// Datagrams a socket holds.
const QUEUE_PACKETS: usize = 256;
/// Bytes a socket holds: two of the largest datagrams.
const QUEUE_BYTES: usize = 131_072;
