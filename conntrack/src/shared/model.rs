//! The lock rules, in every order in which two threads can come: run by `.ci/loom`.
//!
//! What is modelled is [`SharedConntrack`] itself with other locks and counters; a table of a few flows is enough for every
//! rule. The number of preemptions is bounded, as is usual (Musuvathi and Qadeer, 2007).

use std::collections::BTreeSet;

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::attachment::Attachment;
use crate::conntrack::tests::{PUBLIC, SERVER, START, udp};
use crate::conntrack::{EarlyDrop, Origin, Refusal};
use crate::headers::parse;
use crate::nat::{Manip, NatRange};
use crate::tuple::Zone;

/// Tries all orders with so many preemptions.
fn model(preemptions: usize, scene: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(scene);
}

fn table(early_drop: EarlyDrop, capacity: u32) -> Arc<SharedConntrack> {
    let mut config = Config { capacity, early_drop, ..Config::default() };
    config.sysctls.checksum = false;
    config.sysctls.max = capacity;
    let entropy = &mut Entropy::from_test_seed(1);
    Arc::new(SharedConntrack::new(config, Shards(2), entropy, START).unwrap())
}

fn track(table: &SharedConntrack, packet: &[u8]) -> Result<Attachment, Refusal> {
    table.track(packet, &parse(packet).unwrap(), Zone::default(), Origin::Link, START)
}

/// Lets a flow into the table, translated or not. True if it is there.
fn enter(table: &SharedConntrack, host: u8, masquerade: bool) -> bool {
    let packet = udp(&format!("10.0.0.{host}"), 4000, SERVER, 53);
    let Ok(mut attachment) = track(table, &packet) else { return false };
    if masquerade {
        table.nat_null_bind(&mut attachment, Manip::Destination);
        table.nat_bind(&mut attachment, Manip::Source, &NatRange::address(PUBLIC.parse().unwrap()));
    }
    table.confirm(&mut attachment, START).is_ok()
}

/// What must hold whenever nobody is at work.
fn assert_sound(table: &SharedConntrack) {
    let flows = table.flows();
    let tuples: BTreeSet<_> = flows.iter().flat_map(|flow| [flow.orig, flow.reply]).collect();
    assert_eq!(tuples.len(), 2 * flows.len(), "each tuple once");
    assert_eq!(table.len() as usize, flows.len());
    let across = flows.iter().filter(|flow| table.lies_across(flow.status, &flow.orig, &flow.reply)).count();
    assert_eq!(table.counts.across.load(Ordering::Relaxed) as usize, across);
    for flow in &flows {
        assert!(table.find(&flow.orig, flow.zone).is_some() && table.find(&flow.reply, flow.zone).is_some());
    }
}

#[test]
fn two_threads_that_open_one_flow_open_it_once() {
    model(3, || {
        let table = table(EarlyDrop::Off, 4);
        let other = Arc::clone(&table);
        // Two first packets of one flow: the second joins the flow of the first.
        let thread = thread::spawn(move || enter(&other, 2, false));
        assert!(enter(&table, 2, false) && thread.join().unwrap());
        assert_eq!(table.len(), 1);
        assert_sound(&table);
    });
}

#[test]
fn translated_flows_of_two_threads_never_share_a_port() {
    model(2, || {
        let table = table(EarlyDrop::Off, 4);
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || enter(&other, 2, true));
        let (one, two) = (enter(&table, 3, true), thread.join().unwrap());
        assert_eq!(table.len(), u32::from(one) + u32::from(two));
        assert!(one || two);
        assert_sound(&table);
    });
}

#[test]
fn a_flow_is_found_while_all_are_dealt_out_anew() {
    model(2, || {
        let table = table(EarlyDrop::Off, 4);
        assert!(enter(&table, 2, true) && enter(&table, 3, false));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || other.reseed());
        for host in [2, 3] {
            let packet = udp(&format!("10.0.0.{host}"), 4000, SERVER, 53);
            assert!(track(&table, &packet).unwrap().handle().is_some(), "host {host}");
        }
        thread.join().unwrap();
        assert_sound(&table);
    });
}

#[test]
fn a_full_table_lets_one_flow_go_for_each_that_comes() {
    model(2, || {
        let table = table(EarlyDrop::Lru, 2);
        assert!(enter(&table, 2, false) && enter(&table, 3, false));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || enter(&other, 4, false));
        let (one, two) = (enter(&table, 5, false), thread.join().unwrap());
        assert!(one || two);
        assert!(table.len() <= table.capacity());
        assert_sound(&table);
    });
}

#[test]
fn a_save_holds_what_is_there_at_one_moment() {
    model(2, || {
        let table = table(EarlyDrop::Off, 4);
        assert!(enter(&table, 2, false));
        let other = Arc::clone(&table);
        let thread = thread::spawn(move || enter(&other, 3, true));
        let entropy = &mut Entropy::from_test_seed(2);
        let saved = table.save();
        let restored = Validated::check(saved, START, entropy).unwrap().rehash(entropy).unwrap();
        assert!((1..=2).contains(&restored.len()));
        assert!(thread.join().unwrap());
        assert_sound(&table);
    });
}
