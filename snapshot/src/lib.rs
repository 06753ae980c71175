//! Checkpoint and restore in which every field says what becomes of it.
//!
//! A field of a saved type has exactly one class, and a field without one does not compile:
//!
//! | class | meaning |
//! | --- | --- |
//! | `saved` | written |
//! | `redrawn` | a secret: never written, drawn afresh on restore |
//! | `rebuilt = function` | computed on restore, by that function, from the saved and the redrawn fields |
//! | `supplied` | handed in by the embedder on restore: a device, a waker, a callback |
//!
//! The saved form is a type of its own, made by `#[derive(Snapshot)]`; a [`Secret`] has no saved form at all, so it cannot
//! get into one. A restored value is built, never patched: [`Snapshot::restore`] is a constructor.
//!
//! ```
//! use hibernet_snapshot::image::Limits;
//! use hibernet_snapshot::{Decoded, Entropy, Invalid, Secret, Snapshot, to_image};
//!
//! #[derive(Snapshot)]
//! struct Table {
//!     #[snapshot(saved)]
//!     ports: Vec<u16>,
//!     #[snapshot(redrawn)]
//!     key: Secret<[u8; 16]>,
//!     #[snapshot(rebuilt = index)]
//!     index: Vec<u64>,
//! }
//!
//! /// Files every port under the fresh key.
//! fn index(parts: &TableParts<'_>) -> Result<Vec<u64>, Invalid> {
//!     let key = u64::from(parts.key.expose()[0]);
//!     Ok(parts.ports.iter().map(|port| u64::from(*port) ^ key).collect())
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut entropy = Entropy::from_test_seed(1);
//! let table = Table { ports: vec![80, 443], key: entropy.secret(), index: vec![] };
//! let image = to_image(&table, "example 1.0", entropy.public_id())?;
//!
//! let copy = Decoded::<Table>::open(&image, &Limits::default())?.restore((), &mut entropy)?;
//! assert_eq!(copy.ports, [80, 443]);
//! assert_ne!(copy.key.expose(), table.key.expose());
//! assert_eq!(copy.index.len(), 2);
//! # Ok(())
//! # }
//! ```
//!
//! # The parts
//! - [`Snapshot`], its derive, and the [`Schema`] that shows a change of layout in review.
//! - [`Secret`] and [`Entropy`]: key material is typed from the moment it is drawn.
//! - [`image`]: the container, readable without any codec. [`codec`]: how a section's body is encoded.
//! - [`diff`]: what a save holds and what changed between two, for people and for tests.
//! - [`seal`]: an image encrypted and authenticated under a key.
//! - `file` (feature `os`): puts an image in a file so that a crash leaves the old file or the new one.
//!
//! # What it does not do
//! - **No I/O, clock or randomness**, but for the feature `os`. Seeds and time are arguments.
//! - **No authentication and no encryption of an image that is not sealed.** Its checksums find damage, not an adversary.
//!   An image holds the users' bytes.
//! - **No migration by guessing.** An image of another schema is refused, with both fingerprints, unless it is told how the older
//!   layout becomes the present one ([`Older`]).
//! - **No recursive types**: the schema is a constant, and would be infinite.
//! - **Wiping is best effort**: a secret is wiped where it is stored, but registers, stack slots that it passed through and
//!   swapped pages are out of reach of safe code.

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

// The derive names this crate `::hibernet_snapshot`, also when it is used in here.
extern crate self as hibernet_snapshot;

pub mod codec;
pub mod diff;
pub mod digest;
#[cfg(feature = "os")]
pub mod file;
pub mod image;
pub mod seal;

mod decoded;
mod entropy;
mod invalid;
mod leaves;
mod schema;
mod secret;
mod snapshot;
mod time;

pub use hibernet_snapshot_derive::Snapshot;

pub use decoded::{Decoded, Older, RestoreError, to_image};
#[cfg(feature = "os")]
pub use entropy::OsEntropyError;
pub use entropy::{Entropy, GenerationId, Redraw};
pub use invalid::Invalid;
pub use leaves::DurationSaved;
pub use schema::{FieldClass, FieldSchema, Schema, VariantSchema};
pub use secret::Secret;
pub use snapshot::Snapshot;
pub use time::Instant;

/// What code made by the derive needs. Not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use serde;

    pub use crate::snapshot::SavedField;
}
