//! Taking a seal off what comes piece by piece.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::io::{self, Read};

use aead_stream::{NewStream, StreamPrimitive};

use super::error::SealError;
use super::key::SealKey;
use super::open::{Parts, refusal};
use super::{FRONT_BYTES, MAX_HEADER_BYTES, Stream, TAG_BYTES};

/// A sealed image on its way in: reads as the image. Holds one chunk.
///
/// A chunk that does not open is an error of kind [`io::ErrorKind::InvalidData`] with a [`SealError`] in it. What was read before
/// belongs to no whole image then: make use of it only once the end has come, as [`crate::image::StoredImage::read`] does.
pub struct Unsealer<R> {
    input: R,
    stream: Stream,
    front: Vec<u8>,
    chunk_bytes: usize,
    /// Sealed bytes that are still to be opened; one more than a chunk tells that it is not the last.
    sealed: Vec<u8>,
    plain: Vec<u8>,
    given: usize,
    position: u32,
    ended: bool,
}

impl<R: Read> Unsealer<R> {
    /// Begins to open what `input` gives.
    ///
    /// # Errors
    /// If the input fails, or does not begin as a sealed image: what is not sealed is refused.
    pub fn begin(mut input: R, key: &SealKey) -> io::Result<Self> {
        let mut front = Vec::new();
        input.by_ref().take(FRONT_BYTES as u64).read_to_end(&mut front)?;
        let length = front.last_chunk().copied().map_or(0, u16::from_le_bytes);
        let rest = usize::from(length).min(MAX_HEADER_BYTES);
        if front.len() == FRONT_BYTES {
            input.by_ref().take(rest as u64).read_to_end(&mut front)?;
        }
        let Parts { nonce, chunk_bytes, header_at, chunks_at } = Parts::read(&front).map_err(refused)?;
        // The header is the first of the image, and believed once the first chunk opens.
        let plain = front.get(header_at..chunks_at).unwrap_or_default().to_vec();
        let stream = Stream::new(key.expose().into(), &nonce.into());
        let mut unsealer = Self {
            input,
            stream,
            front,
            chunk_bytes,
            sealed: Vec::new(),
            plain: Vec::new(),
            given: 0,
            position: 0,
            ended: false,
        };
        unsealer.next_chunk()?;
        unsealer.plain.splice(0..0, plain);
        Ok(unsealer)
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let step = self.chunk_bytes.saturating_add(TAG_BYTES);
        let wanted = step.saturating_add(1).saturating_sub(self.sealed.len());
        self.input.by_ref().take(wanted as u64).read_to_end(&mut self.sealed)?;
        let is_last = self.sealed.len() <= step;
        let ahead = if is_last { None } else { self.sealed.pop() };
        core::mem::swap(&mut self.plain, &mut self.sealed);
        self.sealed.clear();
        self.sealed.extend(ahead);
        self.given = 0;
        if self.plain.len() < TAG_BYTES {
            let left = core::mem::take(&mut self.plain).len();
            return Err(refused(SealError::Truncated { needed: TAG_BYTES, left }));
        }
        // What is read must not be what failed to open, so the sealed bytes are kept to tell why.
        let piece = self.plain.clone();
        if self.stream.decrypt_in_place(self.position, is_last, &self.front, &mut self.plain).is_err() {
            self.plain.clear();
            return Err(refused(refusal(&self.stream, self.position, is_last, &self.front, &piece)));
        }
        self.ended = is_last;
        if !is_last {
            self.position = self.position.checked_add(1).ok_or_else(|| refused(SealError::TooLong))?;
        }
        Ok(())
    }
}

impl<R: Read> Read for Unsealer<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.given == self.plain.len() {
            if self.ended || to.is_empty() {
                return Ok(0);
            }
            self.next_chunk()?;
        }
        let left = self.plain.get(self.given..).unwrap_or_default();
        let count = left.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..count), left.get(..count)) {
            to.copy_from_slice(from);
        }
        self.given = self.given.saturating_add(count);
        Ok(count)
    }
}

impl<R> core::fmt::Debug for Unsealer<R> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Unsealer").field("position", &self.position).finish_non_exhaustive()
    }
}

fn refused(error: SealError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
