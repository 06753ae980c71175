//! DESIGN test "W": an image is a function of what the wire shows. A stack with other keys that makes the same choices for
//! the wire saves the same bytes.

use std::collections::BTreeSet;

use hibernet_netstack::Stack;
use hibernet_tests::traffic::{GENERATION, Gateway, Meddling, START, Trace, body, difference};

fn trace() -> Trace {
    Trace::of(&Gateway::with_room_for(256), 1, 11, 3000)
}

#[test]
fn other_keys_with_the_same_choices_save_the_same_bytes() {
    let trace = trace();
    assert!(trace.choices() > 100);
    for keys in [2, 3, 4] {
        let seen = trace.replay(keys, Meddling::default());
        assert_eq!(difference(&trace.seen, &seen), None);
        assert_eq!(seen.images.last(), trace.seen.images.last());
    }
}

#[test]
fn the_trace_holds_every_kind_of_choice() {
    let trace = trace();
    let listed: BTreeSet<String> = trace.seen.lists.iter().flat_map(|(_, list)| list.iter().cloned()).collect();
    let any = |parts: &[&str]| listed.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(any(&["udp ", "src=10.0.0.", "dst=203.0.113.1 "]), "masquerade fully-random");
    assert!(any(&["udp ", "src=fd00:10::", "dst=2001:db8:ff::1 "]), "masquerade fully-random in IPv6");
    assert!(any(&["tcp ", "src=10.0.0.7", "dst=203.0.113.2"]), "an address out of several");
    assert!(any(&["dst=203.0.113.1 sport=40", "dport=8080", "src=10.0.0."]), "a destination out of several");
    let from_the_router =
        |bytes: &[u8]| matches!(bytes, [0x45, _, _, _, _, _, _, _, _, 1, ..] if bytes[20] == 3 || bytes[20] == 11);
    let errors = trace.seen.frames.iter().filter(|(_, (_, bytes))| from_the_router(bytes)).count();
    assert!(errors > 10, "IP identifications in {errors} errors");
}

/// A stack whose sockets were opened at ports and identifiers of its own choice.
fn with_sockets(mut stack: Stack) -> Stack {
    let any = "::".parse().unwrap();
    for _ in 0..20 {
        stack.udp_bind(any, 0).unwrap();
        stack.ping_bind(any, 0).unwrap();
    }
    stack
}

#[test]
fn ports_and_identifiers_of_sockets_are_choices_for_the_wire() {
    let gateway = Gateway::with_room_for(16);
    let mut source = gateway.open(1);
    source.wire_choices().into_iter().for_each(|(_, choices)| choices.record());
    let mut source = with_sockets(source);
    let image = source.save(GENERATION, START).unwrap();

    assert_ne!(with_sockets(gateway.open(2)).save(GENERATION, START).unwrap(), image);
    let mut other = gateway.open(2);
    for ((_, recorded), (_, choices)) in source.wire_choices().into_iter().zip(other.wire_choices()) {
        choices.play(recorded.recorded());
    }
    assert_eq!(with_sockets(other).save(GENERATION, START).unwrap(), image);
}

#[test]
fn without_the_choices_other_keys_save_other_bytes() {
    let trace = trace();
    let alone = Trace::of(&trace.gateway, 2, 11, 600);
    assert!(difference(&trace.seen, &alone.seen).unwrap().starts_with("frame"));
    let records = |trace: &Trace| body(&trace.seen.images[0].1, b"CONN");
    assert_ne!(records(&trace), records(&alone));
}
