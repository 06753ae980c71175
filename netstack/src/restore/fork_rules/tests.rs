//! How rules of a fork are written.

use super::*;

#[test]
fn a_rule_in_words_is_the_rule_in_json() {
    for (words, json) in [
        ("keep", r#"{"action":"keep"}"#),
        ("reset proto=tcp dport=22", r#"{"match":{"proto":"tcp","dport":22},"action":"reset"}"#),
        (
            "drop saddr=10.0.0.0/8 daddr=2001:db8::1/128 sport=1000-2000 state=established,unreplied zone=3",
            r#"{"match":{"saddr":"10.0.0.0/8","daddr":"2001:db8::1","sport":"1000-2000",
                "state":["established","unreplied"],"zone":3},"action":"drop"}"#,
        ),
        (
            "keep proto=132 mark=0x10/0xf0 direction=inbound iif=guest0 oif=lo",
            r#"{"match":{"proto":"sctp","mark":"16/240","direction":"inbound","iif":"guest0","oif":"lo"},"action":"keep"}"#,
        ),
        ("keep mark=7", r#"{"match":{"mark":7},"action":"keep"}"#),
    ] {
        let rule: ForkRule = words.parse().unwrap();
        assert_eq!(rule, serde_json::from_str(json).unwrap(), "{words}");
        let again: ForkRule = rule.to_string().parse().unwrap();
        assert_eq!(again, rule);
        assert_eq!(serde_json::from_str::<ForkRule>(&serde_json::to_string(&rule).unwrap()).unwrap(), rule);
    }
}

#[test]
fn a_rule_that_cannot_be_read_is_refused_with_what_was_expected() {
    for (words, expected) in [
        ("", "found the action ``, expected keep, reset or drop"),
        ("hold", "found the action `hold`, expected keep, reset or drop"),
        ("keep tcp", "found `tcp`, expected KEY=VALUE"),
        ("keep dport=", "found `dport=`, expected KEY=VALUE"),
        ("keep port=3", "found the key `port`, expected proto, saddr, daddr, sport, dport, state"),
        ("keep dport=70000", "found the port `70000`, expected a number from 0 to 65535"),
        ("keep dport=9-3", "found the port `9-3`"),
        ("keep proto=tpc", "found the protocol `tpc`, expected icmp, tcp, udp"),
        ("keep saddr=10.0.0.0/40", "40"),
        ("keep saddr=guest", "guest"),
        ("keep state=open", "found the state `open`, expected unreplied, replied, assured, none, syn_sent"),
        ("keep zone=70000", "found the zone `70000`, expected 0 to 65535"),
        ("keep mark=1/0xf0", "expected a value within its mask"),
        ("keep mark=x", "found the mark `x`, expected VALUE or VALUE/MASK"),
        ("keep direction=up", "unknown variant `up`, expected one of `outbound`, `inbound`, `internal`, `transit`"),
        ("keep dport=1 dport=2", "found `dport` twice"),
    ] {
        let error = words.parse::<ForkRule>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("rule `{words}`: ")) && error.contains(expected), "{error}");
    }
    for (json, expected) in [
        (r#"{"rules": [], "policy": "keep"}"#, "unknown field `policy`, expected `rules` or `default`"),
        (r#"[{"match": {"port": 1}, "action": "keep"}]"#, "unknown field `port`"),
        (r#"[{"match": {}}]"#, "missing field `action`"),
        (r#"[{"action": "accept"}]"#, "unknown variant `accept`, expected one of `keep`, `reset`, `drop`"),
        (r#""keep""#, "expected a list of rules, or an object"),
    ] {
        let error = ForkRules::from_json(json).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
