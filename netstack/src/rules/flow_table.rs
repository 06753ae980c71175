//! What chains have said of packets of established flows, so that they need not be asked again (netfilter's flowtable).
//!
//! A chain is a function of what its rules look at: where none of the rules asks for a packet's TCP flags, that is the same for
//! every packet of a flow in one direction. So a chain that has accepted one is not run for the next one of which all is
//! the same; the rules that had matched, and the policy, count it as they would have.
//!
//! It belongs to one rule set and goes with it: rules that are put in force are in force for the next packet. Nothing
//! that rules look at is taken for granted, so it needs to know nothing of links, addresses, routes or marks that
//! change. Not remembered is what does more than accept and count: log, mark, drop.

use super::Place;
use super::matching::Subject;

/// Verdicts that are remembered. Each has one place it can be at, so that memory and time are bounded.
#[derive(Debug, Default)]
pub(crate) struct FlowTable {
    places: Vec<Option<Remembered>>,
}

/// A chain has accepted.
#[derive(Debug)]
struct Remembered {
    chain: usize,
    subject: Subject,
    counted: Counted,
}

/// Who counts a packet: the rules that match it on its way through a chain, and the chain's policy.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    rules: [Option<Place>; MOST_COUNTED],
    taken: usize,
    pub(crate) by_policy: bool,
}

impl Counted {
    /// The rules, in order.
    pub(crate) fn rules(&self) -> impl Iterator<Item = Place> {
        self.rules.into_iter().flatten()
    }
}

/// A packet's way through a chain, while it is under way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Way {
    counted: Counted,
    /// Tests that were made.
    shown: usize,
    /// Whether more happened than that rules matched and counted, or more matched than is remembered.
    special: bool,
}

impl Way {
    /// A rule has matched, after so many tests.
    pub(crate) fn matched(&mut self, rule: Place, tests: usize) {
        self.shown = self.shown.saturating_add(tests);
        match self.counted.rules.get_mut(self.counted.taken) {
            Some(place) => *place = Some(rule),
            None => self.special = true,
        }
        self.counted.taken = self.counted.taken.saturating_add(1);
    }

    /// No rule has matched, in so many tests.
    pub(crate) fn passed(&mut self, tests: usize) {
        self.shown = self.shown.saturating_add(tests);
    }

    /// The policy has decided.
    pub(crate) const fn ended_by_policy(&mut self) {
        self.counted.by_policy = true;
    }

    /// Something has happened that must happen to every packet.
    pub(crate) const fn is_special(&mut self) {
        self.special = true;
    }
}

impl FlowTable {
    /// Who counts a packet that the chain accepts, if that is known. `flow` tells flows and directions apart where it can; what
    /// counts is the subject.
    pub(crate) fn recall(&self, flow: u64, chain: usize, subject: &Subject) -> Option<Counted> {
        let remembered = self.places.get(place(flow, chain))?.as_ref()?;
        (remembered.chain == chain && remembered.subject == *subject).then_some(remembered.counted)
    }

    /// Remembers that the chain has accepted, if that is worth it and says all there is to say.
    pub(crate) fn remember(&mut self, flow: u64, chain: usize, subject: &Subject, way: &Way) {
        if way.special || way.shown < WORTH_IT {
            return;
        }
        if self.places.is_empty() {
            self.places.resize_with(PLACES, || None);
        }
        if let Some(at) = self.places.get_mut(place(flow, chain)) {
            *at = Some(Remembered { chain, subject: *subject, counted: way.counted });
        }
    }
}

#[cfg(test)]
impl FlowTable {
    pub(super) fn is_in_use(&self) -> bool {
        !self.places.is_empty()
    }
}

/// Where a verdict is remembered. Flows are numbered in the order they came, so those of one time lie apart.
const fn place(flow: u64, chain: usize) -> usize {
    let mixed = flow ^ (chain as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed & (PLACES as u64 - 1)) as usize
}

/// Verdicts that can be remembered: a power of two.
const PLACES: usize = 4096;
/// Rules on one way that can be remembered to have matched.
const MOST_COUNTED: usize = 6;
/// Fewer tests than that take no longer than to remember.
const WORTH_IT: usize = 6;

#[cfg(test)]
mod tests;
