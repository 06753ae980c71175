//! The two address families, packed as the table stores them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_snapshot::Invalid;

use super::hash::Keyed;
use crate::pack::Reader;
use crate::tuple::{Tuple, answering_type, proto};

/// An address of one family, in network order.
pub(crate) trait Addr: Copy + Ord + Default + core::fmt::Debug + Send + Sync {
    /// Which family it is of.
    const IS_V6: bool;
    /// The address, if it is of this family.
    fn of(ip: IpAddr) -> Option<Self>;
    /// The address for everyone else.
    fn ip(self) -> IpAddr;
    /// Appends its bytes.
    fn write(self, out: &mut Vec<u8>);
    /// Reads what [`Addr::write`] wrote.
    fn read(input: &mut Reader<'_>, field: &'static str) -> Result<Self, Invalid>;
    /// Whether one endpoint comes before another or is the same: by address, then port.
    fn in_order(first: (Self, u16), second: (Self, u16)) -> bool;
    /// The keyed hash of two endpoints in the order given.
    fn hash(key: &impl Keyed, first: (Self, u16), second: (Self, u16), proto: u8) -> u64;
}

impl Addr for [u8; 4] {
    const IS_V6: bool = false;

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self))
    }

    #[inline]
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self);
    }

    #[inline]
    fn read(input: &mut Reader<'_>, field: &'static str) -> Result<Self, Invalid> {
        input.bytes(field)
    }

    #[inline]
    fn in_order(first: (Self, u16), second: (Self, u16)) -> bool {
        let number = |(address, port)| u64::from(u32::from_be_bytes(address)) << 16 | u64::from(port);
        number(first) <= number(second)
    }

    /// Thirteen bytes: address, port, address, port, protocol.
    #[inline]
    fn hash(key: &impl Keyed, first: (Self, u16), second: (Self, u16), proto: u8) -> u64 {
        let a = u64::from(u32::from_le_bytes(first.0));
        let b = u64::from(u32::from_le_bytes(second.0));
        let head = a | u64::from(first.1) << 32 | (b & 0xffff) << 48;
        let tail = b >> 16 | u64::from(second.1) << 16 | u64::from(proto) << 32 | 13 << 56;
        key.hash(&[head, tail])
    }
}

impl Addr for [u8; 16] {
    const IS_V6: bool = true;

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip.octets()),
        }
    }

    fn ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self))
    }

    #[inline]
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self);
    }

    #[inline]
    fn read(input: &mut Reader<'_>, field: &'static str) -> Result<Self, Invalid> {
        input.bytes(field)
    }

    #[inline]
    fn in_order(first: (Self, u16), second: (Self, u16)) -> bool {
        let (a, b) = (u128::from_be_bytes(first.0), u128::from_be_bytes(second.0));
        a < b || (a == b && first.1 <= second.1)
    }

    /// Thirty-seven bytes: address, address, port, port, protocol.
    #[inline]
    fn hash(key: &impl Keyed, first: (Self, u16), second: (Self, u16), proto: u8) -> u64 {
        let a = u128::from_le_bytes(first.0);
        let b = u128::from_le_bytes(second.0);
        let tail = u64::from(first.1) | u64::from(second.1) << 16 | u64::from(proto) << 32 | 37 << 56;
        key.hash(&[a as u64, (a >> 64) as u64, b as u64, (b >> 64) as u64, tail])
    }
}

/// A tuple without its protocol, as an entry holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(crate) struct Ends<A> {
    src: A,
    dst: A,
    sport: u16,
    dport: u16,
}

impl<A: Addr> Ends<A> {
    pub(crate) fn of(tuple: &Tuple) -> Option<Self> {
        Some(Self { src: A::of(tuple.src)?, dst: A::of(tuple.dst)?, sport: tuple.sport, dport: tuple.dport })
    }

    pub(crate) fn tuple(&self, proto: u8) -> Tuple {
        let Self { src, dst, sport, dport } = *self;
        Tuple { src: src.ip(), dst: dst.ip(), proto, sport, dport }
    }

    pub(crate) const fn dport(&self) -> u16 {
        self.dport
    }

    /// What an answer carries; `None` for an ICMP type that has no answer.
    #[inline]
    pub(crate) fn inverted(&self, proto: u8) -> Option<Self> {
        let Self { src, dst, sport, dport } = *self;
        let (sport, dport) = match proto {
            proto::ICMP | proto::ICMPV6 => {
                let [kind, code] = dport.to_be_bytes();
                (sport, u16::from_be_bytes([answering_type(proto, kind)?, code]))
            }
            _ => (dport, sport),
        };
        Some(Self { src: dst, dst: src, sport, dport })
    }

    /// Appends the addresses and the ports.
    #[inline]
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let Self { src, dst, sport, dport } = *self;
        src.write(out);
        dst.write(out);
        let ([sport0, sport1], [dport0, dport1]) = (sport.to_le_bytes(), dport.to_le_bytes());
        out.extend_from_slice(&[sport0, sport1, dport0, dport1]);
    }

    /// Reads what [`Ends::write`] wrote.
    #[inline]
    pub(crate) fn read(input: &mut Reader<'_>) -> Result<Self, Invalid> {
        let (src, dst) = (A::read(input, "src")?, A::read(input, "dst")?);
        Ok(Self { src, dst, sport: input.u16("sport")?, dport: input.u16("dport")? })
    }

    /// The hash of the sorted endpoints: the same for both directions. An ICMP query's endpoints both have its id.
    #[inline]
    pub(crate) fn hash(&self, key: &impl Keyed, icmp: bool, proto: u8) -> u64 {
        let first = (self.src, self.sport);
        let second = (self.dst, if icmp { self.sport } else { self.dport });
        if A::in_order(first, second) { A::hash(key, first, second, proto) } else { A::hash(key, second, first, proto) }
    }
}

/// A tuple as entries hold it, whichever its family: what a look-up compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Packed {
    pub(crate) ends: PackedEnds,
    pub(crate) proto: u8,
}

/// The ends of a [`Packed`] tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PackedEnds {
    V4(Ends<[u8; 4]>),
    V6(Ends<[u8; 16]>),
    /// A tuple of mixed families belongs to no flow.
    Mixed,
}

impl Packed {
    #[inline]
    pub(crate) fn of(tuple: &Tuple) -> Self {
        let Tuple { src, dst, proto, sport, dport } = *tuple;
        let ends = match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                PackedEnds::V4(Ends { src: src.octets(), dst: dst.octets(), sport, dport })
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                PackedEnds::V6(Ends { src: src.octets(), dst: dst.octets(), sport, dport })
            }
            _ => PackedEnds::Mixed,
        };
        Self { ends, proto }
    }

    /// The hash the tuple is filed under.
    #[inline]
    pub(crate) fn hash(&self, key: &impl Keyed) -> u64 {
        let icmp = matches!(self.proto, proto::ICMP | proto::ICMPV6);
        match &self.ends {
            PackedEnds::V4(ends) => ends.hash(key, icmp, self.proto),
            PackedEnds::V6(ends) => ends.hash(key, icmp, self.proto),
            PackedEnds::Mixed => 0,
        }
    }
}

/// The hash a tuple is filed under.
pub(crate) fn hash_tuple(key: &impl Keyed, tuple: &Tuple) -> u64 {
    Packed::of(tuple).hash(key)
}
