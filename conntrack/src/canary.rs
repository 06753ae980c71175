//! The canary scan: looks for secrets in an image, inside the process that holds them.

use core::fmt;
use std::collections::BTreeMap;

use hibernet_snapshot::{Entropy, Redraw};

use crate::table::siphash;

/// What must not be in an image: every 8-byte window of each key, and the hash of every tuple, in both byte orders.
#[derive(Default)]
pub struct CanaryScan {
    keys: BTreeMap<u64, &'static str>,
    hashes: BTreeMap<u64, ()>,
    fingerprints: Vec<(&'static str, u64)>,
}

/// What a canary scan found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CanaryReport {
    /// 8-byte windows of keys that were looked for, byte orders apart.
    pub key_windows: usize,
    /// Tuple hashes that were looked for.
    pub hashes: usize,
    /// Bytes that were searched.
    pub searched: usize,
    /// Where something was found: the key's name (or "tuple hash"), and the offset.
    pub hits: Vec<(&'static str, usize)>,
}

impl CanaryScan {
    /// Looks for all windows of a key from now on.
    pub fn watch_key(&mut self, name: &'static str, key: &[u8]) {
        for window in key.windows(8) {
            if let Ok(bytes) = <[u8; 8]>::try_from(window) {
                self.keys.insert(u64::from_le_bytes(bytes), name);
                self.keys.insert(u64::from_be_bytes(bytes), name);
            }
        }
        if let Some(key) = key.first_chunk::<16>() {
            self.fingerprints.push((name, siphash::<2, 4, 2>(key, &FINGERPRINT)));
        }
    }

    /// Looks for a tuple's hash from now on.
    pub fn watch_hash(&mut self, hash: u64) {
        self.hashes.insert(hash, ());
        self.hashes.insert(hash.swap_bytes(), ());
    }

    /// One-way fingerprints of the keys, to tell that two processes have different ones.
    pub fn fingerprints(&self) -> &[(&'static str, u64)] {
        &self.fingerprints
    }

    /// Searches `image` at every offset.
    pub fn search(&self, image: &[u8]) -> CanaryReport {
        let mut hits = Vec::new();
        for (offset, window) in image.windows(8).enumerate() {
            let Ok(bytes) = <[u8; 8]>::try_from(window) else { continue };
            let word = u64::from_le_bytes(bytes);
            if let Some(name) = self.keys.get(&word) {
                hits.push((*name, offset));
            }
            if self.hashes.contains_key(&word) {
                hits.push(("tuple hash", offset));
            }
        }
        CanaryReport { key_windows: self.keys.len(), hashes: self.hashes.len(), searched: image.len(), hits }
    }

    /// Proves that the scan can find anything: a copy of `image` with a window of each key planted in it must hit, once for
    /// each. Returns how many of the keys were found.
    pub fn planted(&self, image: &[u8], entropy: &mut Entropy) -> usize {
        let place = WirePlace::redraw(entropy).0;
        self.keys
            .iter()
            .filter(|(word, name)| {
                let mut planted = image.to_vec();
                let at = place.checked_rem(image.len().saturating_sub(8) as u64).unwrap_or(0) as usize;
                if let Some(bytes) = planted.get_mut(at..at.saturating_add(8)) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
                self.search(&planted).hits.contains(&(name, at))
            })
            .count()
    }
}

impl fmt::Debug for CanaryScan {
    /// How much it looks for, and nothing of what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (keys, hashes) = (self.keys.len(), self.hashes.len());
        f.debug_struct("CanaryScan").field("key_windows", &keys).field("hashes", &hashes).finish_non_exhaustive()
    }
}

struct WirePlace(u64);

impl Redraw for WirePlace {
    fn redraw(entropy: &mut Entropy) -> Self {
        Self(u64::from_le_bytes(*entropy.secret::<8>().expose()))
    }
}

/// A fixed message whose keyed hash tells keys apart: "hibernet" and a length of 8 bytes.
const FINGERPRINT: [u64; 2] = [u64::from_le_bytes(*b"hibernet"), 8 << 56];
