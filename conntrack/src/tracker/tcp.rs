//! TCP (RFC 9293): the state of the pair, and the window each side may send in.

mod matrix;
mod options;
mod segment;
mod window;

use self::matrix::Step;
use self::segment::Segment;
use self::window::Fit;
use super::{Opened, Outcome, Packet};
use crate::invalid::{IgnoreReason, InvalidReason};
use crate::protocol::{ProtocolState, TcpSegmentKind, TcpSide, TcpSideFlags, TcpState, TcpTrack};
use crate::status::Status;
use crate::sysctl::Sysctls;
use crate::tuple::Direction;

/// Opens a flow with a SYN, or in the middle with an ACK where `nf_conntrack_tcp_loose` is set.
pub(super) fn open(packet: &Packet<'_>, sysctls: &Sysctls) -> Result<Opened, InvalidReason> {
    let segment = Segment::read(packet)?;
    let direction = Direction::Original;
    let kind = segment.kind();
    let Step::To(state) = matrix::step(TcpState::None, direction, kind) else {
        return Err(InvalidReason::TcpNotOpening { kind });
    };
    let sides = match state {
        TcpState::SynSent => [TcpSide::opening(&segment, &TcpSide::default()), TcpSide::default()],
        _ if sysctls.tcp_loose => TcpSide::picked_up(&segment),
        _ => return Err(InvalidReason::TcpNotOpening { kind }),
    };
    let mut track = TcpTrack {
        state,
        sides,
        retrans: 0,
        last_dir: direction,
        last_index: kind,
        last_seq: 0,
        last_ack: 0,
        last_len: 0,
        last_win: 0,
        last_wscale: 0,
        last_flags: 0,
    };
    if let Fit::Invalid(why) = window::fit(&mut track, &segment, direction, sysctls.tcp_be_liberal) {
        return Err(why);
    }
    Ok(Opened { state: ProtocolState::Tcp(track), timeout: timeout(&track, kind, Status::empty(), sysctls) })
}

/// Follows a flow with its next segment.
pub(super) fn update(
    track: &mut TcpTrack,
    packet: &Packet<'_>,
    direction: Direction,
    status: Status,
    sysctls: &Sysctls,
) -> Outcome {
    match Segment::read(packet) {
        Ok(segment) => follow(track, &segment, direction, status, sysctls),
        Err(why) => Outcome::Invalid(why),
    }
}

fn follow(
    track: &mut TcpTrack,
    segment: &Segment<'_>,
    direction: Direction,
    status: Status,
    sysctls: &Sysctls,
) -> Outcome {
    let kind = segment.kind();
    let before = track.state;
    let mut from = before;
    let mut windowed = true;
    let mut next = match matrix::step(before, direction, kind) {
        Step::To(next) => next,
        Step::Restart if reopens(track, direction) => return Outcome::Reopen,
        Step::Ignore if is_resync(track, segment, direction) => {
            resync(track, direction);
            from = TcpState::SynSent;
            TcpState::SynRecv
        }
        Step::Ignore | Step::Restart => {
            remember_ignored(track, segment, direction);
            return Outcome::ignored(IgnoreReason::TcpState { kind, direction, state: before });
        }
        Step::Invalid => {
            return Outcome::Invalid(InvalidReason::TcpState { kind, direction, state: before });
        }
    };
    match (next, kind) {
        (TcpState::TimeWait, TcpSegmentKind::Ack) if is_challenge_ack(track, direction) => {
            track.last_flags &= !TcpSideFlags::EXP_CHALLENGE_ACK.bits();
            return Outcome::ignored(IgnoreReason::TcpChallengeAck);
        }
        (TcpState::SynSent2, _) => track.last_flags |= TcpSideFlags::SIMULTANEOUS_OPEN.bits(),
        (TcpState::SynRecv, TcpSegmentKind::Ack)
            if direction == Direction::Reply && track.last_flags & TcpSideFlags::SIMULTANEOUS_OPEN.bits() != 0 =>
        {
            next = TcpState::Established;
        }
        (TcpState::Close, TcpSegmentKind::Rst) => match judge_reset(track, segment, direction, status, sysctls) {
            Reset::Close => {}
            Reset::Unsure => next = before,
            Reset::Free => windowed = false,
            Reset::Old(bound) => return Outcome::Invalid(InvalidReason::TcpOldReset { bound }),
        },
        _ => {}
    }
    if windowed {
        match window::fit(track, segment, direction, sysctls.tcp_be_liberal) {
            Fit::Inside => {}
            Fit::Ignore(why) => return Outcome::ignored(why),
            Fit::Invalid(why) => return ending(track, kind, direction, status, sysctls, why),
        }
    }
    track.last_index = kind;
    track.last_dir = direction;
    track.state = next;
    if next == TcpState::FinWait && from != next {
        side_mut(track, direction).flags |= TcpSideFlags::CLOSE_INIT;
    }
    if !status.contains(Status::SEEN_REPLY) {
        match (from, kind) {
            (_, TcpSegmentKind::Rst) => return Outcome::Remove,
            // A SYN that is sent again and again shall not keep the flow.
            (TcpState::SynSent, TcpSegmentKind::Syn) => return Outcome::Ignore { why: None, changed: from != next },
            _ => {}
        }
    }
    let assure = status.contains(Status::SEEN_REPLY)
        && matches!(from, TcpState::SynRecv | TcpState::Established)
        && next == TcpState::Established;
    Outcome::Accept { timeout: timeout(track, kind, status, sysctls), assure, changed: from != next }
}

/// Whether a SYN in TIME_WAIT or CLOSE opens the flow anew: its end was orderly, or came from the sender of the SYN.
fn reopens(track: &TcpTrack, direction: Direction) -> bool {
    let [original, reply] = track.sides;
    (original.flags | reply.flags).contains(TcpSideFlags::CLOSE_INIT)
        || (track.last_dir == direction && track.last_index == TcpSegmentKind::Rst)
}

/// Whether a SYN-ACK answers the SYN that was ignored just before: then both ends have started over, unlike us.
fn is_resync(track: &TcpTrack, segment: &Segment<'_>, direction: Direction) -> bool {
    segment.kind() == TcpSegmentKind::SynAck
        && track.last_index == TcpSegmentKind::Syn
        && track.last_dir != direction
        && segment.ack == last_end(track)
}

/// Starts over from the SYN that was ignored.
fn resync(track: &mut TcpTrack, direction: Direction) {
    let end = last_end(track);
    let flags = TcpSideFlags::from_bits_truncate(track.last_flags).difference(TcpSideFlags::EXP_CHALLENGE_ACK);
    track.last_flags = flags.bits();
    let opener = TcpSide {
        td_end: end,
        td_maxend: end,
        td_maxwin: u32::from(track.last_win).max(1),
        td_maxack: 0,
        scale: track.last_wscale,
        flags,
    };
    *side_mut(track, direction.opposite()) = opener;
    let answerer = side_mut(track, direction);
    *answerer = TcpSide { flags: answerer.flags & TcpSideFlags::BE_LIBERAL, ..TcpSide::default() };
}

/// Keeps of an ignored segment what a resynchronisation would need.
fn remember_ignored(track: &mut TcpTrack, segment: &Segment<'_>, direction: Direction) {
    track.last_index = segment.kind();
    track.last_dir = direction;
    track.last_seq = segment.seq;
    track.last_ack = segment.ack;
    track.last_len = segment.len_u16();
    track.last_win = segment.window;
    if segment.kind() == TcpSegmentKind::Syn && direction == Direction::Original {
        let offered = options::offered(segment.options);
        track.last_wscale = offered.scale;
        track.last_flags = offered.flags.bits();
        if track.state == TcpState::LastAck {
            track.last_flags |= TcpSideFlags::EXP_CHALLENGE_ACK.bits();
        }
    }
}

/// Whether an ACK in LAST_ACK answers a stray SYN rather than the last FIN (RFC 5961, section 4).
fn is_challenge_ack(track: &TcpTrack, direction: Direction) -> bool {
    track.state == TcpState::LastAck
        && track.last_dir != direction
        && track.last_index == TcpSegmentKind::Syn
        && track.last_flags & TcpSideFlags::EXP_CHALLENGE_ACK.bits() != 0
}

/// What a RST is worth.
enum Reset {
    /// Ends the flow, if it is in the window.
    Close,
    /// In the window, perhaps, but not at the very byte: the receiver would challenge it (RFC 5961, section 3).
    Unsure,
    /// Ends the flow wherever the window is: the flow is ending anyway, or the RST answers a segment that was let through
    /// without belief, and has that segment's numbers.
    Free,
    /// Below what its receiver has acknowledged, named here.
    Old(u32),
}

fn judge_reset(
    track: &TcpTrack,
    segment: &Segment<'_>,
    direction: Direction,
    status: Status,
    sysctls: &Sysctls,
) -> Reset {
    if is_ending(track.state) {
        return Reset::Free;
    }
    let receiver = side(track, direction.opposite());
    if track.last_index == TcpSegmentKind::Syn || !receiver.flags.contains(TcpSideFlags::MAXACK_SET) {
        let answers = match track.last_index {
            TcpSegmentKind::Syn => {
                status.contains(Status::SEEN_REPLY) && track.last_dir != direction && segment.ack == last_end(track)
            }
            TcpSegmentKind::Ack => {
                let refuses_ack = track.state == TcpState::SynSent && segment.seq == track.last_ack;
                !status.contains(Status::ASSURED) && (refuses_ack || segment.ack == last_end(track))
            }
            _ => false,
        };
        return if answers { Reset::Free } else { Reset::Close };
    }
    let established = track.state == TcpState::Established && status.contains(Status::ASSURED);
    if segment.seq == 0 && !established {
        return Reset::Close;
    }
    if is_before(segment.seq, receiver.td_maxack) && !sysctls.tcp_ignore_invalid_rst {
        return Reset::Old(receiver.td_maxack);
    }
    let follows_own_last =
        track.last_index == TcpSegmentKind::Ack && track.last_dir == direction && segment.seq == last_end(track);
    if !established || segment.seq == receiver.td_maxack || follows_own_last { Reset::Close } else { Reset::Unsure }
}

/// INVALID for its numbers. After a RST or FIN from each side that did not fit, the flow is not kept for days.
fn ending(
    track: &mut TcpTrack,
    kind: TcpSegmentKind,
    direction: Direction,
    status: Status,
    sysctls: &Sysctls,
    why: InvalidReason,
) -> Outcome {
    if !status.contains(Status::ASSURED) || !is_final(kind) {
        return Outcome::Invalid(why);
    }
    if track.last_dir != direction && is_final(track.last_index) {
        return Outcome::InvalidEnding { why, least: ENDING_LEAST, most: sysctls.tcp_timeout_unacknowledged };
    }
    track.last_index = kind;
    track.last_dir = direction;
    Outcome::Invalid(why)
}

/// Whether a FIN or RST has been seen and believed.
const fn is_ending(state: TcpState) -> bool {
    matches!(state, TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck | TcpState::TimeWait | TcpState::Close)
}

const fn is_final(kind: TcpSegmentKind) -> bool {
    matches!(kind, TcpSegmentKind::Rst | TcpSegmentKind::Fin)
}

/// Seconds a flow gets after a segment that is part of it.
fn timeout(track: &TcpTrack, kind: TcpSegmentKind, status: Status, sysctls: &Sysctls) -> u32 {
    let [original, reply] = track.sides;
    let own = match track.state {
        TcpState::None | TcpState::SynSent => sysctls.tcp_timeout_syn_sent,
        TcpState::SynSent2 => SYN_SENT2,
        TcpState::SynRecv => sysctls.tcp_timeout_syn_recv,
        TcpState::Established => sysctls.tcp_timeout_established,
        TcpState::FinWait => sysctls.tcp_timeout_fin_wait,
        TcpState::CloseWait => sysctls.tcp_timeout_close_wait,
        TcpState::LastAck => sysctls.tcp_timeout_last_ack,
        TcpState::TimeWait => sysctls.tcp_timeout_time_wait,
        TcpState::Close => sysctls.tcp_timeout_close,
    };
    let capped = if u32::from(track.retrans) >= sysctls.tcp_max_retrans && own > sysctls.tcp_timeout_max_retrans {
        sysctls.tcp_timeout_max_retrans
    } else if kind == TcpSegmentKind::Rst {
        sysctls.tcp_timeout_close
    } else if (original.flags | reply.flags).contains(TcpSideFlags::DATA_UNACKNOWLEDGED)
        && own > sysctls.tcp_timeout_unacknowledged
    {
        sysctls.tcp_timeout_unacknowledged
    } else if track.last_win == 0 {
        own.min(sysctls.tcp_timeout_max_retrans)
    } else {
        own
    };
    // Picked up in the middle and not answered: no five days for a stray segment.
    if track.state == TcpState::Established && !status.contains(Status::SEEN_REPLY) {
        capped.min(sysctls.tcp_timeout_unacknowledged)
    } else {
        capped
    }
}

/// The number behind the last segment that was taken note of.
fn last_end(track: &TcpTrack) -> u32 {
    track.last_seq.wrapping_add(u32::from(track.last_len))
}

fn side(track: &TcpTrack, direction: Direction) -> &TcpSide {
    let [original, reply] = &track.sides;
    match direction {
        Direction::Original => original,
        Direction::Reply => reply,
    }
}

fn side_mut(track: &mut TcpTrack, direction: Direction) -> &mut TcpSide {
    let [original, reply] = &mut track.sides;
    match direction {
        Direction::Original => original,
        Direction::Reply => reply,
    }
}

/// Whether one sequence number comes before another, within half their range (RFC 9293, section 3.4).
const fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > i32::MAX as u32
}

/// Both sides have sent a SYN: the kernel has no sysctl for it.
const SYN_SENT2: u32 = 120;
/// A flow with less time left than this ends soon enough.
const ENDING_LEAST: u32 = 120;

#[cfg(test)]
mod tests;
