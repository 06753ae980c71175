//! A save in two steps: a copy of the slabs, for which packets wait, and the packing of that copy, for which they do not.

use std::sync::Arc;

use hibernet_snapshot::Invalid;

use super::changes::SavePoint;
use super::packing::{Packing, in_order};
use super::saved::{BLOCK, BLOCK_HEAD, BlockHead, COLUMNS, FlowsSaved, PLAIN};
use super::{Flows, Shelf};
use crate::pack;
use crate::table::addr::Addr;
use crate::table::clock::Tick;
use crate::table::columns;
use crate::table::entry::Entry;

/// Memory for the copy of a table's slabs, to be used for one save after another.
///
/// A copy into memory that was never touched takes several times as long as the copy itself, so a save that shall be short
/// brings a buffer that is [`SaveBuffer::prefaulted`] or was used before: see [`SaveBuffer::bytes`] for its size.
#[derive(Debug, Default)]
pub struct SaveBuffer {
    v4: Vec<Entry<[u8; 4]>>,
    v6: Vec<Entry<[u8; 16]>>,
    /// Live entries in the order of creation.
    order: Vec<u64>,
}

impl SaveBuffer {
    /// A buffer for as many flows of IPv4 and of IPv6, every page of it touched.
    pub fn prefaulted(v4: u32, v6: u32) -> Self {
        let mut order = vec![u64::MAX; v4.saturating_add(v6) as usize];
        order.clear();
        Self { v4: touched(v4), v6: touched(v6), order }
    }

    /// How much memory it takes: 128 bytes for each IPv4 slot, 192 for each of IPv6, 8 for each flow.
    pub const fn bytes(&self) -> usize {
        self.v4.capacity() * size_of::<Entry<[u8; 4]>>()
            + self.v6.capacity() * size_of::<Entry<[u8; 16]>>()
            + self.order.capacity() * size_of::<u64>()
    }
}

/// Entries of which each was written to.
pub(super) fn touched<A: Addr>(slots: u32) -> Vec<Entry<A>> {
    let mut entries = vec![Entry::vacant(); slots as usize];
    entries.clear();
    entries
}

/// The flows of a table at one moment, taken out of it: packing them disturbs nobody.
#[derive(Debug)]
pub(crate) struct Frozen {
    buffer: SaveBuffer,
    capacity: u32,
    phase: u32,
    now: Tick,
    /// Above the serial numbers of all flows.
    serials: u64,
    ticks: u64,
    /// Of a save that deltas will refer to.
    turn: u64,
    sorted: bool,
}

/// Copies the slabs of tables that share `capacity` and were told the same time. This is all that packets wait for.
pub(crate) fn freeze(tables: &[&Flows], capacity: u32, mut buffer: SaveBuffer) -> Frozen {
    buffer.v4.clear();
    buffer.v6.clear();
    buffer.order.clear();
    for flows in tables {
        flows.v4.copy_to(&mut buffer.v4);
        flows.v6.copy_to(&mut buffer.v6);
    }
    let (phase, now) = match tables.first() {
        Some(first) => (first.phase() as u32, first.clock.tick(first.now)),
        None => (0, Tick::default()),
    };
    let serials = tables.iter().map(|flows| flows.next_serial).max().unwrap_or(0);
    let ticks = tables.first().map_or(0, |first| first.clock.ticks(first.now));
    Frozen { buffer, capacity, phase, now, serials, ticks, turn: 0, sorted: false }
}

impl<A: Addr> Shelf<A> {
    fn copy_to(&self, copy: &mut Vec<Entry<A>>) {
        copy.extend_from_slice(self.slab());
    }
}

impl Frozen {
    /// What of it stands in the section of settings: everything but the records.
    pub(crate) fn without_records(&mut self, packing: &Packing) -> FlowsSaved {
        self.sort(packing.threads());
        let count = u32::try_from(self.buffer.order.len()).unwrap_or(u32::MAX);
        FlowsSaved { capacity: self.capacity, phase: self.phase, count, records: Vec::new(), blocks: Vec::new() }
    }

    /// The same with the records of the first block, which plain images keep there.
    pub(crate) fn with_first_records(&mut self, packing: &Packing) -> FlowsSaved {
        let mut saved = self.without_records(packing);
        if !packing.compresses() {
            self.records(0..BLOCK, &mut saved.records);
        }
        saved
    }

    /// Everything in one run of records.
    pub(super) fn in_one(mut self) -> FlowsSaved {
        let mut saved = self.without_records(&Packing::default());
        saved.records.reserve_exact(self.buffer.order.len().saturating_mul(112));
        self.records(0..self.buffer.order.len(), &mut saved.records);
        saved
    }

    /// How many blocks stand behind the section of settings.
    pub(crate) fn blocks(&self, packing: &Packing) -> u32 {
        let blocks = self.buffer.order.len().div_ceil(BLOCK);
        u32::try_from(blocks.saturating_sub(Self::first(packing))).unwrap_or(u32::MAX)
    }

    /// Packs the blocks behind the section of settings and hands them out in their order. `look` is called where a block
    /// was packed, on several threads at once; what it found goes along.
    pub(crate) fn pack<M: Send, E>(
        &self,
        packing: &Packing,
        look: impl Fn(&[u8]) -> M + Sync,
        sink: impl FnMut(&[u8], M) -> Result<(), E>,
    ) -> Result<(), E> {
        let (first, blocks) = (Self::first(packing), self.blocks(packing) as usize);
        let pack = |number: usize, out: &mut Vec<u8>| self.block(first + number, packing, out);
        in_order(blocks, packing.threads(), pack, look, sink)
    }

    /// Deltas will refer to it.
    pub(crate) const fn of_turn(mut self, turn: u64) -> Self {
        self.turn = turn;
        self
    }

    /// The save that deltas can refer to, once it was sorted.
    pub(crate) fn point(&self) -> SavePoint {
        let SaveBuffer { v4, v6, order } = &self.buffer;
        let serial = |place: &u64| match located(*place) {
            (false, slot) => v4.get(slot).map_or(0, |entry| entry.core.serial()),
            (true, slot) => v6.get(slot).map_or(0, |entry| entry.core.serial()),
        };
        let serials = Arc::new(order.iter().map(serial).collect());
        SavePoint { serials, next_serial: self.serials, ticks: self.ticks, turn: self.turn }
    }

    /// The memory, for the next save.
    pub(crate) fn into_buffer(self) -> SaveBuffer {
        self.buffer
    }

    /// How many flows are in it, once it was sorted.
    pub(crate) const fn count(&self) -> usize {
        self.buffer.order.len()
    }

    const fn first(packing: &Packing) -> usize {
        if packing.compresses() { 0 } else { 1 }
    }

    fn block(&self, number: usize, packing: &Packing, out: &mut Vec<u8>) {
        let flows = number * BLOCK..number.saturating_add(1) * BLOCK;
        out.clear();
        out.reserve(BLOCK_HEAD + BLOCK * pack::LONGEST);
        out.extend_from_slice(&[0; BLOCK_HEAD]);
        let (flows, v6) = self.records(flows, out);
        let plain = u32::try_from(out.len().saturating_sub(BLOCK_HEAD)).unwrap_or(u32::MAX);
        let mut encoding = PLAIN;
        if packing.compresses() {
            let columns = columns::compress(out.get(BLOCK_HEAD..).unwrap_or_default());
            out.truncate(BLOCK_HEAD);
            out.extend_from_slice(&columns);
            encoding = COLUMNS;
        }
        if let Some(head) = out.first_chunk_mut() {
            *head = BlockHead { flows, v6, encoding, plain }.bytes();
        }
    }

    /// Appends the records of flows by their number; says how many there were, and how many of IPv6.
    fn records(&self, flows: core::ops::Range<usize>, out: &mut Vec<u8>) -> (u32, u32) {
        let SaveBuffer { v4, v6, order } = &self.buffer;
        let order = order.get(flows.start..flows.end.min(order.len())).unwrap_or_default();
        let mut of_v6 = 0;
        for (at, place) in order.iter().enumerate() {
            if let Some(next) = order.get(at.saturating_add(AHEAD)) {
                match located(*next) {
                    (false, slot) => v4.get(slot).into_iter().for_each(|entry| entry.fetch(true)),
                    (true, slot) => v6.get(slot).into_iter().for_each(|entry| entry.fetch(true)),
                }
            }
            match located(*place) {
                (false, slot) => {
                    if let Some(entry) = v4.get(slot) {
                        entry.write(out, self.now);
                    }
                }
                (true, slot) => {
                    if let Some(entry) = v6.get(slot) {
                        entry.write(out, self.now);
                        of_v6 += 1;
                    }
                }
            }
        }
        (order.len() as u32, of_v6)
    }

    /// Puts live entries into the order of their creation.
    fn sort(&mut self, threads: usize) {
        if self.sorted {
            return;
        }
        self.sorted = true;
        let SaveBuffer { v4, v6, order } = &mut self.buffer;
        let now = self.now;
        let fits = |span: u64| span >> (u64::BITS - PLACE_BITS) == 0;
        let lowest = if fits(self.serials) { 0 } else { oldest(v4).min(oldest(v6)) };
        if !fits(self.serials.saturating_sub(lowest)) {
            // More flows have come and gone than the bits of a word can tell apart: the long way.
            let mut all: Vec<(u64, u64)> = Vec::new();
            live(v4, now, |serial, slot| all.push((serial, place(false, slot))));
            live(v6, now, |serial, slot| all.push((serial, place(true, slot))));
            all.sort_unstable();
            order.extend(all.into_iter().map(|(_, place)| place));
            return;
        }
        let key = |serial: u64, place: u64| serial.saturating_sub(lowest) << PLACE_BITS | place;
        if threads > 1 && v4.len() + v6.len() > BLOCK {
            let half = v4.len() / 2;
            let (older, newer) = v4.split_at_checked(half).unwrap_or_default();
            std::thread::scope(|scope| {
                let others = scope.spawn(|| {
                    let mut keys = Vec::with_capacity(newer.len() + v6.len());
                    live(newer, now, |serial, slot| keys.push(key(serial, place(false, slot + half))));
                    live(v6, now, |serial, slot| keys.push(key(serial, place(true, slot))));
                    keys.sort();
                    keys
                });
                live(older, now, |serial, slot| order.push(key(serial, place(false, slot))));
                order.sort();
                if let Ok(others) = others.join() {
                    order.extend_from_slice(&others);
                }
            });
        } else {
            live(v4, now, |serial, slot| order.push(key(serial, place(false, slot))));
            live(v6, now, |serial, slot| order.push(key(serial, place(true, slot))));
        }
        order.sort();
    }
}

/// Calls `each` with serial number and slot of every flow whose time has not come.
fn live<A: Addr>(entries: &[Entry<A>], now: Tick, mut each: impl FnMut(u64, usize)) {
    for (slot, entry) in entries.iter().enumerate() {
        let serial = entry.core.serial();
        if serial != 0 && !entry.core.deadline.reached(now) {
            each(serial, slot);
        }
    }
}

fn oldest<A: Addr>(entries: &[Entry<A>]) -> u64 {
    entries.iter().map(|entry| entry.core.serial()).filter(|serial| *serial != 0).min().unwrap_or(u64::MAX)
}

/// Where an entry is: family and slot.
const fn place(v6: bool, slot: usize) -> u64 {
    (slot as u64) << 1 | v6 as u64
}

const fn located(place: u64) -> (bool, usize) {
    (place & 1 != 0, ((place & PLACE_MASK) >> 1) as usize)
}

/// Decompresses the records of a block.
pub(super) fn plain_records(head: BlockHead, stored: &[u8]) -> Result<Vec<u8>, Invalid> {
    columns::decompress(stored, head.flows as usize, head.plain as usize)
}

/// Bits that say where an entry is; 64 shards of 16 million slots need no more.
const PLACE_BITS: u32 = 32;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
/// How many records ahead an entry is fetched.
const AHEAD: usize = 8;
