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

    /// The same for an image of this layout or an older one, which is brought to this one as it is read.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), where neither layout is the image's.
    pub fn open_or_older(bytes: &[u8], limits: &Limits, older: &[Older<T>]) -> Result<Self, RestoreError> {
        let schema = Image::parse(bytes, limits)?.header().schema;
        match older.iter().find(|layout| layout.schema == schema) {
            Some(layout) => (layout.read)(bytes, limits),
            None => Self::open(bytes, limits),
        }
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

/// A layout that `T` had once, and how it is brought to the present one.
///
/// The old layout is a type of its own that derives `Snapshot`, with the names it had: it is never built, and its schema's
/// fingerprint is what old images have in their headers.
pub struct Older<T: Snapshot> {
    schema: u64,
    read: Box<ReadOlder<T>>,
}

type ReadOlder<T> = dyn Fn(&[u8], &Limits) -> Result<Decoded<T>, RestoreError>;

impl<T: Snapshot> Older<T> {
    /// The layout of `Old`. What `T` has and `Old` had not, `upgrade` makes up; what cannot be, `T`'s own rules refuse afterwards.
    pub fn new<Old: Snapshot>(upgrade: impl Fn(Old::Saved) -> T::Saved + 'static) -> Self {
        let read = move |bytes: &[u8], limits: &Limits| {
            let Decoded { header, saved } = Decoded::<Old>::open(bytes, limits)?;
            Ok(Decoded { header, saved: upgrade(saved) })
        };
        Self { schema: Old::SCHEMA.fingerprint(), read: Box::new(read) }
    }
}

impl<T: Snapshot> fmt::Debug for Older<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Older({:016x})", self.schema)
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
