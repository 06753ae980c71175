//! What the fuzz targets share: a small stack, frames from bytes, and images whose checksums are right.
//!
//! Build and run on the stable toolchain, for instance `cargo fuzz run -s none restore`, or as `.ci/fuzz` does.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use hibernet_conntrack::Config;
use hibernet_netstack::{
    Cidr, Decoded, LinkConfig, ListenOptions, LocalServices, MacAddr, Medium, ReceiveLimits, RestorePolicy, Route,
    Ruleset, Stack, StackConfig, StreamOptions, Supplied,
};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::seal::SealKey;
use hibernet_snapshot::{Entropy, GenerationId, Instant, Secret};

/// The time at which every run starts.
pub const START: Instant = Instant::from_secs(1000);

/// The generation that images of a run name, so that they can be compared byte for byte.
pub const GENERATION: GenerationId = GenerationId([7; 16]);

/// Rules that lead packets to every station.
pub const RULES: &str = r#"{
    "rules": [
        {"chain": "srcnat", "match": {"oif": "out", "proto": "udp"}, "action": "masquerade fully-random"},
        {"chain": "srcnat", "match": {"oif": "out"}, "action": "masquerade"},
        {"chain": "dstnat", "match": {"iif": "out", "proto": "tcp", "dport": 8080}, "action": {"dnat": "10.0.0.5:80"}},
        {"chain": "forward", "match": {"proto": "tcp", "dport": 25}, "action": "reject-tcp"},
        {"chain": "forward", "match": {"proto": "udp", "dport": 25}, "action": "reject"},
        {"chain": "raw_prerouting", "match": {"proto": "udp", "dport": 9}, "action": "notrack"},
        {"chain": "raw_prerouting", "match": {"saddr": "10.0.0.7"}, "action": {"zone": 7}},
        {"chain": "mangle_prerouting", "match": {"proto": "icmp"}, "action": {"ctmark": 5}}
    ]
}"#;

/// The hardware address of the router on the Ethernet link.
pub const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

/// A router between `in`, `out` and the Ethernet link `eth`, with a small table.
pub fn stack(rules: Ruleset) -> Option<Stack> {
    let link = |name: &str, addrs| link(name, Medium::Ip, addrs);
    let mut conntrack = Config { capacity: 64, ..Config::default() };
    conntrack.sysctls.set("nf_conntrack_max", "48").ok()?;
    conntrack.sysctls.set("nf_conntrack_acct", "1").ok()?;
    let config = StackConfig {
        links: vec![
            link("in", ["10.0.0.1/24", "fd00:10::1/64"]),
            link("out", ["203.0.113.1/24", "2001:db8:ff::1/64"]),
            LinkConfig { medium: Medium::Ethernet { mac: MAC }, ..link("eth", ["10.1.0.1/24", "fd00:11::1/64"]) },
        ],
        routes: vec![
            Route { destination: Cidr::all_v4(), via: None, link: "out".into() },
            Route { destination: Cidr::all_v6(), via: None, link: "out".into() },
        ],
        rules,
        conntrack,
        services: LocalServices { udp_echo: Some(7), tcp_echo: Some(7) },
        ..StackConfig::default()
    };
    Stack::new(config, Entropy::from_test_seed(1), START).ok()
}

/// A stack with sockets that most of the stored packets reach, a peer that answers one of them with an error, and a listener
/// that soon has to send cookies.
pub fn with_sockets(rules: Ruleset) -> Option<Stack> {
    let mut stack = stack(rules)?;
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let near = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let far: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
    for port in [53, 5000, 40_000] {
        let socket = stack.udp_bind(any, port).ok()?;
        stack.udp_set_receive_limits(socket, ReceiveLimits { bytes: 2000, datagrams: 4 }).ok()?;
    }
    let connected = stack.udp_bind(near, 4000).ok()?;
    stack.udp_connect(connected, (far, 53).into()).ok()?;
    stack.udp_send_connected(connected, b"asked", START).ok()?;
    for identifier in [1, 7] {
        let socket = stack.ping_bind(any, identifier).ok()?;
        stack.ping_send(socket, far, 1, b"asked", START).ok()?;
    }
    let buffers = StreamOptions { receive_buffer: 2048, send_buffer: 2048, ..StreamOptions::default() };
    let options = ListenOptions { backlog: 4, half_open: 2, cookies: true, stream: buffers };
    stack.tcp_listen(any, 80, options).ok()?;
    Some(stack)
}

/// A link of that name.
pub fn link(name: &str, medium: Medium, addrs: [&str; 2]) -> LinkConfig {
    let addrs = addrs.iter().filter_map(|addr| addr.parse().ok()).collect();
    LinkConfig { name: name.into(), mtu: 1500, addrs, medium }
}

/// Splits bytes into frames: a byte for link and waiting time, two for the length, the frame.
pub fn frames(mut bytes: &[u8]) -> impl Iterator<Item = (usize, Duration, Vec<u8>)> {
    core::iter::from_fn(move || {
        let ([head, low, high], rest) = bytes.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (frame, rest) = rest.split_at(length);
        bytes = rest;
        let link = if head & ETHERNET != 0 { 2 } else { usize::from(head & 1) };
        Some((link, Duration::from_millis(u64::from(head >> 1 & LONGEST_WAIT) * 100), frame.to_vec()))
    })
}

/// The frame as [`frames`] reads it. `link`: 0 is `in`, 1 `out`, 2 `eth`.
pub fn framed(link: u8, wait: u8, frame: &[u8]) -> Vec<u8> {
    let [low, high] = (frame.len() as u16).to_le_bytes();
    let link = if link == 2 { ETHERNET } else { link };
    let mut bytes = vec![link | wait.min(LONGEST_WAIT) << 1, low, high];
    bytes.extend(frame);
    bytes
}

/// A peer's segment whose numbers are [`ANY_NUMBER`] goes on where the last segment of the stack left off: no bytes could
/// guess them.
fn answering(frame: &mut [u8], heard: Option<([u8; 4], [u8; 4])>) {
    let Some((end, acked)) = heard else { return };
    if !matches!(frame, [0x45, _, _, _, _, _, _, _, _, 6, ..] if frame.len() >= 40) {
        return;
    }
    for (at, number) in [(24, acked), (28, end)] {
        if frame[at..at + 4] == ANY_NUMBER {
            frame[at..at + 4].copy_from_slice(&number);
        }
    }
    frame[36..38].fill(0);
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
    };
    let mut sum = words(&frame[12..]) + 6 + (frame.len() as u32 - 20);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[36..38].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Where a segment of the stack leaves off: the number behind it, and what it acknowledges.
fn left_off(datagram: &[u8]) -> Option<([u8; 4], [u8; 4])> {
    let [0x45, _, _, _, _, _, _, _, _, 6, ..] = datagram else { return None };
    let seq = u32::from_be_bytes(datagram.get(24..28)?.try_into().ok()?);
    let header = usize::from(datagram.get(32)? >> 4) * 4;
    let flags = u32::from(*datagram.get(33)?);
    let taken = datagram.len().saturating_sub(20 + header) as u32 + (flags & 1) + (flags >> 1 & 1);
    Some((seq.wrapping_add(taken).to_be_bytes(), datagram.get(28..32)?.try_into().ok()?))
}

/// Accepts, reads, writes and closes streams: which of these, the time says.
fn use_streams(stack: &mut Stack, now: Instant) {
    for listener in stack.tcp_listeners() {
        while stack.tcp_accept(listener).is_some() {}
    }
    let turn = now.as_nanos() / 100_000_000;
    for stream in stack.tcp_streams() {
        let mut room = [0; 700];
        let _read = stack.tcp_read(stream, &mut room, now);
        let _written = stack.tcp_write(stream, b"an answer", now);
        match turn % 16 {
            3 => _ = stack.tcp_shutdown(stream, now),
            7 => stack.tcp_close(stream, now),
            11 => stack.tcp_abort(stream, now),
            _ => {}
        }
    }
}

/// Feeds frames and lets time pass. What comes out is thrown away. Returns the time at the end.
pub fn feed(stack: &mut Stack, bytes: &[u8]) -> Instant {
    let mut now = START;
    let links = ["in", "out", "eth"].map(|name| stack.link(name));
    let mut heard = None;
    for (link, wait, mut frame) in frames(bytes) {
        now = now.saturating_add(wait);
        stack.poll(now);
        answering(&mut frame, heard);
        if let Some(link) = links[link] {
            stack.ingress(link, frame, now);
        }
        while let Some(out) = stack.egress() {
            heard = left_off(&out.datagram).or(heard);
        }
        while stack.next_event().is_some() {}
        // Every so often something is read, so that queues are saved full, empty and in between.
        if wait.as_millis() % 300 == 200 {
            let (udp, ping): (Vec<_>, Vec<_>) = (stack.udp_sockets().collect(), stack.ping_sockets().collect());
            udp.into_iter().for_each(|socket| drop(stack.udp_recv(socket)));
            ping.into_iter().for_each(|socket| drop(stack.ping_recv(socket)));
            use_streams(stack, now);
        }
    }
    stack.poll(now);
    now
}

/// Restores an image. `None` if it is refused.
pub fn restored(image: &[u8], seed: u64, now: Instant) -> Option<(Stack, u32)> {
    let mut entropy = Entropy::from_test_seed(seed);
    let validated = Decoded::open(image, &Limits::default()).ok()?.validate(&mut entropy, now).ok()?;
    let rehashed = validated.rehash(entropy, RestorePolicy::default()).ok()?;
    let (stack, report) = rehashed.open(Supplied::default());
    Some((stack, report.reset + report.dropped + report.streams_reset))
}

/// The key of the stored sealed images.
pub fn seal_key() -> SealKey {
    SealKey::new(Secret::new([9; 32]))
}

/// Stands for the number that goes on where the stack left off.
pub const ANY_NUMBER: [u8; 4] = [0xff; 4];

/// Makes every checksum of an image right, as far as its framing can be followed, so that changed bytes get past them.
pub fn reseal(image: &mut [u8]) {
    let number = |bytes: &[u8], at: usize, length: usize| -> Option<u64> {
        let field = bytes.get(at..at + length)?;
        Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let put = |bytes: &mut [u8], at: usize, sum: u32| {
        if let Some(field) = bytes.get_mut(at..at + 4) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
    };
    let Some(writer) = number(image, 44, 2) else { return };
    let mut at = 46 + writer as usize;
    let Some(header) = image.get(..at) else { return };
    let sum = crc32fast::hash(header);
    put(image, at, sum);
    at += 4;
    let sections = number(image, 40, 4).unwrap_or(0).min(64);
    for _ in 0..sections {
        let Some(length) = number(image, at + 8, 8) else { return };
        let body = at + 20;
        let end = body.saturating_add(length as usize);
        let (Some(head), Some(content)) = (image.get(at..at + 16), image.get(body..end)) else { return };
        let mut sum = crc32fast::Hasher::new();
        sum.update(head);
        sum.update(content);
        let sum = sum.finalize();
        put(image, at + 16, sum);
        at = end;
    }
    if let Some(all) = image.get(..at + 16) {
        let sum = crc32fast::hash(all);
        put(image, at + 16, sum);
    }
}

/// The bit that names the Ethernet link.
const ETHERNET: u8 = 0x80;
/// The longest wait, in tenths of a second.
const LONGEST_WAIT: u8 = 0x3f;
