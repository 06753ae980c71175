//! What names a flow: addresses, protocol, ports, zone, direction.

use core::fmt;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One direction of a flow.
///
/// ICMP and ICMPv6 queries have no ports: `sport` is the identifier, `dport` is `type << 8 | code`. A protocol that is
/// tracked by address alone has both zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address; of the same family as `src`.
    pub dst: IpAddr,
    /// Protocol number (IANA), after any IPv6 extension headers.
    pub proto: u8,
    /// Source port, or the ICMP identifier.
    pub sport: u16,
    /// Destination port, or ICMP type and code.
    pub dport: u16,
}

impl Tuple {
    /// The tuple an answer carries; `None` for an ICMP type that has no answer.
    pub fn inverted(&self) -> Option<Self> {
        let Self { src, dst, proto, sport, dport } = *self;
        let (sport, dport) = match proto {
            proto::ICMP | proto::ICMPV6 => {
                let [kind, code] = dport.to_be_bytes();
                (sport, u16::from_be_bytes([answering_type(proto, kind)?, code]))
            }
            _ => (dport, sport),
        };
        Some(Self { src: dst, dst: src, proto, sport, dport })
    }

    /// Whether the tuple is an ICMP or ICMPv6 query, whose ports are identifier and type.
    pub const fn is_icmp(&self) -> bool {
        matches!(self.proto, proto::ICMP | proto::ICMPV6)
    }

    /// ICMP type, where the tuple is one of ICMP.
    pub const fn icmp_type(&self) -> u8 {
        self.dport.to_be_bytes()[0]
    }

    /// ICMP code, where the tuple is one of ICMP.
    pub const fn icmp_code(&self) -> u8 {
        self.dport.to_be_bytes()[1]
    }

    /// Whether a flow can begin with it: one of ICMP with queries alone, and in its own family.
    pub(crate) const fn may_open(&self) -> bool {
        match (self.proto, self.is_v6()) {
            (proto::ICMP, false) => matches!(self.icmp_type(), 8 | 13 | 15 | 17),
            (proto::ICMPV6, true) => matches!(self.icmp_type(), 128 | 139),
            _ => !self.is_icmp(),
        }
    }

    /// Whether both addresses are IPv6.
    pub const fn is_v6(&self) -> bool {
        matches!((self.src, self.dst), (IpAddr::V6(_), IpAddr::V6(_)))
    }

    /// Whether both addresses are of one family.
    pub const fn is_one_family(&self) -> bool {
        self.src.is_ipv4() == self.dst.is_ipv4()
    }
}

/// Query types that start a flow and the types that answer them (RFC 792, RFC 950, RFC 4443, RFC 4620).
pub(crate) const fn answering_type(proto: u8, kind: u8) -> Option<u8> {
    Some(match (proto, kind) {
        (proto::ICMP, 8) => 0,
        (proto::ICMP, 0) => 8,
        (proto::ICMP, 13) => 14,
        (proto::ICMP, 14) => 13,
        (proto::ICMP, 15) => 16,
        (proto::ICMP, 16) => 15,
        (proto::ICMP, 17) => 18,
        (proto::ICMP, 18) => 17,
        (proto::ICMPV6, 128) => 129,
        (proto::ICMPV6, 129) => 128,
        (proto::ICMPV6, 139) => 140,
        (proto::ICMPV6, 140) => 139,
        _ => return None,
    })
}

/// IANA protocol numbers that have a tracker of their own.
pub mod proto {
    /// Internet Control Message Protocol, RFC 792.
    pub const ICMP: u8 = 1;
    /// Transmission Control Protocol, RFC 9293.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol, RFC 768.
    pub const UDP: u8 = 17;
    /// Generic Routing Encapsulation, RFC 2784.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// Stream Control Transmission Protocol, RFC 9260.
    pub const SCTP: u8 = 132;
    /// UDP-Lite, RFC 3828.
    pub const UDP_LITE: u8 = 136;
}

/// Which way a packet of a flow travels: the initiator's way or the answer's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The way of the flow's first packet.
    Original,
    /// The way back.
    Reply,
}

impl Direction {
    /// The other direction.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }

    /// 0 for original, 1 for reply: the order of per-direction pairs.
    pub const fn index(self) -> usize {
        match self {
            Self::Original => 0,
            Self::Reply => 1,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Original => "original",
            Self::Reply => "reply",
        })
    }
}

/// A conntrack zone: equal tuples in different zones are different flows (`ct zone set` in nft).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Zone {
    /// Zone number; 0 is where flows live that no rule has put elsewhere.
    pub id: u16,
    /// Only the original direction is in the zone, the reply is looked for in zone 0 (`ct original zone set`).
    pub orig_only: bool,
}

impl Zone {
    /// The zone number that counts for one direction.
    pub const fn of(self, direction: Direction) -> u16 {
        match direction {
            Direction::Reply if self.orig_only => 0,
            _ => self.id,
        }
    }
}
