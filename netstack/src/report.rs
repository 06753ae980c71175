//! What became of every flow in a restore.

use core::fmt;
use core::net::SocketAddr;

use hibernet_conntrack::{Tuple, Zone};
use hibernet_snapshot::GenerationId;

use crate::local::TcpStream;

/// What a restore did.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The generation that was restored.
    pub parent: GenerationId,
    /// Flows that go on.
    pub kept: u32,
    /// Flows whose peers were sent a reset.
    pub reset: u32,
    /// Flows that were forgotten, with nobody to tell.
    pub dropped: u32,
    /// UDP and ping sockets that go on, under the handles they had.
    pub sockets: usize,
    /// Datagrams and echo replies that wait in them to be read. A restore loses none.
    pub datagrams: usize,
    /// Every flow of the image, in creation order.
    pub flows: Vec<FlowReport>,
    /// TCP streams of this host that go on.
    pub streams_kept: u32,
    /// TCP streams of this host that could not be rebuilt; their peers were sent a reset.
    pub streams_reset: u32,
    /// Every TCP stream of this host in the image, in the order they were opened.
    pub streams: Vec<StreamReport>,
    /// SYN cookies that were out when the image was saved. Their key is gone: those peers begin again.
    pub cookies_lost: u32,
}

/// What became of one TCP stream of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamReport {
    /// Its id, which is the same before and after.
    pub stream: TcpStream,
    /// This host's end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// What became of it.
    pub outcome: StreamOutcome,
}

/// What became of a TCP stream of this host in a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StreamOutcome {
    /// It goes on.
    Kept,
    /// It could not be rebuilt; its peer was told with a reset, and its owner finds it reset.
    Reset(RebuildFault),
}

/// In what a rebuilt connection was not the saved one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RebuildFault {
    /// Its state.
    State,
    /// Bytes that wait to be read or sent.
    Queues,
    /// Sequence numbers.
    Numbers,
}

impl fmt::Display for RebuildFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::State => "its state could not be reached",
            Self::Queues => "its buffers could not be filled",
            Self::Numbers => "its sequence numbers could not be reached",
        })
    }
}

/// What became of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowReport {
    /// Its original direction.
    pub orig: Tuple,
    /// Its zone.
    pub zone: Zone,
    /// What became of it.
    pub outcome: FlowOutcome,
}

/// What became of a flow in a restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FlowOutcome {
    /// It goes on.
    Kept,
    /// It cannot go on; its peer was told with a TCP reset, and it is forgotten.
    Reset(ResetCause),
}

/// Why a flow was reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ResetCause {
    /// A TCP connection of this host itself, which could not be rebuilt.
    LocalStream(RebuildFault),
}

impl RestoreReport {
    pub(crate) fn new(parent: GenerationId, flows: Vec<FlowReport>, streams: Vec<StreamReport>) -> Self {
        let count = |found: usize| u32::try_from(found).unwrap_or(u32::MAX);
        let kept = flows.iter().filter(|flow| flow.outcome == FlowOutcome::Kept).count();
        let streams_kept = streams.iter().filter(|stream| stream.outcome == StreamOutcome::Kept).count();
        Self {
            parent,
            kept: count(kept),
            reset: count(flows.len().saturating_sub(kept)),
            dropped: 0,
            sockets: 0,
            datagrams: 0,
            flows,
            streams_kept: count(streams_kept),
            streams_reset: count(streams.len().saturating_sub(streams_kept)),
            streams,
            cookies_lost: 0,
        }
    }
}
