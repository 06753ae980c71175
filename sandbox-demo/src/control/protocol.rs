//! What is said over the control socket.

use std::path::PathBuf;
use std::time::Duration;

use hibernet_conntrack::Tuple;
use hibernet_netstack::FlowOutcome;
use hibernet_netstack::RestoreReport;
use hibernet_netstack::StreamOutcome;
use serde::Deserialize;
use serde::Serialize;

use crate::clock::millis;
use crate::gateway::RestoreRequest;

/// One request; `docs/control.md` has the method and path of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// What the gateway is doing. Answered by [`StatusReply`].
    Status,
    /// The flow table. Answered by [`ListReply`].
    List,
    /// The neighbours on Ethernet links. Answered by [`NeighboursReply`].
    Neighbours,
    /// The hooks and their stations. Answered by [`HooksReply`].
    Hooks,
    /// Drops by reason and the links' counts. Answered by [`StatsReply`].
    Stats,
    /// Takes in what waits on the links, and stands still. Answered by [`PauseReply`].
    Pause,
    /// The last events: drops and logged packets. Answered by [`EventsReply`].
    Events {
        /// Those behind this number alone.
        after: Option<u64>,
    },
    /// Puts another egress policy in force. Answered by [`PolicyReply`].
    Policy {
        /// The policy file's text.
        text: String,
    },
    /// What goes out by host sockets. Answered by [`EgressReply`].
    Egress,
    /// Saves the stack to a file. Answered by [`SaveReply`] once the file is on disk.
    Save {
        /// The image's absolute path.
        path: PathBuf,
        /// Whether traffic goes on behind the save.
        after: After,
        /// What is written, and how.
        form: SaveForm,
    },
    /// Puts an image in place of a paused stack. Answered by [`RestoreSummary`].
    Restore(RestoreRequest),
    /// Searches an image for this process's keys. Answered by [`CanaryReply`].
    Canary {
        /// The image's absolute path.
        path: PathBuf,
    },
    /// One-way fingerprints of the keys, to compare processes. Answered by [`KeysReply`].
    Keys,
    /// Lets a paused gateway pass traffic. Answered by [`StatusReply`].
    Resume,
}

/// What a save writes, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SaveForm {
    pub(crate) kind: SaveKind,
    /// Flow records as compressed columns. Deltas are never compressed.
    pub(crate) compress: bool,
    /// The absolute path of the key to seal the image with.
    pub(crate) seal_key: Option<PathBuf>,
}

/// How much a save writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SaveKind {
    /// Everything.
    #[default]
    Full,
    /// Everything, and from now on it is known what changes.
    Base,
    /// What has changed since the last base or delta.
    Delta,
}

/// The body of a save.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SaveRequest {
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) after: After,
    #[serde(default)]
    pub(super) form: SaveForm,
}

/// What a gateway does once it has saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum After {
    /// Traffic goes on; the image is a copy of the past.
    #[default]
    GoOn,
    /// Traffic stands still until `resume`: nothing passes that the image does not know, so the image can take over.
    Hold,
}

/// Whether a gateway passes traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunState {
    /// Traffic passes.
    Running,
    /// The links are open but unread, and the stack's time stands still.
    Paused,
}

/// What a pause took in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PauseReply {
    pub(crate) state: RunState,
    /// Frames that had waited on the links and have passed the stack before it stood still.
    pub(crate) drained: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusReply {
    pub(crate) state: RunState,
    pub(crate) pid: u32,
    pub(crate) flows: usize,
    /// How this gateway came out of its image, if it did.
    pub(crate) restored: Option<RestoreSummary>,
}

/// A restore in sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RestoreSummary {
    /// The generation of the image.
    pub(crate) parent: String,
    pub(crate) kept: u64,
    pub(crate) reset: u64,
    pub(crate) dropped: u64,
    /// TCP streams of the stack itself that go on.
    pub(crate) streams_kept: u64,
    /// TCP streams of the stack itself that could not be rebuilt, or that a fork has reset.
    pub(crate) streams_reset: u64,
    /// TCP streams of the stack itself that a fork has dropped.
    pub(crate) streams_dropped: u64,
    /// The fresh id of this restore.
    pub(crate) instance: String,
    /// Seconds since the save, where they are known.
    pub(crate) elapsed_seconds: f64,
    /// How much of that counts under the time policy.
    pub(crate) counted_seconds: f64,
    /// Fragments and packets from or to the outside that a fork has not taken over.
    pub(crate) waiting_dropped: usize,
    /// Flows and streams that were reset or dropped, and why; the first thousand.
    pub(crate) resets: Vec<String>,
    /// UDP and ping sockets of the stack itself that go on.
    pub(crate) sockets: usize,
    /// Datagrams that wait in them.
    pub(crate) datagrams: usize,
    /// SYN cookies that were out when the image was saved: those peers begin again.
    pub(crate) cookies_lost: u64,
    /// From opening the file to a stack ready for traffic.
    pub(crate) restore_ms: f64,
    /// Of it: filing every flow under the new keys, and rebuilding the stack's own streams.
    pub(crate) rehash_ms: f64,
}

impl RestoreSummary {
    /// What a report comes to; `restore` and `rehash` are how long it took.
    pub(crate) fn new(report: &RestoreReport, restore: Duration, rehash: Duration) -> Self {
        let streams = report.streams.iter().filter_map(|stream| match stream.outcome {
            StreamOutcome::Reset(fault) => Some(format!("{} to {}: {fault}", stream.local, stream.remote)),
            _ => None,
        });
        let flows = report.flows.iter().filter_map(|flow| {
            let (word, cause) = match flow.outcome {
                FlowOutcome::Reset(cause) => ("reset", cause.to_string()),
                FlowOutcome::Dropped(cause) => ("dropped", cause.to_string()),
                _ => return None,
            };
            Some(format!("{word} {}: {cause}", tuple(&flow.orig)))
        });
        let resets = streams.chain(flows).take(MOST_NAMED);
        Self {
            parent: report.parent.to_string(),
            kept: u64::from(report.kept),
            reset: u64::from(report.reset),
            dropped: u64::from(report.dropped),
            streams_kept: u64::from(report.streams_kept),
            streams_reset: u64::from(report.streams_reset),
            streams_dropped: u64::from(report.streams_dropped),
            instance: report.instance.to_string(),
            elapsed_seconds: report.elapsed.as_secs_f64(),
            counted_seconds: report.counted.as_secs_f64(),
            waiting_dropped: report.fragments_dropped.saturating_add(report.waiting_dropped),
            resets: resets.collect(),
            sockets: report.sockets,
            datagrams: report.datagrams,
            cookies_lost: u64::from(report.cookies_lost),
            restore_ms: millis(restore),
            rehash_ms: millis(rehash),
        }
    }

    /// Streams that were restored but end all the same, as the other end of each is gone.
    pub(crate) fn lose_streams(&mut self, ended: Vec<String>) {
        let count = ended.len() as u64;
        self.kept = self.kept.saturating_sub(count);
        self.reset = self.reset.saturating_add(count);
        self.streams_kept = self.streams_kept.saturating_sub(count);
        self.streams_reset = self.streams_reset.saturating_add(count);
        self.resets.extend(ended);
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Self { parent, restore_ms, rehash_ms, resets, .. } = self;
        let mut text = format!("restored {parent} in {restore_ms} ms (rehash {rehash_ms} ms): {}", self.outcome());
        for reset in resets {
            text.push_str("\n  ");
            text.push_str(reset);
        }
        text
    }

    /// What became of the flows, and of the stack's own streams.
    pub(crate) fn outcome(&self) -> String {
        let Self { kept, reset, dropped, streams_kept, streams_reset, streams_dropped, .. } = self;
        let Self { sockets, datagrams, cookies_lost, elapsed_seconds, counted_seconds, waiting_dropped, .. } = self;
        let mut text = format!("flows: {kept} kept, {reset} reset, {dropped} dropped");
        if streams_kept + streams_reset + streams_dropped > 0 {
            text.push_str(&format!("; streams of its own: {streams_kept} kept, {streams_reset} reset"));
            if *streams_dropped > 0 {
                text.push_str(&format!(", {streams_dropped} dropped"));
            }
        }
        if *waiting_dropped > 0 {
            text.push_str(&format!("; {waiting_dropped} packets that waited dropped"));
        }
        if *counted_seconds > 0.0 {
            text.push_str(&format!("; {counted_seconds:.0} of {elapsed_seconds:.0} s count"));
        }
        if *sockets > 0 {
            text.push_str(&format!("; datagram sockets of its own: {sockets} kept, {datagrams} datagrams wait"));
        }
        if *cookies_lost > 0 {
            text.push_str(&format!("; {cookies_lost} SYN cookies lost"));
        }
        text
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListReply {
    /// One line per flow, as `conntrack -L` prints it.
    pub(crate) flows: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NeighboursReply {
    pub(crate) neighbours: Vec<NeighbourReply>,
}

/// One neighbour on an Ethernet link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NeighbourReply {
    pub(crate) addr: String,
    pub(crate) link: String,
    /// Its hardware address, once known.
    pub(crate) mac: Option<String>,
    /// Its state, as `ip neigh` names it.
    pub(crate) state: String,
    /// The line as `ip neigh` prints it.
    pub(crate) text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HooksReply {
    pub(crate) rows: Vec<HookReply>,
}

/// One station of the packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HookReply {
    pub(crate) hook: String,
    pub(crate) priority: i32,
    pub(crate) name: String,
    /// The line as people read it.
    pub(crate) text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StatsReply {
    pub(crate) drops: Vec<DropCount>,
    pub(crate) links: Vec<LinkReply>,
}

/// How many datagrams were dropped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DropCount {
    pub(crate) number: u16,
    pub(crate) reason: String,
    pub(crate) count: u64,
}

/// The last events of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventsReply {
    pub(crate) events: Vec<EventReply>,
    /// Events that were asked for and are not kept any more.
    pub(crate) lost: u64,
}

/// What became of a packet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventReply {
    /// Counts from 0.
    pub(crate) number: u64,
    /// `drop`, `log`, `invalid` or `other`.
    pub(crate) kind: String,
    /// Why it was dropped.
    pub(crate) reason: Option<String>,
    /// The chain that said so.
    pub(crate) chain: Option<String>,
    /// The rule in it, from 0.
    pub(crate) rule: Option<usize>,
    /// The link it came in on.
    pub(crate) iif: Option<String>,
    pub(crate) src: Option<String>,
    pub(crate) dst: Option<String>,
    /// For people.
    pub(crate) text: String,
}

/// An egress policy was put in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyReply {
    /// Its rules.
    pub(crate) rules: usize,
    /// Flows it does not allow, which have been ended.
    pub(crate) ended: usize,
}

/// What goes out by host sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EgressReply {
    pub(crate) tcp: usize,
    pub(crate) udp: usize,
    pub(crate) echo: usize,
    /// The policy as people read it; none if it came with an image.
    pub(crate) policy: Option<String>,
}

/// What passed one link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkReply {
    pub(crate) name: String,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) receive_overruns: u64,
    pub(crate) unreadable: u64,
    pub(crate) send_drops: u64,
    /// Of a link over a socket: times a peer came, and went.
    pub(crate) connects: u64,
    pub(crate) disconnects: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SaveReply {
    pub(crate) path: PathBuf,
    pub(crate) generation: String,
    pub(crate) flows: usize,
    pub(crate) bytes: usize,
    /// Whether the image is sealed.
    pub(crate) sealed: bool,
    /// How long the packet loop stood still for the save itself.
    pub(crate) pause_ms: f64,
    /// From the request to an image that is safe on disk.
    pub(crate) save_ms: f64,
    /// SHA-256 of the file, by which a delta names what it continues.
    pub(crate) sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CanaryReply {
    /// Windows of keys and hashes of tuples found in the image: none may be.
    pub(crate) hits: u64,
    /// The scan finds a key that was planted on purpose, so finding none means something.
    pub(crate) planted_found: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeysReply {
    /// One fingerprint per key: a one-way function of it.
    pub(crate) fingerprints: Vec<String>,
}

fn tuple(tuple: &Tuple) -> String {
    let Tuple { src, dst, proto, sport, dport } = tuple;
    format!("protocol {proto} from {src} port {sport} to {dst} port {dport}")
}

/// An answer is read by people: it does not grow with the table.
const MOST_NAMED: usize = 1000;
