//! A rule set is one transaction: what is refused has changed nothing, to the byte.

use std::cell::RefCell;

use hibernet_netstack::{Rule, Ruleset, StackEvent};
use hibernet_tests::traffic::{Gateway, START, Session, Step, Trace, restored};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Text of a rule's action: good ones, misplaced ones, and such that mean nothing.
fn action() -> impl Strategy<Value = String> {
    let words = [
        r#""accept""#,
        r#""drop""#,
        r#""reject""#,
        r#""reject-tcp""#,
        r#""reject-admin""#,
        r#""tproxy""#,
        r#""notrack""#,
        r#""return""#,
        r#""masquerade""#,
        r#"{"snat": "203.0.113.9"}"#,
        r#"{"snat": "2001:db8::9"}"#,
        r#"{"snat": "203.0.113.9-203.0.113.1"}"#,
        r#"{"dnat": "10.0.0.5:80"}"#,
        r#"{"dnat": ":80"}"#,
        r#"{"redirect": 80}"#,
        r#"{"zone": 3}"#,
        r#"{"zone_orig": 70000}"#,
        r#"{"ctmark": 1}"#,
        r#"{"log": "seen"}"#,
        r#"{"deny": 1}"#,
    ];
    let fixed = (0..words.len()).prop_map(move |number| words[number].to_owned());
    let jump = (any::<bool>(), 0..8_u8).prop_map(|(jump, to)| {
        let verb = if jump { "jump" } else { "goto" };
        format!(r#"{{"{verb}": "c{to}"}}"#)
    });
    prop_oneof![3 => fixed, 1 => jump]
}

fn matches() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        8 => Just("{}"),
        2 => Just(r#"{"iif": "in"}"#),
        1 => Just(r#"{"oif": "wan"}"#),
        1 => Just(r#"{"saddr": "10.0.0.0/8", "daddr": "fd00::/8"}"#),
        1 => Just(r#"{"family": "ipv6"}"#),
        1 => Just(r#"{"ctstate": []}"#),
        1 => Just(r#"{"proto": "udp", "dport": "9-1"}"#),
        1 => Just(r#"{"proto": "tcp", "tcpflags_syn_only": true, "ctstate": ["new"]}"#),
    ]
}

fn rule() -> impl Strategy<Value = String> {
    (matches(), action()).prop_map(|(matches, action)| format!(r#"{{"match": {matches}, "action": {action}}}"#))
}

fn rule_set() -> impl Strategy<Value = String> {
    let hook = prop_oneof![
        4 => Just(""),
        1 => Just(r#""hook": "prerouting","#),
        1 => Just(r#""hook": "input","#),
        2 => Just(r#""hook": "forward","#),
        1 => Just(r#""hook": "output","#),
        2 => Just(r#""hook": "postrouting","#),
        1 => Just(r#""policy": "drop","#),
    ];
    let kind = prop_oneof![6 => Just(""), 1 => Just(r#""type": "nat","#), 1 => Just(r#""priority": -300,"#)];
    let name = prop_oneof![20 => Just(""), 1 => Just("\u{e9}")];
    let chain = (hook, kind, name, prop::collection::vec(rule(), 0..4));
    prop::collection::vec(chain, 1..8).prop_map(|chains| {
        let written: Vec<_> = chains
            .iter()
            .enumerate()
            .map(|(number, (hook, kind, name, rules))| {
                let kind = if hook.contains("hook") { kind } else { "" };
                format!(r#"{{"name": "c{number}{name}", {hook} {kind} "rules": [{}]}}"#, rules.join(","))
            })
            .collect();
        format!(r#"{{"chains": [{}]}}"#, written.join(","))
    })
}

/// A gateway in the middle of its traffic.
fn busy() -> (Session, Trace) {
    let gateway = Gateway::with_room_for(64);
    let trace = Trace::of(&gateway, 1, 11, 400);
    let mut session = Session::of(gateway.open(1), 0, START);
    for step in &trace.steps {
        session.play(step);
    }
    assert!(session.stack.conntrack().len() > 20 && session.stack.stats().dropped_in_all() > 5);
    (session, trace)
}

/// All of a stack that a rule set could have touched.
fn state(session: &Session) -> (Vec<u8>, String, String) {
    (session.image(), format!("{:?}", session.stack.hooks()), format!("{:?}", session.stack.rules()))
}

#[test]
fn a_set_that_is_refused_has_changed_nothing_and_one_that_is_not_lets_traffic_go_on() {
    let (session, trace) = busy();
    let before = state(&session);
    let handles: Vec<_> = session.stack.flows(session.now()).iter().map(|flow| flow.orig).collect();
    let session = RefCell::new(session);
    let counts = RefCell::new((0_u32, 0_u32, 0_u32));
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(1500) });
    let outcome = runner.run(&(rule_set(), rule(), 0..3_u8), |(text, rule, chain)| {
        let mut session = session.borrow_mut();
        let mut counts = counts.borrow_mut();
        let mut refused = false;
        match Ruleset::from_json(&text) {
            Err(_) => counts.0 += 1,
            Ok(set) => match session.stack.load_rules(set.clone()) {
                Err(error) => {
                    let told = error.to_string();
                    prop_assert!(told.contains("chain `"), "{}: {}", text, told);
                    (counts.1, refused) = (counts.1 + 1, true);
                }
                Ok(()) => {
                    // It is in force; what was is brought back from the image, and goes on there.
                    counts.2 += 1;
                    for step in trace.steps.iter().take(20) {
                        let at = session.now();
                        session.play(&Step { at, ..step.clone() });
                    }
                    let image = session.image();
                    let (again, _) = restored(&image, 5, session.now()).expect("what loads also restores");
                    prop_assert_eq!(again.rules(), session.stack.rules());
                    let now = session.now();
                    let (back, _) = restored(&before.0, 5, now).expect("a stack restores from its image");
                    session.stack = back;
                }
            },
        }
        if let Ok(rule) = serde_json::from_str::<Rule>(&rule) {
            let chain = ["forward", "srcnat", "nowhere"][usize::from(chain)];
            if session.stack.add_rule(chain, rule).is_ok() {
                let now = session.now();
                session.stack = restored(&before.0, 5, now).expect("a stack restores from its image").0;
            } else {
                refused = true;
            }
        }
        if refused {
            prop_assert_eq!(&state(&session), &before);
            prop_assert!(!matches!(session.stack.next_event(), Some(StackEvent::Conntrack(_))));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (unread, refused, loaded) = counts.into_inner();
    assert!(unread > 100 && refused > 300 && loaded > 50, "{unread} unread, {refused} refused, {loaded} loaded");
    let session = session.into_inner();
    let now: Vec<_> = session.stack.flows(session.now()).iter().map(|flow| flow.orig).collect();
    assert_eq!(now, handles);
}

#[test]
fn handles_of_flows_outlive_rule_sets_refused_and_loaded() {
    let (mut session, _) = busy();
    let (first, now) = (session.stack.flows(session.now())[0].clone(), session.now());
    let (handle, _) = session.stack.conntrack().find(&first.orig, first.zone).unwrap();
    let refused = Ruleset::from_json(r#"[{"chain": "forward", "action": {"jump": "nowhere"}}]"#).unwrap();
    session.stack.load_rules(refused).unwrap_err();
    assert_eq!(session.stack.conntrack().flow(handle), Some(first.clone()));
    session.stack.load_rules(Ruleset::open()).unwrap();
    assert_eq!(session.stack.conntrack().flow(handle).map(|flow| flow.orig), Some(first.orig));
    assert_eq!(session.stack.flows(now)[0].orig, first.orig);
}

#[test]
fn regular_chains_with_their_counters_come_back_from_a_file() {
    let rules = r#"{"chains": [
        {"name": "leaf", "rules": [{"match": {"dport": 53}, "action": "accept"}, {"action": "return"}]},
        {"name": "way", "rules": [{"action": {"goto": "leaf"}}]}],
        "policy": {"forward": "drop"},
        "rules": [{"chain": "forward", "action": {"jump": "way"}}]}"#;
    let gateway = Gateway { rules, ..Gateway::with_room_for(64) };
    let trace = Trace::of(&gateway, 1, 3, 200);
    let mut session = Session::of(gateway.open(1), 0, START);
    for step in &trace.steps {
        session.play(step);
    }
    let leaf = session.stack.rules().chain("leaf").unwrap().clone();
    assert!(leaf.rules.iter().all(|rule| rule.counters.packets > 0), "{leaf:?}");
    let image = session.image();
    session.move_over(7);
    assert_eq!(session.image(), image);
    assert_eq!(session.stack.rules().chain("leaf"), Some(&leaf));
    assert_eq!(session.stack.rules().to_json(), Ruleset::from_json(rules).unwrap().to_json());
}
