//! A million connections saved and restored: what the pause, the packing, the restore and the memory come to.
//!
//! `cargo bench -p hibernet-conntrack --bench images [-- FLOWS [RUNS]]`
//!
//! The flows: three quarters IPv4, one quarter IPv6, half of each translated, established TCP with full windows, counted. Of each
//! figure the least of several runs is shown, as wall time and as the time that all threads together were on a processor: on a
//! machine that does other work, the second is the one to read.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a bench looks at clocks, files and its memory"
)]

use std::hint::black_box;
use std::net::IpAddr;
use std::process::Command;
use std::time::Instant as Wall;

use hibernet_conntrack::{
    Config, Conntrack, ConntrackSaved, CtState, FlowRecord, Origin, Packing, ProtocolState, RestoreOptions,
    RestoreRoom, SaveBuffer, Validated, Zone, parse,
};
use hibernet_snapshot::codec::{decode, encode};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, Instant, Snapshot};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mode, image] = arguments.as_slice()
        && mode == "--peak"
    {
        return peak(image);
    }
    let mut numbers = arguments.iter().filter_map(|argument| argument.parse::<u32>().ok());
    let bench = Bench { flows: numbers.next().unwrap_or(1_000_000), runs: numbers.next().unwrap_or(7) };
    println!("{} flows, least of {} runs; ms per million flows: wall / all threads together", bench.flows, bench.runs);
    bench.pauses();
    let mut table = Table::of(bench.flows, Mix::Both).open();
    bench.deltas(&mut table);
    let images = bench.saves(&table);
    let expected = table.save();
    drop(table);
    for image in &images {
        bench.restores(image, &expected);
    }
    for image in &images {
        bench.peak(image);
    }
}

struct Bench {
    flows: u32,
    runs: u32,
}

/// An image of flows alone: the section of settings, and the blocks behind it.
struct Saved {
    kind: &'static str,
    settings: Vec<u8>,
    blocks: Vec<Vec<u8>>,
}

impl Saved {
    fn attached(&self) -> ConntrackSaved {
        let mut saved: ConntrackSaved = decode(&self.settings, &Limits::default()).unwrap();
        self.blocks.iter().for_each(|block| saved.attach(block.clone()));
        saved
    }

    fn bytes(&self) -> usize {
        self.settings.len() + self.blocks.iter().map(Vec::len).sum::<usize>()
    }
}

impl Bench {
    fn row(&self, name: &str, took: Took, target: &str) {
        let millions = f64::from(self.flows) / 1e6;
        let target = if target.is_empty() { String::new() } else { format!("   target {target}") };
        println!("{name:<62} {:>8.1} / {:>7.1}{target}", took.wall / millions, took.cpu / millions);
    }

    fn pauses(&self) {
        for (name, mix, target) in [("IPv4", Mix::V4, "15"), ("IPv6", Mix::V6, "25"), ("both", Mix::Both, "")] {
            let table = Table::of(self.flows, mix).open();
            let mut buffer = mix.buffer(self.flows);
            let megabytes = buffer.bytes() / 1_000_000;
            let mut best = Took::WORST;
            for _ in 0..self.runs {
                let begun = Took::begin();
                let frozen = table.freeze(buffer);
                best = best.min(begun.end());
                buffer = frozen.into_buffer();
            }
            self.row(&format!("pause of a full save, {name} (buffer: {megabytes} MB)"), best, target);
            if mix == Mix::V4 {
                let begun = Took::begin();
                drop(black_box(table.freeze(SaveBuffer::default())));
                self.row("pause of a full save, IPv4, into memory never touched", begun.end(), "");
            }
        }
    }

    /// Of 10,000 flows that had a packet each since the last save.
    fn deltas(&self, table: &mut Conntrack) {
        let flows: Vec<FlowRecord> = table.flows();
        let v4: Vec<&FlowRecord> = flows.iter().filter(|flow| !flow.orig.is_v6()).collect();
        let touched = 10_000_u32.min(v4.len() as u32);
        let step = v4.len() / touched as usize;
        let mut frozen = table.freeze_base(Mix::Both.buffer(self.flows));
        frozen.settings(&Packing::default());
        assert!(table.written(frozen.point()));
        let (mut pause, mut packing, mut bytes) = (Took::WORST, Took::WORST, 0);
        for _ in 0..self.runs {
            for flow in v4.iter().step_by(step).take(touched as usize) {
                touch(table, flow);
            }
            let begun = Took::begin();
            let delta = table.freeze_delta().unwrap();
            pause = pause.min(begun.end());
            assert_eq!(delta.changed() as u32, touched);
            let begun = Took::begin();
            let (script, point) = delta.pack();
            packing = packing.min(begun.end());
            bytes = script.len();
            assert!(table.written(point));
        }
        // Not per million: this is the whole of it.
        for (name, took, target) in [("pause of a delta", pause, "   target 2"), ("packing of it", packing, "")] {
            let name = format!("{name}, {touched} touched flows of {}", self.flows);
            println!("{name:<62} {:>8.2} / {:>7.2}{target} (ms in all)", took.wall, took.cpu);
        }
        println!("{:<62} {bytes:>8} bytes", "size of it");
    }

    fn saves(&self, table: &Conntrack) -> [Saved; 2] {
        ["plain", "compressed"].map(|kind| {
            let mut saved = Saved { kind, settings: Vec::new(), blocks: Vec::new() };
            for threads in [1, 2] {
                let packing = Packing::default().on_threads(threads).compressed(kind == "compressed");
                let mut buffer = Mix::Both.buffer(self.flows);
                // Touched, as the buffer is.
                let mut image = vec![1_u8; self.flows as usize * 115];
                let mut best = Took::WORST;
                for _ in 0..self.runs {
                    image.clear();
                    saved.blocks.clear();
                    let mut lengths = Vec::new();
                    let begun = Took::begin();
                    let mut frozen = table.freeze(buffer);
                    saved.settings = encode(&frozen.settings(&packing)).unwrap();
                    image.extend_from_slice(&saved.settings);
                    frozen
                        .pack(&packing, crc32fast::hash, |block, sum| {
                            image.extend_from_slice(&sum.to_le_bytes());
                            image.extend_from_slice(block);
                            lengths.push(block.len());
                            Ok::<_, ()>(())
                        })
                        .unwrap();
                    best = best.min(begun.end());
                    buffer = frozen.into_buffer();
                    let mut rest = &image[saved.settings.len()..];
                    for length in lengths {
                        saved.blocks.push(rest[4..4 + length].to_vec());
                        rest = &rest[4 + length..];
                    }
                }
                let target = if threads == 2 && kind == "plain" { "50" } else { "" };
                self.row(&format!("full save to memory, {kind}, {threads} thread(s)"), best, target);
            }
            let bytes = saved.bytes() as f64 / f64::from(self.flows);
            let target = if kind == "plain" { 112 } else { 64 };
            println!("{:<62} {bytes:>8.1} bytes     target {target}", format!("image per flow, {kind}"));
            saved
        })
    }

    fn restores(&self, image: &Saved, expected: &ConntrackSaved) {
        for threads in [1, 2] {
            let mut room = Mix::Both.room(self.flows);
            let (mut whole, mut rehash) = (Took::WORST, Took::WORST);
            for run in 0..self.runs {
                let saved = image.attached();
                let mut entropy = Entropy::from_test_seed(u64::from(run));
                let begun = Took::begin();
                let mut options = RestoreOptions::default().on_threads(threads).into_room(room);
                let validated = Validated::check_with(saved, NOW, &mut entropy, &mut options).unwrap();
                let filing = Took::begin();
                let restored = validated.rehash_with(&mut entropy, &mut options).unwrap();
                rehash = rehash.min(filing.end());
                whole = whole.min(begun.end());
                if run == 0 {
                    assert!(restored.save() == *expected, "the same flows");
                }
                room = restored.into_room();
            }
            let target = match (image.kind, threads) {
                ("plain", 1) => "110",
                ("plain", _) => "65",
                _ => "",
            };
            self.row(&format!("restore, {}, {threads} thread(s)", image.kind), whole, target);
            self.row("  of that: keys, rehash, mappings of sockets", rehash, if threads == 1 { "40" } else { "" });
        }
    }

    /// Restores in a process of its own, and asks how much memory that had at most.
    fn peak(&self, image: &Saved) {
        let file = std::env::temp_dir().join(format!("hibernet-bench-{}", std::process::id()));
        let mut bytes = (image.settings.len() as u64).to_le_bytes().to_vec();
        bytes.extend(&image.settings);
        for block in &image.blocks {
            bytes.extend((block.len() as u64).to_le_bytes());
            bytes.extend(block);
        }
        std::fs::write(&file, bytes).unwrap();
        let output = Command::new(std::env::current_exe().unwrap()).arg("--peak").arg(&file).output().unwrap();
        std::fs::remove_file(&file).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse::<f64>().unwrap());
        let (peak, wall, cpu) = (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap());
        let v4 = Mix::Both.v4(self.flows) as usize;
        let live = v4 * 128 + (self.flows as usize - v4) * 192 + self.flows as usize * 16;
        let name = format!("restore into memory never touched, {}, 2 threads", image.kind);
        self.row(&name, Took { wall, cpu }, "");
        println!(
            "{:<62} {:>8.2}           target 1.5",
            format!("peak of that with the image, in live tables of {} MB", live / 1_000_000),
            peak / live as f64
        );
    }
}

/// The process of [`Bench::peak`]. Its memory is what the image's blocks and the table take.
fn peak(file: &str) {
    use std::io::Read;
    let mut input = std::fs::File::open(file).unwrap();
    let before = status("VmHWM:");
    let mut next = || {
        let mut length = [0; 8];
        input.read_exact(&mut length).ok()?;
        let mut bytes = vec![0; u64::from_le_bytes(length) as usize];
        input.read_exact(&mut bytes).ok()?;
        Some(bytes)
    };
    let mut saved: ConntrackSaved = decode(&next().unwrap(), &Limits::default()).unwrap();
    while let Some(block) = next() {
        saved.attach(block);
    }
    let begun = Took::begin();
    let mut entropy = Entropy::from_test_seed(1);
    let mut options = RestoreOptions::default().on_threads(2);
    let validated = Validated::check_with(saved, NOW, &mut entropy, &mut options).unwrap();
    let restored = validated.rehash_with(&mut entropy, &mut options).unwrap();
    let took = begun.end();
    println!("{} {} {}", status("VmHWM:") - before, took.wall, took.cpu);
    black_box(restored);
}

/// An acknowledgement without data, of the flow's first sender.
fn touch(table: &mut Conntrack, flow: &FlowRecord) {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (flow.orig.src, flow.orig.dst) else { return };
    let ProtocolState::Tcp(track) = flow.protocol else { return };
    let [own, other] = track.sides;
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend([src.octets(), dst.octets()].concat());
    packet.extend([flow.orig.sport.to_be_bytes(), flow.orig.dport.to_be_bytes()].concat());
    packet.extend([own.td_end.to_be_bytes(), other.td_end.to_be_bytes()].concat());
    packet.extend([0x50, 0x10, 0x02, 0x00, 0, 0, 0, 0]);
    // The sum over the header, which `parse` looks at.
    let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let parsed = parse(&packet).unwrap();
    let attachment = table.track(&packet, &parsed, Zone::default(), Origin::Local, NOW).unwrap();
    assert_eq!(attachment.state(), Some(CtState::Established));
}

/// A line of `/proc/self/status`, in bytes.
fn status(line: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = text.lines().find_map(|other| other.strip_prefix(line)).unwrap();
    found.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[derive(Clone, Copy)]
struct Took {
    wall: f64,
    cpu: f64,
}

struct Begun(Wall, f64);

impl Took {
    const WORST: Self = Self { wall: f64::MAX, cpu: f64::MAX };

    fn begin() -> Begun {
        Begun(Wall::now(), processor())
    }

    fn min(self, other: Self) -> Self {
        Self { wall: self.wall.min(other.wall), cpu: self.cpu.min(other.cpu) }
    }
}

impl Begun {
    fn end(self) -> Took {
        Took { wall: self.0.elapsed().as_secs_f64() * 1e3, cpu: processor() - self.1 }
    }
}

/// Milliseconds that all threads of this process have been on a processor.
fn processor() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// Which families flows are of.
#[derive(Clone, Copy, PartialEq)]
enum Mix {
    V4,
    V6,
    Both,
}

impl Mix {
    fn is_v6(self, number: u32) -> bool {
        match self {
            Self::V4 => false,
            Self::V6 => true,
            Self::Both => number.is_multiple_of(4),
        }
    }

    fn v4(self, flows: u32) -> u32 {
        (0..flows).filter(|number| !self.is_v6(*number)).count() as u32
    }

    fn buffer(self, flows: u32) -> SaveBuffer {
        SaveBuffer::prefaulted(self.v4(flows), flows - self.v4(flows))
    }

    fn room(self, flows: u32) -> RestoreRoom {
        RestoreRoom::prefaulted(flows, self.v4(flows), flows - self.v4(flows))
    }
}

/// Records of established TCP flows, by the layout of SNAPSHOT-FORMAT.md.
struct Table {
    flows: u32,
    records: Vec<u8>,
}

impl Table {
    fn of(flows: u32, mix: Mix) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut records = Vec::with_capacity(flows as usize * 160);
        for number in 0..flows {
            write_flow(&mut records, number, mix.is_v6(number), (number / 4).is_multiple_of(2), &mut random);
        }
        Self { flows, records }
    }

    /// A table with these flows: a saved one without any, and these in it.
    fn open(self) -> Conntrack {
        let mut entropy = Entropy::from_test_seed(1);
        let config = Config { capacity: self.flows, ..Config::default() };
        let empty = Conntrack::new(config, &mut entropy, NOW).unwrap();
        let mut bytes = encode(&empty.save()).unwrap();
        // The last fields are the count of flows, and the records, of which there are none yet.
        bytes.truncate(bytes.len() - 12);
        bytes.extend(self.flows.to_le_bytes());
        bytes.extend((self.records.len() as u64).to_le_bytes());
        bytes.extend(self.records);
        let saved: ConntrackSaved = decode(&bytes, &Limits::default()).unwrap();
        Validated::check(saved, NOW, &mut entropy).unwrap().rehash(&mut entropy).unwrap()
    }
}

/// A client of some network behind the router that talks to some server, with numbers as they come about.
fn write_flow(out: &mut Vec<u8>, number: u32, v6: bool, translated: bool, random: &mut ChaCha8Rng) {
    let mut draw = |below: u32| random.next_u32() % below;
    let kind = u8::from(v6) | if translated { 2 } else { 0 };
    // Confirmed, answered, assured; source translated and both sides decided, or never asked.
    let status: u16 = 0b111 | if translated { 1 << 3 | 1 << 5 | 1 << 6 } else { 0 };
    out.extend([kind, 6]);
    out.extend(status.to_le_bytes());
    // Refreshed within the last hour of five days.
    out.extend((432_000 * 128 - draw(3600 * 128)).to_le_bytes());
    let mut address = |net: u8, host: u32| -> Vec<u8> {
        let [_, b, c, d] = host.to_be_bytes();
        if v6 {
            let mut address = vec![0x20, 0x01, 0x0d, 0xb8, 0, net, b, 0];
            address.extend(draw(u32::MAX).to_be_bytes());
            address.extend([0, c, d, 1]);
            address
        } else {
            vec![net, b, c, d]
        }
    };
    let (client, server) = (address(10, number / 16), address(100, number.wrapping_mul(2_654_435_761) >> 8));
    let router = address(203, 0x0071_0001);
    let (sport, dport) = (1024 + draw(60_000) as u16, [443, 443, 80, 22][draw(4) as usize]);
    out.extend([client.clone(), server.clone()].concat());
    out.extend([sport.to_le_bytes(), u16::to_le_bytes(dport)].concat());
    if translated {
        // Each with a port of its own of one of many addresses of the router.
        let mut outside = router;
        let at = outside.len() - 2;
        outside[at..].copy_from_slice(&((number / 60_000) as u16).to_be_bytes());
        if v6 {
            outside[6..12].fill(0);
        }
        out.extend([server, outside].concat());
        out.extend([u16::to_le_bytes(dport), (1024 + (number % 60_000) as u16).to_le_bytes()].concat());
    }
    let [sent, answered] = [u64::from(5 + draw(200)), u64::from(5 + draw(300))];
    for (packets, bytes) in
        [(sent, sent * 60 + u64::from(draw(4000))), (answered, answered * 900 + u64::from(draw(9000)))]
    {
        out.extend(&packets.to_le_bytes()[..5]);
        out.extend(&bytes.to_le_bytes()[..6]);
    }
    let (ends, windows) = ([draw(u32::MAX), draw(u32::MAX)], [64_240 + draw(400) * 128, 65_160 + draw(400) * 128]);
    out.extend([3, 0, 1, 2, 0, 0]);
    let length = draw(1448) as u16;
    out.extend(ends[1].wrapping_sub(u32::from(length)).to_le_bytes());
    out.extend(ends[0].to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(((windows[1] >> 7) as u16).to_le_bytes());
    for side in 0..2 {
        let other = 1 - side;
        out.extend(ends[side].to_le_bytes());
        out.extend(ends[side].wrapping_add(windows[other]).to_le_bytes());
        out.extend(windows[side].to_le_bytes());
        out.extend(ends[other].to_le_bytes());
        out.extend([7, 0x23]);
    }
}

const NOW: Instant = Instant::from_secs(1000);
