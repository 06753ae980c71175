//! conntrack (crate documentation is written last)
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod attachment;
mod canary;
mod checksum;
mod conntrack;
mod event;
mod headers;
mod invalid;
mod nat;
mod pack;
mod protocol;
mod record;
mod status;
mod sysctl;
mod table;
mod tracker;
mod tuple;
mod wire;

pub use crate::attachment::{Attachment, Remark};
pub use crate::canary::{CanaryReport, CanaryScan};
pub use crate::conntrack::{
    Config, ConfigError, Conntrack, ConntrackSaved, EarlyDrop, NotRestored, Origin, Refusal, Totals, Validated,
};
pub use crate::event::{ConntrackEvent, EventKind};
pub use crate::headers::{Fragment, ParseError, Parsed, parse};
pub use crate::invalid::{IgnoreReason, InvalidReason};
pub use crate::nat::{Manip, NatRange};
pub use crate::protocol::{
    ProtocolState, SctpState, SctpTrack, TcpSegmentKind, TcpSide, TcpSideFlags, TcpState, TcpTrack, UdpTrack,
};
pub use crate::record::{Counters, FlowRecord};
pub use crate::status::{CtState, Status};
pub use crate::sysctl::{LONGEST_TIMEOUT, SysctlError, Sysctls};
pub use crate::table::{FlowsSaved, Handle};
pub use crate::tuple::{Direction, Tuple, Zone, proto};
pub use crate::wire::WireChoices;
