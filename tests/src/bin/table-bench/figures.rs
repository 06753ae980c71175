//! What a run comes to.

use serde::Serialize;

/// All figures of one run. The names are those of the JSON object.
#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) flows: usize,
    pub(crate) family: &'static str,
    pub(crate) threads: usize,
    pub(crate) limits: Limits,
    pub(crate) ours: Ours,
    pub(crate) peers: Peers,
}

/// What the machine can do.
#[derive(Serialize)]
pub(crate) struct Limits {
    /// One line at a random place of as much memory as the table has, none waiting for another.
    pub(crate) random_line_ns: f64,
    /// Bytes copied, in units of 10^9 a second.
    pub(crate) memcpy_gbps: f64,
}

/// The flow table of `hibernet-conntrack`.
#[derive(Serialize)]
pub(crate) struct Ours {
    pub(crate) lookup_batch_ns: f64,
    pub(crate) lookup_single_ns: f64,
    pub(crate) track_batch_ns: f64,
    pub(crate) track_single_ns: f64,
    pub(crate) insert_batch_ns: f64,
    pub(crate) insert_single_ns: f64,
    pub(crate) bytes_per_flow: f64,
    pub(crate) save_pause_ms: f64,
    pub(crate) save_ms: f64,
    pub(crate) restore_ms: f64,
    pub(crate) rehash_ms: f64,
    pub(crate) image_bytes_per_flow: f64,
}

/// What else there is.
#[derive(Serialize)]
pub(crate) struct Peers {
    pub(crate) std_hashmap: Peer,
    pub(crate) hashbrown_foldhash: Peer,
    pub(crate) dashmap: Peer,
    pub(crate) gvisor_layout: Peer,
}

/// One of them.
#[derive(Serialize)]
pub(crate) struct Peer {
    pub(crate) lookup_ns: f64,
    pub(crate) insert_ns: f64,
    pub(crate) bytes_per_flow: f64,
    pub(crate) save_ms: f64,
    pub(crate) restore_ms: f64,
}
