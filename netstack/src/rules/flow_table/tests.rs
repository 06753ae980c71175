use std::time::Duration;

use hibernet_snapshot::Instant;
use proptest::prelude::*;

use crate::rules::{Action, Counters, Match, Rule, Ruleset};
use crate::test_packets::tcp;
use crate::test_stack::stack;
use crate::{Stack, StackEvent};

const START: Instant = Instant::from_secs(1000);

/// What has counted, what was told, what left.
type Outcome = (Vec<Counters>, Vec<StackEvent>, Vec<Vec<u8>>);

fn outcome(stack: &mut Stack) -> Outcome {
    let counters = |chain: &crate::Chain| {
        let policy = chain.base.map(|base| base.policy_counters);
        chain.rules.iter().map(|rule| rule.counters).chain(policy).collect::<Vec<_>>()
    };
    let counters = stack.rules().chains.iter().flat_map(counters).collect();
    let events = std::iter::from_fn(|| stack.next_event()).collect();
    let sent = std::iter::from_fn(|| stack.egress()).map(|egress| egress.datagram).collect();
    (counters, events, sent)
}

/// A connection through the router, and packets of it both ways.
fn packets(count: usize) -> Vec<(&'static str, Vec<u8>)> {
    let (client, server) = ("10.0.0.2:4000", "198.51.100.10:80");
    let mut packets = vec![
        ("in", tcp(client, server, "S", 0, 0, b"")),
        ("out", tcp(server, client, "SA", 0, 1, b"")),
        ("in", tcp(client, server, "A", 1, 1, b"")),
    ];
    for number in 0..count as u32 {
        let flags = if number % 7 == 5 { "S" } else { "A" };
        packets.push(match number % 3 {
            0 => ("out", tcp(server, client, flags, 1, 1 + number, b"")),
            _ => ("in", tcp(client, server, flags, 1 + number, 1, b"x")),
        });
    }
    packets
}

fn play(stack: &mut Stack, packets: &[(&'static str, Vec<u8>)]) {
    for (number, (link, packet)) in packets.iter().enumerate() {
        let link = stack.link(link).unwrap();
        stack.ingress(link, packet.clone(), START.saturating_add(Duration::from_millis(number as u64)));
    }
}

#[test]
fn a_rule_that_is_added_holds_for_the_next_packet_of_a_flow_that_was_accepted_a_thousand_times() {
    let many = r#"{"match": {"dport": 9}, "action": "drop", "chain": "forward"},"#.repeat(20);
    let rules = format!(r#"[{many} {{"chain": "forward", "action": "accept"}}]"#);
    let mut stack = stack(&rules);
    play(&mut stack, &packets(1000));
    let (counters, _, sent) = outcome(&mut stack);
    assert!(sent.len() > 900 && counters[20].packets > 900, "{} {counters:?}", sent.len());
    assert!(stack.rules.remembers(), "the chain has more tests than it takes to remember");
    let mut set = stack.rules().clone();
    let rule = Rule::new(Match::default(), Action::Drop);
    set.chains.iter_mut().find(|chain| chain.name == "forward").unwrap().rules.insert(0, rule);
    stack.load_rules(set).unwrap();
    play(&mut stack, &[("in", tcp("10.0.0.2:4000", "198.51.100.10:80", "A", 1001, 1, b"y"))]);
    let (counters, events, sent) = outcome(&mut stack);
    assert_eq!((counters[0].packets, sent.len()), (1, 0), "{events:?}");
}

fn matches() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "{}",
        r#"{"dport": 80}"#,
        r#"{"sport": 80}"#,
        r#"{"ctstate": ["established"]}"#,
        r#"{"ctstate": ["new"]}"#,
        r#"{"ctdir": "reply"}"#,
        r#"{"ctmark": 7}"#,
        r#"{"iif": "in"}"#,
        r#"{"tcpflags_syn_only": true}"#,
        r#"{"dport": 9}"#,
    ])
}

fn actions() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        r#""accept""#,
        r#""drop""#,
        r#"{"ctmark": 7}"#,
        r#"{"log": "seen"}"#,
        r#"{"jump": "side"}"#,
        r#"{"goto": "side"}"#,
        r#""return""#,
    ])
}

fn chain(head: &str, rules: &[(&str, &str)]) -> String {
    let rules: Vec<_> = rules
        .iter()
        .filter(|(_, action)| !(head.contains("side") && action.contains("side")))
        .map(|(matches, action)| format!(r#"{{"match": {matches}, "action": {action}}}"#))
        .collect();
    format!(r#"{{{head}, "rules": [{}]}}"#, rules.join(","))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same rules forget between any two packets what they have remembered: that changes nothing.
    #[test]
    fn what_is_remembered_changes_neither_verdicts_nor_counters_nor_events(
        forward in prop::collection::vec((matches(), actions()), 6..24),
        side in prop::collection::vec((matches(), actions()), 0..8),
        accepts: bool,
    ) {
        let policy = if accepts { "accept" } else { "drop" };
        let head = format!(r#""name": "forward", "hook": "forward", "policy": "{policy}""#);
        let rules = format!(r#"{{"chains": [{}, {}]}}"#, chain(r#""name": "side""#, &side), chain(&head, &forward));
        let rules = Ruleset::from_json(&rules);
        prop_assert!(rules.is_ok(), "{rules:?}");
        let loaded = || {
            let mut stack = stack("[]");
            stack.load_rules(rules.clone().unwrap()).unwrap();
            stack
        };
        let (mut remembering, mut forgetful) = (loaded(), loaded());
        for packet in packets(60).chunks(1) {
            play(&mut remembering, packet);
            forgetful.rules.forget();
            play(&mut forgetful, packet);
            prop_assert_eq!(outcome(&mut remembering), outcome(&mut forgetful));
        }
    }
}
