//! Why an image is refused.

use super::SectionId;

/// Why an image was refused. Nothing of it was used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Not an image, or one whose first bytes are damaged.
    #[error("not a hibernet image: it starts with \"{}\", expected \"HIBERNET\"", found.escape_ascii())]
    BadMagic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// The image is sealed, and has to be opened with its key first.
    #[error("the image is sealed: it is read with the key it was sealed with")]
    Sealed,
    /// The image needs a newer reader.
    #[error(
        "image format {found} needs a reader of format {min_reader} or newer, this build reads up to {newest}; written by {writer:?}"
    )]
    TooNew {
        /// The image's format version.
        found: u16,
        /// The oldest reader that understands it.
        min_reader: u16,
        /// The newest format version this build reads.
        newest: u16,
        /// The program that wrote it.
        writer: String,
    },
    /// The versions contradict each other.
    #[error(
        "image format {found} with minimum reader {min_reader}, expected 1 <= reader <= format; written by {writer:?}"
    )]
    BadVersion {
        /// The image's format version.
        found: u16,
        /// The oldest reader that is said to understand it.
        min_reader: u16,
        /// The program that wrote it.
        writer: String,
    },
    /// The image ends early.
    #[error("truncated in the {place}: {needed} bytes needed, {left} left")]
    Truncated {
        /// The part that is cut.
        place: Place,
        /// How many bytes it takes.
        needed: u64,
        /// How many there are.
        left: usize,
    },
    /// Bytes follow the image's end.
    #[error("{left} bytes follow the trailer")]
    TrailingBytes {
        /// How many.
        left: usize,
    },
    /// The bytes were changed since they were written.
    #[error("damaged {place}: checksum {found:08x}, expected {expected:08x}")]
    Checksum {
        /// The part that is damaged.
        place: Place,
        /// The checksum of the bytes there are.
        found: u32,
        /// The checksum written with them.
        expected: u32,
    },
    /// A reserved bit is set.
    #[error("reserved bits {bits:#x} set in the {place}, expected none")]
    Reserved {
        /// The part they are in.
        place: Place,
        /// The bits.
        bits: u32,
    },
    /// The writer's name is not UTF-8, or longer than allowed.
    #[error("the writer's name is {found}, expected {expected}")]
    BadWriter {
        /// What was found.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// Two sections have one id.
    #[error("section {section} occurs twice; written by {writer:?}")]
    DuplicateSection {
        /// The section.
        section: SectionId,
        /// The program that wrote it.
        writer: String,
    },
    /// A section that must be understood is not known.
    #[error("section {section} (version {version}) is required and not known to this build; written by {writer:?}")]
    UnknownSection {
        /// The section.
        section: SectionId,
        /// Its version.
        version: u16,
        /// The program that wrote it.
        writer: String,
    },
    /// The trailer is not where the sections end.
    #[error("the trailer starts with {:?}, expected {:?}", found.escape_ascii().to_string(), "TENREBIH")]
    BadTrailer {
        /// The bytes in its place.
        found: [u8; 8],
    },
    /// The image is not as long as its trailer says.
    #[error("{found} bytes, the trailer says {expected}")]
    Length {
        /// How long it is.
        found: usize,
        /// How long it says it is.
        expected: u64,
    },
    /// The bytes could not be had.
    #[error("reading the image: {reason}")]
    Read {
        /// What was in the way.
        reason: String,
    },
    /// More than the reader accepts.
    #[error("{found} {what}, the limit is {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much is accepted.
        limit: u64,
    },
}

/// A part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The header.
    Header,
    /// The frame of a section whose id is not known yet.
    Frame,
    /// A section.
    Section(SectionId),
    /// The trailer, whose checksum covers the whole image.
    Trailer,
}

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Frame => f.write_str("frame of a section"),
            Self::Section(id) => write!(f, "section {id}"),
            Self::Trailer => f.write_str("trailer"),
        }
    }
}
