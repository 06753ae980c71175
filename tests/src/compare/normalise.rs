//! Random values by the names under which they were captured.

use serde_json::{Value, json};

/// The records with every captured value replaced by `$NAME` from its capture on, and `captured` left out.
pub(super) fn normalise(records: &[Value]) -> Vec<Value> {
    let mut names: Vec<(Value, String)> = Vec::new();
    let mut normalised = records.to_vec();
    for record in &mut normalised {
        for (name, value) in record.get("captured").and_then(Value::as_object).into_iter().flatten() {
            names.retain(|(known, _)| known != value);
            names.push((value.clone(), name.clone()));
        }
        super::take(record, "captured");
        replace(record, &names);
    }
    normalised
}

fn replace(value: &mut Value, names: &[(Value, String)]) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match key.as_str() {
                    "sport" | "dport" | "icmp_id" if !value.is_object() && !value.is_array() => {
                        if let Some((_, name)) = names.iter().find(|(known, _)| known == value) {
                            *value = json!(format!("${name}"));
                        }
                    }
                    "text" => {
                        if let Value::String(text) = value {
                            *text = names.iter().fold(text.clone(), |text, (known, name)| in_text(text, known, name));
                        }
                    }
                    _ => replace(value, names),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| replace(value, names)),
        _ => {}
    }
}

/// A port or id itself, and a sequence number or the one after it.
fn in_text(text: String, value: &Value, name: &str) -> String {
    let Some(number) = value.as_u64() else { return text };
    let next = (number + 1) & 0xffff_ffff;
    let text = numbers(&text, &[":", " id=", " seq="], number, &format!("${name}"));
    numbers(&text, &[" ack=", " seq="], next, &format!("${name}+1"))
}

/// `text` with `number` replaced where it stands behind one of the prefixes and ends there.
fn numbers(text: &str, prefixes: &[&str], number: u64, replacement: &str) -> String {
    let digits = number.to_string();
    let mut replaced = String::new();
    let mut rest = text;
    while let Some(ch) = rest.chars().next() {
        let hit = prefixes.iter().find(|prefix| {
            let after = rest.strip_prefix(**prefix).and_then(|after| after.strip_prefix(digits.as_str()));
            after.is_some_and(|after| !after.starts_with(|ch: char| ch.is_alphanumeric() || ch == '_'))
        });
        if let Some(prefix) = hit {
            replaced.push_str(prefix);
            replaced.push_str(replacement);
            rest = &rest[prefix.len() + digits.len()..];
        } else {
            replaced.push(ch);
            rest = &rest[ch.len_utf8()..];
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_replaced_only_where_it_stands_whole() {
        let text = "tcp 10.0.0.2:1:80 > [fd00::1]:80 S seq=80 ack=81 win=80 len=800".to_owned();
        let normalised = in_text(text, &json!(80), "P");
        assert_eq!(normalised, "tcp 10.0.0.2:1:$P > [fd00::1]:$P S seq=$P ack=$P+1 win=80 len=800");
    }

    #[test]
    fn a_value_goes_by_its_name_from_its_capture_on() {
        let records = [json!({"sport": 7}), json!({"sport": 7, "captured": {"P": 7}}), json!({"a": [{"icmp_id": 7}]})];
        let normalised = normalise(&records);
        assert_eq!(normalised, [json!({"sport": 7}), json!({"sport": "$P"}), json!({"a": [{"icmp_id": "$P"}]})]);
    }
}
