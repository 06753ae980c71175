//! The flow table: slabs of entries, and an index filed under a secret key.
//!
//! Keys choose places in the index and nothing else. Slots, serial numbers, timers and the order of a save depend on
//! what happened, so that an image tells nothing of a key (the tests `placement_keys_*` hold it, byte for byte).

mod addr;
pub(crate) mod clock;
mod columns;
mod entry;
mod fetch;
mod flows;
mod hash;
mod index;
mod links;
mod rehash;
mod shelf;
#[cfg(test)]
mod tests;
mod wheel;

use hibernet_snapshot::{Entropy, Instant, Invalid, Redraw, Snapshot};

pub use self::flows::{
    FlowsSaved, Handle, Packing, Progress, RestoreOptions, RestoreRoom, RestoreStep, SaveBuffer, SavePoint,
};
pub(crate) use self::flows::{Frozen, FrozenChanges, Merged};

pub(crate) use self::addr::{Addr, Packed, hash_tuple};
pub(crate) use self::entry::Entry;
use self::flows::restore;
pub(crate) use self::flows::{DueOrder, Flows, Frame, Moved, Part, Slot, check_capacity, freeze};
pub(crate) use self::hash::{HashKey, Keyed, siphash};
use self::index::{Index, Overrun};
use crate::record::FlowRecord;
use crate::status::Status;
use crate::tuple::{Direction, Tuple, Zone};

/// Every flow, and where to find it.
///
/// The hash key is `redrawn` and the index `rebuilt` from it: a key without its rehash, under which every saved flow is
/// unreachable, cannot be had.
#[derive(Debug, Snapshot)]
pub(crate) struct Table {
    #[snapshot(saved, nested)]
    flows: Flows,
    #[snapshot(redrawn)]
    key: HashKey,
    /// Where the next key comes from, should the index overrun.
    #[snapshot(redrawn)]
    keys: Entropy,
    #[snapshot(rebuilt = file_every_tuple)]
    index: Index,
}

impl TableSaved {
    /// A table without flows.
    pub(crate) const fn empty(capacity: u32) -> Self {
        Self { flows: FlowsSaved::empty(capacity) }
    }

    pub(crate) const fn of(flows: FlowsSaved) -> Self {
        Self { flows }
    }

    pub(crate) const fn flows(&self) -> &FlowsSaved {
        &self.flows
    }

    pub(crate) fn into_flows(self) -> FlowsSaved {
        self.flows
    }

    /// Adds the body of the next block of flows.
    pub(crate) fn attach(&mut self, block: Vec<u8>) {
        self.flows.attach(block);
    }

    /// How many flows there are, blocks included.
    pub(crate) const fn count(&self) -> u32 {
        self.flows.count()
    }
}

/// Why a flow did not enter the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotInserted {
    /// One of its tuples is taken.
    Taken,
    /// The table holds as many flows as it was sized for.
    Full,
}

/// A tuple and where it is filed, for as long as the key is the same.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    hash: u64,
    turn: u32,
    tuple: Packed,
}

impl Place {
    /// Whether it is the place of `tuple`.
    pub(crate) fn is_of(&self, tuple: &Tuple) -> bool {
        self.tuple == Packed::of(tuple)
    }
}

impl core::fmt::Debug for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Place(..)")
    }
}

/// Validated flows that cannot be looked up yet.
#[derive(Debug)]
pub(crate) struct Unfiled(Flows);

impl Unfiled {
    /// Checks every saved flow by itself. What two flows have in common shows when they are filed.
    pub(crate) fn check(saved: TableSaved, now: Instant, options: &mut RestoreOptions<'_>) -> Result<Self, Invalid> {
        let TableSaved { flows } = saved;
        Ok(Self(restore(flows, now, options)?))
    }

    pub(crate) const fn flows(&self) -> &Flows {
        &self.0
    }

    pub(crate) const fn flows_mut(&mut self) -> &mut Flows {
        &mut self.0
    }

    /// The flows, for tables that will share them.
    pub(crate) fn into_flows(self) -> Flows {
        self.0
    }

    /// Takes a flow out that shall not go on.
    pub(crate) fn drop_flow(&mut self, slot: Slot) {
        self.0.vacate(slot);
    }

    /// Draws the key and files every tuple under it, in one step.
    pub(crate) fn rehash(self, entropy: &mut Entropy, options: &mut RestoreOptions<'_>) -> Result<Table, Invalid> {
        let (flows, key, keys) = (self.0, HashKey::redraw(entropy), Entropy::redraw(entropy));
        let index = rehash::file_every_tuple(&flows, &key, options)?;
        Ok(Table { flows, key, keys, index })
    }
}

impl Table {
    pub(crate) fn new(capacity: u32, entropy: &mut Entropy, now: Instant) -> Self {
        let (key, keys) = (HashKey::redraw(entropy), Entropy::redraw(entropy));
        Self { flows: Flows::new(capacity, now), key, keys, index: Index::for_flows(capacity) }
    }

    pub(crate) const fn flows(&self) -> &Flows {
        &self.flows
    }

    pub(crate) const fn flows_mut(&mut self) -> &mut Flows {
        &mut self.flows
    }

    /// The flow that a packet with `tuple` in `zone` belongs to, expired or not.
    pub(crate) fn find(&self, tuple: &Tuple, zone: Zone) -> Option<(Slot, Direction)> {
        self.find_at(&self.place(tuple), zone)
    }

    /// The same for who knows where the tuple is filed.
    #[inline]
    pub(crate) fn find_at(&self, place: &Place, zone: Zone) -> Option<(Slot, Direction)> {
        find_in(&self.index, &self.flows, place.hash, &place.tuple, zone)
    }

    /// Where a tuple is filed.
    #[inline]
    pub(crate) fn place(&self, tuple: &Tuple) -> Place {
        let tuple = Packed::of(tuple);
        Place { hash: tuple.hash(&self.key), turn: self.index.turn(), tuple }
    }

    /// Whether the key is still the one under which a place was found.
    pub(crate) const fn is_current(&self, place: &Place) -> bool {
        place.turn == self.index.turn()
    }

    /// Has the system give the memory of the index, and that of as many flows of each family.
    pub(crate) fn touch(&mut self, v4: u32, v6: u32) {
        self.index.touch();
        self.flows.touch(v4, v6);
    }

    /// Has the line of the index fetched that a place is in: the first stage of a burst.
    pub(crate) fn fetch_line(&self, place: &Place) {
        self.index.fetch(place.hash);
    }

    /// Has the flows fetched to which that line leads: the second stage. `whole`: all of their entries, not just what says
    /// whose they are.
    pub(crate) fn fetch_flows(&self, place: &Place, whole: bool) {
        for slot in self.index.candidates(place.hash) {
            self.flows.fetch(Slot(slot), whole);
        }
    }

    /// Whether any flow has `tuple` as one of its directions.
    pub(crate) fn is_taken(&self, tuple: &Tuple, zone: Zone) -> bool {
        self.find(tuple, zone).is_some()
    }

    /// Stores a flow and files both its tuples.
    pub(crate) fn insert(&mut self, flow: &FlowRecord) -> Result<Slot, NotInserted> {
        self.insert_at(&self.place(&flow.orig), flow)
    }

    /// The same for who knows where the flow's original tuple is filed.
    pub(crate) fn insert_at(&mut self, place: &Place, flow: &FlowRecord) -> Result<Slot, NotInserted> {
        let (first, reply) = (place.hash, Packed::of(&flow.reply));
        let second = match flow.status.intersects(Status::NAT) {
            true => Some(reply.hash(&self.key)).filter(|second| *second != first),
            false => None,
        };
        if self.is_claimed(place, second, &reply, flow.zone) {
            return Err(NotInserted::Taken);
        }
        let slot = self.flows.store(flow).ok_or(NotInserted::Full)?;
        if file_under(&mut self.index, [Some(first), second], slot).is_err() {
            self.reseed();
        }
        Ok(slot)
    }

    /// Whether a flow has one of two tuples. One look suffices for tuples that are filed in one place.
    #[inline]
    fn is_claimed(&self, place: &Place, second: Option<u64>, reply: &Packed, zone: Zone) -> bool {
        let Self { flows, index, .. } = self;
        let has = |slot, tuple| flows.direction_of(Slot(slot), tuple, zone).is_some();
        match second {
            None => index.find(place.hash, |slot| has(slot, &place.tuple) || has(slot, reply)).is_some(),
            Some(second) => {
                index.find(place.hash, |slot| has(slot, &place.tuple)).is_some()
                    || index.find(second, |slot| has(slot, reply)).is_some()
            }
        }
    }

    /// Has the memory fetched that the next flow of the family of `orig` will be written to.
    pub(crate) fn fetch_vacant(&self, orig: &Tuple, ahead: usize) {
        self.flows.fetch_vacant(orig.is_v6(), ahead);
    }

    /// A table that holds a part of what several tables share; empty as yet.
    pub(crate) fn part(frame: Frame, capacity: u32, part: Part, entropy: &mut Entropy) -> Self {
        let (key, keys) = (HashKey::redraw(entropy), Entropy::redraw(entropy));
        Self { flows: Flows::on(frame, capacity, part), key, keys, index: Index::for_flows(capacity) }
    }

    /// Empties the table, which gets another part of the flows, under another key.
    pub(crate) fn restart(&mut self, frame: Frame, capacity: u32, part: Part) {
        self.key = HashKey::redraw(&mut self.keys);
        self.index.restart(capacity);
        self.flows = Flows::on(frame, capacity, part);
    }

    /// Takes over a flow that was in another table. `None` if there is no room.
    pub(crate) fn adopt(&mut self, moved: &Moved) -> Option<Slot> {
        let slot = self.flows.adopt(moved)?;
        if file(&mut self.index, &self.key, &self.flows, slot).is_err() {
            self.reseed();
        }
        Some(slot)
    }

    /// Copies the slabs of tables that share `capacity`.
    pub(crate) fn freeze(tables: &[&Self], capacity: u32, buffer: SaveBuffer) -> Frozen {
        let flows: Vec<_> = tables.iter().map(|table| &table.flows).collect();
        freeze(&flows, capacity, buffer)
    }

    /// The memory of a table that is not needed any more, for the next restore.
    pub(crate) fn into_room(self) -> RestoreRoom {
        let Self { flows, key: _, keys: _, index } = self;
        RestoreRoom::of(flows, index)
    }

    /// What tables hold that share `capacity`, as one table would have saved it.
    pub(crate) fn save_parts(tables: &[&Self], capacity: u32) -> TableSaved {
        let flows: Vec<_> = tables.iter().map(|table| &table.flows).collect();
        TableSaved { flows: FlowsSaved::of(&flows, capacity) }
    }

    /// Forgets a flow.
    pub(crate) fn remove(&mut self, slot: Slot) {
        for hash in hashes(&self.key, &self.flows, slot).into_iter().flatten() {
            self.index.remove(hash, slot.0);
        }
        self.flows.vacate(slot);
    }

    /// Draws another key and files everything anew. Needed when a tuple found no place within the index's bound, which
    /// under a secret key is chance; several times in a row it is not, and the bound gives way.
    pub(crate) fn reseed(&mut self) {
        for attempt in 1_u32.. {
            self.key = HashKey::redraw(&mut self.keys);
            self.index.clear();
            if self.file_all().is_ok() {
                return;
            }
            if attempt.is_multiple_of(4) {
                self.index.widen();
            }
        }
    }

    /// Files all flows into an empty index, in bursts: lines of the index are asked for before they are written to.
    fn file_all(&mut self) -> Result<(), Overrun> {
        let Self { flows, key, index, .. } = self;
        let mut slots = flows.occupied().map(|(_, slot)| slot);
        loop {
            let mut burst = [None; FILED_TOGETHER];
            for (place, slot) in burst.iter_mut().zip(slots.by_ref()) {
                let hashes = hashes(key, flows, slot);
                hashes.into_iter().flatten().for_each(|hash| index.fetch(hash));
                *place = Some((hashes, slot));
            }
            if let [None, ..] = burst {
                return Ok(());
            }
            for (hashes, slot) in burst.into_iter().flatten() {
                file_under(index, hashes, slot)?;
            }
        }
    }

    /// Calls `each` with the hash of every tuple, for the canary scan.
    pub(crate) fn each_hash(&self, mut each: impl FnMut(u64)) {
        for slot in self.flows.in_creation_order() {
            hashes(&self.key, &self.flows, slot).into_iter().flatten().for_each(&mut each);
        }
    }

    /// The key, for the canary scan and its fingerprint alone.
    pub(crate) const fn key(&self) -> &HashKey {
        &self.key
    }

    /// The generator of later keys, for the canary scan and its fingerprint alone.
    pub(crate) const fn keys(&self) -> &Entropy {
        &self.keys
    }
}

/// Flows whose lines of the index are asked for together.
const FILED_TOGETHER: usize = 32;

/// Rebuilds the index from the flows and the fresh key. A tuple that two flows claim is refused.
fn file_every_tuple(parts: &TableParts<'_>) -> Result<Index, Invalid> {
    let TableParts { flows, key, keys: _ } = *parts;
    rehash::file_every_tuple(flows, key, &mut RestoreOptions::default())
}

/// What refuses a restore in which flow `number` claims a tuple that an earlier one has.
pub(crate) fn claimed_twice(number: usize, tuple: &Tuple) -> Invalid {
    let found = format!("{tuple:?}, which an earlier flow has too");
    Invalid::new("", found, "each tuple once").at(number).within("flows")
}

#[inline]
fn find_in(index: &Index, flows: &Flows, hash: u64, tuple: &Packed, zone: Zone) -> Option<(Slot, Direction)> {
    let mut direction = None;
    let slot = index.find(hash, |slot| {
        let slot = Slot(slot);
        direction = flows.direction_of(slot, tuple, zone);
        direction.is_some()
    })?;
    Some((Slot(slot), direction?))
}

/// Files a flow under its hashes: one where both directions share it, two where they differ.
fn file(index: &mut Index, key: &HashKey, flows: &Flows, slot: Slot) -> Result<(), Overrun> {
    file_under(index, hashes(key, flows, slot), slot)
}

fn file_under(index: &mut Index, [first, second]: [Option<u64>; 2], slot: Slot) -> Result<(), Overrun> {
    if let Some(hash) = first {
        index.insert(hash, slot.0)?;
    }
    if let Some(hash) = second
        && let Err(overrun) = index.insert(hash, slot.0)
    {
        if let Some(hash) = first {
            index.remove(hash, slot.0);
        }
        return Err(overrun);
    }
    Ok(())
}

/// The one or two hashes a flow is filed under.
///
/// The directions of a flow that is not translated have the same endpoints, which are sorted before they are hashed.
fn hashes(key: &HashKey, flows: &Flows, slot: Slot) -> [Option<u64>; 2] {
    let of = |direction| flows.tuple(slot, direction).map(|tuple| hash_tuple(key, &tuple));
    let orig = of(Direction::Original);
    if !flows.core(slot).is_some_and(|core| core.status().intersects(Status::NAT)) {
        return [orig, None];
    }
    let reply = of(Direction::Reply);
    [orig, reply.filter(|_| reply != orig)]
}
