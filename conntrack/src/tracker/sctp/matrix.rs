//! Where a chunk takes an association. Measured cell by cell; the kernel's names for the states.

use super::chunk::Kind;
use crate::protocol::SctpState;
use crate::tuple::Direction;

/// The state after a chunk; `None` where it does not fit.
pub(super) fn step(state: SctpState, direction: Direction, kind: Kind) -> Option<SctpState> {
    Some(match state {
        SctpState::None => return unopened(kind, direction),
        SctpState::HeartbeatSent => return heartbeat_sent(kind, direction),
        SctpState::Closed => closed(kind, direction),
        _ if kind == Kind::Abort => SctpState::Closed,
        SctpState::CookieWait if kind == Kind::CookieEcho => SctpState::CookieEchoed,
        SctpState::CookieEchoed => cookie_echoed(kind, direction),
        SctpState::Established if kind == Kind::Shutdown => match direction {
            Direction::Original => SctpState::ShutdownSent,
            Direction::Reply => SctpState::ShutdownRecd,
        },
        SctpState::ShutdownSent | SctpState::ShutdownRecd => shutting_down(state, kind, direction),
        SctpState::ShutdownAckSent if kind == Kind::ShutdownComplete => SctpState::Closed,
        SctpState::CookieWait | SctpState::Established | SctpState::ShutdownAckSent => state,
    })
}

/// Whether an association may begin with a chunk.
pub(super) fn opens(kind: Kind) -> bool {
    unopened(kind, Direction::Original).is_some_and(|state| state != SctpState::None)
}

fn unopened(kind: Kind, direction: Direction) -> Option<SctpState> {
    match (kind, direction) {
        (_, Direction::Reply) => None,
        (
            Kind::Init | Kind::InitAck | Kind::HeartbeatAck | Kind::Shutdown | Kind::Error | Kind::CookieEcho,
            Direction::Original,
        ) => Some(SctpState::Closed),
        (Kind::ShutdownAck, Direction::Original) => Some(SctpState::ShutdownAckSent),
        (Kind::Heartbeat, Direction::Original) => Some(SctpState::HeartbeatSent),
        _ => None,
    }
}

fn closed(kind: Kind, direction: Direction) -> SctpState {
    match (kind, direction) {
        (Kind::InitAck, Direction::Reply) => SctpState::CookieWait,
        _ => SctpState::Closed,
    }
}

fn cookie_echoed(kind: Kind, direction: Direction) -> SctpState {
    match (kind, direction) {
        (Kind::CookieAck, _) => SctpState::Established,
        // The cookie has gone stale.
        (Kind::Error, Direction::Reply) => SctpState::Closed,
        _ => SctpState::CookieEchoed,
    }
}

fn shutting_down(state: SctpState, kind: Kind, direction: Direction) -> SctpState {
    match (kind, direction) {
        (Kind::Init, Direction::Original) => SctpState::Closed,
        (Kind::ShutdownAck, _) => SctpState::ShutdownAckSent,
        _ => state,
    }
}

/// A path that began with a HEARTBEAT: only another one, or the answer to it, may come back.
fn heartbeat_sent(kind: Kind, direction: Direction) -> Option<SctpState> {
    Some(match (kind, direction) {
        (Kind::Data | Kind::Other, _) | (Kind::Heartbeat, _) | (Kind::HeartbeatAck, Direction::Original) => {
            SctpState::HeartbeatSent
        }
        (Kind::HeartbeatAck, Direction::Reply) => SctpState::Established,
        (Kind::Init, Direction::Original) => SctpState::CookieWait,
        (Kind::ShutdownAck, Direction::Original) => SctpState::ShutdownAckSent,
        (_, Direction::Original) => SctpState::Closed,
        (_, Direction::Reply) => return None,
    })
}
