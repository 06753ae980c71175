//! Variables of a scenario: given by it, or captured from packets that left.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::notation::decode;

/// Names and what they stand for.
#[derive(Debug, Clone, Default)]
pub struct Variables(BTreeMap<String, Value>);

impl Variables {
    /// The variables that a scenario gives from the start.
    pub fn new(given: &Map<String, Value>) -> Self {
        Self(given.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// The same, with the counters of one packet of a repeated step.
    pub fn counting(&self, index: u32, port: u32) -> Self {
        let mut counted = self.clone();
        counted.0.insert("I".to_owned(), json!(index));
        counted.0.insert("PORT".to_owned(), json!(port));
        counted
    }

    /// Names of ours that `text` uses, sorted.
    pub fn used_in(&self, text: &str) -> Vec<String> {
        let names: BTreeSet<_> = references(text).into_iter().map(|(_, reference)| reference.name).collect();
        names.into_iter().filter(|name| self.0.contains_key(*name)).map(str::to_owned).collect()
    }

    /// `text` with `$NAME` replaced by its value, and `$NAME+N` by that number plus N modulo 2^32.
    pub fn substitute(&self, text: &str) -> Result<String> {
        let mut replaced = String::new();
        let mut done = 0;
        for (range, reference) in references(text) {
            replaced.push_str(&text[done..range.start]);
            replaced.push_str(&self.value_of(&reference)?);
            done = range.end;
        }
        replaced.push_str(&text[done..]);
        Ok(replaced)
    }

    /// Takes a field of one of the packets that left; `path` is `FIELD` of the first, or `INDEX.FIELD`.
    pub fn capture(&mut self, name: &str, path: &str, left: &[&[u8]]) -> Result<Value> {
        let (index, field) = path.rsplit_once('.').unwrap_or(("", path));
        let index: usize =
            if index.is_empty() { 0 } else { index.parse().with_context(|| format!("path {path:?}"))? };
        let packet = left
            .get(index)
            .with_context(|| format!("captures {name} from packet {index} that left, but {} left", left.len()))?;
        let decoded = decode(packet);
        let value = decoded.field(field).with_context(|| format!("no {field} in {decoded}"))?;
        self.0.insert(name.to_owned(), value.clone());
        Ok(value)
    }

    fn value_of(&self, reference: &Reference<'_>) -> Result<String> {
        let Reference { name, plus } = reference;
        let value = self.0.get(*name).with_context(|| format!("${name} has no value"))?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let Some(plus) = plus else { return Ok(text) };
        let number: i128 = text.parse().with_context(|| format!("${name} is {text:?}, not a number"))?;
        Ok((number + plus).rem_euclid(1 << 32).to_string())
    }
}

/// `$NAME` or `$NAME+N` or `$NAME-N`.
struct Reference<'a> {
    name: &'a str,
    plus: Option<i128>,
}

/// Where variables are used in `text`, in order.
fn references(text: &str) -> Vec<(std::ops::Range<usize>, Reference<'_>)> {
    let starts = text.match_indices('$').map(|(at, _)| at);
    starts
        .filter_map(|at| {
            let after = &text[at + 1..];
            let len = after.find(|ch: char| !matches!(ch, 'A'..='Z' | '0'..='9' | '_')).unwrap_or(after.len());
            let (name, rest) = after.split_at(len);
            name.starts_with(|ch: char| ch.is_ascii_uppercase()).then_some(())?;
            let (plus, width) = offset(rest).unzip();
            Some((at..at + 1 + len + width.unwrap_or(0), Reference { name, plus }))
        })
        .collect()
}

/// `+N` or `-N` at the start of `text`, and its width.
fn offset(text: &str) -> Option<(i128, usize)> {
    let digits = text.strip_prefix(['+', '-'])?;
    let len = digits.find(|ch: char| !ch.is_ascii_digit()).unwrap_or(digits.len());
    let magnitude: i128 = digits[..len].parse().ok()?;
    Some((if text.starts_with('-') { -magnitude } else { magnitude }, 1 + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        Variables::new(json!({"S": 4294967295_u32, "A": "10.0.0.2"}).as_object().unwrap())
    }

    #[test]
    fn values_and_sums_replace_their_names() {
        let text = variables().substitute("tcp $A:1 > 10.0.0.1:2 A ack=$S+1 seq=$S-1 win=$S").unwrap();
        assert_eq!(text, "tcp 10.0.0.2:1 > 10.0.0.1:2 A ack=0 seq=4294967294 win=4294967295");
    }

    #[test]
    fn a_name_without_a_value_is_an_error_that_names_it() {
        assert_eq!(variables().substitute("$Q").unwrap_err().to_string(), "$Q has no value");
    }

    #[test]
    fn only_known_names_count_as_used() {
        assert_eq!(variables().used_in("$S $PORT $A+1 $S"), ["A", "S"]);
    }

    #[test]
    fn a_counter_is_known_to_one_packet_only() {
        let variables = variables();
        assert_eq!(variables.counting(3, 20003).substitute("$I:$PORT").unwrap(), "3:20003");
        assert!(variables.substitute("$I").is_err());
    }

    #[test]
    fn a_capture_from_a_packet_that_never_left_is_an_error() {
        let error = variables().capture("P", "0.sport", &[]).unwrap_err();
        assert_eq!(error.to_string(), "captures P from packet 0 that left, but 0 left");
    }
}
