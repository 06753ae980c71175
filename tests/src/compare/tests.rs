use serde_json::json;

use super::*;
use crate::corpus::{answers_of, read_records, scenarios};
use crate::scenario::Scenario;

const STRICT: Terms = Terms { tolerance: 1, slow: false };

#[test]
fn a_recording_does_not_differ_from_itself() {
    for path in scenarios().unwrap() {
        let records = read_records(&answers_of(&path)).unwrap();
        let terms = Terms { tolerance: 0, slow: Scenario::load(&path).unwrap().is_slow() };
        let differences = compare(&records, &records, terms);
        assert!(differences.is_empty(), "{}: {}", path.display(), differences[0]);
    }
}

/// One record that has all that is compared.
fn record() -> Value {
    json!({
        "step": 0, "at": 0.0, "note": "n", "ctstate": "new", "ctdir": "original", "count": 1, "why": ["w"],
        "out": [{"dev": "out", "hex": "00", "text": "t"}],
        "trace": [{"hook": "forward", "state": "new"}],
        "events": [{"type": "NEW", "orig": {"sport": 1}}],
        "conntrack": [{"orig": {"sport": 1}, "timeout": 119, "status": ["CONFIRMED"]}],
    })
}

/// The paths at which `actual` differs from [`record`], the loose ones in parentheses.
fn paths(actual: &Value, terms: Terms) -> Vec<String> {
    let shown = |difference: Difference| match difference.weight {
        Weight::Strict => difference.path,
        Weight::Loose => format!("({})", difference.path),
    };
    compare(&[record()], std::slice::from_ref(actual), terms).into_iter().map(shown).collect()
}

/// What a change at one place of the record leads to.
fn planted(pointer: &str, value: Value) -> Vec<String> {
    let mut actual = record();
    *actual.pointer_mut(pointer).unwrap() = value;
    paths(&actual, STRICT)
}

#[test]
fn a_planted_difference_is_found_at_its_place() {
    assert_eq!(planted("/ctstate", json!("invalid")), ["ctstate"]);
    assert_eq!(planted("/ctdir", json!(null)), ["ctdir"]);
    assert_eq!(planted("/count", json!(2)), ["count"]);
    assert_eq!(planted("/out/0/hex", json!("01")), ["out/0/hex"]);
    assert_eq!(planted("/out", json!([])), ["out"]);
    assert_eq!(planted("/conntrack/0/status", json!(["CONFIRMED", "ASSURED"])), ["conntrack/0/status"]);
    assert_eq!(planted("/conntrack/0/timeout", json!(117)), ["conntrack/0/timeout"]);
    assert_eq!(planted("/conntrack/0/orig/sport", json!(2)), ["conntrack/0/orig/sport"]);
}

#[test]
fn hooks_events_and_wording_count_loosely() {
    assert_eq!(planted("/trace/0/hook", json!("input")), ["(trace/0/hook)"]);
    assert_eq!(planted("/events/0/type", json!("UPDATE")), ["(events/0/type)"]);
    assert_eq!(planted("/why", json!(["v"])), ["(why/0)"].map(str::to_owned));
}

#[test]
fn notes_texts_beside_bytes_and_a_second_do_not_count() {
    assert!(planted("/note", json!("m")).is_empty());
    assert!(planted("/out/0/text", json!("u")).is_empty());
    assert!(planted("/conntrack/0/timeout", json!(120)).is_empty());
    assert!(planted("/at", json!(0)).is_empty());
}

#[test]
fn a_volatile_path_is_not_compared_but_the_text_of_volatile_bytes_is() {
    let mut expected = record();
    expected["volatile"] = json!([["out", 0, "hex"], ["conntrack", 5, "zone"]]);
    let mut actual = record();
    actual["out"][0]["hex"] = json!("01");
    assert!(compare(&[expected.clone()], &[actual.clone()], STRICT).is_empty());
    actual["out"][0]["text"] = json!("u");
    assert_eq!(compare(&[expected], &[actual], STRICT)[0].path, "out/0/text");
}

#[test]
fn expiry_does_not_count_in_a_slow_scenario() {
    let mut actual = record();
    actual["count"] = json!(3);
    actual["events"] = json!([{"type": "DESTROY"}, {"type": "NEW", "orig": {"sport": 1}}]);
    assert!(paths(&actual, Terms { slow: true, ..STRICT }).is_empty());
    assert_eq!(paths(&actual, STRICT), ["count", "(events)"]);
}

#[test]
fn random_values_are_equal_under_their_names() {
    let run = |port: u16| {
        let packet = json!({"hex": "*", "text": format!("udp 1.1.1.1:{port} > 2.2.2.2:80 len=0 ttl=63")});
        json!({"captured": {"P": port}, "out": [packet], "conntrack": [{"reply": {"dport": port}}]})
    };
    assert!(compare(&[run(40000)], &[run(50000)], STRICT).is_empty());
    let mut other = run(50000);
    other["conntrack"][0]["reply"]["dport"] = json!(50001);
    assert_eq!(compare(&[run(40000)], &[other], STRICT)[0].path, "conntrack/0/reply/dport");
}

#[test]
fn a_missing_record_is_a_difference() {
    let differences = compare(&[record(), record()], &[record()], STRICT);
    assert_eq!(differences[0].to_string(), "step 0, records:\n    expected 2\n    got      1");
}

#[test]
fn a_difference_in_bytes_is_shown_in_words() {
    let packet = crate::notation::build("udp 10.0.0.2:1 > 10.0.0.1:2", None).unwrap();
    let mut actual = record();
    actual["out"][0]["hex"] = json!(crate::notation::hex_of(&packet));
    let shown = compare(&[record()], &[actual], STRICT)[0].to_string();
    assert!(shown.contains("got      udp 10.0.0.2:1 > 10.0.0.1:2 len=0 ttl=64\n"), "{shown}");
}
