//! Shards that are locked, and how to come by them.

use core::ops::{Deref, DerefMut};

use hibernet_snapshot::Instant;

use super::sync::{MutexGuard, Ordering};
use super::{Shard, SharedConntrack};
use crate::conntrack::Conntrack;
use crate::event::EventKind;
use crate::record::FlowRecord;
use crate::status::Status;
use crate::table::{Handle, Slot};
use crate::tuple::Tuple;

/// One shard, locked. What happened in it is told when it is let go.
pub(super) struct Entered<'a> {
    shared: &'a SharedConntrack,
    shard: &'a Shard,
    conntrack: MutexGuard<'a, Conntrack>,
    /// How many of this shard's flows are in the common count.
    counted: u32,
}

impl Entered<'_> {
    /// Tells the others what happened here: flows that came and went, events, the time.
    pub(super) fn settle(&mut self) {
        let flows = self.conntrack.len();
        if flows != self.counted {
            self.shared.counts.flows.fetch_add(flows.wrapping_sub(self.counted), Ordering::Relaxed);
            self.counted = flows;
        }
        let now = self.conntrack.latest().as_nanos();
        if self.shard.latest.load(Ordering::Relaxed) != now {
            self.shard.latest.store(now, Ordering::Relaxed);
        }
        if !self.conntrack.has_events() {
            return;
        }
        let mut queue = self.shared.events.0.lock();
        for event in self.conntrack.take_events() {
            match event.kind {
                EventKind::New => self.shared.count_across(&event.flow, 1),
                EventKind::Destroy => self.shared.count_across(&event.flow, u32::MAX),
                EventKind::Update => {}
            }
            queue.push(event.kind, event.flow);
        }
    }

    /// Whether the shard has a place for another flow.
    pub(super) fn has_place(&self) -> bool {
        self.conntrack.len() < self.conntrack.capacity()
    }

    /// Sees to it that a flow that enters here is within the capacity of all shards, and numbers it. `None`: it is not.
    pub(super) fn reserve(&mut self) -> Option<u64> {
        let capacity = self.shared.capacity;
        let one_more = |flows: u32| (flows < capacity).then_some(flows.wrapping_add(1));
        self.shared.counts.flows.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        self.counted = self.counted.wrapping_add(1);
        Some(self.shared.counts.next_serial.fetch_add(1, Ordering::Relaxed))
    }

    /// Forgets what was to be told: the flows here are counted by who moved them.
    pub(super) fn count_as_it_is(&mut self) {
        self.counted = self.conntrack.len();
    }
}

impl Deref for Entered<'_> {
    type Target = Conntrack;

    fn deref(&self) -> &Conntrack {
        &self.conntrack
    }
}

impl DerefMut for Entered<'_> {
    fn deref_mut(&mut self) -> &mut Conntrack {
        &mut self.conntrack
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.settle();
    }
}

/// All shards, locked, and told the same time.
pub(super) struct All<'a> {
    first: Entered<'a>,
    others: Vec<Entered<'a>>,
}

impl<'a> All<'a> {
    pub(super) fn at(&mut self, number: usize) -> &mut Entered<'a> {
        match self.others.get_mut(number.wrapping_sub(1)) {
            Some(other) => other,
            None => &mut self.first,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entered<'a>> {
        core::iter::once(&self.first).chain(&self.others)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entered<'a>> {
        core::iter::once(&mut self.first).chain(&mut self.others)
    }

    pub(super) fn tables(&self) -> (&Conntrack, Vec<&Conntrack>) {
        (&self.first.conntrack, self.others.iter().map(|shard| &*shard.conntrack).collect())
    }

    /// Tells all shards the time.
    pub(super) fn advance(&mut self, now: Instant) {
        for shard in self.iter_mut() {
            shard.advance(now);
        }
    }

    /// Removes a flow, and tells of it before anything else happens.
    pub(super) fn remove(&mut self, number: usize, slot: Slot) {
        let shard = self.at(number);
        shard.remove(slot);
        shard.settle();
    }
}

impl SharedConntrack {
    /// Locks one shard. The thread must hold none.
    pub(super) fn enter(&self, number: usize) -> Entered<'_> {
        self.lock(self.others.get(number.wrapping_sub(1)).unwrap_or(&self.first))
    }

    /// Locks all shards. The thread must hold none.
    pub(super) fn enter_all(&self) -> All<'_> {
        let first = self.lock(&self.first);
        let others = self.others.iter().map(|shard| self.lock(shard)).collect();
        let mut all = All { first, others };
        all.advance(self.latest());
        all
    }

    /// The latest time any shard was told.
    pub(super) fn latest(&self) -> Instant {
        let of = |shard: &Shard| shard.latest.load(Ordering::Relaxed);
        Instant::from_nanos(self.others.iter().map(of).fold(of(&self.first), u64::max))
    }

    /// The number of the shard a tuple belongs to. Good under a lock; without one, as long as the deal is the same.
    pub(super) fn home(&self, tuple: &Tuple) -> usize {
        match self.others.len() {
            0 => 0,
            others => self.placement.shard_of(tuple, others.saturating_add(1)),
        }
    }

    /// Whether flows may lie where their tuples do not belong.
    pub(super) fn any_across(&self) -> bool {
        self.counts.across.load(Ordering::Relaxed) != 0
    }

    /// Whether the flow's tuples belong to two shards.
    pub(super) fn lies_across(&self, status: Status, orig: &Tuple, reply: &Tuple) -> bool {
        status.intersects(Status::NAT) && self.home(orig) != self.home(reply)
    }

    /// Shows `look` the shard `tuple` belongs to, locked; and, until it finds something, the others one by one, while there
    /// are flows across shards.
    pub(super) fn seek<T>(&self, tuple: &Tuple, mut look: impl FnMut(&mut Conntrack) -> Option<T>) -> Option<T> {
        loop {
            let deal = self.placement.deal();
            let home = self.home(tuple);
            let mut shard = self.enter(home);
            if self.placement.deal() != deal {
                continue;
            }
            let found = look(&mut shard);
            if found.is_some() || !self.any_across() {
                return found;
            }
            drop(shard);
            for other in (0..=self.others.len()).filter(|other| *other != home) {
                let found = look(&mut self.enter(other));
                if found.is_some() {
                    return found;
                }
            }
            if self.placement.deal() == deal {
                return None;
            }
        }
    }

    /// Lets `act` have the shard with the flow that `handle` names, if there is such a flow.
    pub(super) fn with_flow<T>(&self, handle: Handle, act: impl FnOnce(&mut Conntrack) -> T) -> Option<T> {
        {
            let mut shard = self.enter(handle.shard());
            if shard.made(handle) {
                return shard.holds(handle).then(|| act(&mut shard));
            }
        }
        // The flows were dealt out anew since: rare enough to look everywhere.
        let mut all = self.enter_all();
        let shard = all.iter_mut().find(|shard| shard.holds(handle))?;
        Some(act(shard))
    }

    fn lock<'a>(&'a self, shard: &'a Shard) -> Entered<'a> {
        let conntrack = shard.conntrack.lock();
        let counted = conntrack.len();
        Entered { shared: self, shard, conntrack, counted }
    }

    fn count_across(&self, flow: &FlowRecord, difference: u32) {
        if self.lies_across(flow.status, &flow.orig, &flow.reply) {
            self.counts.across.fetch_add(difference, Ordering::Relaxed);
        }
    }
}
