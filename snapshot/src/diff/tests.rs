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
    let long = value(&vec![0_u16; 11]).unwrap().to_string();
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
fn a_map_whose_keys_have_parts_has_them_in_a_row() {
    let map = BTreeMap::from([((1, 2), 3)]);
    assert_eq!(value(&map).unwrap().to_string(), "[0] 1, [1] 2: 3\n");
}

#[test]
fn lists_in_order_of_a_key_are_merged_in_one_pass() {
    let before = [(1, 'a'), (2, 'b'), (4, 'd')];
    let after = [(2, 'x'), (3, 'c'), (4, 'd'), (5, 'e')];
    let keys_read = core::cell::Cell::new(0);
    let key = |item: &(i32, char)| {
        keys_read.set(keys_read.get() + 1);
        item.0
    };
    let pairs: Vec<_> = merged(&before, &after, key).collect();
    assert_eq!(
        pairs,
        [
            Pair::Removed(&(1, 'a')),
            Pair::Both(&(2, 'b'), &(2, 'x')),
            Pair::Added(&(3, 'c')),
            Pair::Both(&(4, 'd'), &(4, 'd')),
            Pair::Added(&(5, 'e')),
        ]
    );
    assert!(keys_read.get() <= 2 * (before.len() + after.len()), "each step passes an item");
}

#[test]
fn a_rule_put_in_between_moves_no_other() {
    let pairs = aligned(&['a', 'b', 'c', 'd', 'e'], &['a', 'x', 'b', 'd', 'c', 'e'], |one, other| one == other);
    let text: String = pairs
        .iter()
        .map(|pair| match pair {
            Pair::Removed(item) => format!("-{item}"),
            Pair::Added(item) => format!("+{item}"),
            Pair::Both(one, _) => format!(" {one}"),
        })
        .collect();
    assert_eq!(text, " a+x b-c d+c e");
}

#[test]
fn what_is_too_long_to_be_searched_still_adds_up() {
    let before: Vec<u32> = (0..3000).collect();
    let after: Vec<u32> = (0..3000).rev().collect();
    let pairs = aligned(&before, &after, |one, other| one == other);
    assert_eq!(pairs.len(), 6000);
}

#[test]
fn a_vector_of_bytes_is_bytes_and_one_of_numbers_is_a_list() {
    assert_eq!(value(&vec![1_u8, 2]).unwrap(), Value::Bytes(vec![1, 2]));
    assert_eq!(value(&vec![1_u16, 2]).unwrap(), Value::List(vec![Value::Integer(1), Value::Integer(2)]));
    assert_eq!(value(&Vec::<u8>::new()).unwrap(), Value::List(vec![]));
    assert_eq!(Value::Bytes(b"\x00it".to_vec()).to_string(), "b\"\\x00it\"");
    assert_eq!(
        Value::Bytes(vec![7; 1460]).to_string(),
        format!("1460 bytes with CRC-32 {:08x}", crc32fast::hash(&[7; 1460]))
    );
}

#[test]
fn differences_read_as_lines_and_as_json() {
    let tree = |port: u16| value(&BTreeMap::from([("port", port), ("mark", 1)])).unwrap();
    let changed = Difference::between("flows", "tcp 5".to_owned(), &tree(80), &tree(81)).unwrap();
    assert_eq!(Difference::between("flows", "tcp 5".to_owned(), &tree(80), &tree(80)), None);
    assert_eq!(changed.to_string(), "~ flows tcp 5\n    ~ port: 80 -> 81");
    let added = Difference::Added { section: "flows", item: "tcp 6".to_owned(), value: tree(80) };
    assert_eq!(added.to_string(), "+ flows tcp 6: mark 1, port 80");
    let plain = Difference::Removed { section: "sections", item: String::new(), value: Value::Bytes(vec![0xab]) };
    assert_eq!(plain.to_string(), "- sections: b\"\\xab\"");
    // JSON's data model, by the tree itself: what serde is told.
    let json = |difference: &Difference| value(difference).unwrap().to_string();
    assert_eq!(
        json(&changed),
        "change: \"changed\"\nfields[0].from: 80\nfields[0].path: \"port\"\nfields[0].to: 81\nitem: \"tcp 5\"\nsection: \"flows\"\n"
    );
    assert_eq!(json(&plain), "change: \"removed\"\nitem: \"\"\nsection: \"sections\"\nvalue: \"ab\"\n");
}
