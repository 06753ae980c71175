//! What UDP and ping sockets have in common: who has which port or identifier, and what waits to be read.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::task::Waker;
use std::collections::{BTreeMap, VecDeque};

use hibernet_snapshot::{Invalid, Snapshot};

use super::{ANY, LocalError};

/// Sockets by id, and by what they are bound to. A packet finds its socket without a look at the others.
#[derive(Default)]
pub(super) struct SocketTable {
    pub(super) sockets: BTreeMap<u64, DatagramSocket>,
    index: BTreeMap<(u16, IpAddr), u64>,
    /// The id of the next socket. Ids are never given twice, so that an old handle stays a closed socket's.
    pub(super) next: u64,
    /// The port of a service of this host.
    reserved: Option<u16>,
    /// Bytes that wait in all sockets together.
    queued: usize,
}

/// A socket.
pub(super) struct DatagramSocket {
    /// The address it is bound to; an unspecified one stands for all.
    pub(super) addr: IpAddr,
    /// Port, or identifier of echo requests.
    pub(super) number: u16,
    /// The one it is connected to.
    pub(super) peer: Option<(IpAddr, u16)>,
    pub(super) limits: ReceiveLimits,
    pub(super) waiting: VecDeque<Arrival>,
    /// Bytes of payload that wait.
    pub(super) bytes: usize,
    pub(super) notice: Option<Notice>,
    pub(super) waker: Option<Waker>,
}

/// A datagram that waits to be read.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(super) struct Arrival {
    #[snapshot(saved)]
    pub(super) from: IpAddr,
    /// The sender's port, or the sequence number of an echo reply.
    #[snapshot(saved)]
    pub(super) number: u16,
    #[snapshot(saved)]
    pub(super) to: IpAddr,
    #[snapshot(saved)]
    pub(super) hop_limit: u8,
    #[snapshot(saved)]
    pub(super) payload: Vec<u8>,
}

/// What an ICMP error says of something the socket has sent; told once, by the next call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
pub(super) enum Notice {
    /// Nobody has the port.
    Refused(#[snapshot(saved)] IpAddr),
    /// It cannot be reached, with the code of the error.
    Unreachable(#[snapshot(saved)] IpAddr, #[snapshot(saved)] u8),
    /// Too many hops.
    TimeExceeded(#[snapshot(saved)] IpAddr),
    /// Larger than a link on the way takes.
    TooBig(#[snapshot(saved)] IpAddr),
    /// Its header cannot be read, with the code of the error.
    Parameter(#[snapshot(saved)] IpAddr, #[snapshot(saved)] u8),
}

impl Notice {
    /// Whether a connected socket hears of it: of what will not pass by itself. The codes are those that Linux 6.18.44
    /// was seen to tell of without `IP_RECVERR`.
    pub(super) fn is_fatal(self) -> bool {
        match self {
            Self::Refused(_) | Self::TooBig(_) | Self::Parameter(..) => true,
            Self::Unreachable(IpAddr::V4(_), code) => matches!(code, 2 | 6..=10 | 13..=15),
            Self::Unreachable(IpAddr::V6(_), code) => matches!(code, 1 | 5..=8),
            Self::TimeExceeded(_) => false,
        }
    }
}

/// Bounds of what a UDP or ping socket holds until it is read. What does not fit is a counted drop
/// ([`DropReason::SocketBufferFull`](crate::DropReason::SocketBufferFull)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
#[snapshot(validate = in_range)]
pub struct ReceiveLimits {
    /// Bytes of payload, 1 to 16,777,216.
    #[snapshot(saved)]
    pub bytes: u32,
    /// Datagrams, 1 to 65,536.
    #[snapshot(saved)]
    pub datagrams: u32,
}

impl Default for ReceiveLimits {
    fn default() -> Self {
        Self { bytes: 131_072, datagrams: 256 }
    }
}

/// Checks bounds that were asked for, or read from an image.
pub(super) fn in_range(limits: &ReceiveLimits) -> Result<(), Invalid> {
    let ReceiveLimits { bytes, datagrams } = *limits;
    if !(1..=MOST_BYTES).contains(&bytes) {
        return Err(Invalid::new("bytes", bytes.to_string(), format!("1 to {MOST_BYTES}")));
    }
    if !(1..=MOST_DATAGRAMS).contains(&datagrams) {
        return Err(Invalid::new("datagrams", datagrams.to_string(), format!("1 to {MOST_DATAGRAMS}")));
    }
    Ok(())
}

impl SocketTable {
    /// A table without sockets, in which a service has a port at every address.
    pub(super) fn new(reserved: Option<u16>) -> Self {
        Self { reserved, ..Self::default() }
    }

    /// Opens a socket.
    pub(super) fn bind(&mut self, addr: IpAddr, number: u16) -> Result<u64, LocalError> {
        if self.sockets.len() >= MOST_SOCKETS || self.next >= MOST_IDS {
            return Err(LocalError::TooMany { most: MOST_SOCKETS });
        }
        let id = self.next;
        self.insert(id, DatagramSocket::new(addr, number, ReceiveLimits::default()))?;
        self.next = id.saturating_add(1);
        Ok(id)
    }

    /// Puts a socket in, if what it is bound to is free.
    pub(super) fn insert(&mut self, id: u64, socket: DatagramSocket) -> Result<(), LocalError> {
        if socket.number == 0 {
            return Err(LocalError::PortZero);
        }
        if !self.is_free(socket.addr, socket.number) {
            return Err(LocalError::PortTaken { port: socket.number });
        }
        self.queued = self.queued.saturating_add(socket.bytes);
        self.index.insert((socket.number, socket.addr), id);
        self.sockets.insert(id, socket);
        Ok(())
    }

    /// Whether a socket may be bound so.
    pub(super) fn is_free(&self, addr: IpAddr, number: u16) -> bool {
        let bound_to = |addr: IpAddr| self.index.contains_key(&(number, addr));
        let bound_within = |first, last| self.index.range((number, first)..=(number, last)).next().is_some();
        let taken = match addr {
            ANY => bound_within(ANY_V4, LAST),
            ANY_V4 => bound_within(ANY_V4, LAST_V4) || bound_to(ANY),
            IpAddr::V4(_) => bound_to(addr) || bound_to(ANY_V4) || bound_to(ANY),
            IpAddr::V6(_) => bound_to(addr) || bound_to(ANY),
        };
        self.reserved != Some(number) && !taken
    }

    /// Whether the port is that of the service.
    pub(super) fn is_reserved(&self, number: u16) -> bool {
        self.reserved == Some(number)
    }

    pub(super) fn get(&self, id: u64) -> Option<&DatagramSocket> {
        self.sockets.get(&id)
    }

    /// The socket that takes what `from` sends to `to`. One bound to the address goes before one bound to all; a connected
    /// one takes what its peer sends alone.
    pub(super) fn find(&self, to: IpAddr, number: u16, from: (IpAddr, u16)) -> Option<u64> {
        let bound_to = |addr: IpAddr| self.index.get(&(number, addr)).copied();
        let any_v4 = if to.is_ipv4() { bound_to(ANY_V4) } else { None };
        let id = bound_to(to).or(any_v4).or_else(|| bound_to(ANY))?;
        let socket = self.sockets.get(&id)?;
        socket.peer.is_none_or(|peer| peer == from).then_some(id)
    }

    /// Connects a socket to a peer, to whom it speaks from `addr`.
    pub(super) fn connect(&mut self, id: u64, addr: IpAddr, peer: (IpAddr, u16)) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        // Narrower than before, so nobody else can have it.
        self.index.remove(&(socket.number, socket.addr));
        self.index.insert((socket.number, addr), id);
        socket.addr = addr;
        socket.peer = Some(peer);
    }

    /// Puts an arrival in a socket's queue; false if it finds no room.
    pub(super) fn push(&mut self, id: u64, arrival: Arrival) -> bool {
        let Some(socket) = self.sockets.get_mut(&id) else { return false };
        let len = arrival.payload.len();
        let queued = self.queued.saturating_add(len);
        if !socket.has_room(len) || queued > MOST_QUEUED {
            return false;
        }
        self.queued = queued;
        socket.bytes = socket.bytes.saturating_add(len);
        socket.waiting.push_back(arrival);
        socket.wake();
        true
    }

    /// The oldest arrival; a notice goes before it.
    pub(super) fn pop(&mut self, id: u64) -> Option<Result<Option<Arrival>, Notice>> {
        let socket = self.sockets.get_mut(&id)?;
        if let Some(notice) = socket.notice.take() {
            return Some(Err(notice));
        }
        let arrival = socket.waiting.pop_front();
        let len = arrival.as_ref().map_or(0, |arrival| arrival.payload.len());
        socket.bytes = socket.bytes.saturating_sub(len);
        self.queued = self.queued.saturating_sub(len);
        Some(Ok(arrival))
    }

    /// Leaves a notice for the next call.
    pub(super) fn notify(&mut self, id: u64, notice: Notice) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.notice = Some(notice);
            socket.wake();
        }
    }

    /// Takes the notice a socket was left.
    pub(super) fn take_notice(&mut self, id: u64) -> Option<Notice> {
        self.sockets.get_mut(&id)?.notice.take()
    }

    /// Sets a socket's bounds; what waits already stays. False if there is no such socket.
    pub(super) fn set_limits(&mut self, id: u64, limits: ReceiveLimits) -> bool {
        self.sockets.get_mut(&id).map(|socket| socket.limits = limits).is_some()
    }

    /// Remembers whom to wake when there is something to read; at once if there is already. False if there is no such
    /// socket.
    pub(super) fn wake_on_readable(&mut self, id: u64, waker: &Waker) -> bool {
        let Some(socket) = self.sockets.get_mut(&id) else { return false };
        match &mut socket.waker {
            Some(known) => known.clone_from(waker),
            unknown => *unknown = Some(waker.clone()),
        }
        if !socket.waiting.is_empty() || socket.notice.is_some() {
            socket.wake();
        }
        true
    }

    /// Closes a socket. What waits in it is lost.
    pub(super) fn close(&mut self, id: u64) {
        if let Some(mut socket) = self.sockets.remove(&id) {
            self.index.remove(&(socket.number, socket.addr));
            self.queued = self.queued.saturating_sub(socket.bytes);
            socket.wake();
        }
    }

    /// Bytes that wait in all sockets together.
    pub(super) const fn queued(&self) -> usize {
        self.queued
    }
}

impl DatagramSocket {
    pub(super) fn new(addr: IpAddr, number: u16, limits: ReceiveLimits) -> Self {
        let (peer, waiting, bytes, notice, waker) = (None, VecDeque::new(), 0, None, None);
        Self { addr, number, peer, limits, waiting, bytes, notice, waker }
    }

    fn has_room(&self, len: usize) -> bool {
        let most = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
        self.waiting.len() < most(self.limits.datagrams) && self.bytes.saturating_add(len) <= most(self.limits.bytes)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl core::fmt::Debug for SocketTable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Not what users wait to read.
        let ids: Vec<u64> = self.sockets.keys().copied().collect();
        f.debug_struct("SocketTable").field("ids", &ids).field("queued", &self.queued).finish_non_exhaustive()
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

/// The address that stands for all of IPv4, and the first in order.
const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// The last address of IPv4 in order.
const LAST_V4: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);
/// The last address in order.
const LAST: IpAddr = IpAddr::V6(Ipv6Addr::from_bits(u128::MAX));
/// Most UDP sockets, and most ping sockets.
pub(super) const MOST_SOCKETS: usize = 65_536;
/// So many sockets a stack and its heirs can open one after the other.
pub(super) const MOST_IDS: u64 = 1 << 48;
/// Most bytes that wait in UDP sockets, and most in ping sockets, whatever their limits add up to.
pub(super) const MOST_QUEUED: usize = 64 << 20;
/// Largest limit of bytes.
pub(super) const MOST_BYTES: u32 = 16 << 20;
/// Largest limit of datagrams.
pub(super) const MOST_DATAGRAMS: u32 = 65_536;
