//! Flows that a fork has ended. They stay in the table, so that no later packet of them passes for the first of a new flow,
//! and so that no new flow gets the tuples that the other copy still uses.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use super::{Conntrack, Refusal, Subject, Validated, subject};
use crate::headers::Parsed;
use crate::protocol::{ProtocolState, TcpSegmentKind, TcpSide, TcpState, TcpTrack};
use crate::record::{Counters, FlowRecord};
use crate::status::Status;
use crate::table::{Flows, Packed, Slot};
use crate::tracker::Packet;
use crate::tuple::{Direction, Tuple, Zone};

/// How an inherited flow ends in a fork.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ending {
    /// Whether the sender in the original, in the reply direction is told with every packet it still sends.
    pub tell: [bool; 2],
}

impl Validated {
    /// Ends the flows for which `ending` says so; it is shown each with its place in the order of creation.
    ///
    /// A severed flow is not gone: packets of it are refused ([`Refusal::Reset`], [`Refusal::Severed`]) for as long as it
    /// would have been remembered, two minutes at least, and each puts that off again. A SYN that is no repetition ends it.
    pub fn sever(&mut self, mut ending: impl FnMut(usize, &FlowRecord) -> Option<Ending>) {
        for (number, slot) in self.table.flows().in_creation_order().into_iter().enumerate() {
            let ending = self.table.flows().record(slot).and_then(|flow| ending(number, &flow));
            if let Some(ending) = ending {
                sever(self.table.flows_mut(), slot, ending);
            }
        }
    }
}

impl Validated {
    /// Adds severed flows that were not tracked, or no more: [`FlowRecord::unknown_tcp`]. Left out are those for which there is
    /// no room, and those whose tuples are taken.
    pub fn add_severed(&mut self, severed: &[FlowRecord]) {
        let flows = self.table.flows_mut();
        let wanted: BTreeMap<&Tuple, &FlowRecord> =
            severed.iter().flat_map(|flow| [(&flow.orig, flow), (&flow.reply, flow)]).collect();
        let mut taken = BTreeSet::new();
        for slot in flows.in_creation_order() {
            let Some(held) = flows.record(slot) else { continue };
            for tuple in [held.orig, held.reply] {
                let is_taken = |flow: &&FlowRecord| flows.direction_of(slot, &Packed::of(&tuple), flow.zone).is_some();
                taken.extend(wanted.get(&tuple).copied().filter(is_taken).map(|flow| flow.orig));
            }
        }
        for flow in severed.iter().filter(|flow| !taken.contains(&flow.orig)) {
            if flows.store(&FlowRecord { status: flow.status | SEVERED, ..flow.clone() }).is_none() {
                return;
            }
        }
    }
}

impl FlowRecord {
    /// A TCP flow of which nothing is known but its ends.
    pub fn unknown_tcp(orig: Tuple, reply: Tuple) -> Self {
        Self {
            orig,
            reply,
            zone: Zone::default(),
            status: Status::CONFIRMED,
            remaining: Duration::from_secs(LEAST.into()),
            protocol: ProtocolState::Tcp(TcpTrack {
                state: TcpState::Close,
                sides: [TcpSide::default(); 2],
                retrans: 0,
                last_dir: Direction::Original,
                last_index: TcpSegmentKind::None,
                last_seq: 0,
                last_ack: 0,
                last_len: 0,
                last_win: 0,
                last_wscale: 0,
                last_flags: 0,
            }),
            mark: 0,
            counters: Counters::default(),
        }
    }
}

impl Conntrack {
    /// Whether the packet, which is exempt from tracking, belongs to a severed flow all the same: an error says so.
    pub fn refuse_untracked(&mut self, datagram: &[u8], parsed: &Parsed, zone: Zone) -> Result<(), Refusal> {
        let packet = Packet { datagram, parsed, verify_checksum: false };
        let found = match subject(&packet) {
            Subject::Flow(tuple) => self.table.find(&tuple, zone),
            Subject::Quoted(inner) => inner.tuple.inverted().and_then(|answer| self.table.find(&answer, zone)),
            Subject::Untracked | Subject::Invalid(_) => None,
        };
        match found.filter(|(slot, _)| self.is_severed(*slot) && !self.table.flows().is_expired(*slot)) {
            Some((slot, direction)) => self.meet_severed(&packet, slot, direction),
            None => Ok(()),
        }
    }

    /// What becomes of a packet of a severed flow: it is refused, unless it opens a connection in place of that flow.
    pub(super) fn meet_severed(
        &mut self,
        packet: &Packet<'_>,
        slot: Slot,
        direction: Direction,
    ) -> Result<(), Refusal> {
        let flows = self.table.flows_mut();
        let Some(flow) = flows.record(slot) else { return Ok(()) };
        if direction == Direction::Original && flow.status.intersects(Status::TOLD) && is_successor(packet, &flow) {
            return Ok(());
        }
        linger(flows, slot);
        Err(if flow.status.contains(Status::tell(direction)) { Refusal::Reset } else { Refusal::Severed })
    }

    pub(super) fn is_severed(&self, slot: Slot) -> bool {
        self.table.flows().core(slot).is_some_and(|core| core.status().contains(Status::SEVERED))
    }
}

/// Whether a packet opens a new connection between the ends of a severed one: its sender knows then that the old one is over.
/// A SYN of the severed connection that is sent again does not.
fn is_successor(packet: &Packet<'_>, flow: &FlowRecord) -> bool {
    let ProtocolState::Tcp(track) = flow.protocol else { return false };
    let l4 = packet.parsed.l4(packet.datagram);
    let (Some(seq), Some(flags)) = (l4.get(SEQ..).and_then(<[u8]>::first_chunk), l4.get(FLAGS)) else { return false };
    let end = u32::from_be_bytes(*seq).wrapping_add(1);
    flags & FIN_SYN_RST_ACK == SYN && track.sides.iter().all(|side| side.td_end != end)
}

fn sever(flows: &mut Flows, slot: Slot, ending: Ending) {
    let clock = flows.clock();
    if let Some(flow) = flows.record(slot)
        && let Some(core) = flows.core_mut(slot)
    {
        let [tell_original, tell_reply] = ending.tell;
        let mut status = core.status() | SEVERED;
        status.set(Status::TELL_ORIGINAL, tell_original);
        status.set(Status::TELL_REPLY, tell_reply);
        core.set_status(status);
        if let ProtocolState::Tcp(mut track) = flow.protocol {
            // It is no half-open connection of its source any more.
            track.state = TcpState::Close;
            core.set_protocol(&ProtocolState::Tcp(track), clock);
        }
    }
    flows.assure(slot);
    linger(flows, slot);
}

/// The other copy's connection lives on, so what is left of this one's time is the least that counts.
fn linger(flows: &mut Flows, slot: Slot) {
    let left = flows.record(slot).map_or(Duration::ZERO, |flow| flow.remaining);
    if left < Duration::from_secs(LEAST.into()) {
        flows.set_timeout(slot, LEAST);
    }
}

/// Early drop spares what is severed.
const SEVERED: Status = Status::SEVERED.union(Status::ASSURED);
/// The timeout of an answered UDP flow, the longest of those that traffic alone keeps up
/// (`nf_conntrack_udp_timeout_stream`); in seconds.
const LEAST: u32 = 120;
/// Where TCP's sequence number and flags stand (RFC 9293, section 3.1).
const SEQ: usize = 4;
const FLAGS: usize = 13;
const SYN: u8 = 0x02;
const FIN_SYN_RST_ACK: u8 = 0x17;
