//! Taking a seal off. Every byte of the input may be hostile.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use aead_stream::{NewStream, StreamPrimitive};

use super::error::SealError;
use super::key::SealKey;
use super::{
    CHUNK_LIMITS, FRONT_BYTES, HEADER_BYTES, MAX_HEADER_BYTES, NONCE_BYTES, SEAL_VERSION, Stream, TAG_BYTES, is_sealed,
};
use crate::image::{Front, Image, SEALED_MAGIC};

/// The image under the seal, whole and as it was sealed. It takes the place of the sealed bytes in memory.
///
/// # Errors
/// If the key is another, or a single bit was changed. What is not sealed is refused too: an image in the place of a sealed one
/// has been put there by someone without the key.
pub fn open(mut sealed: Vec<u8>, key: &SealKey) -> Result<Vec<u8>, SealError> {
    let Parts { nonce, chunk_bytes, header_at, chunks_at } = Parts::read(&sealed)?;
    let front = sealed.get(..chunks_at).unwrap_or_default().to_vec();
    let stream = Stream::new(key.expose().into(), &nonce.into());
    let step = chunk_bytes.saturating_add(TAG_BYTES);
    let mut chunk = Vec::with_capacity(step.min(sealed.len()));
    // Where the next chunk is read, and where the image is written: always further in front, so nothing unread is lost.
    let mut from = chunks_at;
    sealed.copy_within(header_at..chunks_at, 0);
    let mut to = chunks_at.saturating_sub(header_at);
    let mut position = 0_u32;
    loop {
        let rest = sealed.get(from..).unwrap_or_default();
        let is_last = rest.len() <= step;
        let piece = rest.get(..step).unwrap_or(rest);
        if piece.len() < TAG_BYTES {
            return Err(SealError::Truncated { needed: TAG_BYTES, left: piece.len() });
        }
        chunk.clear();
        chunk.extend_from_slice(piece);
        if stream.decrypt_in_place(position, is_last, &front, &mut chunk).is_err() {
            return Err(refusal(&stream, position, is_last, &front, piece));
        }
        if let Some(place) = sealed.get_mut(to..to.saturating_add(chunk.len())) {
            place.copy_from_slice(&chunk);
        }
        from = from.saturating_add(step);
        to = to.saturating_add(chunk.len());
        if is_last {
            sealed.truncate(to);
            return Ok(sealed);
        }
        position = position.checked_add(1).ok_or(SealError::TooLong)?;
    }
}

/// What can be said of a sealed image without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sealed {
    /// What the header in front says. Only opening the seal tells whether it is true.
    pub front: Front,
    /// The version of the seal.
    pub version: u16,
    /// Bytes of the image in a chunk.
    pub chunk_bytes: u32,
}

impl Sealed {
    /// Reads what is in front of the chunks.
    ///
    /// # Errors
    /// If that is not sound.
    pub fn read(sealed: &[u8]) -> Result<Self, SealError> {
        let Parts { nonce: _, chunk_bytes, header_at, chunks_at } = Parts::read(sealed)?;
        let header = sealed.get(header_at..chunks_at).unwrap_or_default();
        let front = Image::front(header).map_err(SealError::NotAnImage)?;
        let chunk_bytes = u32::try_from(chunk_bytes).unwrap_or(u32::MAX);
        Ok(Self { front, version: SEAL_VERSION, chunk_bytes })
    }
}

/// Where things are in a sealed image.
pub(super) struct Parts {
    pub(super) nonce: [u8; NONCE_BYTES],
    pub(super) chunk_bytes: usize,
    pub(super) header_at: usize,
    pub(super) chunks_at: usize,
}

impl Parts {
    pub(super) fn read(sealed: &[u8]) -> Result<Self, SealError> {
        if !is_sealed(sealed) {
            let found = sealed.get(..SEALED_MAGIC.len()).unwrap_or(sealed).to_vec();
            return Err(SealError::NotSealed { found });
        }
        let left = sealed.len();
        let truncated = || SealError::Truncated { needed: FRONT_BYTES, left };
        let front = sealed.first_chunk::<FRONT_BYTES>().ok_or_else(truncated)?;
        let [_, _, _, _, _, _, _, _, v0, v1, r0, r1, c0, c1, c2, c3, nonce @ .., h0, h1] = *front;
        let version = u16::from_le_bytes([v0, v1]);
        if version > SEAL_VERSION {
            return Err(SealError::TooNew { found: version });
        }
        let reserved = u16::from_le_bytes([r0, r1]);
        let chunk_bytes = u32::from_le_bytes([c0, c1, c2, c3]);
        let header = usize::from(u16::from_le_bytes([h0, h1]));
        for (what, found, is_sound, expected) in [
            ("version", version.into(), version == SEAL_VERSION, "1"),
            ("reserved bits", reserved.into(), reserved == 0, "none"),
            ("chunk length", chunk_bytes.into(), CHUNK_LIMITS.contains(&chunk_bytes), "64 to 1048576"),
            ("header length", header as u64, (HEADER_BYTES..=MAX_HEADER_BYTES).contains(&header), "46 to 178"),
        ] {
            if !is_sound {
                return Err(SealError::Front { what, found, expected });
            }
        }
        let chunks_at = FRONT_BYTES.saturating_add(header);
        if left < chunks_at {
            return Err(SealError::Truncated { needed: chunks_at, left });
        }
        let chunk_bytes = usize::try_from(chunk_bytes).unwrap_or(usize::MAX);
        Ok(Self { nonce, chunk_bytes, header_at: FRONT_BYTES, chunks_at })
    }
}

/// Why a chunk does not open, as far as it can be told.
pub(super) fn refusal(stream: &Stream, position: u32, is_last: bool, front: &[u8], piece: &[u8]) -> SealError {
    let opens_as_one_of_many = || stream.decrypt_in_place(position, false, front, &mut piece.to_vec()).is_ok();
    match position {
        chunk if is_last && opens_as_one_of_many() => SealError::CutOff { chunk },
        0 => SealError::DoesNotOpen,
        chunk => SealError::Changed { chunk },
    }
}
