//! The window each side may send in, after Guido van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2000).
//!
//! A segment fits if it starts within the window its receiver has offered, does not repeat what was acknowledged more than
//! a window ago, acknowledges nothing that was not sent, and is not overdue by more than the largest window.

use super::options::{self, Offered};
use super::segment::Segment;
use super::{is_before, side, side_mut};
use crate::invalid::{IgnoreReason, InvalidReason};
use crate::protocol::{TcpSegmentKind, TcpSide, TcpSideFlags, TcpState, TcpTrack};
use crate::tuple::Direction;

/// How a segment fits the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fit {
    /// It does, or its sender is not held to it.
    Inside,
    /// Near enough to pass, not to be believed.
    Ignore(IgnoreReason),
    /// It does not.
    Invalid(InvalidReason),
}

impl TcpSide {
    /// A side that sends its SYN. Its window is never scaled (RFC 7323, section 2.2).
    ///
    /// A SYN without any option leaves what an earlier one offered; else only the leave to be liberal stays.
    pub(super) fn opening(syn: &Segment<'_>, earlier: &Self) -> Self {
        let (flags, scale) = match syn.options {
            [] => (earlier.flags, earlier.scale),
            options => {
                let Offered { flags, scale } = options::offered(options);
                (flags | earlier.flags & TcpSideFlags::BE_LIBERAL, scale)
            }
        };
        Self {
            td_end: syn.end(),
            td_maxend: syn.end(),
            td_maxwin: u32::from(syn.window).max(1),
            td_maxack: earlier.td_maxack,
            scale,
            flags,
        }
    }

    /// Both sides of a flow that is picked up in the middle: what they agreed on is unknown, so they are not held to it.
    pub(super) fn picked_up(segment: &Segment<'_>) -> [Self; 2] {
        let unknown = Self { flags: TcpSideFlags::SACK_PERM | TcpSideFlags::BE_LIBERAL, ..Self::default() };
        let td_maxwin = u32::from(segment.window).max(1);
        let td_end = segment.end();
        [Self { td_end, td_maxend: td_end.wrapping_add(td_maxwin), td_maxwin, ..unknown }, unknown]
    }
}

/// Holds a segment against the window, and moves the window by it.
pub(super) fn fit(track: &mut TcpTrack, segment: &Segment<'_>, direction: Direction, be_liberal: bool) -> Fit {
    let mut sender = *side(track, direction);
    let mut receiver = *side(track, direction.opposite());
    let sacked = match receiver.flags.contains(TcpSideFlags::SACK_PERM) {
        true => options::highest_sacked(segment.options, segment.ack),
        false => segment.ack,
    };
    let mut acks = Acks { ack: segment.ack, sacked };

    let introduced = introduce(track, segment, direction, acks, &mut sender, &mut receiver);
    let fit = match introduced {
        Introduction::Complete => Fit::Inside,
        Introduction::None => {
            if !segment.has_ack() || (segment.is_rst() && segment.ack == 0) {
                // No acknowledgement, or a stack that sets the flag without one: as good as the right one.
                acks = Acks { ack: receiver.td_end, sacked: receiver.td_end };
            }
            let span = span(track, segment, &sender);
            let liberal = be_liberal || sender.flags.contains(TcpSideFlags::BE_LIBERAL);
            match verdict(span, acks, &mut sender, &receiver) {
                Fit::Inside => {
                    advance(span, acks, segment, &mut sender, &mut receiver);
                    count_repetition(track, segment, direction);
                    Fit::Inside
                }
                _ if liberal => Fit::Inside,
                unfit => unfit,
            }
        }
    };
    *side_mut(track, direction) = sender;
    *side_mut(track, direction.opposite()) = receiver;
    fit
}

/// What a segment acknowledges: all below `ack`, and something up to `sacked`.
#[derive(Clone, Copy)]
struct Acks {
    ack: u32,
    sacked: u32,
}

/// The sequence numbers a segment takes.
#[derive(Clone, Copy)]
struct Span {
    seq: u32,
    end: u32,
}

/// What a segment says of a sender that was not known, or starts over.
enum Introduction {
    /// Nothing more to hold against the window.
    Complete,
    /// The window decides.
    None,
}

fn introduce(
    track: &TcpTrack,
    segment: &Segment<'_>,
    direction: Direction,
    acks: Acks,
    sender: &mut TcpSide,
    receiver: &mut TcpSide,
) -> Introduction {
    if sender.td_maxwin == 0 {
        if segment.is_syn() {
            start(segment, direction, sender, receiver);
            if !segment.has_ack() {
                return Introduction::Complete;
            }
        } else {
            pick_up(segment, acks, sender, receiver);
        }
    } else if segment.is_syn() && starts_over(track) && is_before(sender.td_end, segment.end()) {
        start(segment, direction, sender, receiver);
        if direction == Direction::Reply && !segment.has_ack() {
            return Introduction::Complete;
        }
    }
    Introduction::None
}

/// A side sends its SYN. Scaling holds for both sides or for none.
fn start(segment: &Segment<'_>, direction: Direction, sender: &mut TcpSide, receiver: &mut TcpSide) {
    *sender = TcpSide::opening(segment, sender);
    if direction == Direction::Reply && !(sender.flags & receiver.flags).contains(TcpSideFlags::WINDOW_SCALE) {
        sender.scale = 0;
        receiver.scale = 0;
    }
}

/// A side is first seen in the middle of the connection.
fn pick_up(segment: &Segment<'_>, acks: Acks, sender: &mut TcpSide, receiver: &mut TcpSide) {
    sender.td_end = segment.end();
    sender.td_maxwin = scaled(segment.window, sender.scale).max(1);
    sender.td_maxend = segment.end().wrapping_add(sender.td_maxwin);
    if receiver.td_maxwin == 0 {
        receiver.td_end = acks.sacked;
        receiver.td_maxend = acks.sacked;
    } else if acks.sacked == receiver.td_end.wrapping_add(1) {
        // Answers a keepalive that carried a byte (RFC 9293, section 3.8.4).
        receiver.td_end = receiver.td_end.wrapping_add(1);
    }
}

/// Whether a side may still send another SYN in the flow's state.
fn starts_over(track: &TcpTrack) -> bool {
    matches!(track.state, TcpState::SynSent | TcpState::SynRecv)
}

/// What to hold against the window: the RST that refuses a SYN has no numbers of its own.
fn span(track: &TcpTrack, segment: &Segment<'_>, sender: &TcpSide) -> Span {
    if segment.is_rst() && segment.seq == 0 && track.state == TcpState::SynSent {
        return Span { seq: sender.td_end, end: sender.td_end };
    }
    Span { seq: segment.seq, end: segment.end() }
}

/// The four bounds, in the order the kernel tells them.
fn verdict(span: Span, acks: Acks, sender: &mut TcpSide, receiver: &TcpSide) -> Fit {
    let seq_upper = sender.td_maxend.wrapping_add(1);
    let ack_upper = receiver.td_end.wrapping_add(1);
    let seq_lower = sender.td_end.wrapping_sub(receiver.td_maxwin).wrapping_sub(1);
    let ack_lower = receiver.td_end.wrapping_sub(sender.td_maxwin.max(LEAST_ACK_WINDOW)).wrapping_sub(1);

    if !is_before(span.seq, seq_upper) {
        let bytes = span.end.wrapping_sub(sender.td_maxend).wrapping_add(1);
        let near = receiver.td_maxwin != 0 && is_before(seq_lower, span.end) && bytes <= receiver.td_maxwin;
        if near && is_before(acks.sacked, ack_upper) && is_before(ack_lower, acks.sacked) {
            // The peer may take the data: its acknowledgement must not look like one of data never sent.
            sender.td_end = span.end;
            sender.flags |= TcpSideFlags::DATA_UNACKNOWLEDGED;
            return Fit::Ignore(IgnoreReason::TcpOvershoot { bytes });
        }
        return Fit::Invalid(InvalidReason::TcpSeqOverUpper { bound: seq_upper });
    }
    if !is_before(acks.sacked, ack_upper) {
        return Fit::Invalid(InvalidReason::TcpAckOverUpper { bound: ack_upper });
    }
    if receiver.td_maxwin != 0 && !is_before(seq_lower, span.end) {
        return Fit::Ignore(IgnoreReason::TcpSeqUnderLower { bound: seq_lower });
    }
    if !is_before(ack_lower, acks.sacked) {
        return Fit::Ignore(IgnoreReason::TcpAckUnderLower { bound: ack_lower });
    }
    Fit::Inside
}

/// Moves the window by a segment that is inside it.
fn advance(span: Span, acks: Acks, segment: &Segment<'_>, sender: &mut TcpSide, receiver: &mut TcpSide) {
    let scale = if segment.is_syn() { 0 } else { sender.scale };
    let window = scaled(segment.window, scale);
    let beyond_ack = window.wrapping_add(acks.sacked.wrapping_sub(acks.ack));
    sender.td_maxwin = sender.td_maxwin.max(beyond_ack);
    if is_before(sender.td_end, span.end) {
        sender.td_end = span.end;
        sender.flags |= TcpSideFlags::DATA_UNACKNOWLEDGED;
    }
    if segment.has_ack() {
        if !sender.flags.contains(TcpSideFlags::MAXACK_SET) || is_before(sender.td_maxack, acks.ack) {
            sender.td_maxack = acks.ack;
        }
        sender.flags |= TcpSideFlags::MAXACK_SET;
    }
    if receiver.td_maxwin != 0 && is_before(sender.td_maxend, span.end) {
        receiver.td_maxwin = receiver.td_maxwin.wrapping_add(span.end.wrapping_sub(sender.td_maxend));
    }
    let allowed = acks.sacked.wrapping_add(window);
    if !is_before(allowed, receiver.td_maxend) {
        receiver.td_maxend = if window == 0 { allowed.wrapping_add(1) } else { allowed };
    }
    if acks.ack == receiver.td_end {
        receiver.flags.remove(TcpSideFlags::DATA_UNACKNOWLEDGED);
    }
}

/// Counts how often the same acknowledgement comes in a row.
fn count_repetition(track: &mut TcpTrack, segment: &Segment<'_>, direction: Direction) {
    if segment.kind() != TcpSegmentKind::Ack {
        return;
    }
    let (seq, ack, len, win) = (segment.seq, segment.ack, segment.len_u16(), segment.window);
    let same = track.last_dir == direction
        && (track.last_seq, track.last_ack, track.last_len, track.last_win) == (seq, ack, len, win);
    track.retrans = if same { track.retrans.saturating_add(1) } else { 0 };
    if !same {
        track.last_dir = direction;
        (track.last_seq, track.last_ack, track.last_len, track.last_win) = (seq, ack, len, win);
    }
}

/// A window as meant, at most 2^30.
fn scaled(window: u16, scale: u8) -> u32 {
    u32::from(window).wrapping_shl(u32::from(scale))
}

/// An acknowledgement may be overdue by this much at least: 66000 bytes in the paper.
const LEAST_ACK_WINDOW: u32 = 66_000;
