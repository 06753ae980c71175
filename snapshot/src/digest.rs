//! The name of a file's content: SHA-256, so that whoever has the file can check it with `sha256sum`.

use core::fmt;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// SHA-256 of an image as it stands in its file, sealed or not. Prints as `sha256sum` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageDigest(pub [u8; 32]);

impl ImageDigest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digester = Digester::default();
        digester.update(bytes);
        digester.finish()
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageDigest({self})")
    }
}

/// Makes a digest of bytes that come in pieces.
#[derive(Clone, Debug, Default)]
pub struct Digester(Sha256);

impl Digester {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all of them.
    pub fn finish(self) -> ImageDigest {
        ImageDigest(self.0.finalize().into())
    }
}

/// Bytes on their way in, of which a digest is made.
#[derive(Debug)]
pub struct Digesting<R> {
    input: R,
    digester: Digester,
}

impl<R: Read> Digesting<R> {
    /// Reads from `input`.
    pub fn new(input: R) -> Self {
        Self { input, digester: Digester::default() }
    }

    /// The digest of what was read.
    pub fn finish(self) -> ImageDigest {
        self.digester.finish()
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(to)?;
        self.digester.update(to.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_sha_256_of_the_bytes_in_any_pieces() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(ImageDigest::of(b"abc").to_string(), expected);
        let mut reading = Digesting::new(&b"abc"[..]);
        let mut byte = [0];
        while reading.read(&mut byte).unwrap() > 0 {}
        assert_eq!(reading.finish().to_string(), expected);
    }
}
