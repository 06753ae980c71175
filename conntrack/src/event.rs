//! What conntrack reports (`conntrack -E`).

use std::collections::VecDeque;

use crate::record::FlowRecord;

/// What happened to a flow (ctnetlink's message types).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EventKind {
    /// It entered the table.
    New,
    /// Its protocol state, status or mark changed.
    Update,
    /// It left the table.
    Destroy,
}

impl EventKind {
    /// The name `conntrack -E` prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Update => "UPDATE",
            Self::Destroy => "DESTROY",
        }
    }
}

/// An event and the flow as it was right then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConntrackEvent {
    /// What happened.
    pub kind: EventKind,
    /// To whom.
    pub flow: FlowRecord,
}

/// Events nobody has fetched yet. Bounded: the oldest stay, what does not fit is counted.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    events: VecDeque<ConntrackEvent>,
    lost: u64,
}

impl EventQueue {
    pub(crate) fn push(&mut self, kind: EventKind, flow: FlowRecord) {
        if self.has_room() {
            self.events.push_back(ConntrackEvent { kind, flow });
        } else {
            self.lose();
        }
    }

    /// Whether the next event is kept.
    pub(crate) fn has_room(&self) -> bool {
        self.events.len() < LIMIT
    }

    /// Counts an event that found no room.
    pub(crate) const fn lose(&mut self) {
        self.lost = self.lost.saturating_add(1);
    }

    pub(crate) fn pop(&mut self) -> Option<ConntrackEvent> {
        self.events.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }
}

/// Room for the events of a few bursts; who wants all of them fetches after every burst.
const LIMIT: usize = 16_384;
