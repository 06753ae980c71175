//! Sealed images and `diff` as users meet them: keys in files, exit codes, what is shown and what is refused.

#![expect(clippy::disallowed_methods, reason = "the tests write images and keys to files for the binary to read")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use hibernet_netstack::LinkConfig;
use hibernet_netstack::Medium;
use hibernet_netstack::Ruleset;
use hibernet_netstack::Stack;
use hibernet_netstack::StackConfig;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::GenerationId;
use hibernet_snapshot::Instant;
use hibernet_snapshot::Secret;
use hibernet_snapshot::seal::SealKey;
use hibernet_snapshot::seal::seal;
use tempfile::TempDir;

const KEY: [u8; 32] = [0xa5; 32];

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    fn file(&self, name: &str, content: &[u8], mode: u32) -> String {
        let path: PathBuf = self.0.path().join(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
        path.to_str().expect("a plain path").to_owned()
    }

    fn key(&self, name: &str, content: &[u8]) -> String {
        self.file(name, content, 0o600)
    }
}

fn image(generation: u8, mtu: u32, rules: &str) -> Vec<u8> {
    let config = StackConfig {
        links: vec![LinkConfig { name: "eth0".to_owned(), mtu, addrs: Vec::new(), medium: Medium::Ip }],
        rules: Ruleset::from_json(rules).expect("rules"),
        ..StackConfig::default()
    };
    let stack = Stack::new(config, Entropy::from_test_seed(1), Instant::ZERO).expect("a stack");
    stack.save(GenerationId([generation; 16]), Instant::ZERO).expect("an image")
}

fn sealed(image: &[u8]) -> Vec<u8> {
    seal(image, &SealKey::new(Secret::new(KEY)), &mut Entropy::from_test_seed(2)).expect("an image")
}

const NO_RULES: &str = "[]";
const ONE_RULE: &str = r#"[{"chain": "forward", "match": {"proto": "tcp", "dport": 25}, "action": "drop"}]"#;

fn run_with(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox-demo"));
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command.args(args).envs(variables.iter().copied()).output().expect("the binary runs")
}

fn run(args: &[&str]) -> Output {
    run_with(args, &[])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// This exit code, and one line on standard error that contains all of `parts`.
fn refused(output: &Output, code: i32, parts: &[&str]) {
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert!(line.starts_with("sandbox-demo: ") && line.lines().count() == 1, "{line}");
    assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    assert!(output.stdout.is_empty(), "nothing is printed of an image that is refused");
}

#[test]
fn a_sealed_image_shows_its_header_without_the_key_and_all_with_it() {
    let place = Place::new();
    let key = place.key("key", &KEY);
    let digits = place.key("digits", ("a5".repeat(32) + "\n").as_bytes());
    let path = place.file("image", &sealed(&image(1, 1500, NO_RULES)), 0o600);

    let closed = run(&["inspect", &path]);
    let shown = text(&closed.stdout);
    assert_eq!(closed.status.code(), Some(0), "{}", text(&closed.stderr));
    assert!(shown.starts_with("sealed ") && shown.contains("only its key (--seal-key FILE) can tell"), "{shown}");
    assert!(shown.contains("written by hibernet-netstack 0.") && shown.contains(&"01".repeat(16)), "{shown}");
    assert!(!shown.contains("links"), "{shown}");
    let json: serde_json::Value = serde_json::from_slice(&run(&["inspect", "--json", &path]).stdout).expect("JSON");
    assert_eq!((&json["sealed"], &json["checked"]), (&true.into(), &false.into()));

    for key in [&key, &digits] {
        let opened = run(&["inspect", &path, "--seal-key", key]);
        let shown = text(&opened.stdout);
        assert!(shown.starts_with("sealed, and opened with its key\n") && shown.contains("1 links"), "{shown}");
    }
}

#[test]
fn the_wrong_key_a_changed_file_and_no_key_are_refused_with_the_remedy() {
    let place = Place::new();
    let (key, other) = (place.key("key", &KEY), place.key("other", &[1; 32]));
    let whole = sealed(&image(1, 1500, NO_RULES));
    let mut flipped = whole.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let path = place.file("image", &whole, 0o600);
    let flipped = place.file("flipped", &flipped, 0o600);
    let control = place.0.path().join("control");
    let control = control.to_str().expect("a plain path");
    let restore =
        |image: &str, key: &str| run(&["restore", image, "--link", "lo", "--control", control, "--seal-key", key]);
    refused(&restore(&path, &other), 1, &[&path, "sealed", "wrong key, or the file was changed"]);
    refused(&restore(&flipped, &key), 1, &[&flipped, "sealed", "was changed"]);
    refused(
        &run(&["restore", &path, "--link", "lo", "--control", control]),
        1,
        &[&path, "is sealed", "--seal-key FILE", "hibernet-netstack"],
    );
    refused(&run(&["inspect", &path, "--seal-key", &other]), 1, &[&path, "wrong key"]);
    refused(&run(&["diff", &path, &path]), 2, &[&path, "is sealed", "--seal-key FILE"]);
    assert!(!PathBuf::from(control).exists(), "a refused restore leaves nothing behind");
}

#[test]
fn an_image_that_is_not_sealed_is_refused_where_a_key_is_given() {
    let place = Place::new();
    let key = place.key("key", &KEY);
    let path = place.file("image", &image(1, 1500, NO_RULES), 0o600);
    refused(&run(&["inspect", &path, "--seal-key", &key]), 1, &[&path, "not sealed", "leave out --seal-key"]);
}

#[test]
fn a_key_that_others_can_read_or_that_is_none_is_refused() {
    let place = Place::new();
    let path = place.file("image", &sealed(&image(1, 1500, NO_RULES)), 0o600);
    let inspect = |key: &str| run(&["inspect", &path, "--seal-key", key]);
    for mode in [0o644, 0o640, 0o604, 0o660] {
        let key = place.file("open", &KEY, mode);
        refused(&inspect(&key), 1, &[&key, &format!("{mode:04o}"), "chmod 600"]);
    }
    let short = place.key("short", &KEY[..31]);
    refused(&inspect(&short), 1, &[&short, "31 bytes", "expected 32 bytes or 64 hexadecimal digits", "/dev/urandom"]);
    let long = place.key("long", &[b'a'; 5000]);
    refused(&inspect(&long), 1, &[&long, "or more", "expected 32 bytes"]);
    refused(&inspect("/no/such/key"), 1, &["/no/such/key", "No such file", "/dev/urandom"]);
    let home = place.0.path().to_str().expect("a plain path");
    refused(&inspect(home), 1, &[home, "seal key"]);
}

#[test]
fn diff_exits_as_diff_does_and_reads_sealed_images() {
    let place = Place::new();
    let key = place.key("key", &KEY);
    let before = place.file("before", &sealed(&image(1, 1500, NO_RULES)), 0o600);
    let again = place.file("again", &sealed(&image(2, 1500, NO_RULES)), 0o600);
    let after = place.file("after", &sealed(&image(3, 1400, ONE_RULE)), 0o600);
    let diff = |one: &str, other: &str, more: &[&str]| run(&[&["diff", one, other, "--seal-key", &key], more].concat());

    let same = diff(&before, &again, &[]);
    assert_eq!((same.status.code(), text(&same.stdout).as_str()), (Some(0), "no difference but the generation\n"));
    let changed = diff(&before, &after, &[]);
    assert_eq!(changed.status.code(), Some(1), "{}", text(&changed.stderr));
    let lines = text(&changed.stdout);
    assert!(lines.contains("~ links eth0\n    ~ mtu: 1500 -> 1400\n"), "{lines}");
    assert!(lines.contains("+ rules chain forward rule 1: ") && lines.contains("rule.match.dport 25"), "{lines}");
    assert!(lines.trim_end().ends_with("changed") && !lines.contains('\x1b'), "{lines}");
    refused(&diff(&before, "/no/such/image", &[]), 2, &["/no/such/image"]);

    let json = diff(&before, &after, &["--json"]);
    assert_eq!(json.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("one JSON object");
    let link = &json["changes"][0];
    assert_eq!(
        (&link["change"], &link["section"], &link["item"]),
        (&"changed".into(), &"links".into(), &"eth0".into())
    );
    assert_eq!(link["fields"][0], serde_json::json!({"path": "mtu", "from": 1500, "to": 1400}));
    let sum = ["added", "removed", "changed"].map(|kind| json[kind].as_u64().expect("a count")).iter().sum::<u64>();
    assert_eq!(json["changes"].as_array().map(Vec::len), usize::try_from(sum).ok());
    let none: serde_json::Value = serde_json::from_slice(&diff(&before, &again, &["--json"]).stdout).expect("JSON");
    assert_eq!(none, serde_json::json!({"changes": [], "added": 0, "removed": 0, "changed": 0}));
}

#[test]
fn diff_has_colours_where_they_are_wanted_and_never_against_no_color() {
    let place = Place::new();
    let before = place.file("before", &image(1, 1500, NO_RULES), 0o600);
    let after = place.file("after", &image(2, 1400, NO_RULES), 0o600);
    let coloured = |variables: &[(&str, &str)]| {
        text(&run_with(&["diff", &before, &after], variables).stdout).contains("\x1b[33m~ links eth0\x1b[0m")
    };
    assert!(!coloured(&[]), "standard output is no terminal");
    assert!(coloured(&[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
}
