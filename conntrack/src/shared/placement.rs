//! Which shard a tuple belongs to.

use core::fmt;

use hibernet_snapshot::{Entropy, Redraw, Secret};
use zeroize::Zeroize;

use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::canary::CanaryScan;
use crate::table::{Keyed, Part, hash_tuple, siphash};
use crate::tuple::Tuple;

/// The shard key, and how often it was drawn anew.
///
/// Read without a lock: a packet must not write what other threads read. A key that was read while it changed chooses some
/// shard; the number of the deal, compared under that shard's lock, tells that it is the wrong one.
pub(super) struct Placement {
    key: Secret<Words>,
    deal: AtomicU32,
}

struct Words([AtomicU64; 2]);

impl Placement {
    /// Number of the present deal. Steady while any shard is locked.
    pub(super) fn deal(&self) -> u32 {
        self.deal.load(Ordering::Acquire)
    }

    /// Which of `shards` a tuple belongs to, and so does its inverse.
    pub(super) fn shard_of(&self, tuple: &Tuple, shards: usize) -> usize {
        let hash = hash_tuple(self, tuple) & 0xffff_ffff;
        (hash.wrapping_mul(shards as u64) >> 32) as usize
    }

    /// What a shard holds by the present deal.
    pub(super) fn part(&self, shard: u8) -> Part {
        Part { shard, deal: (self.deal() & 0xffff) as u16 }
    }

    /// Draws another key. All shards must be locked.
    pub(super) fn deal_anew(&self, entropy: &mut Entropy) {
        self.store(&entropy.secret());
        self.deal.fetch_add(1, Ordering::Release);
    }

    /// Adds the key to what a canary scan looks for.
    pub(super) fn watch(&self, scan: &mut CanaryScan) {
        scan.watch_key("shard choice", &self.bytes());
    }

    fn store(&self, key: &Secret<[u8; 16]>) {
        let key = u128::from_le_bytes(*key.expose());
        let [low, high] = &self.key.expose().0;
        low.store(key as u64, Ordering::Relaxed);
        high.store((key >> 64) as u64, Ordering::Relaxed);
    }

    fn bytes(&self) -> [u8; 16] {
        let [low, high] = &self.key.expose().0;
        (u128::from(high.load(Ordering::Relaxed)) << 64 | u128::from(low.load(Ordering::Relaxed))).to_le_bytes()
    }
}

impl Keyed for Placement {
    fn hash<const N: usize>(&self, words: &[u64; N]) -> u64 {
        siphash::<1, 3, N>(&self.bytes(), words)
    }
}

impl Redraw for Placement {
    fn redraw(entropy: &mut Entropy) -> Self {
        let placement = Self { key: Secret::new(Words(Default::default())), deal: AtomicU32::new(0) };
        placement.store(&entropy.secret());
        placement
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Placement(..)")
    }
}

impl Zeroize for Words {
    fn zeroize(&mut self) {
        for word in &mut self.0 {
            word.get_mut().zeroize();
        }
    }
}
