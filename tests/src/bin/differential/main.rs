//! Random traffic through the running kernel and through the stack: they must say and do the same.
//!
//! Hosts that talk TCP, UDP, ICMP and SCTP send packets through a router that forwards, filters or translates; some of
//! the packets are wrong in some way. Each batch is played to the kernel (`oracle/oracle.py`, as root) and, packet by packet
//! at the same moments, to the stack. Everything but the moments follows from the seed.

mod batch;
mod coverage;
mod datagrams;
mod dice;
mod path;
mod shrink;
mod tcp;
mod verdict;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;

use crate::batch::Batch;
use crate::coverage::Coverage;
use crate::shrink::{Disagreement, Found, shrink};
use crate::verdict::play_to_both;

/// Plays random traffic to the running kernel and to the stack, and shows where they differ. Needs root.
#[derive(Parser)]
struct Arguments {
    /// What the traffic is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many packets are played.
    #[arg(long, default_value_t = 10_000)]
    packets: usize,
    /// Write every disagreement, as small as it can be made, to a scenario file in DIR.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the coverage as one JSON object.
    #[arg(long)]
    json: bool,
}

/// What all batches came to.
#[derive(Default)]
struct Total {
    coverage: Coverage,
    disagreements: Vec<Disagreement>,
    /// Batches that differed once, but not when they were played again, and in what.
    not_repeated: Vec<String>,
    /// Batches that were compared only up to where the kernel drew lots.
    cut_by_chance: usize,
    faults: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("differential: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Plays all batches, two at once; false if something differs that is not known to.
fn run(arguments: &Arguments) -> Result<bool> {
    let batches = arguments.packets.div_ceil(BATCH) as u64;
    let next = AtomicU64::new(0);
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= batches {
                        break;
                    }
                    let size = BATCH.min(arguments.packets - number as usize * BATCH);
                    if let Err(error) = one(&Batch::new(arguments.seed, number, size), &total) {
                        total.lock().expect("no thread panics").faults.push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let mut total = total.into_inner().expect("no thread panics");
    total.disagreements.sort_by(|a, b| a.batch.name.cmp(&b.batch.name));
    let known = known()?;
    let unknown = total.disagreements.iter().filter(|found| !known.contains(&found.signature)).count();
    if let Some(folder) = &arguments.out {
        keep(folder, &total.disagreements)?;
    }
    report(arguments, &total, unknown)?;
    let thorough = arguments.packets < ENOUGH
        || (total.coverage.rare_states().is_empty() && total.coverage.on_flows() >= LEAST_ON_FLOWS);
    Ok(unknown == 0 && total.faults.is_empty() && thorough)
}

fn one(batch: &Batch, total: &Mutex<Total>) -> Result<()> {
    let outcome = play_to_both(batch)?;
    let differing: BTreeSet<_> = outcome.differences.iter().map(|difference| difference.step).collect();
    let rules = format!("{:?}", batch.kind).to_lowercase();
    let Some(first) = outcome.differences.first() else {
        total.lock().expect("no thread panics").coverage.add(&rules, &outcome.kernel, &differing);
        return Ok(());
    };
    let found = shrink(batch, SHRINK_BUDGET)?;
    let mut total = total.lock().expect("no thread panics");
    match found {
        Found::Disagreement(found) => {
            total.coverage.add(&rules, &outcome.kernel, &differing);
            total.disagreements.push(*found);
        }
        Found::Chance => {
            total.coverage.add(&rules, &outcome.kernel[..first.step], &differing);
            total.cut_by_chance += 1;
        }
        Found::Agreement => {
            total.coverage.add(&rules, &outcome.kernel, &BTreeSet::new());
            total.not_repeated.push(format!("{}, {first}", batch.name));
        }
    }
    Ok(())
}

/// The signatures that are listed, each in backticks at the start of an item.
fn known() -> Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/known-disagreements.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let signature = |line: &str| Some(line.strip_prefix("- `")?.split_once('`')?.0.to_owned());
    Ok(text.lines().filter_map(signature).collect())
}

fn keep(folder: &Path, disagreements: &[Disagreement]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for found in disagreements {
        let path = folder.join(format!("{}.json", found.batch.name));
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(file, "{:#}", found.batch.scenario())?;
    }
    Ok(())
}

fn report(arguments: &Arguments, total: &Total, unknown: usize) -> Result<()> {
    let Total { coverage, disagreements, not_repeated, cut_by_chance, faults } = total;
    let mut stdout = io::stdout().lock();
    if arguments.json {
        let found: Vec<_> = disagreements
            .iter()
            .map(
                |found| json!({"name": found.batch.name, "signature": found.signature, "difference": found.difference}),
            )
            .collect();
        let report = json!({
            "seed": arguments.seed, "coverage": coverage, "on_flows_percent": coverage.on_flows(),
            "disagreements": found, "unknown": unknown, "not_repeated": not_repeated, "cut_by_chance": cut_by_chance, "faults": faults,
        });
        writeln!(stdout, "{report:#}")?;
        return Ok(());
    }
    for found in disagreements {
        writeln!(stdout, "{}: {} packets: {}", found.batch.name, found.batch.packets.len(), found.signature)?;
        writeln!(stdout, "  {}", found.difference)?;
    }
    for once in not_repeated {
        writeln!(stdout, "differed once, not again: {once}")?;
    }
    for fault in faults {
        writeln!(stdout, "fault: {fault}")?;
    }
    writeln!(stdout, "seed {}: {} packets", arguments.seed, coverage.packets)?;
    for (name, counts) in [
        ("ctstate", &coverage.by_ctstate),
        ("protocol", &coverage.by_protocol),
        ("rules", &coverage.by_rules),
        ("TCP states entered", &coverage.tcp_entered),
        ("SCTP states entered", &coverage.sctp_entered),
    ] {
        let shown: Vec<_> = counts.iter().map(|(key, count)| format!("{key} {count}")).collect();
        writeln!(stdout, "{name}: {}", shown.join(", "))?;
    }
    writeln!(stdout, "of flows that exist, neither INVALID nor NEW: {:.1} %", coverage.on_flows())?;
    for (state, count) in coverage.rare_states() {
        writeln!(stdout, "too rare: {state} entered {count} times")?;
    }
    let share = coverage.agreeing as f64 * 100.0 / coverage.packets.max(1) as f64;
    writeln!(
        stdout,
        "agreement on ctstate, ctdir, out and conntrack: {share:.2} %; {} batches disagree ({unknown} of them unlisted), {} did once but not again, {cut_by_chance} were cut where the kernel drew lots",
        disagreements.len(),
        not_repeated.len(),
    )?;
    Ok(())
}

/// Packets in a batch.
const BATCH: usize = 125;
/// Batches played at once.
const AT_ONCE: usize = 2;
/// Most times that the kernel is asked to make one disagreement smaller.
const SHRINK_BUDGET: usize = 60;
/// From so many packets on, rare states or too few packets on flows are a failure.
const ENOUGH: usize = 10_000;
/// Percent of the packets that are to be of flows which exist, and neither INVALID nor NEW.
const LEAST_ON_FLOWS: f64 = 60.0;
