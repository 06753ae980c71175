//! Batches: a rule set, settings, and packets of several flows at once.

use serde_json::{Value, json};

use crate::dice::Dice;
use crate::path::{INNER, LED_PORT, PUBLIC, Path, Sent, Way};
use crate::{datagrams, tcp};

/// What is played to both sides.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    sysctl: Value,
    /// The packets in order.
    pub(crate) packets: Vec<Sent>,
}

/// What the router does besides forwarding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    /// Nothing.
    Plain,
    /// It drops what is INVALID, or new from outside.
    Firewall,
    /// It masquerades, and leads a port inside.
    Nat,
}

impl Batch {
    /// The batch of that number, with so many packets at most.
    pub(crate) fn new(seed: u64, number: u64, packets: usize) -> Self {
        let mut dice = Dice::new(seed, number);
        let kind = dice.pick(&[Kind::Plain, Kind::Firewall, Kind::Nat, Kind::Nat]);
        let sysctl = match dice.below(8) {
            0 => json!({"nf_conntrack_tcp_be_liberal": 1}),
            1 => json!({"nf_conntrack_tcp_loose": 0}),
            2 => json!({"nf_conntrack_tcp_ignore_invalid_rst": 1, "nf_conntrack_tcp_max_retrans": 1}),
            3 => json!({"nf_conntrack_checksum": 0}),
            _ => json!({}),
        };
        let mut flows: Vec<std::vec::IntoIter<Sent>> = Vec::new();
        let mut port = 20_000;
        let mut mixed = Vec::new();
        while mixed.len() < packets {
            while flows.len() < FLOWS_AT_ONCE {
                port += 1;
                flows.push(flow(&mut dice, kind, port).into_iter());
            }
            let at = dice.below(flows.len() as u32) as usize;
            match flows[at].next() {
                Some(sent) => mixed.push(sent),
                None => drop(flows.swap_remove(at)),
            }
        }
        Self { name: format!("seed_{seed}_batch_{number}"), kind, sysctl, packets: mixed }
    }

    /// The same with other packets.
    pub(crate) fn with(&self, packets: Vec<Sent>) -> Self {
        Self { packets, ..self.clone() }
    }

    /// As a scenario file has it.
    pub(crate) fn scenario(&self) -> Value {
        let steps: Vec<_> = self.packets.iter().map(|Sent { dev, line }| json!({"dev": dev, "send": line})).collect();
        let policy = if self.kind == Kind::Firewall { json!({"forward": "drop"}) } else { json!({}) };
        json!({
            "name": self.name, "title": "found by the differential fuzz", "tags": ["fuzz"],
            "sysctl": self.sysctl, "rules": rules(self.kind), "policy": policy, "steps": steps,
        })
    }
}

fn flow(dice: &mut Dice, kind: Kind, port: u16) -> Vec<Sent> {
    let way = match kind {
        Kind::Nat => dice.pick(&[Way::Masqueraded, Way::Masqueraded, Way::LedIn, Way::Hairpin]),
        Kind::Plain => dice.pick(&[Way::Out, Way::Out, Way::In]),
        Kind::Firewall => dice.pick(&[Way::Out, Way::Out, Way::Out, Way::In]),
    };
    let path = Path { way, ipv6: dice.one_in(3), port };
    match dice.below(20) {
        0..=1 => datagrams::udp(dice, path),
        2..=4 => datagrams::sctp(dice, path),
        5 => {
            // No port leads an echo request inside.
            let way = if kind == Kind::Nat { Way::Masqueraded } else { way };
            datagrams::icmp(dice, Path { way, ..path })
        }
        _ => tcp::life(dice, path),
    }
}

fn rules(kind: Kind) -> Value {
    match kind {
        Kind::Plain => json!([]),
        Kind::Firewall => json!([
            {"chain": "forward", "match": {"ctstate": ["invalid"]}, "action": "drop"},
            {"chain": "forward", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
            {"chain": "forward", "match": {"iif": "in"}, "action": "accept"},
        ]),
        Kind::Nat => {
            let mut rules = Vec::new();
            for (public, inner) in [(PUBLIC[0], format!("{}:80", INNER[0])), (PUBLIC[1], format!("[{}]:80", INNER[1]))]
            {
                for proto in [json!("tcp"), json!("udp"), json!(132)] {
                    let matches = json!({"daddr": public, "proto": proto, "dport": LED_PORT});
                    rules.push(json!({"chain": "dstnat", "match": matches, "action": {"dnat": inner}}));
                }
            }
            rules.push(json!({"chain": "srcnat", "match": {"iif": "in", "oif": "in"}, "action": "masquerade"}));
            rules.push(json!({"chain": "srcnat", "match": {"oif": "out"}, "action": "masquerade"}));
            Value::Array(rules)
        }
    }
}

const FLOWS_AT_ONCE: usize = 6;
