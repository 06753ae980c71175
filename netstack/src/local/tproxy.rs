//! What a guest sends to other hosts and a rule hands to the embedder instead: netfilter's TPROXY, with the embedder as proxy.
//!
//! A SYN waits unanswered until the embedder has made up its mind, so that it can ask the real destination first: the guest
//! sees a connection where there is one, and a refusal where there is none. Nothing of what waits is saved. A guest sends its
//! SYN again, and whoever sends datagrams expects that some are lost.
//!
//! As with the kernel's TPROXY (Documentation/networking/tproxy.rst) the packet keeps its destination, goes to INPUT, and its
//! flow is tracked between the two real ends, without translation. What the kernel's hands to a port is handed to the
//! embedder here, and echo requests too, which the kernel's target does not take.

use core::net::{IpAddr, SocketAddr};
use core::task::Waker;
use std::collections::{BTreeMap, VecDeque};

use hibernet_conntrack::proto;
use hibernet_snapshot::Instant;

use super::ping::echo_datagram;
use super::{Local, LocalError, SocketError, StreamOptions, TcpStream};
use crate::drop_reason::DropReason;
use crate::icmp::IcmpError;
use crate::link::LinkId;
use crate::local::udp::udp_datagram;
use crate::local::{Asked, Ends};
use crate::packet::Packet;
use crate::path::plain;
use crate::ping::is_echo_request;
use crate::stack::Stack;

/// A connection that a guest wants to open to another host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Opening {
    /// The guest's end.
    pub from: SocketAddr,
    /// Where it wants to go.
    pub to: SocketAddr,
}

/// A datagram that a guest has sent to another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyDatagram {
    /// The guest's end.
    pub from: SocketAddr,
    /// Where it wants to go.
    pub to: SocketAddr,
    /// The link it came in on.
    pub link: LinkId,
    /// The payload.
    pub payload: Vec<u8>,
}

/// An echo request that a guest has sent to another host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyEcho {
    /// The guest's address.
    pub from: IpAddr,
    /// Where it wants to go.
    pub to: IpAddr,
    /// Identifier of the request.
    pub identifier: u16,
    /// Its sequence number.
    pub sequence: u16,
    /// The link it came in on.
    pub link: LinkId,
    /// The payload.
    pub payload: Vec<u8>,
}

/// What waits for the embedder.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Proxied {
    /// A connection to be opened, which waits for [`Stack::tproxy_accept`] or [`Stack::tproxy_refuse`].
    Opening(Opening),
    /// A datagram of UDP.
    Datagram(ProxyDatagram),
    /// An echo request.
    Echo(ProxyEcho),
}

/// Why a destination was not reached, and what the guest is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unreached {
    /// Nobody has the port: a TCP reset, or ICMP port unreachable.
    Refused,
    /// Nobody has answered. The guest is told nothing, as it would be on the wire: its own patience decides.
    TimedOut,
    /// The embedder has no place for another flow: a TCP reset, or ICMP host unreachable.
    NoPlace,
    /// ICMP host unreachable (code 1; address unreachable in ICMPv6).
    Host,
    /// ICMP network unreachable (code 0; no route in ICMPv6).
    Network,
    /// ICMP communication administratively prohibited (code 13; code 1 in ICMPv6).
    Prohibited,
}

/// All that waits for the embedder, in the order it came.
#[derive(Debug, Default)]
pub(super) struct ProxyQueue {
    openings: BTreeMap<Opening, Held>,
    waiting: VecDeque<Proxied>,
    /// Bytes of payload that wait.
    bytes: usize,
    waker: Option<Waker>,
}

/// A SYN that is held back.
#[derive(Debug)]
struct Held {
    packet: Packet,
    /// The connection's numbers start behind this one.
    floor: Option<u32>,
}

impl Stack {
    /// The next that a `tproxy` rule has handed over.
    pub fn tproxy_next(&mut self) -> Option<Proxied> {
        let next = self.local.proxied.waiting.pop_front()?;
        self.local.proxied.bytes = self.local.proxied.bytes.saturating_sub(next.payload_len());
        Some(next)
    }

    /// Wakes `waker` once when something is handed over. True if something waits already: then nothing is registered.
    pub fn tproxy_wake(&mut self, waker: &Waker) -> bool {
        let proxied = &mut self.local.proxied;
        if !proxied.waiting.is_empty() {
            return true;
        }
        proxied.waker = Some(waker.clone());
        false
    }

    /// Answers an opening in its destination's place. The stream's own end is the destination.
    ///
    /// # Errors
    /// If the opening waits no longer (the guest has taken it back), the settings cannot be, or all places are taken: then
    /// the guest is told nothing, and asks again.
    pub fn tproxy_accept(
        &mut self,
        opening: Opening,
        options: StreamOptions,
        now: Instant,
    ) -> Result<TcpStream, LocalError> {
        self.tell(now);
        options.check()?;
        let Held { packet, floor } = self.local.proxied.openings.remove(&opening).ok_or(LocalError::Closed)?;
        let ends = Ends { local: opening.to, remote: opening.from };
        let admitted = self.local.tcp.admit(ends, plain(&packet), options, floor, now);
        let admitted = admitted.map_err(|reason| {
            self.drop_packet(reason, &packet);
            LocalError::TooMany { most: self.local.tcp.most() }
        });
        self.settle(now);
        admitted
    }

    /// Tells the guest that its opening came to nothing. One that waits no longer is nobody's concern.
    pub fn tproxy_refuse(&mut self, opening: Opening, why: Unreached, now: Instant) {
        self.tell(now);
        let Some(Held { packet, .. }) = self.local.proxied.openings.remove(&opening) else { return };
        match why {
            Unreached::Refused | Unreached::NoPlace => {
                self.drop_packet(why.reason(), &packet);
                self.refuse_segment(&packet, now);
            }
            _ => self.tell_unreached(why, &packet),
        }
        self.settle(now);
    }

    /// Sends a guest a datagram in another host's name, `from`.
    ///
    /// # Errors
    /// What a socket bound to `from` would be told.
    pub fn tproxy_send(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), SocketError> {
        self.tell(now);
        if to.port() == 0 || to.ip().is_unspecified() {
            return Err(SocketError::BadDestination { to });
        }
        if from.is_ipv4() != to.is_ipv4() {
            return Err(SocketError::Family { bound: from.ip(), to: to.ip() });
        }
        let Some(datagram) = udp_datagram(from, to, payload) else {
            return Err(self.not_sent(DropReason::TooLong, payload.len()));
        };
        self.send_now(datagram, now)
    }

    /// Tells a guest that a datagram it sent did not reach its destination.
    pub fn tproxy_unreached(&mut self, sent: &ProxyDatagram, why: Unreached, now: Instant) {
        self.unreached(udp_datagram(sent.from, sent.to, &sent.payload), sent.link, why, now);
    }

    /// Answers an echo request in its destination's place; `payload` is what came back.
    ///
    /// # Errors
    /// If the answer would be too long, or was dropped on its way out.
    pub fn tproxy_echo_reply(&mut self, asked: &ProxyEcho, payload: &[u8], now: Instant) -> Result<(), SocketError> {
        self.tell(now);
        let kind = if asked.from.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 };
        let numbers = [asked.identifier, asked.sequence];
        let Some(datagram) = echo_datagram(kind, asked.to, asked.from, numbers, payload) else {
            return Err(self.not_sent(DropReason::TooLong, payload.len()));
        };
        self.send_now(datagram, now)
    }

    /// Tells a guest that an echo request it sent did not reach its destination.
    pub fn tproxy_echo_unreached(&mut self, asked: &ProxyEcho, why: Unreached, now: Instant) {
        let kind = if asked.from.is_ipv4() { ECHO } else { ECHO_V6 };
        let numbers = [asked.identifier, asked.sequence];
        let datagram = echo_datagram(kind, asked.from, asked.to, numbers, &asked.payload);
        self.unreached(datagram, asked.link, why, now);
    }

    fn unreached(&mut self, sent: Option<Vec<u8>>, link: LinkId, why: Unreached, now: Instant) {
        self.tell(now);
        if let Some(packet) = sent.and_then(|datagram| Packet::received(link, datagram).ok()) {
            self.tell_unreached(why, &packet);
        }
        self.settle(now);
    }

    fn tell_unreached(&mut self, why: Unreached, packet: &Packet) {
        self.drop_packet(why.reason(), packet);
        if let Some(error) = why.icmp() {
            self.answer_icmp(error, packet);
        }
    }

    /// An opening that a rule has handed over.
    pub(crate) fn hold_opening(&mut self, ends: Ends, packet: Packet, floor: Option<u32>) {
        let key = Opening { from: ends.remote, to: ends.local };
        let proxied = &mut self.local.proxied;
        let is_new = !proxied.openings.contains_key(&key);
        if is_new && (proxied.openings.len() >= MOST_OPENINGS || proxied.waiting.len() >= MOST_WAITING) {
            return self.drop_packet(DropReason::LocalBacklogFull, &packet);
        }
        let before = proxied.openings.insert(key, Held { packet, floor });
        match before {
            Some(Held { packet, .. }) => self.drop_packet(DropReason::OpeningRepeated, &packet),
            None => proxied.push(Proxied::Opening(key)),
        }
    }

    /// A segment that a rule has handed over and that is neither an opening nor of a connection here. A reset takes an opening
    /// back.
    pub(crate) fn refuse_proxied(&mut self, ends: Ends, packet: &Packet, now: Instant) {
        self.local.proxied.forget(&Opening { from: ends.remote, to: ends.local });
        self.drop_packet(DropReason::NoConnection, packet);
        self.refuse_segment(packet, now);
    }

    /// A datagram that a rule has handed over.
    pub(crate) fn hold_datagram(&mut self, packet: &Packet) -> Result<(), DropReason> {
        let l4 = packet.parsed().l4(packet.bytes());
        let [s1, s0, d1, d0, _, _, _, _, payload @ ..] = l4 else { return Err(DropReason::LocalMalformed) };
        let (sport, dport) = (u16::from_be_bytes([*s1, *s0]), u16::from_be_bytes([*d1, *d0]));
        if sport == 0 || dport == 0 {
            return Err(DropReason::LocalMalformed);
        }
        self.local.proxied.hold(Proxied::Datagram(ProxyDatagram {
            from: (packet.src(), sport).into(),
            to: (packet.dst(), dport).into(),
            link: packet.iif.unwrap_or(LinkId::LOOPBACK),
            payload: payload.to_vec(),
        }))
    }

    /// An echo request that a rule has handed over.
    pub(crate) fn hold_echo(&mut self, packet: &Packet) -> Result<(), DropReason> {
        let [_, _, _, _, id1, id0, seq1, seq0, payload @ ..] = packet.parsed().l4(packet.bytes()) else {
            return Err(DropReason::LocalMalformed);
        };
        self.local.proxied.hold(Proxied::Echo(ProxyEcho {
            from: packet.src(),
            to: packet.dst(),
            identifier: u16::from_be_bytes([*id1, *id0]),
            sequence: u16::from_be_bytes([*seq1, *seq0]),
            link: packet.iif.unwrap_or(LinkId::LOOPBACK),
            payload: payload.to_vec(),
        }))
    }
}

impl Local {
    /// What a segment that a rule has handed over asks for.
    pub(crate) fn asks_for(&mut self, ends: Ends, packet: &Packet) -> Asked {
        let flags = packet.parsed().l4(packet.bytes()).get(TCP_FLAGS).copied().unwrap_or(0);
        if flags & SYN == 0 {
            return if self.tcp.has(&ends) { Asked::Known } else { Asked::Nothing };
        }
        self.tcp.asks_for(&ends, &plain(packet))
    }
}

impl ProxyQueue {
    /// Keeps a message, if there is room for it.
    fn hold(&mut self, message: Proxied) -> Result<(), DropReason> {
        let bytes = self.bytes.saturating_add(message.payload_len());
        if self.waiting.len() >= MOST_WAITING || bytes > MOST_BYTES {
            return Err(DropReason::SocketBufferFull);
        }
        self.bytes = bytes;
        self.push(message);
        Ok(())
    }

    fn forget(&mut self, opening: &Opening) {
        if self.openings.remove(opening).is_some() {
            self.waiting.retain(|waiting| *waiting != Proxied::Opening(*opening));
        }
    }

    fn push(&mut self, next: Proxied) {
        self.waiting.push_back(next);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Proxied {
    fn payload_len(&self) -> usize {
        match self {
            Self::Opening(_) => 0,
            Self::Datagram(datagram) => datagram.payload.len(),
            Self::Echo(echo) => echo.payload.len(),
        }
    }
}

/// Whether a `tproxy` rule takes the packet: TCP, UDP, and echo requests.
pub(crate) fn can_be_proxied(packet: &Packet) -> bool {
    matches!(packet.parsed().proto, proto::TCP | proto::UDP) || is_echo_request(packet.bytes(), packet.parsed())
}

impl Unreached {
    const fn reason(self) -> DropReason {
        match self {
            Self::NoPlace => DropReason::ProxyFull,
            _ => DropReason::ProxyUnreached,
        }
    }

    const fn icmp(self) -> Option<IcmpError> {
        match self {
            Self::TimedOut => None,
            Self::Refused => Some(IcmpError::Port),
            Self::Host | Self::NoPlace => Some(IcmpError::Host),
            Self::Network => Some(IcmpError::NoRoute),
            Self::Prohibited => Some(IcmpError::Prohibited),
        }
    }
}

/// Openings that wait for the embedder's word.
const MOST_OPENINGS: usize = 8192;
/// Openings and messages that wait to be taken.
const MOST_WAITING: usize = 8192;
/// Bytes of payload that wait to be taken.
const MOST_BYTES: usize = 4 << 20;
const TCP_FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

#[cfg(test)]
mod tests;
