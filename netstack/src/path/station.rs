//! The built-in stations: track, NAT, confirm.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_conntrack::{CtState, Incoming, Manip, NatRange, Origin, Refusal, Remark, Zone, proto};
use hibernet_snapshot::Instant;

use super::Judge;
use super::chain::Outcome;
use crate::drop_reason::DropReason;
use crate::event::StackEvent;
use crate::hook::Hook;
use crate::icmp::{self, IcmpError};
use crate::link::LinkId;
use crate::packet::{Keeper, Packet, Verdict};
use crate::reject::Reset;
use crate::rules::{Action, NatTarget, Way};
use crate::source;
use crate::stack::Stack;
use crate::stats::count;

impl Stack {
    /// Attaches what connection tracking knows of the packet. One that has come over the loopback link has it already.
    pub(super) fn track(&mut self, hook: Hook, packet: &mut Packet, now: Instant) -> Verdict {
        let zone = packet.zone.unwrap_or_default();
        if !packet.attachment().is_nothing() {
            return self.pass_untracked(hook, packet, zone, now);
        }
        let origin = match hook {
            Hook::Output => Origin::Local,
            _ if packet.offload().vouches() => Origin::Verified,
            _ => Origin::Link,
        };
        let tracked = match self.track_cookie(hook, packet, zone, origin, now) {
            Some(tracked) => tracked,
            None => {
                let incoming = Incoming { datagram: packet.bytes(), parsed: packet.parsed(), zone, origin };
                self.conntrack.track_ahead(&incoming, &packet.ahead, now)
            }
        };
        self.collect_conntrack_events();
        match tracked {
            Ok(attachment) => {
                if let Some(remark) = attachment.remark() {
                    let reason = match remark {
                        Remark::Invalid(reason) => reason.to_string(),
                        Remark::Ignored(reason) => reason.to_string(),
                    };
                    self.events.push(StackEvent::Invalid { reason });
                }
                // Of a segment of a flow the checksum has been looked at.
                let is_tcp = packet.parsed().proto == proto::TCP && packet.parsed().fragment.is_none();
                let is_read = is_tcp && origin == Origin::Link && self.conntrack.sysctls().checksum;
                packet.checked = is_read && attachment.direction().is_some();
                packet.attachment = attachment;
                Verdict::Accept
            }
            Err(refusal) => self.refuse(refusal, packet, now),
        }
    }

    /// Rules may exempt a packet from tracking, but not from the end of its flow in a fork.
    fn pass_untracked(&mut self, hook: Hook, packet: &Packet, zone: Zone, now: Instant) -> Verdict {
        let is_exempt = packet.attachment().state() == Some(CtState::Untracked);
        if hook != Hook::Prerouting || !is_exempt {
            return Verdict::Accept;
        }
        match self.conntrack.refuse_untracked(packet.bytes(), packet.parsed(), zone) {
            Ok(()) => Verdict::Accept,
            Err(refusal) => self.refuse(refusal, packet, now),
        }
    }

    /// Drops a packet; who is to be told that a fork has ended its flow is told.
    fn refuse(&mut self, refusal: Refusal, packet: &Packet, now: Instant) -> Verdict {
        if refusal == Refusal::Reset && packet.iif.is_some_and(|iif| iif != LinkId::LOOPBACK) {
            let answer = match packet.parsed().proto {
                proto::TCP => Reset::answering(packet).and_then(|reset| reset.datagram()),
                _ if icmp::may_answer(packet.bytes(), packet.parsed(), &self.links, IcmpError::Port) => {
                    self.icmp_error(IcmpError::Port, packet)
                }
                _ => None,
            };
            match answer {
                Some(answer) => self.tell_inside(answer, now),
                None => count(&mut self.stats.errors_suppressed),
            }
        }
        Verdict::Drop(refusal.into())
    }

    /// A new flow enters the table, unless its SYN is answered with a cookie.
    pub(super) fn confirm(&mut self, hook: Hook, packet: &mut Packet, now: Instant) -> Verdict {
        if hook == Hook::Input && packet.attachment().is_unconfirmed() && self.answer_with_cookie(packet, now) {
            return Verdict::Stolen(Keeper::SynCookie);
        }
        let confirmed = self.conntrack.confirm(&mut packet.attachment, now);
        self.collect_conntrack_events();
        match confirmed {
            Ok(()) => Verdict::Accept,
            Err(refusal) => Verdict::Drop(refusal.into()),
        }
    }

    /// Decides the translation of a new flow, and translates the packet as its flow's binding says.
    ///
    /// With a nat chain anywhere in the set, a flow no rule decides on gets an empty binding: its port may then still be
    /// changed to avoid a clash. Without any, only flows that have a binding already are translated.
    pub(super) fn translate(&mut self, hook: Hook, manip: Manip, packet: &mut Packet) -> (Verdict, Judge) {
        if self.rules.table().has_nat() && self.conntrack.nat_pending(packet.attachment(), manip) {
            let mut at = 0_usize;
            while let Some(chain) = self.rules.table().nat_chains(hook).get(at).copied() {
                at = at.saturating_add(1);
                let (outcome, judge) = self.run_chain(hook, chain, packet, &mut Way::default());
                match outcome {
                    Outcome::Accept => {}
                    Outcome::Translate(action) => {
                        let Some(range) = self.nat_range(hook, &action, packet) else {
                            return (Verdict::Drop(DropReason::NatNoAddress), judge);
                        };
                        self.conntrack.nat_bind(&mut packet.attachment, manip, &range);
                    }
                    Outcome::Drop(reason) => return (Verdict::Drop(reason), judge),
                    Outcome::Reject(with) => return (Verdict::Reject(with), judge),
                }
                if !self.conntrack.nat_pending(packet.attachment(), manip) {
                    break;
                }
            }
            if self.conntrack.nat_pending(packet.attachment(), manip) {
                self.conntrack.nat_null_bind(&mut packet.attachment, manip);
            }
        }
        let (bytes, parsed, attachment) = packet.translatable();
        match self.conntrack.nat_translate_parsed(attachment, manip, bytes, parsed) {
            Ok(true) => {
                packet.readdress();
                (Verdict::Accept, Judge::default())
            }
            Ok(false) => (Verdict::Accept, Judge::default()),
            Err(refusal) => (Verdict::Drop(refusal.into()), Judge::default()),
        }
    }

    /// What a rule lets a binding be; `None` if it is to take an address from a link that has none.
    fn nat_range(&self, hook: Hook, action: &Action, packet: &Packet) -> Option<NatRange> {
        let one = |addr: IpAddr| Some((addr, addr));
        Some(match action {
            Action::Masquerade(target) => {
                let address = match self.sink {
                    Some(_) => packet.src(),
                    None => self.routes.masqueraded(&self.links, packet.oif?, packet.dst())?,
                };
                target.range(one(address), true)
            }
            // A host behind the hooks keeps its addresses to itself.
            Action::Redirect(target) if self.sink.is_some() => target.range(one(packet.dst()), false),
            Action::Redirect(target) => {
                let address = match (hook, packet.iif, packet.dst()) {
                    (Hook::Prerouting, Some(iif), dst) if iif != LinkId::LOOPBACK => {
                        source::redirected(&self.links, iif, dst)?
                    }
                    (_, _, IpAddr::V4(_)) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    (_, _, IpAddr::V6(_)) => IpAddr::V6(Ipv6Addr::LOCALHOST),
                };
                target.range(one(address), false)
            }
            Action::Snat(target) | Action::Dnat(target) => target.range(None, false),
            _ => NatTarget::default().range(None, false),
        })
    }
}
