use serde::Serialize;

use super::*;

#[derive(Serialize)]
enum State {
    Closed,
    Port(u16),
    Range(u16, u16),
    Open { since: Option<u64> },
}

#[derive(Serialize)]
struct Flow {
    name: &'static str,
    state: State,
}

#[derive(Serialize)]
struct Table {
    flows: Vec<Flow>,
    marks: BTreeMap<u32, bool>,
}

fn flow(name: &'static str, state: State) -> Flow {
    Flow { name, state }
}

fn table() -> Table {
    let flows = vec![
        flow("a", State::Closed),
        flow("b", State::Port(80)),
        flow("c", State::Range(1, 2)),
        flow("d", State::Open { since: None }),
    ];
    Table { flows, marks: BTreeMap::from([(9, true), (10, false)]) }
}

#[test]
fn a_value_prints_leaf_by_leaf_in_canonical_order() {
    insta::assert_snapshot!(value(&table()).unwrap(), @r#"
    flows[0].name: "a"
    flows[0].state: "Closed"
    flows[1].name: "b"
    flows[1].state.Port: 80
    flows[2].name: "c"
    flows[2].state.Range[0]: 1
    flows[2].state.Range[1]: 2
    flows[3].name: "d"
    flows[3].state.Open.since: null
    marks.10: false
    marks.9: true
    "#);
}

#[test]
fn a_difference_names_the_path_the_old_and_the_new() {
    let before = value(&table()).unwrap();
    let mut changed = table();
    changed.flows[1].state = State::Port(443);
    changed.flows[3].state = State::Open { since: Some(4) };
    changed.flows.push(flow("e", State::Closed));
    changed.marks.remove(&9);
    let changes = compare(&before, &value(&changed).unwrap());
    let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    ~ flows[1].state.Port: 80 -> 443
    ~ flows[3].state.Open.since: null -> 4
    + flows[4].name: "e"
    + flows[4].state: "Closed"
    - marks.9: true
    "#);
}

#[test]
fn equal_values_have_no_difference_and_swapped_ones_the_reverse() {
    let (one, two) = (value(&table()).unwrap(), value(&Table { marks: BTreeMap::new(), ..table() }).unwrap());
    assert_eq!(compare(&one, &one), []);
    let (forth, back) = (compare(&one, &two), compare(&two, &one));
    assert_eq!(forth.len(), back.len());
    assert!(matches!(&forth[0], Change::Added { path, .. } if path == "marks"));
    assert!(matches!(&back[0], Change::Removed { path, .. } if path == "marks"));
}

#[test]
fn elements_are_ordered_by_number() {
    let long = value(&vec![0_u8; 11]).unwrap().to_string();
    let paths: Vec<&str> = long.lines().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(paths[8..], ["[8]", "[9]", "[10]"]);
}

#[test]
fn plain_values_print_as_one_would_write_them() {
    let text = |value: Value| value.to_string();
    assert_eq!(text(value(&()).unwrap()), "null");
    assert_eq!(text(value(&u128::MAX).unwrap()), format!("\"{}\"", u128::MAX));
    assert_eq!(text(value(&-1_i128).unwrap()), "-1");
    assert_eq!(text(value(&0.5_f32).unwrap()), "0.5");
    assert_eq!(text(value("\u{1b}").unwrap()), r#""\u{1b}""#);
    assert_eq!(text(Value::Bytes(vec![b'a', 0])), r#"b"a\x00""#);
    assert_eq!(text(value::<[u8; 0]>(&[]).unwrap()), "[]");
    assert_eq!(text(value(&BTreeMap::<u8, u8>::new()).unwrap()), "{}");
}

#[test]
fn a_map_whose_keys_have_parts_is_refused() {
    let map = BTreeMap::from([((1, 2), 3)]);
    assert_eq!(value(&map).unwrap_err().to_string(), "not representable: a map's key has parts");
}
