//! Puts an image in a file so that a crash at any moment leaves the old file or the new one, whole.
//!
//! Unix only. Every call goes through [`Filesystem`], so that tests can fail, or die, at each of them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

/// Replaces the file at `path` by one that holds `bytes`, readable by its owner alone (mode 0600: an image holds users' bytes).
///
/// Writes a temporary file in the same directory, syncs it, renames it over `path` and syncs the directory. A symbolic link,
/// directory or device at `path` is refused, not replaced. The check is there to catch mistakes: it does not
/// withstand someone who changes the directory meanwhile.
///
/// # Errors
/// On any failure the temporary file is removed. Up to the rename the old file is untouched; after it (the error then says
/// [`Operation::SyncDirectory`]) the new one is in place, but may not survive a loss of power.
pub fn write_atomic(filesystem: &mut dyn Filesystem, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomic_with(filesystem, path, |out| out(bytes))
}

/// The same for bytes that come piece by piece: `fill` hands them to what it is given.
///
/// # Errors
/// As [`write_atomic`], and those of `fill`, with which the temporary file is removed and the old file stays as well.
pub fn write_atomic_with<T, E: From<FileError>>(
    filesystem: &mut dyn Filesystem,
    path: &Path,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), FileError>) -> Result<T, E>,
) -> Result<T, E> {
    let Some(name) = path.file_name() else {
        return Err(FileError::NoName { path: path.to_owned() }.into());
    };
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match filesystem.kind(path).map_err(failed(Operation::Inspect, path))? {
        None | Some(FileKind::File) => {}
        Some(found) => return Err(FileError::NotAFile { path: path.to_owned(), found }.into()),
    }

    let (temporary, file) = create_temporary(filesystem, directory, name)?;
    match fill_and_rename(filesystem, file, &temporary, path, fill) {
        Err(error) => {
            // The first failure is the one to report; a file that cannot be removed either is in the way of nobody.
            drop(filesystem.remove(&temporary));
            Err(error)
        }
        Ok(filled) => {
            filesystem.sync_directory(directory).map_err(failed(Operation::SyncDirectory, directory))?;
            Ok(filled)
        }
    }
}

/// The calls [`write_atomic`] makes. Each does what its name says and no more.
pub trait Filesystem {
    /// What is at `path`, not following a link; `None` if nothing is.
    ///
    /// # Errors
    /// Those of `lstat`, but for "not found".
    fn kind(&mut self, path: &Path) -> io::Result<Option<FileKind>>;

    /// Creates a file with mode 0600 for writing; something that is there already is an error.
    ///
    /// # Errors
    /// Those of `open`.
    fn create(&mut self, path: &Path) -> io::Result<OwnedFd>;

    /// Writes some of `bytes` and says how many.
    ///
    /// # Errors
    /// Those of `write`.
    fn write(&mut self, file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize>;

    /// Waits until the file's content is on the medium.
    ///
    /// # Errors
    /// Those of `fsync`.
    fn sync(&mut self, file: BorrowedFd<'_>) -> io::Result<()>;

    /// Gives the file at `from` the name `to`, in the place of a file that has it.
    ///
    /// # Errors
    /// Those of `rename`.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// Waits until the names in the directory are on the medium.
    ///
    /// # Errors
    /// Those of `open` and `fsync`.
    fn sync_directory(&mut self, path: &Path) -> io::Result<()>;

    /// Removes the file at `path`.
    ///
    /// # Errors
    /// Those of `unlink`.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The file system of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFilesystem;

impl Filesystem for OsFilesystem {
    fn kind(&mut self, path: &Path) -> io::Result<Option<FileKind>> {
        let stat = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::SymbolicLink,
            _ => FileKind::Other,
        }))
    }

    fn create(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?)
    }

    fn write(&mut self, file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(file, bytes)?)
    }

    fn sync(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::fsync(file)?)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::rename(from, to)?)
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        let directory = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::fs::fsync(directory)?)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlink(path)?)
    }
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, wherever it leads.
    SymbolicLink,
    /// A device, pipe or socket.
    Other,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "a file",
            Self::Directory => "a directory",
            Self::SymbolicLink => "a symbolic link",
            Self::Other => "a device, pipe or socket",
        })
    }
}

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The path ends in no name.
    #[error("{}: names no file", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// Something else than a file is there.
    #[error("{}: is {found}, expected a file or nothing", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: FileKind,
    },
    /// The operating system refused.
    #[error("{}: cannot {operation}: {source}", path.display())]
    Failed {
        /// What was tried.
        operation: Operation,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A step of [`write_atomic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Looking at what is there.
    Inspect,
    /// Creating the temporary file.
    Create,
    /// Writing it.
    Write,
    /// Syncing it.
    Sync,
    /// Renaming it over the target.
    Rename,
    /// Syncing the directory. The new file is in place.
    SyncDirectory,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inspect => "inspect",
            Self::Create => "create the temporary file",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Rename => "rename the temporary file into place",
            Self::SyncDirectory => "sync the directory",
        })
    }
}

/// A new file next to the target. Names are tried in turn: others may be taken by a save that runs or that was killed.
fn create_temporary(
    filesystem: &mut dyn Filesystem,
    directory: &Path,
    name: &OsStr,
) -> Result<(PathBuf, OwnedFd), FileError> {
    let mut attempt = 0;
    loop {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{attempt}.tmp"));
        let temporary = directory.join(temporary);
        match filesystem.create(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < LAST_ATTEMPT => attempt += 1,
            Err(error) => return Err(failed(Operation::Create, &temporary)(error)),
        }
    }
}

fn fill_and_rename<T, E: From<FileError>>(
    filesystem: &mut dyn Filesystem,
    file: OwnedFd,
    temporary: &Path,
    path: &Path,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), FileError>) -> Result<T, E>,
) -> Result<T, E> {
    let filled =
        fill(&mut |bytes| write_all(filesystem, file.as_fd(), bytes).map_err(failed(Operation::Write, temporary)))?;
    filesystem.sync(file.as_fd()).map_err(failed(Operation::Sync, temporary))?;
    drop(file);
    filesystem.rename(temporary, path).map_err(failed(Operation::Rename, path))?;
    Ok(filled)
}

fn write_all(filesystem: &mut dyn Filesystem, file: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match filesystem.write(file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn failed(operation: Operation, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Failed { operation, path: path.to_owned(), source }
}

const LAST_ATTEMPT: u32 = 999;
