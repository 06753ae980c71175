use hibernet_snapshot::{Entropy, Instant};

use super::*;
use crate::conntrack::tests::{CLIENT, SERVER, START, datagram, udp};
use crate::conntrack::{Config, Origin, Validated};
use crate::headers::parse;
use crate::tuple::Zone;

const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8, seq: u32, ack: u32) -> Vec<u8> {
    let mut l4 = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    l4.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
    l4.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    datagram(proto::TCP, src, dst, &l4)
}

fn conntrack(capacity: u32, early_drop: EarlyDrop, half_open_limit: u32, buckets: &str) -> Conntrack {
    let mut config = Config { capacity, early_drop, half_open_limit, ..Config::default() };
    config.sysctls.set("nf_conntrack_checksum", "0").unwrap();
    config.sysctls.set("nf_conntrack_buckets", buckets).unwrap();
    Conntrack::new(config, &mut Entropy::from_test_seed(1), START).unwrap()
}

fn pass(conntrack: &mut Conntrack, packet: &[u8], now: Instant) -> Result<(), Refusal> {
    let mut attachment = conntrack.track(packet, &parse(packet).unwrap(), Zone::default(), Origin::Link, now)?;
    conntrack.confirm(&mut attachment, now)
}

/// How many of `tries` new flows find a place in a table of `flows` unassured ones.
fn found(flows: u16, buckets: u32, tries: u16) -> usize {
    let mut conntrack = conntrack(u32::from(flows), EarlyDrop::Kernel, 0, &buckets.to_string());
    for port in 0..flows {
        pass(&mut conntrack, &udp(CLIENT, port, SERVER, 53), START).unwrap();
    }
    let opens = |port: &u16| pass(&mut conntrack, &udp(CLIENT, *port, SERVER, 54), START).is_ok();
    let opened = (0..tries).filter(opens).count();
    assert_eq!(conntrack.len(), u32::from(flows));
    assert_eq!(conntrack.totals().early_drop, opened as u64);
    assert_eq!(conntrack.totals().drop, u64::from(tries) - opened as u64);
    opened
}

#[test]
fn the_kernels_early_drop_finds_about_as_many_as_eight_buckets_hold() {
    // 16 * 100 / 16384 a try: 9.8 %. The bounds are five standard deviations away.
    let some = found(100, 16_384, 4000);
    assert!((290..=490).contains(&some), "{some} of 4000");
    // The recorded kernel: 7 entries, 262,144 buckets, twice in 830 tries.
    let few = found(7, 262_144, 8000);
    assert!(few <= 12, "{few} of 8000");
    // As many flows as buckets, or more: there is nearly always somebody.
    assert!(found(200, 100, 1000) > 950);
    assert_eq!(found(200, 1, 1000), 1000);
}

#[test]
fn the_kernels_early_drop_spares_the_assured_and_takes_both_families() {
    let mut conntrack = conntrack(4, EarlyDrop::Kernel, 0, "1");
    for (src, dst, sport) in [(CLIENT, SERVER, 1), ("fd00::2", "2001:db8::1", 2)] {
        pass(&mut conntrack, &tcp(src, sport, dst, 80, SYN, 100, 0), START).unwrap();
        pass(&mut conntrack, &tcp(dst, 80, src, sport, SYN_ACK, 500, 101), START).unwrap();
        pass(&mut conntrack, &tcp(src, sport, dst, 80, ACK, 101, 501), START).unwrap();
    }
    for port in 10..60 {
        let (src, dst) = if port % 2 == 0 { (CLIENT, SERVER) } else { ("fd00::2", "2001:db8::1") };
        pass(&mut conntrack, &udp(src, port, dst, 53), START).unwrap();
    }
    let ports: Vec<_> = conntrack.flows().iter().map(|flow| flow.orig.sport).collect();
    assert_eq!((&ports[..2], ports.len()), (&[1, 2][..], 4), "{ports:?}");
}

#[test]
fn whom_the_kernels_early_drop_takes_follows_from_the_draw_not_from_the_table() {
    let victims = |seed: u64, reseed: bool| {
        let mut conntrack = conntrack(50, EarlyDrop::Kernel, 0, "50");
        conntrack.ports = hibernet_snapshot::Redraw::redraw(&mut Entropy::from_test_seed(seed));
        let mut gone = Vec::new();
        for port in 0..150 {
            pass(&mut conntrack, &udp(CLIENT, port, SERVER, 53), START).unwrap_or(());
            if reseed && port % 7 == 0 {
                conntrack.reseed();
            }
        }
        while let Some(event) = conntrack.next_event() {
            if event.kind == crate::EventKind::Destroy {
                gone.push(event.flow.orig.sport);
            }
        }
        gone
    };
    assert_eq!(victims(1, false), victims(1, true));
    assert_ne!(victims(1, false), victims(2, false));
}

/// The state of the count: what is kept must be what there is.
fn counted(conntrack: &Conntrack) -> u32 {
    let afresh = HalfOpen::of(conntrack.half_open_limit, conntrack.table.flows());
    assert_eq!(conntrack.half_open.by_source, afresh.by_source);
    conntrack.half_open_of(CLIENT.parse().unwrap())
}

#[test]
fn a_source_leaves_so_many_connections_half_open_and_no_more() {
    let mut conntrack = conntrack(100, EarlyDrop::Lru, 3, "100");
    let syn = |port| tcp(CLIENT, port, SERVER, 80, SYN, 100, 0);
    for port in 1..=3 {
        pass(&mut conntrack, &syn(port), START).unwrap();
    }
    assert_eq!(counted(&conntrack), 3);
    assert_eq!(pass(&mut conntrack, &syn(4), START), Err(Refusal::HalfOpenLimit));
    pass(&mut conntrack, &syn(3), START).unwrap();
    pass(&mut conntrack, &udp(CLIENT, 4, SERVER, 53), START).unwrap();
    pass(&mut conntrack, &tcp("10.0.0.3", 4, SERVER, 80, SYN, 100, 0), START).unwrap();
    assert_eq!(conntrack.totals().early_drop + conntrack.totals().drop, 0);

    // One is answered and opens, one is reset, one is deleted, and one at last expires.
    pass(&mut conntrack, &tcp(SERVER, 80, CLIENT, 1, SYN_ACK, 500, 101), START).unwrap();
    assert_eq!(counted(&conntrack), 3);
    pass(&mut conntrack, &tcp(CLIENT, 1, SERVER, 80, ACK, 101, 501), START).unwrap();
    assert_eq!(counted(&conntrack), 2);
    pass(&mut conntrack, &tcp(SERVER, 80, CLIENT, 2, RST | ACK, 0, 101), START).unwrap();
    assert_eq!(counted(&conntrack), 1);
    pass(&mut conntrack, &syn(5), START).unwrap();
    let third = parse(&syn(3)).map(|parsed| crate::headers::tuple_of(&parsed, &syn(3)).unwrap()).unwrap();
    let (handle, _) = conntrack.find(&third, Zone::default()).unwrap();
    assert!(conntrack.delete(handle, START));
    assert_eq!(counted(&conntrack), 1);
    let later = START.saturating_add(core::time::Duration::from_secs(121));
    conntrack.expire(later, 1000);
    assert_eq!((counted(&conntrack), conntrack.half_open.by_source.len()), (0, 0));
}

#[test]
fn a_restore_counts_half_open_connections_anew() {
    let mut conntrack = conntrack(100, EarlyDrop::Lru, 2, "100");
    for port in 1..=2 {
        pass(&mut conntrack, &tcp(CLIENT, port, SERVER, 80, SYN, 100, 0), START).unwrap();
    }
    let entropy = &mut Entropy::from_test_seed(2);
    let mut restored = Validated::check(conntrack.save(), START, entropy).unwrap().rehash(entropy).unwrap();
    assert_eq!((restored.half_open_limit(), counted(&restored)), (2, 2));
    let third = tcp(CLIENT, 3, SERVER, 80, SYN, 100, 0);
    assert_eq!(pass(&mut restored, &third, START), Err(Refusal::HalfOpenLimit));
    restored.flush(START);
    pass(&mut restored, &third, START).unwrap();
}

#[test]
fn without_a_limit_nothing_is_counted() {
    let mut conntrack = conntrack(100, EarlyDrop::Lru, 0, "100");
    for port in 1..=50 {
        pass(&mut conntrack, &tcp(CLIENT, port, SERVER, 80, SYN, 100, 0), START).unwrap();
    }
    assert!(conntrack.half_open.by_source.is_empty());
}
