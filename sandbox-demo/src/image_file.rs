//! Keys of sealed images, and what the front of an image says.

use std::fs;
use std::io::Read;
use std::path::Path;

use hibernet_snapshot::image::Image;
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

/// What is in a file that should be an image, sealed or not.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(path).map_err(|error| {
        Fault::new(
            format!("cannot read the image {}: {error}", path.display()),
            "give the path of a file made by `sandbox-demo save`",
        )
    })
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

/// The first bytes of a file, as many as an image's header takes, sealed or not; fewer, or none, if that is all.
pub(crate) fn front_of(path: &Path) -> Vec<u8> {
    let mut front = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // What cannot be read is missed when the file is.
        drop(file.take(LONGEST_FRONT).read_to_end(&mut front));
    }
    front
}

/// The program that an image says it was written by. Of a sealed one nobody knows without the key whether that is true.
pub(crate) fn said_writer(front: &[u8]) -> Option<String> {
    let header = match seal::is_sealed(front) {
        true => Sealed::read(front).ok()?.front.header,
        false => Image::front(front).ok()?.header,
    };
    Some(header.writer)
}

/// Why a seal does not come off, from what reads the image through it.
pub(crate) fn unseal_fault(path: &Path, error: &std::io::Error) -> Fault {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<SealError>()) {
        Some(error) => seal_fault(path, error),
        None => Fault::new(format!("cannot read the image {}: {error}", path.display()), "take another copy"),
    }
}

pub(crate) fn seal_fault(path: &Path, error: &SealError) -> Fault {
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

/// More than any front of an image takes.
const LONGEST_FRONT: u64 = 512;
const MAKE_A_KEY: &str = "make one with `(umask 077; head -c 32 /dev/urandom >key)`";
/// More than any key takes: 64 digits and the end of the line.
const LONGEST_KEY_FILE: usize = 80;
