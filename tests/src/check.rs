//! Whether a scenario passed: its records against the recorded answers.

use std::iter;
use std::path::Path;

use anyhow::{Context, Error, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::compare::{Difference, Terms, Weight, compare};
use crate::corpus::{answers_of, read_records};
use crate::play::{Between, Run, play};
use crate::record::Record;
use crate::scenario::Scenario;

/// What came of one scenario.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The scenario.
    pub name: String,
    /// Why it could not be played to its end.
    pub error: Option<String>,
    /// Differences in what an implementation must do alike.
    pub strict: Vec<Difference>,
    /// Differences in hooks passed, events and the tracker's wording.
    pub loose: Vec<Difference>,
}

impl Verdict {
    /// Compares a run that is over with the answers that lie beside the scenario, which are read only now.
    pub fn of(path: &Path, scenario: &Scenario, run: &Run) -> Result<Self> {
        let records = run.records.iter().map(serde_json::to_value).collect::<Result<Vec<Value>, _>>()?;
        let expected = read_records(&answers_of(path))?;
        let terms = Terms { tolerance: TOLERANCE, slow: scenario.is_slow() };
        let differences = compare(&expected, &records, terms);
        let (strict, loose) = differences.into_iter().partition(|difference| difference.weight == Weight::Strict);
        let error = run.error.as_ref().map(|error| format!("{error:#}"));
        Ok(Self { name: scenario.name.clone(), error, strict, loose })
    }

    /// Of a file that is no scenario, or that nothing can be compared with.
    pub fn unplayable(path: &Path, error: &Error) -> Self {
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Self { name, error: Some(format!("{error:#}")), strict: Vec::new(), loose: Vec::new() }
    }

    /// Plays a scenario file and compares.
    pub fn on(path: &Path) -> Result<Self> {
        let scenario = Scenario::load(path)?;
        let run = play(&scenario, Between::Nothing);
        Self::of(path, &scenario, &run).with_context(|| format!("cannot check {}", scenario.name))
    }

    /// Whether the scenario passes; with `strict_events` loose differences count, too.
    pub fn passed(&self, strict_events: bool) -> bool {
        self.first_fault(strict_events).is_none()
    }

    /// Why it does not pass, for a person: the error, or the first difference that counts.
    pub fn first_fault(&self, strict_events: bool) -> Option<String> {
        let loose = if strict_events { self.loose.first() } else { None };
        let error = self.error.clone();
        error.or_else(|| self.strict.first().or(loose).map(Difference::to_string))
    }
}

/// Where a run with restores differs from one without.
///
/// Numbers that keys choose are other ones after a restore: those that are captured or seen in the table go by names, and
/// where the bytes of a packet differ, its text is compared. All else must be equal, to the second.
pub fn differences_by_restores(plain: &Run, restored: &Run) -> Result<Vec<Difference>> {
    let mut actual = restored.records.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    let mut expected = Vec::new();
    for (number, record) in plain.records.iter().enumerate() {
        let mut value = serde_json::to_value(record)?;
        if let (Some(record_after), Some(value_after)) = (restored.records.get(number), actual.get_mut(number)) {
            name_drawn_ports(number, &mut value, value_after);
            value["volatile"] = json!(volatile_bytes(record, record_after));
        }
        expected.push(value);
    }
    Ok(compare(&expected, &actual, Terms { tolerance: 0, slow: false }))
}

/// Names the outside ports and identifiers of translated flows that differ, as if both records had captured them: they
/// were drawn under other keys.
fn name_drawn_ports(number: usize, record: &mut Value, other: &mut Value) {
    let flows = |record: &Value| record["conntrack"].as_array().cloned().unwrap_or_default();
    let translated = |flow: &Value| flow["status"].as_array().is_some_and(|bits| bits.contains(&json!("SRC_NAT")));
    for (at, (flow, flow_after)) in flows(record).iter().zip(&flows(other)).enumerate() {
        for field in ["dport", "icmp_id"] {
            let (port, port_after) = (&flow["reply"][field], &flow_after["reply"][field]);
            if translated(flow) && translated(flow_after) && port != port_after {
                let name = format!("DRAWN_{number}_{at}");
                record["captured"][&name] = port.clone();
                other["captured"][&name] = port_after.clone();
            }
        }
    }
}

/// Paths of the packets that went in, which may use a captured value, and of those that left with other bytes.
fn volatile_bytes(record: &Record, other: &Record) -> Vec<Value> {
    let left = record.out.iter().flatten().zip(other.out.iter().flatten()).enumerate();
    let differing = left.filter(|(_, (one, other))| one.hex != other.hex).map(|(at, _)| json!(["out", at, "hex"]));
    iter::once(json!(["inject", "hex"])).chain(differing).collect()
}

/// Seconds by which timeouts may differ: a dump shows the rest rounded down, at a moment that is not quite the step's.
const TOLERANCE: u64 = 1;
