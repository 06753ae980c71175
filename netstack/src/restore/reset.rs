//! TCP connections of this host that could not be rebuilt: their peers are reset at once, not left to hang.

use hibernet_conntrack::{FlowRecord, Tuple, Zone};
use hibernet_snapshot::Instant;

use super::fork::Plan;
use crate::local::{Ends, StreamReset};
use crate::packet::Packet;
use crate::reject::Reset;
use crate::report::{DropCause, FlowOutcome, FlowReport, RebuildFault, ResetCause, StreamOutcome, StreamReport};
use crate::stack::Stack;
use crate::stats::count;

/// Resets the peer of a connection and forgets its flow. The flow is there while the resets pass, so that they are
/// translated.
pub(super) fn end(stack: &mut Stack, stream: &StreamReset, now: Instant) {
    let tuple = stream.ends.tuple();
    let zone = Zone::default();
    let [first, last] = stream.numbers;
    // A peer that keeps to RFC 5961 takes a reset at exactly the byte it waits for: one of these, or one it asks for.
    let numbers = if first == last { vec![last] } else { vec![first, last] };
    for seq in numbers {
        let Tuple { src, dst, sport, dport, .. } = tuple;
        let reset = Reset { src, dst, sport, dport, seq, ack: stream.ack, tos: 0 };
        let Some(packet) = reset.datagram().and_then(|bytes| Packet::originated(bytes).ok()) else { continue };
        count(&mut stack.stats.originated);
        count(&mut stack.stats.errors_sent);
        // A reset that the rules stop is counted as their drop; its connection ends all the same.
        let _outcome = stack.send(packet, now);
    }
    stack.settle(now);
    if let Some((handle, _)) = stack.conntrack.find(&tuple, zone) {
        stack.conntrack.delete(handle, now);
    }
    stack.collect_conntrack_events();
}

/// What becomes of each flow: it goes on, unless a fork ends it, its time is over, or it is that of a connection that does not.
pub(super) fn sort_out(flows: &[FlowRecord], streams: &[StreamReport], plan: &Plan) -> Vec<FlowReport> {
    let faults: Vec<(Tuple, RebuildFault)> = streams
        .iter()
        .filter_map(|stream| match stream.outcome {
            StreamOutcome::Kept | StreamOutcome::ForkReset { .. } | StreamOutcome::Dropped(_) => None,
            StreamOutcome::Reset(fault) => Some((Ends { local: stream.local, remote: stream.remote }.tuple(), fault)),
        })
        .collect();
    let outcome = |number: usize, flow: &FlowRecord| {
        if let Some(outcome) = plan.outcome(number) {
            return outcome;
        }
        if flow.remaining.is_zero() {
            return FlowOutcome::Dropped(DropCause::Expired);
        }
        let is_its = |(tuple, _): &&(Tuple, RebuildFault)| flow.orig == *tuple || flow.reply == *tuple;
        match faults.iter().find(is_its) {
            Some((_, fault)) => FlowOutcome::Reset(ResetCause::LocalStream(*fault)),
            None => FlowOutcome::Kept,
        }
    };
    let report = |(number, flow): (usize, &FlowRecord)| {
        let outcome = outcome(number, flow);
        FlowReport { orig: flow.orig, zone: flow.zone, outcome }
    };
    flows.iter().enumerate().map(report).collect()
}
