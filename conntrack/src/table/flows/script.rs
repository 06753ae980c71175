//! A delta: how the flows of one save become those of the next.
//!
//! A script goes along the flows of the save before it, in their order, and says of some that they are gone, of others what
//! they are now, and where new ones stand. Flows it says nothing of are as they were, but for the time that has passed.

use std::sync::Arc;

use hibernet_snapshot::Invalid;

use super::Flows;
use super::changes::SavePoint;
use super::saved::FlowsSaved;
use crate::pack::{self, Reader};
use crate::table::addr::Addr;
use crate::table::clock::Tick;
use crate::table::entry::Entry;
use crate::tuple::proto;

/// What has changed of a table's flows, taken out of it.
#[derive(Debug)]
pub(crate) struct FrozenChanges {
    v4: Vec<Entry<[u8; 4]>>,
    v6: Vec<Entry<[u8; 16]>>,
    gone: Vec<u64>,
    base: SavePoint,
    capacity: u32,
    phase: u32,
    now: Tick,
    ticks: u64,
    next_serial: u64,
    turn: u64,
}

impl Flows {
    /// Copies what has changed since the last save that was written; `None` if there was none. This is all that packets wait
    /// for.
    pub(crate) fn freeze_changes(&mut self) -> Option<FrozenChanges> {
        self.turn();
        let (clock, now) = (self.clock, self.now);
        let (base, slots, gone) = self.changes.as_ref()?.since()?;
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let (slab4, slab6) = (self.v4.slab(), self.v6.slab());
        let slots: Vec<_> = slots.collect();
        for (at, slot) in slots.iter().enumerate() {
            if let Some(next) = slots.get(at.saturating_add(AHEAD)) {
                self.fetch(*next, true);
            }
            if slot.is_v6() {
                v6.extend(slab6.get(slot.number() as usize).filter(|entry| entry.core.serial() != 0));
            } else {
                v4.extend(slab4.get(slot.number() as usize).filter(|entry| entry.core.serial() != 0));
            }
        }
        Some(FrozenChanges {
            v4,
            v6,
            gone: gone.to_vec(),
            base: base.clone(),
            capacity: self.capacity,
            phase: self.phase() as u32,
            now: clock.tick(now),
            ticks: clock.ticks(now),
            next_serial: self.next_serial,
            turn: self.turns(),
        })
    }
}

/// What becomes of one flow.
enum Change {
    Gone,
    Now(Vec<u8>),
}

impl FrozenChanges {
    /// How many flows have changed or come.
    pub(crate) const fn changed(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// The flows' settings, without any flow.
    pub(crate) fn settings(&self) -> FlowsSaved {
        FlowsSaved { phase: self.phase, ..FlowsSaved::empty(self.capacity) }
    }

    /// The script, and the save that it leads to.
    pub(crate) fn pack(&self) -> (Vec<u8>, SavePoint) {
        let Self { v4, v6, gone, base, capacity: _, phase: _, now, ticks, next_serial, turn } = self;
        let mut changes: Vec<(u64, Change)> = gone.iter().map(|serial| (*serial, Change::Gone)).collect();
        changed(v4, *now, &mut changes);
        changed(v6, *now, &mut changes);
        changes.sort_by_key(|(serial, _)| *serial);
        let elapsed = u32::try_from(ticks.saturating_sub(base.ticks)).unwrap_or(u32::MAX);
        let mut out = Vec::new();
        for number in [base.serials.len() as u32, 0, elapsed, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let mut serials = Vec::with_capacity(base.serials.len());
        let (mut at, mut count) = (0, 0_u32);
        for (serial, change) in changes {
            let place = match base.serials.binary_search(&serial) {
                Ok(place) => (place, true),
                Err(place) => (place, false),
            };
            let (place, known) = place;
            let (operation, record): (u8, &[u8]) = match &change {
                Change::Gone if !known => continue,
                Change::Gone => (REMOVE, &[]),
                Change::Now(record) if known => (REPLACE, record),
                Change::Now(record) => (INSERT, record),
            };
            out.extend_from_slice(&(place.saturating_sub(at) as u32).to_le_bytes());
            out.push(operation);
            out.extend_from_slice(record);
            serials.extend_from_slice(base.serials.get(at..place).unwrap_or_default());
            if operation != REMOVE {
                serials.push(serial);
            }
            at = place.saturating_add(usize::from(known));
            count = count.saturating_add(1);
        }
        serials.extend_from_slice(base.serials.get(at..).unwrap_or_default());
        if let Some(to) = out.get_mut(4..8) {
            to.copy_from_slice(&count.to_le_bytes());
        }
        (out, SavePoint { serials: Arc::new(serials), next_serial: *next_serial, ticks: *ticks, turn: *turn })
    }
}

fn changed<A: Addr>(entries: &[Entry<A>], now: Tick, changes: &mut Vec<(u64, Change)>) {
    for entry in entries {
        let change = if entry.core.deadline.reached(now) {
            Change::Gone
        } else {
            let mut record = Vec::with_capacity(pack::LONGEST);
            entry.write(&mut record, now);
            Change::Now(record)
        };
        changes.push((entry.core.serial(), change));
    }
}

/// The flows of a save and of the deltas behind it. Flows whose time has come stay in their places until the end, since deltas
/// count them.
#[derive(Debug)]
pub(crate) struct Merged {
    /// Plain records, remaining times as signed numbers.
    records: Vec<u8>,
    count: u32,
}

impl Merged {
    /// The flows of a full save.
    pub(crate) fn begin(saved: &FlowsSaved) -> Result<Self, Invalid> {
        Ok(Self { records: saved.plain()?, count: saved.count() })
    }

    /// Goes on to the save that a script leads to.
    pub(crate) fn apply(&mut self, script: &[u8]) -> Result<(), Invalid> {
        let mut input = Reader::new(script);
        let (base, operations) = (input.u32("base")?, input.u32("operations")?);
        let (elapsed, reserved) = (input.u32("elapsed")?, input.u32("reserved")?);
        if base != self.count {
            let expected = format!("the {} of the save before it", self.count);
            return Err(Invalid::new("base", format!("a delta to {base} flows"), expected));
        }
        if reserved != 0 {
            return Err(Invalid::new("reserved", reserved.to_string(), "0"));
        }
        let mut out = Vec::with_capacity(self.records.len());
        let mut rest = self.records.as_slice();
        let (mut left, mut count) = (base, 0_u32);
        for number in 0..operations {
            let at = |invalid: Invalid| invalid.at(number as usize).within("operations");
            let keep = input.u32("keep").map_err(at)?;
            if keep > left {
                return Err(at(Invalid::new(
                    "keep",
                    keep.to_string(),
                    format!("at most the {left} flows that are left"),
                )));
            }
            keep_flows(&mut rest, keep, elapsed, &mut out).map_err(at)?;
            (left, count) = (left.saturating_sub(keep), count.saturating_add(keep));
            let [operation] = input.bytes::<1>("operation").map_err(at)?;
            if !matches!(operation, REMOVE | REPLACE | INSERT) {
                return Err(at(Invalid::new("operation", operation.to_string(), "0, 1 or 2")));
            }
            if operation != INSERT {
                left = left
                    .checked_sub(1)
                    .ok_or_else(|| at(Invalid::new("operation", "one flow more", "no more flows")))?;
                (_, rest) = pack::split(rest).map_err(at)?;
            }
            if operation != REMOVE {
                let (record, _) = pack::split(input.rest()).map_err(at)?;
                out.extend_from_slice(record);
                input.skip(record.len());
                count = count.saturating_add(1);
            }
        }
        keep_flows(&mut rest, left, elapsed, &mut out)?;
        if !input.rest().is_empty() {
            let found = format!("{} bytes behind the last operation", input.rest().len());
            return Err(Invalid::new("operations", found, "none"));
        }
        (self.records, self.count) = (out, count.saturating_add(left));
        Ok(())
    }

    /// The flows whose time has not come, with the settings of the last save.
    pub(crate) fn finish(self, settings: FlowsSaved) -> Result<FlowsSaved, Invalid> {
        let mut records = Vec::with_capacity(self.records.len());
        let mut count = 0_u32;
        let mut rest = self.records.as_slice();
        while !rest.is_empty() {
            let (record, behind) = pack::split(rest)?;
            rest = behind;
            if remaining(record) > 0 {
                records.extend_from_slice(record);
                count = count.saturating_add(1);
            }
        }
        Ok(FlowsSaved { count, records, ..settings })
    }
}

/// Takes over flows that have not changed, but for the time that has passed.
fn keep_flows(rest: &mut &[u8], flows: u32, elapsed: u32, out: &mut Vec<u8>) -> Result<(), Invalid> {
    for _ in 0..flows {
        let (record, behind) = pack::split(rest)?;
        *rest = behind;
        let from = out.len();
        out.extend_from_slice(record);
        let Some(record) = out.get_mut(from..) else { continue };
        let left = remaining(record).saturating_sub(i32::try_from(elapsed).unwrap_or(i32::MAX));
        if let Some(to) = record.get_mut(4..8) {
            to.copy_from_slice(&left.to_le_bytes());
        }
        if record.get(1) == Some(&proto::UDP)
            && let Some(ahead) = record.last_chunk_mut::<4>()
        {
            *ahead = u32::from_le_bytes(*ahead).saturating_sub(elapsed).to_le_bytes();
        }
    }
    Ok(())
}

fn remaining(record: &[u8]) -> i32 {
    record.get(4..).and_then(|bytes| bytes.first_chunk()).copied().map_or(0, i32::from_le_bytes)
}

const REMOVE: u8 = 0;
const REPLACE: u8 = 1;
const INSERT: u8 = 2;
/// How many entries ahead memory is asked for.
const AHEAD: usize = 16;
