//! What the supervisor tells a peer, and what it hears back: one JSON line each, over the peer's standard streams.

use std::net::IpAddr;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::Serialize;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub(crate) enum PeerRequest {
    /// Makes a TUN device that outlives whoever is attached to it.
    MakeTun { device: String, mtu: u32 },
    /// Brings the namespace's device up and gives it addresses and default routes.
    Network { device: String, addresses: Vec<(IpAddr, u8)>, gateways: Vec<IpAddr> },
    /// Accepts streams at these addresses.
    Listen { at: Vec<SocketAddr> },
    /// Answers numbered datagrams at these addresses, and watches the echo requests that arrive.
    Answer { at: Vec<SocketAddr> },
    /// Opens streams.
    Connect { streams: Vec<StreamPlan> },
    /// Sends numbered datagrams on these flows until told to finish.
    Send { flows: Vec<DatagramPlan> },
    /// Sends numbered echo requests to these addresses until told to finish.
    Ping { targets: Vec<IpAddr> },
    /// Remembers how far every stream has come. Answered by [`Progress`].
    Mark,
    /// Answered by [`Progress`].
    Progress,
    /// Every stream sends, until told to be quiet.
    StartStreams,
    /// No stream sends anything new.
    QuietStreams,
    /// Every stream closes in order.
    CloseStreams,
    /// No more datagrams and echo requests.
    FinishDatagrams,
    /// Answered by [`PeerReport`].
    Report,
    /// Answered by [`KernelCounters`](super::KernelCounters).
    Counters,
    /// Forgets all traffic and closes its sockets.
    Clear,
}

/// One stream to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamPlan {
    pub(crate) id: u64,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// The other end is the gateway itself, which sends everything back.
    pub(crate) terminated: bool,
}

/// One flow of datagrams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatagramPlan {
    pub(crate) flow: u32,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// How the streams stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Streams through the gateway, to the other peer.
    pub(crate) forwarded: StreamCounts,
    /// Streams that end in the gateway.
    pub(crate) terminated: StreamCounts,
}

/// How the streams of one kind stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamCounts {
    /// Streams that are open both ways.
    pub(crate) open: usize,
    /// Streams that received something since the last mark.
    pub(crate) advanced: usize,
    /// Streams that ended in order, both ways.
    pub(crate) closed: usize,
    /// Bytes sent on all streams.
    pub(crate) sent: u64,
    /// Bytes received on all streams.
    pub(crate) received: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PeerReport {
    pub(crate) streams: Vec<StreamReport>,
    pub(crate) udp: DatagramReport,
    pub(crate) ping: DatagramReport,
}

/// One stream, as this end saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamReport {
    pub(crate) id: u64,
    /// The other end is the gateway itself, which sends everything back: both hashes are of the same bytes.
    pub(crate) terminated: bool,
    pub(crate) sent: u64,
    pub(crate) sent_hash: String,
    pub(crate) received: u64,
    pub(crate) received_hash: String,
    /// The end saw a reset.
    pub(crate) reset: bool,
    /// Why it ended before its time, if it did.
    pub(crate) failure: Option<String>,
    /// It ended in order, both ways.
    pub(crate) closed: bool,
}

/// Numbered datagrams, as this end saw them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatagramReport {
    /// Flows this end knows of.
    pub(crate) flows: usize,
    /// Numbers sent (by the sender).
    pub(crate) sent: u64,
    /// Numbers that came (back).
    pub(crate) received: u64,
    /// Numbers that came more than once.
    pub(crate) duplicates: u64,
    /// Flows that were seen with more than one external port or echo id.
    pub(crate) moved: usize,
    /// When each number that never came back was sent, in nanoseconds on the monotonic clock.
    pub(crate) lost_at: Vec<u64>,
    /// The longest way there and back, in nanoseconds.
    pub(crate) longest_trip: u64,
}
