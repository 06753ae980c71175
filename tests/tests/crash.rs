//! Saves that are packed piece by piece, killed at no particular moment or out of room: the files that are there are whole.

#![expect(clippy::disallowed_methods, reason = "the test looks at the files themselves")]

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hibernet_netstack::{DeltaChain, Packing, SaveBuffer, WriteError};
use hibernet_snapshot::digest::{Digester, ImageDigest};
use hibernet_snapshot::file::{FileError, OsFilesystem, write_atomic_with};
use hibernet_snapshot::image::{Limits, StoredImage};
use hibernet_snapshot::seal::{SealKey, Sealer, Unsealer};
use hibernet_snapshot::{Entropy, GenerationId, Secret};
use hibernet_tests::traffic::{Gateway, START, Session, Trace, restored};

fn key() -> SealKey {
    SealKey::new(Secret::new([3; 32]))
}

fn running() -> (Session, Trace) {
    let trace = Trace::of(&Gateway::with_room_for(256), 1, 2, 800);
    let mut stack = trace.gateway.open(1);
    trace.rewind(&mut stack, 0);
    (Session::of(stack, 0, START), trace)
}

fn file_error(error: WriteError<FileError>) -> FileError {
    match error {
        WriteError::Sink(error) => error,
        other => panic!("{other}"),
    }
}

/// Saves sealed and compressed, over and over, to one file.
fn save_sealed(path: &Path) -> Result<(), FileError> {
    let (mut session, trace) = running();
    for (number, step) in trace.steps.iter().enumerate() {
        session.play(step);
        if number % 5 != 0 {
            continue;
        }
        let now = session.now();
        let mut frozen = session.stack.freeze(GenerationId([number as u8; 16]), now, SaveBuffer::default()).unwrap();
        let mut entropy = Entropy::from_test_seed(number as u64);
        write_atomic_with(&mut OsFilesystem, path, |out| -> Result<(), FileError> {
            let mut sealer = Sealer::new(&key(), &mut entropy);
            let mut sealed = Vec::new();
            let put = |bytes: &[u8]| {
                sealed.clear();
                sealer.push(bytes, &mut sealed).expect("an image");
                out(&sealed)
            };
            frozen.write(&Packing::default().compressed(true).on_threads(2), put).map_err(file_error)?;
            sealed.clear();
            sealer.finish(&mut sealed).expect("an image");
            out(&sealed)
        })?;
        say("saved");
    }
    Ok(())
}

/// Saves a base and then deltas, each to a file of its own.
fn save_chain(directory: &Path) -> Result<(), FileError> {
    let (mut session, trace) = running();
    for (number, step) in trace.steps.iter().enumerate() {
        session.play(step);
        let (now, generation) = (session.now(), GenerationId([number as u8; 16]));
        let path = directory.join(format!("{number:04}"));
        let mut digester = Digester::default();
        let checkpoint = write_atomic_with(&mut OsFilesystem, &path, |out| -> Result<_, FileError> {
            let sink = |bytes: &[u8]| {
                digester.update(bytes);
                out(bytes)
            };
            if number == 0 {
                let mut frozen = session.stack.freeze_base(generation, now, SaveBuffer::default()).unwrap();
                frozen.write(&Packing::default(), sink).map_err(file_error)?;
                return Ok(frozen.checkpoint());
            }
            let frozen = session.stack.freeze_changes(generation, now).unwrap();
            Ok(frozen.write(sink).map_err(file_error)?.1)
        })?;
        assert!(session.stack.written(checkpoint, digester.finish()));
        say("saved");
    }
    Ok(())
}

fn say(words: &str) {
    let mut output = io::stdout();
    writeln!(output, "{words}").unwrap();
    output.flush().unwrap();
}

/// The child of the tests below. By itself it has nothing to do.
#[test]
fn the_child_saves_until_it_is_killed() {
    let Some(what) = std::env::var_os(WHAT) else { return };
    let path = PathBuf::from(std::env::var_os(PATH).unwrap());
    let result = if what == "sealed" { save_sealed(&path) } else { save_chain(&path) };
    match result {
        Ok(()) => say("done"),
        Err(error) => say(&format!("error {error}")),
    }
}

fn child(what: &str, path: &Path, through: &[&str]) -> Child {
    let own = std::env::current_exe().unwrap();
    let arguments = ["--exact", "the_child_saves_until_it_is_killed", "--test-threads=1", "--nocapture"];
    let mut command = match through {
        [] => Command::new(own),
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(own);
            command
        }
    };
    command.args(arguments).env(WHAT, what).env(PATH, path).stdout(Stdio::piped()).spawn().unwrap()
}

/// Reads lines until so many saves are done; then the child is killed in the middle of something.
fn kill_after(mut child: Child, saves: usize) {
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let mut seen = 0;
    while seen < saves {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended before");
        seen += usize::from(line.contains("saved"));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
}

#[test]
fn a_sealed_save_that_is_killed_at_any_moment_leaves_a_whole_image() {
    for saves in 1..12 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        kill_after(child("sealed", &path, &[]), saves);
        let bytes = fs::read(&path).unwrap();
        let mut input = Unsealer::begin(bytes.as_slice(), &key()).unwrap();
        let mut plain = Vec::new();
        io::Read::read_to_end(&mut input, &mut plain).unwrap();
        assert!(!restored(&plain, 5, START).unwrap().0.flows(START).is_empty());
    }
}

#[test]
fn a_chain_whose_writer_is_killed_at_any_moment_restores_up_to_its_last_file() {
    for saves in [1, 2, 7, 20, 45] {
        let directory = tempfile::tempdir().unwrap();
        kill_after(child("chain", directory.path(), &[]), saves);
        let mut chain: Option<DeltaChain> = None;
        let mut files = 0;
        while let Ok(bytes) = fs::read(directory.path().join(format!("{files:04}"))) {
            let image = StoredImage::read(&mut bytes.as_slice(), &Limits::default()).unwrap();
            let digest = ImageDigest::of(&bytes);
            chain = Some(match chain {
                None => DeltaChain::begin(image, digest, &Limits::default()).unwrap(),
                Some(chain) => chain.apply(image, digest, &Limits::default()).unwrap(),
            });
            files += 1;
        }
        assert!(files >= saves, "{files} files after {saves} saves");
        let decoded = chain.unwrap().finish().unwrap();
        decoded.validate(&mut Entropy::from_test_seed(1), START).unwrap();
    }
}

#[test]
fn a_file_that_may_not_grow_is_a_clear_error_and_the_old_image_stays() {
    for what in ["sealed", "chain"] {
        let directory = tempfile::tempdir().unwrap();
        let path = if what == "sealed" { directory.path().join("image") } else { directory.path().to_owned() };
        let target = if what == "sealed" { path.clone() } else { directory.path().join("0000") };
        fs::write(&target, b"what was there").unwrap();
        // Files of that process may have 1 KiB, which no image fits in; it is told so, not killed.
        let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 2; exec \"$0\" \"$@\""];
        let output = child(what, &path, &limited).wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let error = text.lines().find_map(|line| line.split_once("error ")).unwrap_or_else(|| panic!("{text}")).1;
        assert!(error.contains("cannot write") && error.contains("File too large"), "{error}");
        assert_eq!(fs::read(&target).unwrap(), b"what was there", "{what}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "{what}: nothing else is left");
    }
}

const WHAT: &str = "HIBERNET_TEST_WHAT";
const PATH: &str = "HIBERNET_TEST_PATH";
