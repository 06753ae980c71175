//! The time between a save and a restore, for everything that has a timer towards the outside.

use core::time::Duration;

use hibernet_snapshot::Instant;

use super::sides::Sides;
use crate::ethernet::CheckedNeighbours;
use crate::fragments::Defragmenter;
use crate::local::TcpSection;

/// What of a checked state has timers.
pub(super) struct Timed<'a> {
    pub(super) conntrack: &'a mut hibernet_conntrack::Validated,
    pub(super) fragments: &'a mut Defragmenter,
    pub(super) neighbours: &'a mut CheckedNeighbours,
    pub(super) tcp: &'a mut TcpSection,
}

/// Lets `gone` pass. What is over by then is due at once, but for flows, which have nothing left of their time.
pub(super) fn pass(timed: Timed<'_>, gone: Duration, sides: &Sides<'_>, now: Instant) {
    if gone.is_zero() {
        return;
    }
    let Timed { conntrack, fragments, neighbours, tcp } = timed;
    conntrack.elapse(gone);
    fragments.elapse(gone, now, |number| !sides.is_inside_at(number));
    neighbours.elapse(gone, now, |link| !sides.is_inside(link));
    tcp.elapse(gone, |local, remote| !sides.has_inside(remote, local));
}

/// The deadline that is `gone` nearer, but not in the past.
pub(crate) fn nearer(deadline: Instant, gone: Duration, now: Instant) -> Instant {
    now.saturating_add(deadline.saturating_since(now).saturating_sub(gone))
}
