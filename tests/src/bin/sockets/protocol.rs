//! What a check tells the stack's process, one line of JSON each way over its standard input and output.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use hibernet_netstack::Cidr;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::flow::Sum;

/// What a fresh stack is made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HostConfig {
    pub(super) addrs: Vec<Cidr>,
    /// Where all else is: the kernel.
    pub(super) gateway: IpAddr,
    /// Rules as a rule file has them; open if missing.
    pub(super) rules: Option<Value>,
    pub(super) sysctls: Vec<(String, String)>,
    pub(super) capacity: u32,
}

/// Settings of a stream that are not the default.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) receive: Option<u32>,
    pub(super) send: Option<u32>,
    /// The link loses frames, so congestion control is on.
    pub(super) lossy: bool,
}

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Accepts streams. `echo`: what comes is sent back.
    Listen {
        port: u16,
        backlog: u32,
        half_open: u32,
        settings: Settings,
        echo: bool,
    },
    /// Opens stream `id`; the answer is its own port.
    Connect {
        id: u64,
        from: Option<SocketAddr>,
        to: SocketAddr,
        settings: Settings,
    },
    /// Changes what a stream is to do. One that was accepted has its peer's port as id.
    Set {
        id: u64,
        more: u64,
        reading: Option<bool>,
        close: bool,
    },
    /// Frames of these ports get lost from now on; replaces what was said before.
    Block(Vec<Block>),
    /// How the link is from now on.
    Weather(Weather),
    /// How streams stand: of these ids, of all if none is given.
    Streams(Vec<u64>),
    Stats,
    /// SYNs sent since the start: own port, peer's port, sequence number.
    Syns,
    /// Puts other rules in force.
    Rules(Value),
    /// Forgets all tracked flows.
    Flush,
    /// Saves, and does nothing from then on.
    Save(PathBuf),
}

/// Segments between the stack and this port of the kernel get lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Block {
    pub(super) port: u16,
    /// Those to the stack, but for so many that come first.
    pub(super) inward: Option<u32>,
    /// Those to the kernel.
    pub(super) outward: bool,
}

/// What happens to frames, each way, in parts of 10,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Weather {
    pub(super) seed: u64,
    pub(super) lost: u64,
    pub(super) doubled: u64,
    /// Held back behind the next ones.
    pub(super) late: u64,
}

/// How a stream stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StreamReply {
    pub(super) id: u64,
    pub(super) state: String,
    pub(super) sent: Sum,
    pub(super) got: Sum,
    pub(super) finished: bool,
    pub(super) over: bool,
    pub(super) failure: Option<String>,
}

/// How the stack stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct StatsReply {
    pub(super) flows: u32,
    pub(super) most_flows: u32,
    pub(super) streams: usize,
    pub(super) most_streams: usize,
    pub(super) accepted: u64,
    pub(super) cookies_sent: u64,
    pub(super) cookies_accepted: u64,
    pub(super) received: u64,
    pub(super) resets_sent: u64,
    /// The same by the kernel's port.
    pub(super) resets_by_port: BTreeMap<u16, u64>,
    /// What the weather did: frames lost, doubled, late.
    pub(super) weather: [u64; 3],
    /// Frames the kernel had no room to hand over.
    pub(super) overruns: u64,
    /// Memory of its own that is in use, in bytes.
    pub(super) memory: u64,
    pub(super) drops: Vec<(String, u64)>,
}

/// What a save did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SaveReply {
    pub(super) generation: String,
    pub(super) bytes: usize,
    pub(super) nanos: u64,
    pub(super) streams: usize,
}

/// What a process says first: of its restore, if it was one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct HelloReply {
    pub(super) parent: String,
    pub(super) nanos: u64,
    pub(super) streams_kept: u32,
    pub(super) streams_reset: u32,
    pub(super) flows_kept: u32,
    pub(super) flows: usize,
    /// Streams that were not kept, with the reason.
    pub(super) lost: Vec<String>,
}
