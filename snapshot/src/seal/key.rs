//! The key of a seal.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use core::fmt;

use zeroize::Zeroizing;

use crate::{Entropy, Secret};

/// The key that images are sealed with and opened with. It lives in memory only: no serde, no `Clone`, prints as `SealKey(..)`.
///
/// Whoever has it can read every image sealed with it, and write new ones. It is no key of a stack, so it is in no image either.
pub struct SealKey(Secret<[u8; 32]>);

impl SealKey {
    /// The key of these bytes, which should come from a generator of random bits: it is used as it is.
    pub const fn new(key: Secret<[u8; 32]>) -> Self {
        Self(key)
    }

    /// A fresh key.
    pub fn draw(entropy: &mut Entropy) -> Self {
        Self(entropy.secret())
    }

    /// The key that a file holds: 32 bytes as they are, or 64 hexadecimal digits with or without the end of the line.
    ///
    /// # Errors
    /// If it is neither.
    pub fn from_file_content(content: &[u8]) -> Result<Self, SealKeyError> {
        if let Ok(key) = <[u8; 32]>::try_from(content) {
            return Ok(Self(Secret::new(key)));
        }
        let digits = content.trim_ascii_end();
        let (pairs, []) = digits.as_chunks::<2>() else {
            return Err(SealKeyError { found: content.len() });
        };
        let mut key = Zeroizing::new([0; 32]);
        if pairs.len() != key.len() {
            return Err(SealKeyError { found: content.len() });
        }
        for (byte, [high, low]) in key.iter_mut().zip(pairs) {
            let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                return Err(SealKeyError { found: content.len() });
            };
            *byte = high << 4 | low;
        }
        Ok(Self(Secret::new(*key)))
    }

    pub(super) fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// The content of a file that is no key. What it is stays unsaid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} bytes that are no key, expected 32 bytes or 64 hexadecimal digits")]
pub struct SealKeyError {
    /// How long it is.
    pub found: usize,
}
