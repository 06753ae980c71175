//! Writing an image piece by piece, to whatever takes bytes: it is never in memory as a whole.

use super::write::header_bytes;
use super::{
    FIRST_VERSION, FORMAT_VERSION, Header, PART, REQUIRED, Requirement, SectionId, TRAILER_BYTES, TRAILER_MAGIC,
};

/// What stands in front of a section's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its name.
    pub id: SectionId,
    /// The version of its layout.
    pub version: u16,
    /// What a reader does that does not know it.
    pub requirement: Requirement,
    /// Whether it is one of several sections of that name.
    pub part: bool,
}

impl Frame {
    /// What its checksum covers beside the body.
    pub(super) fn bytes(self, length: u64) -> [u8; 16] {
        let Self { id, version, requirement, part } = self;
        let required = if requirement == Requirement::Required { REQUIRED } else { 0 };
        let flags = required | if part { PART } else { 0 };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&id.0.to_le_bytes());
        bytes[4..6].copy_from_slice(&version.to_le_bytes());
        bytes[6..8].copy_from_slice(&flags.to_le_bytes());
        bytes[8..].copy_from_slice(&length.to_le_bytes());
        bytes
    }
}

/// The checksum of a body, made by whoever has it at hand: a thread that has just packed it.
#[derive(Clone, Debug)]
pub struct BodySum(crc32fast::Hasher);

impl BodySum {
    /// The checksum of `body`.
    pub fn of(body: &[u8]) -> Self {
        let mut sum = crc32fast::Hasher::new();
        sum.update(body);
        Self(sum)
    }
}

/// An image on its way out. `sink` takes its bytes in order.
pub struct ImageStream<S> {
    sink: S,
    sum: crc32fast::Hasher,
    written: u64,
}

impl<S> core::fmt::Debug for ImageStream<S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ImageStream").field("written", &self.written).finish_non_exhaustive()
    }
}

impl<E, S: FnMut(&[u8]) -> Result<(), E>> ImageStream<S> {
    /// Begins an image that will have as many sections; `parts` says whether any of them is one of several.
    ///
    /// # Errors
    /// Those of `sink`, here and in the other methods.
    pub fn begin(header: &Header, sections: u32, parts: bool, sink: S) -> Result<Self, E> {
        let version = if parts { FORMAT_VERSION } else { FIRST_VERSION };
        let mut stream = Self { sink, sum: crc32fast::Hasher::new(), written: 0 };
        stream.put(&header_bytes(header, version, sections))?;
        Ok(stream)
    }

    /// Adds a section.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn section(&mut self, frame: Frame, body: &[u8]) -> Result<(), E> {
        self.summed(frame, body, &BodySum::of(body))
    }

    /// Adds a section whose body was summed already.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn summed(&mut self, frame: Frame, body: &[u8], sum: &BodySum) -> Result<(), E> {
        let head = frame.bytes(body.len() as u64);
        let mut own = crc32fast::Hasher::new();
        own.update(&head);
        own.combine(&sum.0);
        self.put(&head)?;
        self.put(&own.finalize().to_le_bytes())?;
        self.sum.combine(&sum.0);
        self.written += body.len() as u64;
        (self.sink)(body)
    }

    /// Ends the image, and says how long it is.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn finish(mut self) -> Result<u64, E> {
        let total = self.written + TRAILER_BYTES as u64;
        self.put(&TRAILER_MAGIC)?;
        self.put(&total.to_le_bytes())?;
        let sum = self.sum.clone().finalize();
        self.put(&sum.to_le_bytes())?;
        Ok(total)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.sum.update(bytes);
        self.written += bytes.len() as u64;
        (self.sink)(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GenerationId;
    use crate::image::{Image, ImageWriter, Limits, StoredImage};

    fn header() -> Header {
        Header { schema: 7, writer: "test 1".to_owned(), generation: GenerationId([7; 16]) }
    }

    fn frame(id: &[u8; 4], part: bool) -> Frame {
        Frame { id: SectionId::new(*id), version: 3, requirement: Requirement::Required, part }
    }

    /// The same image from the stream and from the writer.
    fn image(parts: u8) -> Vec<u8> {
        let (mut streamed, mut writer) = (Vec::new(), ImageWriter::new(&header()));
        let sink = |bytes: &[u8]| {
            streamed.extend_from_slice(bytes);
            Ok::<_, ()>(())
        };
        let mut stream = ImageStream::begin(&header(), 1 + u32::from(parts), parts > 0, sink).unwrap();
        stream.section(frame(b"RULE", false), b"rules").unwrap();
        writer.section(SectionId::new(*b"RULE"), 3, Requirement::Required, b"rules");
        for part in 0..parts {
            stream.section(frame(b"FLOW", true), &[part; 100]).unwrap();
            writer.part(SectionId::new(*b"FLOW"), 3, Requirement::Required, &[part; 100]);
        }
        let length = stream.finish().unwrap();
        assert_eq!(length as usize, streamed.len());
        assert!(streamed == writer.finish());
        streamed
    }

    #[test]
    fn what_is_streamed_is_what_is_written_at_once_and_says_the_lowest_version_that_describes_it() {
        for (parts, version) in [(0, 1), (1, 2), (3, 2)] {
            let bytes = image(parts);
            let image = Image::parse(&bytes, &Limits::default()).unwrap();
            assert_eq!((image.format_version(), image.min_reader()), (version, version));
            assert_eq!(image.sections().filter(|section| section.part).count(), usize::from(parts));
        }
    }

    #[test]
    fn reading_a_stream_accepts_and_refuses_what_parsing_does() {
        let whole = image(2);
        for at in 0..whole.len() {
            for change in [None, Some(0x01), Some(0x80), Some(0xff)] {
                let mut bytes = whole.clone();
                match change {
                    Some(bits) => bytes[at] ^= bits,
                    None => bytes.truncate(at),
                }
                let parsed = Image::parse(&bytes, &Limits::default()).map(|_| ());
                let read = StoredImage::read(&mut bytes.as_slice(), &Limits::default()).map(|_| ());
                assert_eq!(parsed, read, "byte {at}, {change:?}");
            }
        }
        let longer = [whole.as_slice(), &[0; 3]].concat();
        assert_eq!(
            StoredImage::read(&mut longer.as_slice(), &Limits::default()).map(|_| ()),
            Image::parse(&longer, &Limits::default()).map(|_| ())
        );
    }
}
