use hibernet_snapshot::codec::{decode, encode};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId, Instant};
use proptest::prelude::*;

use super::*;
use crate::local::udp::tests::icmp_error;
use crate::test_stack::{Version, play, stack};
use crate::{Decoded, PingSocket, RestorePolicy, RestoreReport, SocketError, Stack, Supplied, UdpSocket};

const NOW: Instant = Instant::ZERO;
const GENERATION: GenerationId = GenerationId([3; 16]);

fn any() -> IpAddr {
    "::".parse().unwrap()
}

fn restored(stack: &Stack, seed: u64) -> (Stack, RestoreReport) {
    let image = stack.save(GENERATION, NOW).unwrap();
    let decoded = Decoded::open(&image, &Limits::default()).unwrap();
    let validated = decoded.validate(&mut Entropy::from_test_seed(seed), NOW).unwrap();
    let rehashed = validated.rehash(Entropy::from_test_seed(!seed), RestorePolicy::default()).unwrap();
    let (heir, report) = rehashed.open(Supplied::default());
    assert_eq!(heir.save(GENERATION, NOW).unwrap(), image, "save, restore, save is the identity");
    (heir, report)
}

/// All that can be read from a UDP socket.
fn read(stack: &mut Stack, socket: UdpSocket) -> Vec<Result<crate::UdpDatagram, SocketError>> {
    core::iter::from_fn(|| stack.udp_recv(socket).transpose()).collect()
}

/// A stack with a socket of each kind, in which something waits.
fn sample() -> (Stack, [UdpSocket; 3], PingSocket) {
    let mut stack = stack("");
    let closed = stack.udp_bind(any(), 1).unwrap();
    let sockets = [
        stack.udp_bind(any(), 5000).unwrap(),
        stack.udp_bind("10.0.0.1".parse().unwrap(), 5001).unwrap(),
        stack.udp_bind("0.0.0.0".parse().unwrap(), 0).unwrap(),
    ];
    let last = stack.udp_bind(any(), 2).unwrap();
    stack.udp_close(closed);
    stack.udp_close(last);
    stack.udp_set_receive_limits(sockets[0], ReceiveLimits { bytes: 1000, datagrams: 3 }).unwrap();
    for version in [Version::V4, Version::V6] {
        play(&mut stack, version, "in", "udp client:9 > gateway:5000 len=10");
    }
    stack.udp_connect(sockets[1], "10.0.0.2:9".parse().unwrap()).unwrap();
    stack.udp_send_connected(sockets[1], b"x", NOW).unwrap();
    let sent = stack.egress().unwrap().datagram;
    let link = stack.link("in").unwrap();
    stack.ingress(link, icmp_error("10.0.0.2".parse().unwrap(), 3, 3, &sent), NOW);
    let ping = stack.ping_bind(any(), 0).unwrap();
    stack.ping_send(ping, "127.0.0.1".parse().unwrap(), 4, b"abc", NOW).unwrap();
    (stack, sockets, ping)
}

#[test]
fn handles_bindings_options_and_what_waits_come_back() {
    let (mut source, sockets, ping) = sample();
    let (mut heir, report) = restored(&source, 5);
    assert_eq!((report.sockets, report.datagrams), (4, 3));
    assert_eq!(heir.udp_sockets().collect::<Vec<_>>(), sockets);
    for socket in sockets {
        assert_eq!(heir.udp_local_addr(socket), source.udp_local_addr(socket));
        assert_eq!(heir.udp_peer_addr(socket), source.udp_peer_addr(socket));
        assert_eq!(heir.udp_receive_limits(socket), source.udp_receive_limits(socket));
        assert_eq!(read(&mut heir, socket), read(&mut source, socket));
    }
    assert_eq!(heir.ping_local(ping), source.ping_local(ping));
    assert_eq!(heir.ping_recv(ping).unwrap().unwrap().sequence, 4);
}

#[test]
fn what_waits_was_there_to_be_compared() {
    let (mut source, sockets, _) = sample();
    assert_eq!(read(&mut source, sockets[0]).len(), 2);
    assert!(matches!(read(&mut source, sockets[1])[..], [Err(SocketError::Refused { .. })]));
}

#[test]
fn a_new_handle_after_a_restore_was_never_given_before() {
    let (source, sockets, _) = sample();
    let (mut heir, _) = restored(&source, 5);
    let new = heir.udp_bind(any(), 3).unwrap();
    assert!(sockets.iter().all(|old| *old < new));
    let (mut source, _, _) = sample();
    assert_eq!(source.udp_bind(any(), 3).unwrap(), new, "as the source would have given it");
}

#[test]
fn a_restored_socket_speaks_and_hears_at_once() {
    let (source, sockets, ping) = sample();
    let (mut heir, _) = restored(&source, 5);
    while heir.egress().is_some() {}
    heir.udp_send(sockets[0], "10.0.0.2:9".parse().unwrap(), b"on", NOW).unwrap();
    let sent = heir.egress().unwrap().datagram;
    assert_eq!(crate::test_packets::text(&sent), "udp 10.0.0.1:5000 > 10.0.0.2:9 len=2 ttl=64");
    play(&mut heir, Version::V4, "in", "udp client:9 > gateway:5000 len=1");
    assert_eq!(read(&mut heir, sockets[0]).len(), 3);
    heir.ping_send(ping, "127.0.0.1".parse().unwrap(), 5, b"", NOW).unwrap();
    assert_eq!(heir.ping_recv(ping).unwrap().unwrap().sequence, 4);
    assert_eq!(heir.ping_recv(ping).unwrap().unwrap().sequence, 5);
    // Limits are in force: two wait, a third finds room, a fourth none.
    let (mut full, _) = restored(&source, 6);
    for _ in 0..2 {
        play(&mut full, Version::V4, "in", "udp client:9 > gateway:5000 len=1");
    }
    assert_eq!(full.stats().dropped(crate::DropReason::SocketBufferFull), 1);
}

#[test]
fn two_heirs_of_one_image_draw_other_ports_and_identifiers() {
    let (source, _, _) = sample();
    let drawn = |seed| {
        let (mut heir, _) = restored(&source, seed);
        let ports: Vec<_> = (0..8)
            .map(|_| {
                let socket = heir.udp_bind(any(), 0).unwrap();
                heir.udp_local_addr(socket).unwrap().port()
            })
            .collect();
        let identifiers: Vec<_> = (0..8)
            .map(|_| {
                let socket = heir.ping_bind(any(), 0).unwrap();
                heir.ping_local(socket).unwrap().1
            })
            .collect();
        (ports, identifiers)
    };
    let (one, other) = (drawn(5), drawn(6));
    assert_ne!(one.0, other.0);
    assert_ne!(one.1, other.1);
}

/// A stack's sockets as they are saved, with something changed.
fn changed(change: impl FnOnce(&mut DatagramsSection)) -> Result<Datagrams, Invalid> {
    let (source, _, _) = sample();
    let mut section = source.local.datagrams().section();
    change(&mut section);
    section.into_datagrams(source.local.services())
}

fn socket(section: &mut DatagramsSection, id: u64) -> &mut SocketSection {
    section.udp.sockets.get_mut(&id).unwrap()
}

fn ping(section: &mut DatagramsSection) -> &mut SocketSection {
    section.ping.sockets.get_mut(&0).unwrap()
}

/// A change to a section, with a name and what the refusal says.
type Case = (fn(&mut DatagramsSection), &'static str);

#[test]
fn sockets_that_cannot_be_are_refused_by_name() {
    assert!(changed(|_| {}).is_ok());
    let cases: [Case; 17] = [
        (|s| s.udp.next = 3, "udp.sockets[2].id: found 3, expected below the next, 3"),
        (|s| s.udp.next = u64::MAX, "udp.next: found 18446744073709551615, expected at most 281474976710656"),
        (|s| socket(s, 1).number = 0, "udp.sockets[0].number: found 0 at ::"),
        (|s| socket(s, 1).number = 7, "udp.sockets[0].number: found 7 at ::"),
        (|s| socket(s, 2).number = 5000, "udp.sockets[1].number: found 5000 at 10.0.0.1"),
        (|s| socket(s, 1).addr = "224.0.0.1".parse().unwrap(), "udp.sockets[0].addr: found 224.0.0.1"),
        (|s| socket(s, 1).addr = "255.255.255.255".parse().unwrap(), "udp.sockets[0].addr: found 255.255.255.255"),
        (|s| socket(s, 1).peer = Some(("10.0.0.2".parse().unwrap(), 9)), "udp.sockets[0].peer: found 10.0.0.2 port 9"),
        (|s| socket(s, 2).peer = Some(("::2".parse().unwrap(), 9)), "udp.sockets[1].peer: found ::2 port 9"),
        (|s| socket(s, 2).peer = Some(("10.0.0.2".parse().unwrap(), 0)), "udp.sockets[1].peer: found 10.0.0.2 port 0"),
        (|s| socket(s, 2).peer = None, "udp.sockets[1].notice: found Refused(10.0.0.2)"),
        (|s| socket(s, 2).notice = Some(Notice::TimeExceeded(any())), "udp.sockets[1].notice: found TimeExceeded(::)"),
        (|s| ping(s).notice = Some(Notice::Refused(any())), "ping.sockets[0].notice: found Refused(::)"),
        (|s| ping(s).waiting[0].from = any(), "ping.sockets[0].waiting[0]: found 3 bytes from :: to 127.0.0.1"),
        (|s| ping(s).waiting[0].payload = vec![0; 65_536], "ping.sockets[0].waiting[0]: found 65536 bytes"),
        (
            |s| {
                let arrival = Arrival { payload: Vec::new(), ..ping(s).waiting[0].clone() };
                ping(s).waiting = vec![arrival; 65_537];
            },
            "ping.sockets[0].waiting: found 65537 datagrams, expected at most 65536",
        ),
        (
            |s| {
                let arrival = Arrival { payload: vec![0; 65_000], ..ping(s).waiting[0].clone() };
                ping(s).waiting = vec![arrival; 259];
            },
            "ping.sockets[0].waiting: found 16835000 bytes, expected at most 16777216",
        ),
    ];
    for (change, expected) in cases {
        let refused = changed(change).unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{refused}, expected {expected}");
    }
}

#[test]
fn more_than_all_sockets_may_hold_together_is_refused() {
    let refused = changed(|section| {
        let full = SocketSection {
            waiting: vec![Arrival { payload: vec![0; 60_000], ..ping(section).waiting[0].clone() }; 279],
            ..ping(section).clone()
        };
        section.ping.next = 10;
        section.ping.sockets =
            (0..5).map(|id| (id, SocketSection { number: 100 + id as u16, ..full.clone() })).collect();
    });
    assert_eq!(
        refused.unwrap_err().to_string(),
        "ping.sockets: found 83700000 waiting bytes, expected at most 67108864"
    );
}

#[test]
fn limits_out_of_range_are_refused() {
    let (source, _, _) = sample();
    let mut saved = source.local.datagrams().section().save();
    saved.udp.sockets[0].1.limits.datagrams = 0;
    let refused = DatagramsSection::restore(saved, (), &mut Entropy::from_test_seed(1)).unwrap_err();
    assert!(refused.to_string().ends_with("limits.datagrams: found 0, expected 1 to 65536"), "{refused}");
}

proptest! {
    #[test]
    fn damaged_sections_are_refused_or_saved_again_as_they_were(changes in prop::collection::vec((prop::arbitrary::any::<prop::sample::Index>(), prop::arbitrary::any::<u8>()), 1..6)) {
        let (source, _, _) = sample();
        let mut bytes = encode(&source.local.datagrams().section().save()).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let Ok(saved) = decode(&bytes, &Limits::default()) else { return Ok(()) };
        let Ok(section) = DatagramsSection::restore(saved, (), &mut Entropy::from_test_seed(1)) else { return Ok(()) };
        let Ok(datagrams) = section.into_datagrams(source.local.services()) else { return Ok(()) };
        prop_assert_eq!(encode(&datagrams.section().save()).unwrap(), bytes);
    }
}
