use hibernet_snapshot::{Entropy, Instant};

use crate::test_packets::{tcp, text};
use crate::test_stack::{Version, config, outcome, play, stack};
use crate::{DropReason, LocalError, LocalServices, Ruleset, Stack};

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];

/// Carries datagrams between two stacks until neither has any.
fn exchange(a: &mut Stack, b: &mut Stack, now: Instant) {
    let (a_out, b_in) = (a.link("out").unwrap(), b.link("out").unwrap());
    loop {
        let mut quiet = true;
        while let Some(sent) = a.egress() {
            quiet = false;
            b.ingress(b_in, sent.datagram, now);
        }
        while let Some(sent) = b.egress() {
            quiet = false;
            a.ingress(a_out, sent.datagram, now);
        }
        if quiet {
            return;
        }
    }
}

/// A stack that is the server's and not the gateway.
fn far() -> Stack {
    let mut config = config(Ruleset::open());
    config.links[0].addrs.clear();
    config.links[1].addrs =
        ["198.51.100.10/24", "2001:db8:1::10/64"].iter().map(|addr| addr.parse().unwrap()).collect();
    Stack::new(config, Entropy::from_test_seed(2), Instant::ZERO).unwrap()
}

#[test]
fn a_stream_is_echoed_whole_and_closed_after_the_peer() {
    for version in VERSIONS {
        let (mut near, mut far) = (stack(""), far());
        let mut now = Instant::from_secs(1);
        let connection = near.tcp_connect(None, (version.addr("server"), 7).into(), now).unwrap();
        exchange(&mut near, &mut far, now);
        assert!(near.tcp_is_open(connection));
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_be_bytes()[3]).collect();
        let (mut at, mut back) = (0, Vec::new());
        for _ in 0..10_000 {
            at += near.tcp_send(connection, &sent[at..], now).unwrap();
            exchange(&mut near, &mut far, now);
            back.extend(near.tcp_recv(connection, now).unwrap());
            if back.len() == sent.len() {
                break;
            }
            now = now.saturating_add(core::time::Duration::from_millis(20));
            near.poll(now);
            far.poll(now);
        }
        assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
        near.tcp_close(connection, now);
        exchange(&mut near, &mut far, now);
        near.poll(now);
        exchange(&mut near, &mut far, now);
        assert!(!near.tcp_is_open(connection));
    }
}

#[test]
fn a_listener_hands_out_connections_in_the_order_they_came() {
    for version in VERSIONS {
        let (mut near, mut far) = (stack(""), far());
        let now = Instant::ZERO;
        let listener = far.listen_tcp("::".parse().unwrap(), 5000).unwrap();
        let opened: Vec<_> =
            (0..3).map(|_| near.tcp_connect(None, (version.addr("server"), 5000).into(), now).unwrap()).collect();
        exchange(&mut near, &mut far, now);
        for connection in opened {
            let accepted = far.tcp_accept(listener).unwrap();
            assert_eq!((accepted.local(), accepted.remote()), (connection.remote(), connection.local()));
            near.tcp_send(connection, b"hello", now).unwrap();
            exchange(&mut near, &mut far, now);
            assert_eq!(far.tcp_recv(accepted, now).unwrap(), b"hello");
        }
        assert_eq!(far.tcp_accept(listener), None);
    }
}

#[test]
fn ports_are_bound_once_and_never_zero() {
    let mut stack = stack("");
    let (any, any_v4) = ("::".parse().unwrap(), "0.0.0.0".parse().unwrap());
    assert_eq!(stack.udp_bind(any, 7), Err(LocalError::PortTaken { port: 7 }));
    assert_eq!(stack.listen_tcp(any_v4, 7), Err(LocalError::PortTaken { port: 7 }));
    assert_eq!(stack.listen_tcp(any, 0), Err(LocalError::PortZero));
    assert!(stack.udp_bind("10.0.0.1".parse().unwrap(), 8).is_ok());
    assert!(stack.udp_bind("203.0.113.1".parse().unwrap(), 8).is_ok());
    assert_eq!(stack.udp_bind(any_v4, 8), Err(LocalError::PortTaken { port: 8 }));
    assert!(stack.udp_bind(any, 0).is_ok());
    let services = LocalServices { udp_echo: Some(0), tcp_echo: None };
    let refused = Stack::new(
        crate::StackConfig { services, ..config(Ruleset::open()) },
        Entropy::from_test_seed(1),
        Instant::ZERO,
    );
    assert_eq!(refused.unwrap_err().to_string(), "services: udp_echo: found port 0, expected 1 to 65535");
}

#[test]
fn a_socket_keeps_what_fits_and_the_rest_is_a_counted_drop() {
    let mut stack = stack("");
    let socket = stack.udp_bind("::".parse().unwrap(), 5000).unwrap();
    for _ in 0..100 {
        play(&mut stack, Version::V4, "in", "udp client:1 > gateway:5000 len=1400");
    }
    let kept = core::iter::from_fn(|| stack.udp_recv(socket).unwrap()).count();
    let lost = stack.stats().dropped(DropReason::SocketBufferFull);
    assert!(kept > 0 && lost > 0);
    assert_eq!(kept as u64 + lost, 100);
    stack.udp_close(socket);
    play(&mut stack, Version::V4, "in", "udp client:1 > gateway:5000 len=1400");
    assert_eq!(stack.stats().dropped(DropReason::PortUnreachable), 1);
}

#[test]
fn pings_to_everybody_are_answered_in_ipv6_alone() {
    let mut stack = stack("");
    play(&mut stack, Version::V4, "in", "ping client > 10.0.0.255 id=1");
    assert_eq!(outcome(&mut stack, Version::V4), ["drop echo_broadcast"]);
    play(&mut stack, Version::V6, "in", "ping client > ff02::1 id=1");
    assert_eq!(outcome(&mut stack, Version::V6), ["in: icmp gateway > client type=129 code=0 id=1 seq=1 ttl=64"]);
}

#[test]
fn initial_sequence_numbers_differ_between_stacks() {
    let first = |seed| {
        let mut stack = Stack::new(config(Ruleset::open()), Entropy::from_test_seed(seed), Instant::ZERO).unwrap();
        let link = stack.link("in").unwrap();
        stack.ingress(link, tcp("10.0.0.2:1", "10.0.0.1:7", "S", 5, 0, b""), Instant::ZERO);
        let answer = stack.egress().unwrap().datagram;
        assert!(text(&answer).contains(" SA "));
        answer[24..28].to_vec()
    };
    assert_eq!(first(1), first(1));
    assert_ne!(first(1), first(2));
}
