use proptest::prelude::*;

use super::*;
use crate::link::Links;
use crate::rules::Rules;

/// A set of a base chain `base` at forward and regular chains `c0`, `c1`, .. from what each leads to.
fn set(base: &str, regular: &[&str]) -> Ruleset {
    let rules = |words: &str| {
        let rule = |word: &str| match word.split_once(':') {
            Some((verb, name)) => format!(r#"{{"action":{{"{verb}":"{name}"}}}}"#),
            None => format!(r#"{{"action":"{word}"}}"#),
        };
        words.split_whitespace().map(rule).collect::<Vec<_>>().join(",")
    };
    let regular: String = regular
        .iter()
        .enumerate()
        .map(|(number, words)| format!(r#"{{"name":"c{number}","rules":[{}]}},"#, rules(words)))
        .collect();
    let text = format!(r#"{{"chains":[{regular}{{"name":"base","hook":"forward","rules":[{}]}}]}}"#, rules(base));
    Ruleset::from_json(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn verdict(set: Ruleset) -> String {
    Rules::load(set, &Links::new(Vec::new())).map_or_else(|error| error.to_string(), |_| "ok".into())
}

/// `c0` leads to `c1`, and so on through so many chains.
fn ladder(verb: &str, chains: usize) -> Ruleset {
    let words: Vec<String> =
        (1..=chains).map(|next| if next < chains { format!("{verb}:c{next}") } else { "drop".into() }).collect();
    set(&format!("accept {verb}:c0"), &words.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_packet_can_be_in_sixteen_chains_at_once_as_in_the_kernel() {
    for verb in ["jump", "goto"] {
        assert_eq!(verdict(ladder(verb, 15)), "ok");
        assert_eq!(
            verdict(ladder(verb, 16)),
            "chain `base`, rule 1: from here jumps lead through 17 chains: at most 16, this one included"
        );
    }
}

#[test]
fn a_circle_of_jumps_is_refused_where_it_closes() {
    let closes = |chain: &str, rule: usize| format!("chain `{chain}`, rule {rule}: this jump leads back here");
    assert_eq!(verdict(set("jump:c0", &["accept jump:c0"])), closes("c0", 1));
    assert_eq!(verdict(set("jump:c0", &["jump:c1", "goto:c2", "return jump:c0"])), closes("c2", 1));
    // The kernel lets a circle be that nothing leads into, and finds it when something does.
    assert_eq!(verdict(set("accept", &["jump:c1", "jump:c0"])), closes("c1", 0));
    assert_eq!(verdict(set("jump:c0 jump:c1", &["jump:c2", "jump:c2", "accept"])), "ok");
}

#[test]
fn a_jump_leads_to_a_regular_chain_of_the_set() {
    assert_eq!(
        verdict(set("jump:nowhere", &[])),
        "chain `base`, rule 0: found a jump to `nowhere`, expected a regular chain of the set"
    );
    assert_eq!(
        verdict(set("accept goto:base", &[])),
        "chain `base`, rule 1: found a jump to `base`, which has a hook: expected a regular chain"
    );
}

#[test]
fn chains_that_jump_to_each_other_cannot_show_a_packet_millions_of_rules() {
    let doubling: Vec<String> = (1..15).map(|next| format!("jump:c{next} ").repeat(4)).chain(["drop".into()]).collect();
    let doubling: Vec<&str> = doubling.iter().map(String::as_str).collect();
    assert_eq!(
        verdict(set("jump:c0", &doubling)),
        "chain `base`: with this chain, and what it jumps to, one packet can be shown 626349397 rules: at most 131072"
    );
}

proptest! {
    /// What the check lets through ends, and within the bounds it promises.
    #[test]
    fn every_set_that_loads_ends_soon(words in prop::collection::vec(prop::collection::vec((0..4_u8, 0..20_usize), 0..5), 1..20)) {
        let written: Vec<String> = words
            .iter()
            .map(|chain| {
                let word = |(kind, to): &(u8, usize)| match kind {
                    0 => format!("jump:c{}", to % words.len()),
                    1 => format!("goto:c{}", to % words.len()),
                    2 => "return".to_owned(),
                    _ => "reject-tcp".to_owned(),
                };
                chain.iter().map(word).collect::<Vec<_>>().join(" ")
            })
            .collect();
        let set = set("jump:c0", &written.iter().map(String::as_str).collect::<Vec<_>>());
        if let Ok(jumps) = Jumps::of(&set) {
            let base = set.chains.len() - 1;
            let (depth, shown) = walk(&set, &jumps, base);
            prop_assert!(depth <= MAX_DEPTH && shown <= MAX_SHOWN, "{} chains, {} rules", depth, shown);
        }
    }
}

/// Chains on the longest way, and rules shown to a packet that matches every jump and nothing else.
fn walk(set: &Ruleset, jumps: &Jumps, chain: usize) -> (usize, usize) {
    let (mut depth, mut shown) = (1, 0);
    for rule in 0..set.chains[chain].rules.len() {
        shown += 1;
        if let Some(target) = jumps.target(chain, rule) {
            let (deeper, more) = walk(set, jumps, target);
            (depth, shown) = (depth.max(deeper + 1), shown + more);
        }
    }
    (depth, shown)
}
