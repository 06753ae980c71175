//! Scenario files: what to set up, and the steps to play.
//!
//! The fields are those of the oracle's README. A field that is not listed there is an error, so that a scenario never
//! passes because a part of it was overlooked.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use crate::notation::Fragment;

/// A whole scenario.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name of the scenario; its file's name where it has none.
    #[serde(default)]
    pub name: String,
    /// What it shows, for people.
    #[serde(default)]
    pub title: String,
    /// Kinds of scenario it belongs to. `slow`: entries run out on the way.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Where the idea is from, for people.
    #[serde(default)]
    pub source: String,
    /// Sysctls set before the first step; a name without dots is under `net.netfilter`.
    #[serde(default)]
    pub sysctl: BTreeMap<String, Setting>,
    /// `nf_conntrack_max` and `nf_conntrack_buckets`, which a kernel has once for all namespaces.
    #[serde(default)]
    pub global_sysctl: BTreeMap<String, Setting>,
    /// Links and routes that replace the usual ones.
    #[serde(default)]
    pub net: Net,
    /// Rules in the order in which they are added.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Policy of base chains: `accept` or `drop`.
    #[serde(default)]
    pub policy: BTreeMap<String, String>,
    /// Rules as text of the kernel's own rule tool.
    pub nft: Option<String>,
    /// Local sockets that exist from the start.
    #[serde(default)]
    pub listen: Vec<Listen>,
    /// Variables known from the start.
    #[serde(default)]
    pub vars: Map<String, Value>,
    /// What is played, in order.
    pub steps: Vec<Step>,
}

impl Scenario {
    /// Reads a scenario file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut scenario: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is not a scenario", path.display()))?;
        if scenario.name.is_empty() {
            scenario.name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        }
        Ok(scenario)
    }

    /// Whether entries run out between its steps.
    pub fn is_slow(&self) -> bool {
        self.tags.iter().any(|tag| tag == "slow")
    }
}

/// The value of a sysctl, written as a number or as text.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// `1`
    Number(i64),
    /// `"1"`
    Text(String),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// Parts of the topology that a scenario replaces.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// The link of the clients.
    #[serde(rename = "in")]
    pub inside: Option<Link>,
    /// The link of the servers.
    #[serde(rename = "out")]
    pub outside: Option<Link>,
    /// Routes as arguments of `ip route add`.
    pub routes: Option<Vec<String>>,
}

impl Net {
    /// The link named `in`: the scenario's, or the usual one.
    pub fn inside(&self) -> Link {
        self.inside.clone().unwrap_or_else(|| Link::usual(["10.0.0.1/24", "fd00:10::1/64"]))
    }

    /// The link named `out`.
    pub fn outside(&self) -> Link {
        self.outside.clone().unwrap_or_else(|| Link::usual(["203.0.113.1/24", "2001:db8:ff::1/64"]))
    }

    /// The routes beside those to the links' own prefixes: the IPv6 default is never given, but follows from an address.
    pub fn routes(&self) -> Vec<String> {
        let mut routes = self.routes.clone().unwrap_or_else(|| vec!["default dev out".to_owned()]);
        if self.outside().addr.iter().any(|addr| addr.contains(':')) {
            routes.push("::/0 dev out".to_owned());
        }
        routes
    }
}

/// One link of the router.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The router's addresses with their prefix lengths.
    pub addr: Vec<String>,
    /// Largest packet that leaves in one piece.
    #[serde(default = "ethernet_mtu")]
    pub mtu: u32,
}

impl Link {
    fn usual(addrs: [&str; 2]) -> Self {
        Self { addr: addrs.map(str::to_owned).to_vec(), mtu: ethernet_mtu() }
    }
}

/// A rule of one chain, in the spelling that the stack reads, too.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the chain.
    pub chain: String,
    /// What must hold of a packet.
    #[serde(default, rename = "match")]
    pub matches: Map<String, Value>,
    /// What becomes of it.
    pub action: Value,
}

/// A local socket that listens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// `udp` or `tcp`.
    pub proto: String,
    /// Address it is bound to; the unspecified one for all.
    pub addr: String,
    /// Port it is bound to.
    pub port: u16,
}

/// One step: settings that change first, then packets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// For people.
    pub note: Option<String>,
    /// Seconds from the start before which the step does not begin.
    pub at: Option<Number>,
    /// Sysctls to change.
    #[serde(default)]
    pub sysctl: BTreeMap<String, Setting>,
    /// Rules to append.
    #[serde(default)]
    pub add_rules: Vec<Rule>,
    /// Rules as text of the kernel's own rule tool.
    pub nft: Option<String>,
    /// Link that the packets come in by.
    pub dev: Option<String>,
    /// A packet in notation.
    pub send: Option<String>,
    /// A packet's bytes.
    pub hex: Option<String>,
    /// Sends one fragment of the packet only.
    pub frag: Option<Fragment>,
    /// Sends that many packets: `$I` counts from 0, `$PORT` from `port0`.
    pub repeat: Option<u32>,
    /// First value of `$PORT`.
    pub port0: Option<u32>,
    /// A local socket sends.
    pub local: Option<Local>,
    /// Seconds to wait for an answer.
    pub settle: Option<f64>,
    /// Values to keep: name to `INDEX.FIELD` of the packets that left.
    #[serde(default)]
    pub capture: BTreeMap<String, String>,
    /// Record counts only.
    #[serde(default)]
    pub summary: bool,
    /// Record neither table nor trace nor events.
    #[serde(default)]
    pub brief: bool,
    /// Paths that the recorder does not compare.
    #[serde(default)]
    pub volatile: Vec<Value>,
}

impl Step {
    /// Whether packets go into a link in this step.
    pub fn injects(&self) -> bool {
        self.send.is_some() || self.hex.is_some()
    }
}

/// What a local socket does.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Local {
    /// What kind of socket it is.
    pub op: LocalOp,
    /// Address to bind to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// Port to bind to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Address to send to.
    pub dst: IpAddr,
    /// Port to send to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// Payload length of `udp_send`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub len: Option<usize>,
    /// The packet of `raw_send`, in notation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pkt: Option<String>,
    /// Whether `tcp_connect` reports that the connection is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raise: Option<bool>,
}

/// The kinds of local sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalOp {
    /// A UDP socket sends one datagram.
    UdpSend,
    /// A TCP socket connects.
    TcpConnect,
    /// A raw socket sends a packet with its IP header.
    RawSend,
}

fn ethernet_mtu() -> u32 {
    1500
}
