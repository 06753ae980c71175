//! Doubly linked lists whose links lie inside the entries, three bytes each.

/// Neighbours in a list. A number at or above [`LIST_BASE`] names a list's head instead of a slot.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Links {
    prev: [u8; 3],
    next: [u8; 3],
}

/// Largest number of slots of one family.
pub(crate) const SLOT_LIMIT: u32 = LIST_BASE;

const LIST_BASE: u32 = 0x00ff_f000;
const NONE: u32 = 0x00ff_ffff;

/// Read and write access to the links of a slot, so that one list serves several link fields.
pub(crate) trait Chain {
    /// The slot's links; `None` for a slot that does not exist.
    fn links(&mut self, slot: u32) -> Option<&mut Links>;
}

/// Heads of a group of lists that share a link field. New slots go to the front.
#[derive(Debug)]
pub(crate) struct Lists<const N: usize> {
    heads: [u32; N],
}

/// One list that also knows its oldest slot.
#[derive(Debug)]
pub(crate) struct Queue {
    list: Lists<1>,
    oldest: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { prev: pack(NONE), next: pack(NONE) }
    }
}

impl Links {
    fn prev(self) -> u32 {
        unpack(self.prev)
    }

    fn next(self) -> u32 {
        unpack(self.next)
    }
}

impl<const N: usize> Lists<N> {
    pub(crate) const fn new() -> Self {
        Self { heads: [NONE; N] }
    }

    /// First slot of a list.
    pub(crate) fn first(&self, list: usize) -> Option<u32> {
        self.heads.get(list).copied().filter(|head| *head != NONE)
    }

    /// Puts a slot that is in no list at the front of one.
    pub(crate) fn push(&mut self, chain: &mut impl Chain, list: usize, slot: u32) {
        let Some(head) = self.heads.get_mut(list) else { return };
        let Some(links) = chain.links(slot) else { return };
        links.prev = pack(LIST_BASE | (list as u32 & 0x7ff));
        links.next = pack(*head);
        if let Some(links) = chain.links(*head) {
            links.prev = pack(slot);
        }
        *head = slot;
    }

    /// Takes a slot out of the list it is in. Returns that list if it has become empty.
    pub(crate) fn remove(&mut self, chain: &mut impl Chain, slot: u32) -> Option<usize> {
        let own = chain.links(slot)?;
        let (prev, next) = (own.prev(), own.next());
        if prev == NONE {
            return None;
        }
        *own = Links::default();
        if let Some(links) = chain.links(next) {
            links.prev = pack(prev);
        }
        if let Some(links) = chain.links(prev) {
            links.next = pack(next);
            return None;
        }
        let list = (prev & 0x7ff) as usize;
        *self.heads.get_mut(list)? = next;
        (next == NONE).then_some(list)
    }
}

/// Lists of a run of slots, to be joined to those of the slots before them.
#[derive(Debug)]
pub(crate) struct Tail<const N: usize> {
    lists: Lists<N>,
    /// The slot of each list that was put there first.
    firsts: [u32; N],
}

impl<const N: usize> Tail<N> {
    pub(crate) const fn new() -> Self {
        Self { lists: Lists::new(), firsts: [NONE; N] }
    }

    /// Puts a slot that is in no list at the front of one.
    pub(crate) fn push(&mut self, chain: &mut impl Chain, list: usize, slot: u32) {
        if let Some(first) = self.firsts.get_mut(list)
            && *first == NONE
        {
            *first = slot;
        }
        self.lists.push(chain, list, slot);
    }

    /// The lists with those of later slots in front of them.
    pub(crate) fn join(&mut self, chain: &mut impl Chain, later: &Self) {
        let heads = self.lists.heads.iter_mut().zip(&later.lists.heads);
        for ((head, later_head), (first, later_first)) in heads.zip(self.firsts.iter_mut().zip(&later.firsts)) {
            if *later_head == NONE {
                continue;
            }
            if let Some(links) = chain.links(*later_first) {
                links.next = pack(*head);
            }
            if let Some(links) = chain.links(*head) {
                links.prev = pack(*later_first);
            } else {
                *first = *later_first;
            }
            *head = *later_head;
        }
    }

    /// The lists as they are.
    pub(crate) const fn into_lists(self) -> Lists<N> {
        self.lists
    }

    /// Whether a list has anything in it.
    pub(crate) fn holds(&self, list: usize) -> bool {
        self.lists.first(list).is_some()
    }
}

impl Tail<1> {
    /// The one list as a queue.
    pub(crate) const fn into_queue(self) -> Queue {
        let [oldest] = self.firsts;
        Queue { list: self.lists, oldest }
    }
}

impl Queue {
    pub(crate) const fn new() -> Self {
        Self { list: Lists::new(), oldest: NONE }
    }

    /// The slot that has been in the list for longest.
    pub(crate) fn oldest(&self) -> Option<u32> {
        Some(self.oldest).filter(|slot| *slot != NONE)
    }

    /// Adds a slot as the newest.
    pub(crate) fn push(&mut self, chain: &mut impl Chain, slot: u32) {
        if self.oldest == NONE {
            self.oldest = slot;
        }
        self.list.push(chain, 0, slot);
    }

    /// Takes a slot out, if it is in the list.
    pub(crate) fn remove(&mut self, chain: &mut impl Chain, slot: u32) {
        if self.oldest == slot {
            let newer = chain.links(slot).map_or(NONE, |links| links.prev());
            self.oldest = if newer >= LIST_BASE { NONE } else { newer };
        }
        self.list.remove(chain, slot);
    }
}

const fn pack(number: u32) -> [u8; 3] {
    let [a, b, c, _] = number.to_le_bytes();
    [a, b, c]
}

const fn unpack([a, b, c]: [u8; 3]) -> u32 {
    u32::from_le_bytes([a, b, c, 0])
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    struct Slots(Vec<Links>);

    impl Chain for Slots {
        fn links(&mut self, slot: u32) -> Option<&mut Links> {
            self.0.get_mut(slot as usize)
        }
    }

    proptest! {
        #[test]
        fn a_queue_knows_its_oldest_like_a_deque(steps in prop::collection::vec((0u32..12, any::<bool>()), 0..200)) {
            let mut slots = Slots(vec![Links::default(); 12]);
            let mut queue = Queue::new();
            let mut model = VecDeque::new();
            for (slot, push) in steps {
                if push && !model.contains(&slot) {
                    queue.push(&mut slots, slot);
                    model.push_back(slot);
                } else if !push {
                    queue.remove(&mut slots, slot);
                    model.retain(|other| *other != slot);
                }
                prop_assert_eq!(queue.oldest(), model.front().copied());
                prop_assert_eq!(queue.list.first(0), model.back().copied());
            }
        }

        #[test]
        fn lists_hold_what_sets_hold(steps in prop::collection::vec((0u32..12, 0usize..3), 0..200)) {
            let mut slots = Slots(vec![Links::default(); 12]);
            let mut lists = Lists::<3>::new();
            let mut model: [Vec<u32>; 3] = Default::default();
            for (slot, list) in steps {
                let was = model.iter().position(|set| set.contains(&slot));
                let emptied = lists.remove(&mut slots, slot);
                if let Some(was) = was {
                    model[was].retain(|other| *other != slot);
                    prop_assert_eq!(emptied, model[was].is_empty().then_some(was));
                } else {
                    prop_assert_eq!(emptied, None);
                    lists.push(&mut slots, list, slot);
                    model[list].insert(0, slot);
                }
                for (list, model) in model.iter().enumerate() {
                    let mut next = lists.first(list);
                    for expected in model {
                        prop_assert_eq!(next, Some(*expected));
                        next = Some(slots.0[*expected as usize].next()).filter(|slot| *slot != NONE);
                    }
                    prop_assert_eq!(next, None);
                }
            }
        }
    }
}
