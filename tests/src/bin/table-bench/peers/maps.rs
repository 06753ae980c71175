//! One map for each thread: the standard library's, and hashbrown with a fast hasher.

use std::collections::HashMap;
use std::hash::Hash;

use super::{Entry, Table, flows_of};

/// The standard library's map with SipHash-1-3 under a random key.
pub(crate) type Std<K> = HashMap<K, u32>;
/// hashbrown with foldhash's better variant under a random seed.
pub(crate) type Foldhash<K> = hashbrown::HashMap<K, u32, foldhash::quality::RandomState>;

/// A map from tuples to numbers.
pub(crate) trait Map<K>: Send {
    fn with_room(tuples: usize) -> Self;
    fn put(&mut self, key: K, number: u32) -> bool;
    fn number(&self, key: &K) -> Option<u32>;
    fn empty(&mut self);
    fn all(&self) -> impl Iterator<Item = (K, u32)>;
}

impl<K: Copy + Eq + Hash + Send> Map<K> for Std<K> {
    fn with_room(tuples: usize) -> Self {
        Self::with_capacity(tuples)
    }

    fn put(&mut self, key: K, number: u32) -> bool {
        self.insert(key, number).is_none()
    }

    fn number(&self, key: &K) -> Option<u32> {
        self.get(key).copied()
    }

    fn empty(&mut self) {
        self.clear();
    }

    fn all(&self) -> impl Iterator<Item = (K, u32)> {
        self.iter().map(|(key, number)| (*key, *number))
    }
}

impl<K: Copy + Eq + Hash + Send> Map<K> for Foldhash<K> {
    fn with_room(tuples: usize) -> Self {
        Self::with_capacity_and_hasher(tuples, foldhash::quality::RandomState::default())
    }

    fn put(&mut self, key: K, number: u32) -> bool {
        self.insert(key, number).is_none()
    }

    fn number(&self, key: &K) -> Option<u32> {
        self.get(key).copied()
    }

    fn empty(&mut self) {
        self.clear();
    }

    fn all(&self) -> impl Iterator<Item = (K, u32)> {
        self.iter().map(|(key, number)| (*key, *number))
    }
}

/// A map and the entries it leads to.
pub(crate) struct Own<M> {
    map: M,
    entries: Vec<Entry>,
}

impl<K: Copy, M: Map<K>> Table<K> for Own<M> {
    fn for_threads(threads: usize, flows: usize) -> Vec<Self> {
        let share = flows / threads;
        let table = |_| Self { map: M::with_room(share * 2), entries: Vec::with_capacity(share) };
        (0..threads).map(table).collect()
    }

    fn fill(&mut self, both: &[K; 2]) {
        self.insert(both);
    }

    fn insert(&mut self, [orig, reply]: &[K; 2]) -> bool {
        let number = self.entries.len() as u32;
        self.entries.push([0; 8]);
        self.map.put(*orig, number * 2) && self.map.put(*reply, number * 2 + 1)
    }

    fn touch(&mut self, key: &K, now: u64) -> bool {
        let entry = self.map.number(key).and_then(|number| self.entries.get_mut(number as usize / 2));
        entry.map(|entry| entry[0] = now).is_some()
    }

    fn clear(&mut self) {
        self.map.empty();
        self.entries.clear();
    }

    fn flows(&self) -> Vec<([K; 2], Entry)> {
        flows_of(self.map.all(), &self.entries)
    }
}
