//! Where the tuples are filed: 64-byte buckets of tags and slots, apart from the entries.
//!
//! A bucket is one cache line: ten 16-bit tags, ten slots, and a count of entries that belong here but overflowed into
//! a later bucket. Ten to a line, not eight, makes the index 16 bytes a flow at 80 % load with two places for each.
//! A look-up reads the home bucket and goes on only while entries overflowed from there; the way is bounded.

mod part;

use core::hint::black_box;

pub(crate) use self::part::{Filed, IndexPart};
use super::fetch::{PAGE, fetch};

/// Places in a bucket.
const PLACES: usize = 10;
/// How many buckets a tuple may lie behind its home before the index asks for another key.
const PROBES: u32 = 8;
/// Share of the places that a full table may take.
const LOAD_PERCENT: usize = 80;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Bucket {
    slots: [u32; PLACES],
    /// Zero marks an empty place.
    tags: [u16; PLACES],
    /// Entries at home here or before which lie in a later bucket.
    overflowed: u16,
}

impl Bucket {
    /// The slots filed under a tag. All ten tags are compared at once, which compilers make vector instructions of.
    #[inline]
    fn under(&self, tag: u16) -> impl Iterator<Item = u32> {
        let mut found = 0_u32;
        for (place, other) in self.tags.iter().enumerate() {
            found |= u32::from(*other == tag) << place;
        }
        core::iter::from_fn(move || {
            let place = found.trailing_zeros();
            found &= found.wrapping_sub(1);
            self.slots.get(place as usize).copied()
        })
    }
}

const EMPTY: Bucket = Bucket { slots: [0; PLACES], tags: [0; PLACES], overflowed: 0 };

/// A tuple found no place within the bound: another key is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Overrun;

/// The index. Knows hashes and slots, not what they stand for.
#[derive(Debug)]
pub(crate) struct Index {
    buckets: Vec<Bucket>,
    probes: u32,
    /// How often it was emptied: what was found out before is void.
    turn: u32,
}

impl Index {
    /// An empty index for `capacity` flows, two places for each.
    pub(crate) fn for_flows(capacity: u32) -> Self {
        let places = usize::try_from(capacity).unwrap_or(usize::MAX).saturating_mul(2);
        let buckets = places.saturating_mul(100).div_ceil(PLACES * LOAD_PERCENT).max(2);
        Self { buckets: vec![EMPTY; buckets], probes: PROBES, turn: 0 }
    }

    /// Forgets everything, keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.buckets.fill(EMPTY);
        self.turn = self.turn.wrapping_add(1);
    }

    /// Has the system give all the memory there is to be.
    pub(crate) fn touch(&mut self) {
        for bucket in self.buckets.iter_mut().step_by(PAGE / size_of::<Bucket>()) {
            bucket.overflowed = black_box(bucket.overflowed);
        }
    }

    /// How often it was emptied.
    pub(crate) const fn turn(&self) -> u32 {
        self.turn
    }

    /// Empties it for another number of flows.
    pub(crate) fn restart(&mut self, capacity: u32) {
        let turn = self.turn.wrapping_add(1);
        *self = Self { turn, ..Self::for_flows(capacity) };
    }

    /// Allows a longer way. Used when several fresh keys in a row overran, which chance does not do.
    pub(crate) fn widen(&mut self) {
        self.probes = self.probes.saturating_mul(2);
    }

    /// The first slot filed under `hash` for which `is_it` holds.
    #[inline]
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let (home, tag) = (self.home(hash), tag(hash));
        for step in 0..self.probes as usize {
            let bucket = self.bucket(home, step)?;
            if let found @ Some(_) = bucket.under(tag).find(|slot| is_it(*slot)) {
                return found;
            }
            if bucket.overflowed == 0 {
                break;
            }
        }
        None
    }

    /// Has the cache line fetched that a look-up under `hash` reads first.
    #[inline]
    pub(crate) fn fetch(&self, hash: u64) {
        if let Some(bucket) = self.buckets.get(self.home(hash)) {
            fetch(bucket);
        }
    }

    /// What a look-up under `hash` will ask about in the line it reads first.
    #[inline]
    pub(crate) fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> {
        self.buckets.get(self.home(hash)).into_iter().flat_map(move |bucket| bucket.under(tag(hash)))
    }

    /// Files `slot` under `hash`.
    pub(crate) fn insert(&mut self, hash: u64, slot: u32) -> Result<(), Overrun> {
        let (home, tag) = (self.home(hash), tag(hash));
        let mut steps = 0..self.probes as usize;
        let has_room = |step: &usize| self.bucket(home, *step).is_some_and(|bucket| bucket.tags.contains(&0));
        let distance = steps.find(has_room).ok_or(Overrun)?;
        for step in 0..=distance {
            let Some(bucket) = self.bucket_mut(home, step) else { return Err(Overrun) };
            if step < distance {
                bucket.overflowed = bucket.overflowed.saturating_add(1);
            } else if let Some((place, into)) =
                bucket.tags.iter_mut().zip(&mut bucket.slots).find(|(place, _)| **place == 0)
            {
                *place = tag;
                *into = slot;
            }
        }
        Ok(())
    }

    /// Removes `slot` from under `hash`.
    pub(crate) fn remove(&mut self, hash: u64, slot: u32) -> bool {
        let (home, tag) = (self.home(hash), tag(hash));
        let holds = |bucket: &Bucket| bucket.tags.iter().zip(bucket.slots).any(|(t, s)| *t == tag && s == slot);
        let found = (0..self.probes as usize).find(|step| self.bucket(home, *step).is_some_and(holds));
        let Some(distance) = found else { return false };
        for step in 0..=distance {
            let Some(bucket) = self.bucket_mut(home, step) else { return false };
            if step < distance {
                // A count that ever reached its limit stays there: look-ups then go on further than they need to.
                if bucket.overflowed != u16::MAX {
                    bucket.overflowed = bucket.overflowed.saturating_sub(1);
                }
            } else if let Some((place, _)) =
                bucket.tags.iter_mut().zip(bucket.slots).find(|(t, s)| **t == tag && *s == slot)
            {
                *place = 0;
            }
        }
        true
    }

    /// How many places are taken in each bucket, for the statistics of tests.
    #[cfg(test)]
    pub(crate) fn loads(&self) -> impl Iterator<Item = usize> + '_ {
        self.buckets.iter().map(|bucket| bucket.tags.iter().filter(|tag| **tag != 0).count())
    }

    /// Number of buckets, for the statistics of tests.
    #[cfg(test)]
    pub(crate) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// The bucket a hash belongs to.
    #[inline]
    pub(crate) fn home(&self, hash: u64) -> usize {
        (((hash & 0xffff_ffff) * self.buckets.len() as u64) >> 32) as usize
    }

    /// The bucket that many steps behind another. A way that is longer than a small index meets itself again, and then ends.
    #[inline]
    fn bucket(&self, home: usize, step: usize) -> Option<&Bucket> {
        if step >= self.buckets.len() { None } else { self.buckets.get(self.place(home, step)) }
    }

    fn bucket_mut(&mut self, home: usize, step: usize) -> Option<&mut Bucket> {
        let at = self.place(home, step);
        self.buckets.get_mut(at)
    }

    const fn place(&self, home: usize, step: usize) -> usize {
        let at = home.wrapping_add(step);
        if at >= self.buckets.len() { at.wrapping_sub(self.buckets.len()) } else { at }
    }
}

/// The top 16 bits, which the choice of bucket does not use; never zero.
const fn tag(hash: u64) -> u16 {
    let tag = (hash >> 48) as u16;
    if tag == 0 { 1 } else { tag }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(size_of::<Bucket>(), 64);
    }

    #[test]
    fn a_million_flows_need_sixteen_bytes_each() {
        assert_eq!(Index::for_flows(1_000_000).buckets() * 64 / 1_000_000, 16);
    }

    #[test]
    fn more_equal_hashes_than_the_bound_holds_are_an_overrun() {
        let mut index = Index::for_flows(1000);
        for slot in 0..(PLACES as u32 * PROBES) {
            index.insert(7 << 48, slot).unwrap();
        }
        assert_eq!(index.insert(7 << 48, 999), Err(Overrun));
        index.widen();
        index.insert(7 << 48, 999).unwrap();
        assert_eq!(index.find(7 << 48, |slot| slot == 999), Some(999));
    }

    proptest! {
        /// Few distinct hashes and a small index, so that buckets overflow and wrap round the end.
        #[test]
        fn the_index_finds_what_a_map_finds(steps in prop::collection::vec((0u64..24, any::<bool>()), 0..400)) {
            let mut index = Index::for_flows(40);
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut next = 0;
            for (kind, insert) in steps {
                let hash = kind << 48 | (kind * 0x2aaa_aaab) & 0xffff_ffff;
                if insert {
                    if index.insert(hash, next).is_ok() {
                        model.insert(next, hash);
                    }
                    next += 1;
                } else if let Some((&slot, &hash)) = model.iter().nth(kind as usize) {
                    prop_assert!(index.remove(hash, slot));
                    prop_assert!(!index.remove(hash, slot));
                    model.remove(&slot);
                }
                for (slot, hash) in &model {
                    prop_assert_eq!(index.find(*hash, |found| found == *slot), Some(*slot));
                }
                prop_assert_eq!(index.loads().sum::<usize>(), model.len());
            }
        }
    }
}
