use super::*;
use crate::link::LinkConfig;

fn verdict(text: &str) -> String {
    let link = |name: &str| LinkConfig { name: name.into(), mtu: 1500, addrs: Vec::new(), medium: crate::Medium::Ip };
    let set = Ruleset::from_json(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    validate(&set, &Links::new(vec![link("in"), link("out")])).map_or_else(|error| error.to_string(), |_| "ok".into())
}

#[test]
fn an_action_stands_only_where_its_hook_and_chain_can_take_it() {
    for (chain, action, fits) in [
        ("srcnat", r#"{"snat":"203.0.113.1"}"#, true),
        ("srcnat_input", r#"{"snat":"203.0.113.1"}"#, true),
        ("dstnat", r#"{"snat":"203.0.113.1"}"#, false),
        ("forward", r#"{"snat":"203.0.113.1"}"#, false),
        ("srcnat", r#""masquerade""#, true),
        ("srcnat_input", r#""masquerade""#, false),
        ("dstnat", r#"{"dnat":"10.0.0.5:80"}"#, true),
        ("dstnat_output", r#"{"redirect":80}"#, true),
        ("srcnat", r#"{"redirect":80}"#, false),
        ("raw_prerouting", r#""notrack""#, true),
        ("mangle_prerouting", r#""notrack""#, false),
        ("forward", r#"{"zone":1}"#, false),
        ("forward", r#""reject""#, true),
        ("raw_prerouting", r#""reject-tcp""#, true),
        ("mangle_postrouting", r#""reject""#, false),
        ("input", r#""reject-admin""#, true),
        ("srcnat", r#""reject-admin""#, false),
        ("mangle_prerouting", r#""tproxy""#, true),
        ("raw_prerouting", r#""tproxy""#, false),
        ("input", r#""tproxy""#, false),
        ("dstnat", r#""tproxy""#, false),
        ("forward", r#"{"ctmark":1}"#, true),
    ] {
        let found = verdict(&format!(r#"[{{"chain":"{chain}","action":{action}}}]"#));
        let place = format!("chain `{chain}`, rule 0: ");
        assert_eq!(found == "ok", fits, "{chain} {action}: {found}");
        assert!(fits || found.starts_with(&place), "{found}");
    }
}

#[test]
fn every_other_fault_is_named_with_its_place() {
    for (text, expected) in [
        (
            r#"[{"chain":"forward","action":"accept"},{"chain":"forward","match":{"iif":"wan"},"action":"drop"}]"#,
            "chain `forward`, rule 1: no link is named `wan`",
        ),
        (
            r#"[{"chain":"srcnat","match":{"saddr":"fd00::/8"},"action":{"snat":"203.0.113.1"}}]"#,
            "chain `srcnat`, rule 0: 203.0.113.1 is of another IP version than the rest of the rule",
        ),
        (
            r#"[{"chain":"srcnat","match":{"family":"ipv6"},"action":{"snat":"203.0.113.1"}}]"#,
            "chain `srcnat`, rule 0: 203.0.113.1 is of another IP version than the rest of the rule",
        ),
        (
            r#"[{"chain":"forward","match":{"saddr":"10.0.0.1","daddr":"fd00::1"},"action":"drop"}]"#,
            "chain `forward`, rule 0: fd00::1/128 is of another IP version than the rest of the rule",
        ),
        (
            r#"[{"chain":"srcnat","action":{"snat":"203.0.113.9-203.0.113.1"}}]"#,
            "chain `srcnat`, rule 0: the range 203.0.113.9 to 203.0.113.1 is empty",
        ),
        (
            r#"[{"chain":"forward","match":{"ctstate":[]},"action":"drop"}]"#,
            "chain `forward`, rule 0: `ctstate` is empty: expected at least one state",
        ),
        (
            r#"[{"chain":"forward","match":{"ctstate":["new","new","new","new","new","new"]},"action":"drop"}]"#,
            "chain `forward`, rule 0: `ctstate` has 6 states: at most 5",
        ),
        (
            r#"{"chains":[{"name":"n","type":"nat","hook":"forward"}]}"#,
            "chain `n`: a nat chain cannot stand at forward: expected prerouting, input, output or postrouting",
        ),
        (
            r#"{"chains":[{"name":"a","hook":"forward"},{"name":"a","hook":"input"}]}"#,
            "chain `a`: the name is taken by an earlier chain",
        ),
        (
            r#"{"chains":[{"name":"","hook":"forward"}]}"#,
            "chain ``: the name has 0 bytes: expected 1 to 64 printable ones",
        ),
    ] {
        assert_eq!(verdict(text), expected);
    }
}

#[test]
fn an_action_is_checked_at_every_hook_from_which_packets_get_to_it() {
    let set = |hook: &str, kind: &str, action: &str| {
        format!(
            r#"{{"chains":[{{"name":"leaf","rules":[{{"action":"accept"}},{{"action":{action}}}]}},
                {{"name":"branch","rules":[{{"action":{{"goto":"leaf"}}}}]}},
                {{"name":"base","type":"{kind}","hook":"{hook}","rules":[{{"action":{{"jump":"branch"}}}}]}}]}}"#
        )
    };
    let snat = r#"{"snat":"203.0.113.1"}"#;
    for (hook, kind, action, fits) in [
        ("postrouting", "nat", snat, true),
        ("prerouting", "nat", snat, false),
        ("postrouting", "filter", snat, false),
        ("forward", "filter", r#""notrack""#, false),
        ("forward", "filter", r#""reject""#, true),
        ("postrouting", "filter", r#""reject""#, false),
    ] {
        let found = verdict(&set(hook, kind, action));
        let place = "chain `leaf`, rule 1: `";
        assert_eq!(found == "ok", fits, "{hook} {kind} {action}: {found}");
        assert!(fits || found.starts_with(place) && found.contains("in packets of the chain `base`"), "{found}");
    }
    let unused = format!(r#"{{"chains":[{{"name":"leaf","rules":[{{"action":{snat}}}]}}]}}"#);
    assert_eq!(verdict(&unused), "ok");
}

#[test]
fn a_set_that_is_too_large_is_refused() {
    let too_large = |text: &str| {
        let read = Ruleset::from_json(text).unwrap_err().to_string();
        read.strip_prefix("the rule set cannot be read: ").unwrap().to_owned()
    };
    let chains: Vec<_> = (0..257).map(|n| format!(r#"{{"name":"c{n}","hook":"forward"}}"#)).collect();
    assert!(too_large(&format!(r#"{{"chains":[{}]}}"#, chains.join(","))).starts_with("257 chains: at most 256"));
    let rules = vec![r#"{"chain":"forward","action":"drop"}"#; 65_537];
    let expected = "65537 rules: at most 65536 in all chains together";
    assert!(too_large(&format!("[{}]", rules.join(","))).starts_with(expected));
    let drop = Rule::new(Match::default(), Action::Drop);
    let full = Chain { rules: vec![drop; 65_537], ..Chain::regular("full") };
    let full = Ruleset { chains: vec![full] };
    assert_eq!(validate(&full, &Links::new(Vec::new())).unwrap_err().to_string(), expected);
    let empty = Ruleset { chains: (0..257).map(|n| Chain::regular(&n.to_string())).collect() };
    assert_eq!(validate(&empty, &Links::new(Vec::new())).unwrap_err().to_string(), "257 chains: at most 256");
}

#[test]
fn what_could_not_be_written_down_is_refused() {
    let addr = Some(("203.0.113.1".parse().unwrap(), "203.0.113.1".parse().unwrap()));
    let target = NatTarget { addrs: addr, ..NatTarget::default() };
    for (chain, action) in [("srcnat", Action::Masquerade(target)), ("dstnat", Action::Redirect(target))] {
        let mut set = Ruleset::open();
        set.chain_or_standard(chain).unwrap().rules.push(Rule::new(Match::default(), action));
        let told = validate(&set, &Links::new(Vec::new())).unwrap_err().to_string();
        assert!(told.ends_with("with an address: expected ports or flags alone"), "{told}");
    }
}
