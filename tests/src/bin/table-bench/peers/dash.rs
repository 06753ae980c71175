//! DashMap: one map for all threads, sharded inside, with the standard library's hasher.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dashmap::DashMap;

use super::{Entry, Table, flows_of};

/// A thread's hold on the map.
pub(crate) struct Dash<K: Eq + Hash>(Arc<Shared<K>>);

struct Shared<K: Eq + Hash> {
    map: DashMap<K, u32>,
    entries: Vec<[AtomicU64; 8]>,
    next: AtomicU32,
}

impl<K: Copy + Eq + Hash + Send + Sync> Table<K> for Dash<K> {
    fn for_threads(threads: usize, flows: usize) -> Vec<Self> {
        let entries = (0..flows).map(|_| Default::default()).collect();
        let shared = Shared { map: DashMap::with_capacity(flows * 2), entries, next: AtomicU32::new(0) };
        let shared = Arc::new(shared);
        (0..threads).map(|_| Self(Arc::clone(&shared))).collect()
    }

    fn fill(&mut self, both: &[K; 2]) {
        self.insert(both);
    }

    fn insert(&mut self, [orig, reply]: &[K; 2]) -> bool {
        let Shared { map, entries, next } = &*self.0;
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(entry) = entries.get(number as usize) else { return false };
        entry[0].store(0, Ordering::Relaxed);
        map.insert(*orig, number * 2).is_none() && map.insert(*reply, number * 2 + 1).is_none()
    }

    fn touch(&mut self, key: &K, now: u64) -> bool {
        let Shared { map, entries, .. } = &*self.0;
        let entry = map.get(key).and_then(|number| entries.get(*number as usize / 2));
        entry.map(|entry| entry[0].store(now, Ordering::Relaxed)).is_some()
    }

    fn clear(&mut self) {
        self.0.map.clear();
        self.0.next.store(0, Ordering::Relaxed);
    }

    fn flows(&self) -> Vec<([K; 2], Entry)> {
        let Shared { map, entries, next } = &*self.0;
        let used = next.load(Ordering::Relaxed) as usize;
        let copied = entries.iter().take(used).map(|entry| std::array::from_fn(|at| entry[at].load(Ordering::Relaxed)));
        flows_of(map.iter().map(|item| (*item.key(), *item.value())), &copied.collect::<Vec<_>>())
    }
}
