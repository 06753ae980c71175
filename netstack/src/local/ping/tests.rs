use core::task::Waker;
use std::collections::BTreeSet;
use std::sync::Arc;

use hibernet_snapshot::Instant;

use super::*;
use crate::local::udp::tests::{Counter, icmp_error};
use crate::test_packets::text;
use crate::test_stack::{Version, outcome, play, stack};

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];
const NOW: Instant = Instant::ZERO;

fn any() -> IpAddr {
    "::".parse().unwrap()
}

/// The answer to a request that left the stack.
fn answer(request: &[u8]) -> Vec<u8> {
    let packet = Packet::received(crate::LinkId::LOOPBACK, request.to_vec()).unwrap();
    crate::ping::reply(packet.bytes(), packet.parsed(), packet.dst(), 0).unwrap()
}

#[test]
fn a_request_is_answered_with_its_numbers_and_payload() {
    for version in VERSIONS {
        let mut stack = stack("");
        let link = stack.link("out").unwrap();
        let server = version.addr("server");
        let socket = stack.ping_bind(any(), 77).unwrap();
        stack.ping_send(socket, server, 3, b"abc", NOW).unwrap();
        let request = stack.egress().unwrap().datagram;
        let kind = if server.is_ipv4() { 8 } else { 128 };
        let expected = format!("icmp {} > {server} type={kind} code=0 id=77 seq=3 ttl=64", version.addr("public"));
        assert_eq!(text(&request), expected);
        stack.ingress(link, answer(&request), NOW);
        let reply = stack.ping_recv(socket).unwrap().unwrap();
        assert_eq!((reply.from, reply.to, reply.sequence), (server, version.addr("public"), 3));
        assert_eq!((reply.hop_limit, reply.payload.as_slice()), (64, &b"abc"[..]));
        assert_eq!(stack.ping_recv(socket), Ok(None));
    }
}

#[test]
fn the_host_pings_itself_through_its_own_hooks() {
    for version in VERSIONS {
        let mut stack = stack("");
        let socket = stack.ping_bind(version.addr("gateway"), 0).unwrap();
        stack.ping_send(socket, version.addr("public"), 1, &[7; 3000], NOW).unwrap();
        let reply = stack.ping_recv(socket).unwrap().unwrap();
        assert_eq!((reply.from, reply.payload), (version.addr("public"), vec![7; 3000]));
        assert_eq!(stack.flows(NOW).len(), 1);
    }
}

#[test]
fn answers_that_nobody_waits_for_are_let_go() {
    for version in VERSIONS {
        let mut stack = stack(r#"[{"chain": "raw_prerouting", "action": "notrack"}]"#);
        let link = stack.link("in").unwrap();
        let socket = stack.ping_bind(any(), 5).unwrap();
        let request = version.datagram("ping gateway > client id=6");
        stack.ingress(link, answer(&request), NOW);
        assert_eq!(stack.ping_recv(socket), Ok(None));
        assert_eq!(outcome(&mut stack, version), [""; 0]);
        let request = version.datagram("ping gateway > client id=5");
        stack.ingress(link, answer(&request), NOW);
        assert_eq!(stack.ping_recv(socket).unwrap().unwrap().sequence, 1);
    }
}

#[test]
fn an_answer_that_the_rules_drop_does_not_arrive() {
    let mut stack = stack(r#"[{"chain": "input", "match": {"proto": "icmp"}, "action": "drop"}]"#);
    let link = stack.link("out").unwrap();
    let socket = stack.ping_bind(any(), 5).unwrap();
    stack.ping_send(socket, "198.51.100.10".parse().unwrap(), 1, b"", NOW).unwrap();
    let request = stack.egress().unwrap().datagram;
    stack.ingress(link, answer(&request), NOW);
    assert_eq!(stack.ping_recv(socket), Ok(None));
    assert_eq!(outcome(&mut stack, Version::V4), ["drop rule"]);
}

#[test]
fn drawn_identifiers_are_distinct_and_never_zero() {
    let mut stack = stack("");
    let mut seen = BTreeSet::new();
    for _ in 0..1000 {
        let socket = stack.ping_bind(any(), 0).unwrap();
        let (_, identifier) = stack.ping_local(socket).unwrap();
        assert!(identifier != 0 && seen.insert(identifier));
    }
    let taken = *seen.first().unwrap();
    assert_eq!(stack.ping_bind("10.0.0.1".parse().unwrap(), taken), Err(LocalError::PortTaken { port: taken }));
}

#[test]
fn errors_on_the_way_are_told_once() {
    for version in VERSIONS {
        let mut stack = stack("");
        let link = stack.link("out").unwrap();
        let (server, router) = (version.addr("server"), version.addr("neighbour"));
        let socket = stack.ping_bind(any(), 77).unwrap();
        let other = stack.ping_bind(any(), 78).unwrap();
        let (unreachable, exceeded) = if server.is_ipv4() { ((3, 1), (11, 0)) } else { ((1, 3), (3, 0)) };
        for ((kind, code), expected) in [
            (unreachable, SocketError::Unreachable { by: router, code: unreachable.1 }),
            (exceeded, SocketError::TimeExceeded { by: router }),
        ] {
            stack.ping_send(socket, server, 1, b"x", NOW).unwrap();
            let request = stack.egress().unwrap().datagram;
            stack.ingress(link, icmp_error(router, kind, code, &request), NOW);
            assert_eq!(stack.ping_recv(socket), Err(expected));
            assert_eq!(stack.ping_recv(socket), Ok(None));
            assert_eq!(stack.ping_recv(other), Ok(None));
        }
    }
}

#[test]
fn a_masqueraded_request_gets_its_answers_and_errors_back() {
    let rules = r#"[{"chain": "srcnat", "match": {"oif": "out"}, "action": {"snat": "203.0.113.50"}}]"#;
    let mut stack = stack(rules);
    let link = stack.link("out").unwrap();
    let server = "198.51.100.10".parse().unwrap();
    let socket = stack.ping_bind(any(), 77).unwrap();
    stack.ping_send(socket, server, 1, b"x", NOW).unwrap();
    let request = stack.egress().unwrap().datagram;
    assert!(text(&request).starts_with("icmp 203.0.113.50 > 198.51.100.10 "));
    stack.ingress(link, icmp_error("203.0.113.9".parse().unwrap(), 3, 1, &request), NOW);
    assert_eq!(stack.ping_recv(socket), Err(SocketError::Unreachable { by: "203.0.113.9".parse().unwrap(), code: 1 }));
    stack.ingress(link, answer(&request), NOW);
    assert_eq!(stack.ping_recv(socket).unwrap().unwrap().to, "203.0.113.1".parse::<IpAddr>().unwrap());
}

#[test]
fn a_ping_socket_has_limits_a_waker_and_an_end() {
    let mut stack = stack("");
    let counter = Arc::new(Counter::default());
    let socket = stack.ping_bind(any(), 5).unwrap();
    stack.ping_set_receive_limits(socket, ReceiveLimits { bytes: 10, datagrams: 10 }).unwrap();
    assert!(stack.ping_set_receive_limits(socket, ReceiveLimits { bytes: 0, datagrams: 10 }).is_err());
    stack.ping_wake_on_readable(socket, &Waker::from(counter.clone())).unwrap();
    for sequence in 0..5 {
        stack.ping_send(socket, "127.0.0.1".parse().unwrap(), sequence, b"four", NOW).unwrap();
    }
    assert_eq!(counter.count(), 1);
    let kept: Vec<_> = core::iter::from_fn(|| stack.ping_recv(socket).unwrap()).map(|reply| reply.sequence).collect();
    assert_eq!(kept, [0, 1]);
    assert_eq!(stack.stats().dropped(DropReason::SocketBufferFull), 3);
    stack.ping_close(socket);
    assert_eq!(stack.ping_recv(socket), Err(SocketError::Closed));
    assert_eq!(stack.ping_send(socket, "127.0.0.1".parse().unwrap(), 1, b"", NOW), Err(SocketError::Closed));
    assert_eq!(stack.ping_sockets().count(), 0);
}

#[test]
fn what_cannot_be_asked_says_why() {
    let mut stack = stack("");
    let socket = stack.ping_bind("10.0.0.1".parse().unwrap(), 5).unwrap();
    let mut errno =
        |to: &str, len| stack.ping_send(socket, to.parse().unwrap(), 1, &vec![0; len], NOW).unwrap_err().errno().name();
    assert_eq!(errno("2001:db8::1", 1), "EAFNOSUPPORT");
    assert_eq!(errno("0.0.0.0", 1), "EINVAL");
    assert_eq!(errno("198.51.100.10", 65_508), "EMSGSIZE");
}

#[test]
fn an_echo_request_of_nobody_is_not_answered() {
    let mut stack = stack("");
    play(&mut stack, Version::V6, "in", "ping :: > ff02::1 id=1");
    assert_eq!(outcome(&mut stack, Version::V4), [""; 0]);
}
