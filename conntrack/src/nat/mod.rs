//! NAT bindings: which addresses and ports a flow is seen with outside.
//!
//! A binding is decided once, for a flow's first packet, and is nothing but the flow's reply tuple. Everything later is
//! reading it back.

mod manip;
mod range;
mod rewrite;
mod search;
mod sources;

pub use self::manip::Manip;
pub use self::range::NatRange;

pub(crate) use self::rewrite::{rewrite, rewrite_quoted};
pub(crate) use self::search::{OneTable, Search, Surroundings, unique_tuple};
pub(crate) use self::sources::{LOOKED_AT, Sources};
use crate::attachment::Binding;
use crate::status::Status;
use crate::tuple::{Direction, Tuple};

/// The status bit of flows whose packets, going `direction`, are translated at `manip`.
pub(crate) const fn bit_of(direction: Direction, manip: Manip) -> Status {
    match (manip, direction) {
        (Manip::Source, Direction::Original) | (Manip::Destination, Direction::Reply) => Status::SRC_NAT,
        (Manip::Destination, Direction::Original) | (Manip::Source, Direction::Reply) => Status::DST_NAT,
    }
}

/// Whether a packet of the flow, going `direction`, is translated at `manip`; and if so, what it looks like afterwards.
pub(crate) fn translation(binding: &Binding, direction: Direction, manip: Manip) -> Option<Tuple> {
    let bit = bit_of(direction, manip);
    if binding.status.contains(bit) { binding.tuple(direction.opposite()).inverted() } else { None }
}
