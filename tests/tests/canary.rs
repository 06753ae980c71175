//! DESIGN test "C": no key and no hash of a tuple is in an image, and the scan that says so would find one.

use hibernet_conntrack::Direction;
use hibernet_snapshot::Entropy;
use hibernet_tests::traffic::{GENERATION, Gateway, Keys, Meddling, START, Session, Trace, play_line, tuple_hash};

const SEED: u64 = 21;

fn trace() -> Trace {
    Trace::of(&Gateway::with_room_for(128), SEED, 5, 1500)
}

#[test]
fn no_image_of_a_run_holds_a_key_or_a_hash() {
    let trace = trace();
    let full = Trace::filled(&Gateway::with_room_for(512), SEED, 512, true);
    let replays = [
        trace.replay(1, Meddling::default()),
        trace.replay(2, Meddling { reseed_every: 5, restore_every: 0 }),
        trace.replay(3, Meddling { reseed_every: 0, restore_every: 400 }),
    ];
    for seen in [&trace.seen, &full.seen].into_iter().chain(&replays) {
        assert_eq!(seen.hits, []);
        let (windows, hashes) = seen.looked_for;
        assert!(windows >= 4 * 18 * seen.images.len() && hashes > 100, "{windows} windows, {hashes} hashes");
    }
}

/// The keys are drawn from the seed once more; that the scan knows them under these names shows that they are the stack's.
#[test]
fn every_window_of_every_key_is_found_in_both_byte_orders_wherever_it_stands() {
    let stack = Gateway::with_room_for(16).open(SEED);
    let image = stack.save(GENERATION, START).unwrap();
    assert_eq!(stack.canary_scan(&image).hits, []);
    for (name, key) in Keys::drawn_from(SEED).named() {
        for window in key.windows(8) {
            let turned: Vec<u8> = window.iter().rev().copied().collect();
            for planted in [window, &turned] {
                for at in [0, 101, image.len() - 8] {
                    let mut leaking = image.clone();
                    leaking[at..at + 8].copy_from_slice(planted);
                    let hits = stack.canary_scan(&leaking).hits;
                    assert!(hits.contains(&(name, at)), "{name} at {at}: {hits:?}");
                }
            }
        }
    }
    let scan = stack.canary();
    let report = scan.search(&image);
    assert_eq!(scan.planted(&image, &mut Entropy::from_test_seed(1)), report.key_windows);
}

#[test]
fn the_hash_of_every_tuple_is_found_in_both_byte_orders() {
    let full = Trace::filled(&Gateway::with_room_for(64), SEED, 64, false);
    let mut session = Session::of(full.gateway.open(SEED), 0, full.steps[0].at);
    full.rewind(&mut session.stack, 0);
    full.carry_on(&mut session);
    let (stack, image) = (&session.stack, session.image());
    let key = Keys::drawn_from(SEED).table;
    let flows = stack.flows(session.now());
    assert_eq!(flows.len(), 64);
    for flow in &flows {
        for direction in [Direction::Original, Direction::Reply] {
            let hash = tuple_hash(&key, flow.tuple(direction));
            for planted in [hash.to_le_bytes(), hash.to_be_bytes()] {
                let mut leaking = image.clone();
                leaking[200..208].copy_from_slice(&planted);
                assert_eq!(stack.canary_scan(&leaking).hits, [("tuple hash", 200)], "{flow}");
            }
        }
    }
}

#[test]
fn a_reseed_changes_what_the_scan_looks_for() {
    let mut stack = Gateway::with_room_for(16).open(SEED);
    let mut leaking = vec![0; 64];
    leaking[8..24].copy_from_slice(&Keys::drawn_from(SEED).table);
    assert_eq!(stack.canary_scan(&leaking).hits.len(), 9);
    stack.conntrack_mut().reseed();
    assert_eq!(stack.canary_scan(&leaking).hits, []);
}

/// Whoever prints a stack, or the scan that knows all its keys, learns none.
#[test]
fn what_a_stack_and_its_scan_print_of_themselves_holds_no_key() {
    let session = sample_of(SEED);
    let printed = format!("{:?} {:#?} {:?}", session.stack, session.stack, session.stack.canary());
    for (name, key) in Keys::drawn_from(SEED).named() {
        for window in key.windows(8) {
            let list: Vec<String> = window.iter().map(u8::to_string).collect();
            let bytes = *window.first_chunk().unwrap();
            let words = [u64::from_le_bytes(bytes), u64::from_be_bytes(bytes)];
            for text in words.iter().flat_map(|word| [word.to_string(), format!("{word:x}")]).chain([list.join(", ")]) {
                assert!(!printed.contains(&text), "a window of {name}");
            }
        }
    }
}

fn sample_of(seed: u64) -> Session {
    let mut session = Session::of(Gateway::with_room_for(16).open(seed), 0, START);
    assert_eq!(play_line(&mut session, "in", "udp 10.0.0.2:4000 > 198.51.100.10:53 len=3").len(), 1);
    session
}
