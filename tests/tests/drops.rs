//! Every packet of every scenario ends somewhere, and every drop has a reason, a counter and an event.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hibernet_netstack::DropReason;
use hibernet_tests::play::{Between, play};
use hibernet_tests::scenario::Scenario;

/// All scenario files there are, the kernel's and our own, with answers or without.
fn all_scenarios() -> Vec<PathBuf> {
    let folders = ["kernel", "own"].map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(name));
    let mut paths: Vec<_> =
        folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths
}

#[test]
fn no_packet_of_any_scenario_vanishes_and_counters_say_what_events_say() {
    let (mut faults, mut reasons, mut played) = (String::new(), BTreeSet::new(), 0);
    for path in all_scenarios() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let run = play(&Scenario::load(&path).unwrap(), Between::Nothing);
        for (step, packet) in &run.audit.vanished {
            faults += &format!("{name}, step {step}: nothing became of {packet}\n");
        }
        if run.audit.told != run.audit.counted {
            faults += &format!("{name}: told {:?}, counted {:?}\n", run.audit.told, run.audit.counted);
        }
        reasons.extend(run.audit.counted.into_keys());
        played += run.records.len();
    }
    assert!(faults.is_empty(), "{faults}");
    assert!(played > 500, "{played} steps");
    // The scenarios are about conntrack: these must be among what they meet.
    for reason in [
        DropReason::TableFull,
        DropReason::NatNoPort,
        DropReason::Rule,
        DropReason::Policy,
        DropReason::Reject,
        DropReason::TimeToLive,
        DropReason::Truncated,
    ] {
        assert!(reasons.contains(&reason), "no scenario meets {reason}: {reasons:?}");
    }
}
