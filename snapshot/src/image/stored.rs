//! Reading an image piece by piece: each section's body is memory of its own, to be freed as soon as it was made use of.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use std::io::Read;

use super::error::{ImageError, Place};
use super::read::{Cursor, Image, Section, check_flags, check_limit, check_sum};
use super::{Header, Limits, PART, REQUIRED, SectionId, TRAILER_BYTES, TRAILER_MAGIC, WRITER_BYTES};

/// An image whose frames and checksums are sound, with its sections apart.
#[derive(Clone, Debug)]
pub struct StoredImage {
    header: Header,
    format_version: u16,
    sections: Vec<StoredSection>,
}

/// One section of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSection {
    /// Its name.
    pub id: SectionId,
    /// The version of its layout.
    pub version: u16,
    /// Whether a reader that does not know it has to refuse the image.
    pub required: bool,
    /// Whether it is one of several sections of that name.
    pub part: bool,
    /// What it holds.
    pub body: Vec<u8>,
}

impl StoredImage {
    /// Takes an image from whatever gives bytes. Accepts and refuses what [`Image::parse`] does.
    ///
    /// # Errors
    /// If a single byte of it is not as it was written, or it exceeds the limits, or `input` fails.
    pub fn read(input: &mut impl Read, limits: &Limits) -> Result<Self, ImageError> {
        let mut source = Source { input, sum: crc32fast::Hasher::new(), taken: 0, limit: limits.image_bytes as u64 };
        let mut head = source.take(HEADER_BYTES)?;
        if head.len() == HEADER_BYTES {
            let length = head.get(WRITER_LENGTH_AT..).and_then(|bytes| bytes.first_chunk()).copied();
            let length = usize::from(length.map_or(0, u16::from_le_bytes)).min(WRITER_BYTES);
            head.extend(source.take(length.saturating_add(4))?);
        }
        let (image, sections) = Image::parse_header(&mut Cursor { bytes: &head, at: 0 })?;
        source.sum.update(&head);
        check_limit("sections", sections.into(), limits.sections.into())?;
        let mut stored =
            Self { header: image.header().clone(), format_version: image.format_version(), sections: Vec::new() };
        for _ in 0..sections {
            let section = source.section(limits, stored.format_version)?;
            let repeats = |other: &StoredSection| other.id == section.id && !(other.part && section.part);
            if stored.sections.iter().any(repeats) {
                return Err(ImageError::DuplicateSection { section: section.id, writer: stored.header.writer });
            }
            stored.sections.push(section);
        }
        source.trailer()?;
        Ok(stored)
    }

    /// Who wrote it, and what it holds.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The format it is written in.
    pub const fn format_version(&self) -> u16 {
        self.format_version
    }

    /// The sections in the order they are written in.
    pub fn sections(&self) -> core::slice::Iter<'_, StoredSection> {
        self.sections.iter()
    }

    /// Takes the sections of that name out.
    pub fn take(&mut self, id: SectionId) -> Vec<StoredSection> {
        self.sections.extract_if(.., |section| section.id == id).collect()
    }

    /// Takes the sections out that are not among `known`.
    pub fn take_unknown(&mut self, known: &[SectionId]) -> Vec<StoredSection> {
        self.sections.extract_if(.., |section| !known.contains(&section.id)).collect()
    }

    /// As [`Image::require_known`].
    ///
    /// # Errors
    /// If a required section is not among `known`.
    pub fn require_known(&self, known: &[SectionId]) -> Result<(), ImageError> {
        match self.sections.iter().find(|section| section.required && !known.contains(&section.id)) {
            None => Ok(()),
            Some(&StoredSection { id, version, .. }) => {
                Err(ImageError::UnknownSection { section: id, version, writer: self.header.writer.clone() })
            }
        }
    }
}

impl From<Image<'_>> for StoredImage {
    fn from(image: Image<'_>) -> Self {
        let stored = |section: &Section<'_>| {
            let Section { id, version, required, part, body } = *section;
            StoredSection { id, version, required, part, body: body.to_vec() }
        };
        Self {
            header: image.header().clone(),
            format_version: image.format_version(),
            sections: image.sections().map(stored).collect(),
        }
    }
}

/// Bytes on their way in, summed.
struct Source<'a, R> {
    input: &'a mut R,
    sum: crc32fast::Hasher,
    taken: u64,
    limit: u64,
}

impl<R: Read> Source<'_, R> {
    /// Up to `count` bytes. Memory grows as they come, whatever a length among them says.
    fn take(&mut self, count: usize) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        if count <= TRUSTED {
            bytes.reserve_exact(count);
        }
        let read = self.input.by_ref().take(count as u64).read_to_end(&mut bytes);
        read.map_err(|error| ImageError::Read { reason: error.to_string() })?;
        self.taken = self.taken.saturating_add(bytes.len() as u64);
        check_limit("bytes", self.taken, self.limit)?;
        Ok(bytes)
    }

    /// `count` bytes, no less.
    fn exactly(&mut self, place: Place, count: u64) -> Result<Vec<u8>, ImageError> {
        let bytes = self.take(usize::try_from(count).unwrap_or(usize::MAX))?;
        if bytes.len() as u64 == count {
            return Ok(bytes);
        }
        Err(ImageError::Truncated { place, needed: count, left: bytes.len() })
    }

    fn section(&mut self, limits: &Limits, format_version: u16) -> Result<StoredSection, ImageError> {
        let frame = self.take(FRAME_BYTES)?;
        let mut cursor = Cursor { bytes: &frame, at: 0 };
        let id = SectionId(u32::from_le_bytes(cursor.array(Place::Frame)?));
        let place = Place::Section(id);
        let version = u16::from_le_bytes(cursor.array(place)?);
        let flags = u16::from_le_bytes(cursor.array(place)?);
        let length = u64::from_le_bytes(cursor.array(place)?);
        let expected = u32::from_le_bytes(cursor.array(place)?);
        let body = self.exactly(place, length)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&body);
        let mut own = crc32fast::Hasher::new();
        own.update(frame.get(..16).unwrap_or_default());
        own.combine(&sum);
        self.sum.update(&frame);
        self.sum.combine(&sum);
        check_sum(place, own.finalize(), expected)?;
        check_flags(place, flags, format_version)?;
        check_limit("bytes in a section", length, limits.section_bytes as u64)?;
        Ok(StoredSection { id, version, required: flags & REQUIRED != 0, part: flags & PART != 0, body })
    }

    fn trailer(&mut self) -> Result<(), ImageError> {
        let place = Place::Trailer;
        let trailer = self.exactly(place, TRAILER_BYTES as u64)?;
        let mut cursor = Cursor { bytes: &trailer, at: 0 };
        let found = cursor.array(place)?;
        if found != TRAILER_MAGIC {
            return Err(ImageError::BadTrailer { found });
        }
        let expected = u64::from_le_bytes(cursor.array(place)?);
        self.sum.update(trailer.get(..16).unwrap_or_default());
        check_sum(place, self.sum.clone().finalize(), u32::from_le_bytes(cursor.array(place)?))?;
        if self.taken != expected {
            return Err(ImageError::Length { found: usize::try_from(self.taken).unwrap_or(usize::MAX), expected });
        }
        match self.take(usize::MAX)?.len() {
            0 => Ok(()),
            left => Err(ImageError::TrailingBytes { left }),
        }
    }
}

/// Of a header without the writer's name and the checksum.
const HEADER_BYTES: usize = 46;
const WRITER_LENGTH_AT: usize = 44;
/// Of a section in front of its body.
const FRAME_BYTES: usize = 20;
/// Bytes for which memory is had on the strength of a length alone.
const TRUSTED: usize = 4 << 20;
