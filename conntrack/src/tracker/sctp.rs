//! SCTP (RFC 9260): the state of the association, and the verification tag each side is to be addressed by.

mod chunk;
mod matrix;

use self::chunk::{Chunk, Chunks, Kind};
use self::matrix::step;
use super::{Opened, Outcome, Packet};
use crate::headers::u32_at;
use crate::invalid::InvalidReason;
use crate::protocol::{ProtocolState, SctpState, SctpTrack};
use crate::sysctl::Sysctls;
use crate::tuple::{Direction, proto};

/// Opens an association with an INIT, or in its middle with a chunk that gives away a tag.
pub(super) fn open(packet: &Packet<'_>, sysctls: &Sysctls) -> Result<Opened, InvalidReason> {
    let (tag, chunks) = read(packet)?;
    let mut track = SctpTrack { state: SctpState::None, vtag: [0; 2], last_dir: Direction::Original, flags: 0 };
    for chunk in chunks {
        if !matrix::opens(chunk.kind) {
            return Err(InvalidReason::SctpNotOpening { chunk: chunk.number });
        }
        match chunk.kind {
            Kind::Init if tag != 0 => return Err(InvalidReason::SctpTag { tag }),
            Kind::Init => track.vtag = [0, chunk.initiate_tag().ok_or(InvalidReason::SctpChunks)?],
            Kind::Heartbeat | Kind::HeartbeatAck => {}
            // Out of the blue (RFC 9260, section 8.4): the answer reflects the tag.
            _ => track.vtag = [0, tag],
        }
    }
    follow(&mut track, tag, chunks, Direction::Original)?;
    Ok(Opened { state: ProtocolState::Sctp(track), timeout: timeout(track.state, sysctls) })
}

/// Follows an association with its next packet.
pub(super) fn update(track: &mut SctpTrack, packet: &Packet<'_>, direction: Direction, sysctls: &Sysctls) -> Outcome {
    let before = track.state;
    match read(packet).and_then(|(tag, chunks)| follow(track, tag, chunks, direction)) {
        Ok(Heed::Heeded) => Outcome::Accept {
            timeout: timeout(track.state, sysctls),
            assure: track.state == SctpState::Established,
            changed: track.state != before,
        },
        Ok(Heed::Unheeded) => Outcome::Ignore { why: None, changed: track.state != before },
        Err(why) => Outcome::Invalid(why),
    }
}

/// Whether a packet that belongs to the association keeps it alive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heed {
    Heeded,
    /// An INIT that is sent again and again, or a HEARTBEAT under a tag that is yet to be confirmed.
    Unheeded,
}

/// Verification tag and chunks of a packet whose header, checksum and bundling are sound.
fn read<'a>(packet: &Packet<'a>) -> Result<(u32, Chunks<'a>), InvalidReason> {
    let l4 = packet.l4();
    let (Some(tag), Some(rest)) = (u32_at(l4, 4), l4.get(COMMON_HEADER..)) else {
        return Err(InvalidReason::ShortPacket { proto: proto::SCTP });
    };
    packet.verify()?;
    let chunks = Chunks(rest);
    if chunks.are_well_bundled() { Ok((tag, chunks)) } else { Err(InvalidReason::SctpChunks) }
}

/// Takes the association through the chunks of a packet. What earlier chunks have changed stays when a later one is refused.
fn follow(track: &mut SctpTrack, tag: u32, chunks: Chunks<'_>, direction: Direction) -> Result<Heed, InvalidReason> {
    let wrong_tag = InvalidReason::SctpTag { tag };
    if !chunks.clone().any(|chunk| chunk.kind.has_tag_rule()) && tag != expected(track, direction) {
        return Err(wrong_tag);
    }
    let carries_data = chunks.clone().any(|chunk| chunk.kind == Kind::Data);
    let mut heed = Heed::Heeded;
    for chunk in chunks {
        match check_tag(track, tag, &chunk, direction) {
            Tag::Right => {}
            Tag::Wrong => return Err(wrong_tag),
            // Only on its own may a HEARTBEAT suggest, and its answer confirm, other tags.
            Tag::Suggested | Tag::Confirmed if carries_data || heed == Heed::Unheeded => return Err(wrong_tag),
            Tag::Suggested => {
                track.flags |= TAG_SUGGESTED;
                track.last_dir = direction;
                heed = Heed::Unheeded;
                continue;
            }
            Tag::Confirmed => {
                track.flags &= !TAG_SUGGESTED;
                *expected_mut(track, direction) = tag;
                *expected_mut(track, direction.opposite()) = 0;
            }
        }
        let before = track.state;
        let Some(next) = step(before, direction, chunk.kind) else {
            return Err(InvalidReason::SctpState { chunk: chunk.number, direction, state: before });
        };
        match chunk.kind {
            Kind::Init => {
                take_init(track, &chunk, direction)?;
                // An INIT that is repeated shall not keep the association.
                if before == SctpState::Closed && next == SctpState::Closed {
                    heed = Heed::Unheeded;
                }
            }
            Kind::InitAck => take_init_ack(track, &chunk, direction)?,
            _ => {}
        }
        track.state = next;
    }
    Ok(heed)
}

/// What a verification tag says, by the rules of RFC 9260, section 8.5.1.
enum Tag {
    Right,
    Wrong,
    /// Other than expected, in a HEARTBEAT: a path of another association of the same ports, perhaps.
    Suggested,
    /// Other than expected, in the answer to such a HEARTBEAT.
    Confirmed,
}

fn check_tag(track: &mut SctpTrack, tag: u32, chunk: &Chunk<'_>, direction: Direction) -> Tag {
    let right = match chunk.kind {
        Kind::Init => tag == 0,
        // With the T bit the tag is reflected: that of the other side.
        Kind::Abort | Kind::ShutdownComplete if chunk.is_reflected() => tag == expected(track, direction.opposite()),
        Kind::Abort | Kind::ShutdownComplete | Kind::CookieEcho => tag == expected(track, direction),
        Kind::CookieAck => {
            track.flags &= !(INIT_ORIGINAL | INIT_REPLY);
            true
        }
        Kind::Heartbeat | Kind::HeartbeatAck => return check_heartbeat(track, tag, chunk.kind, direction),
        _ => true,
    };
    if right { Tag::Right } else { Tag::Wrong }
}

fn check_heartbeat(track: &mut SctpTrack, tag: u32, kind: Kind, direction: Direction) -> Tag {
    let expected = expected_mut(track, direction);
    if *expected == 0 {
        *expected = tag;
        return Tag::Right;
    }
    if tag == *expected {
        track.flags &= !TAG_SUGGESTED;
        return Tag::Right;
    }
    match kind {
        Kind::Heartbeat => Tag::Suggested,
        _ if track.flags & TAG_SUGGESTED != 0 && track.last_dir != direction => Tag::Confirmed,
        _ => Tag::Wrong,
    }
}

/// An INIT names the tag its sender is to be addressed by.
fn take_init(track: &mut SctpTrack, chunk: &Chunk<'_>, direction: Direction) -> Result<(), InvalidReason> {
    let tag = chunk.initiate_tag().ok_or(InvalidReason::SctpChunks)?;
    // Repeated with the tag that is known already, it begins no handshake.
    if track.state == SctpState::None || tag != expected(track, direction.opposite()) {
        let (own, other) = (init_seen(direction), init_seen(direction.opposite()));
        if track.flags & own != 0 {
            track.flags &= !other;
        }
        track.flags |= own;
    }
    *expected_mut(track, direction.opposite()) = tag;
    Ok(())
}

/// So does an INIT ACK, unless it belongs to a handshake that another one has overtaken (RFC 9260, section 5.2).
fn take_init_ack(track: &mut SctpTrack, chunk: &Chunk<'_>, direction: Direction) -> Result<(), InvalidReason> {
    let tag = chunk.initiate_tag().ok_or(InvalidReason::SctpChunks)?;
    let known = expected(track, direction.opposite());
    let own_init = track.flags & init_seen(direction) != 0;
    let other_init = track.flags & init_seen(direction.opposite()) != 0;
    let overtaken = if other_init { own_init } else { known != 0 };
    if overtaken && known != tag {
        return Err(InvalidReason::SctpTag { tag });
    }
    *expected_mut(track, direction.opposite()) = tag;
    Ok(())
}

fn timeout(state: SctpState, sysctls: &Sysctls) -> u32 {
    match state {
        SctpState::None | SctpState::Closed => sysctls.sctp_timeout_closed,
        SctpState::CookieWait => sysctls.sctp_timeout_cookie_wait,
        SctpState::CookieEchoed => sysctls.sctp_timeout_cookie_echoed,
        SctpState::Established => sysctls.sctp_timeout_established,
        SctpState::ShutdownSent => sysctls.sctp_timeout_shutdown_sent,
        SctpState::ShutdownRecd => sysctls.sctp_timeout_shutdown_recd,
        SctpState::ShutdownAckSent => sysctls.sctp_timeout_shutdown_ack_sent,
        SctpState::HeartbeatSent => sysctls.sctp_timeout_heartbeat_sent,
    }
}

/// The verification tag packets of one direction are expected to carry; 0 while it is not known.
fn expected(track: &SctpTrack, direction: Direction) -> u32 {
    let [original, reply] = track.vtag;
    match direction {
        Direction::Original => original,
        Direction::Reply => reply,
    }
}

fn expected_mut(track: &mut SctpTrack, direction: Direction) -> &mut u32 {
    let [original, reply] = &mut track.vtag;
    match direction {
        Direction::Original => original,
        Direction::Reply => reply,
    }
}

/// The flag for an INIT of one direction.
const fn init_seen(direction: Direction) -> u8 {
    match direction {
        Direction::Original => INIT_ORIGINAL,
        Direction::Reply => INIT_REPLY,
    }
}

/// Ports, verification tag and checksum.
const COMMON_HEADER: usize = 12;

// Bits of `SctpTrack::flags`.
/// A HEARTBEAT of the direction `last_dir` came under a tag other than the expected one.
const TAG_SUGGESTED: u8 = 1;
/// An INIT of the original direction has come, and no COOKIE ACK since.
const INIT_ORIGINAL: u8 = 2;
/// An INIT of the reply direction has come, and no COOKIE ACK since.
const INIT_REPLY: u8 = 4;

#[cfg(test)]
mod tests;
