//! Sealed images: nobody without the key reads them, and a change of a single bit is refused before anything is decoded.
//!
//! XChaCha20-Poly1305 in chunks, each with a nonce that holds its number and whether it is the last (the STREAM construction:
//! Hoang, Reyhanitabar, Rogaway and Vizár, 2015), so that chunks cannot be left out, repeated, or put in another order.
//! In front stands the image's header, with bit 0 of its flags set: who wrote the image can be told without the key. It
//! is authenticated with every chunk.
//!
//! | sealed image | bytes | |
//! | --- | --- | --- |
//! | header | | as of an image ([`crate::image`]), flags bit 0 set, no sections counted |
//! | nonce prefix | 19 | random |
//! | chunks | | 65,536 bytes of the image each, the last 1 to 65,536, encrypted; a 16-byte tag behind each |
//!
//! The nonce of a chunk is the prefix, the chunk's number (u32, big-endian), and 1 for the last chunk, 0 for others.

use core::fmt;
use std::io::{self, Read};

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};

pub use crate::image::SealError;
use crate::image::{FORMAT_VERSION, Header, SEALED, header_bytes};
use crate::{Entropy, Secret};

/// The key of sealed images. Who has it can read and forge them.
pub struct SealKey(Secret<[u8; KEY_BYTES]>);

impl SealKey {
    /// A key that the embedder keeps somewhere.
    pub const fn new(key: Secret<[u8; KEY_BYTES]>) -> Self {
        Self(key)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&Key::from(*self.0.expose()))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// Seals an image on its way out: takes its bytes in any pieces, and hands sealed ones to `sink`. Holds one chunk.
pub struct Sealer<S> {
    cipher: XChaCha20Poly1305,
    associated: Vec<u8>,
    prefix: [u8; PREFIX_BYTES],
    chunk: Vec<u8>,
    number: u32,
    sink: S,
}

impl<S> fmt::Debug for Sealer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Why an image was not sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSealed<E> {
    /// What takes the bytes did not.
    #[error(transparent)]
    Sink(E),
    /// The image is longer than can be sealed.
    #[error("the image is longer than can be sealed, 2^48 bytes")]
    TooLong,
}

impl<E, S: FnMut(&[u8]) -> Result<(), E>> Sealer<S> {
    /// Begins a sealed image; `header` is that of the image.
    ///
    /// # Errors
    /// Those of `sink`, here and in the other methods.
    pub fn begin(header: &Header, key: &SealKey, entropy: &mut Entropy, mut sink: S) -> Result<Self, NotSealed<E>> {
        let prefix = *entropy.secret::<PREFIX_BYTES>().expose();
        let mut associated = header_bytes(header, FORMAT_VERSION, SEALED, 0);
        associated.extend(prefix);
        sink(&associated).map_err(NotSealed::Sink)?;
        let chunk = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
        Ok(Self { cipher: key.cipher(), associated, prefix, chunk, number: 0, sink })
    }

    /// Takes the next bytes of the image.
    ///
    /// # Errors
    /// Those of `sink`, or if the image is too long.
    pub fn put(&mut self, mut bytes: &[u8]) -> Result<(), NotSealed<E>> {
        while !bytes.is_empty() {
            if self.chunk.len() == CHUNK_BYTES {
                self.seal(false)?;
            }
            let room = CHUNK_BYTES.saturating_sub(self.chunk.len()).min(bytes.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.chunk.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Seals what is left, as the end.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn finish(mut self) -> Result<(), NotSealed<E>> {
        self.seal(true)
    }

    fn seal(&mut self, last: bool) -> Result<(), NotSealed<E>> {
        let nonce = nonce(&self.prefix, self.number, last);
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce, &self.associated, self.chunk.as_mut_slice().into())
            .map_err(|_| NotSealed::TooLong)?;
        self.chunk.extend_from_slice(&tag);
        (self.sink)(&self.chunk).map_err(NotSealed::Sink)?;
        self.chunk.clear();
        self.number = self.number.checked_add(1).ok_or(NotSealed::TooLong)?;
        Ok(())
    }
}

/// A sealed image on its way in: gives the bytes of the image. Holds one chunk. A chunk that does not hold is an error of
/// kind [`io::ErrorKind::InvalidData`] with a [`SealError`] in it; what was given before it belongs to no whole image, which
/// [`crate::image::StoredImage::read`] makes use of only when it has all of it.
pub struct Unsealer<R> {
    input: R,
    cipher: XChaCha20Poly1305,
    associated: Vec<u8>,
    writer: String,
    prefix: [u8; PREFIX_BYTES],
    /// Sealed bytes that are still to be opened; one more than a chunk tells that it is not the last.
    sealed: Vec<u8>,
    plain: Vec<u8>,
    given: usize,
    number: u32,
    ended: bool,
}

impl<R> fmt::Debug for Unsealer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsealer").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<R: Read> Unsealer<R> {
    /// Begins to open a sealed image.
    ///
    /// # Errors
    /// If the input fails, or does not begin like a sealed image.
    pub fn begin(mut input: R, key: &SealKey) -> io::Result<Self> {
        let header = crate::image::sealed_header(&mut input)?;
        let (mut associated, writer) = header.map_err(refused)?;
        let mut prefix = [0; PREFIX_BYTES];
        input.read_exact(&mut prefix).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refused(SealError::Broken { chunk: 0, writer: writer.clone() }),
            _ => error,
        })?;
        associated.extend(prefix);
        Ok(Self {
            input,
            cipher: key.cipher(),
            associated,
            writer,
            prefix,
            sealed: Vec::new(),
            plain: Vec::new(),
            given: 0,
            number: 0,
            ended: false,
        })
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let wanted = (CHUNK_BYTES + TAG_BYTES + 1).saturating_sub(self.sealed.len());
        self.input.by_ref().take(wanted as u64).read_to_end(&mut self.sealed)?;
        let last = self.sealed.len() <= CHUNK_BYTES + TAG_BYTES;
        let ahead = if last { None } else { self.sealed.pop() };
        core::mem::swap(&mut self.plain, &mut self.sealed);
        self.sealed.clear();
        self.sealed.extend(ahead);
        self.given = 0;
        let broken = || refused(SealError::Broken { chunk: self.number, writer: self.writer.clone() });
        let length = self.plain.len().checked_sub(TAG_BYTES).filter(|length| *length > 0).ok_or_else(broken)?;
        let (chunk, tag) = self.plain.split_at_mut_checked(length).ok_or_else(broken)?;
        let tag = Tag::try_from(&*tag).map_err(|_| broken())?;
        let nonce = nonce(&self.prefix, self.number, last);
        let opened = self.cipher.decrypt_inout_detached(&nonce, &self.associated, chunk.into(), &tag);
        if opened.is_err() {
            self.plain.clear();
            return Err(refused(SealError::Broken { chunk: self.number, writer: self.writer.clone() }));
        }
        self.plain.truncate(length);
        self.ended = last;
        self.number = match self.number.checked_add(1) {
            Some(next) => next,
            None if last => self.number,
            None => return Err(refused(SealError::TooLong)),
        };
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
        for (to, from) in to.iter_mut().zip(left) {
            *to = *from;
        }
        self.given = self.given.saturating_add(count);
        Ok(count)
    }
}

fn refused(error: SealError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn nonce(prefix: &[u8; PREFIX_BYTES], number: u32, last: bool) -> XNonce {
    let mut nonce = [0; 24];
    nonce[..PREFIX_BYTES].copy_from_slice(prefix);
    nonce[PREFIX_BYTES..23].copy_from_slice(&number.to_be_bytes());
    nonce[23] = u8::from(last);
    XNonce::from(nonce)
}

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
const PREFIX_BYTES: usize = 19;
const CHUNK_BYTES: usize = 1 << 16;
const TAG_BYTES: usize = 16;

#[cfg(test)]
mod tests;
