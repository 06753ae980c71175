//! The container: a hand-written header, framed sections, a trailer. It is readable without any codec.
//!
//! All integers are little-endian. Reserved bits are zero, and refused otherwise. This header keeps its layout in every format
//! version, so that any reader can name the program that wrote an image it is too old for.
//!
//! | header | bytes | |
//! | --- | --- | --- |
//! | magic | 8 | `HIBERNET` |
//! | format version | 2 | of the container and its sections |
//! | minimum reader version | 2 | the oldest format version whose reader understands this image |
//! | flags | 4 | reserved |
//! | schema | 8 | fingerprint of what the sections hold |
//! | generation | 16 | names the saved instance |
//! | section count | 4 | |
//! | writer length | 2 | up to [`WRITER_BYTES`] |
//! | writer | | name and version of the program, UTF-8 |
//! | checksum | 4 | CRC-32 of the above |
//!
//! | section | bytes | |
//! | --- | --- | --- |
//! | id | 4 | four ASCII letters; each occurs once, unless bit 1 of the flags says otherwise |
//! | version | 2 | of this section's layout |
//! | flags | 2 | bit 0: required. Bit 1, from version 2 on: one of several sections of that id. Other bits reserved |
//! | length | 8 | of the body |
//! | checksum | 4 | CRC-32 of the above and the body |
//! | body | | |
//!
//! | trailer | bytes | |
//! | --- | --- | --- |
//! | magic | 8 | `TENREBIH` |
//! | total length | 8 | of the image, trailer included |
//! | checksum | 4 | CRC-32 of all before it |
//!
//! An image says the lowest version that describes it: one without parts is of version 1, whoever wrote it.
//!
//! **A CRC finds damage, not an adversary**: whoever can write the file can make its checksums right. Everything read from an
//! image is therefore validated as hostile; who must know that an image is the one they saved seals it ([`crate::seal`]).

mod error;
mod read;
mod stored;
mod stream;
mod write;

use core::fmt;

use crate::GenerationId;

pub use error::{ImageError, Place};
pub use read::{Front, Image, Section};
pub use stored::{StoredImage, StoredSection};
pub use stream::{BodySum, Frame, ImageStream};
pub use write::ImageWriter;

/// The newest version of the format that this build writes and reads. It reads all before it.
pub const FORMAT_VERSION: u16 = 2;

/// The version of images that need nothing which came later.
pub(crate) const FIRST_VERSION: u16 = 1;

/// The longest writer string a header can hold.
pub const WRITER_BYTES: usize = 128;

/// Who wrote an image, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Fingerprint of the schema of what the sections hold.
    pub schema: u64,
    /// The program that wrote it: name and version. What exceeds [`WRITER_BYTES`] is not written.
    pub writer: String,
    /// The saved instance.
    pub generation: GenerationId,
}

/// The name of a section: four ASCII letters, first letter in the lowest byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionId(pub u32);

impl SectionId {
    /// The id spelled `letters`.
    pub const fn new(letters: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(letters))
    }
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.to_le_bytes().escape_ascii())
    }
}

impl fmt::Debug for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SectionId({self})")
    }
}

/// What a reader does that does not know a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// It refuses the image.
    Required,
    /// It skips the section.
    Optional,
}

/// What a reader accepts at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an image.
    pub image_bytes: usize,
    /// Sections of an image.
    pub sections: u32,
    /// Bytes of one section's body.
    pub section_bytes: usize,
}

impl Default for Limits {
    /// Images and sections up to 1 GiB, 4096 sections.
    fn default() -> Self {
        Self { image_bytes: 1 << 30, sections: 4096, section_bytes: 1 << 30 }
    }
}

const MAGIC: [u8; 8] = *b"HIBERNET";
const TRAILER_MAGIC: [u8; 8] = *b"TENREBIH";
const TRAILER_BYTES: usize = 20;
const REQUIRED: u16 = 1;
const PART: u16 = 2;
/// How a sealed image starts, so that its reader can say what it is.
pub(crate) const SEALED_MAGIC: [u8; 8] = *b"HIBRSEAL";

#[cfg(test)]
mod tests;
