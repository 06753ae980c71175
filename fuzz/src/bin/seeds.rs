//! Writes the stored corpora from the kernel scenarios: the frames of each as one input, and the image a stack saves after
//! them. `cargo run --release --bin seeds` in this folder.
#![expect(clippy::disallowed_methods, reason = "a tool that writes files")]

use std::fs;
use std::io::Error;
use std::time::Duration;

use hibernet_fuzz::{ANY_NUMBER, GENERATION, RULES, START, feed, framed, link, reseal, seal_key, stack, with_sockets};
use hibernet_netstack::{Cidr, Decoded, MacAddr, Medium, Route, Ruleset, Stack, StackConfig};
use hibernet_snapshot::Entropy;
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::seal::{Sealer, seal};

fn main() -> Result<(), Error> {
    let kernel = fs::read_dir("../tests/scenarios/kernel")?.map(|entry| (entry, ""));
    // Of ours those that end with fragments that wait, so that they are in an image.
    let own = fs::read_dir("../tests/scenarios/own")?.map(|entry| (entry, "frag"));
    for (entry, prefix) in kernel.chain(own) {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(name) = name.strip_suffix(".expected.jsonl").filter(|name| name.starts_with(prefix)) else { continue };
        let mut input = Vec::new();
        for line in fs::read_to_string(&path)?.lines().take(24) {
            for (link, frame) in injected(line) {
                input.extend(framed(link, 1, &frame));
            }
        }
        store(name, &input)?;
    }
    for version in [4, 6] {
        let input = neighbours(version).ok_or_else(|| Error::other("the peer's configuration is sound"))?;
        store(&format!("ethernet{version}"), &input)?;
    }
    store("streams", &streams())?;
    sealed()
}

/// A sealed image in one chunk, one in many, and an image to be sealed behind the byte that says in how large chunks.
fn sealed() -> Result<(), Error> {
    let mut entropy = Entropy::from_test_seed(1);
    let image = fs::read("corpus/restore/gre_basic")?;
    let many = fs::read("corpus/restore/streams")?;
    fs::create_dir_all("corpus/sealed")?;
    fs::write("corpus/sealed/one_chunk", seal(&image, &seal_key(), &mut entropy).map_err(Error::other)?)?;
    let mut sealed = Vec::new();
    let mut sealer = Sealer::new(&seal_key(), &mut entropy).with_chunks_of(256);
    sealer.push(&many, &mut sealed).and_then(|()| sealer.finish(&mut sealed)).map_err(Error::other)?;
    fs::write("corpus/sealed/many_chunks", sealed)?;
    fs::write("corpus/sealed/to_be_sealed", [vec![99], image].concat())
}

/// Streams of the listener and of the echo service: opened, written to, closed by either side, kept half open until there
/// are cookies.
fn streams() -> Vec<u8> {
    let segment = |port: u16, to: u16, flags: u8, payload: &[u8]| {
        let mut frame = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
        frame.extend(port.to_be_bytes());
        frame.extend(to.to_be_bytes());
        frame.extend(if flags == SYN { [0, 0, 0, 9] } else { ANY_NUMBER });
        frame.extend(if flags == SYN { [0; 4] } else { ANY_NUMBER });
        frame.extend([0x50, flags, 0xff, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        let len = (frame.len() as u16).to_be_bytes();
        frame[2..4].copy_from_slice(&len);
        let sum: u32 = frame[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        frame[10..12].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let mut input = Vec::new();
    let mut say = |wait: u8, frame: Vec<u8>| input.extend(framed(0, wait, &frame));
    for (port, to) in [(4000, 80), (4001, 7), (4002, 80)] {
        say(1, segment(port, to, SYN, b""));
        say(1, segment(port, to, ACK, b"asked"));
        say(2, segment(port, to, ACK, b"more"));
    }
    say(1, segment(4000, 80, ACK | FIN, b""));
    for port in 5000..5006 {
        say(0, segment(port, 80, SYN, b""));
    }
    say(0, segment(5005, 80, ACK, b"a cookie comes back"));
    say(2, segment(5005, 80, ACK, b"and more"));
    input
}

/// Writes one input for every target, and the image that comes of it.
fn store(name: &str, input: &[u8]) -> Result<(), Error> {
    fs::write(format!("corpus/ingress/{name}"), input)?;
    // Two rules now, one later: masquerade, and what the name's first letters happen to choose.
    let [a, b, c, ..] = *name.as_bytes() else { return Ok(()) };
    let mut packets = vec![2, 1, 10, 1, 1, 0, 5, 8, 2, a, b, c, 8, 1, b, c, a];
    packets.extend(input);
    fs::write(format!("corpus/rules/{name}"), packets)?;
    let rules = Ruleset::from_json(RULES).map_err(Error::other)?;
    let mut stack = with_sockets(rules).ok_or_else(|| Error::other("the configuration is sound"))?;
    let now = feed(&mut stack, input);
    let image = stack.save(GENERATION, now).map_err(Error::other)?;
    if name == "frag6_ends" {
        let spelled = with_a_second_in_nanoseconds(&image).ok_or_else(|| Error::other("no time is in the image"))?;
        fs::write("corpus/restore/refused_nanoseconds", spelled)?;
    }
    fs::write(format!("corpus/restore/{name}"), image)
}

/// The image with another spelling of a time: what `restore` once found to load and to be saved otherwise.
fn with_a_second_in_nanoseconds(image: &[u8]) -> Option<Vec<u8>> {
    let spelled = |at: usize| {
        let mut spelled = image.to_vec();
        spelled.get_mut(at..at + 4)?.copy_from_slice(&1_000_000_000_u32.to_le_bytes());
        reseal(&mut spelled);
        Some(spelled)
    };
    (0..image.len()).filter_map(spelled).find(|spelled| {
        let decoded = Decoded::open(spelled, &Limits::default());
        let validated = decoded.and_then(|decoded| decoded.validate(&mut Entropy::from_test_seed(1), START));
        validated.is_err_and(|error| error.to_string().ends_with(REFUSAL))
    })
}

/// What a peer on the Ethernet link says: it asks, pings, answers, sends on; and packets that wait in vain at the end.
fn neighbours(version: u8) -> Option<Vec<u8>> {
    let medium = Medium::Ethernet { mac: MacAddr::new([2, 0, 0, 0, 0, 2]) };
    let config = StackConfig {
        links: vec![link("eth", medium, ["10.1.0.2/24", "fd00:11::2/64"])],
        routes: [(Cidr::all_v4(), "10.1.0.1"), (Cidr::all_v6(), "fd00:11::1")]
            .map(|(destination, via)| Route { destination, via: via.parse().ok(), link: "eth".into() })
            .to_vec(),
        rules: Ruleset::open(),
        ..StackConfig::default()
    };
    let mut peer = Stack::new(config, Entropy::from_test_seed(3), START).ok()?;
    let mut router = stack(Ruleset::from_json(RULES).ok()?)?;
    let (peer_link, router_link) = (peer.link("eth")?, router.link("eth")?);
    let socket = peer.udp_bind("::".parse().ok()?, 5000).ok()?;
    let mut input = Vec::new();
    let (mut now, outside, inside) = match version {
        4 => (START, "203.0.113.9:9", "10.1.0.1:7"),
        _ => (START, "[2001:db8:ff::9]:9", "[fd00:11::1]:7"),
    };
    for (step, to) in [inside, outside, inside, outside].into_iter().enumerate() {
        peer.udp_send(socket, to.parse().ok()?, b"to whom it may concern", now).ok()?;
        for _ in 0..8 {
            while let Some(sent) = peer.egress() {
                input.extend(framed(2, 1, &sent.datagram));
                router.ingress(router_link, sent.datagram, now);
            }
            while let Some(sent) = router.egress() {
                if sent.link == router_link {
                    peer.ingress(peer_link, sent.datagram, now);
                }
            }
        }
        now = now.saturating_add(Duration::from_secs(1 + 20 * (step as u64 % 2)));
        peer.poll(now);
        router.poll(now);
    }
    // From the other links to nobody: they wait for an address.
    for (at, (_, datagram)) in NOBODY.iter().filter(|(of, _)| *of == version).enumerate() {
        input.extend(framed(at as u8 % 2, 1, &bytes(datagram)));
    }
    Some(input)
}

/// Datagrams to 10.1.0.9 and fd00:11::9, whom nobody has.
const NOBODY: [(u8, &str); 4] = [
    (4, "4500001d00000000401166c50a0000020a0100090001000900090000aa"),
    (4, "4500001e00000000401166c40a0000020a01000900010009000a0000aabb"),
    (6, "6000000000091140fd000010000000000000000000000002fd00001100000000000000000000000900010009000940aaaa"),
    (6, "60000000000a1140fd000010000000000000000000000002fd00001100000000000000000000000900010009000a40aaaabb"),
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).filter_map(|at| u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok()).collect()
}

/// The frames a record says were injected. The records are written by one tool in one spelling, so the text is enough.
fn injected(line: &str) -> Vec<(u8, Vec<u8>)> {
    let Some((_, rest)) = line.split_once("\"inject\": ") else { return Vec::new() };
    let part = rest.split("\"ctstate\"").next().unwrap_or_default().split("\"out\": ").next().unwrap_or_default();
    let mut frames = Vec::new();
    for piece in part.split("{\"dev\": \"").skip(1).take(4) {
        let link = u8::from(piece.starts_with("out"));
        let Some((_, hex)) = piece.split_once("\"hex\": \"") else { continue };
        let hex = hex.split('"').next().unwrap_or_default();
        frames.push((link, bytes(hex)));
    }
    frames
}

/// How a time is refused that is not spelled as it would be saved.
const REFUSAL: &str = "found 1000000000 ns, expected less than a second";
const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;
