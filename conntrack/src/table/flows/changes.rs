//! What has changed since the last save: one bit a slot, and the flows that are gone.
//!
//! A save takes the changes out of what is being counted, but they are not forgotten until it is known that the save was written:
//! one that fails costs nothing but that the next holds more.

use std::sync::Arc;

use super::{Flows, Slot};

/// The flows of a save that later ones refer to, by their serial numbers, in order.
#[derive(Clone, Debug)]
pub struct SavePoint {
    pub(super) serials: Arc<Vec<u64>>,
    /// Above the serial numbers of all flows there were.
    pub(super) next_serial: u64,
    /// The time of the save, in ticks of the table's clock.
    pub(super) ticks: u64,
    /// Which of the saves that count changes it was; none is the first.
    pub(super) turn: u64,
}

impl SavePoint {
    /// How many flows are in it.
    pub fn flows(&self) -> usize {
        self.serials.len()
    }
}

/// Changes since a save.
#[derive(Debug)]
pub(crate) struct Changes {
    /// The save; none until one was written.
    base: Option<SavePoint>,
    /// Since the last save was taken.
    current: Dirty,
    /// From then back to the last save that was written.
    pending: Dirty,
    /// How often counting began anew.
    turns: u64,
}

#[derive(Debug, Default)]
struct Dirty {
    v4: Vec<u64>,
    v6: Vec<u64>,
    /// Serial numbers of flows that are gone.
    gone: Vec<u64>,
}

impl Dirty {
    fn mark(&mut self, slot: Slot) {
        let bits = if slot.is_v6() { &mut self.v6 } else { &mut self.v4 };
        let (word, bit) = ((slot.number() / 64) as usize, slot.number() % 64);
        if word >= bits.len() {
            bits.resize(word.saturating_add(1), 0);
        }
        if let Some(word) = bits.get_mut(word) {
            *word |= 1 << bit;
        }
    }

    /// Takes over what is in `other`, and leaves that empty.
    fn take(&mut self, other: &mut Self) {
        for (own, others) in [(&mut self.v4, &mut other.v4), (&mut self.v6, &mut other.v6)] {
            if own.len() < others.len() {
                own.resize(others.len(), 0);
            }
            for (own, other) in own.iter_mut().zip(others) {
                *own |= core::mem::take(other);
            }
        }
        self.gone.append(&mut other.gone);
    }

    fn clear(&mut self) {
        self.v4.fill(0);
        self.v6.fill(0);
        self.gone.clear();
    }
}

impl Changes {
    /// Counts from now on.
    pub(super) fn begin(capacity: u32) -> Self {
        let bits = || vec![0; (capacity as usize).div_ceil(64)];
        let dirty = || Dirty { v4: bits(), v6: bits(), gone: Vec::new() };
        Self { base: None, current: dirty(), pending: dirty(), turns: 0 }
    }

    /// A saved field of that slot's flow has changed, or the flow is new.
    #[inline]
    pub(super) fn mark(&mut self, slot: Slot) {
        self.current.mark(slot);
    }

    /// A flow has gone.
    pub(super) fn forget(&mut self, serial: u64) {
        // Whoever is not in the last save is not missed.
        if self.base.as_ref().is_none_or(|base| serial < base.next_serial) {
            self.current.gone.push(serial);
        }
    }

    /// Begins to count anew; what was counted is kept until a save was written.
    pub(super) fn turn(&mut self) {
        self.pending.take(&mut self.current);
        self.turns = self.turns.saturating_add(1);
    }

    /// The last save that was written, with all that has changed since, up to the last turn.
    pub(super) fn since(&self) -> Option<(&SavePoint, impl Iterator<Item = Slot>, &[u64])> {
        let base = self.base.as_ref()?;
        let slots = set(&self.pending.v4).map(Slot::v4).chain(set(&self.pending.v6).map(Slot::v6));
        Some((base, slots, self.pending.gone.as_slice()))
    }

    /// A save was written that was taken at the last turn.
    pub(super) fn written(&mut self, point: SavePoint) -> bool {
        if point.turn != self.turns {
            return false;
        }
        self.base = Some(point);
        self.pending.clear();
        true
    }
}

impl Flows {
    /// From now on it is known what has changed since a save.
    pub(crate) fn track_changes(&mut self) {
        if self.changes.is_none() {
            self.changes = Some(Box::new(Changes::begin(self.capacity)));
        }
    }

    /// Begins to count anew, for a save that is about to be taken.
    pub(crate) fn turn(&mut self) {
        if let Some(changes) = &mut self.changes {
            changes.turn();
        }
    }

    /// Which save was the last for which counting began anew.
    pub(crate) fn turns(&self) -> u64 {
        self.changes.as_ref().map_or(0, |changes| changes.turns)
    }

    /// A save was written. False if it was not taken at the last turn: then nothing is changed.
    pub(crate) fn written(&mut self, point: SavePoint) -> bool {
        self.changes.as_mut().is_some_and(|changes| changes.written(point))
    }
}

/// The numbers of the bits that are set.
fn set(words: &[u64]) -> impl Iterator<Item = u32> {
    (0_u32..).zip(words).filter(|(_, word)| **word != 0).flat_map(|(at, word)| {
        let mut left = *word;
        core::iter::from_fn(move || {
            let bit = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (bit < u64::BITS).then(|| at * u64::BITS + bit)
        })
    })
}
