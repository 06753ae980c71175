use hibernet_snapshot::Instant;

use super::*;
use crate::StreamState;
use crate::test_packets::{icmp_echo, tcp, text, udp};
use crate::test_stack::stack;

const RULES: &str = r#"{"policy": {"input": "drop", "forward": "drop"}, "rules": [
    {"chain": "mangle_prerouting", "match": {"iif": "in"}, "action": {"ctmark": 1}},
    {"chain": "mangle_prerouting", "match": {"iif": "in"}, "action": "tproxy"},
    {"chain": "input", "match": {"ctmark": 1}, "action": "accept"}]}"#;

const ENDS: [(&str, &str); 2] = [("10.0.0.2:1000", "198.51.100.10:80"), ("[fd00:10::2]:1000", "[2001:db8:1::10]:80")];

const PORT_UNREACHABLE: [&str; 2] = ["type=3 code=3 ", "type=1 code=4 "];

fn give(stack: &mut Stack, bytes: Vec<u8>, now: Instant) {
    let link = stack.link("in").unwrap();
    stack.ingress(link, bytes, now);
}

fn sent(stack: &mut Stack) -> Vec<String> {
    std::iter::from_fn(|| stack.egress()).map(|out| text(&out.datagram)).collect()
}

fn dropped(stack: &mut Stack) -> Vec<DropReason> {
    let events = std::iter::from_fn(|| stack.next_event());
    let reason = |event| if let crate::StackEvent::Drop(drop) = event { Some(drop.reason) } else { None };
    events.filter_map(reason).collect()
}

fn next_opening(stack: &mut Stack) -> Option<Opening> {
    match stack.tproxy_next()? {
        Proxied::Opening(opening) => Some(opening),
        other => panic!("{other:?}"),
    }
}

fn opening(from: &str, to: &str) -> Opening {
    Opening { from: from.parse().unwrap(), to: to.parse().unwrap() }
}

#[test]
fn a_syn_to_another_host_waits_and_is_answered_in_its_name_once_it_is_accepted() {
    for (guest, server) in ENDS {
        let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
        give(&mut stack, tcp(guest, server, "S", 100, 0, b""), now);
        assert_eq!((sent(&mut stack), dropped(&mut stack)), (vec![], vec![]));
        let asked = next_opening(&mut stack).unwrap();
        assert_eq!((asked, next_opening(&mut stack)), (opening(guest, server), None));

        let stream = stack.tproxy_accept(asked, StreamOptions::default(), now).unwrap();
        let out = stack.egress().unwrap();
        assert_eq!(stack.link_name(out.link), Some("in"));
        let answer = text(&out.datagram);
        assert!(answer.contains(&format!("{server} > {guest} SA")), "{answer}");
        let iss = isn(&out.datagram);
        give(&mut stack, tcp(guest, server, "A", 101, iss.wrapping_add(1), b"hello"), now);
        assert_eq!(stack.tcp_state(stream), Some(StreamState::Established));
        assert_eq!(stack.tcp_local_addr(stream), Some(asked.to));
        let mut room = [0; 16];
        assert_eq!(stack.tcp_read(stream, &mut room, now), Ok(5));
        assert_eq!(stack.flows(now).len(), 1);
    }
}

#[test]
fn a_syn_that_comes_again_waits_in_the_first_ones_place_and_is_told_once() {
    let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
    let (guest, server) = ENDS[0];
    for _ in 0..3 {
        give(&mut stack, tcp(guest, server, "S", 100, 0, b""), now);
    }
    assert_eq!(dropped(&mut stack), [DropReason::OpeningRepeated; 2]);
    assert!(next_opening(&mut stack).is_some() && next_opening(&mut stack).is_none());
}

#[test]
fn a_refused_opening_is_a_reset_or_the_error_it_is_refused_with() {
    let cases = [
        (Unreached::Refused, " AR ", " AR "),
        (Unreached::NoPlace, " AR ", " AR "),
        (Unreached::Host, "type=3 code=1 ", "type=1 code=3 "),
        (Unreached::Network, "type=3 code=0 ", "type=1 code=0 "),
        (Unreached::Prohibited, "type=3 code=13 ", "type=1 code=1 "),
    ];
    for (why, v4, v6) in cases {
        for ((guest, server), expected) in ENDS.into_iter().zip([v4, v6]) {
            let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
            give(&mut stack, tcp(guest, server, "S", 100, 0, b""), now);
            let asked = next_opening(&mut stack).unwrap();
            stack.tproxy_refuse(asked, why, now);
            let answers = sent(&mut stack);
            assert_eq!(answers.len(), 1, "{why:?}: {answers:?}");
            let kind = answers[0].as_str();
            assert!(kind.contains(expected), "{why:?}: {kind}");
            let reason = if why == Unreached::NoPlace { DropReason::ProxyFull } else { DropReason::ProxyUnreached };
            assert_eq!(dropped(&mut stack), [reason]);
            assert!(matches!(stack.tproxy_accept(asked, StreamOptions::default(), now), Err(LocalError::Closed)));
        }
    }
}

#[test]
fn what_is_of_no_connection_is_reset_and_a_reset_takes_an_opening_back() {
    // A reset of who was never answered ends its flow, and with it the mark that would let it in.
    let open = RULES.replace(r#""input": "drop""#, r#""input": "accept""#);
    let (mut stack, now) = (stack(&open), Instant::from_secs(1));
    let (guest, server) = ENDS[0];
    give(&mut stack, tcp(guest, server, "A", 7, 9, b"x"), now);
    let answers = sent(&mut stack);
    assert!(answers.len() == 1 && answers[0].contains(" R"), "{answers:?}");
    let (guest, server) = ("10.0.0.2:1001", server);
    give(&mut stack, tcp(guest, server, "S", 100, 0, b""), now);
    give(&mut stack, tcp(guest, server, "R", 101, 0, b""), now);
    assert_eq!((next_opening(&mut stack), sent(&mut stack)), (None, vec![]));
}

#[test]
fn datagrams_to_other_hosts_are_handed_over_and_answered_in_their_name() {
    for (guest, server) in ENDS {
        let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
        give(&mut stack, udp(guest, server, b"question"), now);
        let asked = match stack.tproxy_next() {
            Some(Proxied::Datagram(datagram)) => datagram,
            other => panic!("{other:?}"),
        };
        assert_eq!((asked.from, asked.to), (guest.parse().unwrap(), server.parse().unwrap()));
        assert_eq!(asked.payload, b"question");
        stack.tproxy_send(asked.to, asked.from, b"answer", now).unwrap();
        let answers = sent(&mut stack);
        assert!(answers.len() == 1 && answers[0].contains(&format!("{server} > {guest}")), "{answers:?}");
        stack.tproxy_unreached(&asked, Unreached::Refused, now);
        let answers = sent(&mut stack);
        assert!(answers.len() == 1 && PORT_UNREACHABLE.iter().any(|kind| answers[0].contains(kind)), "{answers:?}");
    }
}

#[test]
fn an_opening_to_a_silent_host_is_answered_by_nobody_and_the_next_syn_asks_again() {
    let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
    let (guest, server) = ENDS[0];
    for _ in 0..2 {
        give(&mut stack, tcp(guest, server, "S", 100, 0, b""), now);
        let asked = next_opening(&mut stack).unwrap();
        stack.tproxy_refuse(asked, Unreached::TimedOut, now);
        assert_eq!((sent(&mut stack), dropped(&mut stack)), (vec![], vec![DropReason::ProxyUnreached]));
    }
}

#[test]
fn an_echo_request_is_handed_over_and_answered_in_its_destinations_name() {
    for (guest, server, refused) in
        [("10.0.0.2", "198.51.100.10", "type=3 code=1 "), ("fd00:10::2", "2001:db8:1::10", "type=1 code=3 ")]
    {
        let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
        give(&mut stack, icmp_echo(guest, server, 7, 9), now);
        let asked = match stack.tproxy_next() {
            Some(Proxied::Echo(echo)) => echo,
            other => panic!("{other:?}"),
        };
        assert_eq!((asked.identifier, asked.sequence), (7, 9));
        stack.tproxy_echo_reply(&asked, &asked.payload, now).unwrap();
        let answers = sent(&mut stack);
        assert!(answers.len() == 1 && answers[0].contains(&format!("{server} > {guest}")), "{answers:?}");
        assert_eq!(stack.flows(now).len(), 1);
        stack.tproxy_echo_unreached(&asked, Unreached::Host, now);
        let answers = sent(&mut stack);
        assert!(answers.len() == 1 && answers[0].contains(refused), "{answers:?}");
    }
}

#[test]
fn groups_and_other_protocols_are_not_handed_over_and_an_own_address_is_as_in_the_kernel() {
    let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
    give(&mut stack, udp("10.0.0.2:9", "10.0.0.1:7", b"echo"), now);
    assert!(sent(&mut stack).is_empty() && matches!(stack.tproxy_next(), Some(Proxied::Datagram(_))));
    for group in ["224.0.0.1:7", "255.255.255.255:7", "10.0.0.255:7"] {
        give(&mut stack, udp("10.0.0.2:9", group, b"echo"), now);
        assert_eq!(stack.tproxy_next(), None, "{group}");
    }
    let mut sctp = udp("10.0.0.2:9", "198.51.100.10:7", b"0123");
    sctp[9] = proto::SCTP;
    crate::test_packets::fill_header_checksum(&mut sctp);
    give(&mut stack, sctp, now);
    assert_eq!(stack.tproxy_next(), None);
}

#[test]
fn what_waits_is_bounded_and_an_image_does_not_know_of_it() {
    let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
    let bytes = vec![0; 1400];
    for port in 1..=4000 {
        give(&mut stack, udp(&format!("10.0.0.3:{port}"), ENDS[0].1, &bytes), now);
    }
    assert!(stack.local.proxied.bytes <= MOST_BYTES && stack.local.proxied.bytes + 1400 > MOST_BYTES);
    assert!(dropped(&mut stack).contains(&DropReason::SocketBufferFull));
    while stack.tproxy_next().is_some() {}
    assert_eq!(stack.local.proxied.bytes, 0);
    give(&mut stack, tcp(ENDS[0].0, ENDS[0].1, "S", 100, 0, b""), now);
    let generation = hibernet_snapshot::GenerationId([9; 16]);
    let image = stack.save(generation, now).unwrap();
    stack.local.proxied = ProxyQueue::default();
    assert!(stack.save(generation, now).unwrap() == image);
}

#[test]
fn openings_have_a_bound_and_what_finds_no_room_is_a_drop() {
    let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
    let (guest, server) = ENDS[0];
    give(&mut stack, tcp(guest, server, "S", 100, 0, b""), now);
    let Some(Held { packet, floor }) = stack.local.proxied.openings.pop_first().map(|(_, held)| held) else { panic!() };
    for port in 0..MOST_OPENINGS {
        let key = opening(&format!("10.0.0.4:{}", port + 1), server);
        stack.local.proxied.openings.insert(key, Held { packet: packet.duplicate(), floor });
    }
    dropped(&mut stack);
    give(&mut stack, tcp("10.0.0.5:99", server, "S", 100, 0, b""), now);
    assert_eq!(dropped(&mut stack), [DropReason::LocalBacklogFull]);
}

#[test]
fn an_accepted_stream_is_saved_and_rebuilt_with_the_foreign_end_in_every_state() {
    use crate::{Decoded, RestorePolicy, StreamOutcome, Supplied};
    use hibernet_snapshot::image::Limits;
    for (guest, server) in ENDS {
        let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
        give(&mut stack, tcp(guest, server, "S", 100, 0, b""), now);
        let asked = next_opening(&mut stack).unwrap();
        let stream = stack.tproxy_accept(asked, StreamOptions::default(), now).unwrap();
        let iss = isn(&stack.egress().unwrap().datagram);
        for established in [false, true] {
            if established {
                give(&mut stack, tcp(guest, server, "A", 101, iss.wrapping_add(1), b"hello"), now);
                while stack.egress().is_some() {}
            }
            let image = stack.save(hibernet_snapshot::GenerationId([9; 16]), now).unwrap();
            let mut entropy = hibernet_snapshot::Entropy::from_test_seed(2);
            let decoded = Decoded::open(&image, &Limits::default()).unwrap();
            let rehashed =
                decoded.validate(&mut entropy, now).unwrap().rehash(entropy, RestorePolicy::default()).unwrap();
            let (mut restored, report) = rehashed.open(Supplied::default());
            assert_eq!(report.streams.len(), 1);
            assert_eq!(report.streams[0].outcome, StreamOutcome::Kept, "established: {established}");
            assert_eq!(restored.tcp_local_addr(stream), Some(asked.to));
            if established {
                let mut room = [0; 16];
                assert_eq!(restored.tcp_read(stream, &mut room, now), Ok(5));
            } else {
                give(&mut restored, tcp(guest, server, "A", 101, iss.wrapping_add(1), b""), now);
                assert_eq!(restored.tcp_state(stream), Some(StreamState::Established));
            }
            // The rules came with it: another opening is handed over at once.
            give(&mut restored, tcp(&guest.replace("1000", "1001"), server, "S", 100, 0, b""), now);
            assert!(next_opening(&mut restored).is_some());
            restored.tcp_abort(stream, now);
            assert!(sent(&mut restored).iter().any(|answer| answer.contains(" AR ")));
        }
    }
}

#[test]
fn a_waker_is_told_once_of_what_comes() {
    let (mut stack, now) = (stack(RULES), Instant::from_secs(1));
    assert!(!stack.tproxy_wake(Waker::noop()));
    give(&mut stack, tcp(ENDS[0].0, ENDS[0].1, "S", 100, 0, b""), now);
    assert!(stack.local.proxied.waker.is_none());
    assert!(stack.tproxy_wake(Waker::noop()));
}

/// The sequence number of a segment without IPv6 extension headers.
fn isn(datagram: &[u8]) -> u32 {
    let at = if datagram[0] >> 4 == 4 { 20 } else { 40 };
    u32::from_be_bytes(*datagram[at + 4..].first_chunk().unwrap())
}
