//! The monotonic clock: the libraries take time as an argument, and this is where it comes from.

use std::time::Duration;

use hibernet_snapshot::Instant;
use rustix::time::ClockId;
use rustix::time::clock_gettime;

/// The system's monotonic clock, the same for every process on the machine.
pub fn monotonic() -> Instant {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The clock a gateway shows its stack: monotonic, but it can be stopped and goes on where it stood.
#[derive(Debug)]
pub(crate) struct StackClock {
    behind: Duration,
    stopped_at: Option<Instant>,
}

impl StackClock {
    /// A running clock that agrees with the system's.
    pub(crate) fn running() -> Self {
        Self { behind: Duration::ZERO, stopped_at: None }
    }

    /// What the stack is told.
    pub(crate) fn now(&self) -> Instant {
        self.stopped_at.unwrap_or_else(|| self.shown(monotonic()))
    }

    /// Stops the clock; while stopped nothing ages.
    pub(crate) fn stop(&mut self) {
        self.stopped_at = Some(self.now());
    }

    /// Lets the clock go on from where it stopped.
    pub(crate) fn resume(&mut self) {
        if let Some(stopped_at) = self.stopped_at.take() {
            self.behind = monotonic().saturating_since(stopped_at);
        }
    }

    fn shown(&self, real: Instant) -> Instant {
        Instant::from_nanos(real.as_nanos().saturating_sub(duration_nanos(self.behind)))
    }
}

/// Whole and broken milliseconds of a duration, for people and JSON, to the microsecond.
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn duration_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_clock_goes_on_where_it_stood() {
        let mut clock = StackClock::running();
        clock.stop();
        let stood = clock.now();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(clock.now(), stood);
        clock.resume();
        let gap = clock.now().saturating_since(stood);
        assert!(gap < Duration::from_millis(5), "the stop must not count: {gap:?}");
    }
}
