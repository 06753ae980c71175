//! What became of every flow in a restore.

use hibernet_conntrack::{Tuple, Zone};
use hibernet_snapshot::GenerationId;

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
    /// Flows that were forgotten.
    pub dropped: u32,
    /// UDP and ping sockets that go on, under the handles they had.
    pub sockets: usize,
    /// Datagrams and echo replies that wait in them to be read. A restore loses none.
    pub datagrams: usize,
    /// Every flow of the image, in creation order.
    pub flows: Vec<FlowReport>,
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
    /// It cannot go on, and there is nobody to tell.
    Dropped(DropCause),
}

/// Why a flow was reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ResetCause {
    /// A TCP connection of this host itself, whose stream is not in the image.
    LocalStream,
}

/// Why a flow was forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DropCause {
    /// A TCP connection of this host with itself: both ends are gone.
    BothEndsLocal,
}

impl RestoreReport {
    pub(crate) fn new(parent: GenerationId, flows: Vec<FlowReport>) -> Self {
        let mut report = Self { parent, kept: 0, reset: 0, dropped: 0, sockets: 0, datagrams: 0, flows };
        for flow in &report.flows {
            let counter = match flow.outcome {
                FlowOutcome::Kept => &mut report.kept,
                FlowOutcome::Reset(_) => &mut report.reset,
                FlowOutcome::Dropped(_) => &mut report.dropped,
            };
            *counter = counter.saturating_add(1);
        }
        report
    }
}
