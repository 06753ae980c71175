//! UDP-Lite (RFC 3828): ports and timeouts of UDP, a checksum over as much of the packet as its header says.

use super::{Opened, Outcome, Packet};
use crate::headers::udp_lite_coverage;
use crate::invalid::InvalidReason;
use crate::protocol::ProtocolState;
use crate::status::Status;
use crate::sysctl::Sysctls;
use crate::tuple::proto;

pub(super) fn open(packet: &Packet<'_>, sysctls: &Sysctls) -> Result<Opened, InvalidReason> {
    check(packet)?;
    Ok(Opened { state: ProtocolState::Other, timeout: sysctls.udp_timeout })
}

/// Unlike UDP's, a flow counts as a stream with its first packet after an answer, however young it is.
pub(super) fn update(packet: &Packet<'_>, status: Status, sysctls: &Sysctls) -> Outcome {
    if let Err(why) = check(packet) {
        return Outcome::Invalid(why);
    }
    if !status.contains(Status::SEEN_REPLY) {
        return Outcome::refreshed(sysctls.udp_timeout);
    }
    let assure = !status.contains(Status::NAT_CLASH);
    Outcome::Accept { timeout: sysctls.udp_timeout_stream, assure, changed: false }
}

/// Whether the header is whole, its coverage fits, and there is a checksum, which the protocol demands.
fn check(packet: &Packet<'_>) -> Result<(), InvalidReason> {
    let proto = proto::UDP_LITE;
    let l4 = packet.l4();
    let header = l4.first_chunk::<HEADER>().ok_or(InvalidReason::ShortPacket { proto })?;
    if udp_lite_coverage(l4).is_none() {
        return Err(InvalidReason::Malformed { proto });
    }
    if let [.., 0, 0] = header {
        return Err(InvalidReason::NoChecksum { proto });
    }
    packet.verify()
}

const HEADER: usize = 8;
