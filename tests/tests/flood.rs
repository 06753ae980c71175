//! A flood of SYNs at a full table: who is connected stays so, and who wants to connect can.
//!
//! 100,000 SYNs in ten simulated seconds go through a router whose table has room for 8,192 flows, and which picks up
//! nothing in the middle of a connection: a client whose flow is pushed out between its SYN and its ACK cannot go on by luck.

use std::collections::BTreeMap;
use std::time::Duration;

use hibernet_conntrack::{Config, EarlyDrop, parse};
use hibernet_netstack::{Cidr, DropReason, LinkConfig, Medium, Route, Ruleset, Stack, StackConfig, StackEvent};
use hibernet_snapshot::{Entropy, Instant};
use hibernet_tests::notation::build;

/// Flows the table has room for.
const ROOM: u32 = 8192;
/// SYNs of the flood, one every tick.
const FLOOD: u64 = 100_000;
const TICK: Duration = Duration::from_micros(100);
/// Honest clients, each one some time within the first seven seconds.
const CLIENTS: u64 = 100;
/// Connections that are open before the flood; they speak every half second.
const OPEN: u64 = 20;
/// From the router to a host and back.
const ROUND_TRIP: Duration = Duration::from_millis(60);
/// How long a client waits before it sends its SYN again (RFC 6298, section 2).
const RETRANSMIT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(3);
const START: Instant = Instant::from_secs(100);

/// A router that lets connections from `out` to the servers behind `in`.
fn router(half_open_limit: u32) -> Stack {
    let link = |name: &str, addr: &str| LinkConfig {
        name: name.into(),
        mtu: 1500,
        addrs: vec![addr.parse().unwrap()],
        medium: Medium::Ip,
    };
    let mut conntrack = Config { capacity: ROOM, early_drop: EarlyDrop::Lru, half_open_limit, ..Config::default() };
    conntrack.sysctls.set("nf_conntrack_max", &ROOM.to_string()).unwrap();
    conntrack.sysctls.set("nf_conntrack_tcp_loose", "0").unwrap();
    let rules = r#"{"policy": {"forward": "drop"}, "rules": [
        {"chain": "forward", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
        {"chain": "forward", "match": {"iif": "out", "ctstate": ["new"], "proto": "tcp"}, "action": "accept"}]}"#;
    let config = StackConfig {
        links: vec![link("in", "10.0.0.1/24"), link("out", "203.0.113.1/24")],
        routes: vec![Route { destination: Cidr::all_v4(), via: None, link: "out".into() }],
        rules: Ruleset::from_json(rules).unwrap(),
        conntrack,
        ..StackConfig::default()
    };
    Stack::new(config, Entropy::from_test_seed(1), START).unwrap()
}

/// What a host puts on a wire, and when.
struct Network {
    stack: Stack,
    now: Instant,
    under_way: BTreeMap<(Instant, u64), (&'static str, String)>,
    sent: u64,
    /// By client: when its first SYN left, and when its handshake was through at the server.
    clients: BTreeMap<u64, (Instant, Option<Instant>)>,
    /// By connection: segments that came through inward and outward.
    spoken: BTreeMap<u64, [u32; 2]>,
    drops: BTreeMap<DropReason, u64>,
}

impl Network {
    fn new(half_open_limit: u32) -> Self {
        let (stack, now) = (router(half_open_limit), START);
        let (clients, spoken, drops) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { stack, now, under_way: BTreeMap::new(), sent: 0, clients, spoken, drops }
    }

    /// Something will arrive at the router.
    fn later(&mut self, wait: Duration, link: &'static str, line: String) {
        self.sent += 1;
        self.under_way.insert((self.now.saturating_add(wait), self.sent), (link, line));
    }

    /// Lets arrive what is due.
    fn run_until(&mut self, until: Instant) {
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= until) {
            let ((at, _), (link, line)) = entry.remove_entry();
            self.now = at;
            if line.starts_with("tcp") {
                self.arrive(link, &build(&line, None).unwrap());
            } else {
                self.retry(line.parse().unwrap());
            }
        }
        self.now = until;
    }

    fn arrive(&mut self, link: &str, datagram: &[u8]) {
        let link = self.stack.link(link).unwrap();
        self.stack.ingress(link, datagram.to_vec(), self.now);
        while let Some(event) = self.stack.next_event() {
            if let StackEvent::Drop(drop) = event {
                *self.drops.entry(drop.reason).or_default() += 1;
            }
        }
        while let Some(sent) = self.stack.egress() {
            self.heard(&sent.datagram);
        }
    }

    /// A host gets a segment from the router.
    fn heard(&mut self, datagram: &[u8]) {
        let parsed = parse(datagram).unwrap();
        let l4 = parsed.l4(datagram);
        let port = |at: usize| u64::from(u16::from_be_bytes([l4[at], l4[at + 1]]));
        let inward = parsed.dst.to_string().starts_with("10.");
        let (client, server) = if inward { (port(0), port(2)) } else { (port(2), port(0)) };
        match (server, l4[13]) {
            // The flood's server answers each SYN, and nobody is there to hear it.
            (80, _) => {}
            // Open connections: the other end answers what is said.
            (8080, _) if parsed.end > 40 => {
                self.spoken.entry(client).or_default()[usize::from(!inward)] += 1;
            }
            (443, SYN) => self.later(ROUND_TRIP, "in", handshake(client, 1)),
            (443, SYN_ACK) => self.later(ROUND_TRIP, "out", handshake(client, 2)),
            (443, ACK) => {
                let now = self.now;
                let (_, done) = self.clients.get_mut(&client).unwrap();
                *done = done.or(Some(now));
            }
            _ => {}
        }
    }

    /// A client sends its SYN, and again if nothing has come of it.
    fn retry(&mut self, client: u64) {
        let now = self.now;
        let (_, done) = self.clients.entry(client).or_insert((now, None));
        if done.is_none() {
            self.later(Duration::ZERO, "out", handshake(client, 0));
            self.later(RETRANSMIT, "out", client.to_string());
        }
    }

    /// Shakes hands for the connections that are open from the start.
    fn open(&mut self) {
        for number in 0..OPEN {
            let client = 2000 + number;
            for (link, line) in [
                ("out", format!("tcp 192.0.2.9:{client} > 10.0.0.5:8080 S seq=99")),
                ("in", format!("tcp 10.0.0.5:8080 > 192.0.2.9:{client} SA seq=499 ack=100")),
                ("out", format!("tcp 192.0.2.9:{client} > 10.0.0.5:8080 A seq=100 ack=500")),
            ] {
                self.arrive(link, &build(&line, None).unwrap());
            }
        }
    }

    /// The open connections speak both ways, `round` for the time.
    fn speak(&mut self, round: u64) {
        let (ours, theirs) = (100 + round * 10, 500 + round * 10);
        for number in 0..OPEN {
            let client = 2000 + number;
            let ask = format!("tcp 192.0.2.9:{client} > 10.0.0.5:8080 PA seq={ours} ack={theirs} len=10");
            let answer = format!("tcp 10.0.0.5:8080 > 192.0.2.9:{client} PA seq={theirs} ack={} len=10", ours + 10);
            self.later(Duration::ZERO, "out", ask);
            self.later(ROUND_TRIP, "in", answer);
        }
    }

    /// Ten seconds of flood: `source` says who sends the SYN of that number, and from which port.
    fn flood(&mut self, source: impl Fn(u64) -> ([u8; 4], u16)) {
        self.open();
        for client in 0..CLIENTS {
            self.later(Duration::from_millis(70 * client), "out", (3000 + client).to_string());
        }
        for number in 0..FLOOD {
            self.run_until(START.saturating_add(TICK * number as u32));
            if number.is_multiple_of(5000) {
                self.speak(number / 5000);
            }
            let (source, port) = source(number);
            self.arrive("out", &syn(source, port));
        }
        self.run_until(START.saturating_add(Duration::from_secs(11)));
    }

    /// Who was connected has been heard in every round, and who wanted to connect has, soon enough.
    fn check(&self) {
        assert_eq!(self.spoken.len(), OPEN as usize);
        for (client, spoken) in &self.spoken {
            assert_eq!(*spoken, [20, 20], "connection {client}");
        }
        assert_eq!(self.clients.len(), CLIENTS as usize);
        for (client, (from, done)) in &self.clients {
            let took = done.unwrap_or_else(|| panic!("client {client} never connects")).saturating_since(*from);
            assert!(took <= PATIENCE, "client {client} needs {took:?}");
        }
        let counted: BTreeMap<_, _> = self.stack.stats().drops().collect();
        assert_eq!(counted, self.drops);
        assert_eq!(self.stack.events_lost(), 0);
    }
}

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// The segments of an honest client's handshake, by number.
fn handshake(client: u64, number: usize) -> String {
    match number {
        0 => format!("tcp 192.0.2.7:{client} > 10.0.0.5:443 S seq=1000"),
        1 => format!("tcp 10.0.0.5:443 > 192.0.2.7:{client} SA seq=5000 ack=1001"),
        _ => format!("tcp 192.0.2.7:{client} > 10.0.0.5:443 A seq=1001 ack=5001"),
    }
}

/// A SYN of the flood, with sound checksums.
fn syn(source: [u8; 4], port: u16) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    bytes.extend(source);
    bytes.extend([10, 0, 0, 5]);
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = |bytes: &[u8], start: u32| {
        let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum = words.fold(start, |sum, word| sum + word);
        let folded = (sum & 0xffff) + (sum >> 16);
        (!(folded + (folded >> 16)) as u16).to_be_bytes()
    };
    let (ip, tcp) = (sum(&bytes[..20], 0), sum(&bytes[12..], 6 + 20));
    bytes[10..12].copy_from_slice(&ip);
    bytes[36..38].copy_from_slice(&tcp);
    bytes
}

/// An address and port that hardly come twice.
fn spread(number: u64) -> ([u8; 4], u16) {
    let word = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    let [_, _, _, _, a, b, c, d] = word.to_be_bytes();
    ([198, 18 + (a & 1), b, c], 1024 + u16::from(d) * 200)
}

/// One address, and every port in turn.
fn one_source(number: u64) -> ([u8; 4], u16) {
    ([198, 51, 100, 66], 1024 + (number % 60_000) as u16)
}

#[test]
fn a_flood_from_everywhere_breaks_nothing_and_shuts_nobody_out() {
    let mut network = Network::new(0);
    network.flood(spread);
    network.check();
    let table = network.stack.conntrack();
    assert_eq!((table.len(), network.drops.len()), (ROOM, 0), "{:?}", network.drops);
    assert!(table.totals().early_drop > FLOOD - u64::from(ROOM) - 100, "{:?}", table.totals());
}

#[test]
fn a_flood_from_one_source_breaks_nothing_and_shuts_nobody_out() {
    let mut network = Network::new(0);
    network.flood(one_source);
    network.check();
    assert_eq!((network.stack.conntrack().len(), network.drops.len()), (ROOM, 0), "{:?}", network.drops);
}

#[test]
fn with_a_cap_on_half_open_connections_one_source_cannot_even_fill_the_table() {
    let mut network = Network::new(128);
    network.flood(one_source);
    network.check();
    let table = network.stack.conntrack();
    assert_eq!(table.totals().early_drop, 0);
    assert!(table.len() < 300, "{}", table.len());
    // The first 128, and the same again once the ports come round.
    assert_eq!(network.drops, BTreeMap::from([(DropReason::HalfOpenLimit, FLOOD - 2 * 128)]));
}

#[test]
fn a_cap_on_half_open_connections_does_no_harm_in_a_flood_from_everywhere() {
    let mut network = Network::new(128);
    network.flood(spread);
    network.check();
    assert_eq!(network.stack.conntrack().len(), ROOM);
}
