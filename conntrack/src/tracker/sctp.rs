//! SCTP (RFC 9260): the state of the association and the verification tag of each side.

use super::{Opened, Outcome, Packet};
use crate::invalid::InvalidReason;
use crate::protocol::SctpTrack;
use crate::status::Status;
use crate::sysctl::Sysctls;
use crate::tuple::Direction;

pub(super) fn open(_packet: &Packet<'_>, _sysctls: &Sysctls) -> Result<Opened, InvalidReason> {
    Err(InvalidReason::SctpChunks)
}

pub(super) fn update(
    _track: &mut SctpTrack,
    _packet: &Packet<'_>,
    _direction: Direction,
    _status: Status,
    _sysctls: &Sysctls,
) -> Outcome {
    Outcome::Invalid(InvalidReason::SctpChunks)
}
