//! The index in parts, for threads that fill it together.

use super::{Bucket, EMPTY, Index, LOAD_PERCENT, PLACES, fetch, tag};

/// A run of buckets that one thread fills.
#[derive(Debug)]
pub(crate) struct IndexPart<'a> {
    buckets: &'a mut [Bucket],
    /// The number of the first of them.
    first: usize,
    /// How many buckets there are in all.
    all: usize,
    probes: u32,
}

/// What became of a slot that was to be filed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Filed {
    /// It is filed.
    Here,
    /// Another slot has what it stands for.
    Taken,
    /// It belongs behind the end of the part, or nowhere within the bound.
    Elsewhere,
}

impl Index {
    /// An empty index whose memory was touched.
    pub(crate) fn touched(capacity: u32) -> Self {
        let mut index = Self::for_flows(capacity);
        // What is written there is not nought, or the memory would be had from the system untouched.
        index.buckets.fill(Bucket { overflowed: 1, ..EMPTY });
        index.buckets.fill(EMPTY);
        index
    }

    /// The same memory for another table.
    pub(crate) fn again(mut self, capacity: u32) -> Self {
        let places = (capacity as usize).saturating_mul(2);
        let buckets = places.saturating_mul(100).div_ceil(PLACES * LOAD_PERCENT).max(2);
        if buckets != self.buckets.len() {
            return Self::for_flows(capacity);
        }
        self.clear();
        self.probes = super::PROBES;
        self
    }

    /// How much memory it is.
    pub(crate) const fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }

    /// The index in as many parts, or fewer.
    pub(crate) fn parts(&mut self, parts: usize) -> Vec<IndexPart<'_>> {
        let (all, probes, chunk) = (self.buckets.len(), self.probes, self.chunk(parts));
        let runs = self.buckets.chunks_mut(chunk).enumerate();
        runs.map(|(number, buckets)| IndexPart { buckets, first: number * chunk, all, probes }).collect()
    }

    /// In which of so many parts a hash belongs.
    pub(crate) fn part_of(&self, hash: u64, parts: usize) -> usize {
        if parts <= 1 { 0 } else { self.home(hash) / self.chunk(parts) }
    }

    fn chunk(&self, parts: usize) -> usize {
        self.buckets.len().div_ceil(parts.max(1)).max(1)
    }
}

impl IndexPart<'_> {
    /// Asks for the line that [`IndexPart::file`] looks at first.
    #[inline]
    pub(crate) fn fetch(&self, hash: u64) {
        if let Some(bucket) = self.buckets.get(self.home(hash)) {
            fetch(bucket);
        }
    }

    /// Files `slot` under `hash`, unless `is_it` holds for one that is filed there. Nothing may have been removed before.
    #[inline]
    pub(crate) fn file(&mut self, hash: u64, slot: u32, mut is_it: impl FnMut(u32) -> bool) -> Filed {
        let (home, tag) = (self.home(hash), tag(hash));
        for step in 0..self.probes as usize {
            let Some(bucket) = self.buckets.get_mut(home.wrapping_add(step)) else { return Filed::Elsewhere };
            let mut free = None;
            for (place, (found, other)) in bucket.tags.iter().zip(bucket.slots).enumerate() {
                if *found == tag && is_it(other) {
                    return Filed::Taken;
                }
                // Places fill from the first one on, so that what follows is free as well.
                if *found == 0 {
                    free = Some(place);
                    break;
                }
            }
            let Some(place) = free else { continue };
            if let (Some(found), Some(into)) = (bucket.tags.get_mut(place), bucket.slots.get_mut(place)) {
                (*found, *into) = (tag, slot);
            }
            for passed in self.buckets.iter_mut().skip(home).take(step) {
                passed.overflowed = passed.overflowed.saturating_add(1);
            }
            return Filed::Here;
        }
        Filed::Elsewhere
    }

    fn home(&self, hash: u64) -> usize {
        ((((hash & 0xffff_ffff) * self.all as u64) >> 32) as usize).wrapping_sub(self.first)
    }
}
