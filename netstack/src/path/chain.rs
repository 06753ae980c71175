//! One chain over one packet.

use hibernet_conntrack::{Attachment, CtState, Zone};

use super::Judge;
use crate::drop_reason::DropReason;
use crate::event::{LogEvent, StackEvent};
use crate::hook::Hook;
use crate::local::can_be_proxied;
use crate::packet::{Packet, Verdict};
use crate::reject::RejectWith;
use crate::rules::{Action, MAX_DEPTH, Place, Policy, Subject, Way};
use crate::stack::Stack;

/// What a chain comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Accept,
    Drop(DropReason),
    Reject(RejectWith),
    /// A translation, which only nat chains say.
    Translate(Action),
}

impl Stack {
    /// A filter chain's verdict.
    ///
    /// A packet of an established flow need not run it where it is known that it accepts.
    pub(super) fn run_filter_chain(&mut self, hook: Hook, chain: usize, packet: &mut Packet) -> (Verdict, Judge) {
        let mut way = Way::default();
        let known = known_flow(packet);
        let (outcome, judge) = match known {
            None => self.run_chain(hook, chain, packet, &mut way),
            Some(flow) => {
                let mark = self.conntrack.mark(packet.attachment());
                let subject = Subject { tcp_flags: None, ..packet.subject(Some(mark)) };
                if self.rules.recall(flow, chain, &subject, packet.len()) {
                    return (Verdict::Accept, Judge::default());
                }
                let ran = self.run_chain(hook, chain, packet, &mut way);
                if ran.0 == Outcome::Accept {
                    self.rules.remember(flow, chain, &subject, &way);
                }
                ran
            }
        };
        let verdict = match outcome {
            Outcome::Accept | Outcome::Translate(_) => Verdict::Accept,
            Outcome::Drop(reason) => Verdict::Drop(reason),
            Outcome::Reject(with) => Verdict::Reject(with),
        };
        (verdict, judge)
    }

    /// Tries the rules of a base chain, and of those it jumps to, in order until one decides, else its policy does.
    pub(super) fn run_chain(
        &mut self,
        hook: Hook,
        chain: usize,
        packet: &mut Packet,
        way: &mut Way,
    ) -> (Outcome, Judge) {
        let Self { rules, conntrack, events, .. } = self;
        let len = packet.len();
        let mut at = Place::start_of(chain);
        let mut way_back = WayBack::default();
        loop {
            let mark = packet.attachment().direction().map(|_| conntrack.mark(packet.attachment()));
            let subject = packet.subject(mark);
            let matched = rules.next_match(at, &subject, len, way);
            let Some((rule, action)) = matched.filter(|(_, action)| !matches!(action, Action::Return)) else {
                if let Some(place) = way_back.pop() {
                    at = place;
                    continue;
                }
                way.ended_by_policy();
                let outcome = match rules.policy(chain, len) {
                    Policy::Accept => Outcome::Accept,
                    Policy::Drop => Outcome::Drop(DropReason::Policy),
                };
                return (outcome, Judge { chain: Some(chain), rule: None });
            };
            let place = Place { rule, ..at };
            let judge = Judge { chain: Some(place.chain), rule: Some(rule) };
            at = place.next();
            if !matches!(action, Action::Accept | Action::Jump(_) | Action::Goto(_)) {
                way.is_special();
            }
            match action {
                Action::Accept => return (Outcome::Accept, judge),
                Action::Drop => return (Outcome::Drop(DropReason::Rule), judge),
                Action::Reject => return (Outcome::Reject(RejectWith::PortUnreachable), judge),
                Action::RejectTcpReset => return (Outcome::Reject(RejectWith::TcpReset), judge),
                Action::RejectAdminProhibited => return (Outcome::Reject(RejectWith::AdminProhibited), judge),
                Action::Tproxy => {
                    if can_be_proxied(packet) {
                        packet.tproxy = true;
                        return (Outcome::Accept, judge);
                    }
                }
                Action::Masquerade(_) | Action::Snat(_) | Action::Dnat(_) | Action::Redirect(_) => {
                    return (Outcome::Translate(action.clone()), judge);
                }
                Action::Notrack => {
                    if packet.attachment().is_nothing() && packet.zone.is_none() {
                        packet.attachment = Attachment::untracked();
                    }
                }
                Action::Zone(id) => choose_zone(packet, Zone { id: *id, orig_only: false }),
                Action::ZoneOrig(id) => choose_zone(packet, Zone { id: *id, orig_only: true }),
                Action::CtMark(mark) => conntrack.set_mark(&mut packet.attachment, *mark),
                Action::Jump(_) | Action::Goto(_) => {
                    let returns = matches!(action, Action::Jump(_));
                    let Some(target) = rules.target(place) else { continue };
                    if returns && !way_back.push(at) {
                        return (Outcome::Drop(DropReason::WorkLimit), judge);
                    }
                    at = Place::start_of(target);
                }
                Action::Return => {}
                Action::Log { prefix } => events.push(StackEvent::Log(LogEvent {
                    prefix: prefix.clone(),
                    hook,
                    state: packet.attachment().state(),
                    direction: packet.attachment().direction(),
                    iif: packet.iif,
                    oif: packet.oif,
                    local: packet.local,
                    datagram: packet.bytes().to_vec(),
                })),
            }
        }
    }
}

/// Tells the packet's flow and direction from others, if it is of an established one.
fn known_flow(packet: &Packet) -> Option<u64> {
    let attachment = packet.attachment();
    if attachment.state() != Some(CtState::Established) {
        return None;
    }
    let direction = attachment.direction()?.index() as u64;
    Some(attachment.handle()?.number().wrapping_mul(2).wrapping_add(direction))
}

/// A packet's zone is chosen once, and before it is tracked. To choose one takes `notrack` back.
fn choose_zone(packet: &mut Packet, zone: Zone) {
    let is_untracked = packet.attachment().state() == Some(CtState::Untracked);
    if packet.zone.is_none() && (is_untracked || packet.attachment().is_nothing()) {
        packet.zone = Some(zone);
        packet.attachment = Attachment::default();
    }
}

/// Where the jumps that were taken come back to.
#[derive(Default)]
struct WayBack {
    places: [Option<Place>; MAX_DEPTH],
    taken: usize,
}

impl WayBack {
    /// False if there is no room: that is deeper than any set that is loaded can lead.
    fn push(&mut self, place: Place) -> bool {
        let Some(room) = self.places.get_mut(self.taken) else { return false };
        *room = Some(place);
        self.taken = self.taken.saturating_add(1);
        true
    }

    fn pop(&mut self) -> Option<Place> {
        self.taken = self.taken.checked_sub(1)?;
        self.places.get_mut(self.taken)?.take()
    }
}

#[cfg(test)]
mod tests;
