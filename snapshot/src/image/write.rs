//! Writing an image.

use super::{
    FORMAT_VERSION, Header, MAGIC, REQUIRED, Requirement, SectionId, TRAILER_BYTES, TRAILER_MAGIC, WRITER_BYTES,
};

/// Builds an image section by section.
#[derive(Clone, Debug)]
pub struct ImageWriter {
    /// The header, with its count and checksum still zero, and the sections so far.
    image: Vec<u8>,
    header_bytes: usize,
    /// The sections in order, each with its length, frame included.
    sections: Vec<(SectionId, usize)>,
}

impl ImageWriter {
    /// An image without sections.
    pub fn new(header: &Header) -> Self {
        let Header { schema, writer, generation } = header;
        let writer = writer.get(..writer.floor_char_boundary(WRITER_BYTES)).unwrap_or_default();
        let mut image = Vec::new();
        image.extend(MAGIC);
        image.extend(FORMAT_VERSION.to_le_bytes());
        image.extend(FORMAT_VERSION.to_le_bytes()); // minimum reader version: there is no older one
        image.extend(0_u32.to_le_bytes()); // flags
        image.extend(schema.to_le_bytes());
        image.extend(generation.0);
        image.extend([0; 4]); // section count, see `finish`
        image.extend((writer.len() as u16).to_le_bytes());
        image.extend(writer.as_bytes());
        image.extend([0; 4]); // checksum, see `finish`
        Self { header_bytes: image.len(), image, sections: Vec::new() }
    }

    /// Adds a section at the end. An earlier one with the same id is taken out: an id occurs once.
    pub fn section(&mut self, id: SectionId, version: u16, requirement: Requirement, body: &[u8]) {
        self.remove(id);
        let flags = match requirement {
            Requirement::Required => REQUIRED,
            Requirement::Optional => 0,
        };
        let start = self.image.len();
        self.image.extend(id.0.to_le_bytes());
        self.image.extend(version.to_le_bytes());
        self.image.extend(flags.to_le_bytes());
        self.image.extend((body.len() as u64).to_le_bytes());
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(self.image.get(start..).unwrap_or_default());
        checksum.update(body);
        self.image.extend(checksum.finalize().to_le_bytes());
        self.image.extend(body);
        self.sections.push((id, self.image.len() - start));
    }

    /// The bytes of the image.
    pub fn finish(self) -> Vec<u8> {
        let Self { mut image, header_bytes, sections } = self;
        if let Some((header, checksum)) = image.get_mut(..header_bytes).and_then(<[u8]>::split_last_chunk_mut::<4>) {
            if let Some(count) = header.get_mut(SECTION_COUNT_AT..SECTION_COUNT_AT + 4) {
                count.copy_from_slice(&(sections.len() as u32).to_le_bytes());
            }
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

const SECTION_COUNT_AT: usize = 40;
