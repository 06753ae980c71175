//! Where rules send packets: from chain to chain, never in a circle, never too deep.

use std::collections::BTreeMap;

use super::validate::{RuleProblem, RulesetError};
use super::{Action, Chain, Ruleset};

/// The chains that the rules of a set lead to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Jumps {
    /// By chain: its rules that lead on, ascending, each with the chain it leads to.
    from: Vec<Vec<(usize, usize)>>,
}

/// What a packet may meet in a chain and behind it.
#[derive(Clone, Copy, Default)]
struct Extent {
    /// Chains on the longest way, this one included.
    depth: usize,
    /// Rules it can be shown at most.
    rules: usize,
}

impl Jumps {
    /// Finds every chain that a rule names. Refuses circles, ways that are too deep, and sets with which one packet could be
    /// shown too many rules: a few rules in a few chains that jump to each other can come to millions.
    pub(crate) fn of(set: &Ruleset) -> Result<Self, RulesetError> {
        let names: BTreeMap<&str, usize> =
            set.chains.iter().enumerate().map(|(index, chain)| (chain.name.as_str(), index)).collect();
        let mut jumps = Self::default();
        for chain in &set.chains {
            let mut from = Vec::new();
            for (number, rule) in chain.rules.iter().enumerate() {
                if let Action::Jump(name) | Action::Goto(name) = &rule.action {
                    let target = target(set, &names, name).map_err(|problem| refused(chain, number, problem))?;
                    from.push((number, target));
                }
            }
            jumps.from.push(from);
        }
        let extents = jumps.extents(set)?;
        jumps.bounded(set, &extents)?;
        Ok(jumps)
    }

    /// The chain that a rule leads to.
    pub(crate) fn target(&self, chain: usize, rule: usize) -> Option<usize> {
        let from = self.from.get(chain)?;
        let at = from.binary_search_by_key(&rule, |(number, _)| *number).ok()?;
        from.get(at).map(|(_, target)| *target)
    }

    /// The chain itself and all that can be reached from it, each once.
    pub(crate) fn reached_from(&self, chain: usize) -> Vec<usize> {
        let mut reached = vec![chain];
        let mut at = 0_usize;
        while let Some(next) = reached.get(at).copied() {
            at = at.saturating_add(1);
            for (_, target) in self.from.get(next).into_iter().flatten() {
                if !reached.contains(target) {
                    reached.push(*target);
                }
            }
        }
        reached
    }

    /// What lies behind each chain; the rule that closes a circle is refused.
    fn extents(&self, set: &Ruleset) -> Result<Vec<Extent>, RulesetError> {
        let mut extents: Vec<Option<Extent>> = vec![None; self.from.len()];
        for start in 0..self.from.len() {
            // The way from `start` to where we are: each chain, and how many of its jumps have been followed.
            let mut way: Vec<(usize, usize)> = vec![(start, 0)];
            while let Some((chain, followed)) = way.pop() {
                if extents.get(chain).is_none_or(Option::is_some) {
                    continue;
                }
                match self.from.get(chain).and_then(|from| from.get(followed)) {
                    Some((number, target)) => {
                        if *target == chain || way.iter().any(|(above, _)| above == target) {
                            return Err(self.refused(set, chain, *number, RuleProblem::JumpLoop));
                        }
                        way.push((chain, followed.saturating_add(1)));
                        way.push((*target, 0));
                    }
                    None => {
                        let own = set.chains.get(chain).map_or(0, |chain| chain.rules.len());
                        let mut extent = Extent { depth: 1, rules: own };
                        for (_, target) in self.from.get(chain).into_iter().flatten() {
                            let behind = extents.get(*target).copied().flatten().unwrap_or_default();
                            extent.depth = extent.depth.max(behind.depth.saturating_add(1));
                            extent.rules = extent.rules.saturating_add(behind.rules);
                        }
                        if let Some(known) = extents.get_mut(chain) {
                            *known = Some(extent);
                        }
                    }
                }
            }
        }
        Ok(extents.into_iter().map(Option::unwrap_or_default).collect())
    }

    fn bounded(&self, set: &Ruleset, extents: &[Extent]) -> Result<(), RulesetError> {
        let mut shown = 0_usize;
        for (index, (chain, extent)) in
            set.chains.iter().zip(extents).enumerate().filter(|(_, (c, _))| c.base.is_some())
        {
            if extent.depth > MAX_DEPTH {
                let deep = |(_, target): &&(usize, usize)| extents.get(*target).is_some_and(|e| e.depth >= MAX_DEPTH);
                let number =
                    self.from.get(index).and_then(|from| from.iter().find(deep)).map_or(0, |(number, _)| *number);
                let problem = RuleProblem::JumpDepth { found: extent.depth, most: MAX_DEPTH };
                return Err(self.refused(set, index, number, problem));
            }
            shown = shown.saturating_add(extent.rules);
            if shown > MAX_SHOWN {
                let problem = RuleProblem::TooMuchWork { found: shown, most: MAX_SHOWN };
                return Err(RulesetError::Chain { chain: chain.name.clone(), problem });
            }
        }
        Ok(())
    }

    fn refused(&self, set: &Ruleset, chain: usize, rule: usize, problem: RuleProblem) -> RulesetError {
        let name = set.chains.get(chain).map(|chain| chain.name.clone()).unwrap_or_default();
        RulesetError::Rule { chain: name, rule, problem }
    }
}

fn refused(chain: &Chain, rule: usize, problem: RuleProblem) -> RulesetError {
    RulesetError::Rule { chain: chain.name.clone(), rule, problem }
}

fn target(set: &Ruleset, names: &BTreeMap<&str, usize>, name: &str) -> Result<usize, RuleProblem> {
    let found = || name.chars().take(SHOWN_OF_A_NAME).collect();
    let target = *names.get(name).ok_or_else(|| RuleProblem::NoTargetChain { found: found() })?;
    match set.chains.get(target) {
        Some(Chain { base: None, .. }) => Ok(target),
        _ => Err(RuleProblem::TargetIsBase { found: found() }),
    }
}

/// Most chains a packet can be in at once, the base chain included: as many as nftables allows. A goto counts, as it does
/// there.
pub(crate) const MAX_DEPTH: usize = 16;
/// Most rules that all base chains together can show one packet: twice as many as a set can have.
const MAX_SHOWN: usize = 131_072;
/// Characters of an unknown name that an error repeats.
const SHOWN_OF_A_NAME: usize = 64;

#[cfg(test)]
mod tests;
