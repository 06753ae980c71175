//! Sealed images: encrypted and authenticated under a key, with the image's header readable in front.
//!
//! A checksum finds damage. A seal finds every change, by whomever, and hides what the image holds. It is taken off whole or not at
//! all: nothing is decoded of an image of which one bit is not as it was written.
//!
//! ```
//! use hibernet_snapshot::seal::{SealKey, open, seal};
//! use hibernet_snapshot::{Entropy, to_image};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut entropy = Entropy::from_test_seed(1);
//! let image = to_image(&443_u16, "example 1.0", entropy.public_id())?;
//!
//! let key = SealKey::draw(&mut entropy);
//! let sealed = seal(&image, &key, &mut entropy)?;
//! assert_eq!(open(sealed.clone(), &key)?, image);
//! let refused = open(sealed, &SealKey::draw(&mut entropy)).unwrap_err().to_string();
//! assert!(refused.contains("the wrong key, or the file was changed"));
//! # Ok(())
//! # }
//! ```
//!
//! | sealed image | bytes | |
//! | --- | --- | --- |
//! | magic | 8 | `HIBRSEAL` |
//! | version | 2 | of the seal: 1 |
//! | reserved | 2 | |
//! | chunk length | 4 | bytes of the image in each chunk but the last, 64 to 1 MiB |
//! | nonce | 19 | drawn for this image |
//! | header length | 2 | |
//! | header | | of the image, as it is in the image |
//! | chunks | | the rest of the image, each chunk encrypted and followed by its tag of 16 bytes |
//!
//! Chunks are sealed with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha), the STREAM construction of Hoang, Reyhanitabar, Rogaway
//! and Vizar (2015) around it: a chunk's nonce is the 19 bytes, its number (big-endian) and whether it is the last. Everything in
//! front of the chunks is associated data of each. So no chunk can be changed, left out, moved, said twice or taken from another
//! image, and the end cannot be cut off. Memory is bounded by a chunk on top of the image.
//!
//! **What it does not hide**: the length of the image, and what its header says (writer, schema, generation, number of sections).
//! **What it does not find**: an older sealed image in the place of a newer one. Who has to, remembers the generation.

mod error;
mod key;
mod open;
mod stream;
mod write;

use core::ops::RangeInclusive;

use aead_stream::StreamBE32;
use chacha20poly1305::XChaCha20Poly1305;

pub use error::SealError;
pub use key::{SealKey, SealKeyError};
pub use open::{Sealed, open};
pub use stream::Unsealer;
pub use write::{Sealer, seal, sealed_parts};

use crate::image::{SEALED_MAGIC, WRITER_BYTES};

/// The version of the seal this build writes, and the newest it opens.
pub const SEAL_VERSION: u16 = 1;

/// How many bytes of an image go into a chunk, unless told otherwise.
pub const CHUNK_BYTES: u32 = 64 << 10;

/// How many bytes of an image can go into a chunk.
pub const CHUNK_LIMITS: RangeInclusive<u32> = 64..=1 << 20;

/// Whether these are the first bytes of a sealed image.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(&SEALED_MAGIC)
}

type Stream = StreamBE32<XChaCha20Poly1305>;

/// The nonce of an image; what follows it in the nonce of a chunk is the stream's.
const NONCE_BYTES: usize = 19;
const TAG_BYTES: usize = 16;
/// Bytes in front of the image's header.
const FRONT_BYTES: usize = 37;
/// Bytes of an image's header whose writer has no name, without its checksum: up to here its length is known.
const HEADER_BYTES: usize = 46;
const CHECKSUM_BYTES: usize = 4;
const MAX_HEADER_BYTES: usize = HEADER_BYTES + WRITER_BYTES + CHECKSUM_BYTES;

#[cfg(test)]
mod tests;
