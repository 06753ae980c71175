//! The rules in force.

use super::flow_table::{FlowTable, Way};
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
    /// By chain: whether any of its rules asks for TCP's flags.
    flagged: Vec<bool>,
    jumps: Jumps,
    table: HookTable,
    flow_table: FlowTable,
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
        let tests: Vec<Vec<Test>> =
            set.chains.iter().map(|chain| chain.rules.iter().map(|rule| Test::new(rule, links)).collect()).collect();
        let table = HookTable::new(&set);
        let flagged = tests.iter().map(|chain| chain.iter().any(Test::looks_at_flags)).collect();
        Ok(Self { set, tests, flagged, jumps, table, flow_table: FlowTable::default() })
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

    /// Lets the rules count a packet that the chain is known to accept. False: it is not, and the chain must be run.
    pub(crate) fn recall(&mut self, flow: u64, chain: usize, subject: &Subject, len: usize) -> bool {
        let Some(counted) = self.flow_table.recall(flow, chain, subject) else { return false };
        for Place { chain, rule } in counted.rules() {
            if let Some(rule) = self.set.chains.get_mut(chain).and_then(|chain| chain.rules.get_mut(rule)) {
                rule.counters.count(len);
            }
        }
        if counted.by_policy {
            self.policy(chain, len);
        }
        true
    }

    /// Remembers that the chain has accepted a packet, and all others of which it is shown the same.
    pub(crate) fn remember(&mut self, flow: u64, chain: usize, subject: &Subject, way: &Way) {
        self.flow_table.remember(flow, chain, subject, way);
    }

    /// The first rule of a chain, from a place on, that matches; it counts the packet.
    pub(crate) fn next_match(
        &mut self,
        from: Place,
        subject: &Subject,
        len: usize,
        way: &mut Way,
    ) -> Option<(usize, &Action)> {
        let Place { chain, rule: from } = from;
        if self.flagged.get(chain).is_none_or(|flagged| *flagged) {
            way.is_special();
        }
        let tests = self.tests.get(chain)?.get(from..)?;
        let Some(ahead) = tests.iter().position(|test| test.matches(subject)) else {
            way.passed(tests.len());
            return None;
        };
        let number = ahead.saturating_add(from);
        way.matched(Place { chain, rule: number }, ahead.saturating_add(1));
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

#[cfg(test)]
impl Rules {
    /// Whether any verdict is remembered.
    pub(crate) fn remembers(&self) -> bool {
        self.flow_table.is_in_use()
    }

    /// Forgets all verdicts that are remembered.
    pub(crate) fn forget(&mut self) {
        self.flow_table = FlowTable::default();
    }
}
