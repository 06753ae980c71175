//! The stack answers as the kernel did.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use hibernet_tests::check::{Verdict, differences_by_restores};
use hibernet_tests::corpus::{answers_of, scenarios};
use hibernet_tests::play::{Between, play};
use hibernet_tests::scenario::Scenario;

/// Scenarios that the stack plays as the kernel did, one name a line.
const PASSING: &str = include_str!("../scenarios/passing.txt");

#[test]
fn exactly_the_listed_scenarios_pass() {
    let listed = listed();
    let mut passing = BTreeSet::new();
    let mut faults = String::new();
    for path in scenarios().unwrap() {
        let verdict = Verdict::on(&path).unwrap();
        match verdict.first_fault(false) {
            None => _ = passing.insert(verdict.name),
            Some(fault) if listed.contains(&verdict.name) => faults += &format!("{}: {fault}\n", verdict.name),
            Some(_) => {}
        }
    }
    assert!(faults.is_empty(), "listed in scenarios/passing.txt, but failing:\n{faults}");
    let unlisted: Vec<_> = passing.difference(&listed).collect();
    assert!(unlisted.is_empty(), "passing, but not listed in scenarios/passing.txt: {unlisted:?}");
    let unknown: Vec<_> = listed.difference(&passing).collect();
    assert!(unknown.is_empty(), "listed in scenarios/passing.txt, but there is no such scenario: {unknown:?}");
}

fn listed() -> BTreeSet<String> {
    PASSING.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The records of a scenario file, as they are written.
fn records_of(path: &Path) -> Vec<String> {
    let run = play(&Scenario::load(path).unwrap(), Between::Nothing);
    run.records.iter().map(|record| serde_json::to_string(record).unwrap()).collect()
}

#[test]
fn the_records_are_the_same_where_no_answers_lie() {
    let folder = tempfile::tempdir().unwrap();
    for path in scenarios().unwrap() {
        let alone = folder.path().join(path.file_name().unwrap());
        std::fs::copy(&path, &alone).unwrap();
        assert!(answers_of(&path).exists() && !answers_of(&alone).exists());
        assert_eq!(records_of(&alone), records_of(&path), "{}", path.display());
    }
}

/// But for scenarios in which a local TCP connection is open: its stream is not in an image, so a restore resets it.
#[test]
fn a_restore_under_new_keys_after_every_step_shows_in_nothing() {
    let listed = listed();
    for path in scenarios().unwrap() {
        let scenario = Scenario::load(&path).unwrap();
        if !listed.contains(&scenario.name) {
            continue;
        }
        let restored = play(&scenario, Between::Restore);
        if let Some(error) = &restored.error {
            panic!("{}: {error:#}", scenario.name);
        }
        let differences = differences_by_restores(&play(&scenario, Between::Nothing), &restored).unwrap();
        assert!(differences.is_empty(), "{}: {}", scenario.name, differences[0]);
        let verdict = Verdict::of(&path, &scenario, &restored).unwrap();
        assert_eq!(verdict.first_fault(false), None, "{}", scenario.name);
    }
}

#[test]
fn the_command_sums_up_and_its_exit_code_tells() {
    let run = |arguments: &[&str], path: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_conformance")).args(arguments).arg(path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let passing = scenarios().unwrap().remove(0);
    let (code, told) = run(&["--check"], &passing);
    assert_eq!((code, told.lines().last()), (Some(0), Some("1 passed, 0 failed")));
    assert_eq!(run(&["--json"], &passing).0, Some(2), "--json says how to print what --check finds");

    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.json");
    std::fs::copy(&passing, &other).unwrap();
    assert_eq!(run(&[], &other).0, Some(0), "no answers are needed to play");
    let (code, told) = run(&["--check"], &other);
    assert_eq!((code, told.lines().last()), (Some(1), Some("0 passed, 1 failed")), "there is nothing to compare with");
}
