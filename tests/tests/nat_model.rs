//! NAT against a model that knows nothing of tables: a list of flows, and the rules by which netfilter chooses ports.

use std::net::{IpAddr, SocketAddr};

use hibernet_conntrack::parse;
use hibernet_netstack::Stack;
use hibernet_snapshot::Instant;
use hibernet_tests::notation::build;
use hibernet_tests::traffic::{GENERATION, Gateway, START, restored};
use proptest::prelude::*;

/// What the rules do with a flow, by the port it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    Keep,
    Random,
    Narrow,
}

impl Rule {
    const fn port(self) -> u16 {
        match self {
            Self::Keep => 53,
            Self::Random => 80,
            Self::Narrow => 443,
        }
    }

    /// Ports the rule may give to a flow from `own`.
    fn allows(self, own: u16, port: u16) -> bool {
        match self {
            Self::Narrow => (2000..=2003).contains(&port),
            // A privileged port stays privileged.
            Self::Keep | Self::Random if own < 512 => (1..512).contains(&port),
            Self::Keep | Self::Random if own < 1024 => (600..1024).contains(&port),
            Self::Keep | Self::Random => port >= 1024,
        }
    }
}

const RULES: &str = r#"{"policy": {"input": "drop", "forward": "drop"}, "rules": [
    {"chain": "forward", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
    {"chain": "forward", "match": {"ctstate": ["new"], "iif": "in"}, "action": "accept"},
    {"chain": "srcnat", "match": {"oif": "out", "dport": 53}, "action": "masquerade"},
    {"chain": "srcnat", "match": {"oif": "out", "dport": 80}, "action": "masquerade fully-random"},
    {"chain": "srcnat", "match": {"oif": "out", "dport": 443}, "action": {"masquerade": "2000-2003"}}]}"#;

/// A live flow: who asks whom, and as whom the other side knows the asker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flow {
    proto: &'static str,
    client: SocketAddr,
    server: SocketAddr,
    outside: SocketAddr,
}

#[derive(Clone, Debug)]
enum Step {
    Open { proto: &'static str, v6: bool, host: u8, port: u16, server: u8, rule: Rule },
    Answer(prop::sample::Index),
    Again(prop::sample::Index),
    Restore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rule = prop_oneof![2 => Just(Rule::Keep), 1 => Just(Rule::Random), 1 => Just(Rule::Narrow)];
    let port = prop_oneof![4 => 40_000u16..40_003, 1 => Just(2001u16), 1 => Just(123u16), 1 => Just(700u16)];
    let proto = prop_oneof![Just("udp"), Just("tcp")];
    let open = (proto, any::<bool>(), 2u8..6, port, 0u8..2, rule)
        .prop_map(|(proto, v6, host, port, server, rule)| Step::Open { proto, v6, host, port, server, rule });
    let step = prop_oneof![
        6 => open,
        4 => any::<prop::sample::Index>().prop_map(Step::Answer),
        1 => any::<prop::sample::Index>().prop_map(Step::Again),
        1 => Just(Step::Restore),
    ];
    prop::collection::vec(step, 1..120)
}

struct Model {
    stack: Stack,
    flows: Vec<Flow>,
    restores: u64,
}

impl Model {
    fn new() -> Self {
        let stack = Gateway { rules: RULES, ..Gateway::with_room_for(512) }.open(1);
        Self { stack, flows: Vec::new(), restores: 0 }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Open { proto, v6, host, port, server, rule } => {
                let (inside, outside) = if *v6 {
                    (format!("[fd00:10::{host}]"), format!("[2001:db8:1::1{server}]"))
                } else {
                    (format!("10.0.0.{host}"), format!("198.51.100.1{server}"))
                };
                let client = format!("{inside}:{port}").parse().unwrap();
                let server = format!("{outside}:{}", rule.port()).parse().unwrap();
                self.open(proto, client, server, *rule);
            }
            Step::Answer(index) if !self.flows.is_empty() => {
                let Flow { proto, client, server, outside } = *index.get(&self.flows);
                let seen = self.pass("out", proto, server, outside, "SA seq=9 ack=2");
                assert_eq!(seen, Some((server, client)), "an answer comes back to its own client");
            }
            Step::Again(index) if !self.flows.is_empty() => {
                let Flow { proto, client, server, outside } = *index.get(&self.flows);
                let seen = self.pass("in", proto, client, server, "S seq=1");
                assert_eq!(seen, Some((outside, server)), "a flow keeps its translation");
            }
            Step::Restore => {
                self.restores += 1;
                let image = self.stack.save(GENERATION, START).unwrap();
                self.stack = restored(&image, 100 + self.restores, START).unwrap().0;
                assert_eq!(self.stack.flows(START).len(), self.flows.len());
            }
            Step::Answer(_) | Step::Again(_) => {}
        }
    }

    fn open(&mut self, proto: &'static str, client: SocketAddr, server: SocketAddr, rule: Rule) {
        if self.flows.iter().any(|flow| (flow.proto, flow.client, flow.server) == (proto, client, server)) {
            return;
        }
        let own: IpAddr = if client.is_ipv4() { "203.0.113.1" } else { "2001:db8:ff::1" }.parse().unwrap();
        let free = |flows: &[Flow], port: u16| {
            let outside = SocketAddr::new(own, port);
            !flows.iter().any(|flow| (flow.proto, flow.outside, flow.server) == (proto, outside, server))
        };
        // A socket is known outside by one port, where the rule allows it and it is free (RFC 4787, REQ-1); else its own.
        let mapped = self.flows.iter().rev().filter(|flow| (flow.proto, flow.client) == (proto, client)).take(16);
        let narrow = |port: u16| rule != Rule::Narrow || rule.allows(client.port(), port);
        let mapped = mapped.map(|flow| flow.outside.port()).find(|port| narrow(*port));
        let expected = match rule {
            Rule::Random => None,
            _ => mapped
                .filter(|port| free(&self.flows, *port))
                .or_else(|| Some(client.port()).filter(|port| narrow(*port) && free(&self.flows, *port))),
        };
        let Some((outside, towards)) = self.pass("in", proto, client, server, "S seq=1") else {
            assert_eq!(rule, Rule::Narrow, "only a narrow range is ever exhausted");
            assert!((2000..=2003).all(|port| !free(&self.flows, port)), "a free port was not found");
            return;
        };
        assert_eq!((towards, outside.ip()), (server, own));
        let port = outside.port();
        assert!(free(&self.flows, port), "{port} belongs to another flow to {server}");
        match expected {
            Some(expected) => assert_eq!(port, expected, "{client} to {server}"),
            None => assert!(rule.allows(client.port(), port), "{rule:?} gave {port} to {client}"),
        }
        self.flows.push(Flow { proto, client, server, outside });
    }

    /// Source and destination with which a packet leaves; `None` if it does not.
    fn pass(
        &mut self,
        link: &str,
        proto: &str,
        src: SocketAddr,
        dst: SocketAddr,
        flags: &str,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let line =
            if proto == "tcp" { format!("tcp {src} > {dst} {flags}") } else { format!("udp {src} > {dst} len=3") };
        self.stack.ingress(self.stack.link(link).unwrap(), build(&line, None).unwrap(), START);
        while self.stack.next_event().is_some() {}
        let sent = self.stack.egress()?;
        assert!(self.stack.egress().is_none(), "{line}");
        assert_ne!(self.stack.link_name(sent.link), Some(link), "{line}");
        let parsed = parse(&sent.datagram).unwrap();
        let l4 = parsed.l4(&sent.datagram);
        let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        Some((SocketAddr::new(parsed.src, port(0)), SocketAddr::new(parsed.dst, port(2))))
    }

    /// No two live flows are answered with the same packet, and the stack has the flows that the model has.
    fn check(&self) {
        let flows = self.stack.flows(Instant::ZERO);
        assert_eq!(flows.len(), self.flows.len());
        for (ours, flow) in flows.iter().zip(&self.flows) {
            assert_eq!((ours.orig.src, ours.orig.sport), (flow.client.ip(), flow.client.port()));
            assert_eq!((ours.reply.dst, ours.reply.dport), (flow.outside.ip(), flow.outside.port()));
        }
        let mut replies: Vec<_> = flows.iter().map(|flow| flow.reply).collect();
        replies.sort();
        replies.dedup();
        assert_eq!(replies.len(), flows.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn nat_chooses_as_the_model_does_and_answers_find_their_clients(steps in steps()) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step);
        }
        model.check();
    }
}

#[test]
fn a_range_of_four_ports_serves_four_clients_of_one_server_and_no_fifth() {
    let mut model = Model::new();
    let server: SocketAddr = "198.51.100.10:443".parse().unwrap();
    for host in 2..10 {
        model.open("udp", format!("10.0.0.{host}:40000").parse().unwrap(), server, Rule::Narrow);
    }
    assert_eq!(model.flows.len(), 4);
    model.open("udp", "10.0.0.9:40000".parse().unwrap(), "198.51.100.11:443".parse().unwrap(), Rule::Narrow);
    assert_eq!(model.flows.len(), 5, "towards another server the ports are free");
    model.check();
}
