//! Where a flow's packets come in, and what addresses they bear there.

use std::net::{IpAddr, SocketAddr};

use crate::dice::Dice;

/// An end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The one that opens it.
    Client,
    /// The other.
    Server,
}

impl Side {
    /// The other end.
    pub(crate) const fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// Either.
    pub(crate) const fn any(dice: &mut Dice) -> Self {
        if dice.one_in(2) { Self::Client } else { Self::Server }
    }
}

/// One packet, as a step of a scenario puts it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sent {
    /// The link that it comes in by.
    pub(crate) dev: &'static str,
    /// The packet in notation.
    pub(crate) line: String,
}

/// How a flow passes the router.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// From inside to outside as it is.
    Out,
    /// From outside to inside as it is.
    In,
    /// From inside to outside, masqueraded.
    Masqueraded,
    /// From outside to the router's address, led to an inside server.
    LedIn,
    /// From inside to the router's outside address, led to an inside server and masqueraded.
    Hairpin,
}

/// A flow's ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) way: Way,
    pub(crate) ipv6: bool,
    /// The client's port or identifier, which no other flow of a batch has.
    pub(crate) port: u16,
}

impl Path {
    /// Link, source and destination of the packets that one side sends.
    pub(crate) fn ends(&self, from: Side) -> (&'static str, SocketAddr, SocketAddr) {
        let Self { way, ipv6, port } = *self;
        let at = |[v4, v6]: [&str; 2], port: u16| {
            let addr: IpAddr = if ipv6 { v6 } else { v4 }.parse().expect("the addresses below are well-formed");
            SocketAddr::new(addr, port)
        };
        let (inside, outside) = ("in", "out");
        match (way, from) {
            (Way::Out | Way::Masqueraded, Side::Client) => (inside, at(CLIENT, port), at(SERVER, 80)),
            (Way::Out, Side::Server) => (outside, at(SERVER, 80), at(CLIENT, port)),
            (Way::Masqueraded, Side::Server) => (outside, at(SERVER, 80), at(PUBLIC, port)),
            (Way::In, Side::Client) => (outside, at(SERVER, port), at(INNER, 80)),
            (Way::In, Side::Server) => (inside, at(INNER, 80), at(SERVER, port)),
            (Way::LedIn, Side::Client) => (outside, at(SERVER, port), at(PUBLIC, LED_PORT)),
            (Way::LedIn, Side::Server) => (inside, at(INNER, 80), at(SERVER, port)),
            (Way::Hairpin, Side::Client) => (inside, at(CLIENT, port), at(PUBLIC, LED_PORT)),
            (Way::Hairpin, Side::Server) => (inside, at(INNER, 80), at(GATEWAY, port)),
        }
    }

    /// A packet of a protocol with ports.
    pub(crate) fn with_ports(&self, from: Side, proto: &str, words: &str) -> Sent {
        let (dev, src, dst) = self.ends(from);
        Sent { dev, line: format!("{proto} {src} > {dst} {words}") }
    }

    /// A packet of a protocol without.
    pub(crate) fn without_ports(&self, from: Side, proto: &str, words: &str) -> Sent {
        let (dev, src, dst) = self.ends(from);
        Sent { dev, line: format!("{proto} {} > {} {words}", src.ip(), dst.ip()) }
    }

    /// An ICMP error from the way behind one side, or from a host on it, which quotes a packet that came to that side.
    pub(crate) fn error(&self, dice: &mut Dice, from: Side, quoted: &str) -> Sent {
        let (dev, src, dst) = self.ends(from);
        let third = if dev == "in" { NEIGHBOUR } else { THIRD };
        let third: IpAddr = third[usize::from(self.ipv6)].parse().expect("the addresses below are well-formed");
        let sender = if dice.one_in(2) { src.ip() } else { third };
        let (proto, kinds): (_, &[_]) = if self.ipv6 {
            ("icmp6", &["unreach code=4", "unreach code=0", "ttlexc code=0", "toobig mtu=1280"])
        } else {
            ("icmp", &["unreach code=3", "unreach code=1", "ttlexc code=0", "unreach code=4 mtu=1400"])
        };
        Sent { dev, line: format!("{proto} {sender} > {} {} inner=({quoted})", dst.ip(), dice.pick(kinds)) }
    }
}

/// What leads packets to the port to the inside server; the rules name it.
pub(crate) const LED_PORT: u16 = 8080;
/// The router's outside address.
pub(crate) const PUBLIC: [&str; 2] = ["203.0.113.1", "2001:db8:ff::1"];
/// The inside server.
pub(crate) const INNER: [&str; 2] = ["10.0.0.5", "fd00:10::5"];
const GATEWAY: [&str; 2] = ["10.0.0.1", "fd00:10::1"];
const CLIENT: [&str; 2] = ["10.0.0.2", "fd00:10::2"];
const SERVER: [&str; 2] = ["198.51.100.10", "2001:db8:1::10"];
const THIRD: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
const NEIGHBOUR: [&str; 2] = ["10.0.0.9", "fd00:10::9"];
