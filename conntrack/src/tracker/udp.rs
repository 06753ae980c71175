//! UDP (RFC 768): short-lived until both sides have talked for a while.

use core::time::Duration;

use hibernet_snapshot::Instant;

use super::{Opened, Outcome, Packet};
use crate::headers::u16_at;
use crate::invalid::InvalidReason;
use crate::protocol::{ProtocolState, UdpTrack};
use crate::status::Status;
use crate::sysctl::Sysctls;
use crate::tuple::proto;

pub(super) fn open(packet: &Packet<'_>, sysctls: &Sysctls, now: Instant) -> Result<Opened, InvalidReason> {
    check(packet)?;
    let track = UdpTrack { stream_at: now.saturating_add(STREAM_AFTER) };
    Ok(Opened { state: ProtocolState::Udp(track), timeout: sysctls.udp_timeout })
}

pub(super) fn update(
    track: &UdpTrack,
    packet: &Packet<'_>,
    status: Status,
    sysctls: &Sysctls,
    now: Instant,
) -> Outcome {
    if let Err(why) = check(packet) {
        return Outcome::Invalid(why);
    }
    if !status.contains(Status::SEEN_REPLY) || now <= track.stream_at {
        return Outcome::refreshed(sysctls.udp_timeout);
    }
    // A flow that lost its port to another one of the same tuple is expected to be short.
    let assure = !status.contains(Status::NAT_CLASH);
    Outcome::Accept { timeout: sysctls.udp_timeout_stream, assure, changed: false }
}

/// Whether the header is whole and its length fits: a length below that of the datagram is fine.
fn check(packet: &Packet<'_>) -> Result<(), InvalidReason> {
    let l4 = packet.l4();
    let stated = match u16_at(l4, 4) {
        Some(stated) if l4.len() >= HEADER => usize::from(stated),
        _ => return Err(InvalidReason::ShortPacket { proto: proto::UDP }),
    };
    if stated < HEADER || stated > l4.len() {
        return Err(InvalidReason::Malformed { proto: proto::UDP });
    }
    packet.verify()
}

const HEADER: usize = 8;
/// An answered flow counts as a stream when it is older than this.
const STREAM_AFTER: Duration = Duration::from_secs(2);
