//! Time that passes without packets: between a save and a restore.

use core::time::Duration;

use super::Flows;
use crate::table::clock::{MAX_AHEAD, TICK_NANOS};

impl Flows {
    /// Moves the table's clock on by `gone`, as if it had stood unused for so long. Nothing expires by it: what is over has
    /// nothing left of its time.
    ///
    /// No timeout is longer than [`MAX_AHEAD`] ticks, 194 days, so more makes no difference.
    pub(crate) fn elapse(&mut self, gone: Duration) {
        let longest = u64::from(MAX_AHEAD).saturating_mul(TICK_NANOS);
        let gone = u64::try_from(gone.as_nanos()).unwrap_or(u64::MAX).min(longest);
        self.clock = self.clock.later_by(gone);
    }
}
