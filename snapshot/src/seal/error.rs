//! Why a seal was not put on, or does not come off.

use super::{CHUNK_LIMITS, SEAL_VERSION};
use crate::image::ImageError;

/// Why an image was not sealed, or not opened. Nothing of it was decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// What was to be sealed is no image.
    #[error("what is to be sealed is no image: {0}")]
    NotAnImage(ImageError),
    /// There is no seal.
    #[error("not sealed: it starts with \"{}\", expected \"HIBRSEAL\"", found.escape_ascii())]
    NotSealed {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// The seal is newer than this build.
    #[error("sealed with version {found}, this build opens version {SEAL_VERSION}")]
    TooNew {
        /// The seal's version.
        found: u16,
    },
    /// Something in front of the chunks cannot be.
    #[error("sealed, and the front is not sound: {what} {found}, expected {expected}")]
    Front {
        /// Which part.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What it can be.
        expected: &'static str,
    },
    /// It ends too early.
    #[error("sealed, and cut off: {left} bytes are left where {needed} are needed")]
    Truncated {
        /// How many bytes the next part takes at least.
        needed: usize,
        /// How many there are.
        left: usize,
    },
    /// Its first chunk does not open.
    #[error("sealed, and does not open: the wrong key, or the file was changed since it was sealed")]
    DoesNotOpen,
    /// A later chunk does not open: the key is right.
    #[error("sealed, and chunk {chunk} does not open: the file was changed since it was sealed")]
    Changed {
        /// Its number, from 0.
        chunk: u32,
    },
    /// All chunks open, but there were more.
    #[error("sealed, and cut off behind chunk {chunk}: the file was changed since it was sealed")]
    CutOff {
        /// The last chunk's number, from 0.
        chunk: u32,
    },
    /// No key seals so much at once.
    #[error("the image has more chunks than a seal can count: take larger ones, up to {} bytes", CHUNK_LIMITS.end())]
    TooLong,
}
