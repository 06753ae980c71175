//! Time as an argument.

use core::time::Duration;

/// Nanoseconds on the embedder's monotonic clock.
///
/// Not `std::time::Instant`: nothing here reads a clock. It has no saved form, because it means nothing on another machine
/// or after a sleep: save the remaining [`Duration`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// The instant `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The instant `millis` milliseconds after the origin, or the last one there is.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// The instant `secs` seconds after the origin, or the last one there is.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This instant moved by `duration`, or the last one there is.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long `earlier` lies back; zero if it does not.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_stops_at_both_ends() {
        let last = Instant::from_nanos(u64::MAX);
        assert_eq!(last.saturating_add(Duration::from_nanos(1)), last);
        assert_eq!(Instant::ZERO.saturating_add(Duration::MAX), last);
        assert_eq!(Instant::from_secs(u64::MAX), last);
        assert_eq!(Instant::ZERO.saturating_since(Instant::from_millis(1)), Duration::ZERO);
    }

    #[test]
    fn a_difference_undoes_a_sum() {
        let start = Instant::from_secs(3);
        let wait = Duration::from_millis(1500);
        assert_eq!(start.saturating_add(wait).saturating_since(start), wait);
        assert_eq!(start.saturating_add(wait), Instant::from_millis(4500));
    }
}
