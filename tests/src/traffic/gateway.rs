//! The stack that the traffic goes through.

use hibernet_conntrack::{Config, EarlyDrop};
use hibernet_netstack::{
    Cidr, Decoded, LinkConfig, LocalServices, Medium, RestoreError, RestorePolicy, RestoreReport, Route, Ruleset,
    Stack, StackConfig, Supplied,
};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, GenerationId, Instant};

/// The generation under which tests save: fixed, so that images can be compared.
pub const GENERATION: GenerationId = GenerationId([7; 16]);

/// A router between `in` (masqueraded), `dmz` (routed as it is) and `out`, closed but for what its rules name.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Flows its table has room for.
    pub capacity: u32,
    /// Whom a full table lets go.
    pub early_drop: EarlyDrop,
    /// TCP flows of one source that may be half open; 0 sets no limit.
    pub half_open_limit: u32,
    /// Whether TCP connections to the gateway itself are answered. A restore resets those.
    pub tcp_echo: bool,
    /// The rules.
    pub rules: &'static str,
}

impl Gateway {
    /// A gateway with room for so many flows, which makes room for new ones when it is full.
    pub const fn with_room_for(capacity: u32) -> Self {
        Self { capacity, early_drop: EarlyDrop::Lru, half_open_limit: 0, tcp_echo: false, rules: RULES }
    }

    /// A stack of this kind with keys drawn from `seed`.
    pub fn open(&self, seed: u64) -> Stack {
        let entropy = Entropy::from_test_seed(seed);
        Stack::new(self.config(), entropy, START).expect("the configuration is sound")
    }

    /// What the stack is made from.
    pub fn config(&self) -> StackConfig {
        let Self { capacity, early_drop, half_open_limit, tcp_echo, rules } = *self;
        let mut conntrack = Config { capacity, early_drop, half_open_limit, ..Config::default() };
        for (name, value) in [("max", capacity), ("buckets", capacity), ("acct", 1)] {
            conntrack.sysctls.set(&format!("nf_conntrack_{name}"), &value.to_string()).expect("the kernel knows it");
        }
        StackConfig {
            links: vec![
                link("in", ["10.0.0.1/24", "fd00:10::1/64"]),
                link("out", ["203.0.113.1/24", "2001:db8:ff::1/64"]),
                link("dmz", ["198.18.0.1/24", "2001:db8:18::1/64"]),
            ],
            routes: vec![
                Route { destination: Cidr::all_v4(), via: None, link: "out".into() },
                Route { destination: Cidr::all_v6(), via: None, link: "out".into() },
            ],
            rules: Ruleset::from_json(rules).expect("the rules can be read"),
            conntrack,
            services: LocalServices { udp_echo: Some(7), tcp_echo: tcp_echo.then_some(7) },
            ..StackConfig::default()
        }
    }
}

/// The stack of an image, with keys drawn from `seed`, and what the restore says of itself.
pub fn restored(image: &[u8], seed: u64, now: Instant) -> Result<(Stack, RestoreReport), RestoreError> {
    let mut entropy = Entropy::from_test_seed(seed);
    let validated = Decoded::open(image, &Limits::default())?.validate(&mut entropy, now)?;
    Ok(validated.rehash(entropy, RestorePolicy::default())?.open(Supplied::default()))
}

fn link(name: &str, addrs: [&str; 2]) -> LinkConfig {
    let addrs = addrs.iter().map(|addr| addr.parse().expect("an address with its network")).collect();
    LinkConfig { name: name.into(), mtu: 1500, addrs, medium: Medium::Ip }
}

/// When every stack of the tests begins: not at zero, where mistakes cancel out.
pub const START: Instant = Instant::from_millis(1_000_003);

const RULES: &str = r#"{"policy": {"input": "drop", "forward": "drop"}, "rules": [
    {"chain": "raw_prerouting", "match": {"iif": "in", "saddr": "10.0.0.32/27"}, "action": {"zone_orig": 3}},
    {"chain": "raw_prerouting", "match": {"proto": "udp", "dport": 123}, "action": "notrack"},
    {"chain": "input", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
    {"chain": "input", "match": {"ctstate": ["new"], "proto": "icmp"}, "action": "accept"},
    {"chain": "input", "match": {"ctstate": ["new"], "proto": "icmp6"}, "action": "accept"},
    {"chain": "input", "match": {"iif": "in", "ctstate": ["new"], "proto": "udp"}, "action": "accept"},
    {"chain": "input", "match": {"iif": "in", "proto": "tcp", "tcpflags_syn_only": true}, "action": "accept"},
    {"chain": "forward", "match": {"dport": 443}, "action": {"ctmark": 7}},
    {"chain": "forward", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
    {"chain": "forward", "match": {"proto": "tcp", "dport": 25}, "action": "reject-tcp"},
    {"chain": "forward", "match": {"proto": "udp", "dport": 25}, "action": "reject"},
    {"chain": "forward", "match": {"ctstate": ["invalid"]}, "action": "drop"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "in", "proto": "tcp", "tcpflags_syn_only": true}, "action": "accept"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "in", "proto": "udp"}, "action": "accept"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "in", "proto": "icmp"}, "action": "accept"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "in", "proto": "icmp6"}, "action": "accept"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "in", "proto": "gre"}, "action": "accept"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "dmz", "oif": "out"}, "action": "accept"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "out", "oif": "in", "proto": "tcp", "dport": 80, "tcpflags_syn_only": true}, "action": "accept"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "out", "oif": "in", "proto": "udp", "dport": 53}, "action": "accept"},
    {"chain": "dstnat", "match": {"iif": "out", "proto": "tcp", "dport": 8080, "family": "ipv4"}, "action": {"dnat": "10.0.0.5:80"}},
    {"chain": "dstnat", "match": {"iif": "out", "proto": "tcp", "dport": 8080, "family": "ipv6"}, "action": {"dnat": "[fd00:10::5]:80"}},
    {"chain": "dstnat", "match": {"iif": "out", "proto": "udp", "dport": 8080, "family": "ipv4"}, "action": {"dnat": "10.0.0.5-10.0.0.9:53"}},
    {"chain": "srcnat", "match": {"oif": "out", "saddr": "10.0.0.64/26"}, "action": {"snat": "203.0.113.20-203.0.113.29"}},
    {"chain": "srcnat", "match": {"oif": "out", "saddr": "10.0.0.0/24", "proto": "udp"}, "action": "masquerade fully-random"},
    {"chain": "srcnat", "match": {"oif": "out", "saddr": "fd00:10::/64", "proto": "udp"}, "action": "masquerade fully-random"},
    {"chain": "srcnat", "match": {"oif": "out", "saddr": "10.0.0.0/24"}, "action": "masquerade"},
    {"chain": "srcnat", "match": {"oif": "out", "saddr": "fd00:10::/64"}, "action": "masquerade"}]}"#;
