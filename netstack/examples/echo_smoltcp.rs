//! A smoltcp echo server that becomes tracked, firewalled and restorable by another type of device.
//!
//! Server and client are two smoltcp interfaces at the ends of a cable in memory, so that it runs anywhere:
//! `cargo run -p hibernet-netstack --example echo_smoltcp`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::error::Error;
use std::rc::Rc;

use hibernet_netstack::{HookedConfig, HookedDevice, QueueLimits, Ruleset, StackEvent};
use hibernet_snapshot::{Entropy, GenerationId};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

/// The server's device. In the plain program this line is `type ServerDevice = Cable;`, and the device made is the cable
/// itself; all of `Host` is the same in both.
type ServerDevice = HookedDevice<Cable>;

/// Connections to the echo service, and nothing else. A segment that belongs to no known connection is INVALID.
const RULES: &str = r#"{"policy": {"input": "drop"}, "rules": [
    {"chain": "input", "match": {"ctstate": ["established", "related"]}, "action": "accept"},
    {"chain": "input", "match": {"ctstate": ["new"], "proto": "tcp", "dport": 7, "tcpflags_syn_only": true}, "action": "accept"}
]}"#;

fn main() -> Result<(), Box<dyn Error>> {
    for line in run()? {
        println!("{line}");
    }
    Ok(())
}

/// Runs it all; gives what there is to say.
pub(crate) fn run() -> Result<Vec<String>, Box<dyn Error>> {
    let mut said = Vec::new();
    let mut say = |line: String| said.push(line);
    // A live program takes Entropy::from_os().
    let mut entropy = Entropy::from_test_seed(1);
    let mut clock = Instant::ZERO;

    let (server_end, mut client_end) = Cable::pair();
    let mut device: ServerDevice = HookedDevice::new(server_end, hooks()?, entropy.fork(), at(clock))?;
    let mut server = Host::new([192, 0, 2, 1], &mut device);
    let mut client = Host::new([192, 0, 2, 2], &mut client_end);
    server.listen(7)?;
    client.connect([192, 0, 2, 1], 7)?;

    say(format!("echo: {}", ask(&mut client, &mut client_end, &mut server, &mut device, "hello", &mut clock)?));
    device.poll(at(clock));
    say("flows before:".to_owned());
    device.flows(at(clock)).iter().for_each(|flow| say(format!("  {flow}")));
    let image = device.save(GenerationId([1; 16]), at(clock))?;
    say(format!("saved: {}", if image.is_empty() { "nothing" } else { "rules, counters and flows" }));

    // Without the image: a new firewall knows no connection, so the peer's next segment is INVALID to it.
    let cable = device.into_device();
    let mut forgetful: ServerDevice = HookedDevice::new(cable, hooks()?, entropy.fork(), at(clock))?;
    client.send("again")?;
    for _ in 0..3 {
        turn(&mut client, &mut client_end, &mut server, &mut forgetful, &mut clock);
    }
    let invalid = core::iter::from_fn(|| forgetful.hooks_mut().next_event())
        .filter(|event| matches!(event, StackEvent::Invalid { .. }))
        .count();
    say(format!("without the image: {} answered, invalid: {}", client.received().len(), invalid > 0));

    // With it the connection goes on: what was lost is sent again.
    let cable = forgetful.into_device();
    let (mut device, report): (ServerDevice, _) =
        HookedDevice::restore(cable, &image, QueueLimits::default(), entropy.fork(), at(clock))?;
    say(format!("restored: {} kept, {} reset, {} dropped", report.kept, report.reset, report.dropped));
    say("flows after:".to_owned());
    device.flows(at(clock)).iter().for_each(|flow| say(format!("  {flow}")));
    say(format!("echo: {}", ask(&mut client, &mut client_end, &mut server, &mut device, "", &mut clock)?));

    // A port that no rule names.
    client.connect([192, 0, 2, 1], 22)?;
    turn(&mut client, &mut client_end, &mut server, &mut device, &mut clock);
    device.hooks().stats().drops().for_each(|(reason, count)| say(format!("dropped: {reason} {count}")));
    Ok(said)
}

fn hooks() -> Result<HookedConfig, Box<dyn Error>> {
    let mut config = HookedConfig { name: "eth0".to_owned(), rules: Ruleset::from_json(RULES)?, ..Default::default() };
    config.conntrack.capacity = 1024;
    // As a firewall has it that trusts its table: no connection is picked up in its middle.
    config.conntrack.sysctls.set("nf_conntrack_tcp_loose", "0")?;
    config.conntrack.sysctls.set("nf_conntrack_max", "1024")?;
    Ok(config)
}

/// smoltcp's time as hibernet's.
fn at(clock: Instant) -> hibernet_snapshot::Instant {
    hibernet_snapshot::Instant::from_nanos(clock.total_micros().unsigned_abs() * 1000)
}

/// The client sends; both hosts run until an answer is there. Gives the answer.
fn ask<D: Device>(
    client: &mut Host,
    client_device: &mut Cable,
    server: &mut Host,
    server_device: &mut D,
    text: &str,
    clock: &mut Instant,
) -> Result<String, Box<dyn Error>> {
    client.send(text)?;
    for _ in 0..1000 {
        turn(client, client_device, server, server_device, clock);
        let answer = client.received();
        if !answer.is_empty() {
            return Ok(String::from_utf8(answer)?);
        }
    }
    Err("no answer within ten seconds".into())
}

/// Ten milliseconds of both hosts.
fn turn<D: Device>(
    client: &mut Host,
    client_device: &mut Cable,
    server: &mut Host,
    server_device: &mut D,
    clock: &mut Instant,
) {
    for _ in 0..4 {
        client.run(*clock, client_device);
        server.run(*clock, server_device);
        server.echo();
    }
    *clock += Duration::from_millis(10);
}

/// A plain smoltcp program: an interface and its sockets.
struct Host {
    interface: Interface,
    sockets: SocketSet<'static>,
    streams: Vec<SocketHandle>,
    to_send: Vec<u8>,
}

impl Host {
    fn new<D: Device>(addr: [u8; 4], device: &mut D) -> Self {
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), device, Instant::ZERO);
        let [a, b, c, d] = addr;
        interface.update_ip_addrs(|addrs| {
            // There is room for eight.
            let _full = addrs.push(IpCidr::new(IpAddress::v4(a, b, c, d), 24));
        });
        Self { interface, sockets: SocketSet::new(Vec::new()), streams: Vec::new(), to_send: Vec::new() }
    }

    fn listen(&mut self, port: u16) -> Result<(), Box<dyn Error>> {
        let mut socket = stream();
        socket.listen(port).map_err(|error| format!("listen: {error:?}"))?;
        self.streams.push(self.sockets.add(socket));
        Ok(())
    }

    fn connect(&mut self, addr: [u8; 4], port: u16) -> Result<(), Box<dyn Error>> {
        let [a, b, c, d] = addr;
        let from = 49_152 + u16::try_from(self.streams.len())?;
        let mut socket = stream();
        socket
            .connect(self.interface.context(), (IpAddress::v4(a, b, c, d), port), from)
            .map_err(|error| format!("connect: {error:?}"))?;
        self.streams.push(self.sockets.add(socket));
        Ok(())
    }

    fn send(&mut self, text: &str) -> Result<(), Box<dyn Error>> {
        self.to_send.extend(text.bytes());
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Box<dyn Error>> {
        let Some(first) = self.streams.first() else { return Ok(()) };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*first);
        if socket.may_send() && !self.to_send.is_empty() {
            let sent = socket.send_slice(&self.to_send).map_err(|error| format!("send: {error:?}"))?;
            self.to_send.drain(..sent);
        }
        Ok(())
    }

    /// What the first stream has got.
    fn received(&mut self) -> Vec<u8> {
        let Some(first) = self.streams.first() else { return Vec::new() };
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*first);
        socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap_or_default()
    }

    /// Sends back what the first stream has got.
    fn echo(&mut self) {
        let got = self.received();
        self.to_send.extend(got);
        // A stream that is over takes nothing back.
        let _over = self.flush();
    }

    fn run<D: Device>(&mut self, clock: Instant, device: &mut D) {
        let _over = self.flush();
        self.interface.poll(clock, device, &mut self.sockets);
    }
}

fn stream() -> tcp::Socket<'static> {
    tcp::Socket::new(tcp::SocketBuffer::new(vec![0; 4096]), tcp::SocketBuffer::new(vec![0; 4096]))
}

/// One end of a cable in memory.
struct Cable {
    from_peer: Wire,
    to_peer: Wire,
}

type Wire = Rc<RefCell<VecDeque<Vec<u8>>>>;

impl Cable {
    fn pair() -> (Self, Self) {
        let (one, other) = (Wire::default(), Wire::default());
        (Self { from_peer: Rc::clone(&one), to_peer: Rc::clone(&other) }, Self { from_peer: other, to_peer: one })
    }
}

impl Device for Cable {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken;

    fn receive(&mut self, _: Instant) -> Option<(RxToken, TxToken)> {
        let datagram = self.from_peer.borrow_mut().pop_front()?;
        Some((RxToken(datagram), TxToken(Rc::clone(&self.to_peer))))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken> {
        Some(TxToken(Rc::clone(&self.to_peer)))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct TxToken(Wire);

impl phy::TxToken for TxToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut datagram = vec![0; len];
        let result = write(&mut datagram);
        self.0.borrow_mut().push_back(datagram);
        result
    }
}
