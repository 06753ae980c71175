//! How long an acknowledgement takes, and how long to wait for one (RFC 6298).

use core::time::Duration;

use hibernet_snapshot::Instant;

use super::seq::Seq;

/// The estimate of one connection's round trip.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct RoundTrip {
    /// SRTT and RTTVAR; none before the first sample.
    estimate: Option<(Duration, Duration)>,
    /// Samples taken, as far as they are counted.
    samples: u8,
    /// The number behind a segment that was sent once, and when: for peers without timestamps.
    timed: Option<(Seq, Instant)>,
}

impl RoundTrip {
    /// A segment with new data that ends before `end` has been sent.
    pub(super) const fn sent(&mut self, end: Seq, now: Instant) {
        if self.timed.is_none() {
            self.timed = Some((end, now));
        }
    }

    /// Something has been sent again: its acknowledgement tells nothing (Karn's algorithm).
    pub(super) const fn repeated(&mut self) {
        self.timed = None;
    }

    /// Everything before `una` has been acknowledged. `echoed` is the age of the timestamp in the acknowledgement, which
    /// tells also of what was sent more than once (RFC 7323, section 4).
    pub(super) fn acknowledged(&mut self, una: Seq, echoed: Option<Duration>, now: Instant) {
        let timed = self.timed.filter(|(end, _)| !una.is_before(*end));
        if timed.is_some() {
            self.timed = None;
        }
        let measured = timed.map(|(_, at)| now.saturating_since(at));
        if let Some(sample) = measured.or(echoed).filter(|sample| *sample < LONGEST_WAIT) {
            self.sample(sample);
        }
    }

    /// How long to wait for an acknowledgement before the first segment is sent again.
    pub(super) fn wait(&self) -> Duration {
        let Some((smoothed, variation)) = self.estimate else { return FIRST_WAIT };
        // A handshake alone says little of how long data waits in queues.
        let least = if self.samples < KNOWN { FIRST_WAIT } else { LEAST_MARGIN };
        smoothed.saturating_add(variation.saturating_mul(4).max(least)).min(LONGEST_WAIT)
    }

    /// RFC 6298, section 2, rules 2 and 3.
    fn sample(&mut self, sample: Duration) {
        self.samples = self.samples.saturating_add(1);
        self.estimate = Some(match self.estimate {
            None => (sample, weighed(Duration::ZERO, 1, sample)),
            Some((smoothed, variation)) => {
                (weighed(smoothed, 7, sample), weighed(variation, 3, smoothed.abs_diff(sample)))
            }
        });
    }
}

/// The mean of `weight` times the old and once the new.
fn weighed(old: Duration, weight: u32, new: Duration) -> Duration {
    let sum = old.saturating_mul(weight).saturating_add(new);
    sum.checked_div(weight.saturating_add(1)).unwrap_or_default()
}

/// RFC 6298, rule 2.1.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Samples after which the variation is taken for known.
const KNOWN: u8 = 8;
/// What a peer may hold an acknowledgement back for is not a loss. As Linux has it (`TCP_RTO_MIN`), and not the second of RFC
/// 6298, which it calls conservative itself.
const LEAST_MARGIN: Duration = Duration::from_millis(200);
/// Rule 2.5.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_wait_follows_the_samples_and_leaves_room_for_a_held_back_acknowledgement() {
        let mut trip = RoundTrip::default();
        assert_eq!(trip.wait(), FIRST_WAIT);
        for _ in 0..7 {
            trip.acknowledged(Seq(10), Some(MS), Instant::ZERO);
            assert_eq!(trip.wait(), FIRST_WAIT + MS, "not known yet");
        }
        trip.acknowledged(Seq(10), Some(MS), Instant::ZERO);
        assert_eq!(trip.wait(), 201 * MS);
        trip.acknowledged(Seq(20), Some(801 * MS), Instant::ZERO);
        // SRTT 101 ms, RTTVAR a quarter of 800 ms and what is left of the first.
        assert!((901 * MS..905 * MS).contains(&trip.wait()), "{:?}", trip.wait());
        for _ in 0..60 {
            trip.acknowledged(Seq(30), Some(10 * MS), Instant::ZERO);
        }
        assert!((209 * MS..212 * MS).contains(&trip.wait()), "{:?}", trip.wait());
    }

    #[test]
    fn without_timestamps_one_segment_at_a_time_is_timed_and_none_that_was_sent_twice() {
        let mut trip = RoundTrip::default();
        let at = |millis| Instant::from_millis(millis);
        trip.sent(Seq(100), at(0));
        trip.sent(Seq(200), at(5));
        trip.acknowledged(Seq(99), None, at(10));
        assert_eq!(trip.wait(), FIRST_WAIT);
        trip.acknowledged(Seq(100), None, at(300));
        assert_eq!(trip.wait(), 1300 * MS);
        trip.sent(Seq(300), at(300));
        trip.repeated();
        trip.acknowledged(Seq(300), None, at(50_000));
        assert_eq!(trip.wait(), 1300 * MS);
    }
}
