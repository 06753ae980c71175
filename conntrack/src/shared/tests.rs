mod threads;

use core::time::Duration;
use std::collections::BTreeSet;

use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Snapshot, codec};
use proptest::prelude::*;

use super::*;
use crate::attachment::Attachment;
use crate::conntrack::tests::{PUBLIC, SERVER, START, packets, udp};
use crate::conntrack::{ConntrackSaved, EarlyDrop, Origin, Refusal};
use crate::headers::parse;
use crate::nat::{Manip, NatRange};
use crate::record::FlowRecord;
use crate::table::Handle;
use crate::tuple::{Tuple, Zone, proto};

fn config(capacity: u32, early_drop: EarlyDrop) -> Config {
    let mut config = Config { capacity, early_drop, half_open_limit: 3, ..Config::default() };
    config.sysctls.set("nf_conntrack_buckets", "64").unwrap();
    config.sysctls.set("nf_conntrack_checksum", "0").unwrap();
    config.sysctls.set("nf_conntrack_acct", "1").unwrap();
    config
}

fn plain(capacity: u32, early_drop: EarlyDrop, seed: u64) -> Conntrack {
    Conntrack::new(config(capacity, early_drop), &mut Entropy::from_test_seed(seed), START).unwrap()
}

fn shared(capacity: u32, early_drop: EarlyDrop, shards: u32, seed: u64) -> SharedConntrack {
    let shards = Shards::new(shards).unwrap();
    SharedConntrack::new(config(capacity, early_drop), shards, &mut Entropy::from_test_seed(seed), START).unwrap()
}

fn restored(saved: ConntrackSaved, shards: u32, seed: u64, now: Instant) -> SharedConntrack {
    let entropy = &mut Entropy::from_test_seed(seed);
    Validated::check(saved, now, entropy).unwrap().rehash_shared(Shards::new(shards).unwrap(), entropy).unwrap()
}

/// What both kinds of table do.
trait Tracks {
    fn attach(&mut self, datagram: &[u8], zone: Zone, now: Instant) -> Result<Attachment, Refusal>;
    fn admit(&mut self, attachment: &mut Attachment, now: Instant) -> Result<(), Refusal>;
    fn bind(&mut self, attachment: &mut Attachment, manip: Manip, range: Option<&NatRange>);
    fn translate(&mut self, attachment: &Attachment, manip: Manip, datagram: &mut [u8]) -> Result<bool, Refusal>;
    fn remark(&mut self, attachment: &mut Attachment, mark: u32) -> u32;
    fn close(&mut self, attachment: &Attachment, now: Instant);
    fn collect(&mut self, now: Instant);
    fn forget(&mut self, handle: Handle, now: Instant) -> bool;
    fn look(&mut self, tuple: &Tuple) -> Option<FlowRecord>;
    fn lose(&mut self, address: &str, now: Instant);
    fn empty(&mut self, now: Instant);
    fn rekey(&mut self);
    fn seen(&mut self) -> Seen;
    fn start_tape(&mut self);
    fn tape(&mut self) -> Vec<u64>;
    fn play(&mut self, tape: &[u64]);
}

/// All that can be seen of a table.
#[derive(PartialEq, Debug)]
struct Seen {
    image: Vec<u8>,
    flows: Vec<FlowRecord>,
    events: Vec<ConntrackEvent>,
    lost: u64,
    len: u32,
    totals: Totals,
    original: Vec<Option<(core::net::IpAddr, u16)>>,
}

macro_rules! tracks {
    ($implementor:ty, $table:ty, $choices:expr) => {
        impl Tracks for $implementor {
            fn attach(&mut self, datagram: &[u8], zone: Zone, now: Instant) -> Result<Attachment, Refusal> {
                <$table>::track(self, datagram, &parse(datagram).unwrap(), zone, Origin::Link, now)
            }

            fn admit(&mut self, attachment: &mut Attachment, now: Instant) -> Result<(), Refusal> {
                <$table>::confirm(self, attachment, now)
            }

            fn bind(&mut self, attachment: &mut Attachment, manip: Manip, range: Option<&NatRange>) {
                match range {
                    Some(range) if <$table>::nat_pending(self, attachment, manip) => {
                        <$table>::nat_bind(self, attachment, manip, range)
                    }
                    _ => <$table>::nat_null_bind(self, attachment, manip),
                }
            }

            fn translate(
                &mut self,
                attachment: &Attachment,
                manip: Manip,
                datagram: &mut [u8],
            ) -> Result<bool, Refusal> {
                <$table>::nat_translate(self, attachment, manip, datagram)
            }

            fn remark(&mut self, attachment: &mut Attachment, mark: u32) -> u32 {
                <$table>::set_mark(self, attachment, mark);
                <$table>::mark(self, attachment)
            }

            fn close(&mut self, attachment: &Attachment, now: Instant) {
                <$table>::set_closing(self, attachment, now);
            }

            fn collect(&mut self, now: Instant) {
                <$table>::expire(self, now, usize::MAX);
            }

            fn forget(&mut self, handle: Handle, now: Instant) -> bool {
                <$table>::delete(self, handle, now)
            }

            fn look(&mut self, tuple: &Tuple) -> Option<FlowRecord> {
                <$table>::flow(self, <$table>::find(self, tuple, Zone::default())?.0)
            }

            fn lose(&mut self, address: &str, now: Instant) {
                <$table>::address_removed(self, address.parse().unwrap(), now);
            }

            fn empty(&mut self, now: Instant) {
                <$table>::flush(self, now);
            }

            fn rekey(&mut self) {
                <$table>::reseed(self);
            }

            fn seen(&mut self) -> Seen {
                let flows = <$table>::flows(self);
                let original = flows
                    .iter()
                    .filter_map(|flow| flow.reply.inverted())
                    .map(|incoming| <$table>::original_destination(self, &incoming, Zone::default()));
                Seen {
                    image: codec::encode(&self.save()).unwrap(),
                    original: original.collect(),
                    flows,
                    events: core::iter::from_fn(|| <$table>::next_event(self)).collect(),
                    lost: <$table>::events_lost(self),
                    len: <$table>::len(self),
                    totals: <$table>::totals(self),
                }
            }

            fn start_tape(&mut self) {
                $choices(self, &mut |choices: &mut WireChoices| {
                    choices.record();
                    vec![]
                });
            }

            fn tape(&mut self) -> Vec<u64> {
                $choices(self, &mut |choices: &mut WireChoices| choices.recorded().to_vec())
            }

            fn play(&mut self, tape: &[u64]) {
                $choices(self, &mut |choices: &mut WireChoices| {
                    choices.play(tape);
                    vec![]
                });
            }
        }
    };
}

type Look<'a> = &'a mut dyn FnMut(&mut WireChoices) -> Vec<u64>;

tracks!(Conntrack, Conntrack, |table: &mut Conntrack, look: Look<'_>| look(table.port_choices()));
tracks!(SharedConntrack, SharedConntrack, |table: &SharedConntrack, look: Look<'_>| table.with_port_choices(look));
tracks!(&SharedConntrack, SharedConntrack, |table: &SharedConntrack, look: Look<'_>| table.with_port_choices(look));

/// All stations for one packet. Every few packets something else happens, too: what depends on `number` alone.
fn step(table: &mut impl Tracks, number: usize, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
    let range = NatRange { masquerade: true, ..NatRange::address(PUBLIC.parse().unwrap()) };
    let inner = NatRange { ports: Some((8000, 8003)), ..NatRange::address("10.0.0.77".parse().unwrap()) };
    let mut datagram = packet.to_vec();
    let parsed = parse(packet).unwrap();
    let inside = parsed.src.to_string().starts_with("10.");
    let zone = if number % 11 == 3 { Zone { id: 5, orig_only: number.is_multiple_of(2) } } else { Zone::default() };
    let mut attachment = table.attach(&datagram, zone, now).ok()?;
    let redirected = parsed.dst.is_ipv4() && number.is_multiple_of(5);
    table.bind(&mut attachment, Manip::Destination, redirected.then_some(&inner));
    table.translate(&attachment, Manip::Destination, &mut datagram).ok()?;
    if number.is_multiple_of(6) {
        table.remark(&mut attachment, number as u32);
    }
    table.bind(&mut attachment, Manip::Source, inside.then_some(&range));
    table.translate(&attachment, Manip::Source, &mut datagram).ok()?;
    let entered = table.admit(&mut attachment, now);
    match number % 23 {
        7 => {
            if let Some(handle) = attachment.handle() {
                assert!(table.forget(handle, now) && !table.forget(handle, now));
            }
        }
        13 => table.close(&attachment, now),
        17 => {
            // One that did not enter still has its mark.
            let flow = attachment.handle().is_some() || attachment.is_unconfirmed();
            assert_eq!(table.remark(&mut attachment, 9), if flow { 9 } else { 0 });
        }
        _ => {}
    }
    match number {
        61 => table.lose(PUBLIC, now),
        97 => table.empty(now),
        _ => {}
    }
    entered.ok().map(|()| datagram)
}

type Packets = [(Vec<u8>, u16)];

/// Sends packets from `now` on and returns what left, what was found of each and when it was.
fn send(table: &mut impl Tracks, packets: &Packets, mut now: Instant, rekey_every: usize) -> (Vec<Sent>, Instant) {
    let mut sent = Vec::new();
    for (number, (packet, wait)) in packets.iter().enumerate() {
        now = now.saturating_add(Duration::from_millis(u64::from(*wait)));
        if number % 3 != 0 {
            table.collect(now);
        }
        let left = step(table, number, packet, now);
        let found = crate::headers::tuple_of(&parse(packet).unwrap(), packet).ok();
        sent.push((left, found.and_then(|tuple| table.look(&tuple))));
        if number % rekey_every == rekey_every - 1 {
            table.rekey();
        }
    }
    (sent, now)
}

type Sent = (Option<Vec<u8>>, Option<FlowRecord>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// DESIGN test P: neither keys nor the number of shards change what can be seen, through reseeds, new deals and a
    /// restore; and what was restored goes on as its source does.
    #[test]
    fn shards_and_keys_change_nothing_that_can_be_seen(before in packets(), after in packets(), whom in 0_usize..3) {
        let early_drop = [EarlyDrop::Off, EarlyDrop::Lru, EarlyDrop::Kernel][whom];
        let mut one = plain(24, early_drop, 1);
        one.start_tape();
        let (sent, now) = send(&mut one, &before, START, usize::MAX);
        let tape = one.tape();
        let seen = one.seen();
        let future: Vec<u64> = (0..10_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let mut source = restored(one.save(), 1, 9, now);
        source.play(&future);
        let later = send(&mut source, &after, now, usize::MAX);
        let seen_later = source.seen();
        for (shards, rekey_every) in [(1, usize::MAX), (4, usize::MAX), (4, 7), (3, 5)] {
            let mut many = shared(24, early_drop, shards, 2);
            many.play(&tape);
            prop_assert_eq!(&send(&mut many, &before, START, rekey_every), &(sent.clone(), now));
            prop_assert_eq!(&many.seen(), &seen);
            let mut again = restored(many.save(), shards, 3, now);
            again.play(&future);
            prop_assert_eq!(&send(&mut again, &after, now, rekey_every), &later);
            prop_assert_eq!(&again.seen(), &seen_later);
        }
        let entropy = &mut Entropy::from_test_seed(4);
        let mut back = Validated::check(many_saved(&seen), now, entropy).unwrap().rehash(entropy).unwrap();
        back.play(&future);
        prop_assert_eq!(&send(&mut back, &after, now, 4), &later);
        prop_assert_eq!(&back.seen(), &seen_later);
    }
}

fn many_saved(seen: &Seen) -> ConntrackSaved {
    codec::decode(&seen.image, &Limits::default()).unwrap()
}

/// One trace, at 80 % and at 100 % of the table, with early drop, expiry, a reseed and a restore.
fn life(
    mut table: impl Tracks,
    restore: impl FnOnce(ConntrackSaved, Instant) -> Box<dyn FnMut() -> Seen>,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    for number in 0..76_u16 {
        let packet = udp(&format!("10.0.0.{}", number % 7), 4000 + number / 9, SERVER, 53 + number % 3);
        let now = START.saturating_add(Duration::from_millis(u64::from(number) * 700));
        step(&mut table, 1000 * 23 + usize::from(number % 2), &packet, now);
        table.collect(now);
        if number % 8 == 7 {
            seen.push(table.seen());
            table.rekey();
        }
    }
    seen.push(table.seen());
    let now = START.saturating_add(Duration::from_millis(75 * 700));
    let image = many_saved(seen.last().unwrap());
    seen.push(restore(image, now)());
    seen
}

#[test]
fn two_hundred_and_fifty_six_pairs_of_keys_change_nothing_at_any_filling() {
    keys_change_nothing(EarlyDrop::Lru);
}

#[test]
fn whom_the_kernels_early_drop_takes_is_drawn_and_no_matter_of_placement_keys() {
    keys_change_nothing(EarlyDrop::Kernel);
}

fn keys_change_nothing(early_drop: EarlyDrop) {
    let mut first = plain(40, early_drop, 0);
    first.set_sysctl("nf_conntrack_udp_timeout", "35").unwrap();
    let tape: Vec<u64> = (0..4000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    first.play(&tape);
    let expected = life(first, |saved, now| {
        let entropy = &mut Entropy::from_test_seed(1);
        let mut table = Validated::check(saved, now, entropy).unwrap().rehash(entropy).unwrap();
        Box::new(move || table.seen())
    });
    let lens: BTreeSet<_> = expected.iter().map(|seen| seen.len).collect();
    assert!(lens.contains(&32) && lens.contains(&40), "{lens:?}");
    assert!(expected.last().unwrap().totals.early_drop > 3);
    for seed in 0..256 {
        let mut table = shared(40, early_drop, [1, 4][seed as usize % 2], 1000 + 2 * seed);
        table.set_sysctl("nf_conntrack_udp_timeout", "35").unwrap();
        table.play(&tape);
        let seen = life(table, |saved, now| {
            let mut table = restored(saved, 4, 1001 + 2 * seed, now);
            Box::new(move || table.seen())
        });
        assert!(seen == expected, "seed {seed}");
    }
}

fn gre_tuple(number: u32) -> Tuple {
    let [_, b, c, d] = number.to_be_bytes();
    Tuple { src: [10, b, c, d].into(), dst: [192, 0, 2, 1].into(), proto: proto::GRE, sport: 0, dport: 0 }
}

fn gre(number: u32) -> Vec<u8> {
    let tuple = gre_tuple(number);
    crate::conntrack::tests::datagram(proto::GRE, &tuple.src.to_string(), &tuple.dst.to_string(), &[0, 0, 8, 0])
}

#[test]
fn a_shard_that_overflows_is_dealt_out_anew_and_handles_stay_good() {
    let mut table = shared(3000, EarlyDrop::Off, 4, 1);
    let room = table.enter(0).capacity();
    assert!((900..1000).contains(&room));
    let crowd: Vec<_> =
        (0..100_000).filter(|number| table.home(&gre_tuple(*number)) == 2).take(room as usize).collect();
    let mut handles = Vec::new();
    for number in &crowd {
        assert_eq!(table.placement.deal(), 0);
        let mut attachment = table.attach(&gre(*number), Zone::default(), START).unwrap();
        Tracks::admit(&mut table, &mut attachment, START).unwrap();
        handles.push(attachment.handle().unwrap());
    }
    let one_more = (0..100_000).filter(|number| table.home(&gre_tuple(*number)) == 2).nth(room as usize).unwrap();
    let before = table.seen();
    let mut attachment = table.attach(&gre(one_more), Zone::default(), START).unwrap();
    Tracks::admit(&mut table, &mut attachment, START).unwrap();
    assert_eq!((table.placement.deal(), table.len(), table.enter(0).capacity()), (1, room + 1, room));
    assert_eq!(table.flows()[..room as usize], before.flows);
    for (handle, flow) in handles.iter().zip(&before.flows) {
        assert_eq!(table.flow(*handle).as_ref(), Some(flow));
        assert_eq!(table.find(&flow.orig, Zone::default()).map(|(found, _)| found), Some(*handle));
    }
    assert!(table.delete(handles[0], START) && !table.delete(handles[0], START));
}

#[test]
fn one_tuple_in_many_zones_makes_the_shards_larger_and_never_hangs() {
    let mut many = shared(256, EarlyDrop::Off, 4, 1);
    let mut one = plain(256, EarlyDrop::Off, 2);
    let room = many.enter(0).capacity();
    for id in 1..=300 {
        let zone = Zone { id, orig_only: false };
        let outcomes = [&mut many as &mut dyn Confirms, &mut one].map(|table| table.open(&gre(1), zone));
        assert_eq!(outcomes[0], outcomes[1], "zone {id}");
    }
    assert!(room < 200 && many.enter(0).capacity() == 256 && many.len() == 256);
    assert_eq!(many.seen(), one.seen());
}

trait Confirms {
    fn open(&mut self, packet: &[u8], zone: Zone) -> Result<(), Refusal>;
}

impl<T: Tracks> Confirms for T {
    fn open(&mut self, packet: &[u8], zone: Zone) -> Result<(), Refusal> {
        let mut attachment = self.attach(packet, zone, START)?;
        self.admit(&mut attachment, START)
    }
}

#[test]
fn a_tuple_that_two_saved_flows_claim_is_refused_whatever_shards_they_belong_to() {
    for translated in [false, true] {
        let mut source = plain(64, EarlyDrop::Off, 1);
        for (host, port) in [(1, 40_001_u16), (2, 40_002), (3, 40_003)] {
            let packet = udp(&format!("10.0.0.{}", if translated { host } else { 1 }), port, SERVER, 53);
            let mut attachment = source.attach(&packet, Zone::default(), START).unwrap();
            if translated {
                source.bind(&mut attachment, Manip::Source, Some(&NatRange::address(PUBLIC.parse().unwrap())));
            }
            Tracks::admit(&mut source, &mut attachment, START).unwrap();
        }
        let mut image = codec::encode(&source.save()).unwrap();
        let [third, first] = [40_003_u16, 40_001].map(u16::to_le_bytes);
        for at in 0..image.len() - 1 {
            if image[at..at + 2] == third {
                image[at..at + 2].copy_from_slice(&first);
            }
        }
        let refused = |shards| {
            let entropy = &mut Entropy::from_test_seed(2);
            let saved = codec::decode(&image, &Limits::default()).unwrap();
            let validated = Validated::check(saved, START, entropy).unwrap();
            match shards {
                0 => validated.rehash(entropy).map(drop).unwrap_err().to_string(),
                _ => validated.rehash_shared(Shards::new(shards).unwrap(), entropy).map(drop).unwrap_err().to_string(),
            }
        };
        let expected = refused(0);
        assert!(expected.contains("each tuple once"), "{expected}");
        for shards in [1, 2, 4, 64] {
            assert_eq!(refused(shards), expected);
        }
    }
}

#[test]
fn the_canary_scan_knows_every_key_of_every_shard_and_finds_none_in_an_image() {
    let mut table = shared(100, EarlyDrop::Off, 4, 1);
    for number in 0..50 {
        Confirms::open(&mut table, &gre(number), Zone::default()).unwrap();
    }
    let mut scan = CanaryScan::default();
    table.watch(&mut scan);
    let image = codec::encode(&table.save()).unwrap();
    let report = scan.search(&image);
    // The shard key, the key of all port choices, and two of each shard: nine windows each, in both byte orders. And the
    // seed of each shard's generator: twenty-five.
    assert_eq!((report.hits, report.key_windows, report.hashes), (vec![], 10 * 18 + 4 * 50, 2 * 50));
    assert_eq!(scan.fingerprints().iter().collect::<BTreeSet<_>>().len(), 14);
    assert_eq!(scan.planted(&image, &mut Entropy::from_test_seed(1)), 10 * 18 + 4 * 50);
    let before = scan.fingerprints().to_vec();
    table.reseed();
    let mut scan = CanaryScan::default();
    table.watch(&mut scan);
    let kept = scan.fingerprints().iter().filter(|print| before.contains(print)).map(|(name, _)| *name);
    let mut kept: Vec<_> = kept.collect();
    kept.sort_unstable();
    let generators = ["later table hashes"; 4];
    assert_eq!(kept, [&["NAT ports"; 5][..], &generators].concat(), "a reseed draws all placement keys anew");
}

#[test]
fn there_are_one_to_sixty_four_shards() {
    assert_eq!(Shards::new(0).unwrap_err().to_string(), "shards: found 0, expected 1 to 64");
    assert!(Shards::new(65).is_err() && Shards::new(1).is_ok() && Shards::new(64).is_ok());
    assert!(
        SharedConntrack::new(config(0, EarlyDrop::Off), Shards(1), &mut Entropy::from_test_seed(1), START).is_err()
    );
}

#[test]
fn what_a_packet_meets_is_the_limit_of_the_whole_table() {
    for shards in [1, 4] {
        let mut table = shared(30, EarlyDrop::Off, shards, 1);
        table.set_sysctl("nf_conntrack_max", "20").unwrap();
        assert_eq!(table.sysctls().value("nf_conntrack_max"), Some(20));
        let entered = (0..50).filter(|number| Confirms::open(&mut table, &gre(*number), Zone::default()).is_ok());
        assert_eq!(entered.count(), 20);
        assert_eq!(table.totals().drop, 30);
        assert!(table.set_sysctl("nf_conntrack_max", "x").is_err());
        table.flush(START);
        assert!(table.is_empty() && table.capacity() == 30 && table.next_expiry().is_none());
    }
}
