//! Image files: full ones and chains of deltas, plain and sealed.

use std::fs::File;
use std::io::BufReader;
use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use hibernet_netstack::Checkpoint;
use hibernet_netstack::Decoded;
use hibernet_netstack::DeltaChain;
use hibernet_netstack::Frozen;
use hibernet_netstack::FrozenChanges;
use hibernet_netstack::Packing;
use hibernet_netstack::Progress;
use hibernet_netstack::RestoreError;
use hibernet_netstack::RestoreStep;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::Secret;
use hibernet_snapshot::digest::Digester;
use hibernet_snapshot::digest::Digesting;
use hibernet_snapshot::digest::ImageDigest;
use hibernet_snapshot::file::OsFilesystem;
use hibernet_snapshot::file::write_atomic_with;
use hibernet_snapshot::image::Header;
use hibernet_snapshot::image::ImageError;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::image::StoredImage;
use hibernet_snapshot::sealed::KEY_BYTES;
use hibernet_snapshot::sealed::SealKey;
use hibernet_snapshot::sealed::Sealer;
use hibernet_snapshot::sealed::Unsealer;

use crate::fault::Fault;
use crate::fault::image_fault;

/// A full image and the deltas behind it, in their order; all sealed with one key, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFiles {
    /// The full image first.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) seal_key: Option<PathBuf>,
}

impl From<PathBuf> for ImageFiles {
    fn from(path: PathBuf) -> Self {
        Self { paths: vec![path], seal_key: None }
    }
}

impl ImageFiles {
    /// All of it as one decoded image.
    pub(crate) fn open(&self) -> anyhow::Result<Decoded> {
        let mut chain: Option<DeltaChain> = None;
        let limits = Limits::default();
        for path in &self.paths {
            let (image, digest) = self.read(path)?;
            let next = match chain {
                None => DeltaChain::begin(image, digest, &limits),
                Some(chain) => chain.apply(image, digest, &limits),
            };
            chain = Some(next.map_err(|error| image_fault(path, &error))?);
        }
        let chain = chain.context("no image is named")?;
        let last = self.paths.last().map(PathBuf::as_path).unwrap_or(Path::new(""));
        Ok(chain.finish().map_err(|error| image_fault(last, &error))?)
    }

    /// Reads one of the files, and says what its content's name is.
    pub(crate) fn read(&self, path: &Path) -> anyhow::Result<(StoredImage, ImageDigest)> {
        let refused = |error: ImageError| image_fault(path, &RestoreError::from(error));
        let limits = Limits::default();
        let mut input = Digesting::new(BufReader::with_capacity(1 << 20, open(path)?));
        let image = match &self.seal_key {
            None => StoredImage::read(&mut input, &limits).map_err(refused)?,
            Some(key) => {
                let key = read_key(key)?;
                let mut opened = Unsealer::begin(&mut input, &key).map_err(|error| seal_fault(path, &error))?;
                StoredImage::read(&mut opened, &limits).map_err(refused)?
            }
        };
        Ok((image, input.finish()))
    }
}

fn open(path: &Path) -> Result<File, Fault> {
    let failed = |error: &dyn std::fmt::Display| {
        let what = format!("cannot read the image {}: {error}", path.display());
        Fault::new(what, "give the path of a file made by `sandbox-demo save`")
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(failed(&"it is a directory")),
        _ => Ok(file),
    }
}

fn seal_fault(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(
        format!("the image {}: {error}", path.display()),
        "give the key it was sealed with (`--seal-key`), and none for a plain image",
    )
}

/// The key in a file that nobody but its owner can read: 32 bytes, or 64 hexadecimal digits.
pub(crate) fn read_key(path: &Path) -> Result<SealKey, Fault> {
    let fault = |what: &str| {
        Fault::new(
            format!("the seal key {}: {what}", path.display()),
            "make one with `(umask 077; head -c 32 /dev/urandom > FILE)`",
        )
    };
    let mut file = File::open(path).map_err(|error| fault(&error.to_string()))?;
    let metadata = file.metadata().map_err(|error| fault(&error.to_string()))?;
    if !metadata.is_file() {
        return Err(fault("it is no file"));
    }
    if metadata.mode() & 0o077 != 0 {
        let what = format!("others than its owner may use it (mode {:04o}, expected 0600)", metadata.mode() & 0o7777);
        return Err(fault(&what));
    }
    let mut bytes = Vec::new();
    (&mut file).take(128).read_to_end(&mut bytes).map_err(|error| fault(&error.to_string()))?;
    let expected = || fault("it does not hold 32 bytes, or 64 hexadecimal digits");
    let key = match bytes.len() {
        KEY_BYTES => bytes.first_chunk::<KEY_BYTES>().copied().ok_or_else(expected)?,
        _ => from_hex(bytes.trim_ascii_end()).ok_or_else(expected)?,
    };
    bytes.fill(0);
    Ok(SealKey::new(Secret::new(key)))
}

fn from_hex(digits: &[u8]) -> Option<[u8; KEY_BYTES]> {
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

/// What is written: a full image, or what has changed.
pub(super) enum Content {
    Full(Box<Frozen>),
    Delta(Box<FrozenChanges>),
}

/// A file that is whole and safe on disk.
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) flows: usize,
    pub(super) digest: ImageDigest,
    /// What the next delta continues, of a save that it can continue.
    pub(super) checkpoint: Checkpoint,
}

impl Content {
    pub(super) fn header(&self) -> &Header {
        match self {
            Self::Full(frozen) => frozen.header(),
            Self::Delta(changes) => changes.header(),
        }
    }

    /// Writes the file: the old one stays until the new one is whole.
    pub(super) fn write(
        &mut self,
        path: &Path,
        compress: bool,
        seal: Option<(SealKey, Entropy)>,
    ) -> anyhow::Result<Written> {
        let packing = Packing::default().on_threads(threads()).compressed(compress);
        let mut digester = Digester::default();
        let mut bytes = 0_u64;
        let header = self.header().clone();
        let checkpoint = write_atomic_with(&mut OsFilesystem, path, |out| {
            let file = |piece: &[u8]| {
                digester.update(piece);
                bytes = bytes.saturating_add(piece.len() as u64);
                out(piece).map_err(anyhow::Error::from)
            };
            match seal {
                None => self.pack(&packing, file),
                Some((key, mut entropy)) => {
                    let mut sealer = Sealer::begin(&header, &key, &mut entropy, file).map_err(plain)?;
                    let checkpoint = self.pack(&packing, |piece| sealer.put(piece).map_err(plain))?;
                    sealer.finish().map_err(plain)?;
                    Ok(checkpoint)
                }
            }
        })?;
        let flows = match self {
            Self::Full(frozen) => frozen.flows(),
            Self::Delta(changes) => changes.changed(),
        };
        Ok(Written { bytes, flows, digest: digester.finish(), checkpoint })
    }

    fn pack(&mut self, packing: &Packing, sink: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<Checkpoint> {
        match self {
            Self::Full(frozen) => {
                frozen.write(packing, sink).map_err(unwrapped)?;
                Ok(frozen.checkpoint())
            }
            Self::Delta(changes) => Ok(changes.write(sink).map_err(unwrapped)?.1),
        }
    }
}

fn plain(error: hibernet_snapshot::sealed::NotSealed<anyhow::Error>) -> anyhow::Error {
    match error {
        hibernet_snapshot::sealed::NotSealed::Sink(error) => error,
        hibernet_snapshot::sealed::NotSealed::TooLong => anyhow::anyhow!("the image is too long to be sealed"),
    }
}

fn unwrapped(error: hibernet_netstack::WriteError<anyhow::Error>) -> anyhow::Error {
    match error {
        hibernet_netstack::WriteError::Sink(error) => error,
        other => anyhow::anyhow!("{other}"),
    }
}

/// Threads that pack and restore: as many as there are processors.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Shows how far a restore of many flows is, where a person looks on.
pub(super) fn show_progress(progress: Progress) {
    let Progress { step, done, of } = progress;
    let mut out = std::io::stderr().lock();
    if of < WORTH_A_BAR || !out.is_terminal() {
        return;
    }
    let (what, until) = match step {
        RestoreStep::Check => ("checking", BAR * u64::from(done) / u64::from(of.max(1))),
        _ => ("filed", BAR),
    };
    let bar: String = (0..BAR).map(|at| if at < until { '#' } else { '.' }).collect();
    let end = if matches!(step, RestoreStep::Check) { "" } else { "\n" };
    // Nobody is helped by an error of a progress bar.
    drop(write!(out, "\r{what:<9}[{bar}] {done} of {of} flows{end}"));
    drop(out.flush());
}

const WORTH_A_BAR: u32 = 100_000;
const BAR: u64 = 40;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_file_is_taken_from_its_owner_alone_and_in_both_spellings() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, content: &[u8], mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode");
            path
        };
        let hex = "0123456789abcdef".repeat(4);
        for good in [
            file("raw", &[7; 32], 0o600),
            file("hex", hex.as_bytes(), 0o400),
            file("line", format!("{hex}\n").as_bytes(), 0o600),
        ] {
            read_key(&good).expect("a key");
        }
        for (bad, words) in [
            (file("open", &[7; 32], 0o640), "mode 0640"),
            (file("short", &[7; 31], 0o600), "32 bytes"),
            (file("long", &[7; 65], 0o600), "32 bytes"),
            (file("empty", b"", 0o600), "32 bytes"),
            (dir.path().to_owned(), "no file"),
            (dir.path().join("none"), "No such file"),
        ] {
            let text = read_key(&bad).expect_err(words).to_string();
            assert!(text.contains(words) && text.contains("/dev/urandom"), "{text}");
        }
    }
}
