//! A hierarchical timer wheel with lazy re-arming.
//!
//! A flow's slot in the wheel is moved when it fires, not when a packet puts its deadline further off: a packet costs
//! one store. Firing looks at the real deadline and files the flow anew if it has not come.

use super::links::{Chain, Lists, Tail};

/// Ticks to one slot of the finest level: 1/8 s.
const SLOT_TICKS: u64 = 16;
const LEVELS: usize = 5;
const SLOTS: usize = 64;

/// The wheel of one slab. Knows slots and ticks, not flows.
#[derive(Debug)]
pub(crate) struct Wheel {
    lists: Lists<{ LEVELS * SLOTS }>,
    /// Which slots of a level hold anything.
    occupied: [u64; LEVELS],
    /// The slot of the finest level that fires next, counted from the epoch.
    next: u64,
}

/// The lists of a wheel that is being filled.
pub(crate) type Filed = Tail<{ LEVELS * SLOTS }>;

/// In which list of a wheel whose slot `next` fires next a `deadline` belongs, both counted from the epoch.
pub(crate) const fn place_of(deadline: u64, next: u64) -> usize {
    let own = slot_of_deadline(deadline);
    let at = if own > next { own } else { next };
    let level = ((at ^ next) | 1).ilog2() as usize / 6;
    let level = if level < LEVELS { level } else { LEVELS - 1 };
    level * SLOTS + (at >> (6 * level)) as usize % SLOTS
}

/// A slot that has come due: everything in it fires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Due {
    list: usize,
    at: u64,
}

impl Wheel {
    /// An empty wheel that starts at `slot` of the finest level.
    pub(crate) const fn starting_at(slot: u64) -> Self {
        Self { lists: Lists::new(), occupied: [0; LEVELS], next: slot }
    }

    /// The slot of the finest level that fires next.
    pub(crate) const fn next_slot(&self) -> u64 {
        self.next
    }

    /// A wheel with what was filed in lists by [`place_of`].
    pub(crate) fn holding(filed: Filed, slot: u64) -> Self {
        let mut occupied = [0; LEVELS];
        for (level, bits) in occupied.iter_mut().enumerate() {
            for place in (0..SLOTS).filter(|place| filed.holds(level * SLOTS + place)) {
                *bits |= 1 << place;
            }
        }
        Self { lists: filed.into_lists(), occupied, next: slot }
    }

    /// Files a slot that is in no list to fire once `deadline` (unwrapped ticks) has passed.
    pub(crate) fn arm(&mut self, chain: &mut impl Chain, slot: u32, deadline: u64) {
        let list = place_of(deadline, self.next);
        self.lists.push(chain, list, slot);
        if let Some(occupied) = self.occupied.get_mut(list / SLOTS) {
            *occupied |= 1 << (list % SLOTS);
        }
    }

    /// Takes a slot out of the wheel, if it is there.
    pub(crate) fn disarm(&mut self, chain: &mut impl Chain, slot: u32) {
        if let Some(list) = self.lists.remove(chain, slot)
            && let Some(occupied) = self.occupied.get_mut(list / SLOTS)
        {
            *occupied &= !(1 << (list % SLOTS));
        }
    }

    /// The next slot that fires at or before `now`, in unwrapped ticks; moves the wheel on if there is none.
    pub(crate) fn due(&mut self, now: u64) -> Option<Due> {
        let passed = slot_of(now);
        // A coarse slot is handed down as soon as it begins: what it holds may be due before what lies in finer ones.
        let due = self.earliest().filter(|due| due.at < passed || (due.at == passed && due.list >= SLOTS));
        self.next = due.map_or(self.next.max(passed), |due| due.at);
        due
    }

    /// Takes one flow out of a due slot.
    pub(crate) fn take(&mut self, chain: &mut impl Chain, due: Due) -> Option<u32> {
        let slot = self.lists.first(due.list)?;
        self.disarm(chain, slot);
        Some(slot)
    }

    /// The tick, unwrapped, at which the wheel wants to be looked at next.
    pub(crate) fn next_tick(&self) -> Option<u64> {
        self.earliest().map(|due| due.at.saturating_add(1) * SLOT_TICKS)
    }

    fn earliest(&self) -> Option<Due> {
        // Levels nest: what lies in a finer one comes before every coarse slot that has not begun.
        for (level, occupied) in self.occupied.iter().enumerate() {
            if *occupied == 0 {
                continue;
            }
            let here = (self.next >> (6 * level)) as usize % SLOTS;
            let steps = occupied.rotate_right(here as u32).trailing_zeros() as u64;
            let place = (here as u64 + steps) % SLOTS as u64;
            let at = ((self.next >> (6 * level)) + steps) << (6 * level);
            return Some(Due { list: level * SLOTS + place as usize, at: at.max(self.next) });
        }
        None
    }
}

/// The slot of the finest level in which `tick` (unwrapped) lies.
pub(crate) const fn slot_of(tick: u64) -> u64 {
    tick / SLOT_TICKS
}

/// Whether the wheel slot that `deadline` belongs to is over at `now`, both in unwrapped ticks: when a flow expires, however
/// often its deadline was moved before.
pub(crate) const fn has_passed(deadline: u64, now: u64) -> bool {
    slot_of_deadline(deadline) < slot_of(now)
}

/// A deadline on the border belongs to the slot before it, so that it fires right then.
const fn slot_of_deadline(deadline: u64) -> u64 {
    slot_of(deadline.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::links::Links;
    use super::*;

    struct Slots(Vec<Links>);

    impl Chain for Slots {
        fn links(&mut self, slot: u32) -> Option<&mut Links> {
            self.0.get_mut(slot as usize)
        }
    }

    /// Fires what is due and files again what has been put off, as a table does.
    fn expired(wheel: &mut Wheel, slots: &mut Slots, deadlines: &BTreeMap<u32, u64>, now: u64) -> Vec<u32> {
        let mut expired = Vec::new();
        while let Some(due) = wheel.due(now) {
            while let Some(slot) = wheel.take(slots, due) {
                if deadlines[&slot] <= now { expired.push(slot) } else { wheel.arm(slots, slot, deadlines[&slot]) }
            }
        }
        expired.sort();
        expired
    }

    proptest! {
        /// Against a map of deadlines: everything fires within one slot of its time and nothing before it.
        #[test]
        fn flows_expire_within_an_eighth_of_a_second_and_never_early(
            start in 0u64..1 << 34,
            steps in prop::collection::vec((0u32..40, 0u32..34, any::<u64>(), 0u64..5000), 1..300),
        ) {
            let mut slots = Slots(vec![Links::default(); 40]);
            let mut wheel = Wheel::starting_at(slot_of(start));
            let mut deadlines = BTreeMap::new();
            let mut now = start;
            for (slot, bits, ahead, pass) in steps {
                // Not now: what is over when it is filed fires with the next slot.
                let deadline = now + (ahead & ((1 << bits) - 1)).clamp(1, (1 << 31) - 1);
                match deadlines.insert(slot, deadline) {
                    Some(earlier) if earlier <= deadline => {} // lazy: the wheel is not told
                    Some(_) => { wheel.disarm(&mut slots, slot); wheel.arm(&mut slots, slot, deadline); }
                    None => wheel.arm(&mut slots, slot, deadline),
                }
                now += if pass % 7 == 0 { pass * 1000 } else { pass };
                for slot in expired(&mut wheel, &mut slots, &deadlines, now) {
                    deadlines.remove(&slot);
                }
                for deadline in deadlines.values() {
                    prop_assert!(*deadline > now / SLOT_TICKS * SLOT_TICKS, "late: {deadline} at {now}");
                    prop_assert!(wheel.next_tick().is_some_and(|next| next <= deadline.next_multiple_of(SLOT_TICKS)));
                }
            }
        }
    }
}
