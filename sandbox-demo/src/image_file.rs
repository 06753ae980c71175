//! Images in files: read and written whole, sealed where there is a key for it.

use std::fs;
use std::path::Path;

use anyhow::Context;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::file::OsFilesystem;
use hibernet_snapshot::file::write_atomic;
use hibernet_snapshot::file::write_atomic_parts;
use hibernet_snapshot::seal;
use hibernet_snapshot::seal::SealError;
use hibernet_snapshot::seal::SealKey;
use hibernet_snapshot::seal::SealKeyError;
use hibernet_snapshot::seal::Sealed;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::fault::Fault;

/// The image in a file, its seal taken off. With a key nothing but what was sealed with it is read; without one, nothing sealed.
pub(crate) fn read_image(path: &Path, key: Option<&SealKey>) -> Result<Vec<u8>, Fault> {
    let bytes = read_file(path)?;
    match key {
        Some(key) => seal::open(bytes, key).map_err(|error| seal_fault(path, &error)),
        None if seal::is_sealed(&bytes) => {
            let writer = Sealed::read(&bytes).map(|sealed| said_writer(&sealed)).unwrap_or_default();
            Err(Fault::new(
                format!("the image {} is sealed{writer}", path.display()),
                "give the key it was sealed with: --seal-key FILE",
            ))
        }
        None => Ok(bytes),
    }
}

/// What is in a file that should be an image, sealed or not.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(path).map_err(|error| {
        Fault::new(
            format!("cannot read the image {}: {error}", path.display()),
            "give the path of a file made by `sandbox-demo save`",
        )
    })
}

/// Puts an image in a file, whole or not at all: sealed, under a nonce of its own, where there is a key.
pub(crate) fn write_image(
    path: &Path,
    image: &[u8],
    key: Option<&SealKey>,
    entropy: &mut Entropy,
) -> anyhow::Result<()> {
    let written = match key {
        Some(key) => write_atomic_parts(&mut OsFilesystem, path, seal::sealed_parts(image, key, entropy)),
        None => write_atomic(&mut OsFilesystem, path, image),
    };
    written.with_context(|| format!("writing {}", path.display()))
}

/// The key in a file that nobody else may read.
pub(crate) fn read_seal_key(path: &Path) -> Result<SealKey, Fault> {
    let cannot = |errno: rustix::io::Errno| {
        Fault::new(format!("cannot read the seal key {}: {errno}", path.display()), MAKE_A_KEY)
    };
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(cannot)?;
    let stat = rustix::fs::fstat(&file).map_err(cannot)?;
    let mode = stat.st_mode & 0o777;
    // A pipe is the shell's `<(..)`: it has no reader but us.
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && mode & 0o077 != 0 {
        return Err(Fault::new(
            format!("the seal key {} has mode {mode:04o}: others can read or change it", path.display()),
            format!("run `chmod 600 {}`, and think of the key as known", path.display()),
        ));
    }
    let mut content = Zeroizing::new([0; LONGEST_KEY_FILE]);
    let mut length = 0;
    while let Some(room) = content.get_mut(length..).filter(|room| !room.is_empty()) {
        match rustix::io::read(&file, room) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(cannot(errno)),
        }
    }
    SealKey::from_file_content(content.get(..length).unwrap_or_default()).map_err(|SealKeyError { found }| {
        let more = if found == LONGEST_KEY_FILE { " or more" } else { "" };
        Fault::new(
            format!("the seal key {}: {found} bytes{more}, expected 32 bytes or 64 hexadecimal digits", path.display()),
            MAKE_A_KEY,
        )
    })
}

/// Who is said to have written a sealed image. Without the key nobody knows whether it is true.
pub(crate) fn said_writer(sealed: &Sealed) -> String {
    format!(" (it says it was written by {:?})", sealed.front.header.writer)
}

fn seal_fault(path: &Path, error: &SealError) -> Fault {
    let remedy = match error {
        SealError::NotSealed { found } if found.starts_with(b"HIBERNET") => {
            "whoever put it there did not have the key; if it was you, leave out --seal-key"
        }
        SealError::NotSealed { .. } => "give a file made by `sandbox-demo save`",
        SealError::TooNew { .. } => "open it with the version of the program that sealed it",
        SealError::DoesNotOpen => "give the key it was sealed with, or take another copy",
        _ => "take another copy, and ask who changed this one",
    };
    Fault::new(format!("the image {}: {error}", path.display()), remedy)
}

const MAKE_A_KEY: &str = "make one with `(umask 077; head -c 32 /dev/urandom >key)`";
/// More than any key takes: 64 digits and the end of the line.
const LONGEST_KEY_FILE: usize = 80;
