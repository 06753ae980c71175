//! What the local TCP sockets cost: a packet beside many other sockets, and one stream beside smoltcp's own.
//!
//! The last lines are ratios of one run: the times themselves say more of the machine than of the stack.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hibernet_netstack::{
    HookedConfig, HookedDevice, Ingress, LinkConfig, LinkId, ListenOptions, Offload, Ruleset, Stack, StackConfig,
    StreamOptions, TcpListener, TcpStream,
};
use hibernet_snapshot::{Entropy, Instant};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

/// Bytes of one measured transfer.
const BYTES: usize = 4 << 20;
/// Bytes of each buffer of a stream.
const BUFFER: usize = 1 << 18;
const MTU: usize = 1500;
/// Connections beside the one that is measured.
const SOCKETS: [u32; 3] = [1, 100, 10_000];
/// Frames that wait before the other side has its turn, as a burst of a device.
const BURST: usize = 64;
const SERVER: [u8; 4] = [10, 0, 0, 1];

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;
type MakeServer = fn(Cable) -> Box<dyn End>;

/// One end of a cable.
#[derive(Clone)]
struct Cable {
    inward: Queue,
    outward: Queue,
    /// Reads what arrives without its checksum: the client's part is not what is measured.
    trusts: bool,
}

impl Cable {
    fn pair() -> (Self, Self) {
        let (one, other) = (Queue::default(), Queue::default());
        let client = Self { inward: Rc::clone(&one), outward: Rc::clone(&other), trusts: true };
        (client, Self { inward: other, outward: one, trusts: false })
    }

    fn take(&self) -> Option<Vec<u8>> {
        self.inward.borrow_mut().pop_front()
    }

    fn put(&self, datagram: Vec<u8>) {
        self.outward.borrow_mut().push_back(datagram);
    }
}

struct Received(Vec<u8>);
struct Room<'a>(&'a Cable);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut datagram = vec![0; len];
        let result = write(&mut datagram);
        self.0.put(datagram);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Room<'_>)> {
        let datagram = self.take()?;
        Some((Received(datagram), Room(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Room<'_>> {
        (self.outward.borrow().len() < BURST).then_some(Room(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ip, MTU);
        if self.trusts {
            (capabilities.checksum.tcp, capabilities.checksum.ipv4) = (Checksum::Tx, Checksum::Tx);
        }
        capabilities
    }
}

/// A smoltcp program with one stream, over any device.
struct Plain<D> {
    interface: Interface,
    device: D,
    sockets: SocketSet<'static>,
    stream: SocketHandle,
}

impl<D: Device> Plain<D> {
    fn new(mut device: D, addr: [u8; 4], acks_at_once: bool) -> Self {
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, clock(START));
        let [a, b, c, d] = addr;
        interface.update_ip_addrs(|addrs| addrs.push(IpCidr::new(IpAddress::v4(a, b, c, d), 24)).unwrap());
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        if acks_at_once {
            socket.set_ack_delay(None);
        }
        let mut sockets = SocketSet::new(Vec::new());
        let stream = sockets.add(socket);
        Self { interface, device, sockets, stream }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.stream)
    }
}

/// One end of the measured stream.
trait End {
    fn turn(&mut self, now: Instant);
    fn read(&mut self, room: &mut [u8], now: Instant) -> usize;
    fn write(&mut self, bytes: &[u8], now: Instant) -> usize;
}

impl<D: Device> End for Plain<D> {
    fn turn(&mut self, now: Instant) {
        self.interface.poll(clock(now), &mut self.device, &mut self.sockets);
    }

    fn read(&mut self, room: &mut [u8], _: Instant) -> usize {
        self.socket().recv_slice(room).unwrap_or(0)
    }

    fn write(&mut self, bytes: &[u8], _: Instant) -> usize {
        self.socket().send_slice(bytes).unwrap_or(0)
    }
}

/// A plain server.
fn serving<D: Device>(device: D, acks_at_once: bool) -> Plain<D> {
    let mut server = Plain::new(device, SERVER, acks_at_once);
    server.socket().listen(80).unwrap();
    server
}

/// The stack's own stream.
struct Own {
    stack: Stack,
    link: LinkId,
    cable: Cable,
    listener: TcpListener,
    stream: Option<TcpStream>,
}

impl Own {
    /// `coalesces`: segments of a burst are put together in front of the hooks.
    fn new(cable: Cable, coalesces: bool) -> Self {
        let mut stack = stack(4096);
        let link = stack.link("net").unwrap();
        stack.set_link_coalescing(link, coalesces);
        let bytes = BUFFER as u32;
        let stream = StreamOptions { receive_buffer: bytes, send_buffer: bytes, ..StreamOptions::default() };
        let options = ListenOptions { stream, ..ListenOptions::default() };
        let listener = stack.tcp_listen(IpAddr::from(SERVER), 80, options).unwrap();
        Self { link, stack, cable, listener, stream: None }
    }

    fn emit(&mut self) {
        while let Some(out) = self.stack.egress() {
            self.cable.put(out.datagram);
        }
    }
}

impl End for Own {
    fn turn(&mut self, now: Instant) {
        let cable = self.cable.clone();
        let burst = core::iter::from_fn(|| Some(Ingress { frame: cable.take()?, offload: Offload::NONE }));
        self.stack.ingress_burst(self.link, burst, now);
        self.stack.poll(now);
        self.emit();
        while self.stack.next_event().is_some() {}
        if self.stream.is_none() {
            self.stream = self.stack.tcp_accept(self.listener);
        }
    }

    fn read(&mut self, room: &mut [u8], now: Instant) -> usize {
        let read = self.stream.and_then(|stream| self.stack.tcp_read(stream, room, now).ok()).unwrap_or(0);
        self.emit();
        read
    }

    fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        let written = self.stream.and_then(|stream| self.stack.tcp_write(stream, bytes, now).ok()).unwrap_or(0);
        self.emit();
        written
    }
}

/// The client, connected to a server.
struct Course {
    client: Plain<Cable>,
    server: Box<dyn End>,
    now: Instant,
    chunk: Vec<u8>,
}

impl Course {
    fn new(make: impl FnOnce(Cable) -> Box<dyn End>) -> Self {
        let (near, far) = Cable::pair();
        let mut client = Plain::new(near, [10, 0, 0, 2], false);
        let Plain { interface, sockets, stream, .. } = &mut client;
        let socket = sockets.get_mut::<Socket<'_>>(*stream);
        socket.connect(interface.context(), (IpAddress::v4(10, 0, 0, 1), 80), 40_000).unwrap();
        let mut course = Self { client, server: make(far), now: START, chunk: vec![7; 1 << 16] };
        for _ in 0..10 {
            course.turn();
        }
        course
    }

    fn turn(&mut self) {
        self.now = self.now.saturating_add(Duration::from_micros(50));
        self.client.turn(self.now);
        self.server.turn(self.now);
    }

    /// Moves [`BYTES`] one way.
    fn carry(&mut self, inward: bool) {
        let (mut sent, mut got, mut room) = (0, 0, vec![0; 1 << 16]);
        while got < BYTES {
            let chunk = self.chunk.get(..(BYTES - sent).min(1 << 16)).unwrap();
            if inward {
                sent += self.client.write(chunk, self.now);
            } else {
                sent += self.server.write(chunk, self.now);
            }
            self.turn();
            loop {
                let (client, server) = (&mut self.client, &mut self.server);
                let read = if inward { server.read(&mut room, self.now) } else { client.read(&mut room, self.now) };
                if read == 0 {
                    break;
                }
                got += read;
            }
        }
        black_box(&room);
    }
}

fn throughput(criterion: &mut Criterion) {
    let mut ratios = Vec::new();
    for inward in [true, false] {
        let way = if inward { "in" } else { "out" };
        let mut group = criterion.benchmark_group(format!("stream-{way}"));
        group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(20);
        let kinds: [(&str, MakeServer); 5] = [
            ("smoltcp", |cable| Box::new(serving(cable, false))),
            ("smoltcp-acks-at-once", |cable| Box::new(serving(cable, true))),
            ("smoltcp-behind-hooks", |cable| Box::new(serving(hooked(cable), false))),
            ("stack", |cable| Box::new(Own::new(cable, true))),
            ("stack-segment-by-segment", |cable| Box::new(Own::new(cable, false))),
        ];
        for (name, make) in kinds {
            let mut course = Course::new(make);
            group.bench_function(name, |bencher| bencher.iter(|| course.carry(inward)));
        }
        group.finish();
        // In turns, so that a busy moment of the machine is no server's alone.
        let mut courses: Vec<_> = kinds.iter().map(|(name, make)| (*name, Course::new(make), Vec::new())).collect();
        for _ in 0..ROUNDS {
            for (_, course, times) in &mut courses {
                let begun = cpu();
                for _ in 0..CARRIES {
                    course.carry(inward);
                }
                times.push(cpu().saturating_sub(begun));
            }
        }
        let times =
            courses.into_iter().map(|(name, _, times)| (name, mean(times) / f64::from(CARRIES))).collect::<Vec<_>>();
        ratios.push((way, times));
    }
    for (way, times) in ratios {
        let plain = times.first().unwrap().1;
        for (name, time) in &times {
            println!(
                "ratio: stream {way}, {name}: {:.2} of the plain smoltcp server, {:.2} Gbit/s",
                plain / time,
                BYTES as f64 * 8.0 / time / 1e9
            );
        }
    }
}

/// A segment of one byte to one of many connections, its acknowledgement and the read.
fn packet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packet");
    let mut crowds = Vec::new();
    for sockets in SOCKETS {
        let mut crowd = Crowd::new(sockets);
        group.bench_function(BenchmarkId::from_parameter(sockets), |bencher| bencher.iter(|| crowd.speak()));
        crowds.push(((sockets, "all in turn"), crowd, Vec::new()));
        if sockets > 1 {
            // What the number of sockets costs by itself; the rest is memory that no cache holds.
            let mut crowd = Crowd::new(sockets);
            crowd.stride = 0;
            crowds.push(((sockets, "one of them"), crowd, Vec::new()));
        }
    }
    group.finish();
    for _ in 0..ROUNDS {
        for (_, crowd, times) in &mut crowds {
            let begun = cpu();
            for _ in 0..SPEECHES {
                crowd.speak();
            }
            times.push(cpu().saturating_sub(begun));
        }
    }
    let times: Vec<_> =
        crowds.into_iter().map(|(whose, _, times)| (whose, mean(times) / f64::from(SPEECHES))).collect();
    let one = times.first().unwrap().1;
    for ((sockets, to), time) in times {
        println!(
            "ratio: a packet at {sockets} sockets, to {to}: {:.2} of one at 1 socket, {:.0} ns",
            time / one,
            time * 1e9
        );
    }
}

/// Connections of one stack; the peers are numbers.
struct Crowd {
    stack: Stack,
    link: LinkId,
    /// Stream, SND.NXT and RCV.NXT of the peer.
    peers: Vec<(TcpStream, SocketAddr, u32, u32)>,
    next: usize,
    /// From one to the next: visits all, not in the order they were opened.
    stride: usize,
    now: Instant,
}

impl Crowd {
    fn new(sockets: u32) -> Self {
        let mut stack = stack(32_768);
        let small = StreamOptions { receive_buffer: 4096, send_buffer: 4096, ..StreamOptions::default() };
        let options = ListenOptions { backlog: 1024, half_open: 1024, stream: small, ..ListenOptions::default() };
        let listener = stack.tcp_listen(IpAddr::from(SERVER), 80, options).unwrap();
        let link = stack.link("net").unwrap();
        let mut crowd = Self { stack, link, peers: Vec::new(), next: 0, stride: 7919, now: START };
        for number in 0..sockets {
            let peer = SocketAddr::new(IpAddr::from([10, 0, 1, (number >> 14) as u8]), 1024 + (number & 0x3fff) as u16);
            crowd.stack.ingress(link, segment(peer, SYN, 1000, 0, &[]), crowd.now);
            let syn_ack = crowd.stack.egress().unwrap().datagram;
            let theirs = u32::from_be_bytes(*syn_ack.get(24..).unwrap().first_chunk().unwrap()).wrapping_add(1);
            crowd.stack.ingress(link, segment(peer, ACK, 1001, theirs, &[]), crowd.now);
            let stream = crowd.stack.tcp_accept(listener).unwrap();
            crowd.peers.push((stream, peer, 1001, theirs));
        }
        crowd
    }

    fn speak(&mut self) {
        self.next = (self.next + self.stride) % self.peers.len();
        let (stream, peer, seq, ack) = self.peers.get_mut(self.next).unwrap();
        self.now = self.now.saturating_add(Duration::from_micros(1));
        self.stack.ingress(self.link, segment(*peer, ACK, *seq, *ack, &[7]), self.now);
        *seq = seq.wrapping_add(1);
        let read = self.stack.tcp_read(*stream, &mut [0; 16], self.now);
        assert_eq!(read, Ok(1), "the byte has arrived");
        assert!(self.stack.egress().is_some(), "it was acknowledged");
        while self.stack.egress().is_some() {}
        while self.stack.next_event().is_some() {}
    }
}

/// A segment of a peer to port 80 of the stack.
fn segment(peer: SocketAddr, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Vec<u8> {
    let IpAddr::V4(from) = peer.ip() else { return Vec::new() };
    let len = (40 + data.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(len.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    header.extend(from.octets());
    header.extend(SERVER);
    let sum = checksum(&header);
    header.splice(10..12, sum.to_be_bytes());
    let mut tcp = Vec::new();
    tcp.extend(peer.port().to_be_bytes());
    tcp.extend(80_u16.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(data);
    let mut covered = header.get(12..20).unwrap().to_vec();
    covered.extend([0, 6]);
    covered.extend((tcp.len() as u16).to_be_bytes());
    covered.extend(&tcp);
    let sum = checksum(&covered);
    tcp.splice(16..18, sum.to_be_bytes());
    [header, tcp].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn stack(capacity: u32) -> Stack {
    let mut conntrack = hibernet_conntrack::Config { capacity, ..hibernet_conntrack::Config::default() };
    conntrack.sysctls.set("nf_conntrack_max", &capacity.to_string()).unwrap();
    let addrs = vec!["10.0.0.1/16".parse().unwrap()];
    let config = StackConfig {
        links: vec![LinkConfig { name: "net".into(), mtu: MTU as u32, addrs, medium: hibernet_netstack::Medium::Ip }],
        rules: Ruleset::open(),
        conntrack,
        ..StackConfig::default()
    };
    Stack::new(config, Entropy::from_test_seed(1), START).unwrap()
}

fn hooked(cable: Cable) -> HookedDevice<Cable> {
    let config = HookedConfig { rules: Ruleset::open(), ..HookedConfig::default() };
    HookedDevice::new(cable, config, Entropy::from_test_seed(2), START).unwrap()
}

fn clock(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros((now.as_nanos() / 1000) as i64)
}

/// Time this thread has spent on a processor: what else the machine does is not in the ratios.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// In seconds.
fn mean(times: Vec<Duration>) -> f64 {
    times.iter().sum::<Duration>().as_secs_f64() / times.len() as f64
}

const START: Instant = Instant::from_secs(1000);
const ROUNDS: usize = 15;
/// The kernel counts processor time by its own ticks: each measured piece is some of them long.
const CARRIES: u32 = 16;
const SPEECHES: u32 = 10_000;
const SYN: u8 = 2;
const ACK: u8 = 16;

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = packet, throughput
}
criterion_main!(benches);
