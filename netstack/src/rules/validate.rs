//! A rule set is checked whole before anything of it takes effect.

use core::net::IpAddr;
use std::collections::BTreeSet;

use thiserror::Error;

use super::jumps::Jumps;
use super::{Action, BaseChain, Chain, ChainKind, Family, Match, NatTarget, Rule, Ruleset};
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
    /// A regular chain has an action that cannot be taken in a base chain from which packets get there.
    #[error("`{action}` cannot be done here in packets of the chain `{base}`: expected {expected}")]
    ActionNotReachable {
        /// The action.
        action: &'static str,
        /// The base chain.
        base: String,
        /// Where it can.
        expected: &'static str,
    },
    /// A jump or goto leads nowhere.
    #[error("found a jump to `{found}`, expected a regular chain of the set")]
    NoTargetChain {
        /// The name.
        found: String,
    },
    /// A jump or goto leads to a chain that stands at a hook.
    #[error("found a jump to `{found}`, which has a hook: expected a regular chain")]
    TargetIsBase {
        /// The chain.
        found: String,
    },
    /// Jumps lead back to where they come from.
    #[error("this jump leads back here")]
    JumpLoop,
    /// Jumps lead from chain to chain to chain.
    #[error("from here jumps lead through {found} chains: at most {most}, this one included")]
    JumpDepth {
        /// Chains on the longest way.
        found: usize,
        /// Chains allowed.
        most: usize,
    },
    /// One packet would be shown too many rules.
    #[error("with this chain, and what it jumps to, one packet can be shown {found} rules: at most {most}")]
    TooMuchWork {
        /// Rules shown at most.
        found: usize,
        /// Rules allowed.
        most: usize,
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
    /// The translation takes its address from a link.
    #[error("`{action}` with an address: expected ports or flags alone")]
    OwnAddress {
        /// The action.
        action: &'static str,
    },
    /// A list that can never match.
    #[error("`ctstate` is empty: expected at least one state")]
    NoState,
    /// A list that says some things twice.
    #[error("`ctstate` has {found} states: at most {most}")]
    TooManyStates {
        /// States in the list.
        found: usize,
        /// States there are.
        most: usize,
    },
    /// The text of a log rule is too long.
    #[error("a prefix of {found} bytes: at most {most}")]
    LongPrefix {
        /// Its length.
        found: usize,
        /// Length allowed.
        most: usize,
    },
}

impl Ruleset {
    /// Checks how large the set is, with so many rules more.
    pub(crate) fn check_size(&self, more: usize) -> Result<(), RulesetError> {
        let found = self.chains.len();
        if found > MAX_CHAINS {
            return Err(RulesetError::TooManyChains { found, most: MAX_CHAINS });
        }
        let found = self.chains.iter().fold(more, |sum, chain| sum.saturating_add(chain.rules.len()));
        if found > MAX_RULES {
            return Err(RulesetError::TooManyRules { found, most: MAX_RULES });
        }
        Ok(())
    }
}

/// Checks a whole set against the links there are. What comes back leads through its jumps.
pub(crate) fn validate(set: &Ruleset, links: &Links) -> Result<Jumps, RulesetError> {
    set.check_size(0)?;
    let mut names = BTreeSet::new();
    for chain in &set.chains {
        check_chain(chain, names.insert(chain.name.as_str()))
            .map_err(|problem| RulesetError::Chain { chain: chain.name.chars().take(MAX_NAME).collect(), problem })?;
        check_rules(chain, |rule| check_rule(rule, links))?;
    }
    let jumps = Jumps::of(set)?;
    for (index, chain) in set.chains.iter().enumerate() {
        let Some(base) = &chain.base else { continue };
        for reached in jumps.reached_from(index).into_iter().filter_map(|reached| set.chains.get(reached)) {
            check_rules(reached, |rule| {
                let action = rule.action.name();
                where_allowed(base, &rule.action).map_err(|expected| match reached.base {
                    Some(_) => RuleProblem::ActionNotHere { action, expected },
                    None => RuleProblem::ActionNotReachable { action, base: chain.name.clone(), expected },
                })
            })?;
        }
    }
    Ok(jumps)
}

fn check_rules(chain: &Chain, check: impl Fn(&Rule) -> Result<(), RuleProblem>) -> Result<(), RulesetError> {
    for (rule, checked) in chain.rules.iter().map(check).enumerate() {
        checked.map_err(|problem| RulesetError::Rule { chain: chain.name.clone(), rule, problem })?;
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
    match &chain.base {
        Some(base) if base.kind == ChainKind::Nat && base.hook.manip().is_none() => {
            Err(RuleProblem::NatHook { found: base.hook })
        }
        _ => Ok(()),
    }
}

fn check_rule(rule: &Rule, links: &Links) -> Result<(), RuleProblem> {
    let Match { iif, oif, saddr, daddr, ctstate, .. } = &rule.matches;
    for name in [iif, oif].into_iter().flatten() {
        if links.id(name).is_none() {
            return Err(RuleProblem::UnknownLink { found: name.clone() });
        }
    }
    match ctstate.as_ref().map(Vec::len) {
        Some(0) => return Err(RuleProblem::NoState),
        Some(found) if found > MAX_STATES => return Err(RuleProblem::TooManyStates { found, most: MAX_STATES }),
        _ => {}
    }
    let bound = rule_family(rule);
    for cidr in [saddr, daddr].into_iter().flatten() {
        if bound != Some(family_of(cidr.addr())) {
            return Err(RuleProblem::Family { found: cidr.to_string() });
        }
    }
    match &rule.action {
        Action::Snat(target) | Action::Dnat(target) => check_target(rule.action.name(), target, bound)?,
        Action::Masquerade(target) | Action::Redirect(target) if target.addrs.is_some() => {
            return Err(RuleProblem::OwnAddress { action: rule.action.name() });
        }
        Action::Log { prefix } if prefix.len() > MAX_PREFIX => {
            return Err(RuleProblem::LongPrefix { found: prefix.len(), most: MAX_PREFIX });
        }
        _ => {}
    }
    Ok(())
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

/// Whether a base chain can take an action; else where it can be taken.
fn where_allowed(chain: &BaseChain, action: &Action) -> Result<(), &'static str> {
    let nat = chain.kind == ChainKind::Nat;
    let before_track = chain.priority < priority::TRACK || (chain.priority == priority::TRACK && !chain.before_confirm);
    let (allowed, expected) = match action {
        Action::Accept | Action::Drop | Action::CtMark(_) | Action::Log { .. } => (true, ""),
        Action::Jump(_) | Action::Goto(_) | Action::Return => (true, ""),
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
        Action::Tproxy => (
            !nat && chain.hook == Hook::Prerouting && !before_track,
            "a filter chain at prerouting behind priority -200",
        ),
        Action::Reject | Action::RejectTcpReset | Action::RejectAdminProhibited => (
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
/// Most states of a match: each of them once.
const MAX_STATES: usize = 5;
/// Longest text of a log rule, in bytes: as long as the kernel's.
const MAX_PREFIX: usize = 127;

#[cfg(test)]
mod tests;
