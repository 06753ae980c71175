//! The figures of a run, as `--json` prints them.

use serde::Serialize;

/// One object; arrays have one element per restore.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) mode: &'static str,
    /// `veth`, `tun` or `memory`.
    pub(super) links: &'static str,
    /// Why these links.
    pub(super) why: String,
    pub(super) connections: usize,
    /// Those of them that end in the gateway.
    pub(super) terminated: usize,
    pub(super) udp_flows: usize,
    pub(super) kept: Vec<u64>,
    pub(super) reset: Vec<u64>,
    pub(super) dropped: Vec<u64>,
    pub(super) streams_kept: Vec<u64>,
    pub(super) streams_reset: Vec<u64>,
    pub(super) cookies_lost: Vec<u64>,
    pub(super) mismatched_streams: usize,
    pub(super) rsts_seen: u64,
    pub(super) lost_bytes: u64,
    pub(super) save_pause_ms: Vec<f64>,
    pub(super) save_ms: Vec<f64>,
    pub(super) image_bytes: Vec<usize>,
    pub(super) restore_ms: Vec<f64>,
    pub(super) rehash_ms: Vec<f64>,
    pub(super) list_equal: Vec<bool>,
    pub(super) canary_hits: Vec<u64>,
    pub(super) keys_distinct: bool,
    pub(super) control_broken: usize,
    pub(super) seconds: f64,
}
