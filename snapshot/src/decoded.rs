//! One value, one image: the steps for types that derive `Snapshot` and need no more.

use core::fmt;

use crate::codec::{self, CodecError};
use crate::image::{Header, Image, ImageError, ImageWriter, Limits, Requirement, SectionId};
use crate::{Entropy, GenerationId, Invalid, Snapshot};

/// Saves `value` as an image of one section. `writer` is the program's name and version, `generation` a fresh id.
///
/// # Errors
/// If the saved form cannot be encoded.
pub fn to_image<T: Snapshot>(value: &T, writer: &str, generation: GenerationId) -> Result<Vec<u8>, CodecError> {
    let body = codec::encode(&value.save())?;
    let header = Header { schema: T::SCHEMA.fingerprint(), writer: writer.to_owned(), generation };
    let mut image = ImageWriter::new(&header);
    image.section(VALUE, VALUE_VERSION, Requirement::Required, &body);
    Ok(image.finish())
}

/// A saved form that is back in memory, but is not a `T` yet: it has no secrets, and nothing of it was validated.
pub struct Decoded<T: Snapshot> {
    header: Header,
    saved: T::Saved,
}

impl<T: Snapshot> Decoded<T> {
    /// Opens an image made by [`to_image`].
    ///
    /// # Errors
    /// If the image is damaged, of another schema, or does not decode.
    pub fn open(bytes: &[u8], limits: &Limits) -> Result<Self, RestoreError> {
        let image = Image::parse(bytes, limits)?;
        let header = image.header().clone();
        let (found, expected) = (header.schema, T::SCHEMA.fingerprint());
        if found != expected {
            return Err(RestoreError::Schema { found, expected, writer: header.writer });
        }
        image.require_known(&[VALUE])?;
        let Some(section) = image.section(VALUE) else {
            return Err(RestoreError::Missing { section: VALUE, writer: header.writer });
        };
        if section.version != VALUE_VERSION {
            let (section, found, expected) = (VALUE, section.version, VALUE_VERSION);
            return Err(RestoreError::SectionVersion { section, found, expected, writer: header.writer });
        }
        Ok(Self { saved: codec::decode(section.body, limits)?, header })
    }

    /// Who saved it, and as which generation.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What was saved, to look at before restoring: an enum's variant decides what it wants supplied.
    pub fn saved(&self) -> &T::Saved {
        &self.saved
    }

    /// Makes a `T` of it, with fresh secrets.
    ///
    /// # Errors
    /// If a saved value breaks a rule of its type. Then nothing was built.
    pub fn restore(self, supplied: T::Supplied, entropy: &mut Entropy) -> Result<T, RestoreError> {
        Ok(T::restore(self.saved, supplied, entropy)?)
    }
}

impl<T: Snapshot> fmt::Debug for Decoded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { header, saved } = self;
        f.debug_struct("Decoded").field("header", header).field("saved", saved).finish()
    }
}

/// Why a value was not restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The container is not sound.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The saved form has another layout.
    #[error("saved with schema {found:016x}, this build reads {expected:016x}; written by {writer:?}")]
    Schema {
        /// The image's fingerprint.
        found: u64,
        /// This build's fingerprint.
        expected: u64,
        /// The program that wrote it.
        writer: String,
    },
    /// The section with the value is not there.
    #[error("section {section} is missing; written by {writer:?}")]
    Missing {
        /// The section.
        section: SectionId,
        /// The program that wrote it.
        writer: String,
    },
    /// The section has a version this build does not read.
    #[error("section {section} has version {found}, this build reads {expected}; written by {writer:?}")]
    SectionVersion {
        /// The section.
        section: SectionId,
        /// Its version.
        found: u16,
        /// The version this build reads.
        expected: u16,
        /// The program that wrote it.
        writer: String,
    },
    /// The section's body does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A decoded value breaks a rule.
    #[error("not a valid state: {0}")]
    Invalid(#[from] Invalid),
}

const VALUE: SectionId = SectionId::new(*b"VALU");
const VALUE_VERSION: u16 = 1;
