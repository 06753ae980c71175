//! A fork: flows that do not go on in it end without a packet to the outside.
//!
//! The other copy still lives with the same addresses, ports and sequence numbers: a reset to the outside would end its
//! connection. So resets go inward alone, and the flows stay in the table as severed ones, which refuse what the guest or the
//! outside still sends of them.

use std::collections::BTreeMap;

use hibernet_conntrack::{Direction, Ending, FlowRecord, ProtocolState, Status, TcpState, TcpTrack, Tuple};
use hibernet_snapshot::Instant;

use super::fork_rules::{ForkAction, ForkRules, Inherited, LoadedForkRules};
use super::sides::Sides;
use crate::local::{Ends, Removed, TcpSection};
use crate::packet::Packet;
use crate::reject::Reset;
use crate::report::{DropCause, FlowOutcome, ResetCause, StreamOutcome, StreamReport};
use crate::stack::Stack;
use crate::stats::count;

/// What a fork does to the inherited flows.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Of the flows that end, by their place in the order of creation.
    severed: BTreeMap<usize, Severed>,
    /// Connections of this host that no tracked flow belongs to: what is severed in their place.
    untracked: Vec<FlowRecord>,
    /// Of the connections of this host that end.
    pub(super) streams: Vec<StreamReport>,
    /// Datagrams that tell the inside.
    pub(super) resets: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Severed {
    action: ForkAction,
    rule: Option<usize>,
    ending: Ending,
}

impl Plan {
    /// Asks the rules about every flow and every connection of this host, and takes the latter out where they end. An error is
    /// the name of a link that does not exist.
    pub(super) fn new(
        rules: &ForkRules,
        flows: &[FlowRecord],
        tcp: &mut TcpSection,
        sides: &Sides<'_>,
    ) -> Result<Self, String> {
        let rules = LoadedForkRules::new(rules, sides)?;
        let mut plan = Self::default();
        for (number, flow) in flows.iter().enumerate() {
            // What another fork has ended stays so.
            if !flow.status.contains(Status::SEVERED)
                && let Some(severed) = judge(&rules, flow, sides)
            {
                plan.severed.insert(number, severed);
            }
        }
        plan.end_streams(&rules, flows, tcp, sides);
        let local: Vec<Tuple> = plan.streams.iter().map(own_tuple).collect();
        for (number, severed) in &plan.severed {
            if let Some(flow) = flows.get(*number)
                && !local.contains(&flow.orig)
                && !local.contains(&flow.reply)
            {
                plan.resets.extend(resets_of(flow, severed.ending));
            }
        }
        Ok(plan)
    }

    /// What becomes of a flow; `None` if the fork leaves it as it is.
    pub(super) fn outcome(&self, number: usize) -> Option<FlowOutcome> {
        let Severed { action, rule, .. } = *self.severed.get(&number)?;
        Some(match action {
            ForkAction::Drop => FlowOutcome::Dropped(DropCause::Fork { rule }),
            _ => FlowOutcome::Reset(ResetCause::Fork { rule }),
        })
    }

    /// Severs what ends.
    pub(super) fn sever(&self, conntrack: &mut hibernet_conntrack::Validated) {
        if self.severed.is_empty() && self.untracked.is_empty() {
            return;
        }
        conntrack.sever(|number, _| self.severed.get(&number).map(|severed| severed.ending));
        if !self.untracked.is_empty() {
            conntrack.add_severed(&self.untracked);
        }
    }

    /// A connection of this host shares the fate of its flow, or has the rules asked about a flow such as it would have.
    fn end_streams(
        &mut self,
        rules: &LoadedForkRules<'_>,
        flows: &[FlowRecord],
        tcp: &mut TcpSection,
        sides: &Sides<'_>,
    ) {
        let mut own: BTreeMap<Tuple, Option<usize>> = tcp.ends().map(|(_, ends)| (ends.tuple(), None)).collect();
        if own.is_empty() {
            return;
        }
        for (number, flow) in flows.iter().enumerate() {
            for tuple in [&flow.orig, &flow.reply] {
                if let Some(found) = own.get_mut(tuple) {
                    *found = Some(number);
                }
            }
        }
        let mut ending = BTreeMap::new();
        for (stream, ends) in tcp.ends() {
            let tuple = ends.tuple();
            let flow = own.get(&tuple).copied().flatten();
            let severed = match flow {
                Some(number) => self.severed.get(&number).copied(),
                None => {
                    let Some(flow) = stand_in(&tuple, tcp.is_listened_at(tuple.sport)) else { continue };
                    let severed = judge(rules, &flow, sides);
                    if let Some(Severed { ending, .. }) = severed {
                        self.untracked.push(FlowRecord { status: flow.status | told(ending), ..flow });
                    }
                    severed
                }
            };
            if let Some(severed) = severed {
                ending.insert(stream, (severed, flow.and_then(|number| flows.get(number))));
            }
        }
        for Removed { stream, reset } in tcp.take_out(|stream| ending.contains_key(&stream)) {
            let Some((Severed { action, rule, .. }, flow)) = ending.get(&stream).copied() else { continue };
            let Ends { local, remote } = reset.ends;
            let outcome = match action {
                ForkAction::Drop => StreamOutcome::Dropped(DropCause::Fork { rule }),
                _ => StreamOutcome::ForkReset { rule },
            };
            self.streams.push(StreamReport { stream, local, remote, outcome });
            if action == ForkAction::Reset && sides.has_inside(remote.ip(), local.ip()) {
                // As the peer sees this host: through the flow's translation, if there is one.
                let own = reset.ends.tuple();
                let seen =
                    flow.map_or(
                        Some(own),
                        |flow| {
                            if flow.orig == own { flow.reply.inverted() } else { flow.orig.inverted() }
                        },
                    );
                let Some(Tuple { src, dst, sport, dport, .. }) = seen else { continue };
                let [first, last] = reset.numbers;
                let datagram = |seq| Reset { src, dst, sport, dport, seq, ack: reset.ack, tos: 0 }.datagram();
                self.resets.extend(datagram(first));
                self.resets.extend(if first == last { None } else { datagram(last) });
            }
        }
    }
}

impl Stack {
    /// Sends a datagram to the inside past every rule: a fork's word on a flow that it has ended. What rules say of traffic
    /// must not make a guest wait for a connection that is gone.
    pub(crate) fn tell_inside(&mut self, datagram: Vec<u8>, now: Instant) {
        let Ok(mut packet) = Packet::originated(datagram) else { return };
        match self.routes.output(&self.links, packet.src(), packet.dst()) {
            Some(hop) if hop.link != crate::LinkId::LOOPBACK => {
                count(&mut self.stats.originated);
                count(&mut self.stats.errors_sent);
                packet.attachment = hibernet_conntrack::Attachment::untracked();
                packet.leave_by(hop);
                // A drop on the way to the link is counted there.
                let _outcome = self.transmit(packet, now);
            }
            _ => count(&mut self.stats.errors_suppressed),
        }
    }
}

/// How a flow ends; `None` if it is kept.
fn judge(rules: &LoadedForkRules<'_>, flow: &FlowRecord, sides: &Sides<'_>) -> Option<Severed> {
    let inherited = Inherited::new(flow, sides);
    let (action, rule) = rules.action(&inherited);
    match action {
        ForkAction::Keep => None,
        ForkAction::Reset => Some(Severed { action, rule, ending: Ending { tell: inherited.inside } }),
        ForkAction::Drop => Some(Severed { action, rule, ending: Ending::default() }),
    }
}

/// The resets that a forwarded connection's inside ends are sent.
///
/// An end takes a reset only at the very byte it waits for (RFC 5961, section 3.2). That is between what it has acknowledged and
/// what the other side has sent, and nearly always one of the two. If it is neither, the end answers with a challenge,
/// which is a late segment of a severed flow and is reset by its own number.
fn resets_of(flow: &FlowRecord, ending: Ending) -> Vec<Vec<u8>> {
    let ProtocolState::Tcp(track) = &flow.protocol else { return Vec::new() };
    let mut resets = Vec::new();
    for (direction, tell) in [Direction::Original, Direction::Reply].into_iter().zip(ending.tell) {
        let answer = flow.tuple(direction).inverted();
        if let Some(Tuple { src, dst, sport, dport, .. }) = answer.filter(|_| tell) {
            let (ack, numbers) = numbers(track, direction);
            let reset = |seq| Reset { src, dst, sport, dport, seq, ack: Some(ack), tos: 0 }.datagram();
            resets.extend(numbers.into_iter().filter_map(reset));
        }
    }
    resets
}

/// What acknowledges all that one side has sent, and the numbers it may be waiting for.
fn numbers(track: &TcpTrack, direction: Direction) -> (u32, Vec<u32>) {
    let [original, reply] = &track.sides;
    let (own, other) = match direction {
        Direction::Original => (original, reply),
        Direction::Reply => (reply, original),
    };
    let is_waiting_for_syn =
        direction == Direction::Original && matches!(track.state, TcpState::SynSent | TcpState::SynSent2);
    let acknowledged = Some(own.td_maxack).filter(|_| own.flags.contains(hibernet_conntrack::TcpSideFlags::MAXACK_SET));
    let mut numbers = if is_waiting_for_syn { vec![0] } else { vec![other.td_end] };
    numbers.extend(acknowledged.filter(|number| !is_waiting_for_syn && *number != other.td_end));
    (own.td_end, numbers)
}

/// The flow that connection tracking would know of a connection of this host, if it knew one.
fn stand_in(own: &Tuple, is_accepted: bool) -> Option<FlowRecord> {
    let inverse = own.inverted()?;
    let (orig, reply) = if is_accepted { (inverse, *own) } else { (*own, inverse) };
    Some(FlowRecord::unknown_tcp(orig, reply))
}

const fn told(ending: Ending) -> Status {
    let [original, reply] = ending.tell;
    let original = if original { Status::TELL_ORIGINAL } else { Status::empty() };
    let reply = if reply { Status::TELL_REPLY } else { Status::empty() };
    original.union(reply)
}

const fn own_tuple(stream: &StreamReport) -> Tuple {
    Ends { local: stream.local, remote: stream.remote }.tuple()
}
