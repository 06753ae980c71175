//! Flows on their way from one table to another, with all that they have.

use hibernet_snapshot::Instant;

use super::{Flows, Part, Shelf, Slot, slot_of};
use crate::table::addr::Addr;
use crate::table::clock::{Clock, Tick};
use crate::table::entry::{Core, Entry};
use crate::tuple::{Direction, Tuple};

/// What tables that share flows have in common: a tick means the same to all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    clock: Clock,
    now: Instant,
    /// The slot of the timer wheel that fires next.
    slot: u64,
}

impl Frame {
    /// For an empty table that is `phase` nanoseconds into its wheel's slot at `now`.
    pub(crate) const fn new(now: Instant, phase: u64) -> Self {
        let clock = Clock::new(now, phase);
        Self { clock, now, slot: slot_of(clock.ticks(now)) }
    }

    /// The slot of the timer wheel that fires next.
    pub(super) const fn slot(self) -> u64 {
        self.slot
    }

    pub(super) const fn ticks(self) -> Ticks {
        let unwrapped = self.clock.ticks(self.now);
        Ticks { now: self.clock.tick(self.now), unwrapped, next: self.slot }
    }

    /// The frame that holds for both: of one clock, at the later of two times, with what fires first in either.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { clock: self.clock, now: self.now.max(other.now), slot: self.slot.min(other.slot) }
    }
}

/// The time of a frame in ticks.
pub(super) struct Ticks {
    pub(super) now: Tick,
    pub(super) unwrapped: u64,
    /// The slot of the wheel that fires next.
    pub(super) next: u64,
}

/// A flow between two tables: the entry as it is, serial number, deadline and counters included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved(Family);

#[derive(Clone, Copy, Debug)]
enum Family {
    V4(Entry<[u8; 4]>),
    V6(Entry<[u8; 16]>),
}

impl Moved {
    pub(crate) fn serial(&self) -> u64 {
        self.core().serial()
    }

    pub(crate) fn core(&self) -> &Core {
        match &self.0 {
            Family::V4(entry) => &entry.core,
            Family::V6(entry) => &entry.core,
        }
    }

    pub(crate) fn tuple(&self, direction: Direction) -> Tuple {
        match &self.0 {
            Family::V4(entry) => entry.tuple(direction),
            Family::V6(entry) => entry.tuple(direction),
        }
    }
}

impl<A: Addr> Entry<A> {
    pub(crate) fn tuple(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.orig.tuple(self.core.proto),
            Direction::Reply => self.reply.tuple(self.core.proto),
        }
    }
}

impl Flows {
    /// No flows yet, in a frame shared with other tables.
    pub(crate) fn on(frame: Frame, capacity: u32, part: Part) -> Self {
        let Frame { clock, now, slot } = frame;
        let (v4, v6) = (Shelf::new(capacity, slot), Shelf::new(capacity, slot));
        Self { v4, v6, clock, now, tick: clock.tick(now), capacity, len: 0, next_serial: 1, part, changes: None }
    }

    pub(crate) fn frame(&self) -> Frame {
        Frame { clock: self.clock, now: self.now, slot: self.v4.next_slot().min(self.v6.next_slot()) }
    }

    /// Copies of all flows, in no order.
    pub(crate) fn to_move(&self) -> impl Iterator<Item = Moved> {
        let v4 = self.v4.occupied().map(|(_, entry)| Moved(Family::V4(*entry)));
        v4.chain(self.v6.occupied().map(|(_, entry)| Moved(Family::V6(*entry))))
    }

    /// Takes a flow over as the newest. `None` if there is no room.
    pub(crate) fn adopt(&mut self, moved: &Moved) -> Option<Slot> {
        if self.len >= self.capacity {
            return None;
        }
        let (clock, now) = (self.clock, self.now);
        let slot = match moved.0 {
            Family::V4(entry) => Slot::v4(self.v4.adopt(entry, clock, now)?),
            Family::V6(entry) => Slot::v6(self.v6.adopt(entry, clock, now)?),
        };
        self.next_serial = self.next_serial.max(moved.serial().wrapping_add(1));
        self.len = self.len.saturating_add(1);
        if let Some(changes) = &mut self.changes {
            changes.mark(slot);
        }
        Some(slot)
    }
}
