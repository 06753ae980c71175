//! How long packets wait for what a flow table does beside: expiry, a new hash key; and what a flood of colliding tuples costs.

#[expect(dead_code, reason = "table-bench uses the rest")]
#[path = "table-bench/machine.rs"]
mod machine;
#[expect(dead_code, reason = "table-bench uses the rest")]
#[path = "../../../conntrack/benches/packets.rs"]
mod packets;
#[expect(dead_code, reason = "table-bench uses the rest")]
#[path = "table-bench/tuples.rs"]
mod tuples;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use hibernet_conntrack::{Attachment, Config, Conntrack, Incoming, Origin, Parsed, Tuple, Zone, parse};
use hibernet_snapshot::{Entropy, Instant};
use hibernet_tests::traffic::tuple_hash;
use sandbox_demo::parts::HugePages;
use serde_json::json;

use crate::machine::{median, timed};
use crate::packets::{Content, SYN};
use crate::tuples::{V4, shuffle, tuples};

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

/// Measures the pauses of the flow table, in CPU time of the thread that would handle packets.
///
///   expiry     all flows run out at once; between bursts of 32 packets the table collects as many as one poll of the stack
///              does. What a packet waits for is one such call: none may take over 100 us
///
///   flood      100000 tuples chosen to fall into a thousandth of the buckets under a known key, against as many random ones:
///              look-ups and new flows in a table under a key of its own. What the known key is worth is their ratio
///
///   rehash     all flows are filed under another key at once, as when the index overruns
#[derive(Parser)]
#[command(name = "table-pauses", verbatim_doc_comment)]
struct Arguments {
    /// Flows in the table: 100000 to 6000000.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    flows: u32,
    /// Flows that one call of expiry looks at: 64 is what the gateway asks for.
    #[arg(long, value_name = "N", default_value_t = 64)]
    budget: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("table-pauses: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { flows, budget, json } = *arguments;
    ensure!((COLLIDING as u32..=6_000_000).contains(&flows), "found --flows {flows}, expected 100000 to 6000000");
    ensure!(budget > 0, "found --budget 0, expected 1 or more");
    let free = machine::free_memory()?;
    ensure!(flows as usize * 700 < free, "{flows} flows need more than the {} MB that are free", free >> 20);
    eprintln!("table-pauses: {} flows run out, on a machine with {} cores", flows, machine::cores());
    let mut calls = expiry(flows, budget)?;
    calls.sort_unstable();
    let at = |share: f64| calls[((calls.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    let (middle, most, longest) = (at(0.5), at(0.999), at(1.0));
    eprintln!("table-pauses: a flood under a known key");
    let [crafted, random] = [true, false].map(flood);
    let ratios = [crafted[0] / random[0], crafted[1] / random[1]];
    eprintln!("table-pauses: another key for {flows} flows");
    let mut table = filled(&tuples::<V4>(0, flows as usize), flows)?;
    let rehash_ms = machine::median_ms(|| timed(|| table.reseed()).0);
    if json {
        println!(
            "{}",
            json!({
                "flows": flows, "budget": budget, "calls": calls.len(),
                "expiry_us": { "median": middle, "p99_9": most, "longest": longest },
                "flood": { "lookup_ratio": ratios[0], "insert_ratio": ratios[1] },
                "rehash_ms": rehash_ms,
            })
        );
        return Ok(());
    }
    println!("expiry of {flows} flows, {budget} a call, {} calls between bursts of 32 packets:", calls.len());
    println!("  a call takes {middle:.1} us (median), {most:.1} us (99.9 %), {longest:.1} us (longest)");
    println!("flood of {COLLIDING} tuples that collide under a known key, against random ones:");
    println!("  look-up {:.1} to {:.1} ns: {:.2}x", crafted[0], random[0], ratios[0]);
    println!("  new flow {:.1} to {:.1} ns: {:.2}x", crafted[1], random[1], ratios[1]);
    println!("another key for {flows} flows: {rehash_ms:.1} ms");
    Ok(())
}

/// What each call takes, in nanoseconds.
fn expiry(flows: u32, budget: usize) -> Result<Vec<u64>> {
    let all = tuples::<V4>(0, flows as usize);
    let mut table = filled(&all, flows)?;
    // As many again run out a day later: packets of theirs come between.
    let packets: Vec<Vec<u8>> = tuples::<V4>(flows as usize, 32).iter().map(opening).collect();
    let parsed: Vec<Parsed> = packets.iter().map(|bytes| Ok(parse(bytes)?)).collect::<Result<_>>()?;
    let incoming: Vec<Incoming<'_>> = packets
        .iter()
        .zip(&parsed)
        .map(|(datagram, parsed)| Incoming { datagram, parsed, zone: Zone::default(), origin: Origin::Link })
        .collect();
    let later = Instant::from_secs(NOW.as_nanos() / 1_000_000_000 + 3600);
    let mut calls = Vec::new();
    while !table.is_empty() {
        table.track_burst(&incoming, later, |_, _, _| {});
        calls.push(timed(|| table.expire(later, budget)).0);
        while table.next_event().is_some() {}
        ensure!(calls.len() <= flows as usize, "flows stay that should have run out");
    }
    Ok(calls)
}

/// Nanoseconds of a look-up and of a new flow, for tuples that collide under a known key or do not.
fn flood(crafted: bool) -> [f64; 2] {
    let known = [7; 16];
    let collides = |tuple: &Tuple| tuple_hash(&known, tuple) & 0xffff_ffff < u64::from(u32::MAX) / 1000;
    let mut chosen = Vec::new();
    let mut from = 0;
    while chosen.len() < COLLIDING {
        // All different: each takes a client's address of its own, and another port in each round.
        let drawn = tuples::<V4>(from & 0xff_ffff, 1 << 18).into_iter();
        let varied = drawn.map(|tuple| Tuple { dport: 443 + (from >> 24) as u16, ..tuple });
        chosen.extend(varied.filter(|tuple| !crafted || collides(tuple)));
        from += 1 << 18;
    }
    chosen.truncate(COLLIDING);
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..machine::ROUNDS {
        shuffle(&mut chosen, round as u64);
        let Ok(mut table) = empty(COLLIDING as u32) else { return [f64::NAN; 2] };
        let mut attachments = opened(&mut table, &chosen).unwrap_or_default();
        let (ns, ()) = timed(|| table.confirm_burst(&mut attachments, NOW, |_, _| {}));
        figures[1].push(ns as f64 / COLLIDING as f64);
        shuffle(&mut chosen, 50 + round as u64);
        let mut found = 0;
        let look = |_: usize, flow: Option<_>| found += usize::from(flow.is_some());
        let (ns, ()) = timed(|| table.refresh_burst(&chosen, Zone::default(), 600, NOW, look));
        figures[0].push(if found == COLLIDING { ns as f64 / COLLIDING as f64 } else { f64::NAN });
    }
    figures.map(|rounds| median(rounds.len(), |round| rounds[round]))
}

fn empty(flows: u32) -> Result<Conntrack> {
    let mut config = Config { capacity: flows, ..Config::default() };
    config.sysctls.max = flows;
    let mut table = Conntrack::new(config, &mut Entropy::from_test_seed(3), NOW)?;
    table.prefault(flows, 0);
    Ok(table)
}

fn filled(flows: &[Tuple], room: u32) -> Result<Conntrack> {
    let mut table = empty(room)?;
    for part in flows.chunks(1024) {
        let mut attachments = opened(&mut table, part)?;
        table.confirm_burst(&mut attachments, NOW, |_, _| {});
        while table.next_event().is_some() {}
    }
    ensure!(table.len() as usize == flows.len(), "flows did not enter the table");
    Ok(table)
}

fn opened(table: &mut Conntrack, flows: &[Tuple]) -> Result<Vec<Attachment>> {
    let open = |tuple| {
        let bytes = opening(tuple);
        Ok(table.track(&bytes, &parse(&bytes)?, Zone::default(), Origin::Link, NOW)?)
    };
    flows.iter().map(open).collect()
}

fn opening(tuple: &Tuple) -> Vec<u8> {
    let mut bytes = Vec::new();
    packets::write(&mut bytes, tuple, Content { flags: SYN, seq: 1, ack: 0, payload: 0 });
    bytes
}

const NOW: Instant = Instant::from_secs(1000);
const COLLIDING: usize = 100_000;
