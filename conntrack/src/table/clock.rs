//! The table's time: 32-bit ticks of 1/128 s, so that a deadline fits an entry.

use core::time::Duration;

use hibernet_snapshot::Instant;

/// One tick: 1/128 s, near the kernel's 4 ms jiffy and exact in nanoseconds.
pub(crate) const TICK_NANOS: u64 = 7_812_500;

/// Longest time a deadline may lie ahead: half the range of the 32-bit tick, so that order survives the wrap.
pub(crate) const MAX_AHEAD: u32 = i32::MAX.cast_unsigned();

/// A point in time in ticks; wraps after 388 days.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tick(pub(crate) u32);

impl Tick {
    /// How many ticks `self` lies behind `now`'s future: positive while it is still to come.
    pub(crate) const fn ahead_of(self, now: Self) -> i32 {
        self.0.wrapping_sub(now.0).cast_signed()
    }

    /// Whether the deadline `self` has come at `now`.
    pub(crate) const fn reached(self, now: Self) -> bool {
        self.ahead_of(now) <= 0
    }

    /// The later of two ticks.
    pub(crate) const fn max_of(self, other: Self) -> Self {
        if self.reached(other) { other } else { self }
    }

    /// The tick that lies `ahead` further on.
    pub(crate) const fn plus(self, ahead: u32) -> Self {
        Self(self.0.wrapping_add(if ahead > MAX_AHEAD { MAX_AHEAD } else { ahead }))
    }
}

/// Turns the embedder's instants into ticks.
///
/// The epoch is an offset, not an instant of anything: a restored table chooses it so that its ticks fall where those of
/// the saved one fell, and so runs out of step with it by not one nanosecond.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Clock {
    epoch: u64,
}

impl Clock {
    /// A clock whose tick count at `now` is zero and which is `phase` nanoseconds into its current wheel slot.
    pub(crate) const fn new(now: Instant, phase: u64) -> Self {
        Self { epoch: now.as_nanos().wrapping_sub(phase) }
    }

    /// The clock that shows `nanos` more.
    pub(crate) const fn later_by(self, nanos: u64) -> Self {
        Self { epoch: self.epoch.wrapping_sub(nanos) }
    }

    /// Nanoseconds since the epoch.
    pub(crate) const fn nanos(self, now: Instant) -> u64 {
        now.as_nanos().wrapping_sub(self.epoch)
    }

    /// Ticks since the epoch, unwrapped.
    pub(crate) const fn ticks(self, now: Instant) -> u64 {
        self.nanos(now) / TICK_NANOS
    }

    /// The tick in which `now` lies.
    pub(crate) const fn tick(self, now: Instant) -> Tick {
        Tick((self.ticks(now) & 0xffff_ffff) as u32)
    }

    /// The tick at which `wait` from now has passed in full.
    pub(crate) fn after(self, now: Instant, wait: Duration) -> Tick {
        let end = self.nanos(now).saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        let ahead = end.div_ceil(TICK_NANOS).saturating_sub(self.ticks(now));
        self.tick(now).plus(if ahead > MAX_AHEAD as u64 { MAX_AHEAD } else { ahead as u32 })
    }

    /// The same for whole seconds, by who knows the tick of `now`.
    #[inline]
    pub(crate) const fn after_seconds(self, now: Instant, tick: Tick, seconds: u32) -> Tick {
        let nanos = self.nanos(now);
        let into_tick = nanos.wrapping_sub(nanos / TICK_NANOS * TICK_NANOS);
        let ahead = (into_tick + seconds as u64 * 1_000_000_000).div_ceil(TICK_NANOS);
        tick.plus(if ahead > MAX_AHEAD as u64 { MAX_AHEAD } else { ahead as u32 })
    }

    /// The instant a tick begins at, seen from `now`; [`Instant::ZERO`] if it began before the embedder's clock did, as it
    /// can after a restore.
    pub(crate) const fn instant(self, tick: Tick, now: Instant) -> Instant {
        let unwrapped = self.ticks(now).wrapping_add_signed(tick.ahead_of(self.tick(now)) as i64);
        let nanos = unwrapped.wrapping_mul(TICK_NANOS).wrapping_add(self.epoch);
        let before_zero = tick.reached(self.tick(now)) && nanos > now.as_nanos();
        Instant::from_nanos(if before_zero { 0 } else { nanos })
    }

    /// What is left until `tick`; zero once it is reached.
    pub(crate) const fn remaining(self, tick: Tick, now: Instant) -> Duration {
        if tick.reached(self.tick(now)) {
            return Duration::ZERO;
        }
        let until = (tick.ahead_of(self.tick(now)) as u64) * TICK_NANOS;
        Duration::from_nanos(until - self.nanos(now) % TICK_NANOS)
    }
}
