//! A file is replaced whole or not at all, whatever fails and whenever the process dies.

#![expect(clippy::disallowed_methods, reason = "the test looks at the files themselves")]

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use hibernet_snapshot::file::{FileKind, Filesystem, OsFilesystem, write_atomic};

/// Does something at one call, counted from zero, and writes in small pieces so that there are many calls.
struct Trap {
    calls: usize,
    spring_at: usize,
    when: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Never,
    /// Die in the place of the call; a write is half done.
    DieBefore,
    /// Die when the call is done.
    DieAfter,
    /// The call fails: the medium is full.
    Full,
}

impl Trap {
    fn new(spring_at: usize, when: When) -> Self {
        Self { calls: 0, spring_at, when }
    }

    fn call<T>(&mut self, call: impl FnOnce(&mut OsFilesystem) -> io::Result<T>) -> io::Result<T> {
        let sprung = self.calls == self.spring_at;
        self.calls += 1;
        match self.when {
            When::DieBefore if sprung => die(),
            When::Full if sprung => return Err(io::ErrorKind::StorageFull.into()),
            _ => {}
        }
        let result = call(&mut OsFilesystem);
        if sprung && self.when == When::DieAfter {
            die();
        }
        result
    }
}

/// As by SIGKILL: nothing is unwound, nothing is flushed.
fn die() -> ! {
    std::process::abort()
}

impl Filesystem for Trap {
    fn kind(&mut self, path: &Path) -> io::Result<Option<FileKind>> {
        self.call(|os| os.kind(path))
    }

    fn create(&mut self, path: &Path) -> io::Result<OwnedFd> {
        self.call(|os| os.create(path))
    }

    fn write(&mut self, file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(16)];
        if self.when == When::DieBefore && self.calls == self.spring_at {
            OsFilesystem.write(file, &piece[..piece.len() / 2])?;
        }
        self.call(|os| os.write(file, piece))
    }

    fn sync(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.call(|os| os.sync(file))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(|os| os.rename(from, to))
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        self.call(|os| os.sync_directory(path))
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        OsFilesystem.remove(path)
    }
}

const OLD: &[u8] =
    b"the old file, which is longer than the new one, so that no mixture of the two can pass for either of them";
const NEW: &[u8] = b"the new file, in more than one piece of the trap";

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// A directory with the old file in it.
    fn new() -> Self {
        let place = Self::empty();
        fs::write(place.target(), OLD).unwrap();
        place
    }

    fn empty() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("stack.image")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn calls_of_a_save() -> usize {
    let place = Place::new();
    let mut trap = Trap::new(0, When::Never);
    write_atomic(&mut trap, &place.target(), NEW).unwrap();
    trap.calls
}

#[test]
fn a_new_file_has_the_bytes_and_is_its_owners_alone() {
    for place in [Place::empty(), Place::new()] {
        write_atomic(&mut OsFilesystem, &place.target(), NEW).unwrap();
        assert_eq!(fs::read(place.target()).unwrap(), NEW);
        assert_eq!(fs::metadata(place.target()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(place.names(), ["stack.image"]);
    }
}

#[test]
fn a_full_medium_at_any_call_leaves_a_whole_file_and_no_temporary() {
    let calls = calls_of_a_save();
    assert!(calls > 7);
    for call in 0..calls {
        let place = Place::new();
        let error = write_atomic(&mut Trap::new(call, When::Full), &place.target(), NEW).unwrap_err().to_string();
        // Only the last call, the sync of the directory, comes after the rename.
        let expected = if call + 1 < calls { OLD } else { NEW };
        assert_eq!(fs::read(place.target()).unwrap(), expected, "call {call}: {error}");
        assert_eq!(place.names(), ["stack.image"], "call {call}: {error}");
        assert!(error.contains(place.directory.path().to_str().unwrap()), "{error}");
        assert!(error.contains(": cannot ") && error.contains("no storage space"), "{error}");
    }
}

#[test]
fn a_process_killed_at_any_call_leaves_the_old_file_or_the_new_one() {
    let calls = calls_of_a_save();
    for when in [When::DieBefore, When::DieAfter] {
        for call in 0..calls {
            let place = Place::new();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "the_child_saves_and_dies", "--test-threads=1"])
                .env(TARGET, place.target())
                .env(CALL, call.to_string())
                .env(DIE_AFTER, (when == When::DieAfter).to_string())
                .output()
                .unwrap()
                .status;
            assert!(!status.success(), "{when:?} call {call}: the child outlived its trap");
            let renamed = call + 1 == calls || (call + 2 == calls && when == When::DieAfter);
            let expected = if renamed { NEW } else { OLD };
            assert_eq!(fs::read(place.target()).unwrap(), expected, "{when:?} call {call}");

            // What a killed save leaves behind is in the way of none that follows.
            write_atomic(&mut OsFilesystem, &place.target(), NEW).unwrap();
            assert_eq!(fs::read(place.target()).unwrap(), NEW);
        }
    }
}

/// The child of the test above. By itself it has nothing to do.
#[test]
fn the_child_saves_and_dies() {
    let Some(target) = std::env::var_os(TARGET) else { return };
    let call = std::env::var(CALL).unwrap().parse().unwrap();
    let when = if std::env::var(DIE_AFTER).unwrap() == "true" { When::DieAfter } else { When::DieBefore };
    write_atomic(&mut Trap::new(call, when), Path::new(&target), NEW).unwrap();
}

const TARGET: &str = "HIBERNET_TEST_TARGET";
const CALL: &str = "HIBERNET_TEST_CALL";
const DIE_AFTER: &str = "HIBERNET_TEST_DIE_AFTER";

#[test]
fn a_symbolic_link_is_refused_and_what_it_leads_to_is_untouched() {
    let place = Place::new();
    let link = place.directory.path().join("link");
    symlink(place.target(), &link).unwrap();
    let error = write_atomic(&mut OsFilesystem, &link, NEW).unwrap_err().to_string();
    assert_eq!(error, format!("{}: is a symbolic link, expected a file or nothing", link.display()));
    assert_eq!(fs::read(&link).unwrap(), OLD);
    assert_eq!(place.names(), ["link", "stack.image"]);
}

#[test]
fn a_directory_is_refused_and_so_is_a_path_without_a_name() {
    let place = Place::empty();
    fs::create_dir(place.target()).unwrap();
    let error = write_atomic(&mut OsFilesystem, &place.target(), NEW).unwrap_err().to_string();
    assert_eq!(error, format!("{}: is a directory, expected a file or nothing", place.target().display()));
    assert_eq!(place.names(), ["stack.image"]);

    let error = write_atomic(&mut OsFilesystem, Path::new("/"), NEW).unwrap_err().to_string();
    assert_eq!(error, "/: names no file");
}

#[test]
fn a_directory_that_is_not_there_is_named_in_the_error() {
    let place = Place::empty();
    let target = place.directory.path().join("missing").join("stack.image");
    let error = write_atomic(&mut OsFilesystem, &target, NEW).unwrap_err().to_string();
    assert!(error.contains("missing/.stack.image.0.tmp: cannot create the temporary file: "), "{error}");
}
