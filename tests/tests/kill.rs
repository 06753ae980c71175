//! A save that is killed, or finds no room, at any of its calls leaves the old image or the new one, whole.

#![expect(clippy::disallowed_methods, reason = "the test looks at the files themselves")]

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use hibernet_snapshot::file::{FileKind, Filesystem, OsFilesystem, write_atomic};
use hibernet_tests::traffic::{Gateway, START, Trace, restored};

/// The operating system's file system, with something that happens at one call. Writes come in pieces.
struct Trapped<F> {
    calls: usize,
    spring_at: usize,
    piece: usize,
    trap: F,
}

/// What a trap does before a call: nothing, wait to be killed, or fail.
impl<F: FnMut() -> io::Result<()>> Trapped<F> {
    fn call<T>(&mut self, call: impl FnOnce(&mut OsFilesystem) -> io::Result<T>) -> io::Result<T> {
        let sprung = self.calls == self.spring_at;
        self.calls += 1;
        if sprung {
            (self.trap)()?;
        }
        call(&mut OsFilesystem)
    }
}

impl<F: FnMut() -> io::Result<()>> Filesystem for Trapped<F> {
    fn kind(&mut self, path: &Path) -> io::Result<Option<FileKind>> {
        self.call(|os| os.kind(path))
    }

    fn create(&mut self, path: &Path) -> io::Result<OwnedFd> {
        self.call(|os| os.create(path))
    }

    fn write(&mut self, file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(self.piece)];
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

/// An early and a late image of one stack.
fn images() -> [Vec<u8>; 2] {
    let trace = Trace::of(&Gateway::with_room_for(64), 1, 2, 200);
    let [(_, old), .., (_, new)] = trace.seen.images.as_slice() else { panic!("two images") };
    assert_ne!(old, new);
    [old.clone(), new.clone()]
}

/// A directory with the old image in it.
fn place(old: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stack.image");
    fs::write(&path, old).unwrap();
    (directory, path)
}

fn calls_of_a_save([old, new]: &[Vec<u8>; 2]) -> usize {
    let (_directory, path) = place(old);
    let mut counting = Trapped { calls: 0, spring_at: usize::MAX, piece: new.len().div_ceil(4), trap: || Ok(()) };
    write_atomic(&mut counting, &path, new).unwrap();
    counting.calls
}

/// Which image is there, having been restored.
fn found(path: &Path, [old, new]: &[Vec<u8>; 2]) -> &'static str {
    let there = fs::read(path).unwrap();
    let (stack, _) = restored(&there, 5, START).unwrap();
    assert!(!stack.flows(START).is_empty());
    match there {
        there if there == *old => "old",
        there if there == *new => "new",
        _ => "neither",
    }
}

#[test]
fn a_process_killed_at_any_call_of_a_save_leaves_the_old_image_or_the_new_one() {
    let images = images();
    let calls = calls_of_a_save(&images);
    assert_eq!(calls, 2 + 4 + 3, "kind, create; four writes; sync, rename, sync of the directory");
    for call in 0..calls {
        let (_directory, path) = place(&images[0]);
        let (mut child, mut output) = saving_child(&path, call);
        let line = wait_for(&mut output, "at the call");
        child.kill().unwrap(); // SIGKILL
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{line}: {status}");
        // Only before the last call has the new image its name.
        let expected = if call + 1 < calls { "old" } else { "new" };
        assert_eq!(found(&path, &images), expected, "killed before call {call}");

        // What a killed save leaves behind is in the way of none that follows.
        write_atomic(&mut OsFilesystem, &path, &images[1]).unwrap();
        assert_eq!(found(&path, &images), "new");
    }
}

#[test]
fn a_full_disk_at_any_call_is_a_clear_error_and_the_image_that_was_there_restores() {
    let images = images();
    let calls = calls_of_a_save(&images);
    for call in 0..calls {
        let (directory, path) = place(&images[0]);
        let full = || Err(io::Error::from_raw_os_error(ENOSPC));
        let mut disk = Trapped { calls: 0, spring_at: call, piece: images[1].len().div_ceil(4), trap: full };
        let error = write_atomic(&mut disk, &path, &images[1]).unwrap_err().to_string();
        assert!(error.contains(": cannot ") && error.contains("No space left on device"), "{error}");
        assert!(error.starts_with(directory.path().to_str().unwrap()), "{error}");
        assert_eq!(found(&path, &images), if call + 1 < calls { "old" } else { "new" }, "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left: {error}");
    }
}

/// The child of the test above: saves a stack's image over the old one, and stops before the call it was told. By itself it
/// has nothing to do.
#[test]
fn the_child_saves_and_stops() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let call = std::env::var(CALL).unwrap().parse().unwrap();
    let [_, new] = images();
    let stop = || -> io::Result<()> {
        let mut output = io::stdout();
        writeln!(output, "at the call")?;
        output.flush()?;
        loop {
            std::thread::park();
        }
    };
    let mut trapped = Trapped { calls: 0, spring_at: call, piece: new.len().div_ceil(4), trap: stop };
    write_atomic(&mut trapped, Path::new(&path), &new).unwrap();
}

fn saving_child(path: &Path, call: usize) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_child_saves_and_stops", "--test-threads=1", "--nocapture"])
        .env(PATH, path)
        .env(CALL, call.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn wait_for(output: &mut BufReader<ChildStdout>, words: &str) -> String {
    let mut line = String::new();
    while !line.contains(words) {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended before the call");
    }
    line
}

const PATH: &str = "HIBERNET_TEST_IMAGE";
const CALL: &str = "HIBERNET_TEST_CALL";
/// `errno.h`, on every Linux.
const ENOSPC: i32 = 28;
