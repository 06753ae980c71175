//! DESIGN test "P": under other keys everything that can be seen of a stack is the same, to the byte.

use hibernet_conntrack::{EarlyDrop, Totals};
use hibernet_tests::traffic::{Gateway, Meddling, START, Trace, difference, restored};

fn check(trace: &Trace, keys: u64, meddling: Meddling) {
    if let Some(difference) = difference(&trace.seen, &trace.replay(keys, meddling)) {
        panic!("keys of seed {keys}, {meddling:?}: {difference}");
    }
}

/// Left alone; with new keys all the time; restored twice; both.
fn meddling(number: u64, steps: usize) -> Meddling {
    Meddling {
        reseed_every: if number.is_multiple_of(2) { 0 } else { 7 },
        restore_every: if number % 4 < 2 { 0 } else { steps / 3 },
    }
}

#[test]
fn under_256_pairs_of_keys_a_busy_gateway_shows_the_same() {
    let trace = Trace::of(&Gateway::with_room_for(24), 1, 7, 400);
    assert!(totals_after(&trace).early_drop > 0, "the table is full");
    for number in 0..256 {
        check(&trace, 1000 + number, meddling(number, trace.steps.len()));
    }
}

#[test]
fn the_same_goes_for_a_table_that_is_four_fifths_full_and_for_a_full_one() {
    for (flows, fresh) in [(819, false), (1024, false), (1024, true)] {
        let trace = Trace::filled(&Gateway::with_room_for(1024), 1, flows, fresh);
        for number in 0..4 {
            check(&trace, 2000 + number, meddling(number, trace.steps.len()));
        }
    }
}

#[test]
fn flows_that_expire_or_make_room_are_the_same_whatever_the_keys() {
    for (traffic, early_drop, half_open_limit) in
        [(0, EarlyDrop::Lru, 0), (1, EarlyDrop::Kernel, 0), (2, EarlyDrop::Lru, 2), (3, EarlyDrop::Kernel, 2)]
    {
        let gateway = Gateway { early_drop, half_open_limit, ..Gateway::with_room_for(32) };
        let trace = Trace::of(&gateway, 1, traffic, 1500);
        let totals = totals_after(&trace);
        assert!(totals.early_drop > 0 && totals.insert > 100, "{totals:?}");
        for number in 0..4 {
            check(&trace, 3000 + number, meddling(number, trace.steps.len()));
        }
    }
}

/// Initial numbers and timestamps of the host's own connections are on the tape, so all keys are others here. Not through a
/// restore: it forgets how often a segment has been repeated, so that the next repeat comes sooner.
#[test]
fn connections_of_the_host_itself_are_the_same_whatever_the_keys() {
    let gateway = Gateway { tcp_echo: true, ..Gateway::with_room_for(64) };
    for traffic in [3, 4, 5] {
        let trace = Trace::of(&gateway, 1, traffic, 1500);
        let mut flows = trace.seen.lists.iter().flat_map(|(_, list)| list);
        assert!(flows.any(|line| line.starts_with("tcp") && line.contains("dport=7 ")));
        for number in 0..4 {
            let Meddling { reseed_every, .. } = meddling(number, trace.steps.len());
            check(&trace, 4000 + number, Meddling { reseed_every, restore_every: 0 });
        }
    }
}

fn totals_after(trace: &Trace) -> Totals {
    let (_, image) = trace.seen.images.last().unwrap();
    let (stack, _) = restored(image, 1, START).unwrap();
    stack.conntrack().totals()
}
