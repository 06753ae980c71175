//! Putting a seal on.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use aead_stream::{NewStream, StreamPrimitive};

use super::error::SealError;
use super::key::SealKey;
use super::{
    CHECKSUM_BYTES, CHUNK_BYTES, CHUNK_LIMITS, FRONT_BYTES, HEADER_BYTES, MAX_HEADER_BYTES, NONCE_BYTES, SEAL_VERSION,
    Stream, TAG_BYTES,
};
use crate::Entropy;
use crate::image::{Image, SEALED_MAGIC};

/// The image under a seal. Its nonce is drawn from `entropy`.
///
/// # Errors
/// If it is no image.
pub fn seal(image: &[u8], key: &SealKey, entropy: &mut Entropy) -> Result<Vec<u8>, SealError> {
    let chunks = image.len().div_ceil(usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX));
    let more = FRONT_BYTES.saturating_add(chunks.saturating_add(1).saturating_mul(TAG_BYTES));
    let mut sealed = Vec::with_capacity(image.len().saturating_add(more));
    let mut sealer = Sealer::new(key, entropy);
    sealer.push(image, &mut sealed)?;
    sealer.finish(&mut sealed)?;
    Ok(sealed)
}

/// The same in parts of about a mebibyte, for a file that is written as they come.
pub fn sealed_parts<'a>(
    image: &'a [u8],
    key: &SealKey,
    entropy: &mut Entropy,
) -> impl Iterator<Item = Result<Vec<u8>, SealError>> + 'a {
    let mut sealer = Some(Sealer::new(key, entropy));
    let mut pieces = image.chunks(PART_BYTES);
    core::iter::from_fn(move || {
        let mut sealed = Vec::new();
        let done = match (pieces.next(), &mut sealer) {
            (Some(piece), Some(sealer)) => sealer.push(piece, &mut sealed),
            _ => sealer.take()?.finish(&mut sealed),
        };
        if done.is_err() {
            sealer = None;
        }
        Some(done.map(|()| sealed))
    })
}

/// Puts a seal on an image that comes in parts, holding no more of it than a chunk.
pub struct Sealer {
    stream: Stream,
    nonce: [u8; NONCE_BYTES],
    chunk_bytes: u32,
    /// The image's header, as far as it has come.
    header: Vec<u8>,
    /// What goes in front of the chunks; empty until the header has come.
    front: Vec<u8>,
    /// What has come of the next chunk. It is sealed once more comes, or the end: until then it may be the last.
    pending: Vec<u8>,
    position: u32,
}

impl Sealer {
    /// Begins an image. A nonce is drawn from `entropy`, for this one alone.
    pub fn new(key: &SealKey, entropy: &mut Entropy) -> Self {
        // A nonce is drawn as secrets are and then shown to everybody, as it must be.
        let nonce = *entropy.secret().expose();
        Self {
            stream: Stream::new(key.expose().into(), &nonce.into()),
            nonce,
            chunk_bytes: CHUNK_BYTES,
            header: Vec::new(),
            front: Vec::new(),
            pending: Vec::new(),
            position: 0,
        }
    }

    /// The same with this many bytes of the image in a chunk, held to [`CHUNK_LIMITS`]. Memory is bounded by it, and each chunk
    /// takes 16 bytes more.
    #[must_use]
    pub fn with_chunks_of(self, bytes: u32) -> Self {
        Self { chunk_bytes: bytes.clamp(*CHUNK_LIMITS.start(), *CHUNK_LIMITS.end()), ..self }
    }

    /// Takes the next part of the image, and appends to `sealed` what can be written because of it.
    ///
    /// # Errors
    /// If it is no image, or too long.
    pub fn push(&mut self, mut part: &[u8], sealed: &mut Vec<u8>) -> Result<(), SealError> {
        if self.front.is_empty() {
            part = self.take_header(part, sealed)?;
        }
        let most = usize::try_from(self.chunk_bytes).unwrap_or(usize::MAX);
        while !part.is_empty() {
            if self.pending.len() >= most {
                self.emit(false, sealed)?;
            }
            let room = most.saturating_sub(self.pending.len());
            let (now, later) = part.split_at(room.min(part.len()));
            self.pending.extend_from_slice(now);
            part = later;
        }
        Ok(())
    }

    /// Ends the image, and appends the rest to `sealed`.
    ///
    /// # Errors
    /// If not even its header came.
    pub fn finish(mut self, sealed: &mut Vec<u8>) -> Result<(), SealError> {
        if self.front.is_empty() {
            return Err(SealError::NotAnImage(not_an_image(&self.header)));
        }
        self.emit(true, sealed)
    }

    /// Takes what is missing of the image's header, and returns what follows it.
    fn take_header<'a>(&mut self, mut part: &'a [u8], sealed: &mut Vec<u8>) -> Result<&'a [u8], SealError> {
        loop {
            let whole = whole_header(&self.header);
            let missing = whole.unwrap_or(HEADER_BYTES).saturating_sub(self.header.len());
            if missing == 0 {
                break;
            }
            if part.is_empty() {
                return Ok(part);
            }
            let (now, later) = part.split_at(missing.min(part.len()));
            self.header.extend_from_slice(now);
            part = later;
        }
        let header = Image::front(&self.header).map_err(SealError::NotAnImage)?;
        let length = u16::try_from(header.bytes).unwrap_or(u16::MAX);
        self.front = [
            &SEALED_MAGIC[..],
            &SEAL_VERSION.to_le_bytes(),
            &[0; 2],
            &self.chunk_bytes.to_le_bytes(),
            &self.nonce,
            &length.to_le_bytes(),
            &self.header,
        ]
        .concat();
        sealed.extend_from_slice(&self.front);
        Ok(part)
    }

    fn emit(&mut self, is_last: bool, sealed: &mut Vec<u8>) -> Result<(), SealError> {
        self.stream
            .encrypt_in_place(self.position, is_last, &self.front, &mut self.pending)
            .map_err(|_| SealError::TooLong)?;
        sealed.extend_from_slice(&self.pending);
        self.pending.clear();
        if !is_last {
            self.position = self.position.checked_add(1).ok_or(SealError::TooLong)?;
        }
        Ok(())
    }
}

/// How long the header is that begins so, once that can be said.
fn whole_header(header: &[u8]) -> Option<usize> {
    let writer = header.get(..HEADER_BYTES)?.last_chunk::<2>()?;
    let whole = usize::from(u16::from_le_bytes(*writer)).saturating_add(HEADER_BYTES).saturating_add(CHECKSUM_BYTES);
    // A longer one is refused when it is read, and must not be waited for.
    Some(whole.min(MAX_HEADER_BYTES))
}

/// How much of an image is sealed at a time.
const PART_BYTES: usize = 1 << 20;

fn not_an_image(header: &[u8]) -> crate::image::ImageError {
    use crate::image::{ImageError, Place};

    match Image::front(header) {
        Err(error) => error,
        Ok(_) => ImageError::Truncated { place: Place::Header, needed: HEADER_BYTES as u64, left: header.len() },
    }
}
