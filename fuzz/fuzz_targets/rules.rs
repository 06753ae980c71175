//! Packet sequences under random rules: never a panic, and a refused change of rules changes nothing.
#![no_main]

use hibernet_fuzz::{GENERATION, RULES, feed, stack};
use hibernet_netstack::Ruleset;
use libfuzzer_sys::fuzz_target;

// Two counts of rules, five bytes for each rule (chain, number of matches, two matches, action), then frames.
fuzz_target!(|bytes: &[u8]| {
    let Some(([first, later], rest)) = bytes.split_first_chunk::<2>() else { return };
    let (first, rest) = rest.split_at((usize::from(*first % 16) * 5).min(rest.len()));
    let (later, packets) = rest.split_at((usize::from(*later % 16) * 5).min(rest.len()));
    let fallback = || Ruleset::from_json(RULES).expect("the rules are sound");
    let rules = Ruleset::from_json(&json(first)).unwrap_or_else(|_| fallback());
    let Some(mut stack) = stack(rules).or_else(|| stack(fallback())) else { return };
    let now = feed(&mut stack, packets);
    let before = stack.save(GENERATION, now).expect("a stack can be saved");
    if let Ok(later) = Ruleset::from_json(&json(later))
        && stack.load_rules(later).is_err()
    {
        assert_eq!(stack.save(GENERATION, now), Ok(before), "a refused rule set changes nothing");
    }
});

/// Rules whose parts are drawn from lists, so that most sets are almost sound.
fn json(bytes: &[u8]) -> String {
    let pick = |list: &[&'static str], at: u8| list[usize::from(at) % list.len()];
    let rule = |[chain, count, first, second, action]: &[u8; 5]| {
        let matches: Vec<_> =
            [first, second].iter().take(usize::from(count % 3)).map(|at| pick(MATCHES, **at)).collect();
        format!(
            r#"{{"chain": "{}", "match": {{{}}}, "action": {}}}"#,
            pick(CHAINS, *chain),
            matches.join(", "),
            pick(ACTIONS, *action)
        )
    };
    let rules: Vec<_> = bytes.as_chunks::<5>().0.iter().map(rule).collect();
    format!(r#"{{"rules": [{}]}}"#, rules.join(", "))
}

const CHAINS: &[&str] = &[
    "raw_prerouting",
    "raw_output",
    "mangle_prerouting",
    "mangle_output",
    "mangle_postrouting",
    "dstnat",
    "dstnat_output",
    "input",
    "forward",
    "output",
    "srcnat",
    "srcnat_input",
    "late_input",
    "late_postrouting",
    "nowhere",
];
const MATCHES: &[&str] = &[
    r#""iif": "in""#,
    r#""oif": "out""#,
    r#""saddr": "10.0.0.0/8""#,
    r#""daddr": "203.0.113.1""#,
    r#""proto": "tcp""#,
    r#""proto": "udp""#,
    r#""proto": 47"#,
    r#""sport": "1-1023""#,
    r#""dport": 80"#,
    r#""ctstate": ["new", "invalid"]"#,
    r#""ctdir": "reply""#,
    r#""ctmark": 5"#,
    r#""family": "ipv6""#,
    r#""tcpflags_syn_only": true"#,
    r#""what": 1"#,
];
const ACTIONS: &[&str] = &[
    r#""accept""#,
    r#""drop""#,
    r#""reject""#,
    r#""reject-tcp""#,
    r#""notrack""#,
    r#""masquerade""#,
    r#""masquerade fully-random""#,
    r#"{"masquerade": "5000-5003"}"#,
    r#"{"snat": "203.0.113.9:1-9"}"#,
    r#"{"snat": "2001:db8:ff::9"}"#,
    r#"{"dnat": "10.0.0.5:80"}"#,
    r#"{"dnat": "[fd00:10::5]:80"}"#,
    r#"{"redirect": 7}"#,
    r#"{"zone": 3}"#,
    r#"{"zone_orig": 4}"#,
    r#"{"ctmark": 5}"#,
    r#"{"log": "x"}"#,
    r#""reject-admin""#,
    r#""tproxy""#,
    r#""nothing""#,
];
