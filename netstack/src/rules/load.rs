//! The rules in force.

use super::jumps::Jumps;
use super::matching::{Subject, Test};
use super::validate::{RuleProblem, RulesetError, validate};
use super::{Action, Policy, Rule, Ruleset};
use crate::hook::HookTable;
use crate::link::Links;

/// A rule set that passed every check, with what is worked out from it once.
#[derive(Debug)]
pub(crate) struct Rules {
    set: Ruleset,
    /// By chain and rule, as in the set.
    tests: Vec<Vec<Test>>,
    jumps: Jumps,
    table: HookTable,
}

/// A rule by the numbers of its chain and of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) chain: usize,
    pub(crate) rule: usize,
}

impl Place {
    pub(crate) const fn start_of(chain: usize) -> Self {
        Self { chain, rule: 0 }
    }

    pub(crate) const fn next(self) -> Self {
        Self { chain: self.chain, rule: self.rule.saturating_add(1) }
    }
}

impl Rules {
    /// Takes a set into force, or refuses it whole.
    pub(crate) fn load(set: Ruleset, links: &Links) -> Result<Self, RulesetError> {
        let jumps = validate(&set, links)?;
        let tests =
            set.chains.iter().map(|chain| chain.rules.iter().map(|rule| Test::new(rule, links)).collect()).collect();
        let table = HookTable::new(&set);
        Ok(Self { set, tests, jumps, table })
    }

    /// The set with one rule more, at the end of a chain; a missing standard chain is made.
    pub(crate) fn with_rule(&self, chain: &str, rule: Rule, links: &Links) -> Result<Self, RulesetError> {
        let mut set = self.set.clone();
        set.chain_or_standard(chain)
            .map_err(|reason| RulesetError::Chain {
                chain: chain.to_owned(),
                problem: RuleProblem::UnknownChain { reason },
            })?
            .rules
            .push(rule);
        Self::load(set, links)
    }

    pub(crate) const fn set(&self) -> &Ruleset {
        &self.set
    }

    pub(crate) const fn table(&self) -> &HookTable {
        &self.table
    }

    /// The first rule of a chain, from a place on, that matches; it counts the packet.
    pub(crate) fn next_match(&mut self, from: Place, subject: &Subject, len: usize) -> Option<(usize, &Action)> {
        let Place { chain, rule: from } = from;
        let tests = self.tests.get(chain)?.get(from..)?;
        let number = tests.iter().position(|test| test.matches(subject))?.saturating_add(from);
        let rule = self.set.chains.get_mut(chain)?.rules.get_mut(number)?;
        rule.counters.count(len);
        Some((number, &rule.action))
    }

    /// The chain that a rule leads to, if it is a jump.
    pub(crate) fn target(&self, place: Place) -> Option<usize> {
        self.jumps.target(place.chain, place.rule)
    }

    /// The policy of a chain; its counter counts the packet.
    pub(crate) fn policy(&mut self, chain: usize, len: usize) -> Policy {
        match self.set.chains.get_mut(chain).and_then(|chain| chain.base.as_mut()) {
            Some(base) => {
                base.policy_counters.count(len);
                base.policy
            }
            None => Policy::Accept,
        }
    }

    /// The name of a chain.
    pub(crate) fn name(&self, chain: usize) -> Option<String> {
        self.set.chains.get(chain).map(|chain| chain.name.clone())
    }
}
