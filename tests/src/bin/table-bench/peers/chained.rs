//! gVisor's layout: 16,384 buckets, a lock and a linked list each, however many flows there are.
//!
//! The layout alone, in Rust: no garbage collection, no allocation for a flow. The hash is as good as ours.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Entry, Table, flows_of};

/// A thread's hold on the table.
pub(crate) struct Chained<K>(Arc<Shared<K>>);

struct Shared<K> {
    hasher: RandomState,
    /// The first node of each list.
    buckets: Vec<Mutex<u32>>,
    /// Two nodes for each flow. Who holds the lock of a bucket may read and write those in its list.
    nodes: Vec<Mutex<Node<K>>>,
    entries: Vec<[AtomicU64; 8]>,
    next: AtomicU32,
}

struct Node<K> {
    key: Option<K>,
    next: u32,
}

impl<K: Copy + Eq + Hash> Shared<K> {
    fn bucket(&self, key: &K) -> &Mutex<u32> {
        &self.buckets[self.hasher.hash_one(key) as usize % BUCKETS]
    }

    /// The node of a tuple in a list.
    fn walk(&self, mut at: u32, key: &K) -> Option<u32> {
        while at != NONE {
            let node = self.nodes[at as usize].lock();
            if node.key.as_ref() == Some(key) {
                return Some(at);
            }
            at = node.next;
        }
        None
    }

    fn link(&self, number: u32, key: &K) {
        let mut head = self.bucket(key).lock();
        *self.nodes[number as usize].lock() = Node { key: Some(*key), next: *head };
        *head = number;
    }

    fn reserve(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed) * 2
    }
}

impl<K: Copy + Eq + Hash + Send + Sync> Table<K> for Chained<K> {
    const PATIENCE: usize = 4_000;

    fn for_threads(threads: usize, flows: usize) -> Vec<Self> {
        let shared = Arc::new(Shared {
            hasher: RandomState::new(),
            buckets: (0..BUCKETS).map(|_| Mutex::new(NONE)).collect(),
            nodes: (0..flows * 2).map(|_| Mutex::new(Node { key: None, next: NONE })).collect(),
            entries: (0..flows).map(|_| Default::default()).collect(),
            next: AtomicU32::new(0),
        });
        (0..threads).map(|_| Self(Arc::clone(&shared))).collect()
    }

    fn fill(&mut self, [orig, reply]: &[K; 2]) {
        let number = self.0.reserve();
        self.0.link(number, orig);
        self.0.link(number + 1, reply);
    }

    fn insert(&mut self, both: &[K; 2]) -> bool {
        let taken = |key| self.0.walk(*self.0.bucket(key).lock(), key).is_some();
        if both.iter().any(taken) {
            return false;
        }
        self.fill(both);
        true
    }

    fn touch(&mut self, key: &K, now: u64) -> bool {
        let head = self.0.bucket(key).lock();
        let entry = self.0.walk(*head, key).and_then(|node| self.0.entries.get(node as usize / 2));
        entry.map(|entry| entry[0].store(now, Ordering::Relaxed)).is_some()
    }

    fn clear(&mut self) {
        self.0.buckets.iter().for_each(|head| *head.lock() = NONE);
        self.0.next.store(0, Ordering::Relaxed);
    }

    fn flows(&self) -> Vec<([K; 2], Entry)> {
        let Shared { nodes, entries, next, .. } = &*self.0;
        let used = next.load(Ordering::Relaxed) as usize;
        let copied = entries.iter().take(used).map(|entry| std::array::from_fn(|at| entry[at].load(Ordering::Relaxed)));
        let keys = nodes.iter().take(used * 2).map(|node| node.lock().key);
        flows_of(keys.zip(0..).filter_map(|(key, number)| Some((key?, number))), &copied.collect::<Vec<_>>())
    }
}

/// gVisor's number, `pkg/tcpip/stack/conntrack.go`.
const BUCKETS: usize = 16_384;
const NONE: u32 = u32::MAX;
