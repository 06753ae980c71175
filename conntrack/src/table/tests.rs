use std::collections::BTreeMap;
use std::time::Duration;

use hibernet_snapshot::Snapshot;
use proptest::prelude::*;

use super::*;
use crate::protocol::ProtocolState;
use crate::record::Counters;
use crate::status::Status;
use crate::tuple::proto;

const HOUR: Duration = Duration::from_secs(3600);

fn v4(number: u32) -> Tuple {
    let [_, b, c, d] = number.to_be_bytes();
    Tuple {
        src: [10, b, c, d].into(),
        dst: [192, 0, 2, 1].into(),
        proto: proto::GRE,
        sport: 1024 + (number % 50_000) as u16,
        dport: 443,
    }
}

fn v6(number: u32) -> Tuple {
    let mut src = [0x20; 16];
    src[12..].copy_from_slice(&number.to_be_bytes());
    Tuple { src: src.into(), dst: [0x26; 16].into(), ..v4(number) }
}

/// A flow; every third is translated, every fourth assured.
fn flow(number: u32, orig: Tuple) -> FlowRecord {
    let inverse = orig.inverted().unwrap();
    let masqueraded = if orig.is_v6() { "2001:db8::1" } else { "203.0.113.1" }.parse().unwrap();
    let mut status = Status::CONFIRMED;
    status.set(Status::SRC_NAT | Status::SRC_NAT_DONE | Status::DST_NAT_DONE, number.is_multiple_of(3));
    status.set(Status::ASSURED, number.is_multiple_of(4));
    let translated = Tuple { dst: masqueraded, dport: (number % 60_000) as u16 + 1, ..inverse };
    FlowRecord {
        reply: if number.is_multiple_of(3) { translated } else { inverse },
        orig,
        zone: Zone::default(),
        status,
        remaining: HOUR,
        protocol: ProtocolState::Other,
        mark: number % 2,
        counters: Counters::default(),
    }
}

fn numbered(number: u32) -> FlowRecord {
    flow(number, if number.is_multiple_of(5) { v6(number) } else { v4(number) })
}

fn table(flows: u32, seed: u64) -> Table {
    let mut table = Table::new(flows, &mut Entropy::from_test_seed(seed), Instant::from_secs(100));
    for number in 0..flows {
        table.insert(&numbered(number)).unwrap();
    }
    table
}

fn restored(saved: TableSaved, seed: u64) -> Result<Table, Invalid> {
    let options = &mut RestoreOptions::default();
    Unfiled::check(saved, Instant::from_secs(7), options)?.rehash(&mut Entropy::from_test_seed(seed), options)
}

fn assert_all_found(table: &Table, flows: u32) {
    for number in 0..flows {
        let flow = numbered(number);
        let (slot, direction) = table.find(&flow.orig, flow.zone).unwrap();
        assert_eq!(direction, Direction::Original);
        assert_eq!(table.find(&flow.reply, flow.zone), Some((slot, Direction::Reply)));
        assert_eq!(table.flows().record(slot), Some(flow));
    }
}

#[test]
fn every_saved_flow_is_found_under_a_new_key() {
    let saved = table(5000, 1);
    assert_all_found(&saved, 5000);
    let restored = restored(saved.save(), 2).unwrap();
    assert_ne!(saved.key().expose(), restored.key().expose());
    assert_all_found(&restored, 5000);
}

#[test]
fn the_derived_restore_files_every_flow_too() {
    let supplied = TableSupplied { flows: Instant::from_secs(7) };
    let restored = Table::restore(table(500, 1).save(), supplied, &mut Entropy::from_test_seed(2)).unwrap();
    assert_all_found(&restored, 500);
}

#[test]
fn no_bucket_is_home_to_many_more_flows_than_its_share_under_either_key() {
    let flows: u32 = 4096;
    let first = table(flows, 1);
    let second = restored(first.save(), 2).unwrap();
    for table in [&first, &second] {
        let mut homes = BTreeMap::new();
        for number in 0..flows {
            *homes.entry(table.index.home(hash_tuple(&table.key, &numbered(number).orig))).or_insert(0) += 1;
        }
        let share = f64::from(flows) / table.index.buckets() as f64;
        let most = homes.into_values().max().unwrap();
        assert!(f64::from(most) <= share + 6.0 * share.sqrt(), "{most} in one bucket, {share} on average");
    }
}

#[test]
fn tuples_chosen_to_collide_under_a_known_key_spread_under_a_fresh_one() {
    let known = Table::new(100_000, &mut Entropy::from_test_seed(1), Instant::ZERO);
    let colliding: Vec<_> =
        (0..3_000_000).map(v4).filter(|tuple| known.index.home(hash_tuple(&known.key, tuple)) == 17).collect();
    assert!(colliding.len() > 80);
    let fresh = Table::new(100_000, &mut Entropy::from_test_seed(2), Instant::ZERO);
    let mut homes = BTreeMap::new();
    for tuple in &colliding {
        *homes.entry(fresh.index.home(hash_tuple(&fresh.key, tuple))).or_insert(0) += 1;
    }
    assert!(homes.into_values().max().unwrap() <= 3);
}

#[test]
fn save_restore_save_is_the_identity() {
    let saved = table(1000, 1).save();
    let again = restored(saved.clone(), 2).unwrap().save();
    assert_eq!(saved, again);
}

#[test]
fn a_tuple_that_two_flows_claim_is_refused() {
    let mut table = table(50, 1);
    table.remove(table.find(&numbered(3).orig, Zone::default()).unwrap().0);
    table.flows.store(&numbered(7)).unwrap();
    let refusal = restored(table.save(), 2).unwrap_err();
    assert_eq!(refusal.expected, "each tuple once");
}

#[test]
fn a_handle_finds_nothing_once_its_slot_belongs_to_another_flow() {
    let mut table = table(10, 1);
    let (slot, _) = table.find(&numbered(4).orig, Zone::default()).unwrap();
    let handle = table.flows().handle(slot).unwrap();
    assert_eq!(table.flows().slot(handle), Some(slot));
    table.remove(slot);
    assert_eq!(table.flows().slot(handle), None);
    assert_eq!(table.insert(&numbered(104)), Ok(slot));
    assert_eq!(table.flows().slot(handle), None);
}

#[test]
fn a_table_takes_as_many_flows_as_it_was_sized_for_and_no_more() {
    let mut table = table(64, 1);
    assert_eq!(table.insert(&numbered(1000)), Err(NotInserted::Full));
    assert_eq!(table.insert(&numbered(5)), Err(NotInserted::Taken));
    assert_all_found(&table, 64);
}

#[test]
fn a_live_reseed_moves_no_slot_and_loses_no_flow() {
    let mut table = table(2000, 1);
    let (saved, key) = (table.save(), *table.key().expose());
    let slots: Vec<_> = (0..2000).map(|n| table.find(&numbered(n).orig, Zone::default())).collect();
    table.reseed();
    assert_ne!(*table.key().expose(), key);
    assert_eq!((0..2000).map(|n| table.find(&numbered(n).orig, Zone::default())).collect::<Vec<_>>(), slots);
    assert_eq!(table.save(), saved);
}

#[test]
fn zones_keep_equal_tuples_apart() {
    let mut table = Table::new(10, &mut Entropy::from_test_seed(1), Instant::ZERO);
    let zones = [Zone::default(), Zone { id: 1, orig_only: false }, Zone { id: 2, orig_only: false }];
    for zone in zones {
        table.insert(&FlowRecord { zone, ..numbered(1) }).unwrap();
    }
    let found = zones.map(|zone| table.find(&v4(1), zone).unwrap().0);
    assert!(found[0] != found[1] && found[1] != found[2]);
    let orig_only = Zone { id: 3, orig_only: true };
    let reply = v4(1).inverted().unwrap();
    assert_eq!(
        table.insert(&FlowRecord { zone: orig_only, ..numbered(1) }),
        Err(NotInserted::Taken),
        "reply is in zone 0"
    );
    assert_eq!(table.find(&reply, orig_only), Some((found[0], Direction::Reply)));
}

#[test]
fn when_a_flow_expires_depends_on_its_deadline_alone_and_not_on_earlier_ones() {
    let start = Instant::from_millis(1_000_003);
    for millis in (10_900..11_300).step_by(10) {
        let expired = [1, 11].map(|seconds| {
            let mut table = Table::new(4, &mut Entropy::from_test_seed(1), start);
            let slot = table.insert(&FlowRecord { remaining: Duration::from_secs(seconds), ..numbered(1) }).unwrap();
            table.flows_mut().set_timeout(slot, 11);
            table.flows_mut().advance(start.saturating_add(Duration::from_millis(millis)));
            table.flows_mut().expired(usize::MAX).len()
        });
        assert_eq!(expired[0], expired[1], "after {millis} ms");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32, u8),
    Remove(u32),
    Timeout(u32, u16),
    Pass(u16),
    Reseed,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u32..60, any::<u8>()).prop_map(|(n, s)| Step::Insert(n, s)),
        2 => (0u32..60).prop_map(Step::Remove),
        2 => (0u32..60, 0u16..300).prop_map(|(n, s)| Step::Timeout(n, s)),
        2 => (0u16..60_000).prop_map(Step::Pass),
        1 => Just(Step::Reseed),
    ];
    prop::collection::vec(step, 1..150)
}

/// A table next to a plain map from flow number to deadline.
struct Driven {
    table: Table,
    deadlines: BTreeMap<u32, Instant>,
    now: Instant,
}

impl Driven {
    fn new(seed: u64) -> Self {
        let now = Instant::from_millis(1_000_003);
        let table = Table::new(40, &mut Entropy::from_test_seed(seed), now);
        Self { table, deadlines: BTreeMap::new(), now }
    }

    fn find(&self, number: u32) -> Option<Slot> {
        self.table.find(&numbered(number).orig, Zone::default()).map(|(slot, _)| slot)
    }

    /// Applies a step and returns the flows that expired in it.
    fn apply(&mut self, step: &Step) -> Vec<Tuple> {
        match *step {
            Step::Insert(number, seconds) => {
                let remaining = Duration::from_secs(u64::from(seconds) + 1);
                let inserted = self.table.insert(&FlowRecord { remaining, ..numbered(number) });
                let expected = match self.deadlines.len() {
                    _ if self.deadlines.contains_key(&number) => Err(NotInserted::Taken),
                    40 => Err(NotInserted::Full),
                    _ => Ok(()),
                };
                assert_eq!(inserted.map(|_| ()), expected);
                if expected.is_ok() {
                    self.deadlines.insert(number, self.now.saturating_add(remaining));
                }
            }
            Step::Remove(number) => {
                assert_eq!(self.find(number).is_some(), self.deadlines.remove(&number).is_some());
                if let Some(slot) = self.find(number) {
                    self.table.remove(slot);
                }
            }
            Step::Timeout(number, seconds) => {
                if let Some(slot) = self.find(number) {
                    self.table.flows_mut().set_timeout(slot, u32::from(seconds));
                    let wait = Duration::from_secs(u64::from(seconds));
                    self.deadlines.insert(number, self.now.saturating_add(wait));
                }
            }
            Step::Pass(millis) => self.now = self.now.saturating_add(Duration::from_millis(u64::from(millis))),
            Step::Reseed => self.table.reseed(),
        }
        self.table.flows_mut().advance(self.now);
        let expired = self.table.flows_mut().expired(usize::MAX);
        let tuple = |slot: &Slot| self.table.flows().tuple(*slot, Direction::Original).unwrap();
        let tuples: Vec<_> = expired.iter().map(tuple).collect();
        for (slot, tuple) in expired.into_iter().zip(&tuples) {
            self.table.remove(slot);
            let number = (0..60).find(|number| numbered(*number).orig == *tuple).unwrap();
            assert!(self.deadlines.remove(&number).unwrap() <= self.now, "expired early");
        }
        tuples
    }
}

proptest! {
    #[test]
    fn the_table_does_what_a_map_of_deadlines_does(steps in steps()) {
        let mut driven = Driven::new(1);
        for step in &steps {
            driven.apply(step);
            // Late by a tick and the wheel's slot at most.
            let late = Duration::from_millis(125 + 8);
            prop_assert!(driven.deadlines.values().all(|deadline| deadline.saturating_add(late) > driven.now));
            prop_assert_eq!(driven.table.flows().len() as usize, driven.deadlines.len());
            for number in 0..60 {
                prop_assert_eq!(driven.find(number).is_some(), driven.deadlines.contains_key(&number));
            }
            let oldest = driven.table.flows().oldest_unassured();
            let order = driven.table.flows().in_creation_order();
            let unassured = |slot: &&Slot| !driven.table.flows().core(**slot).unwrap().status().contains(Status::ASSURED);
            prop_assert_eq!(oldest, order.iter().find(unassured).copied());
        }
    }

    /// DESIGN test P, for the table: what a save holds does not depend on the key.
    #[test]
    fn placement_keys_change_nothing_that_a_save_holds(steps in steps()) {
        let (mut first, mut second) = (Driven::new(1), Driven::new(2));
        for step in &steps {
            prop_assert_eq!(first.apply(step), second.apply(step));
            prop_assert_eq!(first.table.save(), second.table.save());
        }
        let again = restored(first.table.save(), 3).unwrap();
        prop_assert_eq!(again.save(), second.table.save());
    }

    /// A restored table runs on in step: the same flows expire at the same time, in the same order.
    #[test]
    fn a_restored_table_expires_as_its_source_does(before in steps(), after in steps()) {
        let mut source = Driven::new(1);
        for step in &before {
            source.apply(step);
        }
        // What is over but not collected is not saved: the source forgets it here too.
        for slot in source.table.flows().in_creation_order() {
            if source.table.flows().is_expired(slot) {
                let orig = source.table.flows().tuple(slot, Direction::Original).unwrap();
                source.deadlines.retain(|number, _| numbered(*number).orig != orig);
                source.table.remove(slot);
            }
        }
        let now = source.now;
        let entropy = &mut Entropy::from_test_seed(2);
        let options = &mut RestoreOptions::default();
        let table = Unfiled::check(source.table.save(), now, options).unwrap().rehash(entropy, options).unwrap();
        let deadlines = source.deadlines.clone();
        let mut restored = Driven { table, deadlines, now };
        for step in &after {
            prop_assert_eq!(source.apply(step), restored.apply(step));
            prop_assert_eq!(source.table.save(), restored.table.save());
        }
    }

    #[test]
    fn arbitrary_saved_records_are_refused_or_come_back_as_they_were(records: Vec<u8>, count in 0u32..4, capacity in 0u32..9) {
        let saved = TableSaved { flows: FlowsSaved::of_records(capacity, count, records) };
        if let Ok(table) = restored(saved.clone(), 1) {
            prop_assert_eq!(table.save(), saved);
        }
    }

    #[test]
    fn a_changed_byte_of_a_record_is_refused_or_comes_back_as_it_is(at in 0usize..2000, bit in 0u8..8) {
        let mut saved = table(20, 1).save();
        saved.flows.flip(at, bit);
        if let Ok(table) = restored(saved.clone(), 1) {
            prop_assert_eq!(table.save(), saved);
        }
    }
}
