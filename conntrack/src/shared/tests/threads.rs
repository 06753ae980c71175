use std::sync::Barrier;
use std::thread;

use super::*;
use crate::conntrack::tests::CLIENT;
use crate::event::EventKind;
use crate::status::Status;

const ROUNDS: u32 = 20;

fn at(round: u32) -> Instant {
    START.saturating_add(Duration::from_secs(u64::from(round)))
}

/// What one of two workers does in a round, on flows of its own: opens, translates, answers, looks up, deletes.
fn work(table: &mut impl Tracks, who: u8, round: u32) {
    let (now, outside) = (at(round), format!("203.0.113.{who}"));
    let range = NatRange { masquerade: true, ..NatRange::address(outside.parse().unwrap()) };
    for number in 0..12_u16 {
        // Two hosts with one port each: the second has to take another outside.
        let host = format!("10.{who}.{round}.{}", number % 2);
        let mut query = udp(&host, 4000 + number / 2, SERVER, 53);
        let mut attachment = table.attach(&query, Zone::default(), now).unwrap();
        assert!(attachment.is_unconfirmed());
        table.bind(&mut attachment, Manip::Destination, None);
        table.bind(&mut attachment, Manip::Source, (number < 8).then_some(&range));
        table.admit(&mut attachment, now).unwrap();
        table.translate(&attachment, Manip::Source, &mut query).unwrap();
        assert_eq!(table.remark(&mut attachment, u32::from(number)), u32::from(number));
        let asked = crate::headers::tuple_of(&parse(&query).unwrap(), &query).unwrap();
        let flow = table.look(&asked.inverted().unwrap()).unwrap();
        assert_eq!((flow.reply.inverted(), flow.mark), (Some(asked), u32::from(number)));
        assert_eq!(table.look(&flow.orig).as_ref().map(|flow| flow.reply), Some(flow.reply));
        if number % 3 == 0 {
            let mut answer = udp(SERVER, 53, &asked.src.to_string(), asked.sport);
            let mut answered = table.attach(&answer, Zone::default(), now).unwrap();
            assert_eq!(answered.handle(), attachment.handle());
            table.translate(&answered, Manip::Destination, &mut answer).unwrap();
            assert_eq!(parse(&answer).unwrap().dst.to_string(), host);
            table.admit(&mut answered, now).unwrap();
        }
        if number % 4 == 1 {
            assert!(table.forget(attachment.handle().unwrap(), now));
            assert_eq!(table.look(&flow.orig), None);
        }
        if number % 5 == u16::from(who) {
            table.collect(now);
        }
    }
}

/// What is the same in whatever order two workers came: which port a translated flow got is not, since what is over keeps
/// its port until somebody collects it.
fn outcome(table: &mut impl Tracks) -> (Vec<FlowRecord>, Totals, [usize; 2]) {
    let Seen { mut flows, events, totals, len, .. } = table.seen();
    assert_eq!(flows.len(), len as usize);
    for flow in &mut flows {
        if flow.status.contains(Status::SRC_NAT) {
            flow.reply.dport = 0;
        }
    }
    flows.sort_by_key(|flow| flow.orig);
    let count = |kind| events.iter().filter(|event| event.kind == kind).count();
    (flows, totals, [count(EventKind::New), count(EventKind::Destroy)])
}

fn assert_sound(table: &SharedConntrack) {
    let flows = table.flows();
    let tuples: BTreeSet<_> = flows.iter().flat_map(|flow| [flow.orig, flow.reply]).collect();
    assert_eq!(tuples.len(), 2 * flows.len(), "each tuple once");
    let across = flows.iter().filter(|flow| table.lies_across(flow.status, &flow.orig, &flow.reply)).count();
    assert_eq!(table.counts.across.load(Ordering::Relaxed) as usize, across);
}

#[test]
fn two_threads_end_where_one_after_the_other_would() {
    let mut model = plain(4000, EarlyDrop::Lru, 1);
    model.set_sysctl("nf_conntrack_udp_timeout", "5").unwrap();
    for round in 0..ROUNDS {
        for who in [0, 1] {
            work(&mut model, who, round);
        }
    }
    model.collect(at(ROUNDS));
    let expected = outcome(&mut model);
    for shards in [1, 2, 5] {
        let table = shared(4000, EarlyDrop::Lru, shards, 2);
        table.set_sysctl("nf_conntrack_udp_timeout", "5").unwrap();
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            for who in [0_u8, 1] {
                let (mut table, barrier) = (&table, &barrier);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        barrier.wait();
                        if round % 4 == u32::from(who) {
                            table.rekey();
                        }
                        work(&mut table, who, round);
                        if round % 4 == 2 + u32::from(who) {
                            let (saved, now) = (table.save(), at(round));
                            assert_sound(&restored(saved, shards, u64::from(round), now));
                        }
                    }
                });
            }
        });
        let mut table = &table;
        table.collect(at(ROUNDS));
        assert_sound(table);
        assert_eq!(outcome(&mut table), expected, "{shards} shards");
    }
}

#[test]
fn two_threads_that_want_the_same_tuples_never_both_get_them() {
    let table = shared(200, EarlyDrop::Lru, 4, 1);
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        for who in [0_u8, 1] {
            let (mut table, barrier) = (&table, &barrier);
            scope.spawn(move || {
                let ports = NatRange { ports: Some((5000, 5063)), ..NatRange::address(PUBLIC.parse().unwrap()) };
                for number in 0..400_u16 {
                    if number % 8 == 0 {
                        barrier.wait();
                    }
                    let host = if number % 3 == 0 { CLIENT.to_owned() } else { format!("10.9.{who}.{}", number % 50) };
                    let packet = udp(&host, 4000 + number % 16, SERVER, 53);
                    if let Ok(mut attachment) = table.attach(&packet, Zone::default(), START) {
                        table.bind(&mut attachment, Manip::Source, (number % 2 == 0).then_some(&ports));
                        let entered = table.admit(&mut attachment, START);
                        assert_eq!(entered.is_ok(), attachment.handle().is_some());
                        assert!(table.len() <= table.capacity());
                    }
                    match number % 64 {
                        20 => table.rekey(),
                        40 if who == 0 => assert_sound(&restored(table.save(), 3, 7, START)),
                        60 => table.lose(PUBLIC, START),
                        _ => {}
                    }
                }
            });
        }
    });
    assert_sound(&table);
    let (mut shown, len) = (&table, table.len() as usize);
    let (flows, totals, [new, gone]) = outcome(&mut shown);
    assert_eq!((flows.len(), new - gone, totals.insert as usize), (len, len, new));
    table.flush(START);
    assert_sound(&table);
    assert!(table.is_empty());
}
