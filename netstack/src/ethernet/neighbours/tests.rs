//! The table against a model without indices, timers and bounds.

use proptest::prelude::*;

use super::*;
use crate::test_packets::udp;

#[test]
fn nothing_is_due_in_an_empty_table() {
    let mut table = table();
    assert_eq!(table.next_deadline(), None);
    assert!(table.due(Instant::from_secs(100)).is_empty());
}

#[test]
fn what_was_asked_for_in_vain_gives_back_every_packet() {
    let mut table = table();
    let (link, hop) = (LinkId::LOOPBACK, addr(1));
    for _ in 0..3 {
        table.wait_for(link, hop, packet(), Instant::ZERO);
    }
    for second in 1..=2 {
        assert!(matches!(table.due(Instant::from_secs(second)).as_slice(), [Deed::Solicit { known: None, .. }]));
    }
    let deeds = table.due(Instant::from_secs(3));
    assert!(deeds.len() == 3 && deeds.iter().all(|deed| matches!(deed, Deed::GiveUp(_))));
    assert_eq!((table.list(Instant::ZERO).count(), table.next_deadline()), (0, None));
    assert_eq!(table.tables[&link].waiting, 0);
}

#[test]
fn a_confirmation_counts_for_half_to_one_and_a_half_times_the_base() {
    let mut table = table();
    let mut seen = BTreeSet::new();
    for number in 0..200 {
        let news = News { mac: Some(mac(1)), confirms: true, overrides: Overrides::Always, creates: true };
        table.heard(LinkId::LOOPBACK, addr(number % 100), news, Instant::ZERO);
    }
    for (at, _, _) in &table.timers {
        seen.insert(*at);
    }
    assert!(seen.len() > 90);
    let (least, most) = (Instant::from_secs(15), Instant::from_secs(45));
    assert!(seen.first().is_some_and(|at| *at >= least) && seen.last().is_some_and(|at| *at <= most));
}

/// What can happen to a table.
#[derive(Clone, Debug)]
enum Event {
    Send { hop: u8 },
    Heard { hop: u8, mac: Option<u8>, confirms: bool, overrides: u8, creates: bool },
    Wait { ms: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_u8..4).prop_map(|hop| Event::Send { hop }),
        3 => (0_u8..4, prop::option::of(0_u8..2), any::<bool>(), 0_u8..3, any::<bool>()).prop_map(
            |(hop, mac, confirms, overrides, creates)| Event::Heard { hop, mac, confirms, overrides, creates }
        ),
        2 => prop_oneof![Just(0), Just(999), Just(1000), Just(5000), 0_u64..60_000].prop_map(|ms| Event::Wait { ms }),
    ]
}

/// One neighbour, its times as they were, looked at whenever time passes.
#[derive(Clone, PartialEq, Debug)]
enum Model {
    Incomplete { asked: Vec<u64>, waiting: usize },
    Reachable { mac: u8, since: u64, learnt: u64 },
    Stale { mac: u8, learnt: u64 },
    Delay { mac: u8, since: u64, learnt: u64 },
    Probe { mac: u8, asked: Vec<u64>, learnt: u64 },
}

/// What a table does, to compare.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Done {
    Asked { hop: u8, of: Option<u8> },
    Sent { hop: u8, mac: u8 },
    GaveUp,
}

/// Confirmation times are fixed here: the draw of 0 is half the base.
const REACHABLE: u64 = 15_000;

fn model_send(state: &mut Option<Model>, hop: u8, now: u64) -> Vec<Done> {
    let (next, done) = match state.take() {
        None => (Model::Incomplete { asked: vec![now], waiting: 1 }, Done::Asked { hop, of: None }),
        Some(Model::Incomplete { asked, waiting }) => {
            *state = Some(Model::Incomplete { asked, waiting: waiting + 1 });
            return Vec::new();
        }
        Some(Model::Stale { mac, learnt }) => (Model::Delay { mac, since: now, learnt }, Done::Sent { hop, mac }),
        Some(other) => {
            let (Model::Reachable { mac, .. } | Model::Delay { mac, .. } | Model::Probe { mac, .. }) = other else {
                unreachable!("the others are above");
            };
            (other, Done::Sent { hop, mac })
        }
    };
    *state = Some(next);
    vec![done]
}

fn model_heard(state: &mut Option<Model>, hop: u8, event: &Event, now: u64) -> Vec<Done> {
    let Event::Heard { mac, confirms, overrides, creates, .. } = *event else { return Vec::new() };
    let new = |mac: u8, learnt: u64| match confirms {
        true => Model::Reachable { mac, since: now, learnt },
        false => Model::Stale { mac, learnt },
    };
    let (next, done) = match (state.clone(), mac) {
        (None, Some(mac)) if creates => (Some(new(mac, now)), Vec::new()),
        (None, _) => (None, Vec::new()),
        (Some(Model::Incomplete { waiting, .. }), Some(mac)) => {
            (Some(new(mac, now)), vec![Done::Sent { hop, mac }; waiting])
        }
        (Some(incomplete @ Model::Incomplete { .. }), None) => (Some(incomplete), Vec::new()),
        (Some(known), told) => {
            let (Model::Reachable { mac, learnt, .. }
            | Model::Stale { mac, learnt }
            | Model::Delay { mac, learnt, .. }
            | Model::Probe { mac, learnt, .. }) = known.clone()
            else {
                unreachable!("the others are above");
            };
            let was_reachable = matches!(known, Model::Reachable { .. });
            let next = match told.filter(|told| *told != mac) {
                None if confirms => new(mac, if was_reachable { learnt } else { now }),
                None => known,
                Some(told) if overrides == 0 => new(told, now),
                Some(told) if overrides == 1 && now >= learnt + 1000 => new(told, now),
                Some(_) if overrides == 2 && was_reachable => Model::Stale { mac, learnt: now },
                Some(_) => known,
            };
            (Some(next), Vec::new())
        }
    };
    *state = next;
    done
}

/// Brings one neighbour to `now`, as if it had been looked at right now and not before.
fn model_due(state: &mut Option<Model>, hop: u8, now: u64) -> Vec<Done> {
    let (next, done) = match state.clone() {
        Some(Model::Incomplete { asked, waiting }) if now >= asked[asked.len() - 1] + 1000 => {
            if asked.len() == 3 {
                (None, vec![Done::GaveUp; waiting])
            } else {
                let asked = [asked, vec![now]].concat();
                (Some(Model::Incomplete { asked, waiting }), vec![Done::Asked { hop, of: None }])
            }
        }
        Some(Model::Reachable { mac, since, learnt }) if now >= since + REACHABLE => {
            (Some(Model::Stale { mac, learnt }), Vec::new())
        }
        Some(Model::Delay { mac, since, learnt }) if now >= since + 5000 => {
            (Some(Model::Probe { mac, asked: vec![now], learnt }), vec![Done::Asked { hop, of: Some(mac) }])
        }
        Some(Model::Probe { mac, asked, learnt }) if now >= asked[asked.len() - 1] + 1000 => {
            if asked.len() == 3 {
                (None, Vec::new())
            } else {
                let asked = [asked, vec![now]].concat();
                (Some(Model::Probe { mac, asked, learnt }), vec![Done::Asked { hop, of: Some(mac) }])
            }
        }
        other => (other, Vec::new()),
    };
    *state = next;
    done
}

fn model_line(hop: u8, model: &Model) -> String {
    let (mac, state) = match model {
        Model::Incomplete { .. } => (None, "INCOMPLETE"),
        Model::Reachable { mac, .. } => (Some(*mac), "REACHABLE"),
        Model::Stale { mac, .. } => (Some(*mac), "STALE"),
        Model::Delay { mac, .. } => (Some(*mac), "DELAY"),
        Model::Probe { mac, .. } => (Some(*mac), "PROBE"),
    };
    format!("{} {:?} {state}", addr(hop), mac.map(self::mac))
}

proptest! {
    #[test]
    fn the_table_does_what_a_simple_model_does(events in prop::collection::vec(event(), 1..80)) {
        let mut table = table();
        table.times_mut().play(&[0; 128]);
        let mut model: [Option<Model>; 4] = [const { None }; 4];
        let link = LinkId::LOOPBACK;
        let mut ms = 100_000;
        for event in events {
            let now = Instant::from_millis(ms);
            let (mut expected, deeds) = match &event {
                Event::Wait { ms: wait } => {
                    ms += wait;
                    let due = |(hop, state): (usize, &mut Option<Model>)| model_due(state, hop as u8, ms);
                    let expected: Vec<Done> = model.iter_mut().enumerate().flat_map(due).collect();
                    (expected, table.due(Instant::from_millis(ms)))
                }
                Event::Send { hop } => {
                    let expected = model_send(&mut model[usize::from(*hop)], *hop, ms);
                    let deeds = match table.known(link, addr(*hop), false, now) {
                        Some(mac) => vec![Deed::Send { link, mac, packet: packet_to(*hop) }],
                        None => table.wait_for(link, addr(*hop), packet_to(*hop), now),
                    };
                    (expected, deeds)
                }
                Event::Heard { hop, mac: told, confirms, overrides, creates } => {
                    let expected = model_heard(&mut model[usize::from(*hop)], *hop, &event, ms);
                    let overrides = [Overrides::Always, Overrides::UnlessLocked, Overrides::Never][usize::from(*overrides)];
                    let news = News { mac: told.map(mac), confirms: *confirms, overrides, creates: *creates };
                    (expected, table.heard(link, addr(*hop), news, now))
                }
            };
            let mut done: Vec<Done> = deeds.iter().map(done).collect();
            done.sort();
            expected.sort();
            prop_assert_eq!(done, expected, "after {:?} at {}", event, ms);
            let now = Instant::from_millis(ms);
            let listed: Vec<String> = table.list(now).map(|(_, addr, mac, state)| format!("{addr} {mac:?} {state}")).collect();
            let lines = model.iter().enumerate().filter_map(|(hop, state)| Some(model_line(hop as u8, state.as_ref()?)));
            prop_assert_eq!(listed, lines.collect::<Vec<_>>(), "after {:?} at {}", event, ms);
            check_indices(&table);
        }
    }
}

/// Every timer belongs to a neighbour and every neighbour's timer is filed; counts and bytes add up.
fn check_indices(table: &Neighbours) {
    let mut timers = BTreeSet::new();
    for (link, of_link) in &table.tables {
        let mut counts = [0, 0];
        let mut waiting = 0;
        for (addr, neighbour) in &of_link.entries {
            counts[family(*addr)] += 1;
            waiting += neighbour.waiting_bytes();
            timers.extend(neighbour.state.timer().map(|at| (at, *link, *addr)));
        }
        assert_eq!((counts, waiting), (of_link.counts, of_link.waiting));
    }
    assert_eq!(timers, table.timers);
}

fn done(deed: &Deed) -> Done {
    let number = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.octets()[3],
        IpAddr::V6(addr) => addr.octets()[15],
    };
    match deed {
        Deed::Solicit { target, known, .. } => {
            Done::Asked { hop: number(*target), of: known.map(|mac| mac.octets()[5]) }
        }
        Deed::Send { mac, packet, .. } => Done::Sent { hop: number(packet.dst()), mac: mac.octets()[5] },
        Deed::GiveUp(_) => Done::GaveUp,
        Deed::Drop(reason, _) => panic!("{reason}"),
    }
}

fn table() -> Neighbours {
    Neighbours::new(&mut Entropy::from_test_seed(1))
}

fn addr(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

const fn mac(number: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, number])
}

fn packet() -> Packet {
    packet_to(1)
}

fn packet_to(hop: u8) -> Packet {
    Packet::received(LinkId::LOOPBACK, udp("10.9.0.2:1", &format!("{}:2", addr(hop)), b"x")).unwrap()
}
