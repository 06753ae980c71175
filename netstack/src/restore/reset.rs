//! TCP connections of this host that a restore ends.

use hibernet_conntrack::{FlowRecord, ProtocolState, TcpSideFlags, TcpState, TcpTrack, Tuple, Zone};
use hibernet_snapshot::Instant;

use crate::link::Links;
use crate::packet::Packet;
use crate::reject::Reset;
use crate::report::{DropCause, FlowOutcome, FlowReport, ResetCause};
use crate::route::is_own;
use crate::stack::Stack;
use crate::stats::count;

/// A connection that ends here, and the resets that tell its peer.
#[derive(Debug)]
pub(super) struct LocalStream {
    orig: Tuple,
    zone: Zone,
    resets: Vec<Reset>,
}

impl LocalStream {
    /// Sends the resets and forgets the flow. The flow is there while they pass, so that they are translated.
    pub(super) fn end(self, stack: &mut Stack, now: Instant) {
        let Self { orig, zone, resets } = self;
        for reset in resets {
            let Some(mut packet) = reset.datagram().and_then(|bytes| Packet::originated(bytes).ok()) else { continue };
            packet.zone = Some(zone);
            count(&mut stack.stats.originated);
            count(&mut stack.stats.errors_sent);
            // A reset that the rules stop is counted as their drop; its connection ends all the same.
            let _outcome = stack.send(packet, now);
        }
        stack.settle(now);
        if let Some((handle, _)) = stack.conntrack.find(&orig, zone) {
            stack.conntrack.delete(handle, now);
        }
        stack.collect_conntrack_events();
    }
}

/// Tells flows that go on from connections of this host, which do not.
pub(super) fn sort_out(flows: &[FlowRecord], links: &Links) -> (Vec<FlowReport>, Vec<LocalStream>) {
    let mut reports = Vec::with_capacity(flows.len());
    let mut streams = Vec::new();
    for flow in flows {
        let outcome = match &flow.protocol {
            ProtocolState::Tcp(track) => end_of_stream(flow, track, links, &mut streams),
            _ => FlowOutcome::Kept,
        };
        reports.push(FlowReport { orig: flow.orig, zone: flow.zone, outcome });
    }
    (reports, streams)
}

fn end_of_stream(flow: &FlowRecord, track: &TcpTrack, links: &Links, streams: &mut Vec<LocalStream>) -> FlowOutcome {
    // Over on both sides: the entry only waits for stragglers.
    if matches!(track.state, TcpState::TimeWait | TcpState::Close) {
        return FlowOutcome::Kept;
    }
    let [orig, reply] = track.sides;
    let (opened_here, accepted_here) = (is_own(links, flow.orig.src), is_own(links, flow.reply.src));
    let (tuple, own, peer) = match (opened_here, accepted_here) {
        (false, false) => return FlowOutcome::Kept,
        (true, true) => {
            streams.push(LocalStream { orig: flow.orig, zone: flow.zone, resets: Vec::new() });
            return FlowOutcome::Dropped(DropCause::BothEndsLocal);
        }
        (true, false) => (flow.orig, orig, reply),
        (false, true) => (flow.reply, reply, orig),
    };
    // A peer that keeps to RFC 5961 takes a reset at exactly the byte it waits for: the first that it has not
    // acknowledged, or, if it has all, the next.
    let mut numbers = vec![own.td_end];
    if peer.flags.contains(TcpSideFlags::MAXACK_SET) && peer.td_maxack != own.td_end {
        numbers.insert(0, peer.td_maxack);
    }
    let ack = (track.state != TcpState::SynSent).then_some(peer.td_end);
    let Tuple { src, dst, sport, dport, .. } = tuple;
    let resets = numbers.into_iter().map(|seq| Reset { src, dst, sport, dport, seq, ack, tos: 0 }).collect();
    streams.push(LocalStream { orig: flow.orig, zone: flow.zone, resets });
    FlowOutcome::Reset(ResetCause::LocalStream)
}
