//! Image files: full ones and chains of deltas, plain and sealed.

use std::fs::File;
use std::io::BufReader;
use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;
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
use hibernet_snapshot::digest::Digester;
use hibernet_snapshot::digest::Digesting;
use hibernet_snapshot::digest::ImageDigest;
use hibernet_snapshot::file::OsFilesystem;
use hibernet_snapshot::file::write_atomic_with;
use hibernet_snapshot::image::ImageError;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::image::SectionId;
use hibernet_snapshot::image::StoredImage;
use hibernet_snapshot::seal::SealKey;
use hibernet_snapshot::seal::Sealer;
use hibernet_snapshot::seal::Unsealer;

use crate::fault::Fault;
use crate::fault::image_fault;
use crate::image_file::read_seal_key;
use crate::image_file::unseal_fault;

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
                let key = read_seal_key(key)?;
                let opened = Unsealer::begin(&mut input, &key).map_err(|error| unseal_fault(path, &error))?;
                let mut opened = Failing { input: opened, error: None };
                let image = StoredImage::read(&mut opened, &limits);
                if let Some(error) = opened.error {
                    return Err(unseal_fault(path, &error).into());
                }
                image.map_err(refused)?
            }
        };
        Ok((image, input.finish()))
    }
}

/// Keeps the error that its input fails with, which the reader puts in words of its own.
struct Failing<R> {
    input: R,
    error: Option<std::io::Error>,
}

impl<R: Read> Read for Failing<R> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        self.input.read(to).map_err(|error| {
            let kind = error.kind();
            self.error = Some(error);
            kind.into()
        })
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
    /// Adds a section behind the stack's, which a reader may skip.
    pub(super) fn add(&mut self, id: SectionId, version: u16, body: Vec<u8>) {
        match self {
            Self::Full(frozen) => frozen.add(id, version, body),
            Self::Delta(changes) => changes.add(id, version, body),
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
        let checkpoint = write_atomic_with(&mut OsFilesystem, path, |out| {
            let mut file = |piece: &[u8]| {
                digester.update(piece);
                bytes = bytes.saturating_add(piece.len() as u64);
                out(piece).map_err(anyhow::Error::from)
            };
            match seal {
                None => self.pack(&packing, file),
                Some((key, mut entropy)) => {
                    let mut sealer = Sealer::new(&key, &mut entropy);
                    let mut sealed = Vec::new();
                    let checkpoint = self.pack(&packing, |piece| {
                        sealed.clear();
                        sealer.push(piece, &mut sealed)?;
                        file(&sealed)
                    })?;
                    sealed.clear();
                    sealer.finish(&mut sealed)?;
                    file(&sealed)?;
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
