//! Connection tracking and NAT after Linux netfilter, restorable under fresh keys.
//!
//! [`Conntrack`] is called where netfilter's hooks call conntrack: [`Conntrack::track`] attaches a flow to a packet (a new
//! flow is a value *inside* the packet), the nat stations decide and apply bindings, [`Conntrack::confirm`] lets a new flow
//! into the table once its packet has passed every rule. States, timeouts, sysctls and verdicts carry the kernel's names and
//! are held against recorded answers of a real kernel (crate `hibernet-tests`).
//!
//! Behind it: pure protocol trackers (TCP with full window tracking, UDP, ICMP, ICMPv6, SCTP, GRE, generic), a table of
//! fixed-size entries with a separate index filed under a secret key, a timer wheel, a keyed search for free ports.
//!
//! Packets that come together are looked up together: [`Conntrack::track_burst`] does for up to [`BURST`] at a time what
//! [`Conntrack::track`] does for one, and waits for memory once. [`Conntrack::prefault`] touches the table's memory before there
//! is traffic; huge pages behind it are for the global allocator to ask for. A flow takes 144 bytes in IPv4, 208 in IPv6, index
//! included; a translated one takes a second place in the index, which there is room for, and one in the tree of mappings.
//!
//! [`SharedConntrack`] is the same for several threads at once: shards with a lock each, of which nothing can be seen.
//!
//! A save ([`hibernet_snapshot::Snapshot::save`]) writes flows and settings, never a key. The way back goes through
//! [`Validated`], which no packet can reach, and [`Validated::rehash`], which draws fresh keys and files every tuple under
//! them in one step. There is no way to have the keys without the rehash.
//!
//! ```
//! use hibernet_conntrack::{Config, Conntrack, CtState, Origin, Validated, Zone, parse};
//! use hibernet_snapshot::{Entropy, Instant, Snapshot};
//!
//! let mut entropy = Entropy::from_test_seed(1);
//! let now = Instant::from_secs(1);
//! let mut conntrack = Conntrack::new(Config::default(), &mut entropy, now)?;
//!
//! // UDP 10.0.0.2:4000 > 192.0.2.1:53, without payload or UDP checksum.
//! let query = [
//!     0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0x6e, 0xce, 10, 0, 0, 2, 192, 0, 2, 1, 0x0f, 0xa0, 0, 53, 0, 8, 0, 0,
//! ];
//! let mut attachment = conntrack.track(&query, &parse(&query)?, Zone::default(), Origin::Link, now)?;
//! assert_eq!(attachment.state(), Some(CtState::New));
//! conntrack.confirm(&mut attachment, now)?;
//!
//! let saved = conntrack.save();
//! let restored = Validated::check(saved, now, &mut entropy)?.rehash(&mut entropy)?;
//! assert_eq!(restored.flows(), conntrack.flows());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What it does not do: reassemble fragments (it expects whole datagrams, as the defrag station in front of it leaves them),
//! choose routes or read rules, helpers and expectations for protocols with several connections (FTP, SIP), synproxy,
//! connection labels. It does no I/O, reads no clock and draws no randomness of its own.

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
mod shared;
mod status;
mod sysctl;
mod table;
mod tracker;
mod tuple;
mod wire;

pub use crate::attachment::{Attachment, Remark};
pub use crate::canary::{CanaryReport, CanaryScan};
pub use crate::conntrack::{
    Ahead, BURST, Config, ConfigError, Conntrack, ConntrackSaved, EarlyDrop, Ending, FrozenConntrack, FrozenDelta,
    Incoming, MergedFlows, NotRestored, Origin, Refusal, Totals, Validated,
};
pub use crate::event::{ConntrackEvent, EventKind};
pub use crate::headers::{Fragment, ParseError, Parsed, parse, udp_lite_coverage};
pub use crate::invalid::{IgnoreReason, InvalidReason};
pub use crate::nat::{Manip, NatRange};
pub use crate::protocol::{
    ProtocolState, SctpState, SctpTrack, TcpSegmentKind, TcpSide, TcpSideFlags, TcpState, TcpTrack, UdpTrack,
};
pub use crate::record::{Counters, FlowRecord};
pub use crate::shared::{Shards, SharedConntrack};
pub use crate::status::{CtState, Status};
pub use crate::sysctl::{LONGEST_TIMEOUT, SysctlError, Sysctls};
pub use crate::table::{
    FlowsSaved, Handle, Packing, Progress, RestoreOptions, RestoreRoom, RestoreStep, SaveBuffer, SavePoint,
};
pub use crate::tuple::{Direction, Tuple, Zone, proto};
pub use crate::wire::WireChoices;
