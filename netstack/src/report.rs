//! What became of every flow in a restore.

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

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
    /// Flows that ended and whose ends are told: all of them, or in a fork those inside.
    pub reset: u32,
    /// Flows that ended with nobody to tell.
    pub dropped: u32,
    /// A fresh id of this restore, which no other restore of the image has: for a guest that must know it is a copy (vmgenid).
    pub instance: GenerationId,
    /// How long ago the image was saved, as the embedder said.
    pub elapsed: Duration,
    /// How much of that counts under the time policy. Whatever else an embedder keeps for the outside, leases or cached
    /// answers, should be as much older.
    pub counted: Duration,
    /// Fragments that a fork has not taken over: those that waited for the rest of a datagram from outside.
    pub fragments_dropped: usize,
    /// Packets that a fork has not taken over: those that waited for the hardware address of a neighbour outside.
    pub waiting_dropped: usize,
    /// UDP and ping sockets that go on, under the handles they had.
    pub sockets: usize,
    /// Datagrams and echo replies that wait in them to be read. A restore loses none.
    pub datagrams: usize,
    /// Every flow of the image, in creation order.
    pub flows: Vec<FlowReport>,
    /// TCP streams of this host that go on.
    pub streams_kept: u32,
    /// TCP streams of this host that could not be rebuilt, or that a fork has reset.
    pub streams_reset: u32,
    /// TCP streams of this host that a fork has dropped.
    pub streams_dropped: u32,
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
    /// A fork has reset it: its owner finds it reset, and so does its peer if that is inside.
    ForkReset {
        /// The number of the rule, from 0; none for the default.
        rule: Option<usize>,
    },
    /// It was dropped: its owner finds it reset, its peer was told nothing.
    Dropped(DropCause),
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
    /// It cannot go on, and who has an end of it is told; in a fork, who has one inside.
    Reset(ResetCause),
    /// It ended, and nobody was told.
    Dropped(DropCause),
}

/// Why a flow was reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ResetCause {
    /// A TCP connection of this host itself, which could not be rebuilt.
    LocalStream(RebuildFault),
    /// A fork has reset it.
    Fork {
        /// The number of the rule, from 0; none for the default.
        rule: Option<usize>,
    },
}

/// Why a flow was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DropCause {
    /// Its time was over, as the time policy counts.
    Expired,
    /// A rule of a fork said so.
    Fork {
        /// The number of the rule, from 0; none for the default.
        rule: Option<usize>,
    },
}

impl fmt::Display for ResetCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LocalStream(fault) => fault.fmt(f),
            Self::Fork { rule } => write!(f, "{}", ForkSays(*rule)),
        }
    }
}

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("its time was over"),
            Self::Fork { rule } => write!(f, "{}", ForkSays(*rule)),
        }
    }
}

struct ForkSays(Option<usize>);

impl fmt::Display for ForkSays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rule) => write!(f, "rule {rule} of the fork"),
            None => f.write_str("the default of the fork"),
        }
    }
}

impl RestoreReport {
    pub(crate) fn new(parent: GenerationId, flows: Vec<FlowReport>, streams: Vec<StreamReport>) -> Self {
        let mut report = Self {
            parent,
            kept: 0,
            reset: 0,
            dropped: 0,
            instance: GenerationId::default(),
            elapsed: Duration::ZERO,
            counted: Duration::ZERO,
            fragments_dropped: 0,
            waiting_dropped: 0,
            sockets: 0,
            datagrams: 0,
            flows,
            streams_kept: 0,
            streams_reset: 0,
            streams_dropped: 0,
            streams,
            cookies_lost: 0,
        };
        report.count();
        report
    }

    /// Adds up what became of flows and streams.
    pub(crate) fn count(&mut self) {
        let Self { kept, reset, dropped, flows, streams_kept, streams_reset, streams_dropped, streams, .. } = self;
        (*kept, *reset, *dropped) = (0, 0, 0);
        for flow in flows {
            let counter = match flow.outcome {
                FlowOutcome::Kept => &mut *kept,
                FlowOutcome::Reset(_) => &mut *reset,
                FlowOutcome::Dropped(_) => &mut *dropped,
            };
            *counter = counter.saturating_add(1);
        }
        (*streams_kept, *streams_reset, *streams_dropped) = (0, 0, 0);
        for stream in streams {
            let counter = match stream.outcome {
                StreamOutcome::Kept => &mut *streams_kept,
                StreamOutcome::Reset(_) | StreamOutcome::ForkReset { .. } => &mut *streams_reset,
                StreamOutcome::Dropped(_) => &mut *streams_dropped,
            };
            *counter = counter.saturating_add(1);
        }
    }
}
