use crate::test_stack::check;

#[test]
fn a_jump_comes_back_behind_itself_and_a_goto_to_whoever_jumped() {
    // Measured: the scenario `rules_jump_goto_return` has the kernel's answers.
    let rules = r#"{"chains": [
        {"name": "inner", "rules": [
            {"match": {"dport": 1}, "action": "accept"},
            {"match": {"dport": 2}, "action": "return"},
            {"match": {"dport": 3}, "action": "drop"}]},
        {"name": "outer", "rules": [
            {"match": {"sport": 7}, "action": {"goto": "inner"}},
            {"action": {"jump": "inner"}},
            {"match": {"dport": 2}, "action": "accept"},
            {"match": {"dport": 4}, "action": "return"}]},
        {"name": "base", "hook": "forward", "policy": "drop", "rules": [
            {"match": {"dport": 5}, "action": {"goto": "inner"}},
            {"match": {"dport": 6}, "action": "return"},
            {"action": {"jump": "outer"}},
            {"match": {"sport": 7, "dport": 2}, "action": "drop"},
            {"match": {"dport": 4}, "action": "accept"}]}]}"#;
    check(
        rules,
        "
        in: udp client:1000 > server:1
          out: udp client:1000 > server:1 len=0 ttl=63
        in: udp client:1000 > server:2
          out: udp client:1000 > server:2 len=0 ttl=63
        in: udp client:1000 > server:3
          drop rule
        in: udp client:1000 > server:4
          out: udp client:1000 > server:4 len=0 ttl=63
        in: udp client:1000 > server:5
          drop policy
        in: udp client:1000 > server:6
          drop policy
        in: udp client:1000 > server:9
          drop policy
        in: udp client:7 > server:2
          drop rule
        in: udp client:7 > server:4
          out: udp client:7 > server:4 len=0 ttl=63
        in: udp client:7 > server:3
          drop rule
        ",
    );
}

#[test]
fn a_nat_chain_finds_its_translation_in_another_chain() {
    let rules = r#"{"chains": [
        {"name": "translate", "rules": [
            {"match": {"dport": 53}, "action": "return"},
            {"action": "masquerade"}]},
        {"name": "nat", "type": "nat", "hook": "postrouting", "rules": [
            {"match": {"oif": "out"}, "action": {"jump": "translate"}}]}]}"#;
    check(
        rules,
        "
        in: udp client:1000 > server:53
          out: udp client:1000 > server:53 len=0 ttl=63
        in: udp client:1000 > server:54
          out: udp public:1000 > server:54 len=0 ttl=63
        ",
    );
}
