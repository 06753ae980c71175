use std::collections::VecDeque;

use hibernet_conntrack::{CtState, parse};
use smoltcp::phy::{Checksum, Medium, RxToken as _, TxToken as _};

use super::*;
use crate::StackEvent;
use crate::test_packets::{icmp_echo, tcp, text, udp};

const NOW: Clock = Clock::ZERO;
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A device with frames to be received, and room for so many to be sent.
#[derive(Debug)]
struct Wire {
    medium: Medium,
    mtu: usize,
    checksum: Checksum,
    to_receive: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    room: usize,
}

impl Wire {
    fn new(medium: Medium) -> Self {
        let mtu = if medium == Medium::Ip { 1500 } else { 1514 };
        Self { medium, mtu, checksum: Checksum::Both, to_receive: VecDeque::new(), sent: Vec::new(), room: usize::MAX }
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Room<'a>(&'a mut Vec<Vec<u8>>, &'a mut usize);

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push(frame);
        *self.1 -= 1;
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Clock) -> Option<(Received, Room<'_>)> {
        let frame = self.to_receive.pop_front()?;
        Some((Received(frame), Room(&mut self.sent, &mut self.room)))
    }

    fn transmit(&mut self, _: Clock) -> Option<Room<'_>> {
        (self.room > 0).then_some(Room(&mut self.sent, &mut self.room))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = self.medium;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.ipv4 = self.checksum;
        capabilities.checksum.tcp = self.checksum;
        capabilities.checksum.udp = self.checksum;
        capabilities.checksum.icmpv4 = self.checksum;
        capabilities.checksum.icmpv6 = self.checksum;
        capabilities
    }
}

fn hooked_around(wire: Wire, rules: &str) -> HookedDevice<Wire> {
    let rules = if rules.is_empty() { Ruleset::open() } else { Ruleset::from_json(rules).unwrap() };
    let mut config = HookedConfig { rules, ..HookedConfig::default() };
    config.conntrack.capacity = 64;
    config.conntrack.sysctls.set("nf_conntrack_max", "64").unwrap();
    config.conntrack.sysctls.set("nf_conntrack_tcp_loose", "0").unwrap();
    HookedDevice::new(wire, config, Entropy::from_test_seed(1), Instant::ZERO).unwrap()
}

fn hooked(rules: &str) -> HookedDevice<Wire> {
    hooked_around(Wire::new(Medium::Ip), rules)
}

impl HookedDevice<Wire> {
    /// What the program receives of a frame on the wire.
    fn hears(&mut self, frame: Vec<u8>) -> Option<Vec<u8>> {
        self.device.to_receive.push_back(frame);
        self.receive(NOW).map(|(received, _)| received.consume(<[u8]>::to_vec))
    }

    /// The program sends a frame; what is on the wire then.
    fn says(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let token = self.transmit(NOW).unwrap();
        token.consume(frame.len(), |buffer| buffer.copy_from_slice(frame));
        core::mem::take(&mut self.device.sent)
    }

    fn drops(&mut self) -> Vec<DropReason> {
        core::iter::from_fn(|| self.stack.next_event())
            .filter_map(|event| match event {
                StackEvent::Drop(drop) => Some(drop.reason),
                _ => None,
            })
            .collect()
    }
}

/// The same in IPv4 and IPv6: a peer's and the host's end.
const ENDS: [(&str, &str); 2] = [("10.0.0.2:1000", "10.0.0.1:80"), ("[fd00::2]:1000", "[fd00::1]:80")];

fn on_ethernet(destination: [u8; 6], source: [u8; 6], datagram: &[u8]) -> Vec<u8> {
    let kind = if datagram[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    FrameHeader::Ethernet { destination, source, kind }.before(datagram)
}

#[test]
fn what_input_accepts_reaches_the_program_and_what_it_drops_does_not() {
    for (peer, host) in ENDS {
        let mut device = hooked(r#"[{"chain": "input", "match": {"dport": 81}, "action": "drop"}]"#);
        let good = udp(peer, host, b"x");
        assert_eq!(device.hears(good.clone()), Some(good));
        let bad = udp(peer, &host.replace(":80", ":81"), b"x");
        assert_eq!(device.hears(bad), None);
        assert_eq!(device.drops(), [DropReason::Rule]);
        assert_eq!((device.hooks().stats().received, device.hooks().stats().delivered), (2, 1));
    }
}

#[test]
fn a_dropped_frame_does_not_hide_the_one_behind_it() {
    let mut device = hooked(r#"[{"chain": "input", "match": {"dport": 81}, "action": "drop"}]"#);
    device.device.to_receive.push_back(udp("10.0.0.2:1", "10.0.0.1:81", b"x"));
    let good = udp("10.0.0.2:1", "10.0.0.1:80", b"x");
    assert_eq!(device.hears(good.clone()), Some(good));
}

#[test]
fn what_the_program_sends_is_tracked_and_its_answers_are_known() {
    let rules = r#"{"policy": {"input": "drop"}, "rules": [
        {"chain": "input", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
        {"chain": "output", "match": {"dport": 25}, "action": "drop"}]}"#;
    for (peer, host) in ENDS {
        let mut device = hooked(rules);
        let answer = udp(peer, host, b"answer");
        assert_eq!(device.hears(answer.clone()), None);
        let asked = udp(host, peer, b"question");
        assert_eq!(device.says(&asked), core::slice::from_ref(&asked));
        assert_eq!(device.hears(answer.clone()), Some(answer));
        assert_eq!(device.flows(Instant::ZERO).len(), 1);
        assert_eq!(device.says(&udp(host, &peer.replace(":1000", ":25"), b"spam")), [[0; 0]; 0]);
        assert_eq!(device.drops(), [DropReason::Policy, DropReason::Rule]);
    }
}

#[test]
fn a_rejected_packet_is_answered_to_whom_it_came_from() {
    let rules = r#"[{"chain": "input", "match": {"proto": "tcp", "dport": 80, "tcpflags_syn_only": true}, "action": "reject-tcp"},
        {"chain": "output", "match": {"dport": 25}, "action": "reject-tcp"},
        {"chain": "output", "match": {"dport": 26}, "action": "reject"}]"#;
    for (peer, host) in ENDS {
        for medium in [Medium::Ip, Medium::Ethernet] {
            let mut device = hooked_around(Wire::new(medium), rules);
            let framed = |destination, source, datagram: &[u8]| {
                if medium == Medium::Ip { datagram.to_vec() } else { on_ethernet(destination, source, datagram) }
            };
            let header = if medium == Medium::Ip { 0 } else { 14 };
            assert_eq!(device.hears(framed(HOST, PEER, &tcp(peer, host, "S", 1, 0, b""))), None);
            let reset = device.device.sent.pop().unwrap();
            assert_eq!(reset[..header], framed(PEER, HOST, &reset[header..])[..header]);
            assert_eq!(text(&reset[header..]), format!("tcp {host} > {peer} AR ttl=64"));
            // The program is told too.
            let smtp = peer.replace(":1000", ":25");
            assert_eq!(device.says(&framed(PEER, HOST, &tcp(host, &smtp, "S", 1, 0, b""))), [[0; 0]; 0]);
            let (reset, _) = device.receive(NOW).unwrap();
            let reset = reset.consume(<[u8]>::to_vec);
            assert_eq!(reset[..header], framed(HOST, PEER, &reset[header..])[..header]);
            assert_eq!(text(&reset[header..]), format!("tcp {smtp} > {host} AR ttl=64"));
            assert!(device.says(&framed(PEER, HOST, &udp(host, &peer.replace(":1000", ":26"), b"x"))).is_empty());
            let (told, _) = device.receive(NOW).unwrap();
            let told = told.consume(<[u8]>::to_vec);
            assert!(text(&told[header..]).contains(" about ("), "{}", text(&told[header..]));
            assert!(device.receive(NOW).is_none());
        }
    }
}

#[test]
fn translations_of_ports_are_made_and_undone() {
    let rules = r#"[{"chain": "dstnat", "match": {"proto": "tcp", "dport": 80}, "action": {"redirect": 8080}},
        {"chain": "srcnat", "match": {"proto": "udp"}, "action": {"masquerade": "5000-5000"}}]"#;
    for (peer, host) in ENDS {
        let mut device = hooked(rules);
        let inside = host.replace(":80", ":8080");
        let heard = device.hears(tcp(peer, host, "S", 1, 0, b"")).unwrap();
        assert_eq!(text(&heard), format!("tcp {peer} > {inside} S ttl=64"));
        let said = device.says(&tcp(&inside, peer, "SA", 1, 2, b""));
        assert_eq!(text(&said[0]), format!("tcp {host} > {peer} SA ttl=64"));

        let outside = host.replace(":80", ":5000");
        let said = device.says(&udp(host, peer, b"x"));
        assert_eq!(text(&said[0]), format!("udp {outside} > {peer} len=1 ttl=64"));
        let heard = device.hears(udp(peer, &outside, b"yy")).unwrap();
        assert_eq!(text(&heard), format!("udp {peer} > {host} len=2 ttl=64"));
    }
}

#[test]
fn arp_and_neighbour_discovery_pass_by_even_closed_hooks_and_other_frames_end() {
    let mut device =
        hooked_around(Wire::new(Medium::Ethernet), r#"{"policy": {"input": "drop", "output": "drop"}, "rules": []}"#);
    let arp = [&HOST[..], &PEER, &[8, 6], &[0; 28]].concat();
    assert_eq!(device.hears(arp.clone()), Some(arp.clone()));
    assert_eq!(device.says(&arp), [arp]);
    let mut solicitation = icmp_echo("fd00::2", "fd00::1", 0, 0);
    solicitation[40] = 135;
    solicitation[7] = 255;
    let frame = on_ethernet(HOST, PEER, &solicitation);
    assert_eq!(device.hears(frame.clone()), Some(frame.clone()));
    assert_eq!(device.says(&frame), [frame]);
    // From beyond the link: not neighbour discovery, and not accepted.
    solicitation[7] = 254;
    assert_eq!(device.hears(on_ethernet(HOST, PEER, &solicitation)), None);
    assert_eq!(device.hears(on_ethernet(HOST, PEER, &icmp_echo("fd00::2", "fd00::1", 0, 0))), None);
    let vlan = [&HOST[..], &PEER, &[0x81, 0, 0, 1, 8, 0], &udp("10.0.0.2:1", "10.0.0.1:2", b"x")[..]].concat();
    assert_eq!(device.hears(vlan), None);
    assert_eq!(device.hears(vec![1, 2, 3]), None);
    assert_eq!(device.hears(Vec::new()), None);
    assert_eq!(device.says(&[0; 14]), [[0; 0]; 0]);
    let (policy, not_ip) = (DropReason::Policy, DropReason::NotIp);
    assert_eq!(device.drops()[..], [policy, policy, not_ip, not_ip, not_ip, not_ip]);
    assert!(device.hooks().flows(Instant::ZERO).is_empty());
}

#[test]
fn frames_keep_their_ethernet_header_and_lose_their_padding() {
    for (peer, host) in ENDS {
        let mut device = hooked_around(Wire::new(Medium::Ethernet), "");
        let frame = on_ethernet(HOST, PEER, &udp(peer, host, b"x"));
        let padded = [&frame[..], &[0; 20]].concat();
        assert_eq!(device.hears(padded), Some(frame));
        let frame = on_ethernet(PEER, HOST, &udp(host, peer, b"x"));
        assert_eq!(device.says(&frame), [frame]);
    }
}

#[test]
fn checksums_that_the_device_leaves_to_its_hardware_are_made_right_before_the_hooks_look() {
    for (peer, host) in ENDS {
        for datagram in [udp(peer, host, b"x"), tcp(peer, host, "S", 1, 0, b"")] {
            let mut damaged = datagram.clone();
            let at = parse(&datagram).unwrap().header_len + if datagram.len() % 20 == 0 { 16 } else { 6 };
            damaged[at] ^= 0xff;
            if damaged[0] >> 4 == 4 {
                damaged[10] ^= 0xff;
            }
            let mut offloading = Wire::new(Medium::Ip);
            offloading.checksum = Checksum::Tx;
            let mut device = hooked_around(offloading, "");
            assert!(device.capabilities().checksum.tcp.tx() && device.capabilities().checksum.tcp.rx());
            assert_eq!(device.hears(damaged.clone()).as_ref(), Some(&datagram), "{}", text(&datagram));
            assert_eq!(device.flows(Instant::ZERO).len(), 1);
        }
    }
}

#[test]
fn a_full_device_looks_full_and_gets_what_waits_when_it_has_room() {
    let mut device = hooked(r#"[{"chain": "input", "match": {"dport": 81}, "action": "reject"}]"#);
    device.device.room = 0;
    assert!(device.transmit(NOW).is_none());
    let heard = device.hears(udp("10.0.0.2:1", "10.0.0.1:81", b"x"));
    assert_eq!(heard, None);
    assert!(device.device.sent.is_empty());
    device.device.room = 2;
    assert!(device.transmit(NOW).is_some());
    assert_eq!(device.device.sent.len(), 1, "the ICMP error was sent first");
    device.device.room = 0;
    assert!(device.transmit(NOW).is_none());
}

#[test]
fn fragments_are_put_together_before_the_program_sees_them() {
    let whole = udp("10.0.0.2:1", "10.0.0.1:80", &[7; 64]);
    let piece = |from: usize, to: usize, more: bool| {
        let mut piece = [&whole[..20], &whole[20 + from..20 + to]].concat();
        let len = u16::try_from(piece.len()).unwrap();
        piece[2..4].copy_from_slice(&len.to_be_bytes());
        piece[4..6].copy_from_slice(&[0, 9]);
        let field = u16::try_from(from / 8).unwrap() | if more { 0x2000 } else { 0 };
        piece[6..8].copy_from_slice(&field.to_be_bytes());
        crate::test_packets::fill_header_checksum(&mut piece);
        piece
    };
    let mut device = hooked("");
    assert_eq!(device.hears(piece(0, 32, true)), None);
    let heard = device.hears(piece(32, 72, false)).unwrap();
    assert_eq!(text(&heard), "udp 10.0.0.2:1 > 10.0.0.1:80 len=64 ttl=64");
}

const CLOSED: &str = r#"{"policy": {"input": "drop"}, "rules": [
    {"chain": "input", "match": {"ctstate": ["established"]}, "action": "accept"},
    {"chain": "input", "match": {"proto": "tcp", "tcpflags_syn_only": true}, "action": "accept"}]}"#;

/// A device with an established connection.
fn connected(peer: &str, host: &str) -> HookedDevice<Wire> {
    let mut device = hooked(CLOSED);
    assert!(device.hears(tcp(peer, host, "S", 100, 0, b"")).is_some());
    assert_eq!(device.says(&tcp(host, peer, "SA", 500, 101, b"")).len(), 1);
    assert!(device.hears(tcp(peer, host, "A", 101, 501, b"")).is_some());
    device
}

#[test]
fn a_restored_device_knows_the_connections_and_a_new_one_does_not() {
    for (peer, host) in ENDS.into_iter().chain([("127.0.0.2:1000", "127.0.0.1:80")]) {
        let device = connected(peer, host);
        let image = device.save(GenerationId([1; 16]), Instant::ZERO).unwrap();
        let flows = device.flows(Instant::ZERO);
        let (mut heir, report) = HookedDevice::restore(
            Wire::new(Medium::Ip),
            &image,
            QueueLimits::default(),
            Entropy::from_test_seed(2),
            Instant::ZERO,
        )
        .unwrap();
        assert_eq!((report.kept, report.reset, report.dropped), (1, 0, 0));
        assert_eq!(heir.flows(Instant::ZERO), flows);
        assert_eq!(heir.save(GenerationId([1; 16]), Instant::ZERO).unwrap(), image);
        assert!(heir.device.sent.is_empty(), "nobody is reset");
        let next = tcp(peer, host, "PA", 101, 501, b"more");
        assert_eq!(heir.hears(next.clone()), Some(next.clone()));
        assert_eq!(hooked(CLOSED).hears(next), None);
        let keys = [device.hooks().key_fingerprints(), heir.hooks().key_fingerprints()];
        assert!(keys[0].iter().all(|key| !keys[1].contains(key)));
        assert_eq!(device.hooks().canary_scan(&image).hits, []);
    }
}

#[test]
fn what_is_no_device_or_no_image_of_one_is_refused() {
    let mut small = Wire::new(Medium::Ip);
    small.mtu = 1279;
    let new = |wire| HookedDevice::new(wire, HookedConfig::default(), Entropy::from_test_seed(1), Instant::ZERO);
    assert_eq!(new(small).unwrap_err().to_string(), "link 0: mtu: found 1279, expected 1280 to 65535");
    let mut huge = Wire::new(Medium::Ethernet);
    huge.mtu = usize::MAX;
    assert!(new(huge).is_ok(), "IP's datagrams are not longer for it");

    let restore = |image: &[u8]| {
        let queues = QueueLimits::default();
        HookedDevice::restore(Wire::new(Medium::Ip), image, queues, Entropy::from_test_seed(2), Instant::ZERO)
    };
    let gateway = crate::test_stack::stack("").save(GenerationId([1; 16]), Instant::ZERO).unwrap();
    let refused = restore(&gateway).unwrap_err();
    assert_eq!(refused, HookedError::AnotherKind { found: "another number of links" });
    assert!(matches!(restore(b"no image"), Err(HookedError::Restore(_))));
}

#[test]
fn an_accepted_frame_carries_its_tracking_state_no_further_than_input() {
    let mut device = hooked(r#"[{"chain": "input", "action": {"log": "seen"}}]"#);
    device.hears(udp("10.0.0.2:1", "10.0.0.1:80", b"x")).unwrap();
    let logged = core::iter::from_fn(|| device.hooks_mut().next_event()).find_map(|event| match event {
        StackEvent::Log(log) => Some((log.state, log.iif.map(|link| link.index()))),
        _ => None,
    });
    assert_eq!(logged, Some((Some(CtState::New), Some(1))));
}

proptest::proptest! {
    #[test]
    fn no_frame_from_either_side_makes_the_hooks_panic(
        frames in proptest::collection::vec((proptest::bool::ANY, proptest::collection::vec(proptest::num::u8::ANY, 0..80)), 0..30),
        ethernet in proptest::bool::ANY,
    ) {
        let medium = if ethernet { Medium::Ethernet } else { Medium::Ip };
        let rules = r#"[{"chain": "input", "match": {"proto": "udp"}, "action": "reject"},
            {"chain": "output", "action": "reject"}, {"chain": "srcnat", "action": "masquerade"}]"#;
        let mut device = hooked_around(Wire::new(medium), rules);
        for (inwards, tail) in frames {
            let datagram = [&udp("10.0.0.2:1", "10.0.0.1:80", b"x")[..20], &tail].concat();
            for frame in [on_ethernet(HOST, PEER, &datagram), datagram, tail] {
                if inwards {
                    device.hears(frame);
                } else {
                    device.says(&frame);
                }
            }
        }
    }
}
