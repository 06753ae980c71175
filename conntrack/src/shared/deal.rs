//! Dealing flows out to shards: at a restore, when a shard overflows, when the owner asks for it.

use core::convert::Infallible;

use hibernet_snapshot::Invalid;

use super::SharedConntrack;
use super::entered::All;
use super::sync::Ordering;
use crate::table::{Flows, Frame, Moved, claimed_twice};
use crate::tuple::{Direction, Tuple, Zone};

/// How many flows a shard has room for: its share, and what chance may add to it (six standard deviations).
pub(super) fn room(capacity: u32, shards: u8) -> u32 {
    let share = capacity.div_ceil(u32::from(shards).max(1));
    let spare = share.isqrt().saturating_add(1).saturating_mul(6).saturating_add(16);
    share.saturating_add(spare).min(capacity)
}

impl SharedConntrack {
    /// Draws other keys, deals all flows out and files them anew. Happens by itself when a shard overflows; nothing outside
    /// can tell.
    pub fn reseed(&self) {
        self.deal_anew(&mut self.enter_all());
    }

    pub(super) fn deal_anew(&self, all: &mut All<'_>) {
        let mut flows: Vec<_> = all.iter().flat_map(|shard| shard.flows_here().to_move()).collect();
        flows.sort_unstable_by_key(Moved::serial);
        let frames = all.iter().map(|shard| shard.flows_here().frame());
        let Some(frame) = frames.reduce(Frame::and) else { return };
        let Ok(()) = self.deal_out(all, &flows, frame, |_, _, _| Ok::<_, Infallible>(()));
    }

    /// Takes in what was restored. A tuple that two flows claim is refused.
    pub(super) fn take_in(&self, flows: &Flows) -> Result<(), Invalid> {
        let mut all = self.enter_all();
        let mut moved: Vec<_> = flows.to_move().collect();
        moved.sort_unstable_by_key(Moved::serial);
        self.deal_out(&mut all, &moved, flows.frame(), |all, number, flow| {
            let zone = flow.core().zone();
            let tuples = [Direction::Original, Direction::Reply].map(|direction| flow.tuple(direction));
            match tuples.into_iter().find(|tuple| self.is_dealt(all, tuple, zone)) {
                Some(tuple) => Err(claimed_twice(number, &tuple)),
                None => Ok(()),
            }
        })?;
        let last = moved.last().map_or(0, Moved::serial);
        self.counts.next_serial.store(last.wrapping_add(1), Ordering::Relaxed);
        Ok(())
    }

    /// Empties all shards and gives them `flows`, which are in creation order, under a key that leaves every shard a place.
    ///
    /// A few keys in a row that do not are no chance: flows of one tuple in many zones stay together under every key. Then
    /// the shards become larger.
    fn deal_out<E>(
        &self,
        all: &mut All<'_>,
        flows: &[Moved],
        frame: Frame,
        mut check: impl FnMut(&mut All<'_>, usize, &Moved) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut room = all.at(0).capacity();
        let mut keys = self.keys.lock();
        for attempt in 1_u32.. {
            self.placement.deal_anew(&mut keys);
            if room >= self.capacity || self.leaves_places(flows, room) {
                break;
            }
            if attempt.is_multiple_of(4) {
                room = room.saturating_mul(2).min(self.capacity);
            }
        }
        drop(keys);
        for (number, shard) in (0_u8..).zip(all.iter_mut()) {
            shard.restart_shard(frame, room, self.placement.part(number));
        }
        self.counts.across.store(0, Ordering::Relaxed);
        for (number, flow) in flows.iter().enumerate() {
            check(all, number, flow)?;
            let [orig, reply] = [Direction::Original, Direction::Reply].map(|direction| flow.tuple(direction));
            if all.at(self.home(&orig)).adopt(flow) && self.lies_across(flow.core().status(), &orig, &reply) {
                self.counts.across.fetch_add(1, Ordering::Relaxed);
            }
        }
        let dealt = all.iter().map(|shard| shard.len()).fold(0, u32::saturating_add);
        self.counts.flows.store(dealt, Ordering::Relaxed);
        for shard in all.iter_mut() {
            shard.count_as_it_is();
        }
        Ok(())
    }

    /// Whether every shard would have a place left.
    fn leaves_places(&self, flows: &[Moved], room: u32) -> bool {
        let mut shares = vec![0_u32; self.others.len().saturating_add(1)];
        for flow in flows {
            if let Some(share) = shares.get_mut(self.home(&flow.tuple(Direction::Original))) {
                *share = share.saturating_add(1);
            }
        }
        shares.into_iter().all(|share| share < room)
    }

    fn is_dealt(&self, all: &mut All<'_>, tuple: &Tuple, zone: Zone) -> bool {
        all.at(self.home(tuple)).is_taken(tuple, zone)
            || self.any_across() && all.iter().any(|shard| shard.is_taken(tuple, zone))
    }
}
