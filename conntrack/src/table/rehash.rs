//! Every tuple of a restored table filed under its fresh key: in batches, with the memory asked for ahead, on several threads.

use hibernet_snapshot::Invalid;

use super::addr::{Addr, Packed};
use super::claimed_twice;
use super::entry::Entry;
use super::flows::{Flows, RestoreOptions, RestoreStep, Slot};
use super::hash::HashKey;
use super::index::{Filed, Index, IndexPart};
use crate::status::Status;
use crate::tuple::{Direction, proto};

/// A slot and the hash it is to be filed under, in twelve bytes.
#[derive(Clone, Copy, Debug)]
struct Filing {
    hash: [u32; 2],
    slot: u32,
}

impl Filing {
    const fn of(hash: u64, slot: u32) -> Self {
        Self { hash: [(hash & 0xffff_ffff) as u32, (hash >> 32) as u32], slot }
    }

    const fn hash(self) -> u64 {
        let [low, high] = self.hash;
        low as u64 | (high as u64) << 32
    }
}

/// Files every tuple. One that two flows claim is refused.
pub(super) fn file_every_tuple(
    flows: &Flows,
    key: &HashKey,
    options: &mut RestoreOptions<'_>,
) -> Result<Index, Invalid> {
    let mut index = options.take_index(flows.capacity());
    let threads = options.threads();
    let mut work = Work::default();
    if threads == 1 || flows.len() < SMALL {
        file_alone(flows, key, &mut index, &mut work);
    } else {
        file_together(flows, key, &mut index, threads, &mut work);
    }
    for filing in core::mem::take(&mut work.elsewhere) {
        if index.find(filing.hash(), |other| shares(flows, filing.slot, other)).is_some() {
            work.taken(flows, filing.slot);
        }
        while index.insert(filing.hash(), filing.slot).is_err() {
            index.widen();
        }
    }
    options.report(RestoreStep::File, flows.len(), flows.len());
    match work.twice {
        None => Ok(index),
        Some((serial, slot)) => {
            let number = flows.in_creation_order().iter().position(|other| *other == Slot(slot));
            let number = number.unwrap_or(serial as usize);
            let own = [Direction::Original, Direction::Reply];
            let tuples = own.into_iter().filter_map(|direction| flows.tuple(Slot(slot), direction));
            let claimed = tuples.into_iter().find(|tuple| {
                let zone = flows.core(Slot(slot)).map(|core| core.zone()).unwrap_or_default();
                let holds =
                    |other: &Slot| other.0 != slot && flows.direction_of(*other, &Packed::of(tuple), zone).is_some();
                flows.in_creation_order().iter().any(holds)
            });
            match claimed {
                Some(tuple) => Err(claimed_twice(number, &tuple)),
                None => Ok(index),
            }
        }
    }
}

/// What is left over.
#[derive(Default)]
struct Work {
    /// What found no place in its part.
    elsewhere: Vec<Filing>,
    /// The oldest flow that claims a tuple which an older one has: its serial number and slot.
    twice: Option<(u64, u32)>,
}

impl Work {
    #[cold]
    fn taken(&mut self, flows: &Flows, slot: u32) {
        let serial = flows.core(Slot(slot)).map_or(u64::MAX, |core| core.serial());
        if self.twice.is_none_or(|(other, _)| serial < other) {
            self.twice = Some((serial, slot));
        }
    }

    fn file(&mut self, flows: &Flows, part: &mut IndexPart<'_>, filing: Filing) {
        match part.file(filing.hash(), filing.slot, |other| shares(flows, filing.slot, other)) {
            Filed::Here => {}
            Filed::Elsewhere => self.elsewhere.push(filing),
            Filed::Taken => self.taken(flows, filing.slot),
        }
    }

    fn and(&mut self, other: Self) {
        self.elsewhere.extend(other.elsewhere);
        if let Some((serial, slot)) = other.twice
            && self.twice.is_none_or(|(own, _)| serial < own)
        {
            self.twice = Some((serial, slot));
        }
    }
}

/// Whether two flows have a tuple in common.
#[cold]
fn shares(flows: &Flows, slot: u32, other: u32) -> bool {
    let Some(core) = flows.core(Slot(slot)) else { return false };
    let claims = |direction| {
        flows
            .tuple(Slot(slot), direction)
            .is_some_and(|it| flows.direction_of(Slot(other), &Packed::of(&it), core.zone()).is_some())
    };
    slot != other && (claims(Direction::Original) || claims(Direction::Reply))
}

fn file_alone(flows: &Flows, key: &HashKey, index: &mut Index, work: &mut Work) {
    let mut parts = index.parts(1);
    let Some(part) = parts.first_mut() else { return };
    let mut batch: Vec<Filing> = Vec::with_capacity(2 * BATCH);
    let (v4, v6) = flows.slabs();
    for (number, entries) in v4.chunks(BATCH).enumerate() {
        hash_all(entries, Slot::v4((number * BATCH) as u32), key, |filing| {
            part.fetch(filing.hash());
            batch.push(filing);
        });
        batch.drain(..).for_each(|filing| work.file(flows, part, filing));
    }
    for (number, entries) in v6.chunks(BATCH).enumerate() {
        hash_all(entries, Slot::v6((number * BATCH) as u32), key, |filing| {
            part.fetch(filing.hash());
            batch.push(filing);
        });
        batch.drain(..).for_each(|filing| work.file(flows, part, filing));
    }
}

/// Each thread hashes a share of the flows, and then files all that belongs in its part of the index.
fn file_together(flows: &Flows, key: &HashKey, index: &mut Index, threads: usize, work: &mut Work) {
    let (v4, v6) = flows.slabs();
    let share = |all: usize, thread: usize| all * thread / threads..all * (thread + 1) / threads;
    let whole = &*index;
    let hashed: Vec<Vec<Vec<Filing>>> = on_threads(threads, |thread| {
        let (of_v4, of_v6) = (share(v4.len(), thread), share(v6.len(), thread));
        let room = (of_v4.len() + of_v6.len()) * 2 / threads;
        let mut lists: Vec<Vec<Filing>> = (0..threads).map(|_| Vec::with_capacity(room)).collect();
        let mut put = |filing: Filing| {
            if let Some(list) = lists.get_mut(whole.part_of(filing.hash(), threads)) {
                list.push(filing);
            }
        };
        hash_all(v4.get(of_v4.clone()).unwrap_or_default(), Slot::v4(of_v4.start as u32), key, &mut put);
        hash_all(v6.get(of_v6.clone()).unwrap_or_default(), Slot::v6(of_v6.start as u32), key, &mut put);
        lists
    });
    let parts = index.parts(threads);
    let hashed = &hashed;
    let file = |(number, mut part): (usize, IndexPart<'_>)| {
        let mut work = Work::default();
        for list in hashed.iter().filter_map(|lists| lists.get(number)) {
            for (at, filing) in list.iter().enumerate() {
                if let Some(next) = list.get(at + AHEAD) {
                    part.fetch(next.hash());
                }
                work.file(flows, &mut part, *filing);
            }
        }
        work
    };
    let file = &file;
    let done: Vec<Work> = std::thread::scope(|scope| {
        let mut parts = parts.into_iter().enumerate();
        let own = parts.next();
        let others: Vec<_> = parts.map(|part| scope.spawn(move || file(part))).collect();
        let own = own.map(file);
        let others =
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        own.into_iter().chain(others).collect()
    });
    done.into_iter().for_each(|done| work.and(done));
}

/// Does the work of each thread, that of the first on the calling one.
fn on_threads<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        let own = work(0);
        let others =
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        core::iter::once(own).chain(others).collect()
    })
}

/// What entries are filed under: one hash where both directions share it, two where they differ.
#[inline]
fn hash_all<A: Addr>(entries: &[Entry<A>], first: Slot, key: &HashKey, mut each: impl FnMut(Filing)) {
    for (slot, entry) in (first.0..).zip(entries) {
        let Entry { orig, reply, core } = entry;
        if core.serial() == 0 {
            continue;
        }
        let icmp = matches!(core.proto, proto::ICMP | proto::ICMPV6);
        let hash = orig.hash(key, icmp, core.proto);
        each(Filing::of(hash, slot));
        if core.status().intersects(Status::NAT) {
            let other = reply.hash(key, icmp, core.proto);
            if other != hash {
                each(Filing::of(other, slot));
            }
        }
    }
}

/// Flows that are hashed before the first of them is filed.
const BATCH: usize = 64;
/// How far ahead memory is asked for.
const AHEAD: usize = 16;
/// Below so many flows threads are not worth their start.
const SMALL: u32 = 4096;
