//! What conntrack says of a packet, and what it remembers of a flow.

use core::fmt;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::tuple::Direction;

/// Conntrack's view of one packet (`ct state` in nft).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CtState {
    /// Opens a flow, or belongs to one that has not been answered.
    New,
    /// Belongs to a flow that has been answered.
    Established,
    /// An error about a flow, or the router's own answer to one of its packets.
    Related,
    /// Fits no flow and may open none. Never translated.
    Invalid,
    /// Exempt from tracking, by rule or by kind (neighbour discovery). Never translated.
    Untracked,
}

impl fmt::Display for CtState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
            Self::Untracked => "untracked",
        })
    }
}

bitflags! {
    /// A flow's status bits, by the names of `enum ip_conntrack_status` (uapi `nf_conntrack_common.h`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Status: u16 {
        /// A packet has passed in the reply direction.
        const SEEN_REPLY = 1 << 0;
        /// Traffic in both directions has been seen for long enough: early drop spares it.
        const ASSURED = 1 << 1;
        /// In the table.
        const CONFIRMED = 1 << 2;
        /// The original direction's source is translated.
        const SRC_NAT = 1 << 3;
        /// The original direction's destination is translated.
        const DST_NAT = 1 << 4;
        /// Source NAT has been decided, be it for no translation.
        const SRC_NAT_DONE = 1 << 5;
        /// Destination NAT has been decided, be it for no translation.
        const DST_NAT_DONE = 1 << 6;
        /// Lost its first choice of source port to another flow of the same tuple.
        const NAT_CLASH = 1 << 7;
        /// Source address given by masquerade: goes with the address.
        const MASQUERADE = 1 << 8;
        /// The zone holds for the original direction only.
        const ZONE_ORIG_ONLY = 1 << 9;
        /// Set when the flow leaves the table; seen in DESTROY events only.
        const DYING = 1 << 10;
        /// A fork has ended the flow: no packet of it passes. Not one of the kernel's bits, like the next two.
        const SEVERED = 1 << 11;
        /// Of a severed flow: who sends in the original direction is told so.
        const TELL_ORIGINAL = 1 << 12;
        /// Of a severed flow: who sends in the reply direction is told so.
        const TELL_REPLY = 1 << 13;
    }
}

impl Status {
    /// Both directions are decided and nothing is left for a nat chain to say.
    pub const NAT_DONE: Self = Self::SRC_NAT_DONE.union(Self::DST_NAT_DONE);
    /// Some translation takes place.
    pub const NAT: Self = Self::SRC_NAT.union(Self::DST_NAT);
    /// Bits that a saved flow may carry.
    pub(crate) const SAVABLE: Self = Self::all().difference(Self::DYING);
    /// The senders of a severed flow that are told.
    pub const TOLD: Self = Self::TELL_ORIGINAL.union(Self::TELL_REPLY);

    /// Of a severed flow: the bit of who sends in a direction.
    pub const fn tell(direction: Direction) -> Self {
        match direction {
            Direction::Original => Self::TELL_ORIGINAL,
            Direction::Reply => Self::TELL_REPLY,
        }
    }
}
