//! The rules of a scenario, and the observer chains that write its trace, as a rule set of the stack.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use hibernet_netstack::{Rule, Ruleset};
use serde_json::{Value, json};

use crate::scenario::{self, Scenario};

/// The rule set: the stack knows the scenarios' chains by their names, and reads their rules as they are written.
pub(super) fn rule_set(scenario: &Scenario) -> Result<Ruleset> {
    if scenario.nft.is_some() {
        bail!("raw nft text is not supported: say it with rules");
    }
    let observers = OBSERVERS.iter().map(|(name, hook, priority)| observer(name, hook, *priority));
    let regular = regular_chains(scenario).into_iter().map(|name| json!({"name": name}));
    let chains: Vec<Value> = regular.chain(observers).collect();
    let written = json!({"chains": chains, "rules": scenario.rules, "policy": scenario.policy});
    Ruleset::from_json(&written.to_string()).context("the scenario's rules")
}

/// One rule to append to a chain. The late chains take none: the oracle keeps them in a table of their own.
pub(super) fn later_rule(rule: &scenario::Rule) -> Result<Rule> {
    let scenario::Rule { chain, matches, action } = rule;
    ensure!(!chain.starts_with("late_"), "no rules can be added to {chain:?}");
    serde_json::from_value(json!({"match": matches, "action": action})).with_context(|| format!("rule of {chain:?}"))
}

/// Names of the chains that rules jump to: they have no other declaration.
fn regular_chains(scenario: &Scenario) -> BTreeSet<&str> {
    fn target(rule: &scenario::Rule) -> Option<&str> {
        rule.action.get("jump").or_else(|| rule.action.get("goto"))?.as_str()
    }
    scenario.rules.iter().filter_map(target).collect()
}

fn observer(name: &str, hook: &str, priority: i32) -> Value {
    json!({"name": format!("observer_{name}"), "hook": hook, "priority": priority, "rules": [{"action": {"log": name}}]})
}

/// The oracle's observers: name as the trace shows it, hook, priority. Right behind the lookup, before the first and
/// behind the last user chain.
const OBSERVERS: [(&str, &str, i32); 6] = [
    ("prerouting", "prerouting", -199),
    ("input", "input", -2_147_483_000),
    ("forward", "forward", -2_147_483_000),
    ("output", "output", -199),
    ("postrouting", "postrouting", 2_147_483_600),
    ("input_end", "input", 2_147_483_600),
];
