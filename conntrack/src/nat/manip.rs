//! Which end of a packet a translation changes.

use core::net::IpAddr;

use crate::tuple::Tuple;

/// Source or destination NAT (`enum nf_nat_manip_type`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Manip {
    /// The source is translated: input and postrouting.
    Source,
    /// The destination is translated: prerouting and output.
    Destination,
}

impl Manip {
    /// The other end: what an error's quoted header is changed at, and what undoes this translation for the answers.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    /// The address of `tuple` that this translation is about.
    pub(crate) const fn address(self, tuple: &Tuple) -> IpAddr {
        match self {
            Self::Source => tuple.src,
            Self::Destination => tuple.dst,
        }
    }

    /// The port of `tuple` that this translation is about; for ICMP queries the identifier, which both ends share.
    pub(crate) const fn port(self, tuple: &Tuple) -> u16 {
        match self {
            Self::Source => tuple.sport,
            Self::Destination if tuple.is_icmp() => tuple.sport,
            Self::Destination => tuple.dport,
        }
    }
}
