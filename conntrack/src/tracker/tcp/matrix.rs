//! The state table: where a segment of some kind takes a flow, window permitting.

use crate::protocol::{TcpSegmentKind, TcpState};
use crate::tuple::Direction;

/// What a segment means in a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The flow goes to, or stays in, this state.
    To(TcpState),
    /// A SYN that may open a finished flow anew; ignored if it may not.
    Restart,
    /// Passes, teaches nothing: the receiver will know what to make of it.
    Ignore,
    /// Does not fit.
    Invalid,
}

/// The step for one cell of the table.
pub(super) fn step(state: TcpState, direction: Direction, kind: TcpSegmentKind) -> Step {
    match kind {
        TcpSegmentKind::Syn => syn(state, direction),
        TcpSegmentKind::SynAck => syn_ack(state, direction),
        TcpSegmentKind::Fin => fin(state),
        TcpSegmentKind::Ack => ack(state, direction),
        TcpSegmentKind::Rst => rst(state),
        TcpSegmentKind::None => Step::Invalid,
    }
}

fn syn(state: TcpState, direction: Direction) -> Step {
    match (state, direction) {
        (TcpState::None | TcpState::SynSent, Direction::Original) => Step::To(TcpState::SynSent),
        // Both ends open at once (RFC 9293, figure 8).
        (TcpState::SynSent, Direction::Reply) | (TcpState::SynSent2, _) => Step::To(TcpState::SynSent2),
        (TcpState::TimeWait, _) | (TcpState::Close, Direction::Original) => Step::Restart,
        // The initiator may have restarted: its peer answers, and is_resync sees it.
        (_, Direction::Original) => Step::Ignore,
        (_, Direction::Reply) => Step::Invalid,
    }
}

fn syn_ack(state: TcpState, direction: Direction) -> Step {
    match (state, direction) {
        (TcpState::SynSent2, _) | (TcpState::SynSent, Direction::Reply) | (TcpState::SynRecv, Direction::Original) => {
            Step::To(TcpState::SynRecv)
        }
        (TcpState::None, _) | (_, Direction::Original) => Step::Invalid,
        // Repeated, or the answer to a SYN that was ignored.
        (_, Direction::Reply) => Step::Ignore,
    }
}

fn fin(state: TcpState) -> Step {
    match state {
        TcpState::None | TcpState::SynSent | TcpState::SynSent2 => Step::Invalid,
        TcpState::SynRecv | TcpState::Established => Step::To(TcpState::FinWait),
        TcpState::FinWait | TcpState::CloseWait => Step::To(TcpState::LastAck),
        TcpState::LastAck | TcpState::TimeWait | TcpState::Close => Step::To(state),
    }
}

fn ack(state: TcpState, direction: Direction) -> Step {
    match (state, direction) {
        (TcpState::None, _) => Step::To(TcpState::Established),
        (TcpState::SynSent | TcpState::SynSent2, Direction::Original) => Step::Invalid,
        // May be a challenge to a SYN of a connection its sender has forgotten.
        (TcpState::SynSent | TcpState::SynSent2, Direction::Reply) => Step::Ignore,
        (TcpState::SynRecv, Direction::Original) => Step::To(TcpState::Established),
        (TcpState::FinWait, _) => Step::To(TcpState::CloseWait),
        (TcpState::LastAck, _) => Step::To(TcpState::TimeWait),
        (TcpState::SynRecv, Direction::Reply)
        | (TcpState::Established | TcpState::CloseWait | TcpState::TimeWait | TcpState::Close, _) => Step::To(state),
    }
}

fn rst(state: TcpState) -> Step {
    match state {
        TcpState::None => Step::Invalid,
        _ => Step::To(TcpState::Close),
    }
}
