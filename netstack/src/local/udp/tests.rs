use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Wake;

use hibernet_snapshot::Instant;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol};

use super::*;
use crate::test_packets::{text, udp};
use crate::test_stack::{Version, outcome, play, stack};
use crate::{Errno, StackEvent};

const VERSIONS: [Version; 2] = [Version::V4, Version::V6];
const NOW: Instant = Instant::ZERO;

/// Counts how often it is woken.
#[derive(Default)]
pub(crate) struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counter {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn any() -> IpAddr {
    "::".parse().unwrap()
}

fn end(version: Version, name: &str, port: u16) -> SocketAddr {
    SocketAddr::new(version.addr(name), port)
}

/// An ICMP error about a datagram, as `by` sends it to who sent that.
pub(crate) fn icmp_error(by: IpAddr, kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    let to = hibernet_conntrack::parse(quote).unwrap().src;
    let protocol = if by.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
    let mut bytes = header(by, to, protocol, 8 + quote.len()).unwrap();
    let at = bytes.len() - 8 - quote.len();
    let message = &mut bytes[at..];
    message[0] = kind;
    message[1] = code;
    message[8..].copy_from_slice(quote);
    match (by, to) {
        (IpAddr::V6(by), IpAddr::V6(to)) => Icmpv6Packet::new_unchecked(message).fill_checksum(&by, &to),
        _ => Icmpv4Packet::new_unchecked(message).fill_checksum(),
    }
    bytes
}

/// The error of a host that has no such port.
fn port_unreachable(by: IpAddr, quote: &[u8]) -> Vec<u8> {
    let (kind, code) = if by.is_ipv4() { (3, 3) } else { (1, 4) };
    icmp_error(by, kind, code, quote)
}

#[test]
fn a_datagram_is_read_with_its_sender_and_the_address_it_was_sent_to() {
    for version in VERSIONS {
        let mut stack = stack("");
        let socket = stack.udp_bind(any(), 5000).unwrap();
        assert_eq!(stack.udp_recv(socket), Ok(None));
        play(&mut stack, version, "in", "udp client:1000 > gateway:5000 len=3 ttl=7");
        play(&mut stack, version, "in", "udp other:1001 > public:5000");
        let first = stack.udp_recv(socket).unwrap().unwrap();
        assert_eq!((first.from, first.to), (end(version, "client", 1000), version.addr("gateway")));
        assert_eq!((first.hop_limit, first.payload.as_slice()), (7, &b"xxx"[..]));
        let second = stack.udp_recv(socket).unwrap().unwrap();
        assert_eq!(
            (second.from, second.to, second.payload.len()),
            (end(version, "other", 1001), version.addr("public"), 0)
        );
        assert_eq!(stack.udp_recv(socket), Ok(None));
    }
}

#[test]
fn what_a_socket_sends_has_its_port_and_a_checksum_that_holds() {
    for version in VERSIONS {
        let mut stack = stack("");
        let socket = stack.udp_bind(any(), 5000).unwrap();
        for len in [0, 1, 1000] {
            stack.udp_send(socket, end(version, "server", 53), &vec![b'x'; len], NOW).unwrap();
            assert_eq!(outcome(&mut stack, version), [format!("out: udp public:5000 > server:53 len={len} ttl=64")]);
        }
    }
}

#[test]
fn a_drawn_port_is_free_and_in_the_range_of_linux_until_none_is_left() {
    let mut stack = stack("");
    let mut drawn = std::collections::BTreeSet::new();
    loop {
        match stack.udp_bind(any(), 0) {
            Ok(socket) => {
                let port = stack.udp_local_addr(socket).unwrap().port();
                assert!((32_768..=60_999).contains(&port));
                assert!(drawn.insert(port));
            }
            Err(error) => {
                assert_eq!(error, LocalError::NoPort);
                break;
            }
        }
    }
    // Every one of the last draws hit a port that is taken.
    assert!(drawn.len() > 20_000, "{} ports", drawn.len());
}

#[test]
fn sockets_share_no_port_at_one_address_and_are_bound_to_own_addresses_alone() {
    let mut stack = stack("");
    let taken = |port| Err(LocalError::PortTaken { port });
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();
    for (first, second, both) in [
        ("10.0.0.1", "203.0.113.1", true),
        ("10.0.0.1", "fd00:10::1", true),
        ("10.0.0.1", "10.0.0.1", false),
        ("10.0.0.1", "0.0.0.0", false),
        ("0.0.0.0", "10.0.0.1", false),
        ("0.0.0.0", "::", false),
        ("::", "0.0.0.0", false),
        ("10.0.0.1", "::", false),
        ("::", "10.0.0.1", false),
        ("fd00:10::1", "::", false),
        ("fd00:10::1", "0.0.0.0", true),
        ("0.0.0.0", "fd00:10::1", true),
    ] {
        let one = stack.udp_bind(addr(first), 99).unwrap();
        let other = stack.udp_bind(addr(second), 99);
        assert_eq!(other.is_ok(), both, "{first} and {second}");
        stack.udp_close(one);
        match other {
            Ok(other) => stack.udp_close(other),
            Err(_) => assert_eq!(other, taken(99)),
        }
    }
    assert_eq!(stack.udp_bind(addr("192.0.2.1"), 99), Err(LocalError::AddressNotOwn { addr: addr("192.0.2.1") }));
    assert_eq!(stack.udp_bind(addr("224.0.0.1"), 99), Err(LocalError::AddressNotOwn { addr: addr("224.0.0.1") }));
    assert_eq!(stack.udp_bind(any(), 7), taken(7), "the echo service has it");
}

#[test]
fn a_connected_socket_speaks_with_its_peer_alone() {
    for version in VERSIONS {
        let mut stack = stack("");
        let socket = stack.udp_bind(any(), 5000).unwrap();
        assert_eq!(stack.udp_send_connected(socket, b"x", NOW), Err(SocketError::NotConnected));
        stack.udp_connect(socket, end(version, "client", 1000)).unwrap();
        assert_eq!(stack.udp_local_addr(socket), Some(end(version, "gateway", 5000)));
        assert_eq!(stack.udp_peer_addr(socket), Some(end(version, "client", 1000)));
        stack.udp_send_connected(socket, b"hello", NOW).unwrap();
        assert_eq!(outcome(&mut stack, version), ["in: udp gateway:5000 > client:1000 len=5 ttl=64"]);
        play(&mut stack, version, "in", "udp client:1000 > gateway:5000 len=2");
        assert_eq!(stack.udp_recv(socket).unwrap().unwrap().payload, b"xx");
        for stranger in ["client:1001", "other:1000"] {
            play(&mut stack, version, "in", &format!("udp {stranger} > gateway:5000 len=2"));
            assert_eq!(outcome(&mut stack, version)[0], "drop port_unreachable");
            assert_eq!(stack.udp_recv(socket), Ok(None));
        }
    }
}

#[test]
fn a_connected_socket_is_told_once_that_nobody_has_the_port() {
    for version in VERSIONS {
        let mut stack = stack("");
        let link = stack.link("in").unwrap();
        let client = version.addr("client");
        let connected = stack.udp_bind(any(), 5000).unwrap();
        let other = stack.udp_bind(any(), 5001).unwrap();
        stack.udp_connect(connected, end(version, "client", 9)).unwrap();
        for socket in [connected, other] {
            stack.udp_send(socket, end(version, "client", 9), b"x", NOW).unwrap();
            let sent = stack.egress().unwrap().datagram;
            stack.ingress(link, port_unreachable(client, &sent), NOW);
        }
        let refused = SocketError::Refused { by: client };
        assert_eq!(refused.errno(), Errno::ConnectionRefused);
        assert_eq!(stack.udp_recv(connected), Err(refused.clone()));
        assert_eq!(stack.udp_recv(connected), Ok(None), "it is told once");
        assert_eq!(stack.udp_recv(other), Ok(None), "one that is not connected is not told");

        stack.udp_send_connected(connected, b"x", NOW).unwrap();
        let sent = stack.egress().unwrap().datagram;
        stack.ingress(link, port_unreachable(client, &sent), NOW);
        assert_eq!(stack.udp_send_connected(connected, b"x", NOW), Err(refused));
        assert_eq!(stack.egress(), None, "the call that is told sends nothing");
        stack.udp_send_connected(connected, b"x", NOW).unwrap();
    }
}

#[test]
fn an_error_about_what_the_socket_did_not_send_is_not_heeded() {
    let mut stack = stack("");
    let link = stack.link("in").unwrap();
    let client: IpAddr = "10.0.0.2".parse().unwrap();
    let socket = stack.udp_bind(any(), 5000).unwrap();
    stack.udp_connect(socket, "10.0.0.2:9".parse().unwrap()).unwrap();
    stack.udp_send_connected(socket, b"x", NOW).unwrap();
    for (src, dst) in [
        ("10.0.0.1:5000", "10.0.0.2:10"),
        ("10.0.0.1:5000", "10.0.0.3:9"),
        ("10.0.0.1:5001", "10.0.0.2:9"),
        ("203.0.113.1:5000", "10.0.0.2:9"),
    ] {
        stack.ingress(link, port_unreachable(client, &udp(src, dst, b"x")), NOW);
        assert_eq!(stack.udp_recv(socket), Ok(None), "{src} > {dst}");
    }
    let sent = udp("10.0.0.1:5000", "10.0.0.2:9", b"x");
    // An error to one address of this host about what another has sent.
    let mut stray = port_unreachable(client, &sent);
    stray[16..20].copy_from_slice(&[203, 0, 113, 1]);
    crate::test_packets::fill_header_checksum(&mut stray);
    stack.ingress(link, stray, NOW);
    assert_eq!(stack.udp_recv(socket), Ok(None));
}

/// What a connected socket of Linux 6.18.44 returns after each error about what it has sent; the others it does not tell of.
/// Asked over a TUN device with `recv`.
const TOLD: [&[(u8, u8, &str)]; 2] = [
    &[
        (3, 2, "ENOPROTOOPT"),
        (3, 3, "ECONNREFUSED"),
        (3, 4, "EMSGSIZE"),
        (3, 6, "ENETUNREACH"),
        (3, 7, "EHOSTDOWN"),
        (3, 8, "ENONET"),
        (3, 9, "ENETUNREACH"),
        (3, 10, "EHOSTUNREACH"),
        (3, 13, "EHOSTUNREACH"),
        (3, 14, "EHOSTUNREACH"),
        (3, 15, "EHOSTUNREACH"),
        (12, 0, "EPROTO"),
    ],
    &[
        (1, 1, "EACCES"),
        (1, 4, "ECONNREFUSED"),
        (1, 5, "EACCES"),
        (1, 6, "EACCES"),
        (1, 7, "EPROTO"),
        (1, 8, "EPROTO"),
        (2, 0, "EMSGSIZE"),
        (4, 0, "EPROTO"),
        (4, 1, "EPROTO"),
        (4, 2, "EPROTO"),
    ],
];

#[test]
fn a_connected_socket_is_told_of_what_the_kernel_tells_of_and_of_nothing_else() {
    let asked: [&[(u8, core::ops::Range<u8>)]; 2] =
        [&[(3, 0..16), (4, 0..1), (5, 1..2), (11, 0..2), (12, 0..1)], &[(1, 0..9), (2, 0..1), (3, 0..2), (4, 0..3)]];
    for (version, (asked, told)) in VERSIONS.into_iter().zip(asked.into_iter().zip(TOLD)) {
        let mut stack = stack("");
        let link = stack.link("in").unwrap();
        let socket = stack.udp_bind(any(), 5000).unwrap();
        stack.udp_connect(socket, end(version, "client", 9)).unwrap();
        for (kind, code) in asked.iter().flat_map(|(kind, codes)| codes.clone().map(|code| (*kind, code))) {
            stack.udp_send_connected(socket, b"x", NOW).unwrap();
            let sent = stack.egress().unwrap().datagram;
            stack.ingress(link, icmp_error(version.addr("client"), kind, code, &sent), NOW);
            let expected = told.iter().find(|(k, c, _)| (*k, *c) == (kind, code)).map(|(_, _, errno)| *errno);
            let heard = stack.udp_recv(socket).err();
            assert_eq!(heard.as_ref().map(|error| error.errno().name()), expected, "type {kind} code {code}");
            assert!(heard.is_none_or(|error| error.to_string().starts_with(expected.unwrap())));
            assert_eq!(stack.udp_recv(socket), Ok(None));
        }
    }
}

#[test]
fn a_cut_quote_is_no_error_and_no_panic() {
    for version in VERSIONS {
        let mut stack = stack("");
        let link = stack.link("in").unwrap();
        let client = version.addr("client");
        let socket = stack.udp_bind(any(), 5000).unwrap();
        stack.udp_connect(socket, end(version, "client", 9)).unwrap();
        stack.udp_send_connected(socket, b"x", NOW).unwrap();
        let sent = stack.egress().unwrap().datagram;
        for len in 0..sent.len() {
            let mut error = port_unreachable(client, &sent);
            let cut = sent.len() - len;
            error.truncate(error.len() - cut);
            let to = sent_from(&sent);
            let at = if client.is_ipv4() { 20 } else { 40 };
            let protocol = if client.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
            let mut whole = header(client, to, protocol, error.len() - at).unwrap();
            whole[at..].copy_from_slice(&error[at..]);
            match (client, to) {
                (IpAddr::V6(by), IpAddr::V6(to)) => {
                    Icmpv6Packet::new_unchecked(&mut whole[at..]).fill_checksum(&by, &to)
                }
                _ => Icmpv4Packet::new_unchecked(&mut whole[at..]).fill_checksum(),
            }
            stack.ingress(link, whole, NOW);
            let ports = if client.is_ipv4() { 24 } else { 44 };
            if len < ports {
                assert_eq!(stack.udp_recv(socket), Ok(None), "{len} bytes quoted");
            }
            let _read = stack.udp_recv(socket);
        }
    }
}

fn sent_from(datagram: &[u8]) -> IpAddr {
    hibernet_conntrack::parse(datagram).unwrap().src
}

#[test]
fn what_cannot_be_sent_says_why() {
    let mut stack = stack("");
    let socket = stack.udp_bind("10.0.0.1".parse().unwrap(), 5000).unwrap();
    let mut errno = |to: &str, len: usize| {
        let error = stack.udp_send(socket, to.parse().unwrap(), &vec![0; len], NOW).unwrap_err();
        assert!(error.to_string().starts_with(error.errno().name()), "{error}");
        error.errno().name()
    };
    assert_eq!(errno("198.51.100.10:0", 1), "EINVAL");
    assert_eq!(errno("0.0.0.0:53", 1), "EINVAL");
    assert_eq!(errno("[2001:db8::1]:53", 1), "EAFNOSUPPORT");
    assert_eq!(errno("198.51.100.10:53", 65_508), "EMSGSIZE");
    stack.udp_close(socket);
    assert_eq!(stack.udp_send(socket, "198.51.100.10:53".parse().unwrap(), b"", NOW), Err(SocketError::Closed));
    assert_eq!(stack.udp_recv(socket), Err(SocketError::Closed));
    assert_eq!(stack.udp_connect(socket, "198.51.100.10:53".parse().unwrap()), Err(SocketError::Closed));
    assert_eq!(stack.udp_local_addr(socket), None);
}

#[test]
fn a_socket_whose_address_is_gone_is_told_and_works_again_when_it_is_back() {
    let mut stack = stack("");
    let link = stack.link("in").unwrap();
    let socket = stack.udp_bind("10.0.0.1".parse().unwrap(), 5000).unwrap();
    let to = "10.0.0.2:9".parse().unwrap();
    let cidrs = |text: &str| vec![text.parse().unwrap()];
    stack.set_addresses(link, cidrs("10.0.0.9/24"), NOW).unwrap();
    let gone = stack.udp_send(socket, to, b"x", NOW).unwrap_err();
    assert_eq!(gone, SocketError::AddressNotOwn { bound: "10.0.0.1".parse().unwrap() });
    stack.set_addresses(link, cidrs("10.0.0.1/24"), NOW).unwrap();
    stack.udp_send(socket, to, b"x", NOW).unwrap();
    assert_eq!(text(&stack.egress().unwrap().datagram), "udp 10.0.0.1:5000 > 10.0.0.2:9 len=1 ttl=64");
}

#[test]
fn limits_hold_in_bytes_and_in_datagrams_and_are_checked() {
    let mut stack = stack("");
    let socket = stack.udp_bind(any(), 5000).unwrap();
    let limits = |bytes, datagrams| ReceiveLimits { bytes, datagrams };
    for (bytes, datagrams) in [(0, 1), (1, 0), (16_777_217, 1), (1, 65_537)] {
        let refused = stack.udp_set_receive_limits(socket, limits(bytes, datagrams)).unwrap_err();
        assert_eq!(refused.errno(), Errno::Invalid);
    }
    assert_eq!(stack.udp_receive_limits(socket), Some(ReceiveLimits::default()));
    let mut kept_of = |limits, count: usize, len: usize| {
        stack.udp_set_receive_limits(socket, limits).unwrap();
        for _ in 0..count {
            play(&mut stack, Version::V4, "in", &format!("udp client:1 > gateway:5000 len={len}"));
        }
        core::iter::from_fn(|| stack.udp_recv(socket).unwrap()).count()
    };
    assert_eq!(kept_of(limits(100, 10), 20, 30), 3);
    assert_eq!(kept_of(limits(100, 10), 20, 0), 10);
    assert_eq!(kept_of(limits(29, 10), 20, 30), 0);
    assert_eq!(kept_of(limits(16_777_216, 65_536), 500, 1400), 500);
    let drops = core::iter::from_fn(|| stack.next_event());
    let full =
        drops.filter(|event| matches!(event, StackEvent::Drop(drop) if drop.reason == DropReason::SocketBufferFull));
    assert_eq!(full.count(), 17 + 10 + 20);
}

#[test]
fn a_waker_is_woken_once_for_what_there_is_to_read() {
    let mut stack = stack("");
    let counter = Arc::new(Counter::default());
    let waker = Waker::from(counter.clone());
    let socket = stack.udp_bind(any(), 5000).unwrap();
    stack.udp_wake_on_readable(socket, &waker).unwrap();
    assert_eq!(counter.count(), 0);
    for _ in 0..2 {
        play(&mut stack, Version::V4, "in", "udp client:1 > gateway:5000 len=1");
    }
    assert_eq!(counter.count(), 1);
    stack.udp_wake_on_readable(socket, &waker).unwrap();
    assert_eq!(counter.count(), 2, "there is something to read already");
    while stack.udp_recv(socket).unwrap().is_some() {}
    stack.udp_wake_on_readable(socket, &waker).unwrap();
    assert_eq!(counter.count(), 2);
    stack.udp_close(socket);
    assert_eq!(counter.count(), 3, "whoever waits for a closed socket would wait for ever");
    assert_eq!(stack.udp_wake_on_readable(socket, &waker), Err(SocketError::Closed));
}

#[test]
fn a_closed_sockets_handle_is_never_anothers() {
    let mut stack = stack("");
    let first = stack.udp_bind(any(), 5000).unwrap();
    stack.udp_close(first);
    let second = stack.udp_bind(any(), 5000).unwrap();
    assert_ne!(first, second);
    play(&mut stack, Version::V4, "in", "udp client:1 > gateway:5000 len=1");
    assert_eq!(stack.udp_recv(first), Err(SocketError::Closed));
    assert!(stack.udp_recv(second).unwrap().is_some());
    assert_eq!(stack.udp_sockets().collect::<Vec<_>>(), [second]);
}

#[test]
fn the_echo_service_answers_from_the_address_it_was_asked_at() {
    for version in VERSIONS {
        let mut stack = stack("");
        play(&mut stack, version, "in", "udp client:1000 > public:7 len=3");
        assert_eq!(outcome(&mut stack, version), ["in: udp public:7 > client:1000 len=3 ttl=64"]);
        // Port 0 cannot be answered.
        play(&mut stack, version, "in", "udp client:0 > public:7 len=3");
        assert_eq!(outcome(&mut stack, version), [""; 0]);
    }
    let mut stack = stack("");
    play(&mut stack, Version::V4, "in", "udp client:1000 > 10.0.0.255:7 len=3");
    assert_eq!(outcome(&mut stack, Version::V4), ["in: udp gateway:7 > client:1000 len=3 ttl=64"]);
    play(&mut stack, Version::V4, "in", "udp 0.0.0.0:1000 > 255.255.255.255:7 len=3");
    assert_eq!(outcome(&mut stack, Version::V4), [""; 0], "nobody has no address");
}

#[test]
fn two_echo_services_that_answer_each_other_come_to_an_end() {
    let mut stack = stack("");
    let link = stack.link("in").unwrap();
    let socket = stack.udp_bind(any(), 5000).unwrap();
    stack.udp_send(socket, "127.0.0.1:7".parse().unwrap(), b"x", NOW).unwrap();
    assert_eq!(stack.udp_recv(socket).unwrap().unwrap().payload, b"x");
    // As if the service had asked itself.
    stack.ingress(link, udp("10.0.0.2:7", "10.0.0.1:7", b"x"), NOW);
    assert_eq!(stack.local_output(udp("127.0.0.1:7", "127.0.0.1:7", b"x"), NOW), Ok(()));
    assert_eq!(stack.stats().dropped(DropReason::WorkLimit), 1);
}
