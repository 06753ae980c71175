//! Recorded answers against ours, as the oracle compares two runs.
//!
//! Random values go by the names under which they were captured, seconds may differ by one, paths that the recording
//! calls volatile are left out, and the text of a packet counts only where its bytes do not. Beyond that, a difference in
//! hooks passed, in events or in the tracker's wording is [`Weight::Loose`]; in all else it is [`Weight::Strict`].

mod difference;
mod normalise;

use std::collections::BTreeSet;

use serde_json::{Value, json};

pub use difference::{Difference, Weight};

/// How to compare.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Seconds by which timeouts may differ.
    pub tolerance: u64,
    /// Entries run out on the way: when exactly a kernel collects them is chance, so counts and DESTROY are left out.
    pub slow: bool,
}

/// All differences, in order.
pub fn compare(expected: &[Value], actual: &[Value], terms: Terms) -> Vec<Difference> {
    let (expected, actual) = (normalise::normalise(expected), normalise::normalise(actual));
    let mut differences = Vec::new();
    if expected.len() != actual.len() {
        let (found, wanted) = (json!(actual.len()), json!(expected.len()));
        differences.push(Difference::new(0, &[Step::Key("records".to_owned())], Some(&wanted), Some(&found)));
    }
    for (number, (mut expected, mut actual)) in expected.into_iter().zip(actual).enumerate() {
        let volatile = take(&mut expected, "volatile");
        take(&mut actual, "volatile");
        for record in [&mut expected, &mut actual] {
            take(record, "note");
            if terms.slow {
                forget_expiry(record);
            }
            for path in volatile.iter().flat_map(Value::as_array).flatten().filter_map(Value::as_array) {
                blank(record, path);
            }
        }
        let mut walk = Walk { record: number, terms, path: Vec::new(), differences: &mut differences };
        walk.values(&expected, &actual);
    }
    differences
}

/// One step down into a record.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

struct Walk<'a> {
    record: usize,
    terms: Terms,
    path: Vec<Step>,
    differences: &'a mut Vec<Difference>,
}

impl Walk<'_> {
    fn values(&mut self, expected: &Value, actual: &Value) {
        if is_blank(expected) || is_blank(actual) {
            return;
        }
        match (expected, actual) {
            (Value::Object(wanted), Value::Object(found)) => {
                let bytes_tell = [wanted, found].iter().all(|side| !side.get("hex").is_some_and(is_blank));
                let keys: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
                for key in keys {
                    let (wanted, found) = (wanted.get(key), found.get(key));
                    let settled = match key.as_str() {
                        "text" => bytes_tell,
                        "timeout" => self.within_tolerance(wanted, found),
                        _ => false,
                    };
                    if !settled {
                        self.below(Step::Key(key.clone()), wanted, found);
                    }
                }
            }
            (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
                for (index, (wanted, found)) in wanted.iter().zip(found).enumerate() {
                    self.below(Step::Index(index), Some(wanted), Some(found));
                }
            }
            (wanted, found) if same(wanted, found) => {}
            (wanted, found) => self.differ(Some(wanted), Some(found)),
        }
    }

    fn below(&mut self, step: Step, expected: Option<&Value>, actual: Option<&Value>) {
        self.path.push(step);
        match (expected, actual) {
            (Some(expected), Some(actual)) => self.values(expected, actual),
            (expected, actual) => self.differ(expected, actual),
        }
        self.path.pop();
    }

    fn differ(&mut self, expected: Option<&Value>, actual: Option<&Value>) {
        self.differences.push(Difference::new(self.record, &self.path, expected, actual));
    }

    fn within_tolerance(&self, expected: Option<&Value>, actual: Option<&Value>) -> bool {
        let seconds = |value: Option<&Value>| value.and_then(Value::as_u64);
        match (seconds(expected), seconds(actual)) {
            (Some(expected), Some(actual)) => expected.abs_diff(actual) <= self.terms.tolerance,
            _ => false,
        }
    }
}

/// Leaves out what depends on when run-out entries are collected.
fn forget_expiry(record: &mut Value) {
    take(record, "count");
    if let Some(events) = record.get_mut("events").and_then(Value::as_array_mut) {
        events.retain(|event| event["type"] != DESTROY);
    }
    if let Some(counts) = record.get_mut("event_count").and_then(Value::as_object_mut) {
        counts.remove(DESTROY);
    }
}

/// Puts the blank at a volatile path, where the record has such a place.
fn blank(record: &mut Value, path: &[Value]) {
    let Some((last, above)) = path.split_last() else { return };
    let mut place = record;
    for step in above {
        let Some(below) = (match step {
            Value::String(key) => place.get_mut(key),
            step => step.as_u64().and_then(|index| place.get_mut(index as usize)),
        }) else {
            return;
        };
        place = below;
    }
    match (place, last) {
        (Value::Object(object), Value::String(key)) => {
            object.insert(key.clone(), json!(BLANK));
        }
        (Value::Array(list), index) => {
            if let Some(item) = index.as_u64().and_then(|index| list.get_mut(index as usize)) {
                *item = json!(BLANK);
            }
        }
        _ => {}
    }
}

fn take(record: &mut Value, key: &str) -> Option<Value> {
    record.as_object_mut()?.remove(key)
}

fn is_blank(value: &Value) -> bool {
    value == BLANK
}

/// Equal, where 0 and 0.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

/// Stands where nothing is compared.
const BLANK: &str = "*";

const DESTROY: &str = "DESTROY";

#[cfg(test)]
mod tests;
