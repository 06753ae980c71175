//! The stack: what it is made of, and what its embedder calls.

use std::collections::VecDeque;

use hibernet_conntrack::{CanaryReport, CanaryScan, Conntrack, FlowRecord, SysctlError, WireChoices};
use hibernet_snapshot::{Entropy, GenerationId, Instant, Invalid, Redraw};
use thiserror::Error;

use crate::device::Sink;
use crate::drop_reason::DropReason;
use crate::ethernet::Neighbours;
use crate::event::{EventQueue, StackEvent};
use crate::fragments::{Defragmenter, FragmentLimits};
use crate::hook::HookRow;
use crate::link::{LinkConfig, LinkId, Links, MAX_LINKS, sound};
use crate::local::{Local, LocalLimits, LocalServices, ports_are_real};
use crate::offload::{Ingress, LinkOffloads, Offload};
use crate::packet::Packet;
use crate::route::{Route, RouteError, RouteTable, is_own};
use crate::rules::{Rule, Rules, Ruleset, RulesetError};
use crate::stats::Stats;

/// What a [`Stack`] is made from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StackConfig {
    /// The links, in the order of their ids.
    pub links: Vec<LinkConfig>,
    /// Routes beyond the links' own networks.
    pub routes: Vec<Route>,
    /// The rules. The default set drops what comes in and what goes through.
    pub rules: Ruleset,
    /// Size and settings of connection tracking.
    pub conntrack: hibernet_conntrack::Config,
    /// Services of this host.
    pub services: LocalServices,
    /// Bounds of the queues.
    pub queues: QueueLimits,
    /// Bounds of local sockets.
    pub local: LocalLimits,
    /// Bounds of IPv4's reassembly; those of IPv6's are with connection tracking's settings.
    pub fragments: FragmentLimits,
}

/// Bounds of what waits for the embedder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueLimits {
    /// Datagrams on their way out. More are dropped ([`DropReason::EgressFull`]).
    pub egress: usize,
    /// Events. More are lost and counted.
    pub events: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { egress: 16_384, events: 65_536 }
    }
}

/// Why a stack was not made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A link cannot be.
    #[error("link {position}: {invalid}")]
    Link {
        /// Its place in the configuration, from 0.
        position: usize,
        /// What is wrong.
        invalid: Invalid,
    },
    /// Two links have one name.
    #[error("two links are named `{name}`")]
    DuplicateLink {
        /// The name.
        name: String,
    },
    /// More links than a stack has ids for.
    #[error("{found} links: at most {most}")]
    TooManyLinks {
        /// Links given.
        found: usize,
        /// Links allowed.
        most: usize,
    },
    /// A route cannot be.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The rules cannot be.
    #[error(transparent)]
    Rules(#[from] RulesetError),
    /// A service cannot be.
    #[error("services: {0}")]
    Services(Invalid),
    /// Reassembly cannot have these bounds.
    #[error("fragments: {0}")]
    Fragments(Invalid),
    /// Connection tracking cannot be of that size.
    #[error("connection tracking: {0}")]
    Conntrack(#[from] hibernet_conntrack::ConfigError),
}

/// A datagram on its way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Egress {
    /// The link it leaves on.
    pub link: LinkId,
    /// The datagram, from the IP header on; on an Ethernet link the frame that holds it.
    pub datagram: Vec<u8>,
    /// What is left to the link, of what it takes ([`Stack::set_link_offloads`]). Offsets count from the first byte of
    /// `datagram`.
    pub offload: Offload,
}

/// A network stack that is open for traffic.
///
/// Datagrams go in with [`Stack::ingress`] and come out with [`Stack::egress`]; time is an argument and must not go back.
#[derive(Debug)]
pub struct Stack {
    pub(crate) links: Links,
    pub(crate) routes: RouteTable,
    pub(crate) rules: Rules,
    pub(crate) conntrack: Conntrack,
    pub(crate) fragments: Defragmenter,
    pub(crate) neighbours: Neighbours,
    pub(crate) local: Local,
    /// Set where the host behind the hooks has sockets of its own.
    pub(crate) sink: Option<Sink>,
    pub(crate) stats: Stats,
    pub(crate) events: EventQueue,
    pub(crate) egress: VecDeque<Egress>,
    pub(crate) work: VecDeque<Work>,
    pub(crate) queues: QueueLimits,
    pub(crate) ip_ids: WireChoices,
    /// Generations this stack descends from, oldest first.
    pub(crate) lineage: Vec<GenerationId>,
    /// The last time the stack was told.
    pub(crate) told: Instant,
    /// The save that the next delta continues. Of this process alone: a restored stack begins with a base.
    pub(crate) chain: Option<crate::image::DeltaBase>,
    /// Most flows one poll looks at whose time may have come. The embedder's: not saved.
    pub(crate) expiry_budget: usize,
}

/// A packet that waits for its turn.
#[derive(Debug)]
pub(crate) enum Work {
    /// Made here: on its way to OUTPUT, for the link it names if it names one.
    Output(Packet),
    /// Sent to this host by itself: on its way to PREROUTING.
    Loopback(Packet),
}

impl Stack {
    /// A stack without flows. All its keys are drawn from `entropy`, which is wiped afterwards.
    pub fn new(config: StackConfig, mut entropy: Entropy, now: Instant) -> Result<Self, ConfigError> {
        let StackConfig { links, routes, rules, conntrack, services, queues, local, fragments } = config;
        fragments.check().map_err(ConfigError::Fragments)?;
        ports_are_real(&services).map_err(ConfigError::Services)?;
        let links = checked_links(links)?;
        let routes = RouteTable::new(&links, routes)?;
        let rules = Rules::load(rules, &links)?;
        let conntrack = Conntrack::new(conntrack, &mut entropy, now)?;
        Ok(Self {
            local: Local::new(services, local, &links, &mut entropy),
            sink: None,
            links,
            routes,
            rules,
            conntrack,
            fragments: Defragmenter::new(fragments),
            stats: Stats::default(),
            events: EventQueue::new(queues.events),
            egress: VecDeque::new(),
            work: VecDeque::new(),
            queues,
            ip_ids: WireChoices::redraw(&mut entropy),
            neighbours: Neighbours::new(&mut entropy),
            lineage: Vec::new(),
            told: now,
            chain: None,
            expiry_budget: EXPIRY_BUDGET,
        })
    }

    /// The link of a name; `lo` is the loopback link.
    pub fn link(&self, name: &str) -> Option<LinkId> {
        self.links.id(name)
    }

    /// The name of a link.
    pub fn link_name(&self, link: LinkId) -> Option<&str> {
        self.links.link(link).map(|link| link.name.as_str())
    }

    /// The links as configured, addresses as they are now.
    pub fn links(&self) -> &[LinkConfig] {
        self.links.configured()
    }

    /// The routes as configured.
    pub fn routes(&self) -> &[Route] {
        self.routes.given()
    }

    /// Gives a link other addresses. Flows that masquerade behind an address it loses are forgotten.
    pub fn set_addresses(&mut self, link: LinkId, addrs: Vec<crate::Cidr>, now: Instant) -> Result<(), ConfigError> {
        let mut links = self.links.clone();
        let Some(before) = links.readdress(link, addrs) else {
            let expected = "a configured link".to_owned();
            let invalid = Invalid { field: "link".to_owned(), found: format!("{link:?}"), expected };
            return Err(ConfigError::Link { position: link.index(), invalid });
        };
        let position = link.index().saturating_sub(1);
        if let Some(config) = links.given().get(position) {
            sound(config).map_err(|invalid| ConfigError::Link { position, invalid })?;
        }
        self.routes = RouteTable::new(&links, self.routes.given().to_vec())?;
        self.links = links;
        for cidr in before {
            if !is_own(&self.links, cidr.addr()) {
                self.conntrack.address_removed(cidr.addr(), now);
            }
        }
        self.collect_conntrack_events();
        Ok(())
    }

    /// Takes what a link has received all the way, a datagram or, on an Ethernet link, a frame: what comes of it is in
    /// [`Stack::egress`] and [`Stack::next_event`].
    pub fn ingress(&mut self, link: LinkId, frame: Vec<u8>, now: Instant) {
        self.ingress_burst(link, [Ingress { frame, offload: Offload::NONE }], now);
    }

    /// The same for what a link has received at once, in order, with what it says of each. What comes of it is the same as of
    /// one by one, and comes sooner: the flows of up to 32 are looked up together.
    pub fn ingress_burst(&mut self, link: LinkId, burst: impl IntoIterator<Item = Ingress>, now: Instant) {
        self.accept_burst(link, burst, now);
    }

    /// Has TCP segments of a burst put together that are for this host and follow on each other, before any hook sees them
    /// ("generic receive offload"). Rules and connection tracking then count one packet, as the kernel's do. At first, and
    /// after a restore, they are not.
    pub fn set_link_coalescing(&mut self, link: LinkId, coalesces: bool) {
        self.links.set_coalescing(link, coalesces);
    }

    /// Says what the device behind a link takes, of what can be left undone: at first, and after a restore, nothing. Says
    /// nothing of what comes in on it.
    pub fn set_link_offloads(&mut self, link: LinkId, offloads: LinkOffloads) {
        self.links.set_offloads(link, offloads);
    }

    /// What the device behind a link takes.
    pub fn link_offloads(&self, link: LinkId) -> LinkOffloads {
        self.links.offloads(link)
    }

    /// Does what is due: expiry of flows, timers of local connections, questions to neighbours.
    pub fn poll(&mut self, now: Instant) {
        self.tell(now);
        self.conntrack.expire(now, self.expiry_budget);
        self.collect_conntrack_events();
        self.expire_fragments(now);
        self.attend_neighbours(now);
        self.local.poll(now);
        self.settle(now);
    }

    /// Bounds how many flows one poll looks at whose time may have come, and by that how long packets wait for it: 64 are some
    /// tens of microseconds. Where there are more, the next poll is due at once. At first, and after a restore, it is 65,536.
    ///
    /// Which of the flows go first that run out together is then left open: a stack and one restored from it may tell of
    /// them in another order.
    pub fn set_expiry_budget(&mut self, flows: usize) {
        self.expiry_budget = flows.max(1);
    }

    /// When [`Stack::poll`] is due next; `None` when nothing waits.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let of_tables = [self.conntrack.next_expiry(), self.fragments.next_deadline(), self.neighbours.next_deadline()];
        of_tables.into_iter().chain([self.local.next_deadline()]).flatten().min().map(|deadline| deadline.max(now))
    }

    /// The next datagram to be sent.
    ///
    /// Local connections answer a burst of [`Stack::ingress`] when it is asked for what has come of it: here, by
    /// [`Stack::poll`], or by a call on a stream. So whoever has more to take in takes it in first.
    pub fn egress(&mut self) -> Option<Egress> {
        if self.egress.is_empty() && self.local.has_touched() {
            self.local.serve_touched(self.told);
            self.settle(self.told);
        }
        self.egress.pop_front()
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<StackEvent> {
        self.collect_conntrack_events();
        self.events.pop()
    }

    /// Events that found no room, of connection tracking's too.
    pub const fn events_lost(&self) -> u64 {
        self.events.lost().saturating_add(self.conntrack.events_lost())
    }

    /// Puts another rule set in force, or changes nothing.
    pub fn load_rules(&mut self, rules: Ruleset) -> Result<(), RulesetError> {
        self.rules = Rules::load(rules, &self.links)?;
        Ok(())
    }

    /// Adds a rule at the end of a chain, or changes nothing. A standard chain that is missing is made.
    pub fn add_rule(&mut self, chain: &str, rule: Rule) -> Result<(), RulesetError> {
        self.rules = self.rules.with_rule(chain, rule, &self.links)?;
        Ok(())
    }

    /// The rules in force with their counters.
    pub const fn rules(&self) -> &Ruleset {
        self.rules.set()
    }

    /// What runs at each hook, in order.
    pub fn hooks(&self) -> Vec<HookRow> {
        self.rules.table().rows(self.rules.set())
    }

    /// Counters.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// All flows in creation order, with what remains of their times at `now`.
    pub fn flows(&self, now: Instant) -> Vec<FlowRecord> {
        let untold = now.saturating_since(self.told);
        let mut flows = self.conntrack.flows();
        flows.retain(|flow| flow.remaining > untold);
        for flow in &mut flows {
            flow.remaining = flow.remaining.saturating_sub(untold);
        }
        flows
    }

    /// Sets a value by the kernel's name: connection tracking's, with `net.netfilter.` in front or not, or one of IPv4's
    /// reassembly, `net.ipv4.ipfrag_*` ([`FragmentLimits::set`]).
    pub fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), SysctlError> {
        match name.starts_with("net.ipv4.") {
            true => self.fragments.limits_mut().set(name, value),
            false => self.conntrack.set_sysctl(name, value),
        }
    }

    /// Connection tracking, to look at.
    pub const fn conntrack(&self) -> &Conntrack {
        &self.conntrack
    }

    /// Connection tracking, to set: sysctls, deletion, flush.
    pub const fn conntrack_mut(&mut self) -> &mut Conntrack {
        &mut self.conntrack
    }

    /// The sources of wire-visible numbers by name, for tests that record and replay them.
    pub fn wire_choices(&mut self) -> [(&'static str, &mut WireChoices); 5] {
        let Self { conntrack, ip_ids, local, neighbours, .. } = self;
        let (sockets, tcp) = local.choices_mut();
        [
            ("NAT ports", conntrack.port_choices()),
            ("IP ids", ip_ids),
            ("local sockets", sockets),
            ("TCP numbers", tcp),
            ("neighbour times", neighbours.times_mut()),
        ]
    }

    /// The generations this stack descends from, oldest first.
    pub fn lineage(&self) -> &[GenerationId] {
        &self.lineage
    }

    /// Looks for every key of this stack, and for every tuple's hash, in an image. A save must have none.
    pub fn canary_scan(&self, image: &[u8]) -> CanaryReport {
        self.canary().search(image)
    }

    /// What [`Stack::canary_scan`] looks for.
    pub fn canary(&self) -> CanaryScan {
        let mut scan = CanaryScan::default();
        self.conntrack.watch(&mut scan);
        self.ip_ids.watch("IP ids", &mut scan);
        self.local.watch(&mut scan);
        self.neighbours.watch(&mut scan);
        scan
    }

    /// A one-way fingerprint of each key: equal fingerprints in two stacks would mean a shared key.
    pub fn key_fingerprints(&self) -> Vec<(&'static str, u64)> {
        self.canary().fingerprints().to_vec()
    }

    /// Takes note of the time. It never goes back.
    pub(crate) fn tell(&mut self, now: Instant) {
        self.told = self.told.max(now);
        self.conntrack.advance(self.told);
    }

    /// Moves what connection tracking has to tell into the stack's own queue, in order with everything else.
    pub(crate) fn collect_conntrack_events(&mut self) {
        while let Some(event) = self.conntrack.next_event() {
            self.events.push(StackEvent::Conntrack(event));
        }
    }
}

/// Links that can be, with distinct names.
pub(crate) fn checked_links(links: Vec<LinkConfig>) -> Result<Links, ConfigError> {
    if links.len() > MAX_LINKS {
        return Err(ConfigError::TooManyLinks { found: links.len(), most: MAX_LINKS });
    }
    for (position, link) in links.iter().enumerate() {
        sound(link).map_err(|invalid| ConfigError::Link { position, invalid })?;
        if links.iter().take(position).any(|other| other.name == link.name) {
            return Err(ConfigError::DuplicateLink { name: link.name.clone() });
        }
    }
    Ok(Links::new(links))
}

/// Most flows one poll looks at whose time may have come, until the embedder says otherwise.
pub(crate) const EXPIRY_BUDGET: usize = 65_536;

impl From<DropReason> for LocalSendError {
    fn from(reason: DropReason) -> Self {
        Self { reason }
    }
}

/// A local sender's datagram was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{}: {reason}", self.errno().name())]
pub struct LocalSendError {
    /// Why.
    pub reason: DropReason,
}

impl LocalSendError {
    /// What a socket of the kernel would report.
    pub const fn errno(&self) -> Errno {
        match self.reason {
            DropReason::NoRoute => Errno::NetworkUnreachable,
            DropReason::PacketTooBig | DropReason::TooLong => Errno::MessageSize,
            DropReason::ForkReset | DropReason::ForkSevered => Errno::ConnectionRefused,
            DropReason::SocketBufferFull | DropReason::EgressFull => Errno::Again,
            DropReason::NotIp
            | DropReason::HeaderLength
            | DropReason::Truncated
            | DropReason::HeaderChecksum
            | DropReason::ExtensionHeader
            | DropReason::Martian => Errno::Invalid,
            _ => Errno::NotPermitted,
        }
    }
}

/// Error numbers by meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Errno {
    /// `EPERM`.
    NotPermitted,
    /// `ENETUNREACH`.
    NetworkUnreachable,
    /// `EMSGSIZE`.
    MessageSize,
    /// `EAGAIN`.
    Again,
    /// `EINVAL`.
    Invalid,
    /// `EBADF`.
    BadDescriptor,
    /// `EDESTADDRREQ`.
    DestinationRequired,
    /// `EAFNOSUPPORT`.
    FamilyNotSupported,
    /// `ECONNREFUSED`.
    ConnectionRefused,
    /// `EHOSTUNREACH`.
    HostUnreachable,
    /// `EACCES`.
    Access,
    /// `EPROTO`.
    Protocol,
    /// `ENOPROTOOPT`.
    ProtocolNotAvailable,
    /// `EHOSTDOWN`.
    HostDown,
    /// `ENONET`.
    NotOnNetwork,
    /// `ECONNRESET`.
    ConnectionReset,
    /// `ETIMEDOUT`.
    TimedOut,
    /// `EPIPE`.
    BrokenPipe,
}

impl Errno {
    /// The symbol, as in `errno.h`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotPermitted => "EPERM",
            Self::NetworkUnreachable => "ENETUNREACH",
            Self::MessageSize => "EMSGSIZE",
            Self::Again => "EAGAIN",
            Self::Invalid => "EINVAL",
            Self::BadDescriptor => "EBADF",
            Self::DestinationRequired => "EDESTADDRREQ",
            Self::FamilyNotSupported => "EAFNOSUPPORT",
            Self::ConnectionRefused => "ECONNREFUSED",
            Self::HostUnreachable => "EHOSTUNREACH",
            Self::Access => "EACCES",
            Self::Protocol => "EPROTO",
            Self::ProtocolNotAvailable => "ENOPROTOOPT",
            Self::HostDown => "EHOSTDOWN",
            Self::NotOnNetwork => "ENONET",
            Self::ConnectionReset => "ECONNRESET",
            Self::TimedOut => "ETIMEDOUT",
            Self::BrokenPipe => "EPIPE",
        }
    }
}
