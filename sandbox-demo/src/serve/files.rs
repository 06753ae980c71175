//! The files that are handed out.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::fault::Fault;

/// The directory whose files are handed out, and nothing outside it.
pub(super) struct Root {
    path: PathBuf,
}

/// What is at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    File(FilePart),
    /// The names in a directory, one on a line.
    Listing(String),
}

/// What is left to be sent of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FilePart {
    /// As it was asked for, from the root on.
    path: String,
    at: u64,
    /// How long the file was when it was asked for.
    length: u64,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let fault = |what: String| Fault::new(what, "name the directory to hand out with --root");
        let found = path.canonicalize().map_err(|error| fault(format!("the directory {}: {error}", path.display())))?;
        if !found.is_dir() {
            return Err(fault(format!("{} is no directory", path.display())));
        }
        Ok(Self { path: found })
    }

    /// What is at an absolute path, from this root on.
    pub(super) fn find(&self, path: &str) -> Option<Found> {
        let place = self.place(path)?;
        let metadata = place.metadata().ok()?;
        if metadata.is_file() {
            return Some(Found::File(FilePart { path: path.to_owned(), at: 0, length: metadata.len() }));
        }
        metadata.is_dir().then(|| Found::Listing(listing(&place)))
    }

    /// Where a path leads: to nothing if it is outside, by `..` or by a symbolic link.
    fn place(&self, path: &str) -> Option<PathBuf> {
        let path = Path::new(path.trim_start_matches('/'));
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        let place = self.path.join(path).canonicalize().ok()?;
        place.starts_with(&self.path).then_some(place)
    }
}

impl FilePart {
    /// Bytes to be sent.
    pub(super) fn left(&self) -> u64 {
        self.length.saturating_sub(self.at)
    }

    /// So many of them have been.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes as u64);
    }

    /// The next of them. They are read at once, not in a thread of their own: a few KiB, mostly from memory.
    pub(super) fn read(&self, root: &Root, file: &mut Option<File>) -> io::Result<Vec<u8>> {
        let file = match file {
            Some(file) => file,
            None => file.insert(self.open(root)?),
        };
        let mut chunk = vec![0; usize::try_from(self.left()).unwrap_or(CHUNK).min(CHUNK)];
        let read = file.read_at(&mut chunk, self.at)?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter"));
        }
        chunk.truncate(read);
        Ok(chunk)
    }

    fn open(&self, root: &Root) -> io::Result<File> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the file is gone");
        let place = root.place(&self.path).filter(|place| place.is_file()).ok_or_else(gone)?;
        let file = File::open(place)?;
        if file.metadata()?.len() != self.length {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file has another length than before"));
        }
        Ok(file)
    }
}

fn listing(directory: &Path) -> String {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().take(MAX_LISTED);
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.iter().map(|name| format!("{name}\n")).collect()
}

/// Read and handed to a stream at once.
pub(super) const CHUNK: usize = 16 * 1024;
/// Names in a listing.
const MAX_LISTED: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_root_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("root")).expect("a root");
        fs::write(dir.path().join("secret"), b"secret").expect("a file outside");
        fs::write(dir.path().join("root/file"), b"file").expect("a file inside");
        std::os::unix::fs::symlink("../secret", dir.path().join("root/link")).expect("a link to the outside");
        let root = Root::open(&dir.path().join("root")).expect("a root");
        assert!(matches!(root.find("/file"), Some(Found::File(_))));
        assert_eq!(root.find("/"), Some(Found::Listing("file\nlink\n".to_owned())));
        let secret = dir.path().join("secret");
        for path in ["/../secret", "/link", "/./../secret", "//../secret", secret.to_str().expect("a path")] {
            assert_eq!(root.find(path), None, "{path}");
        }
    }
}
