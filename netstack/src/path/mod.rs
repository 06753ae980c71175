//! One packet's way: from a link through the hooks to a link or to the local stack.

mod burst;
mod chain;
mod cookie;
mod deliver;
mod forward;
mod fragment;
mod ingress;
mod output;
mod station;
#[cfg(test)]
mod tests;

use hibernet_snapshot::Instant;

use crate::drop_reason::DropReason;
use crate::event::{DropEvent, StackEvent};
use crate::hook::{Hook, Step};
use crate::icmp::{self, IcmpError};
use crate::link::LinkId;
use crate::packet::{Packet, Verdict};
use crate::reject::{RejectWith, Reset, may_be_rejected_with_icmp};
use crate::route::WayBack;
use crate::stack::{Stack, Work};
use crate::stats::count;

pub(crate) use self::deliver::plain;

/// Why a packet does not go on: a drop, or `None` when something keeps it.
pub(crate) type Ended = Option<DropReason>;

/// The chain and rule behind a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Judge {
    pub(crate) chain: Option<usize>,
    pub(crate) rule: Option<usize>,
}

impl Stack {
    /// Runs everything that stands at a hook.
    pub(crate) fn run_hook(&mut self, hook: Hook, mut packet: Packet, now: Instant) -> Result<Packet, Ended> {
        let mut at = 0_usize;
        while let Some(step) = self.rules.table().steps(hook).get(at).copied() {
            at = at.saturating_add(1);
            let (verdict, judge) = match step {
                Step::Defrag => (self.defragment(hook, &mut packet, now), Judge::default()),
                Step::Track => (self.track(hook, &mut packet, now), Judge::default()),
                Step::Nat(manip) => self.translate(hook, manip, &mut packet),
                Step::Confirm => (self.confirm(hook, &mut packet, now), Judge::default()),
                Step::Chain(chain) => self.run_filter_chain(hook, chain, &mut packet),
            };
            match verdict {
                Verdict::Accept => {}
                Verdict::Stolen(_) => return Err(None),
                Verdict::Drop(reason) => {
                    self.note_drop(reason, Some(hook), judge, &packet);
                    return Err(Some(reason));
                }
                Verdict::Reject(with) => {
                    self.note_drop(DropReason::Reject, Some(hook), judge, &packet);
                    self.answer_reject(with, &packet, now);
                    return Err(Some(DropReason::Reject));
                }
            }
        }
        Ok(packet)
    }

    /// Works off what the last packet has led to, until nothing is left to do.
    pub(crate) fn settle(&mut self, now: Instant) {
        let mut left = WORK_LIMIT;
        loop {
            while let Some(work) = self.work.pop_front() {
                if left == 0 {
                    let (Work::Output(packet) | Work::Loopback(packet)) = work;
                    self.note_drop(DropReason::WorkLimit, None, Judge::default(), &packet);
                    continue;
                }
                left = left.saturating_sub(1);
                match work {
                    Work::Output(packet) => {
                        // Nobody waits for the outcome of a packet that is an answer; its drop is counted.
                        let _outcome = self.send(packet, now);
                    }
                    Work::Loopback(packet) => self.receive(packet, now),
                }
            }
            if !self.emit_local(now) {
                return;
            }
        }
    }

    /// Counts a drop and tells of it.
    pub(crate) fn note_drop(&mut self, reason: DropReason, hook: Option<Hook>, judge: Judge, packet: &Packet) {
        self.stats.count_drop(reason);
        let chain = judge.chain.and_then(|chain| self.rules.name(chain));
        self.events.push(StackEvent::Drop(DropEvent {
            reason,
            hook,
            chain,
            rule: judge.rule,
            iif: packet.iif,
            oif: packet.oif,
            ends: Some(packet.ends()),
            len: packet.len(),
        }));
    }

    /// Counts and tells of a drop of what never became a packet.
    pub(crate) fn drop_unread(&mut self, reason: DropReason, iif: Option<LinkId>, len: usize) {
        self.stats.count_drop(reason);
        let (hook, chain, rule, oif, ends) = (None, None, None, None, None);
        self.events.push(StackEvent::Drop(DropEvent { reason, hook, chain, rule, iif, oif, ends, len }));
    }

    /// Counts a drop between hooks.
    pub(crate) fn drop_packet(&mut self, reason: DropReason, packet: &Packet) {
        self.note_drop(reason, None, Judge::default(), packet);
    }

    /// Tells the sender of a packet by ICMP, if it may be told. The answer belongs to the packet's flow, so that NAT is
    /// undone in it.
    pub(crate) fn answer_icmp(&mut self, error: IcmpError, packet: &Packet) {
        let may = !packet.link_group && icmp::may_answer(packet.bytes(), packet.parsed(), &self.links, error);
        let answer = if may { self.icmp_error(error, packet) } else { None };
        self.queue_answer(answer, packet);
    }

    fn answer_reject(&mut self, with: RejectWith, packet: &Packet, now: Instant) {
        match with {
            RejectWith::PortUnreachable | RejectWith::AdminProhibited
                if !packet.offload().vouches() && !may_be_rejected_with_icmp(packet.bytes(), packet.parsed()) =>
            {
                count(&mut self.stats.errors_suppressed);
            }
            RejectWith::PortUnreachable => self.answer_icmp(IcmpError::Port, packet),
            RejectWith::AdminProhibited => self.answer_icmp(IcmpError::Prohibited, packet),
            RejectWith::TcpReset => {
                let may = !packet.link_group
                    && icmp::may_answer(packet.bytes(), packet.parsed(), &self.links, IcmpError::Port);
                let reset = if may { Reset::answering(packet) } else { None };
                let reset = reset.and_then(|reset| reset.datagram());
                if reset.is_some() {
                    self.conntrack.set_closing(packet.attachment(), now);
                    self.collect_conntrack_events();
                }
                self.queue_answer(reset, packet);
            }
        }
    }

    pub(super) fn icmp_error(&mut self, error: IcmpError, packet: &Packet) -> Option<Vec<u8>> {
        let (src, dst) = (packet.src(), packet.dst());
        let source = match self.sink.is_some() || crate::route::is_own(&self.links, dst) {
            true => dst,
            false => self.routes.error_source(&self.links, packet.iif, src)?,
        };
        let id = self.next_ip_id();
        icmp::error(packet.bytes(), packet.parsed(), error, source, u16::try_from(id & 0xffff).unwrap_or(0))
    }

    /// An identification nobody can guess from the ones before.
    pub(crate) fn next_ip_id(&mut self) -> u32 {
        u32::try_from(self.ip_ids.draw([0, 0]) >> 32).unwrap_or(0)
    }

    fn queue_answer(&mut self, answer: Option<Vec<u8>>, packet: &Packet) {
        match answer.and_then(|bytes| Packet::originated(bytes).ok()) {
            Some(mut answer) => {
                match self.routes.way_back(packet.iif, packet.src(), false) {
                    WayBack::Routed => {}
                    WayBack::On(hop) => answer.leave_by(hop),
                    WayBack::Nowhere => return count(&mut self.stats.errors_suppressed),
                }
                answer.attachment = packet.attachment().related_reply();
                count(&mut self.stats.errors_sent);
                count(&mut self.stats.originated);
                self.work.push_back(Work::Output(answer));
            }
            None => count(&mut self.stats.errors_suppressed),
        }
    }
}

/// Most packets that one call handles on the way of answers and of loopback: two services that answer each other would
/// never come to an end.
const WORK_LIMIT: usize = 1024;
