//! The way back: blocks of records are read, checked and put into their slots on several threads.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use hibernet_snapshot::{Instant, Invalid};

use super::frozen::{plain_records, touched};
use super::moved::Ticks;
use super::saved::{BLOCK, BlockHead, COLUMNS, FlowsSaved, PLAIN};
use super::{Flows, Frame, Part, check_capacity};
use crate::pack::{self, KIND_V6, Reader};
use crate::status::Status;
use crate::table::addr::Addr;
use crate::table::clock::{TICK_NANOS, Tick};
use crate::table::entry::Entry;
use crate::table::index::Index;
use crate::table::links::{Chain, Links, Tail};
use crate::table::shelf::{ByAge, ByTimer, Shelf};
use crate::table::wheel::{Filed, Wheel, place_of};

/// How a restore is done. Its result does not depend on any of it.
#[derive(Default)]
pub struct RestoreOptions<'a> {
    threads: usize,
    room: RestoreRoom,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

impl fmt::Debug for RestoreOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoreOptions").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl<'a> RestoreOptions<'a> {
    /// On as many threads, the calling one included.
    #[must_use]
    pub fn on_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Into memory that is there already.
    #[must_use]
    pub fn into_room(mut self, room: RestoreRoom) -> Self {
        self.room = room;
        self
    }

    /// Calls `each` as work goes on, from any of the threads.
    #[must_use]
    pub fn with_progress(mut self, each: &'a (dyn Fn(Progress) + Sync)) -> Self {
        self.progress = Some(each);
        self
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.max(1)
    }

    pub(crate) fn take_index(&mut self, capacity: u32) -> Index {
        core::mem::take(&mut self.room.index).map_or_else(|| Index::for_flows(capacity), |index| index.again(capacity))
    }

    pub(crate) fn report(&self, step: RestoreStep, done: u32, of: u32) {
        if let Some(each) = self.progress {
            each(Progress { step, done, of });
        }
    }
}

/// How far a restore has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What is being done.
    pub step: RestoreStep,
    /// To how many flows it was done.
    pub done: u32,
    /// To how many it will be done.
    pub of: u32,
}

/// What a restore does to every flow, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum RestoreStep {
    /// Reads and checks its record.
    Check,
    /// Files its tuples under the fresh key.
    File,
}

/// Memory for the slabs and the index of a table that is to be restored, touched before there is haste.
#[derive(Debug, Default)]
pub struct RestoreRoom {
    v4: Vec<Entry<[u8; 4]>>,
    v6: Vec<Entry<[u8; 16]>>,
    index: Option<Index>,
}

impl RestoreRoom {
    /// Room for a table of that capacity, of which the slots of as many flows of each family are touched, and the index.
    pub fn prefaulted(capacity: u32, v4: u32, v6: u32) -> Self {
        Self { v4: touched(v4), v6: touched(v6), index: Some(Index::touched(capacity)) }
    }

    /// Takes the memory of a table over that is not needed any more.
    pub(crate) fn of(flows: Flows, index: Index) -> Self {
        let (v4, v6) = (flows.v4.into_slab(), flows.v6.into_slab());
        Self { v4, v6, index: Some(index) }
    }

    /// How much memory it is.
    pub fn bytes(&self) -> usize {
        self.v4.capacity() * size_of::<Entry<[u8; 4]>>()
            + self.v6.capacity() * size_of::<Entry<[u8; 16]>>()
            + self.index.as_ref().map_or(0, Index::bytes)
    }
}

/// Reads saved flows and checks each by itself.
pub(crate) fn restore(saved: FlowsSaved, now: Instant, options: &mut RestoreOptions<'_>) -> Result<Flows, Invalid> {
    let FlowsSaved { capacity, phase, count, records, blocks } = saved;
    check_capacity(capacity).map_err(|expected| Invalid::new("capacity", capacity.to_string(), expected))?;
    if u64::from(phase) >= TICK_NANOS * 16 {
        return Err(Invalid::new("phase", phase.to_string(), format!("below {}", TICK_NANOS * 16)));
    }
    if count > capacity {
        return Err(Invalid::new("count", count.to_string(), format!("at most the capacity, {capacity}")));
    }
    let frame = Frame::new(now, u64::from(phase));
    let runs = runs(records, blocks, count)?;
    let v6 = runs.iter().map(|run| run.v6).sum::<u32>();
    let v4 = count.saturating_sub(v6);
    let RestoreRoom { v4: slab4, v6: slab6, index } = core::mem::take(&mut options.room);
    options.room.index = index;
    let (mut slab4, mut slab6) = (sized(slab4, v4), sized(slab6, v6));
    let (filed4, filed6) = fill(runs, count, &mut slab4, &mut slab6, frame, options)?;
    let mut flows = Flows::on(frame, 1, Part::default());
    flows.v4 = filed4.shelf(slab4, capacity, frame);
    flows.v6 = filed6.shelf(slab6, capacity, frame);
    (flows.capacity, flows.len, flows.next_serial) = (capacity, count, u64::from(count).saturating_add(1));
    Ok(flows)
}

/// A run of flows that one thread reads at once.
struct Run {
    stored: Stored,
    flows: u32,
    v6: u32,
}

/// Where the records of a run are.
enum Stored {
    /// Between these places of the records in the section of settings.
    Here(std::sync::Arc<Vec<u8>>, core::ops::Range<usize>),
    /// In a section of their own, behind its head.
    Block(Vec<u8>, BlockHead),
}

/// Cuts the records of the section of settings into runs, and checks what the blocks say of themselves.
fn runs(records: Vec<u8>, blocks: Vec<Vec<u8>>, count: u32) -> Result<Vec<Run>, Invalid> {
    let mut runs = Vec::new();
    let behind = !blocks.is_empty();
    let records = std::sync::Arc::new(records);
    let (mut at, mut total) = (0, 0_u32);
    while at < records.len() && (total < count || behind) {
        let (from, mut flows, mut v6) = (at, 0, 0);
        while let Some(rest @ [kind, ..]) = records.get(at..)
            && flows < BLOCK as u32
            && total.saturating_add(flows) < count
        {
            let number = total.saturating_add(flows) as usize;
            let (record, _) = pack::split(rest).map_err(|invalid| invalid.at(number).within("flows"))?;
            v6 += u32::from(kind & KIND_V6);
            flows += 1;
            at += record.len();
        }
        if flows == 0 {
            break;
        }
        total = total.saturating_add(flows);
        runs.push(Run { stored: Stored::Here(std::sync::Arc::clone(&records), from..at), flows, v6 });
    }
    let left = records.len().saturating_sub(at);
    if left != 0 {
        return Err(Invalid::new("flows", format!("{left} bytes behind the last record"), "none"));
    }
    if behind && !(runs.is_empty() || total as usize == BLOCK) {
        let expected = format!("none or {BLOCK}: more follow in blocks");
        return Err(Invalid::new("flows", format!("{total} flows"), expected));
    }
    // Compressed blocks hold all flows, plain ones those that have no place with the settings.
    let encoding = if runs.is_empty() { COLUMNS } else { PLAIN };
    let last = blocks.len().saturating_sub(1);
    for (number, block) in blocks.into_iter().enumerate() {
        let (head, _) = BlockHead::read(&block).map_err(|invalid| invalid.at(number).within("blocks"))?;
        if number != last && head.flows as usize != BLOCK {
            let found = format!("{} flows", head.flows);
            return Err(Invalid::new("flows", found, format!("{BLOCK}: more blocks follow"))
                .at(number)
                .within("blocks"));
        }
        if head.encoding != encoding {
            let (found, expected) = (head.encoding.to_string(), format!("{encoding}, as for the flows before"));
            return Err(Invalid::new("encoding", found, expected).at(number).within("blocks"));
        }
        total = total.saturating_add(head.flows);
        runs.push(Run { stored: Stored::Block(block, head), flows: head.flows, v6: head.v6 });
    }
    if total != count {
        return Err(Invalid::new("count", count.to_string(), format!("the number of records there are, {total}")));
    }
    Ok(runs)
}

fn sized<A: Addr>(mut slab: Vec<Entry<A>>, slots: u32) -> Vec<Entry<A>> {
    slab.resize(slots as usize, Entry::vacant());
    slab
}

/// The timer lists and the list of unassured flows of the slots of one family.
struct Filing<A> {
    timers: Filed,
    unassured: Tail<1>,
    family: core::marker::PhantomData<A>,
}

/// Those of both families.
type Filings = (Filing<[u8; 4]>, Filing<[u8; 16]>);

/// A part of a slab, with what has been filed of it.
struct Shelving<'a, A> {
    slots: &'a mut [Entry<A>],
    /// The number of the first of them.
    first: u32,
    used: u32,
    links: Filing<A>,
}

impl<A: Addr> Filing<A> {
    const fn new() -> Self {
        Self { timers: Filed::new(), unassured: Tail::new(), family: core::marker::PhantomData }
    }

    fn shelf(self, slab: Vec<Entry<A>>, limit: u32, frame: Frame) -> Shelf<A> {
        Shelf::filled(slab, limit, Wheel::holding(self.timers, frame.slot()), self.unassured.into_queue())
    }

    fn join(&mut self, slab: &mut [Entry<A>], later: &Self) {
        self.timers.join(&mut ByTimer(slab), &later.timers);
        self.unassured.join(&mut ByAge(slab), &later.unassured);
    }
}

/// The slots from a number on, by their numbers.
struct From<C>(C, u32);

impl<C: Chain> Chain for From<C> {
    fn links(&mut self, slot: u32) -> Option<&mut Links> {
        self.0.links(slot.checked_sub(self.1)?)
    }
}

impl<'a, A: Addr> Shelving<'a, A> {
    fn new(slots: &'a mut [Entry<A>], first: u32) -> Self {
        Self { slots, first, used: 0, links: Filing::new() }
    }

    /// Puts a flow into the next slot. `ahead`: ticks until its time comes.
    #[inline]
    fn put(&mut self, mut entry: Entry<A>, serial: u64, frame: &Ticks) -> Option<()> {
        entry.core.set_serial(serial);
        let assured = entry.core.status().contains(Status::ASSURED);
        let deadline = frame.unwrapped(entry.core.deadline);
        let slot = self.first.saturating_add(self.used);
        *self.slots.get_mut(self.used as usize)? = entry;
        self.used += 1;
        let timers = &mut From(ByTimer(self.slots), self.first);
        self.links.timers.push(timers, place_of(deadline, frame.next), slot);
        if !assured {
            self.links.unassured.push(&mut From(ByAge(self.slots), self.first), 0, slot);
        }
        Some(())
    }
}

impl Ticks {
    fn unwrapped(&self, deadline: Tick) -> u64 {
        self.unwrapped.saturating_add_signed(i64::from(deadline.ahead_of(self.now)))
    }
}

/// Reads all runs into the slabs.
fn fill(
    runs: Vec<Run>,
    count: u32,
    slab4: &mut [Entry<[u8; 4]>],
    slab6: &mut [Entry<[u8; 16]>],
    frame: Frame,
    options: &RestoreOptions<'_>,
) -> Result<Filings, Invalid> {
    let ticks = frame.ticks();
    let done = AtomicU32::new(0);
    let (mut left4, mut left6) = (&mut *slab4, &mut *slab6);
    let (mut first, mut first4, mut first6) = (0, 0, 0);
    let mut runs = runs.into_iter();
    let mut shares: Vec<Share<'_>> = Vec::new();
    let threads = options.threads().min(runs.len()).max(1);
    for thread in 1..=threads {
        // Up to that flow this share reaches.
        let end = u64::from(count) * thread as u64 / threads as u64;
        let mut own = Vec::new();
        let (mut flows, mut v6) = (0, 0);
        while u64::from(first + flows) < end || (thread == threads && runs.len() > 0) {
            let Some(run) = runs.next() else { break };
            flows += run.flows;
            v6 += run.v6;
            own.push(run);
        }
        let v4 = flows.saturating_sub(v6);
        let (slots4, rest4) = left4.split_at_mut_checked(v4 as usize).unwrap_or_default();
        let (slots6, rest6) = left6.split_at_mut_checked(v6 as usize).unwrap_or_default();
        (left4, left6) = (rest4, rest6);
        let (v4, v6) = (Shelving::new(slots4, first4), Shelving::new(slots6, first6));
        (first4, first6) = (first4 + v4.slots.len() as u32, first6 + v6.slots.len() as u32);
        shares.push(Share { first, runs: own, v4, v6 });
        first += flows;
    }
    let read = |share: Share<'_>| {
        share.read(&ticks, |flows| {
            let before = done.fetch_add(flows, Ordering::Relaxed);
            options.report(RestoreStep::Check, before.saturating_add(flows), count);
        })
    };
    let mut shares = shares.into_iter();
    let Some(own) = shares.next() else { return Ok((Filing::new(), Filing::new())) };
    let (own, others) = std::thread::scope(|scope| {
        let others: Vec<_> = shares.map(|share| scope.spawn(|| read(share))).collect();
        let own = read(own);
        // A thread that panics takes the restore with it, as it would have on the calling one.
        let others: Vec<_> = others
            .into_iter()
            .map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        (own, others)
    });
    // Shares are in the order of the flows: the first error is the one that a single thread would have met.
    let (mut links4, mut links6) = own?;
    for other in others {
        let (later4, later6) = other?;
        links4.join(slab4, &later4);
        links6.join(slab6, &later6);
    }
    Ok((links4, links6))
}

/// What one thread reads.
struct Share<'a> {
    /// The number of its first flow.
    first: u32,
    runs: Vec<Run>,
    v4: Shelving<'a, [u8; 4]>,
    v6: Shelving<'a, [u8; 16]>,
}

impl Share<'_> {
    fn read(self, ticks: &Ticks, done: impl Fn(u32)) -> Result<Filings, Invalid> {
        let Self { mut first, runs, mut v4, mut v6 } = self;
        for Run { stored, flows, v6: of_v6 } in runs {
            let plain;
            let (records, _) = match &stored {
                Stored::Here(records, range) => (records.get(range.clone()).unwrap_or_default(), 0),
                Stored::Block(block, head) => {
                    let (_, behind) = BlockHead::read(block)?;
                    if head.encoding == COLUMNS {
                        let at = |invalid: Invalid| invalid.within(&format!("flows[{first}..]"));
                        plain = plain_records(*head, behind).map_err(at)?;
                        (plain.as_slice(), 0)
                    } else {
                        (behind, 0)
                    }
                }
            };
            read_run(records, first, flows, of_v6, ticks, &mut v4, &mut v6)?;
            first += flows;
            // The block goes as soon as its flows are in the table: the two do not stand beside each other in memory.
            drop(stored);
            done(flows);
        }
        Ok((v4.links, v6.links))
    }
}

fn read_run(
    records: &[u8],
    first: u32,
    flows: u32,
    of_v6: u32,
    ticks: &Ticks,
    v4: &mut Shelving<'_, [u8; 4]>,
    v6: &mut Shelving<'_, [u8; 16]>,
) -> Result<(), Invalid> {
    let mut input = Reader::new(records);
    let misplaced = || {
        let expected = format!("{of_v6} of {flows} flows IPv6, as their block says");
        Invalid::new("", "another number of flows of a family", expected)
    };
    let before = v6.used;
    for number in first..first.saturating_add(flows) {
        let serial = u64::from(number).saturating_add(1);
        let read =
            match input.rest().first() {
                Some(kind) if kind & KIND_V6 != 0 => Entry::read(&mut input, ticks.now)
                    .and_then(|entry| v6.put(entry, serial, ticks).ok_or_else(misplaced)),
                _ => Entry::read(&mut input, ticks.now)
                    .and_then(|entry| v4.put(entry, serial, ticks).ok_or_else(misplaced)),
            };
        read.map_err(|invalid| invalid.at(number as usize).within("flows"))?;
    }
    if v6.used.saturating_sub(before) != of_v6 {
        return Err(misplaced().within("flows"));
    }
    match input.rest().len() {
        0 => Ok(()),
        left => Err(Invalid::new("flows", format!("{left} bytes behind the last record"), "none")),
    }
}
