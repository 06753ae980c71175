//! Reading an image. Every byte of the input may be hostile.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use super::error::{ImageError, Place};
use super::{
    FIRST_VERSION, FORMAT_VERSION, Header, Limits, MAGIC, PART, REQUIRED, SEALED_MAGIC, SectionId, TRAILER_BYTES,
    TRAILER_MAGIC, WRITER_BYTES,
};
use crate::GenerationId;

/// An image whose frames and checksums are sound. What the sections hold is not looked at.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    header: Header,
    format_version: u16,
    min_reader: u16,
    sections: Vec<Section<'a>>,
}

/// One section of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// Its name.
    pub id: SectionId,
    /// The version of its layout.
    pub version: u16,
    /// Whether a reader that does not know it has to refuse the image.
    pub required: bool,
    /// Whether it is one of several sections of that name.
    pub part: bool,
    /// What it holds.
    pub body: &'a [u8],
}

/// What an image's header says: [`Image::front`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Front {
    /// Who wrote the image, and what it holds.
    pub header: Header,
    /// The format it is written in.
    pub format_version: u16,
    /// The oldest format version whose reader understands it.
    pub min_reader: u16,
    /// How many sections follow.
    pub sections: u32,
    /// Bytes of the header.
    pub bytes: usize,
}

impl<'a> Image<'a> {
    /// Takes an image apart.
    ///
    /// # Errors
    /// If a single byte of it is not as it was written, or it exceeds the limits.
    pub fn parse(bytes: &'a [u8], limits: &Limits) -> Result<Self, ImageError> {
        check_limit("bytes", bytes.len() as u64, limits.image_bytes as u64)?;
        let mut cursor = Cursor { bytes, at: 0 };
        let (mut image, section_count) = Self::parse_header(&mut cursor)?;
        check_limit("sections", section_count.into(), limits.sections.into())?;
        for _ in 0..section_count {
            let section = parse_section(&mut cursor, limits, image.format_version)?;
            let repeats = |other: &Section<'_>| other.id == section.id && !(other.part && section.part);
            if image.sections.iter().any(repeats) {
                return Err(ImageError::DuplicateSection { section: section.id, writer: image.header.writer });
            }
            image.sections.push(section);
        }
        parse_trailer(&mut cursor)?;
        Ok(image)
    }

    /// Who wrote it, and what it holds.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The format it is written in.
    pub fn format_version(&self) -> u16 {
        self.format_version
    }

    /// The oldest format version whose reader understands it.
    pub fn min_reader(&self) -> u16 {
        self.min_reader
    }

    /// What an image's header says, of an image of which nothing else is looked at, nor need be there.
    ///
    /// # Errors
    /// If the header is damaged, or of a format that this build does not read.
    pub fn front(bytes: &[u8]) -> Result<Front, ImageError> {
        let mut cursor = Cursor { bytes, at: 0 };
        let (image, sections) = Image::parse_header(&mut cursor)?;
        let Image { header, format_version, min_reader, .. } = image;
        Ok(Front { header, format_version, min_reader, sections, bytes: cursor.at })
    }

    /// The sections in the order they are written in.
    pub fn sections(&self) -> core::slice::Iter<'_, Section<'a>> {
        self.sections.iter()
    }

    /// The section with this name.
    pub fn section(&self, id: SectionId) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.id == id)
    }

    /// Makes sure that nothing required goes unread. Optional sections that are not `known` are there to be skipped.
    ///
    /// # Errors
    /// If a required section is not among `known`.
    pub fn require_known(&self, known: &[SectionId]) -> Result<(), ImageError> {
        match self.sections.iter().find(|section| section.required && !known.contains(&section.id)) {
            None => Ok(()),
            Some(&Section { id, version, .. }) => {
                Err(ImageError::UnknownSection { section: id, version, writer: self.header.writer.clone() })
            }
        }
    }

    pub(super) fn parse_header(cursor: &mut Cursor<'a>) -> Result<(Self, u32), ImageError> {
        // A file too short for the magic is foreign rather than cut, unless it begins like an image.
        let start = cursor.bytes.get(..MAGIC.len()).unwrap_or(cursor.bytes);
        if start == SEALED_MAGIC {
            return Err(ImageError::Sealed);
        }
        if !MAGIC.starts_with(start) {
            return Err(ImageError::BadMagic { found: start.to_vec() });
        }
        let place = Place::Header;
        cursor.array::<8>(place)?;
        let format_version = u16::from_le_bytes(cursor.array(place)?);
        let min_reader = u16::from_le_bytes(cursor.array(place)?);
        let flags = u32::from_le_bytes(cursor.array(place)?);
        let schema = u64::from_le_bytes(cursor.array(place)?);
        let generation = GenerationId(cursor.array(place)?);
        let section_count = u32::from_le_bytes(cursor.array(place)?);
        let writer_length = usize::from(u16::from_le_bytes(cursor.array(place)?));
        if writer_length > WRITER_BYTES {
            let (found, expected) = (format!("{writer_length} bytes long"), format!("up to {WRITER_BYTES}"));
            return Err(ImageError::BadWriter { found, expected });
        }
        let writer = cursor.take(place, writer_length as u64)?;
        cursor.checksum(place, cursor.consumed())?;

        // Sound from here on: what is wrong now was written so.
        let writer = String::from_utf8(writer.to_vec())
            .map_err(|_| ImageError::BadWriter { found: "not UTF-8".to_owned(), expected: "UTF-8".to_owned() })?;
        if min_reader > FORMAT_VERSION {
            let newest = FORMAT_VERSION;
            return Err(ImageError::TooNew { found: format_version, min_reader, newest, writer });
        }
        if min_reader == 0 || min_reader > format_version {
            return Err(ImageError::BadVersion { found: format_version, min_reader, writer });
        }
        if flags != 0 {
            return Err(ImageError::Reserved { place, bits: flags });
        }
        let header = Header { schema, writer, generation };
        Ok((Self { header, format_version, min_reader, sections: Vec::new() }, section_count))
    }
}

fn parse_section<'a>(cursor: &mut Cursor<'a>, limits: &Limits, format_version: u16) -> Result<Section<'a>, ImageError> {
    let frame = cursor.rest();
    let id = SectionId(u32::from_le_bytes(cursor.array(Place::Frame)?));
    let place = Place::Section(id);
    let version = u16::from_le_bytes(cursor.array(place)?);
    let flags = u16::from_le_bytes(cursor.array(place)?);
    let length = u64::from_le_bytes(cursor.array(place)?);
    let expected = u32::from_le_bytes(cursor.array(place)?);
    let body = cursor.take(place, length)?;

    let mut checksum = crc32fast::Hasher::new();
    checksum.update(frame.get(..FRAME_SUMMED).unwrap_or_default());
    checksum.update(body);
    check_sum(place, checksum.finalize(), expected)?;
    check_flags(place, flags, format_version)?;
    check_limit("bytes in a section", length, limits.section_bytes as u64)?;
    Ok(Section { id, version, required: flags & REQUIRED != 0, part: flags & PART != 0, body })
}

fn parse_trailer(cursor: &mut Cursor<'_>) -> Result<(), ImageError> {
    let place = Place::Trailer;
    let left = cursor.rest().len();
    if left < TRAILER_BYTES {
        return Err(ImageError::Truncated { place, needed: TRAILER_BYTES as u64, left });
    }
    let found = cursor.array(place)?;
    if found != TRAILER_MAGIC {
        return Err(ImageError::BadTrailer { found });
    }
    let expected = u64::from_le_bytes(cursor.array(place)?);
    cursor.checksum(place, cursor.consumed())?;
    let (found, left) = (cursor.consumed().len(), cursor.rest().len());
    if found as u64 != expected {
        return Err(ImageError::Length { found, expected });
    }
    if left != 0 {
        return Err(ImageError::TrailingBytes { left });
    }
    Ok(())
}

pub(super) fn check_flags(place: Place, flags: u16, format_version: u16) -> Result<(), ImageError> {
    let known = if format_version > FIRST_VERSION { REQUIRED | PART } else { REQUIRED };
    match flags & !known {
        0 => Ok(()),
        bits => Err(ImageError::Reserved { place, bits: u32::from(bits) }),
    }
}

pub(super) fn check_limit(what: &'static str, found: u64, limit: u64) -> Result<(), ImageError> {
    if found > limit { Err(ImageError::TooLarge { what, found, limit }) } else { Ok(()) }
}

pub(super) fn check_sum(place: Place, found: u32, expected: u32) -> Result<(), ImageError> {
    if found == expected { Ok(()) } else { Err(ImageError::Checksum { place, found, expected }) }
}

/// How far the bytes are read.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    fn consumed(&self) -> &'a [u8] {
        self.bytes.get(..self.at).unwrap_or_default()
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, place: Place, needed: u64) -> Result<&'a [u8], ImageError> {
        let rest = self.rest();
        match usize::try_from(needed).ok().and_then(|count| rest.get(..count)) {
            Some(taken) => {
                self.at = self.at.saturating_add(taken.len());
                Ok(taken)
            }
            None => Err(ImageError::Truncated { place, needed, left: rest.len() }),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, place: Place) -> Result<[u8; N], ImageError> {
        let taken = self.take(place, N as u64)?;
        taken.first_chunk().copied().ok_or(ImageError::Truncated { place, needed: N as u64, left: taken.len() })
    }

    /// Reads a checksum, which must be that of `covered`.
    fn checksum(&mut self, place: Place, covered: &[u8]) -> Result<(), ImageError> {
        let expected = u32::from_le_bytes(self.array(place)?);
        check_sum(place, crc32fast::hash(covered), expected)
    }
}

/// The bytes of a section's frame that its checksum covers: all but the checksum.
const FRAME_SUMMED: usize = 16;
