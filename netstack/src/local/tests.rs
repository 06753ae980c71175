use hibernet_snapshot::{Entropy, Instant};

use crate::test_packets::{tcp, text};
use crate::test_stack::{Version, config, outcome, play, stack};
use crate::{
    DropReason, ListenOptions, LocalError, LocalServices, Ruleset, Stack, StreamError, StreamOptions, StreamState,
};

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
        let options = StreamOptions::default();
        let stream = near.tcp_connect(None, (version.addr("server"), 7).into(), options, now).unwrap();
        exchange(&mut near, &mut far, now);
        assert_eq!(near.tcp_state(stream), Some(StreamState::Established));
        let sent: Vec<u8> = (0..200_000_u32).map(|n| n.to_be_bytes()[3]).collect();
        let (mut at, mut back, mut room) = (0, Vec::<u8>::new(), [0; 4096]);
        for _ in 0..10_000 {
            at += near.tcp_write(stream, &sent[at..], now).unwrap_or(0);
            exchange(&mut near, &mut far, now);
            while let Ok(taken) = near.tcp_read(stream, &mut room, now) {
                back.extend(&room[..taken]);
            }
            if back.len() == sent.len() {
                break;
            }
            now = now.saturating_add(core::time::Duration::from_millis(20));
            near.poll(now);
            far.poll(now);
        }
        assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
        near.tcp_shutdown(stream, now).unwrap();
        exchange(&mut near, &mut far, now);
        assert_eq!(near.tcp_read(stream, &mut room, now), Ok(0));
        assert_eq!(near.tcp_state(stream), Some(StreamState::TimeWait));
        near.tcp_close(stream, now);
        now = now.saturating_add(core::time::Duration::from_secs(10));
        near.poll(now);
        assert_eq!(near.tcp_state(stream), None);
    }
}

#[test]
fn a_listener_hands_out_connections_in_the_order_they_came() {
    for version in VERSIONS {
        let (mut near, mut far) = (stack(""), far());
        let now = Instant::ZERO;
        let listener = far.tcp_listen("::".parse().unwrap(), 5000, ListenOptions::default()).unwrap();
        let remote = (version.addr("server"), 5000).into();
        let opened: Vec<_> =
            (0..3).map(|_| near.tcp_connect(None, remote, StreamOptions::default(), now).unwrap()).collect();
        assert_eq!(far.tcp_accept(listener), None, "no handshake is over yet");
        exchange(&mut near, &mut far, now);
        let mut room = [0; 100];
        for stream in opened {
            let accepted = far.tcp_accept(listener).unwrap();
            assert_eq!(far.tcp_local_addr(accepted), near.tcp_peer_addr(stream));
            assert_eq!(far.tcp_peer_addr(accepted), near.tcp_local_addr(stream));
            near.tcp_write(stream, b"hello", now).unwrap();
            exchange(&mut near, &mut far, now);
            assert_eq!(far.tcp_read(accepted, &mut room, now), Ok(5));
            assert_eq!(&room[..5], b"hello");
            assert_eq!(far.tcp_read(accepted, &mut room, now), Err(StreamError::WouldBlock));
        }
        assert_eq!(far.tcp_accept(listener), None);
    }
}

#[test]
fn ports_are_bound_once_and_never_zero() {
    let mut stack = stack("");
    let options = ListenOptions::default();
    let (any, any_v4) = ("::".parse().unwrap(), "0.0.0.0".parse().unwrap());
    assert_eq!(stack.udp_bind(any, 7), Err(LocalError::PortTaken { port: 7 }));
    assert_eq!(stack.tcp_listen(any_v4, 7, options), Err(LocalError::PortTaken { port: 7 }));
    assert_eq!(stack.tcp_listen(any, 0, options), Err(LocalError::PortZero));
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
