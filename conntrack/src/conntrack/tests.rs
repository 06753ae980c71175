use core::net::IpAddr;
use std::collections::BTreeSet;

use hibernet_snapshot::Snapshot;
use proptest::prelude::*;

use super::*;
use crate::headers::parse;
use crate::nat::{Manip, NatRange};
use crate::table::hash_tuple;

const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const START: Instant = Instant::from_secs(1000);
pub(crate) const CLIENT: &str = "10.0.0.2";
pub(crate) const SERVER: &str = "198.51.100.10";
pub(crate) const PUBLIC: &str = "203.0.113.1";

/// A datagram; its checksums are of no interest here but for the IPv4 header's.
pub(crate) fn datagram(proto: u8, src: &str, dst: &str, l4: &[u8]) -> Vec<u8> {
    let mut bytes = match (src.parse().unwrap(), dst.parse().unwrap()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = (20 + l4.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, proto, 0, 0];
            header.extend(src.octets());
            header.extend(dst.octets());
            let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
            header[10..12].copy_from_slice(&folded.to_be_bytes());
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let length = (l4.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], proto, 64];
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        _ => panic!("one family"),
    };
    bytes.extend(l4);
    bytes
}

pub(crate) fn udp(src: &str, sport: u16, dst: &str, dport: u16) -> Vec<u8> {
    let mut l4 = [sport.to_be_bytes(), dport.to_be_bytes(), [0, 12], [0, 0]].concat();
    l4.extend(*b"data");
    datagram(proto::UDP, src, dst, &l4)
}

pub(crate) fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8, seq: u32, ack: u32) -> Vec<u8> {
    let mut l4 = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    l4.extend(seq.to_be_bytes());
    l4.extend(ack.to_be_bytes());
    l4.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    datagram(proto::TCP, src, dst, &l4)
}

pub(crate) fn conntrack(capacity: u32, seed: u64) -> Conntrack {
    let mut config = Config { capacity, early_drop: EarlyDrop::Off, ..Config::default() };
    config.sysctls.set("nf_conntrack_checksum", "0").unwrap();
    config.sysctls.set("nf_conntrack_acct", "1").unwrap();
    Conntrack::new(config, &mut Entropy::from_test_seed(seed), START).unwrap()
}

fn track(conntrack: &mut Conntrack, datagram: &[u8]) -> Result<Attachment, Refusal> {
    track_at(conntrack, datagram, START)
}

fn track_at(conntrack: &mut Conntrack, datagram: &[u8], now: Instant) -> Result<Attachment, Refusal> {
    conntrack.track(datagram, &parse(datagram).unwrap(), Zone::default(), Origin::Link, now)
}

/// All stations for one forwarded packet, source NAT to `masquerade` where that is given.
fn pass(conntrack: &mut Conntrack, datagram: &[u8], masquerade: Option<&NatRange>, now: Instant) -> Option<Vec<u8>> {
    let mut datagram = datagram.to_vec();
    let mut attachment = track_at(conntrack, &datagram, now).ok()?;
    if let Some(range) = masquerade {
        conntrack.nat_null_bind(&mut attachment, Manip::Destination);
        conntrack.nat_translate(&attachment, Manip::Destination, &mut datagram).unwrap();
        let inside = parse(&datagram).unwrap().src.to_string().starts_with("10.");
        if inside {
            conntrack.nat_bind(&mut attachment, Manip::Source, range)
        }
        conntrack.nat_null_bind(&mut attachment, Manip::Source);
        conntrack.nat_translate(&attachment, Manip::Source, &mut datagram).unwrap();
    }
    conntrack.confirm(&mut attachment, now).ok()?;
    Some(datagram)
}

fn restored(source: &Conntrack, seed: u64, now: Instant) -> Conntrack {
    let entropy = &mut Entropy::from_test_seed(seed);
    Validated::check(source.save(), now, entropy).unwrap().rehash(entropy).unwrap()
}

#[test]
fn a_new_flow_is_nowhere_but_in_its_packet_until_confirm() {
    let mut conntrack = conntrack(10, 1);
    let packet = udp(CLIENT, 1000, SERVER, 53);
    let mut attachment = track(&mut conntrack, &packet).unwrap();
    assert_eq!(attachment.state(), Some(CtState::New));
    assert!(attachment.is_unconfirmed() && conntrack.is_empty());
    let again = track(&mut conntrack, &packet).unwrap();
    assert!(again.is_unconfirmed(), "another packet does not see it");
    conntrack.confirm(&mut attachment, START).unwrap();
    assert_eq!((conntrack.len(), attachment.is_unconfirmed()), (1, false));
    assert_eq!(conntrack.next_event().map(|event| event.kind), Some(EventKind::New));
    assert_eq!(conntrack.next_event(), None);
}

#[test]
fn a_copy_of_a_packet_never_shares_its_new_flow() {
    let mut conntrack = conntrack(10, 1);
    let mut attachment = track(&mut conntrack, &udp(CLIENT, 1000, SERVER, 53)).unwrap();
    let mut copy = attachment.for_duplicate();
    assert_eq!(copy.state(), Some(CtState::Untracked));
    conntrack.confirm(&mut copy, START).unwrap();
    assert!(conntrack.is_empty());
    conntrack.confirm(&mut attachment, START).unwrap();
    assert_eq!(attachment.for_duplicate().handle(), attachment.handle());
}

#[test]
fn two_first_packets_of_one_udp_flow_end_in_one_flow_and_two_syns_in_a_drop() {
    for (packet, joined) in [(udp(CLIENT, 1, SERVER, 2), true), (tcp(CLIENT, 1, SERVER, 2, SYN, 1, 0), false)] {
        let mut conntrack = conntrack(10, 1);
        let mut first = track(&mut conntrack, &packet).unwrap();
        let mut second = track(&mut conntrack, &packet).unwrap();
        conntrack.confirm(&mut first, START).unwrap();
        assert_eq!(conntrack.confirm(&mut second, START), if joined { Ok(()) } else { Err(Refusal::Clash) });
        assert_eq!((conntrack.len(), second.handle().is_some()), (1, joined));
    }
}

#[test]
fn a_full_table_refuses_new_flows_and_lets_known_ones_pass() {
    let mut conntrack = conntrack(2, 1);
    for port in [1, 2] {
        pass(&mut conntrack, &udp(CLIENT, port, SERVER, 53), None, START).unwrap();
    }
    assert_eq!(track(&mut conntrack, &udp(CLIENT, 3, SERVER, 53)).unwrap_err(), Refusal::TableFull);
    assert_eq!(track(&mut conntrack, &udp(SERVER, 53, CLIENT, 2)).unwrap().state(), Some(CtState::Established));
    assert_eq!(conntrack.totals().drop, 1);
}

#[test]
fn a_limit_below_the_capacity_holds_and_nought_means_the_capacity() {
    let mut conntrack = conntrack(3, 1);
    for (limit, fits) in [("1", 1), ("0", 3), ("9", 3)] {
        conntrack.flush(START);
        conntrack.set_sysctl("nf_conntrack_max", limit).unwrap();
        let passed = (1..9).filter(|port| pass(&mut conntrack, &udp(CLIENT, *port, SERVER, 53), None, START).is_some());
        assert_eq!(passed.count(), fits, "limit {limit}");
    }
}

#[test]
fn early_drop_takes_the_oldest_unassured_flow_and_spares_the_assured() {
    let mut conntrack = conntrack(3, 1);
    conntrack.early_drop = EarlyDrop::Lru;
    let shake = [
        tcp(CLIENT, 9, SERVER, 80, SYN, 100, 0),
        tcp(SERVER, 80, CLIENT, 9, SYN | ACK, 500, 101),
        tcp(CLIENT, 9, SERVER, 80, ACK, 101, 501),
    ];
    for packet in &shake {
        pass(&mut conntrack, packet, None, START).unwrap();
    }
    for port in 20..30 {
        pass(&mut conntrack, &udp(CLIENT, port, SERVER, 53), None, START).unwrap();
        let ports: Vec<_> = conntrack.flows().iter().map(|flow| flow.orig.sport).collect();
        let expected: Vec<_> = [9].into_iter().chain((20..=port).rev().take(2).rev()).collect();
        assert_eq!(ports, expected);
    }
    assert_eq!(conntrack.totals().early_drop, 8);
}

#[test]
fn flows_expire_by_the_clock_they_are_told_and_answers_come_too_late() {
    let mut conntrack = conntrack(10, 1);
    for port in [1, 2] {
        pass(&mut conntrack, &udp(CLIENT, port, SERVER, 53), None, START).unwrap();
    }
    let (almost, over) = (Instant::from_millis(1_029_990), Instant::from_millis(1_030_010));
    let answer = track_at(&mut conntrack, &udp(SERVER, 53, CLIENT, 1), almost).unwrap();
    assert_eq!(answer.state(), Some(CtState::Established));
    let late = track_at(&mut conntrack, &udp(SERVER, 53, CLIENT, 2), over).unwrap();
    assert_eq!(late.state(), Some(CtState::New), "the answer opens a flow of its own");
    let ports: Vec<_> = conntrack.flows().iter().map(|flow| flow.orig.sport).collect();
    assert_eq!(ports, [1], "the answered flow lives on");
}

#[test]
fn next_expiry_is_when_something_expires() {
    let mut conntrack = conntrack(10, 1);
    assert_eq!(conntrack.next_expiry(), None);
    pass(&mut conntrack, &udp(CLIENT, 1, SERVER, 53), None, START).unwrap();
    for _ in 0..20 {
        let Some(next) = conntrack.next_expiry() else { break };
        conntrack.expire(next, 100);
    }
    assert!(conntrack.is_empty() && conntrack.next_expiry().is_none());
}

#[test]
fn masquerade_keeps_a_free_port_and_draws_one_for_the_second_client() {
    let mut conntrack = conntrack(10, 1);
    let range = NatRange { masquerade: true, ..NatRange::address(PUBLIC.parse().unwrap()) };
    let first = pass(&mut conntrack, &udp(CLIENT, 4000, SERVER, 53), Some(&range), START).unwrap();
    let second = pass(&mut conntrack, &udp("10.0.0.3", 4000, SERVER, 53), Some(&range), START).unwrap();
    let flows = conntrack.flows();
    assert_eq!((flows[0].reply.dst, flows[0].reply.dport), (PUBLIC.parse().unwrap(), 4000));
    assert!(flows[1].reply.dport >= 1024 && flows[1].reply.dport != 4000);
    assert_eq!(parse(&first).unwrap().src, parse(&second).unwrap().src);
    let back = udp(SERVER, 53, PUBLIC, flows[1].reply.dport);
    let back = pass(&mut conntrack, &back, Some(&range), START).unwrap();
    assert_eq!(back[16..20], [10, 0, 0, 3]);
    assert_eq!(back[22..24], 4000_u16.to_be_bytes());
    conntrack.address_removed(PUBLIC.parse().unwrap(), START);
    assert!(conntrack.is_empty(), "masquerade goes with its address");
}

#[test]
fn a_fully_random_port_differs_between_keys_and_is_replayed_from_a_record() {
    let range = NatRange { fully_random: true, ..NatRange::address(PUBLIC.parse().unwrap()) };
    let run = |seed, tape: Option<&[u64]>| {
        let mut conntrack = conntrack(100, seed);
        match tape {
            Some(tape) => conntrack.port_choices().play(tape),
            None => conntrack.port_choices().record(),
        }
        for port in 1..50 {
            pass(&mut conntrack, &udp(CLIENT, 2000 + port, SERVER, 53), Some(&range), START).unwrap();
        }
        conntrack
    };
    let mut first = run(1, None);
    let ports: BTreeSet<_> = first.flows().iter().map(|flow| flow.reply.dport).collect();
    let others: BTreeSet<_> = run(2, None).flows().iter().map(|flow| flow.reply.dport).collect();
    assert!(ports.intersection(&others).count() < 5);
    let tape = first.port_choices().recorded().to_vec();
    assert_eq!(run(2, Some(&tape)).save(), first.save(), "an image is a function of what the wire shows");
}

#[test]
fn a_random_port_is_drawn_even_where_the_own_one_is_free() {
    let range = NatRange { random: true, ..NatRange::address(PUBLIC.parse().unwrap()) };
    let mut conntrack = conntrack(100, 1);
    for port in 2000..2050 {
        pass(&mut conntrack, &udp(CLIENT, port, SERVER, 53), Some(&range), START).unwrap();
    }
    let kept = conntrack.flows().iter().filter(|flow| flow.orig.sport == flow.reply.dport).count();
    assert!(kept < 5, "{kept} of 50 kept their port");
}

#[test]
fn an_exhausted_range_drops_the_packet_at_confirm() {
    let mut conntrack = conntrack(10, 1);
    let range = NatRange { ports: Some((5000, 5001)), ..NatRange::address(PUBLIC.parse().unwrap()) };
    let passed = (1..5).filter(|host| {
        let packet = udp(&format!("10.0.1.{host}"), 4000, SERVER, 53);
        pass(&mut conntrack, &packet, Some(&range), START).is_some()
    });
    assert_eq!(passed.count(), 2);
    assert_eq!(conntrack.totals().insert_failed, 2);
}

#[test]
fn the_original_destination_of_a_redirected_flow_can_be_asked() {
    let mut conntrack = conntrack(10, 1);
    let mut packet = udp(CLIENT, 4000, SERVER, 53);
    let mut attachment = track(&mut conntrack, &packet).unwrap();
    let range = NatRange { ports: Some((5353, 5353)), ..NatRange::address("10.0.0.1".parse().unwrap()) };
    conntrack.nat_bind(&mut attachment, Manip::Destination, &range);
    assert_eq!(conntrack.nat_translate(&attachment, Manip::Destination, &mut packet), Ok(true));
    conntrack.confirm(&mut attachment, START).unwrap();
    let seen = crate::headers::tuple_of(&parse(&packet).unwrap(), &packet).unwrap();
    assert_eq!(seen.dport, 5353);
    assert_eq!(conntrack.original_destination(&seen, Zone::default()), Some((SERVER.parse().unwrap(), 53)));
}

#[test]
fn an_error_the_router_makes_about_a_new_flow_gets_its_binding_and_not_the_flow() {
    let mut conntrack = conntrack(10, 1);
    let mut packet = udp(CLIENT, 4000, PUBLIC, 8080);
    let mut attachment = track(&mut conntrack, &packet).unwrap();
    let range = NatRange { ports: Some((80, 80)), ..NatRange::address("10.0.0.5".parse().unwrap()) };
    conntrack.nat_bind(&mut attachment, Manip::Destination, &range);
    conntrack.nat_translate(&attachment, Manip::Destination, &mut packet).unwrap();
    let mut related = attachment.related_reply();
    assert_eq!((related.state(), related.direction()), (Some(CtState::Related), Some(Direction::Reply)));
    let mut reset = udp("10.0.0.5", 80, CLIENT, 4000);
    assert_eq!(conntrack.nat_translate(&related, Manip::Source, &mut reset), Ok(true));
    assert_eq!(parse(&reset).unwrap().src.to_string(), PUBLIC);
    conntrack.confirm(&mut related, START).unwrap();
    assert!(conntrack.is_empty());
}

#[test]
fn an_error_that_quotes_a_translated_packet_finds_its_flow_by_the_answer() {
    let range = NatRange { masquerade: true, ..NatRange::address(PUBLIC.parse().unwrap()) };
    let echo = datagram(proto::ICMP, CLIENT, SERVER, &[8, 0, 0, 0, 0, 7, 0, 1]);
    for packet in [udp(CLIENT, 1000, SERVER, 53), echo] {
        let mut conntrack = conntrack(10, 1);
        let left = pass(&mut conntrack, &packet, Some(&range), START).unwrap();
        let about =
            |quoted: &[u8], to| datagram(proto::ICMP, "192.0.2.1", to, &[&[3, 1, 0, 0, 0, 0, 0, 0], quoted].concat());
        let error = track(&mut conntrack, &about(&left, PUBLIC)).unwrap();
        assert_eq!((error.state(), error.direction()), (Some(CtState::Related), Some(Direction::Reply)));
        let untranslated = track(&mut conntrack, &about(&packet, CLIENT)).unwrap();
        assert_eq!(untranslated.state(), Some(CtState::Invalid), "nobody outside has seen that packet");
    }
}

#[test]
fn a_flow_that_the_router_resets_is_closed_and_says_so_once() {
    let mut conntrack = conntrack(10, 1);
    conntrack.set_sysctl("nf_conntrack_tcp_timeout_close", "7").unwrap();
    let syn = tcp(CLIENT, 1000, SERVER, 80, SYN, 1, 0);
    let unconfirmed = track(&mut conntrack, &syn).unwrap();
    conntrack.set_closing(&unconfirmed, START);
    assert!(conntrack.is_empty());
    pass(&mut conntrack, &syn, None, START).unwrap();
    assert_eq!(conntrack.next_event().map(|event| event.kind), Some(EventKind::New));
    let rejected = track(&mut conntrack, &syn).unwrap();
    for _ in 0..2 {
        conntrack.set_closing(&rejected, START);
    }
    let flow = conntrack.flows().remove(0);
    assert!(flow.to_string().starts_with("tcp      6 7 CLOSE "), "{flow}");
    assert_eq!(conntrack.next_event().map(|event| event.kind), Some(EventKind::Update));
    assert_eq!(conntrack.next_event(), None);
}

#[test]
fn bad_fins_of_both_sides_shorten_a_flow_and_never_lengthen_it() {
    for (established, seconds) in [("1000", 300), ("200", 200)] {
        let mut conntrack = conntrack(10, 1);
        conntrack.set_sysctl("nf_conntrack_tcp_timeout_established", established).unwrap();
        let from_client = |flags, seq, ack| tcp(CLIENT, 1000, SERVER, 80, flags, seq, ack);
        let from_server = |flags, seq, ack| tcp(SERVER, 80, CLIENT, 1000, flags, seq, ack);
        for packet in [from_client(SYN, 1, 0), from_server(SYN | ACK, 7, 2), from_client(ACK, 2, 8)] {
            pass(&mut conntrack, &packet, None, START).unwrap();
        }
        for packet in [from_client(FIN | ACK, 2, 90_000), from_server(FIN | ACK, 8, 90_000)] {
            assert_eq!(track(&mut conntrack, &packet).unwrap().state(), Some(CtState::Invalid));
        }
        assert_eq!(conntrack.flows()[0].remaining.as_secs(), seconds);
    }
}

#[test]
fn marks_are_kept_in_the_flow_and_seen_by_its_answers() {
    let mut conntrack = conntrack(10, 1);
    let mut attachment = track(&mut conntrack, &udp(CLIENT, 1, SERVER, 53)).unwrap();
    conntrack.set_mark(&mut attachment, 7);
    conntrack.confirm(&mut attachment, START).unwrap();
    let mut answer = track(&mut conntrack, &udp(SERVER, 53, CLIENT, 1)).unwrap();
    assert_eq!(conntrack.mark(&answer), 7);
    conntrack.set_mark(&mut answer, 8);
    assert_eq!(conntrack.flows()[0].mark, 8);
}

#[test]
fn the_canary_scan_finds_what_is_planted_and_nothing_in_an_image() {
    let mut conntrack = conntrack(200, 1);
    for port in 1..100 {
        pass(&mut conntrack, &udp(CLIENT, port, SERVER, 53), None, START).unwrap();
    }
    let mut scan = CanaryScan::default();
    conntrack.watch(&mut scan);
    let mut image = hibernet_snapshot::codec::encode(&conntrack.save()).unwrap();
    let clean = scan.search(&image);
    // Two keys of nine windows and the generator's seed of twenty-five, in both byte orders.
    assert_eq!((clean.hits, clean.key_windows, clean.hashes), (vec![], 36 + 50, 2 * 99));
    let hash = hash_tuple(conntrack.table.key(), &conntrack.flows()[7].orig);
    image[100..108].copy_from_slice(&hash.to_be_bytes());
    assert_eq!(scan.search(&image).hits, [("tuple hash", 100)]);
    assert_eq!(scan.planted(&image, &mut Entropy::from_test_seed(1)), 36 + 50);
    assert_eq!(scan.fingerprints().len(), 3);
}

#[test]
fn one_flow_prints_as_conntrack_lists_it() {
    let mut conntrack = conntrack(10, 1);
    pass(&mut conntrack, &tcp(CLIENT, 9, SERVER, 80, SYN, 100, 0), None, START).unwrap();
    insta::assert_snapshot!(conntrack.flows()[0].to_string(), @"tcp      6 120 SYN_SENT src=10.0.0.2 dst=198.51.100.10 sport=9 dport=80 packets=1 bytes=40 [UNREPLIED] src=198.51.100.10 dst=10.0.0.2 sport=80 dport=9 packets=0 bytes=0 mark=0 use=1");
}

#[test]
fn the_saved_layout_is_the_one_that_was_reviewed() {
    insta::assert_snapshot!(Conntrack::SCHEMA.text());
}

impl Conntrack {
    /// Flows whose time has come but which nothing has collected.
    fn over(&self) -> Vec<Handle> {
        let flows = self.table.flows();
        let over = flows.in_creation_order().into_iter().filter(|slot| flows.is_expired(*slot));
        over.filter_map(|slot| flows.handle(slot)).collect()
    }
}

/// Packets of a few hosts and ports, so that flows meet.
pub(crate) fn packets() -> impl Strategy<Value = Vec<(Vec<u8>, u16)>> {
    let packet = (0u8..4, 0u8..3, 1u16..9, any::<bool>(), any::<bool>(), 0u32..3, any::<[u8; 2]>()).prop_map(
        |(host, kind, port, back, v6, step, noise)| {
            let (inside, outside) = if v6 {
                (format!("fd00::{host}"), "2001:db8::9".into())
            } else {
                (format!("10.0.0.{host}"), SERVER.to_owned())
            };
            let (src, dst) = if back { (outside, inside) } else { (inside, outside) };
            let (sport, dport) = if back { (53, 4000 + port) } else { (4000 + port, 53) };
            match kind {
                0 => udp(&src, sport, &dst, dport),
                1 => {
                    let flags = [SYN, SYN | ACK, ACK, ACK | 1, 4, ACK | 8][usize::from(noise[0] % 6)];
                    tcp(&src, sport, &dst, dport, flags, 1000 + step, 1000 + step)
                }
                _ => datagram(47, &src, &dst, &[noise.as_slice(), &[0; 6]].concat()),
            }
        },
    );
    prop::collection::vec((packet, 0u16..40_000), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// DESIGN tests P and W: with equal wire choices, events, flows and images do not depend on any key, at any moment,
    /// through reseeds and a restore; and a restored table goes on as its source does.
    #[test]
    fn keys_change_nothing_that_can_be_seen(before in packets(), after in packets()) {
        let range = NatRange::address(PUBLIC.parse().unwrap());
        let mut first = conntrack(24, 1);
        first.early_drop = EarlyDrop::Lru;
        first.port_choices().record();
        let mut now = START;
        for (packet, wait) in &before {
            now = now.saturating_add(core::time::Duration::from_millis(u64::from(*wait)));
            first.expire(now, usize::MAX);
            pass(&mut first, packet, Some(&range), now);
        }
        let tape = first.port_choices().recorded().to_vec();

        let mut second = conntrack(24, 2);
        second.early_drop = EarlyDrop::Lru;
        second.port_choices().play(&tape);
        let mut now = START;
        for (number, (packet, wait)) in before.iter().enumerate() {
            now = now.saturating_add(core::time::Duration::from_millis(u64::from(*wait)));
            second.expire(now, usize::MAX);
            pass(&mut second, packet, Some(&range), now);
            if number % 7 == 0 { second.reseed() }
        }
        prop_assert_eq!(first.save(), second.save());
        while let Some(event) = first.next_event() {
            prop_assert_eq!(second.next_event(), Some(event));
        }
        prop_assert_eq!(second.next_event(), None);

        // What is over but not collected is not saved; the source forgets it now, too.
        for handle in first.over() {
            first.delete(handle, now);
        }
        let mut copy = restored(&first, 3, now);
        prop_assert_eq!(copy.save(), first.save());
        let tape: Vec<u64> = (0..10_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        first.port_choices().play(&tape);
        copy.port_choices().play(&tape);
        for (packet, wait) in &after {
            now = now.saturating_add(core::time::Duration::from_millis(u64::from(*wait)));
            let frames = [&mut first, &mut copy].map(|conntrack| {
                conntrack.expire(now, usize::MAX);
                pass(conntrack, packet, Some(&range), now)
            });
            prop_assert_eq!(&frames[0], &frames[1]);
            prop_assert_eq!(first.flows(), copy.flows());
        }
        prop_assert_eq!(first.save(), copy.save());
    }
}

#[test]
fn a_flow_is_counted_if_its_first_packet_was() {
    let mut conntrack = conntrack(4, 1);
    for (acct, port) in [("1", 1), ("0", 2)] {
        conntrack.set_sysctl("nf_conntrack_acct", acct).unwrap();
        pass(&mut conntrack, &udp(CLIENT, port, SERVER, 53), None, START);
    }
    for acct in ["0", "1"] {
        conntrack.set_sysctl("nf_conntrack_acct", acct).unwrap();
        for port in [1, 2] {
            pass(&mut conntrack, &udp(SERVER, 53, CLIENT, port), None, START);
        }
    }
    let counters: Vec<_> =
        conntrack.flows().iter().map(|flow| (flow.counters.packets, flow.counters.are_kept())).collect();
    assert_eq!(counters, [([1, 2], true), ([0, 0], false)]);
    let lines: Vec<_> = conntrack.flows().iter().map(ToString::to_string).collect();
    assert!(lines[0].contains("packets=2") && !lines[1].contains("packets"), "{lines:?}");
}

#[test]
fn the_second_packet_between_equal_ends_is_the_answer_to_the_first() {
    for (src, dst) in [(CLIENT, CLIENT), ("fd00::2", "fd00::2")] {
        let mut conntrack = conntrack(4, 1);
        pass(&mut conntrack, &udp(src, 7, dst, 7), None, START);
        let second = track(&mut conntrack, &udp(src, 7, dst, 7)).unwrap();
        assert_eq!((second.state(), second.direction()), (Some(CtState::Established), Some(Direction::Reply)));
    }
}

/// A masqueraded connection and its image, with the flow severed for whom `tell` says.
fn severed(tell: [bool; 2]) -> Validated {
    let mut source = conntrack(16, 1);
    let public = "203.0.113.1".parse().unwrap();
    let range = NatRange { addrs: Some((public, public)), masquerade: true, ..NatRange::default() };
    pass(&mut source, &tcp("10.0.0.2", 1000, "198.51.100.10", 80, 2, 5, 0), Some(&range), Instant::ZERO).unwrap();
    let mut entropy = Entropy::from_test_seed(2);
    let mut validated = Validated::check(source.save(), Instant::ZERO, &mut entropy).unwrap();
    validated.sever(|_, _| Some(Ending { tell }));
    validated
}

#[test]
fn a_severed_flow_refuses_its_packets_alike_in_one_table_and_in_shards() {
    let late = |seq| tcp("10.0.0.2", 1000, "198.51.100.10", 80, 0x10, seq, 9);
    let answer = tcp("198.51.100.10", 80, "203.0.113.1", 1000, 0x10, 9, 6);
    for (tell, inside) in [([true, false], Refusal::Reset), ([false; 2], Refusal::Severed)] {
        let mut entropy = Entropy::from_test_seed(3);
        let mut table = severed(tell).rehash(&mut entropy).unwrap();
        let shards = severed(tell).rehash_shared(crate::Shards::new(4).unwrap(), &mut entropy).unwrap();
        for (datagram, refusal) in [(late(6), inside), (answer.clone(), Refusal::Severed)] {
            assert_eq!(track_at(&mut table, &datagram, Instant::ZERO).unwrap_err(), refusal);
            let parsed = parse(&datagram).unwrap();
            let refused = shards.track(&datagram, &parsed, Zone::default(), Origin::Link, Instant::ZERO);
            assert_eq!(refused.unwrap_err(), refusal);
        }
        assert!(table.flows()[0].to_string().contains("[SEVERED]"));
    }
}

#[test]
fn no_new_flow_gets_the_outside_port_of_a_severed_one() {
    let mut table = severed([true, false]).rehash(&mut Entropy::from_test_seed(3)).unwrap();
    let public = "203.0.113.1".parse().unwrap();
    let range = NatRange { addrs: Some((public, public)), masquerade: true, ..NatRange::default() };
    let syn = tcp("10.0.0.3", 1000, "198.51.100.10", 80, 2, 5, 0);
    let sent = pass(&mut table, &syn, Some(&range), Instant::ZERO).unwrap();
    assert_ne!(&sent[20..22], 1000_u16.to_be_bytes(), "the other copy's peer knows that port");
}

#[test]
fn an_image_in_which_somebody_is_told_of_a_flow_that_goes_on_is_refused() {
    let mut table = severed([true, true]).rehash(&mut Entropy::from_test_seed(3)).unwrap();
    let again = restored(&table, 4, Instant::ZERO);
    assert_eq!(again.flows(), table.flows(), "what is severed stays so");
    let slot = table.table.flows().in_creation_order()[0];
    for status in [Status::TELL_ORIGINAL, Status::SEVERED] {
        let core = table.table.flows_mut().core_mut(slot).unwrap();
        core.set_status(core.status().difference(Status::SEVERED | Status::TOLD | Status::ASSURED) | status);
        let error = Validated::check(table.save(), Instant::ZERO, &mut Entropy::from_test_seed(5)).unwrap_err();
        assert!(error.to_string().contains("severed flows assured, and nobody told of others"), "{error}");
    }
}
