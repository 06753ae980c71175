//! Rule sets: chains of rules at the hooks.

mod flow_table;
mod jumps;
mod load;
mod matching;
mod parse;
mod place;
mod validate;

use core::fmt;
use core::net::IpAddr;

use hibernet_conntrack::{CtState, Direction, NatRange};
use hibernet_snapshot::Snapshot;
use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;
use crate::hook::{Hook, priority};

pub(crate) use self::flow_table::Way;
pub(crate) use self::jumps::MAX_DEPTH;
pub(crate) use self::load::{Place, Rules};
pub(crate) use self::matching::Subject;
pub(crate) use self::place::STANDARD_CHAINS;
pub use self::validate::{RuleProblem, RulesetError};

/// All chains of a stack, in the order they are registered.
///
/// In JSON it is either a list of rules `{"chain", "match", "action"}` for chains with standard names, in order, or an
/// object with any of `"chains"` (chains of one's own), `"rules"` (such a list) and `"policy"` (a chain's name to its
/// policy). The default drops what comes in and what goes through: a stack without rules is closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ruleset {
    /// The chains.
    pub chains: Vec<Chain>,
}

impl Ruleset {
    /// A rule set without a chain: everything passes, nothing is translated.
    pub const fn open() -> Self {
        Self { chains: Vec::new() }
    }

    /// The chain of that name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
}

impl Default for Ruleset {
    fn default() -> Self {
        let closed = |name: &str, hook| {
            let base = BaseChain { policy: Policy::Drop, ..BaseChain::new(ChainKind::Filter, hook, priority::FILTER) };
            Chain { base: Some(base), ..Chain::regular(name) }
        };
        Self { chains: vec![closed("input", Hook::Input), closed("forward", Hook::Forward)] }
    }
}

/// A chain: rules, tried in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Name, unique in the set.
    pub name: String,
    /// Where a base chain stands. A regular chain stands nowhere: it sees what rules of other chains send it.
    pub base: Option<BaseChain>,
    /// The rules.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A base chain without rules that accepts.
    pub fn new(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { base: Some(BaseChain::new(kind, hook, priority)), ..Self::regular(name) }
    }

    /// A regular chain without rules: everything returns to where it came from.
    pub fn regular(name: &str) -> Self {
        Self { name: name.to_owned(), base: None, rules: Vec::new() }
    }
}

/// A base chain's place at a hook, and what it does in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
pub struct BaseChain {
    /// What the rules may do.
    #[snapshot(saved)]
    pub kind: ChainKind,
    /// Where it stands.
    #[snapshot(saved)]
    pub hook: Hook,
    /// When it runs among others of its hook: lower first, among equals the last registered first. The priority of a nat
    /// chain counts among nat chains: the NAT station, in which they run, has a place of its own.
    #[snapshot(saved)]
    pub priority: i32,
    /// What becomes of packets that no rule decides on.
    #[snapshot(saved)]
    pub policy: Policy,
    /// Whether the chain is registered before the built-in stations instead of after them. At the last priority it then
    /// runs after `confirm`.
    #[snapshot(saved)]
    pub before_confirm: bool,
    /// What reached the policy.
    #[snapshot(saved)]
    pub policy_counters: Counters,
}

impl BaseChain {
    /// A place whose policy is to accept.
    pub fn new(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        let (policy, policy_counters) = (Policy::Accept, Counters::default());
        Self { kind, hook, priority, policy, before_confirm: false, policy_counters }
    }
}

/// What the rules of a chain may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Snapshot)]
#[serde(rename_all = "lowercase")]
pub enum ChainKind {
    /// Decide on every packet.
    #[default]
    Filter,
    /// Decide on the translation of a flow, with its first packet.
    Nat,
}

/// What becomes of packets that no rule of a chain decides on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Snapshot)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They go on.
    #[default]
    Accept,
    /// They are dropped.
    Drop,
}

/// A rule: what happens to the packets it matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Which packets.
    pub matches: Match,
    /// What happens.
    pub action: Action,
    /// What it has matched.
    pub counters: Counters,
}

impl Rule {
    /// A rule that has not matched anything yet.
    pub fn new(matches: Match, action: Action) -> Self {
        Self { matches, action, counters: Counters::default() }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Snapshot)]
pub struct Counters {
    /// Packets.
    #[snapshot(saved)]
    pub packets: u64,
    /// Bytes, from the IP header on.
    #[snapshot(saved)]
    pub bytes: u64,
}

impl Counters {
    pub(crate) fn count(&mut self, len: usize) {
        self.packets = self.packets.saturating_add(1);
        self.bytes = self.bytes.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
    }
}

/// What a packet must be for a rule to match. All that is given must hold; nothing given matches everything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// Name of the link it came in on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Name of the link it leaves on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oif: Option<String>,
    /// Source address or network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saddr: Option<Cidr>,
    /// Destination address or network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daddr: Option<Cidr>,
    /// Layer 4 protocol: `tcp`, `udp`, `icmp`, `icmp6`, `sctp`, `gre` or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
    /// Source port or ports of TCP, UDP, SCTP, DCCP and UDP-Lite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<Ports>,
    /// Destination port or ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<Ports>,
    /// Any of these conntrack states. Before tracking, a packet counts as `invalid`, as in nft.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctstate: Option<Vec<CtState>>,
    /// Direction within its flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctdir: Option<Direction>,
    /// Mark of its flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctmark: Option<u32>,
    /// IP version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Among TCP's FIN, SYN, RST and ACK, SYN alone is set: the opening of a connection. `false` asks nothing.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub tcpflags_syn_only: bool,
}

/// IP version of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// A protocol number (IANA).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proto(pub u8);

/// A port, or a range of ports with both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// One port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// From the first to the last, both included; `None` when they are the wrong way round.
    pub const fn range(first: u16, last: u16) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// The first port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    pub const fn last(self) -> u16 {
        self.last
    }

    pub(crate) const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    const fn pair(self) -> (u16, u16) {
        (self.first, self.last)
    }
}

/// What a rule does with a packet it matches.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Action {
    /// The chain is done with it; later chains still see it.
    Accept,
    /// It is dropped.
    Drop,
    /// It is dropped, and its sender gets an ICMP port unreachable.
    Reject,
    /// It is dropped, and its sender gets a TCP reset. Matches TCP alone.
    RejectTcpReset,
    /// It is dropped, and its sender gets an ICMP communication administratively prohibited.
    RejectAdminProhibited,
    /// TCP, UDP and echo requests are handed to this host's embedder, who stands in their destination's place
    /// ([`Stack::tproxy_next`](crate::Stack::tproxy_next)); the chain is done with them. Anything else passes by.
    Tproxy,
    /// It is not tracked.
    Notrack,
    /// Its flow's source becomes an address of the link it leaves on.
    Masquerade(NatTarget),
    /// Its flow's source is translated.
    Snat(NatTarget),
    /// Its flow's destination is translated.
    Dnat(NatTarget),
    /// Its flow's destination becomes this host.
    Redirect(NatTarget),
    /// It is tracked in this zone.
    Zone(u16),
    /// It is tracked in this zone, answers in zone 0.
    ZoneOrig(u16),
    /// Its flow gets this mark.
    CtMark(u32),
    /// The rules of a regular chain are tried, then the next rule.
    Jump(String),
    /// The rules of a regular chain are tried in place of the rest of this one.
    Goto(String),
    /// Back to the rule behind the jump that led here; in a base chain its policy decides.
    Return,
    /// An event is emitted; the next rule is tried.
    Log {
        /// Text of the event.
        prefix: String,
    },
}

impl Action {
    /// The word a rule is written with.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::RejectTcpReset => "reject-tcp",
            Self::RejectAdminProhibited => "reject-admin",
            Self::Tproxy => "tproxy",
            Self::Notrack => "notrack",
            Self::Masquerade(_) => "masquerade",
            Self::Snat(_) => "snat",
            Self::Dnat(_) => "dnat",
            Self::Redirect(_) => "redirect",
            Self::Zone(_) => "zone",
            Self::ZoneOrig(_) => "zone_orig",
            Self::CtMark(_) => "ctmark",
            Self::Jump(_) => "jump",
            Self::Goto(_) => "goto",
            Self::Return => "return",
            Self::Log { .. } => "log",
        }
    }
}

/// What an address and port are translated to, and how a port is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NatTarget {
    /// First and last address; `None` leaves the address, or takes it from a link.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// First and last port; `None` keeps the port where it can be kept.
    pub ports: Option<Ports>,
    /// Where the search for a free port starts is random.
    pub random: bool,
    /// Ports are drawn at random.
    pub fully_random: bool,
    /// A client always gets the same address of a range.
    pub persistent: bool,
}

impl NatTarget {
    /// The range connection tracking binds within, with the address already chosen where the action takes it from a link.
    pub(crate) fn range(&self, addrs: Option<(IpAddr, IpAddr)>, masquerade: bool) -> NatRange {
        let Self { addrs: own, ports, random, fully_random, persistent } = *self;
        NatRange { addrs: addrs.or(own), ports: ports.map(Ports::pair), random, fully_random, persistent, masquerade }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
        })
    }
}
