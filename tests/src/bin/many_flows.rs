//! Writes two images of many flows that differ in some, to measure what reads them:
//!
//! ```text
//! cargo run --release -p hibernet-tests --bin many_flows -- 1000000 10000 before.hib after.hib
//! /usr/bin/time -v target/release/sandbox-demo diff before.hib after.hib >changes
//! ```

#![expect(clippy::disallowed_methods, reason = "a tool that writes files")]

use std::fs;
use std::path::PathBuf;

use anyhow::ensure;
use clap::Parser;
use hibernet_tests::traffic::{GENERATION, Gateway, Record, START, Session, play_line, with_records};

#[derive(Debug, Parser)]
struct Arguments {
    /// Flows of each image: three quarters IPv4, a quarter IPv6, all TCP.
    flows: u32,
    /// How many of them differ.
    differing: u32,
    /// The earlier image.
    before: PathBuf,
    /// The later one.
    after: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments { flows, differing, before, after } = Arguments::parse();
    ensure!(flows <= 4_000_000 && differing <= flows, "at most 4000000 flows, of which no more than all differ");
    let mut session = Session::of(Gateway::with_room_for(flows.max(16)).open(1), 0, START);
    for (link, line) in [
        ("dmz", "tcp 198.18.0.2:5000 > 198.51.100.10:80 S seq=1 mss=1460"),
        ("dmz", "tcp [2001:db8:18::2]:5000 > [2001:db8:1::10]:80 S seq=1 mss=1440"),
    ] {
        play_line(&mut session, link, line);
    }
    let small = session.stack.save(GENERATION, session.now())?;
    for (path, changed) in [(before, 0), (after, differing)] {
        let many = with_records(&small, |records| {
            let [v4, v6] = <[Record; 2]>::try_from(std::mem::take(records)).expect("a flow of each version");
            *records = (0..flows)
                .map(|number| flow(if number % 4 == 3 { &v6 } else { &v4 }, number, number < changed))
                .collect();
        });
        fs::write(path, many)?;
    }
    Ok(())
}

/// The flow with that number in its source: 10.x.x.x, or the last four bytes.
fn flow(template: &Record, number: u32, changed: bool) -> Record {
    let mut record = template.clone();
    let [_, high, mid, low] = number.to_be_bytes();
    let source = if template.bytes[0] & 1 == 0 { TUPLE_AT } else { TUPLE_AT + 12 };
    record.bytes[source..source + 4].copy_from_slice(&[10, high, mid, low]);
    if changed {
        // One segment more: its sequence number is another.
        let at = record.tcp_at.expect("a TCP flow") + LAST_SEQ_AT;
        record.bytes[at] ^= 1;
    }
    record
}

/// Where the original tuple begins in a record, and the last sequence number in TCP's state: SNAPSHOT-FORMAT.md.
const TUPLE_AT: usize = 8;
const LAST_SEQ_AT: usize = 6;
