//! What the `track` station attaches to a packet.

use crate::invalid::{IgnoreReason, InvalidReason};
use crate::record::FlowRecord;
use crate::status::{CtState, Status};
use crate::table::Handle;
use crate::tuple::{Direction, Tuple};

/// A packet's place in conntrack. Owned by one packet and not `Clone`.
///
/// Small, because packets are handed on by value; what is large is of a flow's first packet alone, or of few others.
///
/// A new flow is a value in here and nowhere else until `confirm`: no other packet can see it, it goes when its packet
/// goes, and a copy of the packet cannot share it.
#[derive(Debug, Default)]
pub struct Attachment(pub(crate) Attached);

#[derive(Debug, Default)]
pub(crate) enum Attached {
    /// `track` has not seen the packet.
    #[default]
    Nothing,
    /// The packet opens a flow, which is not in the table yet.
    Unconfirmed(Box<FlowRecord>),
    /// Part of a flow in the table, or an error about it.
    Flow { handle: Handle, direction: Direction, state: CtState, ignored: Option<IgnoreReason> },
    /// About a flow that is not in the table: never was, or left with this packet. Its binding still counts.
    Detached { binding: Box<Binding>, direction: Direction, state: CtState },
    /// Exempt from tracking.
    Untracked,
    /// Fits nothing.
    Invalid(InvalidReason),
}

/// Both tuples of a flow and what NAT does between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding {
    pub(crate) orig: Tuple,
    pub(crate) reply: Tuple,
    pub(crate) status: Status,
}

impl Binding {
    pub(crate) const fn of(flow: &FlowRecord) -> Self {
        Self { orig: flow.orig, reply: flow.reply, status: flow.status }
    }

    pub(crate) const fn tuple(&self, direction: Direction) -> &Tuple {
        match direction {
            Direction::Original => &self.orig,
            Direction::Reply => &self.reply,
        }
    }
}

/// Why a packet is INVALID, or why it passes without counting (`nf_conntrack_log_invalid`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remark {
    /// INVALID.
    Invalid(InvalidReason),
    /// Part of a flow, but ignored by its tracker.
    Ignored(IgnoreReason),
}

impl Attachment {
    /// Exempts a packet that `track` has not seen (`notrack`).
    pub const fn untracked() -> Self {
        Self(Attached::Untracked)
    }

    /// Whether `track` still has to look at the packet.
    pub const fn is_nothing(&self) -> bool {
        matches!(self.0, Attached::Nothing)
    }

    /// What `ct state` says; `None` before `track`.
    pub const fn state(&self) -> Option<CtState> {
        match &self.0 {
            Attached::Nothing => None,
            Attached::Unconfirmed(_) => Some(CtState::New),
            Attached::Flow { state, .. } | Attached::Detached { state, .. } => Some(*state),
            Attached::Untracked => Some(CtState::Untracked),
            Attached::Invalid(_) => Some(CtState::Invalid),
        }
    }

    /// What `ct direction` says; `None` for a packet without a flow.
    pub const fn direction(&self) -> Option<Direction> {
        match &self.0 {
            Attached::Unconfirmed(_) => Some(Direction::Original),
            Attached::Flow { direction, .. } | Attached::Detached { direction, .. } => Some(*direction),
            Attached::Nothing | Attached::Untracked | Attached::Invalid(_) => None,
        }
    }

    /// The flow in the table, if the packet belongs to one.
    pub const fn handle(&self) -> Option<Handle> {
        match &self.0 {
            Attached::Flow { handle, .. } => Some(*handle),
            _ => None,
        }
    }

    /// Whether the packet carries a flow that is not in the table yet.
    pub const fn is_unconfirmed(&self) -> bool {
        matches!(self.0, Attached::Unconfirmed(_))
    }

    /// Why the packet is INVALID or ignored.
    pub const fn remark(&self) -> Option<Remark> {
        match &self.0 {
            Attached::Invalid(reason) => Some(Remark::Invalid(*reason)),
            Attached::Flow { ignored: Some(reason), .. } => Some(Remark::Ignored(*reason)),
            _ => None,
        }
    }

    /// What translates a packet whose flow is not in the table: its binding, its direction and state.
    pub(crate) fn own_binding(&self) -> Option<(Binding, Direction, CtState)> {
        match &self.0 {
            Attached::Unconfirmed(flow) => Some((Binding::of(flow), Direction::Original, CtState::New)),
            Attached::Detached { binding, direction, state } => Some((**binding, *direction, *state)),
            Attached::Flow { .. } | Attached::Nothing | Attached::Untracked | Attached::Invalid(_) => None,
        }
    }

    /// What a packet gets that the router makes in answer to this one (an ICMP error, a reset): RELATED, the other way.
    ///
    /// Of an unconfirmed flow it gets a copy of the binding, so that its translation is undone, never the flow.
    pub fn related_reply(&self) -> Self {
        fn related(direction: Direction, binding: Binding) -> Attachment {
            Attachment(Attached::Detached { binding: Box::new(binding), direction, state: CtState::Related })
        }
        match &self.0 {
            Attached::Unconfirmed(flow) => related(Direction::Reply, Binding::of(flow)),
            Attached::Detached { binding, direction, .. } => related(direction.opposite(), **binding),
            Attached::Flow { handle, direction, .. } => Self(Attached::Flow {
                handle: *handle,
                direction: direction.opposite(),
                state: CtState::Related,
                ignored: None,
            }),
            Attached::Nothing | Attached::Untracked | Attached::Invalid(_) => Self(Attached::Nothing),
        }
    }

    /// What an answer to the packet gets that is part of the same flow, made while the flow is not in the table: ESTABLISHED,
    /// the other way, with a copy of the binding and never the flow.
    pub fn reply(&self) -> Self {
        match &self.0 {
            Attached::Unconfirmed(flow) => Self(Attached::Detached {
                binding: Box::new(Binding::of(flow)),
                direction: Direction::Reply,
                state: CtState::Established,
            }),
            _ => Self(Attached::Nothing),
        }
    }

    /// Whether the packet carries a new flow that is translated.
    pub fn is_translated(&self) -> bool {
        matches!(&self.0, Attached::Unconfirmed(flow) if flow.orig.inverted() != Some(flow.reply))
    }

    /// What a copy of the packet gets (bridges that flood, `tee`, captures): its flow if that is in the table; a new flow
    /// stays with the original, and the copy is exempt from tracking.
    pub fn for_duplicate(&self) -> Self {
        match &self.0 {
            Attached::Flow { handle, direction, state, ignored } => {
                Self(Attached::Flow { handle: *handle, direction: *direction, state: *state, ignored: *ignored })
            }
            Attached::Detached { binding, direction, state } => {
                Self(Attached::Detached { binding: binding.clone(), direction: *direction, state: *state })
            }
            Attached::Invalid(reason) => Self(Attached::Invalid(*reason)),
            Attached::Nothing => Self(Attached::Nothing),
            Attached::Unconfirmed(_) | Attached::Untracked => Self(Attached::Untracked),
        }
    }
}
