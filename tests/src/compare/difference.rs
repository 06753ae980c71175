//! One difference between two records, and how to show it to a person.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::Step;
use crate::notation::{bytes_of_hex, text};

/// A place at which two records differ.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// Number of the record, which is that of the step.
    pub step: usize,
    /// Where in the record.
    pub path: String,
    /// What the recording has there; nothing if it has no such place.
    pub expected: Option<Value>,
    /// What we have there.
    pub actual: Option<Value>,
    /// How much it counts.
    pub weight: Weight,
}

/// How much a difference counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// The scenario fails.
    Strict,
    /// In hooks passed, events or wording: told apart.
    Loose,
}

impl Difference {
    pub(super) fn new(step: usize, path: &[Step], expected: Option<&Value>, actual: Option<&Value>) -> Self {
        let part = |part: &Step| match part {
            Step::Key(key) => key.clone(),
            Step::Index(index) => index.to_string(),
        };
        let weight = match path.first() {
            Some(Step::Key(key)) if LOOSE.contains(&key.as_str()) => Weight::Loose,
            _ => Weight::Strict,
        };
        let path = path.iter().map(part).collect::<Vec<_>>().join("/");
        Self { step, path, expected: expected.cloned(), actual: actual.cloned(), weight }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, path, expected, actual, weight: _ } = self;
        let leaf = path.rsplit('/').next().unwrap_or_default();
        let (expected, actual) = (readable(leaf, expected.as_ref()), readable(leaf, actual.as_ref()));
        write!(f, "step {step}, {path}:\n    expected {expected}\n    got      {actual}")
    }
}

/// A value with the bytes of packets put into words, and long lists one item a line.
fn readable(leaf: &str, value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::String(hex)) if leaf == "hex" => match bytes_of_hex(hex) {
            Ok(bytes) => format!("{}\n             {hex}", text(&bytes)),
            Err(_) => hex.clone(),
        },
        Some(Value::Array(items)) if items.iter().any(Value::is_object) => {
            let lines = items.iter().map(|item| format!("\n        {}", summary(item)));
            format!("{} items{}", items.len(), lines.collect::<String>())
        }
        Some(value) => value.to_string(),
    }
}

/// One packet, hook, event or entry in one line.
fn summary(item: &Value) -> String {
    match item.as_object() {
        Some(packet) if packet.contains_key("text") => {
            let local = if packet.contains_key("local") { " (local)" } else { "" };
            format!("{}{local} {}", packet["dev"].as_str().unwrap_or("?"), packet["text"].as_str().unwrap_or("?"))
        }
        _ => item.to_string(),
    }
}

/// Keys of a record that do not decide over a scenario.
const LOOSE: [&str; 5] = ["events", "event_count", "trace", "trace_count", "why"];
