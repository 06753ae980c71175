//! DESIGN test "M": saved forms that give something of a key away. Each must fail "P", "W" or "C".
//!
//! They are kept here so that the tests of leaks are themselves tested. What such a form would write is put into the images
//! of a run after the fact, with the keys that the stack had drawn.

use hibernet_tests::traffic::{
    Gateway, Keys, Meddling, Record, Seen, Session, Trace, difference, tuple_hash, with_body, with_records,
};

const ONE: u64 = 31;
const OTHER: u64 = 32;

/// What a mutant writes in the place of an image, with the keys of the stack that saves.
type Mutant = fn(&[u8], &Keys) -> Vec<u8>;

/// The same run under two sets of keys, each saved in the mutant's form.
fn saved_by(mutant: Mutant) -> [Seen; 2] {
    let trace = Trace::filled(&Gateway::with_room_for(64), ONE, 64, true);
    let replayed = trace.replay(OTHER, Meddling::default());
    assert_eq!(difference(&trace.seen, &replayed), None, "what the mutant gets is sound");
    [(trace.seen, ONE), (replayed, OTHER)].map(|(seen, seed)| {
        let keys = Keys::drawn_from(seed);
        let mutated = seen.with_images(|image| mutant(image, &keys));
        assert_ne!(mutated.images, seen.images, "the mutant writes something else");
        mutated
    })
}

/// Whether "P" and "W", which compare two runs, see the mutant.
#[track_caller]
fn assert_differs(mutant: Mutant) {
    let [one, other] = saved_by(mutant);
    let difference = difference(&one, &other).expect("the forms differ");
    assert!(difference.starts_with("image"), "{difference}");
}

/// Whether "C", which scans one image, sees the mutant.
#[track_caller]
fn assert_scanned(mutant: Mutant, expected: &str) {
    let trace = Trace::filled(&Gateway::with_room_for(64), ONE, 64, false);
    let mut session = Session::of(trace.gateway.open(ONE), 0, trace.steps[0].at);
    trace.rewind(&mut session.stack, 0);
    trace.carry_on(&mut session);
    assert_eq!(session.stack.canary_scan(&session.image()).hits, []);
    let hits = session.stack.canary_scan(&mutant(&session.image(), &Keys::drawn_from(ONE))).hits;
    assert!(hits.iter().any(|(name, _)| *name == expected), "{hits:?}");
}

/// Where a table of so many buckets files a flow.
fn bucket(record: &Record, keys: &Keys) -> u64 {
    tuple_hash(&keys.table, &record.orig) % 16
}

#[test]
fn flows_in_the_order_of_their_buckets_are_seen() {
    assert_differs(|image, keys| with_records(image, |records| records.sort_by_key(|record| bucket(record, keys))));
}

#[test]
fn flows_with_the_numbers_of_their_buckets_are_seen() {
    assert_differs(|image, keys| {
        with_records(image, |records| {
            for record in records {
                let bucket = bucket(record, keys) as u8;
                record.bytes.push(bucket);
            }
        })
    });
}

#[test]
fn flows_with_their_hashes_are_seen_even_in_one_image() {
    fn mutant(image: &[u8], keys: &Keys) -> Vec<u8> {
        with_records(image, |records| {
            for record in records {
                record.bytes.extend(tuple_hash(&keys.table, &record.orig).to_be_bytes());
            }
        })
    }
    assert_differs(mutant);
    assert_scanned(mutant, "tuple hash");
}

#[test]
fn sequence_numbers_as_offsets_from_a_secret_first_number_are_seen() {
    assert_differs(|image, keys| {
        with_records(image, |records| {
            for record in records.iter_mut() {
                let Some(at) = record.tcp_at else { continue };
                // The original side's highest sequence number, as a socket counts that was made with a keyed first one.
                let field = &mut record.bytes[at + 18..at + 22];
                let number = u32::from_le_bytes(*field.first_chunk().unwrap());
                let first = tuple_hash(&keys.local, &record.orig) as u32;
                field.copy_from_slice(&number.wrapping_sub(first).to_le_bytes());
            }
        })
    });
}

#[test]
fn ports_as_offsets_from_where_the_search_for_them_began_are_seen() {
    assert_differs(|image, keys| {
        with_records(image, |records| {
            for record in records {
                let began = tuple_hash(&keys.ports, &record.orig) as u16;
                let offset = record.reply.dport.wrapping_sub(began);
                record.bytes.extend(offset.to_le_bytes());
            }
        })
    });
}

#[test]
fn eight_bytes_of_a_key_are_seen_even_in_one_image() {
    fn mutant(image: &[u8], keys: &Keys) -> Vec<u8> {
        with_body(image, b"STAT", |body| body.extend(&keys.ip_ids[3..11]))
    }
    assert_differs(mutant);
    assert_scanned(mutant, "IP ids");
}
