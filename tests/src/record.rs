//! Records: what one step did, in the form in which the oracle writes it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Number, Value};

use crate::notation::{hex_of, text};
use crate::scenario::Local;

/// One step's record. A field that does not apply to the step is left out of the JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Number of the step, from 0.
    pub step: usize,
    /// Seconds from the start.
    pub at: Number,
    /// The step's note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Variables that the step's packet uses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<String>,
    /// What went in: an object for one packet, a list for a repeated step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inject: Option<Inject>,
    /// Why the link took no packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inject_error: Option<&'static str>,
    /// What a local socket did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
    /// The error that the local socket got; null for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<Option<&'static str>>,
    /// Conntrack's verdict at prerouting; null when the packet never got past it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctstate: Option<Option<String>>,
    /// The direction that belongs to the verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctdir: Option<Option<String>>,
    /// In a summary: packets that left, by link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_count: Option<BTreeMap<String, usize>>,
    /// In a summary: events by kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_count: Option<BTreeMap<EventKind, usize>>,
    /// In a summary: hooks passed, by `HOOK|STATE|DIRECTION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_count: Option<BTreeMap<String, usize>>,
    /// In a summary of a repeated step: packets that went in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inject_count: Option<usize>,
    /// Packets that left, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<Vec<Left>>,
    /// Hooks passed, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Vec<Hop>>,
    /// Conntrack's events, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<Event>>,
    /// Reasons that the tracker gave.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
    /// Entries in the table.
    pub count: u32,
    /// The table, sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conntrack: Option<Vec<Entry>>,
    /// Values taken from packets that left.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub captured: Map<String, Value>,
}

/// Packets that went in.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Inject {
    /// The one packet of a step.
    One(Injected),
    /// Those of a repeated step.
    Many(Vec<Injected>),
}

impl Inject {
    /// What went in by the link `dev`; only a packet that is alone has its text beside it.
    pub fn new(dev: &str, packets: &[Vec<u8>]) -> Self {
        let bare = |packet: &Vec<u8>| Injected { dev: dev.to_owned(), hex: hex_of(packet), text: None };
        match packets {
            [packet] => Self::One(Injected { text: Some(text(packet)), ..bare(packet) }),
            packets => Self::Many(packets.iter().map(bare).collect()),
        }
    }
}

/// A packet that went in.
#[derive(Debug, Clone, Serialize)]
pub struct Injected {
    /// Link that it came in by.
    pub dev: String,
    /// Its bytes.
    pub hex: String,
    /// What it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A packet that left.
#[derive(Debug, Clone, Serialize)]
pub struct Left {
    /// Link that it left by.
    pub dev: String,
    /// Its bytes.
    pub hex: String,
    /// What it says.
    pub text: String,
    /// Whether it was recognised as one that the router made.
    #[serde(skip_serializing_if = "is_false")]
    pub local: bool,
}

/// One hook that a packet passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The hook; `input_end` once the packet has come through INPUT.
    pub hook: String,
    /// Conntrack's state of the packet.
    pub state: String,
    /// Direction; null where the state has none.
    pub dir: Option<String>,
    /// Link it came in by.
    pub iif: Option<String>,
    /// Link it leaves by.
    pub oif: Option<String>,
    /// At postrouting: whether the router made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<bool>,
}

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventKind {
    /// It entered the table.
    New,
    /// It changed.
    Update,
    /// It left the table.
    Destroy,
}

/// A conntrack event.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The entry's original tuple.
    pub orig: TupleRecord,
    /// Its TCP state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// Its status bits by name.
    pub status: Vec<String>,
}

/// Puts neighbouring DESTROY events in order: a batch of them comes in the order of the table's buckets.
pub fn sort_destroyed(events: &mut [Event]) {
    for batch in events.chunk_by_mut(|a, b| a.kind == EventKind::Destroy && b.kind == EventKind::Destroy) {
        batch.sort_by_cached_key(|event| event.orig.canonical());
    }
}

/// A tuple as the oracle names its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TupleRecord {
    /// Source address.
    pub src: String,
    /// Destination address.
    pub dst: String,
    /// Protocol number.
    pub proto: u8,
    /// Source port, where the protocol has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// Identifier of an ICMP query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    /// Its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Its code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Zone, where only this direction is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
}

impl TupleRecord {
    /// JSON with sorted keys: what the oracle sorts by.
    fn canonical(&self) -> String {
        serde_json::to_value(self).map(|value| value.to_string()).unwrap_or_default()
    }
}

/// An entry of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Tuple of the original direction.
    pub orig: TupleRecord,
    /// Tuple of the reply direction.
    pub reply: TupleRecord,
    /// Status bits by name.
    pub status: Vec<String>,
    /// TCP's part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpRecord>,
    /// SCTP's part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<SctpRecord>,
    /// Seconds that the entry has left, rounded down.
    pub timeout: u64,
    /// Mark, where it is not zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// Packets counted, of a flow that is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<ByDirection>,
    /// Bytes counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByDirection>,
    /// Zone, where both directions are in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
}

impl Entry {
    /// Sorts a table as the oracle does.
    pub fn sort(table: &mut [Self]) {
        table.sort_by_cached_key(|entry| {
            let Self { orig, reply, zone, .. } = entry;
            let first = orig.sport.or(orig.icmp_id).unwrap_or(0);
            let second = orig.dport.or(orig.icmp_type.map(u16::from)).unwrap_or(0);
            let zone = zone.unwrap_or(0);
            (orig.proto, orig.src.clone(), orig.dst.clone(), first, second, zone, reply.canonical())
        });
    }
}

/// What the table says of a TCP connection; the numbers are those of its two senders.
#[derive(Debug, Clone, Serialize)]
pub struct TcpRecord {
    /// State by the kernel's name.
    pub state: String,
    /// Window scale of the original side.
    pub wscale_orig: u8,
    /// Window scale of the reply side.
    pub wscale_reply: u8,
    /// Flags of the original side.
    pub flags_orig: u8,
    /// Flags of the reply side.
    pub flags_reply: u8,
}

/// What the table says of an SCTP association.
#[derive(Debug, Clone, Serialize)]
pub struct SctpRecord {
    /// State by the kernel's name.
    pub state: String,
}

/// A counter of both directions.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ByDirection {
    /// Original direction.
    pub orig: u64,
    /// Reply direction.
    pub reply: u64,
}

fn is_false(value: &bool) -> bool {
    !value
}
