use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::conntrack::tests::{ACK, CLIENT, PUBLIC, SERVER, START, SYN, conntrack, tcp, udp};
use crate::event::ConntrackEvent;
use crate::headers::parse;
use crate::nat::{Manip, NatRange};
use crate::record::FlowRecord;
use crate::status::CtState;

/// One packet of random traffic: few hosts and ports, so that flows meet again, end, and start over.
fn packet(kind: u8, host: u8, port: u16, number: u32) -> Vec<u8> {
    let inside = format!("10.0.0.{}", host % 4);
    let port = 4000 + port % 4;
    match kind % 7 {
        0 => tcp(&inside, port, SERVER, 80, SYN, number, 0),
        1 => tcp(SERVER, 80, PUBLIC, port, SYN | ACK, 7, number + 1),
        2 => tcp(&inside, port, SERVER, 80, ACK, number + 1, 8),
        3 => tcp(&inside, port, SERVER, 80, 4, number + 1, 0),
        4 => udp(&inside, port, SERVER, 53),
        5 => udp(SERVER, 53, PUBLIC, port),
        _ => vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
    }
}

/// The rest of a packet's way: what became of it, to be compared.
fn finish(table: &mut Conntrack, packet: &mut [u8], tracked: Result<Attachment, Refusal>, now: Instant) -> String {
    let Ok(mut attachment) = tracked else { return format!("{tracked:?}") };
    let range = NatRange { masquerade: true, ..NatRange::address(PUBLIC.parse().unwrap()) };
    table.nat_null_bind(&mut attachment, Manip::Destination);
    let there = table.nat_translate(&attachment, Manip::Destination, packet);
    table.nat_bind(&mut attachment, Manip::Source, &range);
    let back = table.nat_translate(&attachment, Manip::Source, packet);
    let entered = table.confirm(&mut attachment, now);
    format!("{:?} {there:?} {back:?} {entered:?} {:?}", attachment.state(), attachment.remark())
}

type Outcome = (Vec<String>, Vec<Vec<u8>>, Vec<ConntrackEvent>, Vec<FlowRecord>);

fn play(bursts: &[Vec<Vec<u8>>], together: bool, reseed_every: usize) -> Outcome {
    let mut table = conntrack(20, 1);
    let (mut said, mut left, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for (number, burst) in bursts.iter().enumerate() {
        let now = START.saturating_add(Duration::from_secs(7 * number as u64));
        let parsed: Vec<_> = burst.iter().map(|bytes| parse(bytes).unwrap()).collect();
        let incoming = burst.iter().zip(&parsed).map(|(datagram, parsed)| Incoming {
            datagram,
            parsed,
            zone: Zone::default(),
            origin: Origin::Link,
        });
        let incoming: Vec<_> = incoming.collect();
        let mut each = |table: &mut Conntrack, number: usize, tracked| {
            let mut bytes = burst[number].clone();
            said.push(finish(table, &mut bytes, tracked, now));
            left.push(bytes);
            if reseed_every != 0 && said.len().is_multiple_of(reseed_every) {
                table.reseed();
            }
        };
        if together {
            table.track_burst(&incoming, now, &mut each);
        } else {
            for (number, Incoming { datagram, parsed, zone, origin }) in incoming.iter().enumerate() {
                let tracked = table.track(datagram, parsed, *zone, *origin, now);
                each(&mut table, number, tracked);
            }
        }
        table.expire(now, 3);
        events.extend(core::iter::from_fn(|| table.next_event()));
    }
    (said, left, events, table.flows())
}

proptest! {
    /// The key changes within bursts, too: what was found out ahead is then void.
    #[test]
    fn a_burst_leads_to_what_its_packets_lead_to_one_by_one(
        bursts in prop::collection::vec(prop::collection::vec(any::<(u8, u8, u16)>(), 0..70), 0..12),
        reseed_every in 0_usize..9,
    ) {
        let packets = |(number, burst): (usize, Vec<(u8, u8, u16)>)| -> Vec<_> {
            let number = number as u32 * 1000;
            burst.into_iter().map(|(kind, host, port)| packet(kind, host, port, number)).filter(|bytes| parse(bytes).is_ok()).collect()
        };
        let bursts: Vec<Vec<_>> = bursts.into_iter().enumerate().map(packets).collect();
        prop_assert_eq!(play(&bursts, true, reseed_every), play(&bursts, false, 0));
    }
}

#[test]
fn an_index_that_overruns_within_a_burst_loses_no_flow() {
    // One tuple in many zones is one hash: more of them than lie within the bound draw another key, and then move the bound.
    let mut table = conntrack(400, 1);
    let packets: Vec<_> = (0..32).map(|port| udp(CLIENT, 5000 + port, SERVER, 53)).collect();
    let mut known = Vec::new();
    for packet in &packets {
        let mut attachment =
            table.track(packet, &parse(packet).unwrap(), Zone::default(), Origin::Link, START).unwrap();
        table.confirm(&mut attachment, START).unwrap();
        known.push(attachment.handle());
    }
    let crowd = udp(CLIENT, 4000, SERVER, 53);
    let parsed: Vec<_> = packets.iter().map(|bytes| parse(bytes).unwrap()).collect();
    let incoming: Vec<_> = packets
        .iter()
        .zip(&parsed)
        .map(|(datagram, parsed)| Incoming { datagram, parsed, zone: Zone::default(), origin: Origin::Link })
        .collect();
    let (before, mut zone) = (*table.table.key().expose(), 0);
    let mut found = Vec::new();
    table.track_burst(&incoming, START, |table, _, tracked| {
        found.push(tracked.unwrap().handle());
        for _ in 0..10 {
            zone += 1;
            let id = Zone { id: zone, orig_only: false };
            let mut attachment = table.track(&crowd, &parse(&crowd).unwrap(), id, Origin::Link, START).unwrap();
            table.confirm(&mut attachment, START).unwrap();
        }
    });
    assert_ne!(*table.table.key().expose(), before, "the index has overrun");
    assert_eq!(found, known);
    assert_eq!(table.len(), 32 + 320);
}

#[test]
fn new_flows_confirmed_together_enter_in_order_and_each_tuple_once() {
    let (mut together, mut one_by_one) = (conntrack(40, 1), conntrack(40, 2));
    let packets: Vec<_> = (0..70).map(|number| udp(CLIENT, 4000 + number % 50, SERVER, 53)).collect();
    let track = |table: &mut Conntrack| -> Vec<Attachment> {
        let track =
            |packet: &Vec<u8>| table.track(packet, &parse(packet).unwrap(), Zone::default(), Origin::Link, START);
        packets.iter().map(track).map(Result::unwrap).collect()
    };
    let (mut first, mut second) = (track(&mut together), track(&mut one_by_one));
    let mut results = Vec::new();
    together.confirm_burst(&mut first, START, |_, result| results.push(result));
    let expected: Vec<_> = second.iter_mut().map(|attachment| one_by_one.confirm(attachment, START)).collect();
    assert_eq!(results, expected);
    assert!(results.contains(&Err(Refusal::TableFull)), "{results:?}");
    assert_eq!(together.flows(), one_by_one.flows());
}

#[test]
fn a_refreshed_flow_stays_and_one_that_is_over_is_not_found() {
    let mut table = conntrack(40, 1);
    let packets: Vec<_> = (0..40).map(|number| udp(CLIENT, 4000 + number, SERVER, 53)).collect();
    let tuples: Vec<_> =
        packets.iter().map(|packet| tuple_of(&parse(packet).unwrap(), packet).unwrap().inverted().unwrap()).collect();
    for packet in &packets {
        let mut attachment =
            table.track(packet, &parse(packet).unwrap(), Zone::default(), Origin::Link, START).unwrap();
        assert_eq!(attachment.state(), Some(CtState::New));
        table.confirm(&mut attachment, START).unwrap();
    }
    let mut seen = 0;
    table.refresh_burst(&tuples[..36], Zone::default(), 600, START, |number, found| {
        let (handle, direction) = found.unwrap();
        assert_eq!((handle.number(), direction), (number as u64 + 1, Direction::Reply));
        seen += 1;
    });
    let later = START.saturating_add(Duration::from_secs(300));
    assert_eq!(table.refresh(&tuples[39], Zone::default(), 600, later), None);
    let mut found = Vec::new();
    table.find_burst(&tuples, Zone::default(), |_, flow| found.push(flow.is_some()));
    assert_eq!(found, (0..40).map(|number| number < 36).collect::<Vec<_>>());
    table.expire(later, 100);
    assert_eq!((seen, table.len()), (36, 36));
}
