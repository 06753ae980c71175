//! The flows of one address family: a slab, its timer wheel, its list of unassured flows.

use core::hint::black_box;

use hibernet_snapshot::Instant;

use super::addr::{Addr, Ends};
use super::clock::{Clock, Tick};
use super::entry::{Core, Entry};
use super::links::{Chain, Links, Queue};
use super::wheel::{Wheel, has_passed};
use crate::record::FlowRecord;
use crate::status::Status;

/// Slots of one family. Which slot a flow gets depends on the order of events alone, never on a key.
#[derive(Debug)]
pub(crate) struct Shelf<A> {
    entries: Vec<Entry<A>>,
    /// Vacated slots, the last one first.
    free: Vec<u32>,
    limit: u32,
    wheel: Wheel,
    unassured: Queue,
}

pub(super) struct ByTimer<'a, A>(pub(super) &'a mut [Entry<A>]);
pub(super) struct ByAge<'a, A>(pub(super) &'a mut [Entry<A>]);

impl<A> Chain for ByTimer<'_, A> {
    fn links(&mut self, slot: u32) -> Option<&mut Links> {
        self.0.get_mut(slot as usize).map(|entry| &mut entry.core.timer)
    }
}

impl<A> Chain for ByAge<'_, A> {
    fn links(&mut self, slot: u32) -> Option<&mut Links> {
        self.0.get_mut(slot as usize).map(|entry| &mut entry.core.unassured)
    }
}

impl<A: Addr> Shelf<A> {
    /// Room for `limit` flows, with a wheel that starts at `slot`. Memory is reserved at once and touched as it is used.
    pub(crate) fn new(limit: u32, slot: u64) -> Self {
        Self {
            entries: Vec::with_capacity(limit as usize),
            free: Vec::new(),
            limit,
            wheel: Wheel::starting_at(slot),
            unassured: Queue::new(),
        }
    }

    /// A shelf whose slots are all taken already, and filed in `wheel` and `unassured`.
    pub(crate) fn filled(mut entries: Vec<Entry<A>>, limit: u32, wheel: Wheel, unassured: Queue) -> Self {
        entries.reserve_exact((limit as usize).saturating_sub(entries.len()));
        Self { entries, free: Vec::new(), limit, wheel, unassured }
    }

    /// All slots, vacant ones included.
    pub(crate) fn slab(&self) -> &[Entry<A>] {
        &self.entries
    }

    /// The memory of all slots.
    pub(crate) fn into_slab(self) -> Vec<Entry<A>> {
        self.entries
    }

    /// Has the system give the memory of as many flows as that, of those there is room for.
    pub(crate) fn touch(&mut self, flows: u32) {
        let (used, until) = (self.entries.len(), flows.min(self.limit) as usize);
        if until > used {
            self.entries.resize(until, Entry::vacant());
            black_box(&mut self.entries).truncate(used);
        }
    }

    #[inline]
    pub(crate) fn entry(&self, slot: u32) -> Option<&Entry<A>> {
        self.entries.get(slot as usize).filter(|entry| entry.core.serial() != 0)
    }

    #[inline]
    pub(crate) fn core_mut(&mut self, slot: u32) -> Option<&mut Core> {
        let entry = self.entries.get_mut(slot as usize)?;
        (entry.core.serial() != 0).then_some(&mut entry.core)
    }

    /// Has an entry fetched: what a look-up reads of it, or the `whole` of it.
    #[inline]
    pub(crate) fn fetch(&self, slot: u32, whole: bool) {
        if let Some(entry) = self.entries.get(slot as usize) {
            entry.fetch(whole);
        }
    }

    /// Has a vacated entry fetched that is about to be used again, the next or one further on.
    pub(crate) fn fetch_vacant(&self, ahead: usize) {
        let slot =
            self.free.len().checked_sub(1).and_then(|last| last.checked_sub(ahead)).and_then(|at| self.free.get(at));
        if let Some(slot) = slot {
            self.fetch(*slot, true);
        }
    }

    /// Slots that have ever been used.
    pub(crate) fn slots(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(self.limit)
    }

    /// Occupied slots, ascending.
    pub(crate) fn occupied(&self) -> impl Iterator<Item = (u32, &Entry<A>)> {
        self.entries.iter().enumerate().filter(|(_, e)| e.core.serial() != 0).map(|(slot, e)| (slot as u32, e))
    }

    /// Stores a flow. `None` if it is of the other family or there is no room.
    pub(crate) fn store(&mut self, flow: &FlowRecord, serial: u64, clock: Clock, now: Instant) -> Option<u32> {
        let mut core = Core::new(flow.orig.proto, flow.mark);
        core.set_serial(serial);
        core.set_status(flow.status);
        core.set_zone(flow.zone);
        core.set_counters(flow.counters);
        core.set_protocol(&flow.protocol, clock);
        core.deadline = clock.after(now, flow.remaining);
        self.adopt(Entry { orig: Ends::of(&flow.orig)?, reply: Ends::of(&flow.reply)?, core }, clock, now)
    }

    /// Takes over a flow as it is, as the newest. `None` if there is no room.
    pub(crate) fn adopt(&mut self, mut entry: Entry<A>, clock: Clock, now: Instant) -> Option<u32> {
        (entry.core.timer, entry.core.unassured) = (Links::default(), Links::default());
        let assured = entry.core.status().contains(Status::ASSURED);
        let slot = self.place(entry)?;
        self.arm(slot, clock, now);
        if !assured {
            self.unassured.push(&mut ByAge(&mut self.entries), slot);
        }
        Some(slot)
    }

    /// Vacates a slot.
    pub(crate) fn vacate(&mut self, slot: u32) {
        self.wheel.disarm(&mut ByTimer(&mut self.entries), slot);
        self.unassured.remove(&mut ByAge(&mut self.entries), slot);
        if let Some(core) = self.core_mut(slot) {
            core.set_serial(0);
            self.free.push(slot);
        }
    }

    /// Early drop spares the flow from now on.
    pub(crate) fn assure(&mut self, slot: u32) {
        self.unassured.remove(&mut ByAge(&mut self.entries), slot);
    }

    /// The unassured flow that has been in the table for longest.
    pub(crate) fn oldest_unassured(&self) -> Option<u32> {
        self.unassured.oldest()
    }

    /// Tells the wheel of a deadline that is nearer than the last.
    pub(crate) fn rearm(&mut self, slot: u32, clock: Clock, now: Instant) {
        self.wheel.disarm(&mut ByTimer(&mut self.entries), slot);
        self.arm(slot, clock, now);
    }

    /// Fires the wheel: hands out slots whose deadline has come, at most `budget` flows looked at.
    pub(crate) fn fire(&mut self, clock: Clock, now: Instant, budget: &mut usize, mut expired: impl FnMut(u32)) {
        while let Some(due) = self.wheel.due(clock.ticks(now)) {
            loop {
                if *budget == 0 {
                    return;
                }
                let Some(slot) = self.wheel.take(&mut ByTimer(&mut self.entries), due) else { break };
                *budget -= 1;
                match self.entry(slot) {
                    // Not by the deadline alone: that would depend on when the wheel was told of it.
                    Some(entry) if has_passed(unwrapped(entry.core.deadline, clock, now), clock.ticks(now)) => {
                        expired(slot);
                    }
                    Some(_) => self.arm(slot, clock, now),
                    None => {}
                }
            }
        }
    }

    /// The slot of the wheel that fires next.
    pub(crate) const fn next_slot(&self) -> u64 {
        self.wheel.next_slot()
    }

    /// The tick, unwrapped, at which [`Shelf::fire`] has something to do.
    pub(crate) fn next_tick(&self) -> Option<u64> {
        self.wheel.next_tick()
    }

    fn place(&mut self, entry: Entry<A>) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            *self.entries.get_mut(slot as usize)? = entry;
            return Some(slot);
        }
        let slot = u32::try_from(self.entries.len()).ok().filter(|slot| *slot < self.limit)?;
        self.entries.push(entry);
        Some(slot)
    }

    fn arm(&mut self, slot: u32, clock: Clock, now: Instant) {
        if let Some(entry) = self.entry(slot) {
            let deadline = unwrapped(entry.core.deadline, clock, now);
            self.wheel.arm(&mut ByTimer(&mut self.entries), slot, deadline);
        }
    }
}

/// A deadline in unwrapped ticks.
fn unwrapped(deadline: Tick, clock: Clock, now: Instant) -> u64 {
    clock.ticks(now).saturating_add_signed(i64::from(deadline.ahead_of(clock.tick(now))))
}
