//! Checked neighbours after a time without traffic, and in a fork.

use core::time::Duration;

use hibernet_snapshot::Instant;

use super::neighbours::{Confidence, State};
use super::saved::CheckedNeighbours;
use crate::link::LinkId;
use crate::restore::nearer;

impl CheckedNeighbours {
    /// Lets `gone` pass on the links for which `passes` says so.
    pub(crate) fn elapse(&mut self, gone: Duration, now: Instant, passes: impl Fn(LinkId) -> bool) {
        for (_, _, neighbour) in self.neighbours.iter_mut().filter(|(link, ..)| passes(*link)) {
            neighbour.kept_until = nearer(neighbour.kept_until, gone, now);
            neighbour.locked_until = nearer(neighbour.locked_until, gone, now);
            if let State::Known { confidence: Confidence::Reachable { until } | Confidence::Delay { until }, .. } =
                &mut neighbour.state
            {
                *until = nearer(*until, gone, now);
            }
        }
    }

    /// Forgets the packets that wait on the links for which `forgets` says so, and the neighbours they wait for. Comes back
    /// with how many they were.
    pub(crate) fn forget_waiting(&mut self, forgets: impl Fn(LinkId) -> bool) -> usize {
        let mut forgotten = 0_usize;
        self.neighbours.retain(|(link, _, neighbour)| match &neighbour.state {
            State::Incomplete { waiting, .. } if forgets(*link) => {
                forgotten = forgotten.saturating_add(waiting.len());
                false
            }
            _ => true,
        });
        forgotten
    }
}
