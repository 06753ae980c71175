//! NAT and marks of shards.

use core::net::IpAddr;

use hibernet_snapshot::Instant;

use super::SharedConntrack;
use crate::attachment::{Attached, Attachment};
use crate::conntrack::{Refusal, decide, is_undecided, null_range, translate};
use crate::nat::{LOOKED_AT, Manip, NatRange, Surroundings};
use crate::tuple::{Tuple, Zone};

impl SharedConntrack {
    /// Whether the packet opens a flow for which `manip` is not decided yet. Later packets never ask again: a rule that
    /// comes later does not touch a flow.
    pub const fn nat_pending(&self, attachment: &Attachment, manip: Manip) -> bool {
        is_undecided(attachment, manip)
    }

    /// Decides the binding of a new flow as a rule says. If nothing in the range is free, or another thread's flow gets what
    /// was, `confirm` will drop the packet.
    pub fn nat_bind(&self, attachment: &mut Attachment, manip: Manip, range: &NatRange) {
        decide(attachment, manip, range, &mut AllShards(self));
    }

    /// Decides that no rule translates a new flow. It may still lose its source port, to a flow that has its tuple.
    pub fn nat_null_bind(&self, attachment: &mut Attachment, manip: Manip) {
        if let Some(range) = null_range(attachment, manip) {
            self.nat_bind(attachment, manip, &range);
        }
    }

    /// Translates a packet as its flow's binding says; `true` if anything changed. INVALID and UNTRACKED packets, and those
    /// whose flow has left the table, pass as they are. The packet is changed without a lock.
    pub fn nat_translate(&self, attachment: &Attachment, manip: Manip, datagram: &mut [u8]) -> Result<bool, Refusal> {
        let bound = match attachment.handle() {
            Some(handle) => self.with_flow(handle, |shard| shard.binding(attachment)).flatten(),
            None => attachment.own_binding(),
        };
        bound.map_or(Ok(false), |bound| translate(&bound, manip, datagram))
    }

    /// The flow's mark (`ct mark`).
    pub fn mark(&self, attachment: &Attachment) -> u32 {
        match &attachment.0 {
            Attached::Unconfirmed(flow) => flow.mark,
            Attached::Flow { handle, .. } => self.with_flow(*handle, |shard| shard.mark(attachment)).unwrap_or(0),
            _ => 0,
        }
    }

    /// Sets the flow's mark (`ct mark set`).
    pub fn set_mark(&self, attachment: &mut Attachment, mark: u32) {
        match &mut attachment.0 {
            Attached::Unconfirmed(flow) => flow.mark = mark,
            Attached::Flow { handle, .. } => {
                let now = self.latest();
                self.with_flow(*handle, |shard| {
                    shard.advance(now);
                    shard.set_mark(attachment, mark);
                });
            }
            _ => {}
        }
    }

    /// The router resets the flow of a packet that a rule rejects: a TCP flow in the table is in state CLOSE from now on,
    /// whatever it was, and goes after `tcp_timeout_close`.
    pub fn set_closing(&self, attachment: &Attachment, now: Instant) {
        if let Some(handle) = attachment.handle() {
            self.with_flow(handle, |shard| shard.set_closing(attachment, now));
        }
    }

    /// Where a flow was sent to before destination NAT: `SO_ORIGINAL_DST`, asked with the tuple as the local socket sees
    /// its peer's packets.
    pub fn original_destination(&self, incoming: &Tuple, zone: Zone) -> Option<(IpAddr, u16)> {
        let now = self.latest();
        self.seek(&incoming.inverted()?, |shard| {
            shard.advance(now);
            shard.original_destination(incoming, zone)
        })
    }
}

/// The flows of all shards, asked one after the other.
struct AllShards<'a>(&'a SharedConntrack);

impl Surroundings for AllShards<'_> {
    fn is_taken(&self, tuple: &Tuple, zone: Zone) -> bool {
        self.0.seek(tuple, |shard| shard.is_taken(tuple, zone).then_some(())).is_some()
    }

    fn mapping(
        &self,
        orig: &Tuple,
        zone: u16,
        mut allowed: impl FnMut(&(IpAddr, u16)) -> bool,
    ) -> Option<(IpAddr, u16)> {
        let mut newest = Vec::new();
        for number in 0..=self.0.others.len() {
            newest.extend(self.0.enter(number).mappings(orig, zone));
        }
        newest.sort_unstable_by_key(|(serial, _)| core::cmp::Reverse(*serial));
        newest.into_iter().take(LOOKED_AT).map(|(_, outside)| outside).find(|outside| allowed(outside))
    }

    fn choose(&mut self, subject: [u64; 2]) -> u64 {
        self.0.ports.0.lock().choose(subject)
    }

    fn draw(&mut self, subject: [u64; 2]) -> u64 {
        self.0.ports.0.lock().draw(subject)
    }
}
