//! How fast the flow table is: beside the maps a program could use in its place, and beside what the machine can do at all.

#![expect(clippy::disallowed_types, reason = "the peers are the maps that the libraries may not use")]

mod figures;
mod limits;
mod machine;
mod ours;
mod own;
#[path = "../../../../conntrack/benches/packets.rs"]
mod packets;
mod peers;
mod report;
mod tuples;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use sandbox_demo::parts::HugePages;

use crate::figures::Figures;
use crate::tuples::{Family, V4, V6};

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

/// Measures the flow table, its peers and the machine's limits in one run, on the same tuples in random order.
///
/// Everything is sized for the flows beforehand and its memory touched, every flow has two tuples, and the peers keep 64 bytes
/// for it. Each figure is the median of seven rounds or more, in CPU time of the thread that does the work, so that other
/// programs disturb little. Times are nanoseconds for one packet or one new flow.
///
///   lookup  find the flow of a tuple and put off its end: in bursts of 32, or one by one
///
///   track   read the headers, follow TCP, translate (every flow is masqueraded), payload of 8 bytes
///
///   insert  a new flow enters the table (the station `confirm`)
///
///   save    the pause is for how long no packet passes; then the image is whole, in memory
///
///   rehash  every tuple is filed under another key, as after a restore
///
/// Ratios within a run say more than nanoseconds: run it on a quiet machine, and never with another one beside it.
#[derive(Parser)]
#[command(name = "table-bench", verbatim_doc_comment)]
struct Arguments {
    /// Flows in the table, of all threads together: 1 to 6000000.
    #[arg(long, value_name = "N")]
    flows: u32,
    /// IPv6 instead of IPv4.
    #[arg(long)]
    v6: bool,
    /// Threads that work at once, each on a table of its own with its share of the flows (peers made to be shared are shared).
    #[arg(long, value_name = "T", default_value_t = 1)]
    threads: u32,
    /// Print one JSON object and no table.
    #[arg(long)]
    json: bool,
    /// Print the bytes a flow takes in one table, and nothing else.
    #[arg(long, value_name = "TABLE", hide = true, value_parser = own::NAMES)]
    memory_of: Option<String>,
}

/// What is measured, for one family of addresses.
#[derive(Clone, Copy)]
struct Plan {
    flows: usize,
    threads: usize,
}

impl Plan {
    /// Flows of one thread.
    const fn share(self) -> usize {
        self.flows / self.threads
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("table-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let Arguments { flows, v6, threads, json, memory_of } = arguments;
    let plan = Plan { flows: flows as usize, threads: threads as usize };
    check(plan, v6)?;
    if let Some(name) = memory_of {
        println!("{}", if v6 { own::bytes_here::<V6>(plan, &name)? } else { own::bytes_here::<V4>(plan, &name)? });
        return Ok(());
    }
    let figures = if v6 { measured::<V6>(plan)? } else { measured::<V4>(plan)? };
    let mut out = std::io::stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&figures)?)?,
        false => writeln!(out, "{}", report::table(&figures))?,
    }
    Ok(())
}

/// Refuses what could not be measured here.
fn check(plan: Plan, v6: bool) -> Result<()> {
    let Plan { flows, threads } = plan;
    ensure!((1..=MOST_FLOWS).contains(&flows), "found --flows {flows}, expected 1 to {MOST_FLOWS}");
    let cores = machine::cores();
    ensure!(
        (1..=cores).contains(&threads),
        "found --threads {threads}, expected 1 to {cores}: each thread needs a core of its own, and there are so many"
    );
    ensure!(
        flows >= threads,
        "found --flows {flows} and --threads {threads}: expected a flow for each thread at least"
    );
    let needed = flows.saturating_mul(if v6 { 1400 } else { 1000 });
    let free = machine::free_memory()?;
    if needed > free {
        bail!("{flows} flows need about {} MB, and {} MB are free: try fewer flows", needed >> 20, free >> 20);
    }
    Ok(())
}

fn measured<F: Family>(plan: Plan) -> Result<Figures> {
    progress("the machine's limits");
    let limits = limits::measured(plan, ours::bytes_walked::<F>(plan));
    let ours = ours::measured::<F>(plan)?;
    let peers = peers::measured::<F>(plan)?;
    Ok(Figures { flows: plan.flows, family: F::NAME, threads: plan.threads, limits, ours, peers })
}

/// Tells what is being measured, apart from what was.
fn progress(what: &str) {
    eprintln!("table-bench: {what}");
}

/// More flows than that would make a peer's image larger than the codec takes.
const MOST_FLOWS: usize = 6_000_000;
