//! Golden images: of every version of the format there is at least one, and none is ever written again.
//!
//! `cargo run -p hibernet-tests --bin golden` writes one of the present format, of a stack that has something in every section.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hibernet_netstack::{
    Cidr, LinkConfig, LinkId, ListenOptions, LocalServices, MacAddr, Medium, Packing, Route, Ruleset, SaveBuffer,
    Stack, StackConfig, StreamOptions,
};
use hibernet_snapshot::image::{Image, ImageWriter, Limits, Requirement, SectionId};
use hibernet_snapshot::{Entropy, GenerationId, Instant};

use crate::notation::{Fragment, build};
use crate::traffic::{GENERATION, Gateway, START};

/// Where they lie.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");

/// The section of an application inside the stack: a reader that does not know it skips it.
pub const APPLICATION: SectionId = SectionId::new(*b"APPL");

/// An image with something in every section: flows of every protocol in both IP versions, translated and not, with zones and marks;
/// fragments that wait; rules with counters; TCP streams with unread and unacknowledged bytes, listeners, UDP and ping sockets
/// with datagrams that wait; neighbours, and packets that wait for one; drops; and what an application has added.
///
/// Version 1 is what [`Stack::save`] writes, version 2 has compressed flow records in blocks.
pub fn full_image(version: u16) -> Vec<u8> {
    let (stack, now) = full_stack();
    image_of(&stack, version, GENERATION, now, Some(b"what an application has saved"))
}

/// The stack's image of that version of the format.
pub fn image_of(
    stack: &Stack,
    version: u16,
    generation: GenerationId,
    now: Instant,
    application: Option<&[u8]>,
) -> Vec<u8> {
    if version > 1 {
        let mut frozen = stack.freeze(generation, now, SaveBuffer::default()).expect("a stack that was told the time");
        if let Some(state) = application {
            frozen.add(APPLICATION, 1, state.to_vec());
        }
        let mut image = Vec::new();
        let sink = |bytes: &[u8]| -> Result<(), Infallible> {
            image.extend_from_slice(bytes);
            Ok(())
        };
        frozen.write(&Packing::default().compressed(true), sink).expect("memory takes all");
        return image;
    }
    let image = stack.save(generation, now).expect("a stack that was told the time");
    let Some(state) = application else { return image };
    let read = Image::parse(&image, &Limits::default()).expect("it was just written");
    let mut writer = ImageWriter::new(read.header());
    for section in read.sections() {
        writer.copy(section);
    }
    writer.section(APPLICATION, 1, Requirement::Optional, state);
    writer.finish()
}

/// The stack behind [`full_image`], and the time it was last told.
pub fn full_stack() -> (Stack, Instant) {
    let mut host = Host { stack: open(), now: START };
    for (link, line) in LINES {
        host.hear(link, build(line, None).expect("a line of the notation"));
    }
    for line in
        ["udp 10.0.0.3:40000 > 198.51.100.10:53 len=40 ipid=7", "udp [fd00:10::3]:40000 > [2001:db8:1::10]:53 len=40"]
    {
        let first = Fragment { off: 0, len: 24, mf: true };
        host.hear("in", build(line, Some(first)).expect("a line of the notation"));
    }
    sockets(&mut host);
    host.stack.poll(host.now);
    while host.stack.egress().is_some() {}
    (host.stack, host.now)
}

fn open() -> Stack {
    let mut config = Gateway::with_room_for(64).config();
    let ethernet = Medium::Ethernet { mac: MacAddr::new([2, 0, 0, 0, 0, 1]) };
    config.links.push(link(ethernet, ["10.1.0.1/24", "fd00:11::1/64"]));
    config.services = LocalServices { udp_echo: Some(7), tcp_echo: Some(9) };
    let rules = serde_json::to_value(&config.rules).expect("rules are JSON");
    config.rules = Ruleset::from_json(&opened(rules).to_string()).expect("the rules can be read");
    Stack::new(config, Entropy::from_test_seed(1), START).expect("the configuration is sound")
}

/// The rules, with everything from the Ethernet link let in in front.
fn opened(mut rules: serde_json::Value) -> serde_json::Value {
    let accept = serde_json::json!({"match": {"iif": "eth"}, "action": "accept"});
    for chain in rules["chains"].as_array_mut().into_iter().flatten() {
        if chain["name"] == "input"
            && let Some(list) = chain["rules"].as_array_mut()
        {
            list.insert(0, accept.clone());
        }
    }
    rules
}

fn link(medium: Medium, addrs: [&str; 2]) -> LinkConfig {
    let addrs = addrs.iter().map(|addr| addr.parse().expect("an address with its network")).collect();
    LinkConfig { name: "eth".to_owned(), mtu: 1500, addrs, medium }
}

/// Sockets of the stack, and a peer on its Ethernet link that talks to them.
fn sockets(host: &mut Host) {
    let any: IpAddr = "::".parse().expect("an address");
    host.stack.tcp_listen(any, 80, ListenOptions::default()).expect("a free port");
    let udp = host.stack.udp_bind(any, 5000).expect("a free port");
    let ping = host.stack.ping_bind(any, 77).expect("a free identifier");
    let mut peer = peer();
    let own = peer.stack.udp_bind(any, 6000).expect("a free port");
    let streams: Vec<_> = ["10.1.0.1:80", "[fd00:11::1]:80"]
        .map(|to| peer.stack.tcp_connect(None, address(to), StreamOptions::default(), peer.now).expect("a route"))
        .to_vec();
    converse(host, &mut peer, usize::MAX);
    for stream in streams {
        peer.stack.tcp_write(stream, b"what is not read", peer.now).expect("an open stream");
    }
    for to in ["10.1.0.1:5000", "[fd00:11::1]:5000"] {
        peer.stack.udp_send(own, address(to), b"what waits", peer.now).expect("a route");
    }
    converse(host, &mut peer, usize::MAX);
    host.stack.ping_send(ping, address("10.1.0.2:0").ip(), 1, b"ping", host.now).expect("a route");
    converse(host, &mut peer, usize::MAX);
    for listener in host.stack.tcp_listeners() {
        if let Some(stream) = host.stack.tcp_accept(listener) {
            host.stack.tcp_write(stream, b"what is not acknowledged", host.now).expect("an open stream");
        }
    }
    // Whoever has these addresses never answers.
    for to in ["10.1.0.9:9", "[fd00:11::9]:9"] {
        host.stack.udp_send(udp, address(to), b"to nobody", host.now).expect("a route");
    }
}

fn peer() -> Host {
    let medium = Medium::Ethernet { mac: MacAddr::new([2, 0, 0, 0, 0, 2]) };
    let route = |destination, via: &str| Route { destination, via: via.parse().ok(), link: "eth".to_owned() };
    let config = StackConfig {
        links: vec![link(medium, ["10.1.0.2/24", "fd00:11::2/64"])],
        routes: vec![route(Cidr::all_v4(), "10.1.0.1"), route(Cidr::all_v6(), "fd00:11::1")],
        rules: Ruleset::open(),
        ..StackConfig::default()
    };
    let stack = Stack::new(config, Entropy::from_test_seed(3), START).expect("the configuration is sound");
    Host { stack, now: START }
}

/// Carries frames between the two, at most so many rounds, until neither says anything.
fn converse(host: &mut Host, peer: &mut Host, rounds: usize) {
    for _ in 0..rounds.min(64) {
        let mut quiet = true;
        for (from, to) in [(true, false), (false, true)] {
            let (speaker, listener) = if from && !to { (&mut *host, &mut *peer) } else { (&mut *peer, &mut *host) };
            while let Some(sent) = speaker.stack.egress() {
                if sent.link == speaker.link("eth") {
                    quiet = false;
                    listener.hear("eth", sent.datagram);
                }
            }
        }
        if quiet {
            return;
        }
    }
}

/// A stack and its time.
struct Host {
    stack: Stack,
    now: Instant,
}

impl Host {
    fn link(&self, name: &str) -> LinkId {
        self.stack.link(name).expect("a link of the stack")
    }

    /// A frame comes in, three milliseconds after the last.
    fn hear(&mut self, link: &str, frame: Vec<u8>) {
        self.now = self.now.saturating_add(Duration::from_millis(3));
        let link = self.link(link);
        self.stack.poll(self.now);
        self.stack.ingress(link, frame, self.now);
        while self.stack.next_event().is_some() {}
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

/// Flows of every kind: TCP, UDP, ICMP, SCTP and GRE through every rule of the gateway, in both IP versions.
const LINES: [(&str, &str); 19] = [
    ("in", "tcp 10.0.0.2:40000 > 198.51.100.10:80 S seq=100 mss=1460 sackok wscale=7"),
    ("out", "tcp 198.51.100.10:80 > 203.0.113.1:40000 SA seq=900 ack=101 mss=1460 sackok wscale=7"),
    ("in", "tcp 10.0.0.2:40000 > 198.51.100.10:80 PA seq=101 ack=901 len=20"),
    ("in", "tcp [fd00:10::2]:40000 > [2001:db8:1::10]:80 S seq=100 mss=1440 sackok wscale=7"),
    ("out", "tcp [2001:db8:1::10]:80 > [2001:db8:ff::1]:40000 SA seq=900 ack=101 mss=1440 sackok wscale=7"),
    ("out", "tcp 198.51.100.11:5555 > 203.0.113.1:8080 S seq=5 mss=1460"),
    ("out", "tcp [2001:db8:1::11]:5555 > [2001:db8:ff::1]:8080 S seq=5 mss=1440"),
    ("in", "tcp 10.0.0.70:41000 > 198.51.100.10:443 S seq=1"),
    ("dmz", "udp 198.18.0.2:5000 > 198.51.100.10:53 len=5"),
    ("in", "udp 10.0.0.33:40001 > 198.51.100.10:443 len=5"),
    ("dmz", "udp [2001:db8:18::2]:5000 > [2001:db8:1::10]:53 len=5"),
    ("out", "udp [2001:db8:1::10]:53 > [2001:db8:18::2]:5000 len=9"),
    ("dmz", "icmp 198.18.0.2 > 198.51.100.10 echo id=5 seq=1 len=8"),
    ("dmz", "icmp6 2001:db8:18::2 > 2001:db8:1::10 echo id=5 seq=1 len=8"),
    ("in", "icmp 10.0.0.2 > 198.51.100.10 echo id=6 seq=1 len=8"),
    ("in", "proto47 10.0.0.2 > 198.51.100.10 data=0000080045000014"),
    ("dmz", "proto200 198.18.0.2 > 198.51.100.10 len=12"),
    ("out", "tcp 198.51.100.10:80 > 203.0.113.1:22 S seq=1"),
    ("in", "udp 10.0.0.2:50000 > 10.0.0.1:7 len=5"),
];
