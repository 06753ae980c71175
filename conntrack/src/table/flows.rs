//! The flows of a table, without the index that finds them: what a save holds and a restore validates.

mod changes;
mod elapsed;
mod frozen;
mod moved;
mod packing;
mod restored;
mod saved;
mod script;

use core::cmp::Ordering;
use core::hash::{Hash, Hasher};

use hibernet_snapshot::Instant;

use self::changes::Changes;
pub use self::changes::SavePoint;
pub(crate) use self::frozen::Frozen;
pub use self::frozen::SaveBuffer;
pub(crate) use self::frozen::freeze;
pub(crate) use self::moved::{Frame, Moved};
pub use self::packing::Packing;
pub(crate) use self::restored::restore;
pub use self::restored::{Progress, RestoreOptions, RestoreRoom, RestoreStep};
pub use self::saved::FlowsSaved;
pub(crate) use self::script::{FrozenChanges, Merged};
use super::addr::{Ends, Packed, PackedEnds};
use super::clock::{Clock, TICK_NANOS, Tick};
use super::entry::{Core, Entry};
use super::links::SLOT_LIMIT;
use super::shelf::Shelf;
use super::wheel::slot_of;
use crate::record::FlowRecord;
use crate::status::Status;
use crate::tuple::{Direction, Tuple, Zone};

/// A place in the table: slot and family. Meaningless once the flow is gone; [`Handle`] tells.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    const V6: u32 = 1 << 31;

    pub(crate) const fn v4(slot: u32) -> Self {
        Self(slot)
    }

    pub(crate) const fn v6(slot: u32) -> Self {
        Self(slot | Self::V6)
    }

    const fn is_v6(self) -> bool {
        self.0 & Self::V6 != 0
    }

    const fn number(self) -> u32 {
        self.0 & !Self::V6
    }
}

/// Names a flow for as long as it is in the table; finds nothing afterwards, even if its slot is used again.
///
/// Handles of one table compare by the age of their flows.
#[derive(Clone, Copy, Debug)]
pub struct Handle {
    slot: Slot,
    part: Part,
    serial: u64,
}

impl PartialEq for Handle {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for Handle {}

impl PartialOrd for Handle {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Handle {
    fn cmp(&self, other: &Self) -> Ordering {
        self.serial.cmp(&other.serial)
    }
}

impl Hash for Handle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.serial.hash(state);
    }
}

impl Handle {
    /// The flow's number: flows are numbered in the order in which they enter the table.
    pub const fn number(self) -> u64 {
        self.serial
    }

    /// Which of several tables the flow was in when the handle was made.
    pub(crate) const fn shard(self) -> usize {
        self.part.shard as usize
    }
}

/// Which part of all flows a table holds, where several tables share them. A table by itself is the default part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Part {
    /// Which of the tables.
    pub(crate) shard: u8,
    /// How often the flows have been dealt out to the tables anew: slots are good for one deal.
    pub(crate) deal: u16,
}

/// The slots of both families.
type Slabs<'a> = (&'a [Entry<[u8; 4]>], &'a [Entry<[u8; 16]>]);

/// Slabs, clock and serial numbers.
#[derive(Debug)]
pub(crate) struct Flows {
    v4: Shelf<[u8; 4]>,
    v6: Shelf<[u8; 16]>,
    clock: Clock,
    /// The latest time the table was told: what a save counts remaining times from.
    now: Instant,
    /// The tick of that time.
    tick: Tick,
    capacity: u32,
    len: u32,
    next_serial: u64,
    part: Part,
    /// Counted where deltas are to be saved.
    changes: Option<Box<Changes>>,
}

impl Flows {
    pub(crate) fn new(capacity: u32, now: Instant) -> Self {
        Self::on(Frame::new(now, 0), capacity, Part::default())
    }

    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    pub(crate) const fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(crate) const fn clock(&self) -> Clock {
        self.clock
    }

    /// The latest time the table was told.
    pub(crate) const fn now(&self) -> Instant {
        self.now
    }

    /// The number the next flow gets. Must be above all that were given.
    pub(crate) const fn number_next(&mut self, serial: u64) {
        self.next_serial = serial;
    }

    /// Tells the table what time it is. Time does not run backwards.
    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) {
        if now > self.now {
            self.now = now;
            self.tick = self.clock.tick(now);
        }
    }

    #[inline]
    pub(crate) fn core(&self, slot: Slot) -> Option<&Core> {
        if slot.is_v6() {
            self.v6.entry(slot.number()).map(|entry| &entry.core)
        } else {
            self.v4.entry(slot.number()).map(|entry| &entry.core)
        }
    }

    /// The flow in a slot, to be changed.
    #[inline]
    pub(crate) fn core_mut(&mut self, slot: Slot) -> Option<&mut Core> {
        if let Some(changes) = &mut self.changes {
            changes.mark(slot);
        }
        if slot.is_v6() { self.v6.core_mut(slot.number()) } else { self.v4.core_mut(slot.number()) }
    }

    /// Has the system give the memory of as many flows of each family.
    pub(crate) fn touch(&mut self, v4: u32, v6: u32) {
        self.v4.touch(v4);
        self.v6.touch(v6);
    }

    /// Has a flow's entry fetched: what says whose it is, or the `whole` of it.
    #[inline]
    pub(crate) fn fetch(&self, slot: Slot, whole: bool) {
        if slot.is_v6() { self.v6.fetch(slot.number(), whole) } else { self.v4.fetch(slot.number(), whole) }
    }

    /// Has the entry fetched that the next flow of a family goes to, or one that is as many flows further on.
    pub(crate) fn fetch_vacant(&self, v6: bool, ahead: usize) {
        if v6 { self.v6.fetch_vacant(ahead) } else { self.v4.fetch_vacant(ahead) }
    }

    #[inline]
    pub(crate) fn handle(&self, slot: Slot) -> Option<Handle> {
        Some(Handle { slot, part: self.part, serial: self.core(slot)?.serial() })
    }

    /// The slot, if the flow is still there.
    #[inline]
    pub(crate) fn slot(&self, handle: Handle) -> Option<Slot> {
        if handle.part != self.part {
            return self.slot_of_serial(handle.serial);
        }
        (self.core(handle.slot)?.serial() == handle.serial).then_some(handle.slot)
    }

    /// Whether the slot in `handle` is one of this table, as it is now.
    pub(crate) fn made(&self, handle: Handle) -> bool {
        handle.part == self.part
    }

    #[inline]
    pub(crate) fn tuple(&self, slot: Slot, direction: Direction) -> Option<Tuple> {
        Some(if slot.is_v6() {
            self.v6.entry(slot.number())?.tuple(direction)
        } else {
            self.v4.entry(slot.number())?.tuple(direction)
        })
    }

    /// Which direction of the slot's flow carries `tuple` in `zone`, if one does.
    ///
    /// A flow whose tuples are equal, of a host that talks to itself through the router, is answered by its second packet:
    /// of two directions in one zone the kernel finds the one that it has filed last.
    #[inline]
    pub(crate) fn direction_of(&self, slot: Slot, tuple: &Packed, zone: Zone) -> Option<Direction> {
        fn of<A: super::addr::Addr>(entry: &Entry<A>, ends: &Ends<A>, zone: Zone) -> Option<Direction> {
            let in_zone = |direction| entry.core.zone().of(direction) == zone.of(direction);
            let (is_orig, is_reply) = (entry.orig == *ends, entry.reply == *ends);
            match is_orig && in_zone(Direction::Original) {
                true if zone.orig_only || !is_reply || !in_zone(Direction::Reply) => Some(Direction::Original),
                _ => (is_reply && in_zone(Direction::Reply)).then_some(Direction::Reply),
            }
        }
        match (&tuple.ends, slot.is_v6()) {
            (PackedEnds::V4(ends), false) => {
                let entry = self.v4.entry(slot.number()).filter(|entry| entry.core.proto == tuple.proto)?;
                of(entry, ends, zone)
            }
            (PackedEnds::V6(ends), true) => {
                let entry = self.v6.entry(slot.number()).filter(|entry| entry.core.proto == tuple.proto)?;
                of(entry, ends, zone)
            }
            _ => None,
        }
    }

    pub(crate) fn record(&self, slot: Slot) -> Option<FlowRecord> {
        let core = self.core(slot)?;
        Some(FlowRecord {
            orig: self.tuple(slot, Direction::Original)?,
            reply: self.tuple(slot, Direction::Reply)?,
            zone: core.zone(),
            status: core.status(),
            remaining: self.clock.remaining(core.deadline, self.now),
            protocol: core.protocol(self.clock, self.now),
            mark: core.mark,
            counters: core.counters(),
        })
    }

    /// Stores a flow as the newest. `None` if there is no room, or its tuples mix families.
    pub(crate) fn store(&mut self, flow: &FlowRecord) -> Option<Slot> {
        if self.len >= self.capacity || !flow.orig.is_one_family() {
            return None;
        }
        let (serial, clock, now) = (self.next_serial, self.clock, self.now);
        let slot = if flow.orig.is_v6() {
            Slot::v6(self.v6.store(flow, serial, clock, now)?)
        } else {
            Slot::v4(self.v4.store(flow, serial, clock, now)?)
        };
        self.next_serial = serial.wrapping_add(1);
        self.len = self.len.saturating_add(1);
        if let Some(changes) = &mut self.changes {
            changes.mark(slot);
        }
        Some(slot)
    }

    pub(crate) fn vacate(&mut self, slot: Slot) {
        let Some(serial) = self.core(slot).map(Core::serial) else { return };
        if let Some(changes) = &mut self.changes {
            changes.forget(serial);
        }
        if slot.is_v6() {
            self.v6.vacate(slot.number())
        } else {
            self.v4.vacate(slot.number())
        }
        self.len = self.len.saturating_sub(1);
    }

    /// Sets when the flow is forgotten.
    #[inline]
    pub(crate) fn set_timeout(&mut self, slot: Slot, seconds: u32) {
        let (clock, now) = (self.clock, self.now);
        let deadline = clock.after_seconds(now, self.tick, seconds);
        let Some(core) = self.core_mut(slot) else { return };
        let nearer = deadline.ahead_of(core.deadline) < 0;
        core.deadline = deadline;
        if nearer && slot.is_v6() {
            self.v6.rearm(slot.number(), clock, now);
        } else if nearer {
            self.v4.rearm(slot.number(), clock, now);
        }
    }

    #[inline]
    pub(crate) fn is_expired(&self, slot: Slot) -> bool {
        self.core(slot).is_some_and(|core| core.deadline.reached(self.tick))
    }

    /// Early drop spares the flow from now on.
    pub(crate) fn assure(&mut self, slot: Slot) {
        if slot.is_v6() { self.v6.assure(slot.number()) } else { self.v4.assure(slot.number()) }
    }

    /// The unassured flow of either family that is oldest.
    pub(crate) fn oldest_unassured(&self) -> Option<Slot> {
        let candidates = [self.v4.oldest_unassured().map(Slot::v4), self.v6.oldest_unassured().map(Slot::v6)];
        candidates.into_iter().flatten().min_by_key(|slot| self.core(*slot).map(Core::serial))
    }

    /// How many places [`Flows::unassured_at`] knows, empty ones included.
    pub(crate) fn places(&self) -> u64 {
        let slots = u64::from(self.v4.slots().max(self.v6.slots()));
        slots.saturating_mul(2)
    }

    /// All flows that are not ASSURED, with their serial numbers.
    pub(crate) fn unassured(&self) -> impl Iterator<Item = (u64, Slot)> {
        let spared = |slot| self.core(slot).is_some_and(|core| core.status().contains(Status::ASSURED));
        self.occupied().filter(move |(_, slot)| !spared(*slot))
    }

    /// The flow at a place, if there is one and early drop may take it. Every flow stands at one place.
    pub(crate) fn unassured_at(&self, place: u64) -> Option<Slot> {
        let number = u32::try_from(place / 2).ok()?;
        let slot = if place.is_multiple_of(2) { Slot::v4(number) } else { Slot::v6(number) };
        self.core(slot).filter(|core| !core.status().contains(Status::ASSURED)).map(|_| slot)
    }

    /// Slots whose time has come, at most `budget` flows looked at, by deadline and then age.
    pub(crate) fn expired(&mut self, mut budget: usize) -> Vec<Slot> {
        let mut slots = self.fire(&mut budget);
        slots.sort_unstable_by_key(|(due, _)| *due);
        slots.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Slots whose time has come, each with what orders them; takes from `budget` the flows it looks at.
    pub(crate) fn fire(&mut self, budget: &mut usize) -> Vec<(DueOrder, Slot)> {
        let (clock, now) = (self.clock, self.now);
        let mut slots = Vec::new();
        self.v4.fire(clock, now, budget, |slot| slots.push(Slot::v4(slot)));
        self.v6.fire(clock, now, budget, |slot| slots.push(Slot::v6(slot)));
        let tick = clock.tick(now);
        let due = |slot| self.core(slot).map(|core| ((core.deadline.ahead_of(tick), core.serial()), slot));
        slots.into_iter().filter_map(due).collect()
    }

    /// When [`Flows::expired`] has something to do.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let tick = [self.v4.next_tick(), self.v6.next_tick()].into_iter().flatten().min()?;
        let ahead = tick.saturating_sub(self.clock.ticks(self.now));
        let at = self.clock.tick(self.now).plus(u32::try_from(ahead).unwrap_or(u32::MAX));
        Some(self.clock.instant(at, self.now))
    }

    /// All slots in creation order.
    pub(crate) fn in_creation_order(&self) -> Vec<Slot> {
        let mut slots: Vec<_> = self.occupied().collect();
        slots.sort_unstable_by_key(|(serial, _)| *serial);
        slots.into_iter().map(|(_, slot)| slot).collect()
    }

    /// All slots with their serial numbers.
    pub(crate) fn occupied(&self) -> impl Iterator<Item = (u64, Slot)> {
        let v4 = self.v4.occupied().map(|(slot, entry)| (entry.core.serial(), Slot::v4(slot)));
        v4.chain(self.v6.occupied().map(|(slot, entry)| (entry.core.serial(), Slot::v6(slot))))
    }

    /// Serial and slot of the unassured flow that is oldest.
    pub(crate) fn oldest_unassured_serial(&self) -> Option<(u64, Slot)> {
        let slot = self.oldest_unassured()?;
        Some((self.core(slot)?.serial(), slot))
    }

    /// The long way to a flow whose handle was made before the flows were dealt out anew.
    #[cold]
    fn slot_of_serial(&self, serial: u64) -> Option<Slot> {
        self.occupied().find(|(other, _)| *other == serial).map(|(_, slot)| slot)
    }

    /// The slabs of both families, vacant slots included.
    pub(crate) fn slabs(&self) -> Slabs<'_> {
        (self.v4.slab(), self.v6.slab())
    }

    /// Nanoseconds into the current slot of the timer wheel: keeps a restored table's timers in step.
    fn phase(&self) -> u64 {
        self.clock.nanos(self.now) % (TICK_NANOS * 16)
    }
}

/// Orders flows whose time has come: by deadline, in ticks from now, and then by age.
pub(crate) type DueOrder = (i32, u64);

/// What a table may be sized for.
pub(crate) fn check_capacity(capacity: u32) -> Result<(), String> {
    if capacity == 0 || capacity > SLOT_LIMIT { Err(format!("1 to {SLOT_LIMIT}")) } else { Ok(()) }
}
