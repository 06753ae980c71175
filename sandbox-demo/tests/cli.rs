//! The built binary as its users meet it: exit codes, one-line errors, images it reads and refuses.

#![expect(clippy::disallowed_methods, reason = "the tests write images to files for the binary to read")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Output;

use hibernet_conntrack::Config;
use hibernet_netstack::LinkConfig;
use hibernet_netstack::Medium;
use hibernet_netstack::Ruleset;
use hibernet_netstack::Stack;
use hibernet_netstack::StackConfig;
use hibernet_snapshot::Entropy;
use hibernet_snapshot::GenerationId;
use hibernet_snapshot::Instant;
use hibernet_snapshot::image::Header;
use hibernet_snapshot::image::ImageWriter;
use tempfile::TempDir;

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for args in [
        &["explode"][..],
        &["run", "--link", "eth0"],
        &["run", "--config", "x"],
        &["run", "--config", "x", "--restore", "y", "--link", "eth0"],
        &["run", "--config", "x", "--link", "wire:eth0"],
        &["run", "--config", "x", "--link", "tun:eth0@"],
        &["serve", "--link", "eth0"],
        &["serve", "--link", "eth0", "--addr", "10.0.0.1/24", "--restore", "x"],
        &["serve", "--link", "eth0", "--restore", "x", "--http", "80"],
        &["serve", "--link", "eth0", "--addr", "10.0.0.1/33"],
        &["serve", "--addr", "10.0.0.1/24"],
        &["serve", "--link", "eth0", "--addr", "10.0.0.1/24", "--max-connections", "0"],
        &["demo", "--links", "string"],
        &["inspect"],
        &["diff", "only-one"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn help_teaches() {
    let output = run(&["run", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"masquerade fully-random\"") && text.contains("nf_conntrack_tcp_loose"), "{text}");
    assert!(text.contains("tap:NAME") && text.contains("\"medium\": \"ethernet\""), "{text}");
    let output = run(&["serve", "--help"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("ip netns exec client curl http://10.9.0.2/") && text.contains("--restore state.hib"),
        "{text}"
    );
}

#[test]
fn a_server_says_what_it_was_told_wrong_and_what_to_do() {
    let dir = TempDir::new().expect("a directory");
    let image = image(&dir, "gateway", 1, &["10.0.0.1/24"]);
    let home = dir.path().to_str().expect("a path");
    let fresh = ["serve", "--link", "eth0", "--addr", "10.0.0.1/24"];
    for (args, what, remedy) in [
        ([&fresh[..], &["--root", "/nowhere"]].concat(), "/nowhere", "--root"),
        ([&fresh[..], &["--root", home, "--http", "7"]].concat(), "both 7", "another port"),
        ([&fresh[..], &["--root", home, "--http", "0"]].concat(), "port 0", "1 to 65535"),
        ([&fresh[..], &["--root", home, "--mtu", "10"]].concat(), "mtu", "expected"),
        (vec!["serve", "--link", "eth0", "--root", home, "--restore", &image], "holds no server", "sandbox-demo serve"),
    ] {
        let output = run(&args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(what) && text.contains(remedy) && text.lines().count() == 1, "{args:?}: {text}");
    }
}

#[test]
fn inspect_prints_header_sections_and_counts() {
    let dir = TempDir::new().expect("a directory");
    let image = image(&dir, "image", 1, &[]);
    let output = run(&["inspect", &image]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(text.contains("generation 01010101") && text.contains("section CONN version 1, required"), "{text}");
    assert!(text.contains("1 links, 0 routes, 0 chains with 0 rules, 0 flows"), "{text}");

    let output = run(&["inspect", "--json", &image]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(json["counts"]["links"], 1);
    assert_eq!(json["generation"], "01".repeat(16));
}

#[test]
fn diff_prints_what_changed_and_nothing_else() {
    let dir = TempDir::new().expect("a directory");
    let (before, after) = (image(&dir, "before", 1, &[]), image(&dir, "after", 2, &["10.0.0.1/24"]));
    let same = run(&["diff", &before, &before]);
    assert_eq!(String::from_utf8_lossy(&same.stdout), "no difference but the generation\n");
    let changed = run(&["diff", &before, &after]);
    let text = String::from_utf8_lossy(&changed.stdout);
    assert!(text.contains("+ addrs[0]: \"10.0.0.1/24\""), "{text}");
    assert_eq!(text.lines().filter(|line| !line.starts_with(' ')).count(), 2, "one item and the sum: {text}");
    assert_eq!((same.status.code(), changed.status.code()), (Some(0), Some(1)));
}

#[test]
fn a_bad_image_is_refused_in_one_line() {
    let dir = TempDir::new().expect("a directory");
    let good = image(&dir, "good", 1, &[]);
    let mut flipped = fs::read(&good).expect("the image");
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let header = Header { schema: 1, writer: "another 9.9.9".to_owned(), generation: GenerationId([0; 16]) };
    let other = ImageWriter::new(&header).finish();
    for (name, bytes, remedy) in [
        ("flipped", flipped, "take another copy"),
        ("other", other, "the version of the program that wrote it"),
        ("empty", Vec::new(), "take another copy"),
        ("text", b"not an image at all".to_vec(), "sandbox-demo save"),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("a bad image");
        let path = path.to_str().expect("a plain path");
        let control = dir.path().join("control");
        let control = control.to_str().expect("a plain path");
        one_line_failure(&run(&["inspect", path]), &[path, remedy]);
        one_line_failure(&run(&["restore", path, "--link", "lo", "--control", control]), &[path, remedy]);
        assert!(!Path::new(control).exists(), "a refused restore leaves nothing behind");
    }
    one_line_failure(&run(&["inspect", "/no/such/image"]), &["/no/such/image", "sandbox-demo save"]);
}

#[test]
fn asking_where_no_gateway_is_names_the_socket_and_the_remedy() {
    let dir = TempDir::new().expect("a directory");
    let control = dir.path().join("control");
    let control = control.to_str().expect("a plain path");
    for command in ["list", "hooks", "stats", "resume"] {
        one_line_failure(&run(&[command, "--control", control]), &[control, "sandbox-demo run"]);
    }
}

#[test]
fn a_configuration_that_cannot_be_is_refused_by_its_fault() {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("config.json");
    let path = file.to_str().expect("a plain path");
    let run_it = || run(&["run", "--config", path, "--link", "nowhere0"]);
    one_line_failure(&run_it(), &[path]);
    fs::write(&file, r#"{"links": [], "nonsense": 1}"#).expect("a configuration");
    one_line_failure(&run_it(), &[path, "nonsense"]);
    fs::write(&file, r#"{"links": [{"name": "nowhere0", "mtu": 1500, "addrs": []}]}"#).expect("a configuration");
    one_line_failure(&run_it(), &["nowhere0", "No such device", "/sys/class/net"]);
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sandbox-demo")).args(args).output().expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Exit code 1, and one line on standard error that contains all of `parts`.
fn one_line_failure(output: &Output, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("sandbox-demo: ") && parts.iter().all(|part| text.contains(part)), "{text}");
}

/// Saves a small stack to a file and returns the file's path.
fn image(dir: &TempDir, name: &str, generation: u8, addrs: &[&str]) -> String {
    let mut config = StackConfig {
        links: vec![LinkConfig {
            name: "eth0".to_owned(),
            mtu: 1500,
            addrs: addrs.iter().map(|addr| addr.parse().expect("an address")).collect(),
            medium: Medium::Ip,
        }],
        rules: Ruleset::open(),
        conntrack: Config { capacity: 1024, ..Config::default() },
        ..StackConfig::default()
    };
    config.conntrack.sysctls.set("nf_conntrack_max", "1024").expect("a sysctl");
    let stack = Stack::new(config, Entropy::from_test_seed(1), Instant::ZERO).expect("a stack");
    let bytes = stack.save(GenerationId([generation; 16]), Instant::ZERO).expect("an image");
    let path = dir.path().join(name);
    fs::write(&path, bytes).expect("a file");
    path.to_str().expect("a plain path").to_owned()
}
