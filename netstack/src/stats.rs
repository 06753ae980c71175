//! Counters of the whole stack.

use hibernet_snapshot::{Invalid, Snapshot};

use crate::drop_reason::DropReason;

/// What the stack has done, in packets. Saved and restored: a restore does not reset the counters.
#[derive(Clone, PartialEq, Eq, Debug, Default, Snapshot)]
#[snapshot(validate = known_reasons)]
pub struct Stats {
    /// Datagrams handed to `ingress`.
    #[snapshot(saved)]
    pub received: u64,
    /// Datagrams queued for a link.
    #[snapshot(saved)]
    pub sent: u64,
    /// Packets that were routed on.
    #[snapshot(saved)]
    pub forwarded: u64,
    /// Packets that reached the local stack.
    #[snapshot(saved)]
    pub delivered: u64,
    /// Packets made here: by local sockets, or in answer to a packet that could not go on.
    #[snapshot(saved)]
    pub originated: u64,
    /// ICMP errors and TCP resets among the packets made here.
    #[snapshot(saved)]
    pub errors_sent: u64,
    /// ICMP errors and TCP resets that were not sent because they may not be (RFC 1122, section 3.2.2).
    #[snapshot(saved)]
    pub errors_suppressed: u64,
    /// SYNs that were answered with a cookie.
    #[snapshot(saved)]
    pub cookies_sent: u64,
    /// Cookies that came back and opened a connection.
    #[snapshot(saved)]
    pub cookies_accepted: u64,
    /// Drops: number of the reason and count, ascending, without zeros.
    #[snapshot(saved)]
    drops: Vec<(u16, u64)>,
}

impl Stats {
    /// Packets dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        match self.drops.binary_search_by_key(&reason.number(), |(number, _)| *number) {
            Ok(at) => self.drops.get(at).map_or(0, |(_, count)| *count),
            Err(_) => 0,
        }
    }

    /// Reasons that have dropped something, with their counts, by ascending number.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        self.drops.iter().filter_map(|(number, count)| Some((DropReason::from_number(*number)?, *count)))
    }

    /// All drops together.
    pub fn dropped_in_all(&self) -> u64 {
        self.drops.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    pub(crate) fn count_drop(&mut self, reason: DropReason) {
        match self.drops.binary_search_by_key(&reason.number(), |(number, _)| *number) {
            Ok(at) => {
                if let Some((_, count)) = self.drops.get_mut(at) {
                    *count = count.saturating_add(1);
                }
            }
            Err(at) => self.drops.insert(at, (reason.number(), 1)),
        }
    }
}

/// Adds one to a counter of [`Stats`]; counters stay at their largest value.
pub(crate) const fn count(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

fn known_reasons(stats: &Stats) -> Result<(), Invalid> {
    let mut last = 0;
    for (number, count) in &stats.drops {
        if DropReason::from_number(*number).is_none() || *count == 0 || *number <= last {
            return Err(Invalid {
                field: "drops".into(),
                found: format!("reason {number} with count {count} after {last}"),
                expected: "known reasons, ascending, each with a count above zero".into(),
            });
        }
        last = *number;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_by_reason_and_listed_by_number() {
        let mut stats = Stats::default();
        for reason in [DropReason::Rule, DropReason::NotIp, DropReason::Rule] {
            stats.count_drop(reason);
        }
        assert_eq!(stats.dropped(DropReason::Rule), 2);
        assert_eq!(stats.dropped(DropReason::Policy), 0);
        assert_eq!(stats.drops().collect::<Vec<_>>(), [(DropReason::NotIp, 1), (DropReason::Rule, 2)]);
        assert_eq!(stats.dropped_in_all(), 3);
    }
}
