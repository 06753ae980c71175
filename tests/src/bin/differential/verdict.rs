//! One batch through the kernel and through the stack.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hibernet_tests::compare::{Difference, Terms, compare};
use hibernet_tests::play::{Between, play};
use hibernet_tests::scenario::Scenario;
use serde_json::{Number, Value};

use crate::batch::Batch;

/// What both sides made of a batch.
pub(crate) struct Outcome {
    /// The kernel's records.
    pub(crate) kernel: Vec<Value>,
    /// Where the stack's differ.
    pub(crate) differences: Vec<Difference>,
}

/// Plays a batch to the kernel, and to the stack with every packet at the moment at which the kernel got it.
pub(crate) fn play_to_both(batch: &Batch) -> Result<Outcome> {
    let written = batch.scenario();
    let mut kernel = ask(&written).with_context(|| format!("{}: the kernel cannot be asked", batch.name))?;
    let mut scenario: Scenario = serde_json::from_value(written)?;
    ensure!(kernel.len() == scenario.steps.len(), "{}: {} records", batch.name, kernel.len());
    for (step, record) in scenario.steps.iter_mut().zip(&mut kernel) {
        let moment = record.as_object_mut().and_then(|record| record.remove("clock"));
        step.at = moment.and_then(|moment| moment.as_f64()).and_then(Number::from_f64);
        step.settle = Some(0.0);
    }
    let run = play(&scenario, Between::Nothing);
    if let Some(error) = run.error {
        return Err(error.context(batch.name.clone()));
    }
    let mut stack = run.records.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    for record in kernel.iter_mut().chain(&mut stack) {
        keep_what_counts(record);
    }
    let differences = compare(&kernel, &stack, Terms { tolerance: 1, slow: false });
    Ok(Outcome { kernel, differences })
}

/// Verdict, packets and table. Packets that the router made itself count by their text: their numbers are random.
fn keep_what_counts(record: &mut Value) {
    let Some(fields) = record.as_object_mut() else { return };
    fields.retain(|name, _| ["ctstate", "ctdir", "out", "conntrack", "inject"].contains(&name.as_str()));
    for packet in fields.get_mut("out").and_then(Value::as_array_mut).into_iter().flatten() {
        let forwarded = packet["text"].as_str().is_some_and(|text| text.ends_with(" ttl=63"));
        if let Some(packet) = packet.as_object_mut().filter(|_| !forwarded) {
            packet.remove("local");
            packet.insert("hex".to_owned(), Value::from("*"));
        }
    }
}

fn ask(scenario: &Value) -> Result<Vec<Value>> {
    let oracle = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("oracle/oracle.py");
    let mut child = Command::new("python3")
        .arg(oracle)
        .args(["run", "--clock", "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("python3")?;
    let mut stdin = child.stdin.take().context("no pipe to the oracle")?;
    stdin.write_all(scenario.to_string().as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{text}");
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}
