//! A stack for tests, and traces as text: `check(rules, trace)`.
//!
//! The stack is the one of the kernel recordings: link `in` with 10.0.0.1/24 and fd00:10::1/64, link `out` with
//! 203.0.113.1/24 and 2001:db8:ff::1/64 and the default routes. Ends are written with names, so that one trace serves both
//! IP versions.

use std::net::{IpAddr, SocketAddr};

use hibernet_snapshot::{Entropy, Instant};

use crate::test_packets::{icmp_echo, tcp, text, udp};
use crate::{Cidr, DropEvent, Egress, LinkConfig, LocalServices, Route, Ruleset, Stack, StackConfig, StackEvent};

/// Names and their addresses in IPv4 and IPv6.
const NAMES: [(&str, &str, &str); 8] = [
    ("client", "10.0.0.2", "fd00:10::2"),
    ("other", "10.0.0.3", "fd00:10::3"),
    ("inner", "10.0.0.5", "fd00:10::5"),
    ("gateway", "10.0.0.1", "fd00:10::1"),
    ("server", "198.51.100.10", "2001:db8:1::10"),
    ("server2", "198.51.100.11", "2001:db8:1::11"),
    ("public", "203.0.113.1", "2001:db8:ff::1"),
    ("neighbour", "203.0.113.9", "2001:db8:ff::9"),
];

/// The configuration of the recordings.
pub(crate) fn config(rules: Ruleset) -> StackConfig {
    let link = |name: &str, addrs: [&str; 2]| LinkConfig {
        name: name.into(),
        mtu: 1500,
        addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
        medium: crate::Medium::Ip,
    };
    StackConfig {
        links: vec![link("in", ["10.0.0.1/24", "fd00:10::1/64"]), link("out", ["203.0.113.1/24", "2001:db8:ff::1/64"])],
        routes: vec![
            Route { destination: Cidr::all_v4(), via: None, link: "out".into() },
            Route { destination: Cidr::all_v6(), via: None, link: "out".into() },
        ],
        rules,
        conntrack: hibernet_conntrack::Config { capacity: 1024, ..small_table() },
        services: LocalServices { udp_echo: Some(7), tcp_echo: Some(7) },
        ..StackConfig::default()
    }
}

fn small_table() -> hibernet_conntrack::Config {
    let mut config = hibernet_conntrack::Config::default();
    config.sysctls.set("nf_conntrack_max", "1024").unwrap();
    config.sysctls.set("nf_conntrack_acct", "1").unwrap();
    config
}

/// The stack of the recordings under these rules.
pub(crate) fn stack(rules: &str) -> Stack {
    let rules = if rules.is_empty() { Ruleset::open() } else { Ruleset::from_json(rules).unwrap() };
    Stack::new(config(rules), Entropy::from_test_seed(1), Instant::ZERO).unwrap()
}

/// One of the two IP versions, for names.
#[derive(Clone, Copy)]
pub(crate) enum Version {
    V4,
    V6,
}

impl Version {
    /// The address of a name, or what is written as an address.
    pub(crate) fn addr(self, name: &str) -> IpAddr {
        let known = NAMES.iter().find(|(known, _, _)| *known == name);
        let text = known.map_or(name, |(_, v4, v6)| match self {
            Self::V4 => v4,
            Self::V6 => v6,
        });
        text.parse().unwrap_or_else(|_| panic!("no address: {name}"))
    }

    fn end(self, text: &str) -> String {
        let (name, port) = text.rsplit_once(':').unwrap_or_else(|| panic!("no port: {text}"));
        SocketAddr::new(self.addr(name), port.parse().unwrap()).to_string()
    }

    /// The text with names for addresses.
    pub(crate) fn named(self, text: &str) -> String {
        let mut names = NAMES;
        names.sort_by_key(|(_, v4, v6)| match self {
            Self::V4 => core::cmp::Reverse(v4.len()),
            Self::V6 => core::cmp::Reverse(v6.len()),
        });
        let mut text = text.to_owned();
        for (name, v4, v6) in names {
            text = match self {
                Self::V4 => text.replace(v4, name),
                Self::V6 => text.replace(&format!("[{v6}]"), name).replace(v6, name),
            };
        }
        text
    }

    /// A datagram from words: `tcp client:1000 > server:80 S`, `udp client:1 > server:2`, `ping client > server id=1`.
    pub(crate) fn datagram(self, words: &str) -> Vec<u8> {
        let parts: Vec<&str> = words.split_whitespace().collect();
        let value = |key: &str| parts.iter().find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
        let number = |key: &str| value(key).map_or(0, |value| value.parse().unwrap());
        let mut bytes = match parts.as_slice() {
            ["tcp", src, ">", dst, flags, ..] => {
                let payload = vec![b'x'; number("len") as usize];
                tcp(&self.end(src), &self.end(dst), flags, number("seq"), number("ack"), &payload)
            }
            ["udp", src, ">", dst, ..] => udp(&self.end(src), &self.end(dst), &vec![b'x'; number("len") as usize]),
            ["ping", src, ">", dst, ..] => {
                let id = u16::try_from(number("id")).unwrap();
                icmp_echo(&self.addr(src).to_string(), &self.addr(dst).to_string(), id, 1)
            }
            _ => panic!("no datagram: {words}"),
        };
        if let Some(ttl) = value("ttl") {
            let at = if bytes[0] >> 4 == 4 { 8 } else { 7 };
            bytes[at] = ttl.parse().unwrap();
            crate::test_packets::fill_header_checksum(&mut bytes);
        }
        bytes
    }
}

/// Plays a trace on both IP versions. Each line is `LINK: DATAGRAM`; the lines it leads to, indented, are what leaves
/// (`LINK: DATAGRAM`) and what is dropped (`drop REASON`). They are compared with those in the trace.
pub(crate) fn check(rules: &str, trace: &str) {
    for version in [Version::V4, Version::V6] {
        let mut stack = stack(&rules.replace("FAMILY", if matches!(version, Version::V4) { "ipv4" } else { "ipv6" }));
        let mut happened = String::new();
        let lines: Vec<&str> = trace.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
        let indent = lines.iter().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
        for line in lines.iter().map(|line| &line[indent..]).filter(|line| !line.starts_with(' ')) {
            happened.push_str(line);
            happened.push('\n');
            let (link, words) = line.split_once(": ").unwrap();
            play(&mut stack, version, link, words);
            for event in outcome(&mut stack, version) {
                happened.push_str(&format!("  {event}\n"));
            }
        }
        let expected: String = lines.iter().map(|line| format!("{}\n", &line[indent..])).collect();
        let name = if matches!(version, Version::V4) { "IPv4" } else { "IPv6" };
        assert_eq!(happened, expected, "on {name}, happened on the left");
    }
}

/// One line of a trace.
pub(crate) fn play(stack: &mut Stack, version: Version, link: &str, words: &str) {
    let link = stack.link(link).unwrap();
    stack.ingress(link, version.datagram(words), Instant::ZERO);
}

/// What came of it.
pub(crate) fn outcome(stack: &mut Stack, version: Version) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(event) = stack.next_event() {
        if let StackEvent::Drop(DropEvent { reason, .. }) = event {
            lines.push(format!("drop {reason}"));
        }
    }
    while let Some(Egress { link, datagram, .. }) = stack.egress() {
        let name = stack.link_name(link).unwrap();
        lines.push(format!("{name}: {}", version.named(&text(&datagram))));
    }
    lines
}
