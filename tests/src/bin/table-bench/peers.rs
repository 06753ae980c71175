//! What a program could use instead.
//!
//! Each peer maps both tuples of a flow to its number, and the number to an entry of 64 bytes. A look-up finds the flow and writes
//! the time into its entry, one packet at a time: none of them takes more.

mod chained;
mod dash;
mod maps;

use anyhow::{Context, Result, ensure};
use hibernet_snapshot::codec::{decode, encode};
use hibernet_snapshot::image::Limits;
use serde::{Deserialize, Serialize};

use self::chained::Chained;
use self::dash::Dash;
use self::maps::{Foldhash, Own, Std};
use crate::figures::{Peer, Peers};
use crate::machine::{ROUNDS, bytes_per_flow, median, median_ms, timed, together};
use crate::tuples::{Family, shuffle, tuples};
use crate::{Plan, own, progress};

/// What a peer keeps of a flow.
pub(crate) type Entry = [u64; 8];

/// A peer as one thread uses it.
pub(crate) trait Table<K>: Send + Sized {
    /// How many flows of a round are looked up or entered: fewer where one takes long.
    const PATIENCE: usize = usize::MAX;

    /// One for each thread: tables of their own with their share of room, or the same table.
    fn for_threads(threads: usize, flows: usize) -> Vec<Self>;
    /// Enters a flow without a look whether it is there.
    fn fill(&mut self, both: &[K; 2]);
    /// Enters a flow, or says that a tuple is taken.
    fn insert(&mut self, both: &[K; 2]) -> bool;
    /// Writes the time into a flow's entry.
    fn touch(&mut self, key: &K, now: u64) -> bool;
    /// Forgets all flows, keeps the memory.
    fn clear(&mut self);
    /// All flows.
    fn flows(&self) -> Vec<([K; 2], Entry)>;
}

/// Flows from tuples with their numbers, two for each flow, and entries.
fn flows_of<K: Copy>(tuples: impl Iterator<Item = (K, u32)>, entries: &[Entry]) -> Vec<([K; 2], Entry)> {
    let mut both = vec![[None; 2]; entries.len()];
    for (key, number) in tuples {
        both[number as usize / 2][number as usize % 2] = Some(key);
    }
    let flow = |([orig, reply], entry): (&[Option<K>; 2], &Entry)| Some(([(*orig)?, (*reply)?], *entry));
    both.iter().zip(entries).filter_map(flow).collect()
}

pub(crate) fn measured<F: Family>(plan: Plan) -> Result<Peers> {
    Ok(Peers {
        std_hashmap: peer::<F, Own<Std<F::Key>>>(plan, "std_hashmap")?,
        hashbrown_foldhash: peer::<F, Own<Foldhash<F::Key>>>(plan, "hashbrown_foldhash")?,
        dashmap: peer::<F, Dash<F::Key>>(plan, "dashmap")?,
        gvisor_layout: peer::<F, Chained<F::Key>>(plan, "gvisor_layout")?,
    })
}

/// Bytes in memory for a flow of the peer of that name.
pub(crate) fn bytes_here<F: Family>(plan: Plan, name: &str) -> Result<f64> {
    fn of<F: Family, T: Table<F::Key>>(plan: Plan) -> Result<f64> {
        let all = keys::<F>(0, plan.flows);
        bytes_per_flow(plan.flows, || alone::<F, T>(plan, &all))
    }
    match name {
        "std_hashmap" => of::<F, Own<Std<F::Key>>>(plan),
        "hashbrown_foldhash" => of::<F, Own<Foldhash<F::Key>>>(plan),
        "dashmap" => of::<F, Dash<F::Key>>(plan),
        _ => of::<F, Chained<F::Key>>(plan),
    }
}

/// Both tuples of flows.
fn keys<F: Family>(first: usize, count: usize) -> Vec<[F::Key; 2]> {
    let inverted = tuples::<F>(first, count).into_iter().filter_map(|tuple| Some((tuple, tuple.inverted()?)));
    inverted.map(|(orig, reply)| [F::key(&orig), F::key(&reply)]).collect()
}

/// A table of one thread with these flows.
fn alone<F: Family, T: Table<F::Key>>(plan: Plan, flows: &[[F::Key; 2]]) -> Vec<T> {
    let mut table = T::for_threads(1, plan.flows);
    for both in flows {
        table[0].fill(both);
    }
    table
}

fn peer<F: Family, T: Table<F::Key>>(plan: Plan, name: &str) -> Result<Peer> {
    progress(&format!("{name}: memory"));
    let bytes_per_flow = own::bytes::<F>(plan, name)?;
    progress(&format!("{name}: new flows, look-ups"));
    let tables = T::for_threads(plan.threads, plan.flows);
    let share = |(thread, table)| Worker { table, keys: keys::<F>(thread * plan.share(), plan.share()) };
    let mut workers: Vec<_> = tables.into_iter().enumerate().map(share).collect();
    let insert_ns = finite(inserts::<F, T>(&mut workers), "a new flow was refused")?;
    let lookup_ns = finite(lookups::<F, T>(&mut workers), "a flow was not found")?;
    drop(workers);
    progress(&format!("{name}: save, restore"));
    let table: Vec<T> = alone::<F, T>(plan, &keys::<F>(0, plan.flows));
    let save = || -> Result<Vec<u8>> {
        let record =
            |(both, entry): ([F::Key; 2], Entry)| Record { both: both.map(|key| OwnedKey::of(key.as_ref())), entry };
        Ok(encode(&table[0].flows().into_iter().map(record).collect::<Vec<_>>())?)
    };
    let save_ms = median_ms(|| timed(save).0);
    let image = save()?;
    drop(table);
    let restore = || -> Result<usize> {
        let flows: Vec<Record> = decode(&image, &Limits { section_bytes: 1 << 30, ..Limits::default() })?;
        let mut table = T::for_threads(1, plan.flows);
        let mut count = 0;
        for record in &flows {
            let both = record.keys::<F>().context("a record holds no keys")?;
            table[0].fill(&both);
            count += 1;
        }
        Ok(count)
    };
    ensure!(restore()? == plan.flows, "{name}: the restored table lacks flows");
    let restore_ms = median_ms(|| timed(restore).0);
    Ok(Peer { lookup_ns, insert_ns, bytes_per_flow, save_ms, restore_ms })
}

fn finite(ns: f64, otherwise: &'static str) -> Result<f64> {
    ensure!(ns.is_finite(), otherwise);
    Ok(ns)
}

/// One thread's table and flows.
struct Worker<T, K> {
    table: T,
    keys: Vec<[K; 2]>,
}

/// The memory is there when it counts: every table has been full before.
fn inserts<F: Family, T: Table<F::Key>>(workers: &mut [Worker<T, F::Key>]) -> f64 {
    for Worker { table, keys } in workers.iter_mut() {
        keys.iter().for_each(|both| table.fill(both));
    }
    median(ROUNDS, |round| {
        for Worker { table, keys } in workers.iter_mut() {
            shuffle(keys, round as u64);
            table.clear();
        }
        together(workers, |Worker { table, keys }| {
            let (before, timely) = keys.split_at(keys.len().saturating_sub(T::PATIENCE));
            before.iter().for_each(|both| table.fill(both));
            let (ns, entered) = timed(|| timely.iter().filter(|both| table.insert(both)).count());
            if entered == timely.len() { ns as f64 / entered as f64 } else { f64::NAN }
        })
    })
}

fn lookups<F: Family, T: Table<F::Key>>(workers: &mut [Worker<T, F::Key>]) -> f64 {
    median(ROUNDS, |round| {
        for Worker { keys, .. } in workers.iter_mut() {
            shuffle(keys, 100 + round as u64);
        }
        together(workers, |Worker { table, keys }| {
            let asked = &keys[..keys.len().min(T::PATIENCE)];
            let times = LEAST_LOOKUPS.min(T::PATIENCE).div_ceil(asked.len());
            let (ns, found) = timed(|| {
                (0..times)
                    .map(|time| asked.iter().filter(|[orig, _]| table.touch(orig, time as u64)).count())
                    .sum::<usize>()
            });
            if found == times * asked.len() { ns as f64 / found as f64 } else { f64::NAN }
        })
    })
}

/// A flow of a peer as the codec takes it, which has no arrays of more than 32.
#[derive(Serialize, Deserialize)]
struct Record {
    both: [OwnedKey; 2],
    entry: Entry,
}

/// A key of either family: what it has in front, and 24 bytes more for IPv6.
#[derive(Serialize, Deserialize)]
struct OwnedKey([u8; 13], Option<[u8; 24]>);

impl OwnedKey {
    fn of(key: &[u8]) -> Self {
        let (front, back) = key.split_at(13);
        let mut owned = Self([0; 13], None);
        owned.0.copy_from_slice(front);
        if !back.is_empty() {
            owned.1.insert([0; 24]).copy_from_slice(back);
        }
        owned
    }
}

impl Record {
    fn keys<F: Family>(&self) -> Option<[F::Key; 2]> {
        let key = |OwnedKey(front, back): &OwnedKey| {
            let mut bytes = [0; 37];
            bytes[..13].copy_from_slice(front);
            let len = match back {
                Some(back) => {
                    bytes[13..].copy_from_slice(back);
                    37
                }
                None => 13,
            };
            F::Key::try_from(&bytes[..len]).ok()
        };
        let [orig, reply] = &self.both;
        Some([key(orig)?, key(reply)?])
    }
}

/// Look-ups in a round at least.
const LEAST_LOOKUPS: usize = 200_000;
