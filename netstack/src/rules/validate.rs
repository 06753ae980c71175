//! A rule set is checked whole before anything of it takes effect.

use core::net::IpAddr;
use std::collections::BTreeSet;

use thiserror::Error;

use super::{Action, Chain, ChainKind, Family, Match, NatTarget, Rule, Ruleset};
use crate::hook::{Hook, priority};
use crate::link::Links;

/// Why a rule set was refused. The rules in force were not touched.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RulesetError {
    /// The JSON is no rule set.
    #[error("the rule set cannot be read: {reason}")]
    Spelling {
        /// What was found, and where.
        reason: String,
    },
    /// There are too many chains.
    #[error("{found} chains: at most {most}")]
    TooManyChains {
        /// Chains in the set.
        found: usize,
        /// Chains allowed.
        most: usize,
    },
    /// There are too many rules.
    #[error("{found} rules: at most {most} in all chains together")]
    TooManyRules {
        /// Rules in the set.
        found: usize,
        /// Rules allowed.
        most: usize,
    },
    /// A chain cannot be.
    #[error("chain `{chain}`: {problem}")]
    Chain {
        /// Name of the chain.
        chain: String,
        /// What is wrong with it.
        problem: RuleProblem,
    },
    /// A rule cannot be.
    #[error("chain `{chain}`, rule {rule}: {problem}")]
    Rule {
        /// Name of the chain.
        chain: String,
        /// Number of the rule in the chain, from 0.
        rule: usize,
        /// What is wrong with it.
        problem: RuleProblem,
    },
}

/// What is wrong with a chain or a rule.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RuleProblem {
    /// No standard chain and none of the set has the name.
    #[error("{reason}")]
    UnknownChain {
        /// What was found and expected.
        reason: String,
    },
    /// Two chains have one name.
    #[error("the name is taken by an earlier chain")]
    DuplicateName,
    /// A name nobody can print.
    #[error("the name has {found} bytes: expected 1 to {most} printable ones")]
    BadName {
        /// Bytes of the name.
        found: usize,
        /// Bytes allowed.
        most: usize,
    },
    /// There is no NAT at this hook.
    #[error("a nat chain cannot stand at {found}: expected prerouting, input, output or postrouting")]
    NatHook {
        /// The hook.
        found: Hook,
    },
    /// The action cannot be taken in this chain.
    #[error("`{action}` cannot be done here: expected {expected}")]
    ActionNotHere {
        /// The action.
        action: &'static str,
        /// Where it can.
        expected: &'static str,
    },
    /// The link does not exist.
    #[error("no link is named `{found}`")]
    UnknownLink {
        /// The name.
        found: String,
    },
    /// Parts of the rule speak of different IP versions.
    #[error("{found} is of another IP version than the rest of the rule")]
    Family {
        /// The part.
        found: String,
    },
    /// The range of addresses is empty.
    #[error("the range {first} to {last} is empty")]
    EmptyRange {
        /// Its first address.
        first: IpAddr,
        /// Its last.
        last: IpAddr,
    },
    /// The translation has nothing to translate to.
    #[error("`{action}` without an address: expected {{\"{action}\": \"ADDRESS\"}} or one of its other forms")]
    NoTarget {
        /// The action.
        action: &'static str,
    },
    /// A list that can never match.
    #[error("`ctstate` is empty: expected at least one state")]
    NoState,
    /// The text of a log rule is too long.
    #[error("a prefix of {found} bytes: at most {most}")]
    LongPrefix {
        /// Its length.
        found: usize,
        /// Length allowed.
        most: usize,
    },
}

/// Checks a whole set against the links there are.
pub(crate) fn validate(set: &Ruleset, links: &Links) -> Result<(), RulesetError> {
    let found = set.chains.len();
    if found > MAX_CHAINS {
        return Err(RulesetError::TooManyChains { found, most: MAX_CHAINS });
    }
    let found = set.chains.iter().fold(0_usize, |sum, chain| sum.saturating_add(chain.rules.len()));
    if found > MAX_RULES {
        return Err(RulesetError::TooManyRules { found, most: MAX_RULES });
    }
    let mut names = BTreeSet::new();
    for chain in &set.chains {
        check_chain(chain, names.insert(chain.name.as_str()))
            .map_err(|problem| RulesetError::Chain { chain: chain.name.clone(), problem })?;
        for (number, rule) in chain.rules.iter().enumerate() {
            check_rule(chain, rule, links).map_err(|problem| RulesetError::Rule {
                chain: chain.name.clone(),
                rule: number,
                problem,
            })?;
        }
    }
    Ok(())
}

/// The IP version a rule is bound to by its own parts.
pub(crate) fn rule_family(rule: &Rule) -> Option<Family> {
    let Match { saddr, daddr, family, .. } = &rule.matches;
    let target = match &rule.action {
        Action::Snat(target) | Action::Dnat(target) => target.addrs.map(|(first, _)| first),
        _ => None,
    };
    family.or_else(|| saddr.or(*daddr).map(|cidr| cidr.addr()).or(target).map(family_of))
}

fn check_chain(chain: &Chain, new_name: bool) -> Result<(), RuleProblem> {
    let found = chain.name.len();
    if found == 0 || found > MAX_NAME || !chain.name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(RuleProblem::BadName { found, most: MAX_NAME });
    }
    if !new_name {
        return Err(RuleProblem::DuplicateName);
    }
    if chain.kind == ChainKind::Nat && chain.hook.manip().is_none() {
        return Err(RuleProblem::NatHook { found: chain.hook });
    }
    Ok(())
}

fn check_rule(chain: &Chain, rule: &Rule, links: &Links) -> Result<(), RuleProblem> {
    let Match { iif, oif, saddr, daddr, ctstate, .. } = &rule.matches;
    for name in [iif, oif].into_iter().flatten() {
        if links.id(name).is_none() {
            return Err(RuleProblem::UnknownLink { found: name.clone() });
        }
    }
    if ctstate.as_ref().is_some_and(Vec::is_empty) {
        return Err(RuleProblem::NoState);
    }
    let bound = rule_family(rule);
    for cidr in [saddr, daddr].into_iter().flatten() {
        if bound != Some(family_of(cidr.addr())) {
            return Err(RuleProblem::Family { found: cidr.to_string() });
        }
    }
    match &rule.action {
        Action::Snat(target) | Action::Dnat(target) => check_target(rule.action.name(), target, bound)?,
        Action::Log { prefix } if prefix.len() > MAX_PREFIX => {
            return Err(RuleProblem::LongPrefix { found: prefix.len(), most: MAX_PREFIX });
        }
        _ => {}
    }
    match where_allowed(chain, &rule.action) {
        Ok(()) => Ok(()),
        Err(expected) => Err(RuleProblem::ActionNotHere { action: rule.action.name(), expected }),
    }
}

fn check_target(action: &'static str, target: &NatTarget, bound: Option<Family>) -> Result<(), RuleProblem> {
    let Some((first, last)) = target.addrs else {
        // A destination may keep its address and change its port.
        let port_alone = action == "dnat" && target.ports.is_some();
        return if port_alone { Ok(()) } else { Err(RuleProblem::NoTarget { action }) };
    };
    if bound != Some(family_of(first)) {
        return Err(RuleProblem::Family { found: first.to_string() });
    }
    if first.is_ipv4() != last.is_ipv4() {
        return Err(RuleProblem::Family { found: last.to_string() });
    }
    if first > last {
        return Err(RuleProblem::EmptyRange { first, last });
    }
    Ok(())
}

/// Whether a chain can take an action; else where it can be taken.
fn where_allowed(chain: &Chain, action: &Action) -> Result<(), &'static str> {
    let nat = chain.kind == ChainKind::Nat;
    let before_track = chain.priority < priority::TRACK || (chain.priority == priority::TRACK && !chain.before_confirm);
    let (allowed, expected) = match action {
        Action::Accept | Action::Drop | Action::CtMark(_) | Action::Log { .. } => (true, ""),
        Action::Snat(_) => {
            (nat && matches!(chain.hook, Hook::Postrouting | Hook::Input), "a nat chain at postrouting or input")
        }
        Action::Masquerade(_) => (nat && chain.hook == Hook::Postrouting, "a nat chain at postrouting"),
        Action::Dnat(_) | Action::Redirect(_) => {
            (nat && matches!(chain.hook, Hook::Prerouting | Hook::Output), "a nat chain at prerouting or output")
        }
        Action::Notrack | Action::Zone(_) | Action::ZoneOrig(_) => (
            !nat && matches!(chain.hook, Hook::Prerouting | Hook::Output) && before_track,
            "a filter chain at prerouting or output before priority -200",
        ),
        Action::Reject | Action::RejectTcpReset => (
            !nat && matches!(chain.hook, Hook::Prerouting | Hook::Input | Hook::Forward | Hook::Output),
            "a filter chain at prerouting, input, forward or output",
        ),
    };
    if allowed { Ok(()) } else { Err(expected) }
}

const fn family_of(addr: IpAddr) -> Family {
    match addr {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    }
}

/// Most chains of a set.
const MAX_CHAINS: usize = 256;
/// Most rules of a set.
const MAX_RULES: usize = 65_536;
/// Longest name of a chain, in bytes.
const MAX_NAME: usize = 64;
/// Longest text of a log rule, in bytes: as long as the kernel's.
const MAX_PREFIX: usize = 127;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::LinkConfig;

    fn verdict(text: &str) -> String {
        let link = |name: &str| LinkConfig { name: name.into(), mtu: 1500, addrs: Vec::new() };
        let set = Ruleset::from_json(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        validate(&set, &Links::new(vec![link("in"), link("out")]))
            .map_or_else(|error| error.to_string(), |()| "ok".into())
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
    fn a_set_that_is_too_large_is_refused() {
        let chains: Vec<_> = (0..257).map(|n| format!(r#"{{"name":"c{n}","hook":"forward"}}"#)).collect();
        assert_eq!(verdict(&format!(r#"{{"chains":[{}]}}"#, chains.join(","))), "257 chains: at most 256");
        let rules = vec![r#"{"chain":"forward","action":"drop"}"#; 65_537];
        assert_eq!(verdict(&format!("[{}]", rules.join(","))), "65537 rules: at most 65536 in all chains together");
    }
}
