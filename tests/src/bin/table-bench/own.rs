//! One measurement in a process of its own: how much memory a table takes is seen only where nothing was before.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::machine::bytes_per_flow;
use crate::tuples::Family;
use crate::{Plan, ours, peers};

/// The tables that are measured so.
pub(crate) const NAMES: [&str; 5] = ["ours", "std_hashmap", "hashbrown_foldhash", "dashmap", "gvisor_layout"];

/// Bytes in memory for a flow, of a table in another process.
pub(crate) fn bytes<F: Family>(plan: Plan, name: &str) -> Result<f64> {
    let program = std::env::current_exe().context("this program's own file")?;
    let mut command = Command::new(program);
    command.args(["--flows", &plan.flows.to_string(), "--memory-of", name]);
    if F::NAME == "ipv6" {
        command.arg("--v6");
    }
    let output = command.output().with_context(|| format!("measuring the memory of {name}"))?;
    if !output.status.success() {
        bail!("measuring the memory of {name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8_lossy(&output.stdout).trim().parse().with_context(|| format!("the memory of {name}"))
}

/// The same in this process.
pub(crate) fn bytes_here<F: Family>(plan: Plan, name: &str) -> Result<f64> {
    match name {
        "ours" => {
            let flows = ours::flows::<F>(plan);
            bytes_per_flow(plan.flows, || ours::filled::<F>(&flows))
        }
        _ => peers::bytes_here::<F>(plan, name),
    }
}
