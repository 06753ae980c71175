//! The stations `track` and `confirm` of shards.

use core::net::IpAddr;

use hibernet_snapshot::Instant;

use super::SharedConntrack;
use super::sync::Ordering;
use crate::attachment::{Attached, Attachment};
use crate::conntrack::{
    EarlyDrop, Origin, Refusal, Subject, half_open_allows, neighbour, not_opening, subject, unrelated,
};
use crate::headers::Parsed;
use crate::tracker::Packet;
use crate::tuple::{Tuple, Zone};

impl SharedConntrack {
    /// The station `track`: as [`Conntrack::track`](crate::Conntrack::track).
    pub fn track(
        &self,
        datagram: &[u8],
        parsed: &Parsed,
        zone: Zone,
        origin: Origin,
        now: Instant,
    ) -> Result<Attachment, Refusal> {
        let verify_checksum = origin == Origin::Link && self.checksum.load(Ordering::Relaxed);
        let packet = Packet { datagram, parsed, verify_checksum };
        let invalid = |reason| {
            let mut shard = self.enter(0);
            shard.advance(now);
            Ok(shard.invalid(reason))
        };
        let tuple = match subject(&packet) {
            Subject::Flow(tuple) => tuple,
            Subject::Quoted(inner) => {
                let related = inner.tuple.inverted().and_then(|answer| self.relate(&answer, zone, now));
                return related.unwrap_or_else(|| invalid(unrelated(&inner)));
            }
            Subject::Untracked => return Ok(Attachment::untracked()),
            Subject::Invalid(reason) => return invalid(reason),
        };
        let known = self.seek(&tuple, |shard| {
            shard.advance(now);
            shard.resolve(&packet, &tuple, zone, now).transpose()
        });
        if let Some(attachment) = known {
            return attachment;
        }
        let Some(reply) = tuple.inverted() else { return invalid(not_opening(&tuple)) };
        half_open_allows(self.half_open_limit, &packet, &tuple, |source| self.half_open_of(source))?;
        self.make_room(&tuple, now)?;
        let mut shard = self.enter(self.home(&tuple));
        shard.advance(now);
        Ok(shard.open(&packet, &tuple, &reply, zone, now))
    }

    /// The station `confirm`: as [`Conntrack::confirm`](crate::Conntrack::confirm).
    pub fn confirm(&self, attachment: &mut Attachment, now: Instant) -> Result<(), Refusal> {
        let Attached::Unconfirmed(flow) = &attachment.0 else { return Ok(()) };
        let (orig, reply, zone) = (flow.orig, flow.reply, flow.zone);
        loop {
            let deal = self.placement.deal();
            let home = self.home(&orig);
            if home == self.home(&reply) {
                let mut shard = self.enter(home);
                if self.placement.deal() != deal {
                    continue;
                }
                if !self.any_across()
                    && shard.has_place()
                    && let Some(serial) = shard.reserve()
                {
                    return shard.confirm_as(attachment, Some(serial), false, now);
                }
            }
            let mut all = self.enter_all();
            let home = self.home(&orig);
            let taken =
                |tuple| all.iter().enumerate().any(|(other, shard)| other != home && shard.is_taken(tuple, zone));
            let elsewhere = taken(&orig) || taken(&reply);
            let shard = all.at(home);
            if !elsewhere && !shard.has_place() && self.len() < self.capacity {
                self.deal_anew(&mut all);
                continue;
            }
            let serial = if elsewhere { None } else { shard.reserve() };
            return shard.confirm_as(attachment, serial, elsewhere, now);
        }
    }

    fn relate(&self, answer: &Tuple, zone: Zone, now: Instant) -> Option<Result<Attachment, Refusal>> {
        self.seek(answer, |shard| {
            shard.advance(now);
            shard.relate(answer, zone).transpose()
        })
    }

    /// Whether the table takes another flow, after making room if the policy has a way to. Whose turn it is to go can only
    /// be told under all locks.
    fn make_room(&self, tuple: &Tuple, now: Instant) -> Result<(), Refusal> {
        let has_room = || self.len() < self.limit.load(Ordering::Relaxed);
        if has_room() {
            return Ok(());
        }
        let mut all = self.enter_all();
        all.advance(now);
        if has_room() {
            return Ok(());
        }
        let victim = match all.at(0).early_drop() {
            EarlyDrop::Off => None,
            EarlyDrop::Lru => {
                let oldest = all.iter().enumerate().filter_map(|(number, shard)| {
                    let (serial, slot) = shard.oldest_unassured()?;
                    Some((serial, number, slot))
                });
                oldest.min().map(|(_, number, slot)| (number, slot))
            }
            EarlyDrop::Kernel => {
                let buckets = all.at(0).sysctls().buckets;
                let tables: Vec<_> = all.iter().map(|shard| shard.flows_here()).collect();
                neighbour(&mut self.ports.0.lock(), buckets, &tables)
            }
        };
        match victim {
            Some((number, slot)) => all.at(number).make_way(Some(slot)),
            None => all.at(self.home(tuple)).make_way(None),
        }
    }

    /// Half-open flows of a source, in all shards: they are one after the other asked, so a few more may get by.
    fn half_open_of(&self, source: IpAddr) -> u32 {
        let of = |number| self.enter(number).half_open_of(source);
        (0..=self.others.len()).map(of).fold(0, u32::saturating_add)
    }
}
