//! A saved value has one spelling: what restores from some bytes saves to the same bytes.
//!
//! serde is more generous than that here and there, so every type that has a saved form is held to it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hibernet_snapshot::codec::{decode, encode};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId, Invalid, Snapshot, diff};
use proptest::prelude::*;

#[derive(Snapshot, Debug)]
struct Held {
    #[snapshot(saved)]
    remaining: Duration,
    #[snapshot(saved)]
    from: Option<IpAddr>,
    #[snapshot(saved)]
    kind: Kind,
}

#[derive(Snapshot, Debug)]
enum Kind {
    Plain,
    Timed(#[snapshot(saved)] Duration, #[snapshot(saved)] bool),
}

/// Restores the bytes and saves what comes of it, if anything does.
fn again<T: Snapshot<Supplied = ()>>(bytes: &[u8]) -> Option<Vec<u8>> {
    let saved: T::Saved = decode(bytes, &Limits::default()).ok()?;
    let restored = T::restore(saved, (), &mut Entropy::from_test_seed(1)).ok()?;
    Some(encode(&restored.save()).unwrap())
}

fn duration(secs: u64, nanos: u32) -> Vec<u8> {
    [secs.to_le_bytes().as_slice(), &nanos.to_le_bytes()].concat()
}

fn refusal(secs: u64, nanos: u32) -> Invalid {
    let saved = decode(&duration(secs, nanos), &Limits::default()).unwrap();
    Duration::restore(saved, (), &mut Entropy::from_test_seed(1)).unwrap_err()
}

#[test]
fn nanoseconds_that_make_a_second_are_refused_wherever_the_duration_stands() {
    assert_eq!(again::<Duration>(&duration(61, 999_999_999)), Some(duration(61, 999_999_999)));
    assert_eq!(refusal(61, 1_000_000_000).to_string(), "found 1000000000 ns, expected less than a second");
    assert_eq!(refusal(u64::MAX, u32::MAX).found, "4294967295 ns");
    let in_a_list = [1_u64.to_le_bytes().to_vec(), duration(0, 2_000_000_000)].concat();
    assert_eq!(again::<Vec<Duration>>(&in_a_list), None);
    assert_eq!(again::<Option<Duration>>(&[vec![1], duration(0, 2_000_000_000)].concat()), None);
}

#[test]
fn a_duration_looks_to_people_as_it_does_elsewhere() {
    let plain = Duration::new(3, 500);
    assert_eq!(diff::value(&plain.save()).unwrap(), diff::value(&plain).unwrap());
}

/// Bytes that are not all equally likely: what lengths, tags and limits are made of comes up often.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => Just(0_u8), 2 => 0..4_u8, 1 => Just(0xff), 1 => Just(0x80), 2 => any::<u8>()];
    prop::collection::vec(byte, 0..48)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_restores_saves_to_the_same_bytes(bytes in bytes()) {
        fn holds<T: Snapshot<Supplied = ()>>(bytes: &[u8]) -> Result<(), TestCaseError> {
            // All of the bytes, or as many of them as the value takes.
            for length in 0..=bytes.len() {
                let bytes = &bytes[..length];
                if let Some(again) = again::<T>(bytes) {
                    prop_assert_eq!(again, bytes, "{}", std::any::type_name::<T>());
                }
            }
            Ok(())
        }
        holds::<(bool, u16, i64)>(&bytes)?;
        holds::<u128>(&bytes)?;
        holds::<usize>(&bytes)?;
        holds::<char>(&bytes)?;
        holds::<String>(&bytes)?;
        holds::<IpAddr>(&bytes)?;
        holds::<(Ipv4Addr, Ipv6Addr)>(&bytes)?;
        holds::<Duration>(&bytes)?;
        holds::<GenerationId>(&bytes)?;
        holds::<Option<Option<u8>>>(&bytes)?;
        holds::<Vec<(u8, bool)>>(&bytes)?;
        holds::<VecDeque<Option<bool>>>(&bytes)?;
        holds::<[u16; 3]>(&bytes)?;
        holds::<BTreeMap<u8, u8>>(&bytes)?;
        holds::<BTreeMap<(bool, u8), String>>(&bytes)?;
        holds::<Box<Held>>(&bytes)?;
    }
}
