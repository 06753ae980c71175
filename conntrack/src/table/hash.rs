//! The keyed hash that chooses where a tuple is filed: SipHash over fixed words of the sorted endpoints.
//!
//! Both directions of a flow that is not translated have the same endpoints, so they share one place in the index. The
//! endpoints are sorted first and then hashed once; combining two half hashes would let crafted tuples cancel the key out.

use core::fmt;

use hibernet_snapshot::{Entropy, Redraw, Secret};

/// What hashes under a key of its own.
pub(crate) trait Keyed {
    /// SipHash-1-3 of the words, the last of which carries the length in its top byte.
    fn hash<const N: usize>(&self, words: &[u64; N]) -> u64;
}

/// The 128-bit key of the table's hash. Lives in memory only: never saved, drawn afresh on restore.
pub(crate) struct HashKey(Secret<[u8; 16]>);

impl HashKey {
    /// The key's bytes, for the canary scan alone.
    pub(crate) fn expose(&self) -> &[u8; 16] {
        self.0.expose()
    }
}

impl Keyed for HashKey {
    #[inline]
    fn hash<const N: usize>(&self, words: &[u64; N]) -> u64 {
        siphash::<1, 3, N>(self.0.expose(), words)
    }
}

impl Redraw for HashKey {
    fn redraw(entropy: &mut Entropy) -> Self {
        Self(entropy.secret())
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// SipHash with `C` compression and `D` finalisation rounds (Aumasson and Bernstein, 2012) over whole words.
///
/// The caller packs the message little-endian and puts its length modulo 256 on top of the last word, which makes this
/// the standard function of the packed bytes.
#[inline]
pub(crate) fn siphash<const C: usize, const D: usize, const N: usize>(key: &[u8; 16], words: &[u64; N]) -> u64 {
    let key = u128::from_le_bytes(*key);
    let (k0, k1) = ((key & 0xffff_ffff_ffff_ffff) as u64, (key >> 64) as u64);
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        v = with_fourth(v, *word);
        for _ in 0..C {
            v = round(v);
        }
        v = with_first(v, *word);
    }
    let [v0, v1, v2, v3] = v;
    v = [v0, v1, v2 ^ 0xff, v3];
    for _ in 0..D {
        v = round(v);
    }
    let [v0, v1, v2, v3] = v;
    v0 ^ v1 ^ v2 ^ v3
}

const fn with_first([v0, v1, v2, v3]: [u64; 4], word: u64) -> [u64; 4] {
    [v0 ^ word, v1, v2, v3]
}

const fn with_fourth([v0, v1, v2, v3]: [u64; 4], word: u64) -> [u64; 4] {
    [v0, v1, v2, v3 ^ word]
}

const fn round([mut v0, mut v1, mut v2, mut v3]: [u64; 4]) -> [u64; 4] {
    v0 = v0.wrapping_add(v1);
    v1 = v1.rotate_left(13) ^ v0;
    v0 = v0.rotate_left(32);
    v2 = v2.wrapping_add(v3);
    v3 = v3.rotate_left(16) ^ v2;
    v0 = v0.wrapping_add(v3);
    v3 = v3.rotate_left(21) ^ v0;
    v2 = v2.wrapping_add(v1);
    v1 = v1.rotate_left(17) ^ v2;
    v2 = v2.rotate_left(32);
    [v0, v1, v2, v3]
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use proptest::prelude::*;
    use siphasher::sip::{SipHasher13, SipHasher24};

    use super::*;

    fn packed<const N: usize>(message: &[u8]) -> [u64; N] {
        let mut bytes = message.to_vec();
        bytes.resize(N * 8 - 1, 0);
        bytes.push(message.len() as u8);
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().unwrap());
        }
        words
    }

    #[test]
    fn siphash_2_4_matches_the_vector_of_the_paper() {
        // Appendix A of the SipHash paper: key 00..0f, message 00..0e.
        let key: [u8; 16] = core::array::from_fn(|i| i as u8);
        let message: [u8; 15] = core::array::from_fn(|i| i as u8);
        assert_eq!(siphash::<2, 4, 2>(&key, &packed(&message)), 0xa129_ca61_49be_45e5);
    }

    proptest! {
        #[test]
        fn fixed_words_give_the_standard_function_of_the_packed_bytes(key: [u8; 16], v4: [u8; 13], v6: [u8; 37]) {
            let mut of_v4 = SipHasher13::new_with_key(&key);
            of_v4.write(&v4);
            prop_assert_eq!(siphash::<1, 3, 2>(&key, &packed(&v4)), of_v4.finish());
            let mut of_v6 = SipHasher13::new_with_key(&key);
            of_v6.write(&v6);
            prop_assert_eq!(siphash::<1, 3, 5>(&key, &packed(&v6)), of_v6.finish());
            let mut of_v6 = SipHasher24::new_with_key(&key);
            of_v6.write(&v6);
            prop_assert_eq!(siphash::<2, 4, 5>(&key, &packed(&v6)), of_v6.finish());
        }
    }
}
