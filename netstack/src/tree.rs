//! Saved values as trees for people.

use std::collections::BTreeMap;

use hibernet_snapshot::diff::{self, Value, ValueError};
use serde::Serialize;

/// The tree of a section: what is kept by a key is found under that key, and runs of bytes are one value.
pub(crate) fn described<T: Serialize>(saved: &T) -> Result<Value, ValueError> {
    diff::value(saved).map(tidied)
}

fn tidied(value: Value) -> Value {
    match value {
        Value::List(values) => {
            if values.len() >= RUN
                && let Some(bytes) = values.iter().map(byte).collect()
            {
                return Value::Bytes(bytes);
            }
            let keyed: Option<BTreeMap<String, Value>> = values.iter().map(pair).collect();
            match keyed {
                Some(keyed) if keyed.len() == values.len() && !keyed.is_empty() => Value::Map(keyed),
                _ => Value::List(values.into_iter().map(tidied).collect()),
            }
        }
        Value::Map(entries) if network(&entries).is_some() => Value::Text(network(&entries).unwrap_or_default()),
        Value::Map(entries) => Value::Map(entries.into_iter().map(|(key, value)| (key, tidied(value))).collect()),
        leaf => leaf,
    }
}

/// An address with its prefix, as people write it.
fn network(entries: &BTreeMap<String, Value>) -> Option<String> {
    match (entries.len(), entries.get("addr"), entries.get("prefix")) {
        (2, Some(Value::Text(addr)), Some(Value::Integer(prefix))) => Some(format!("{addr}/{prefix}")),
        _ => None,
    }
}

fn byte(value: &Value) -> Option<u8> {
    if let Value::Integer(number) = value { u8::try_from(*number).ok() } else { None }
}

/// A key and what is kept under it.
fn pair(value: &Value) -> Option<(String, Value)> {
    match value {
        Value::List(pair) => match pair.as_slice() {
            [key @ (Value::Integer(_) | Value::Text(_)), kept @ (Value::List(_) | Value::Map(_))] => {
                Some((key.to_string(), tidied(kept.clone())))
            }
            _ => None,
        },
        Value::Map(entries) => match entries.get("id") {
            Some(id @ (Value::Integer(_) | Value::Text(_))) => Some((id.to_string(), tidied(value.clone()))),
            _ => None,
        },
        _ => None,
    }
}

/// So many small numbers in a row are bytes.
const RUN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_one_value_and_what_has_a_key_is_found_under_it() {
        let sockets = vec![(7_u32, vec![1_u8; 20]), (9, vec![2; 3])];
        let text = described(&sockets).unwrap().to_string();
        assert_eq!(text, format!("7: b\"{}\"\n9[0]: 2\n9[1]: 2\n9[2]: 2\n", "\\x01".repeat(20)));
        assert_eq!(
            described(&vec![(7_u32, 1_u8), (7, 2)]).unwrap().to_string(),
            "[0][0]: 7\n[0][1]: 1\n[1][0]: 7\n[1][1]: 2\n"
        );
    }
}
