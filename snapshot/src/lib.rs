//! Checkpoint and restore for sans-IO network state.
//!
//! [`Secret`] and [`Entropy`] type key material from the moment it is drawn; [`image`] is the container, readable without any codec, and
//! [`codec`] encodes a section's body.
//!
//! # What it does not do
//! - **No I/O, clock or randomness**, but for the feature `os`. Seeds and time are arguments.
//! - **No authentication and no encryption.** The checksums find damage, not an adversary: seal the file yourself if
//!   others can write to it. An image holds the users' bytes.
//! - **Wiping is best effort**: a secret is wiped where it is stored, but registers, stack slots that it passed through and
//!   swapped pages are out of reach of safe code.

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub mod codec;
pub mod image;

mod entropy;
mod secret;
mod time;

#[cfg(feature = "os")]
pub use entropy::OsEntropyError;
pub use entropy::{Entropy, GenerationId, Redraw};
pub use secret::Secret;
pub use time::Instant;
