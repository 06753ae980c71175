//! A sans-IO network stack for sandboxes: hooks, rules, NAT, routes and sockets, saved and restored whole.
//!
//! A [`Stack`] takes IP datagrams or Ethernet frames from links and gives such to links. Between them stand netfilter's
//! five hook points with netfilter's stations and priorities, chains of rules that read like nft's, connection tracking
//! and NAT (crate `hibernet-conntrack`), routes with the ICMP errors of a router, and behind INPUT and OUTPUT this host's
//! own sockets: TCP on smoltcp, UDP and ping. What the kernel can be seen to do is done the same way, and held against its
//! recorded answers.
//!
//! [`Stack::save`] writes all of it as one image, without one key. The way back has steps that the types enforce:
//! [`Decoded`], [`Validated`], [`Rehashed`], and only then a [`Stack`] that takes traffic, its rules in force before its
//! first packet. A stack without rules is closed.
//!
//! ```
//! use hibernet_netstack::{
//!     Cidr, Decoded, LinkConfig, Medium, RestorePolicy, Route, Ruleset, Stack, StackConfig, Supplied,
//! };
//! use hibernet_snapshot::image::Limits;
//! use hibernet_snapshot::{Entropy, Instant};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = Instant::from_secs(1);
//! let mut entropy = Entropy::from_test_seed(1); // a live stack takes Entropy::from_os()
//! let link = |name: &str, addr: &str| -> Result<LinkConfig, Box<dyn std::error::Error>> {
//!     Ok(LinkConfig { name: name.into(), mtu: 1500, addrs: vec![addr.parse()?], medium: Medium::Ip })
//! };
//! let config = StackConfig {
//!     links: vec![link("in", "10.0.0.1/24")?, link("out", "203.0.113.1/24")?],
//!     routes: vec![Route { destination: Cidr::all_v4(), via: None, link: "out".into() }],
//!     rules: Ruleset::from_json(r#"[{"chain": "srcnat", "match": {"oif": "out"}, "action": "masquerade"}]"#)?,
//!     ..StackConfig::default()
//! };
//! let mut stack = Stack::new(config, entropy.fork(), now)?;
//!
//! // A SYN of 10.0.0.2:1000 to 198.51.100.10:80 leaves with the gateway's address.
//! let syn = [
//!     0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x06, 0x91, 10, 0, 0, 2, 198, 51, 100, 10, // IP
//!     0x03, 0xe8, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0x77, 0x6a, 0, 0, // TCP
//! ];
//! let (inside, outside) = (stack.link("in").ok_or("in")?, stack.link("out").ok_or("out")?);
//! stack.ingress(inside, syn.to_vec(), now);
//! let sent = stack.egress().ok_or("the SYN leaves")?;
//! assert_eq!((sent.link, &sent.datagram[12..16]), (outside, &[203, 0, 113, 1][..]));
//!
//! // Saved, and restored under keys of its own.
//! let image = stack.save(entropy.public_id(), now)?;
//! drop(stack);
//! let validated = Decoded::open(&image, &Limits::default())?.validate(&mut entropy, now)?;
//! let (mut stack, report) = validated.rehash(entropy, RestorePolicy::default())?.open(Supplied::default());
//! assert_eq!(report.kept, 1);
//!
//! // The SYN-ACK finds its way back.
//! let syn_ack = [
//!     0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0xd4, 0x90, 198, 51, 100, 10, 203, 0, 113, 1, // IP
//!     0, 80, 0x03, 0xe8, 0, 0, 0, 9, 0, 0, 0, 2, 0x50, 0x12, 0xff, 0xff, 0x45, 0x50, 0, 0, // TCP
//! ];
//! stack.ingress(outside, syn_ack.to_vec(), now);
//! let answered = stack.egress().ok_or("the SYN-ACK arrives")?;
//! assert_eq!((answered.link, &answered.datagram[16..20]), (inside, &[10, 0, 0, 2][..]));
//! # Ok(())
//! # }
//! ```
//!
//! # One packet's way
//! `ingress`: IP header checks, PREROUTING, route. For this host: INPUT, local stack. For others: time to live, size,
//! FORWARD, POSTROUTING, `egress`. What this host makes, errors and resets for others' packets included: route, OUTPUT,
//! POSTROUTING. [`Stack::hooks`] lists what runs at each hook. A packet ends in the egress queue, in a local socket, or with
//! a [`DropReason`], a counter and an event: there is no other end.
//!
//! # Sockets
//! No call on them blocks. [`TcpListener`], [`TcpStream`], [`UdpSocket`] and [`PingSocket`] are handles that stay valid through a
//! restore, which brings back connections with their peers and what waits in them. [`Stack::tcp_wake_on_read`] and its like
//! take the waker of an async runtime's task. A program that has
//! smoltcp's own sockets already puts a [`HookedDevice`] around its device.
//!
//! # What it does not do
//! - **No I/O, clock or randomness**: datagrams, time and [`hibernet_snapshot::Entropy`] are arguments.
//! - **No VLAN tags, no proxy ARP, no bridge** on Ethernet links; no router advertisements are sent or heard, no group
//!   membership is reported, and own addresses are not searched for duplicates.
//! - **No multicast routing, no reverse path filter, no source routing, no policy routing**: one table, longest prefix.
//! - **No sets or maps** in rules, and no rate limits, neither in rules nor for ICMP errors.
//!
//! # Copies and time
//! A restore believes that the saved stack is gone, and that no time has passed, unless its [`RestorePolicy`] says otherwise:
//! [`ClonePolicy::Fork`] ends inherited flows by rule without a packet to the outside, and [`TimePolicy`] says what of the time
//! between counts. `docs/embedding.md` is a guide for authors of virtual machine monitors.
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod cidr;
mod delta;
mod device;
mod drop_reason;
mod ethernet;
mod event;
mod fragments;
mod hook;
mod icmp;
mod image;
mod link;
mod local;
mod offload;
mod packet;
mod path;
mod ping;
mod reject;
mod report;
mod restore;
mod route;
mod rules;
mod save;
mod source;
mod stack;
mod stats;
#[cfg(test)]
mod test_packets;
#[cfg(test)]
mod test_stack;

pub use crate::cidr::{Cidr, CidrError};
pub use crate::delta::{DeltaChain, FrozenChanges};
pub use crate::device::{HookedConfig, HookedDevice, HookedError, HookedRxToken, HookedTxToken};
pub use crate::drop_reason::DropReason;
pub use crate::ethernet::{MacAddr, MacAddrError, NeighbourEntry, NeighbourState};
pub use crate::event::{DropEvent, LogEvent, PacketEnds, StackEvent};
pub use crate::fragments::FragmentLimits;
pub use crate::hook::{Hook, HookRow, HookRowKind, priority};
pub use crate::image::DeltaBase;
pub use crate::link::{LinkConfig, LinkId, Medium};
pub use crate::local::{
    Congestion, ListenOptions, LocalError, LocalLimits, LocalServices, Opening, PingReply, PingSocket, Proxied,
    ProxyDatagram, ProxyEcho, ReceiveLimits, SocketError, StreamError, StreamOptions, StreamState, TcpListener,
    TcpStream, UdpDatagram, UdpSocket, Unreached,
};
pub use crate::offload::{ChecksumState, Ingress, LinkOffloads, Offload, Segmentation, SegmentationKind};
pub use crate::packet::{Keeper, Packet, Verdict};
pub use crate::reject::RejectWith;
pub use crate::report::{
    DropCause, FlowOutcome, FlowReport, RebuildFault, ResetCause, RestoreReport, StreamOutcome, StreamReport,
};
pub use crate::restore::{
    ClonePolicy, Contents, Decoded, FlowDirection, FlowState, ForkAction, ForkMatch, ForkRule, ForkRules,
    ForkRulesError, MarkMatch, Rehashed, RestoreError, RestorePolicy, Supplied, TimePolicy, Validated, base_of,
};
pub use crate::route::{Route, RouteError};
pub use crate::rules::{
    Action, BaseChain, Chain, ChainKind, Counters, Family, Match, NatTarget, Policy, Ports, Proto, Rule, RuleProblem,
    Ruleset, RulesetError,
};
pub use crate::save::{Checkpoint, Frozen, SaveError, WriteError};
pub use crate::stack::{ConfigError, Egress, Errno, LocalSendError, QueueLimits, Stack, StackConfig};
pub use crate::stats::Stats;
pub use hibernet_conntrack::{Packing, Progress, RestoreOptions, RestoreRoom, RestoreStep, SaveBuffer};
