//! Writing an image.

use super::{
    FIRST_VERSION, FORMAT_VERSION, Frame, Header, MAGIC, Requirement, Section, SectionId, TRAILER_BYTES, TRAILER_MAGIC,
    WRITER_BYTES,
};

/// Builds an image section by section.
#[derive(Clone, Debug)]
pub struct ImageWriter {
    /// The header, with its count and checksum still zero, and the sections so far.
    image: Vec<u8>,
    header_bytes: usize,
    /// The sections in order, each with its length, frame included.
    sections: Vec<(SectionId, usize)>,
    version: u16,
}

impl ImageWriter {
    /// An image without sections.
    pub fn new(header: &Header) -> Self {
        let image = header_bytes(header, FIRST_VERSION, 0);
        Self { header_bytes: image.len(), image, sections: Vec::new(), version: FIRST_VERSION }
    }

    /// Adds a section at the end. An earlier one with the same id is taken out: an id occurs once.
    pub fn section(&mut self, id: SectionId, version: u16, requirement: Requirement, body: &[u8]) {
        self.remove(id);
        self.append(Frame { id, version, requirement, part: false }, body);
    }

    /// Adds one of several sections of that id at the end. From format version 2 on.
    pub fn part(&mut self, id: SectionId, version: u16, requirement: Requirement, body: &[u8]) {
        self.append(Frame { id, version, requirement, part: true }, body);
    }

    /// Adds a section of another image as it is there.
    pub fn copy(&mut self, section: &Section<'_>) {
        let Section { id, version, required, part, body } = *section;
        let requirement = if required { Requirement::Required } else { Requirement::Optional };
        if part { self.part(id, version, requirement, body) } else { self.section(id, version, requirement, body) }
    }

    fn append(&mut self, frame: Frame, body: &[u8]) {
        if frame.part {
            self.version = FORMAT_VERSION;
        }
        let start = self.image.len();
        let bytes = frame.bytes(body.len() as u64);
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&bytes);
        checksum.update(body);
        self.image.extend(bytes);
        self.image.extend(checksum.finalize().to_le_bytes());
        self.image.extend(body);
        self.sections.push((frame.id, self.image.len() - start));
    }

    /// The bytes of the image.
    pub fn finish(self) -> Vec<u8> {
        let Self { mut image, header_bytes, sections, version } = self;
        if let Some((header, checksum)) = image.get_mut(..header_bytes).and_then(<[u8]>::split_last_chunk_mut::<4>) {
            patch(header, version, sections.len() as u32);
            *checksum = crc32fast::hash(header).to_le_bytes();
        }
        let total = image.len() + TRAILER_BYTES;
        image.extend(TRAILER_MAGIC);
        image.extend((total as u64).to_le_bytes());
        image.extend(crc32fast::hash(&image).to_le_bytes());
        image
    }

    fn remove(&mut self, id: SectionId) {
        let Some(index) = self.sections.iter().position(|(other, _)| *other == id) else { return };
        let before: usize = self.sections.iter().take(index).map(|(_, bytes)| bytes).sum();
        let (_, bytes) = self.sections.remove(index);
        let start = self.header_bytes + before;
        self.image.drain(start..start + bytes);
    }
}

/// A header, checksum included.
pub(super) fn header_bytes(header: &Header, version: u16, sections: u32) -> Vec<u8> {
    let Header { schema, writer, generation } = header;
    let writer = writer.get(..writer.floor_char_boundary(WRITER_BYTES)).unwrap_or_default();
    let mut image = Vec::new();
    image.extend(MAGIC);
    image.extend(version.to_le_bytes());
    image.extend(version.to_le_bytes()); // minimum reader version: who knows the version it is of understands it
    image.extend(0_u32.to_le_bytes()); // flags
    image.extend(schema.to_le_bytes());
    image.extend(generation.0);
    image.extend(sections.to_le_bytes());
    image.extend((writer.len() as u16).to_le_bytes());
    image.extend(writer.as_bytes());
    image.extend(crc32fast::hash(&image).to_le_bytes());
    image
}

/// Puts what is known at the end only into a header.
fn patch(header: &mut [u8], version: u16, sections: u32) {
    let version = version.to_le_bytes();
    let fields = [(8, &version[..]), (10, &version[..]), (40, &sections.to_le_bytes()[..])];
    for (at, bytes) in fields {
        if let Some(field) = header.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }
}
