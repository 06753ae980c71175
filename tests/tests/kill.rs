//! A save that is killed, or finds no room, at any of its calls leaves the old image or the new one, whole.

#![expect(clippy::disallowed_methods, reason = "the test looks at the files themselves")]

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use hibernet_snapshot::file::{FileError, FileKind, Filesystem, OsFilesystem, write_atomic, write_atomic_with};
use hibernet_snapshot::seal::{SealKey, open, sealed_parts};
use hibernet_snapshot::{Entropy, Secret};
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

/// How an image is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Plain,
    Sealed,
}

impl Form {
    const ALL: [Self; 2] = [Self::Plain, Self::Sealed];

    fn save(self, filesystem: &mut dyn Filesystem, path: &Path, image: &[u8]) -> Result<(), FileError> {
        let mut nonces = Entropy::from_test_seed(4);
        match self {
            Self::Plain => write_atomic(filesystem, path, image),
            Self::Sealed => write_atomic_with(filesystem, path, |out| {
                sealed_parts(image, &seal_key(), &mut nonces).try_for_each(|part| out(&part.unwrap()))
            }),
        }
    }

    fn read(self, path: &Path) -> Vec<u8> {
        let file = fs::read(path).unwrap();
        match self {
            Self::Plain => file,
            Self::Sealed => open(file, &seal_key()).unwrap(),
        }
    }
}

fn seal_key() -> SealKey {
    SealKey::new(Secret::new([9; 32]))
}

/// An early and a late image of one stack.
fn images() -> [Vec<u8>; 2] {
    let trace = Trace::of(&Gateway::with_room_for(64), 1, 2, 200);
    let [(_, old), .., (_, new)] = trace.seen.images.as_slice() else { panic!("two images") };
    assert_ne!(old, new);
    [old.clone(), new.clone()]
}

/// A directory with the old image in it.
fn place(form: Form, old: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stack.image");
    form.save(&mut OsFilesystem, &path, old).unwrap();
    (directory, path)
}

fn calls_of_a_save(form: Form, [old, new]: &[Vec<u8>; 2]) -> usize {
    let (_directory, path) = place(form, old);
    let mut counting = Trapped { calls: 0, spring_at: usize::MAX, piece: new.len().div_ceil(4), trap: || Ok(()) };
    form.save(&mut counting, &path, new).unwrap();
    counting.calls
}

/// Which image is there, having been restored.
fn found(form: Form, path: &Path, [old, new]: &[Vec<u8>; 2]) -> &'static str {
    let there = form.read(path);
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
    killed_at_any_call(Form::Plain, 2 + 4 + 3); // kind, create; four writes; sync, rename, sync of the directory
}

#[test]
fn a_process_killed_at_any_call_of_a_sealed_save_leaves_the_old_image_or_the_new_one() {
    killed_at_any_call(Form::Sealed, 2 + 4 + 3);
}

fn killed_at_any_call(form: Form, expected_calls: usize) {
    let images = images();
    let calls = calls_of_a_save(form, &images);
    // A sealed image comes in parts, so a piece more or two are written of it.
    assert!((expected_calls..=expected_calls + 2).contains(&calls), "{calls} calls");
    for call in 0..calls {
        let (_directory, path) = place(form, &images[0]);
        let (mut child, mut output) = saving_child(form, &path, call);
        let line = wait_for(&mut output, "at the call");
        child.kill().unwrap(); // SIGKILL
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{line}: {status}");
        // Only before the last call has the new image its name.
        let expected = if call + 1 < calls { "old" } else { "new" };
        assert_eq!(found(form, &path, &images), expected, "killed before call {call}");

        // What a killed save leaves behind is in the way of none that follows.
        form.save(&mut OsFilesystem, &path, &images[1]).unwrap();
        assert_eq!(found(form, &path, &images), "new");
    }
}

#[test]
fn a_full_disk_at_any_call_is_a_clear_error_and_the_image_that_was_there_restores() {
    let images = images();
    for form in Form::ALL {
        let calls = calls_of_a_save(form, &images);
        for call in 0..calls {
            let (directory, path) = place(form, &images[0]);
            let full = || Err(io::Error::from_raw_os_error(ENOSPC));
            let mut disk = Trapped { calls: 0, spring_at: call, piece: images[1].len().div_ceil(4), trap: full };
            let error = form.save(&mut disk, &path, &images[1]).unwrap_err().to_string();
            assert!(error.contains(": cannot ") && error.contains("No space left on device"), "{error}");
            assert!(error.starts_with(directory.path().to_str().unwrap()), "{error}");
            assert_eq!(found(form, &path, &images), if call + 1 < calls { "old" } else { "new" }, "{error}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left: {error}");
        }
    }
}

/// The kernel itself refuses, in the middle of a file: any user can have a limit on the size of files.
#[test]
fn a_file_that_the_kernel_lets_grow_no_further_is_a_clear_error_and_leaves_the_image_that_was_there() {
    let images = images();
    for form in Form::ALL {
        let (directory, path) = place(form, &images[0]);
        let (mut child, mut output) = limited_child(form, &path);
        let line = wait_for(&mut output, "refused: ");
        assert!(child.wait().unwrap().success());
        assert!(line.contains(": cannot write: File too large"), "{line}");
        assert!(line.contains(path.file_name().unwrap().to_str().unwrap()), "{line}");
        assert_eq!(found(form, &path, &images), "old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    }
}

/// The child of the tests above: saves a stack's image over the old one, and stops before the call it was told. By itself it
/// has nothing to do.
#[test]
fn the_child_saves_and_stops() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let form = if std::env::var_os(SEALED).is_some() { Form::Sealed } else { Form::Plain };
    let [_, new] = images();
    let Ok(call) = std::env::var(CALL) else {
        let error = form.save(&mut OsFilesystem, Path::new(&path), &new).unwrap_err();
        println!("refused: {error}");
        return;
    };
    let stop = || -> io::Result<()> {
        let mut output = io::stdout();
        writeln!(output, "at the call")?;
        output.flush()?;
        loop {
            std::thread::park();
        }
    };
    let spring_at = call.parse().unwrap();
    let mut trapped = Trapped { calls: 0, spring_at, piece: new.len().div_ceil(4), trap: stop };
    form.save(&mut trapped, Path::new(&path), &new).unwrap();
}

fn saving_child(form: Form, path: &Path, call: usize) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(CALL, call.to_string());
    started(command, form, path)
}

/// A child whose files the kernel lets grow to a kibibyte, and that is told so by an error and not by a signal.
fn limited_child(form: Form, path: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut command = Command::new("sh");
    // In POSIX's sh the unit is 512 bytes.
    command.args(["-c", "trap '' XFSZ; ulimit -f 2; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    started(command, form, path)
}

fn started(mut command: Command, form: Form, path: &Path) -> (Child, BufReader<ChildStdout>) {
    command.args(["--exact", "the_child_saves_and_stops", "--test-threads=1", "--nocapture"]);
    if form == Form::Sealed {
        command.env(SEALED, "1");
    }
    let mut child = command.env(PATH, path).stdout(Stdio::piped()).spawn().unwrap();
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
const SEALED: &str = "HIBERNET_TEST_SEALED";
const CALL: &str = "HIBERNET_TEST_CALL";
/// `errno.h`, on every Linux.
const ENOSPC: i32 = 28;
