//! Whether every packet has an end, and every end a reason.

use std::collections::BTreeMap;

use hibernet_conntrack::parse;
use hibernet_netstack::{DropReason, Stats};

use crate::notation::text;

/// What became of the packets of a scenario.
#[derive(Debug, Default)]
pub struct Audit {
    /// Packets that came in and then were nowhere: neither sent on nor delivered, dropped or kept. Step and text of each.
    pub vanished: Vec<(usize, String)>,
    /// Drops by the stack's events.
    pub told: BTreeMap<DropReason, u64>,
    /// Drops by the stack's counters.
    pub counted: BTreeMap<DropReason, u64>,
}

impl Audit {
    /// Looks what became of a packet, from the counters before and after it. A fragment may wait for the others.
    pub(super) fn follow(&mut self, step: usize, packet: &[u8], before: &Stats, after: &Stats) {
        let ends = |stats: &Stats| stats.sent + stats.delivered + stats.dropped_in_all();
        let may_wait = parse(packet).is_ok_and(|parsed| parsed.fragment.is_some());
        if ends(before) == ends(after) && !may_wait {
            self.vanished.push((step, text(packet)));
        }
    }

    /// Takes the reasons of drops that were told of.
    pub(super) fn tell(&mut self, drops: &[DropReason]) {
        for reason in drops {
            *self.told.entry(*reason).or_default() += 1;
        }
    }
}
