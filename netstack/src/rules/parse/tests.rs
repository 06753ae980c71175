use super::*;

#[test]
fn every_spelling_is_read_and_read_back_from_what_is_written() {
    for action in [
        r#""accept""#,
        r#""drop""#,
        r#""reject""#,
        r#""reject-tcp""#,
        r#""reject-admin""#,
        r#""tproxy""#,
        r#""notrack""#,
        r#""masquerade""#,
        r#""masquerade fully-random""#,
        r#"{"masquerade":"1000-2000"}"#,
        r#"{"snat":"203.0.113.5"}"#,
        r#"{"snat":"203.0.113.5:99"}"#,
        r#"{"snat":"203.0.113.5:1000-2000"}"#,
        r#"{"snat":{"to":"203.0.113.5-203.0.113.9","flags":"random,fully-random,persistent"}}"#,
        r#"{"snat":"2001:db8::5"}"#,
        r#"{"dnat":"10.0.0.5:80"}"#,
        r#"{"dnat":"[fd00::5]:80"}"#,
        r#"{"dnat":"[fd00::5]-[fd00::9]:80"}"#,
        r#"{"dnat":":80"}"#,
        r#"{"dnat":{"to":":80-90","flags":"random"}}"#,
        r#"{"redirect":8080}"#,
        r#"{"redirect":{"to":"80-90","flags":"random"}}"#,
        r#"{"zone":7}"#,
        r#"{"zone_orig":7}"#,
        r#"{"ctmark":4294967295}"#,
        r#"{"jump":"own"}"#,
        r#"{"goto":"own"}"#,
        r#""return""#,
        r#"{"log":"seen"}"#,
    ] {
        let read: Action = serde_json::from_str(action).unwrap_or_else(|error| panic!("{action}: {error}"));
        let written = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Action>(&written).unwrap(), read, "{action} -> {written}");
    }
}

#[test]
fn a_list_of_rules_makes_the_standard_chains_it_names() {
    let set = Ruleset::from_json(
        r#"[{"chain":"srcnat","match":{"oif":"out"},"action":"masquerade"},
            {"chain":"forward","match":{"proto":"tcp","dport":"1-9"},"action":"drop"},
            {"chain":"forward","action":"accept"}]"#,
    )
    .unwrap();
    let shape: Vec<_> = set
        .chains
        .iter()
        .map(|c| (c.name.as_str(), c.base.unwrap().kind, c.base.unwrap().hook, c.rules.len()))
        .collect();
    let expected = [("srcnat", ChainKind::Nat, Hook::Postrouting, 1), ("forward", ChainKind::Filter, Hook::Forward, 2)];
    assert_eq!(shape, expected);
    assert_eq!(set.chains[1].rules[0].matches.dport, Ports::range(1, 9));
}

#[test]
fn the_general_form_comes_back_as_it_was_written() {
    let text = r#"{"chains":[{"name":"regular","rules":[{"action":"return"}]},
        {"name":"own","hook":"output","priority":-7,"policy":"drop","rules":[{"action":{"jump":"regular"}},
        {"match":{"proto":"udp","sport":53,"saddr":"10.0.0.0/8","ctstate":["new","related"],"ctdir":"original",
         "ctmark":5,"family":"ipv4","iif":"in","oif":"out","tcpflags_syn_only":true},"action":"accept"}]}],
        "policy":{"input":"drop"}}"#;
    let set = Ruleset::from_json(text).unwrap();
    assert_eq!(Ruleset::from_json(&set.to_json()).unwrap(), set);
    assert_eq!(set.chain("input").unwrap().base.unwrap().policy, Policy::Drop);
}

#[test]
fn a_misspelling_is_refused_with_what_was_expected() {
    for (text, part) in [
        (r#"[{"chain":"forwards","action":"drop"}]"#, "found the chain `forwards`"),
        (r#"[{"chain":"forward","action":"deny"}]"#, "found the action `deny`"),
        (r#"[{"chain":"forward","match":{"port":1},"action":"drop"}]"#, "unknown field `port`"),
        (r#"[{"chain":"forward","match":{"dport":"9-1"},"action":"drop"}]"#, "found the port `9-1`"),
        (r#"[{"chain":"forward","match":{"proto":"tpc"},"action":"drop"}]"#, "found the protocol `tpc`"),
        (r#"[{"chain":"srcnat","action":{"snat":"300.0.0.1"}}]"#, "found `300.0.0.1`"),
        (r#"[{"chain":"srcnat","action":{"snat":"1.2.3.4","dnat":"1.2.3.4"}}]"#, "an action has one entry"),
        (r#"[{"chain":"raw_output","action":{"zone":65536}}]"#, "found zone 65536"),
        (r#"[{"chain":"forward","action":{"jump":7}}]"#, "found the action `jump`"),
        (r#"{"chains":[{"name":"own","policy":"drop"}]}"#, "found the chain `own` without a hook"),
        (r#"{"chains":[{"name":"own"}],"policy":{"own":"drop"}}"#, "found a policy of the chain `own`"),
        ("7", "a list of rules"),
    ] {
        let error = Ruleset::from_json(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn the_default_set_is_closed() {
    let set = Ruleset::default();
    let base: Vec<_> = set.chains.iter().map(|chain| chain.base.unwrap()).collect();
    assert!(base.iter().all(|base| base.policy == Policy::Drop));
    assert_eq!(base.iter().map(|base| base.hook).collect::<Vec<_>>(), [Hook::Input, Hook::Forward]);
    assert!(set.chains.iter().all(|chain| chain.rules.is_empty()));
}
