//! A host in this process: smoltcp at the far end of a wire.

use std::net::IpAddr;
use std::net::SocketAddr;

use anyhow::Context;
use hibernet_snapshot::Entropy;
use smoltcp::iface::Config;
use smoltcp::iface::Interface;
use smoltcp::iface::SocketHandle;
use smoltcp::iface::SocketSet;
use smoltcp::phy::Device;
use smoltcp::phy::DeviceCapabilities;
use smoltcp::phy::Medium;
use smoltcp::phy::RxToken;
use smoltcp::phy::TxToken;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::HardwareAddress;
use smoltcp::wire::IpCidr;

use super::super::scenario;
use crate::clock;
use crate::link::Wire;
use crate::peers::Passed;
use crate::peers::Pattern;
use crate::peers::Progress;
use crate::peers::Sender;
use crate::peers::StreamCounts;
use crate::peers::StreamPlan;
use crate::peers::StreamReport;

/// A host with its addresses, its sockets and what passed them.
pub(super) struct Host {
    interface: Interface,
    device: WireDevice,
    sockets: SocketSet<'static>,
    streams: Vec<Stream>,
    sending: bool,
}

struct Stream {
    socket: SocketHandle,
    end: Sender,
    id: u64,
    /// The other end is the gateway, which sends everything back; it needs no number.
    terminated: bool,
    greeting: Vec<u8>,
    sent: Passed,
    received: Passed,
    marked: u64,
    was_open: bool,
    closing: bool,
}

struct WireDevice {
    wire: Wire,
}

struct Received(Vec<u8>);

struct Sending<'a>(&'a Wire);

impl Host {
    pub(super) fn new(
        wire: Wire,
        addresses: &[(IpAddr, u8)],
        gateways: &[IpAddr],
        entropy: &mut Entropy,
    ) -> anyhow::Result<Self> {
        let mut config = Config::new(HardwareAddress::Ip);
        // smoltcp's generator starts from 64 bits; its default is zero, and so would be every first sequence number.
        config.random_seed = u64::from_le_bytes(*entropy.secret::<8>().expose());
        let mut device = WireDevice { wire };
        let mut interface = Interface::new(config, &mut device, now());
        interface.update_ip_addrs(|list| {
            for (address, prefix_len) in addresses {
                // The list has room for eight addresses, the demonstration's hosts have at most six.
                let _full = list.push(IpCidr::new((*address).into(), *prefix_len));
            }
        });
        for gateway in gateways {
            let routes = interface.routes_mut();
            match *gateway {
                IpAddr::V4(gateway) => routes.add_default_ipv4_route(gateway).map(drop),
                IpAddr::V6(gateway) => routes.add_default_ipv6_route(gateway).map(drop),
            }
            .context("adding a default route")?;
        }
        Ok(Self { interface, device, sockets: SocketSet::new(Vec::new()), streams: Vec::new(), sending: true })
    }

    /// Accepts so many streams at an address: in smoltcp every connection needs a listening socket of its own.
    pub(super) fn listen(&mut self, at: SocketAddr, streams: usize) -> anyhow::Result<()> {
        for _ in 0..streams {
            let mut socket = stream_socket();
            socket.listen(at).context("listening")?;
            let handle = self.sockets.add(socket);
            self.streams.push(Stream::new(handle, Sender::Server, 0, false));
        }
        Ok(())
    }

    pub(super) fn connect(&mut self, plan: &StreamPlan) -> anyhow::Result<()> {
        let mut socket = stream_socket();
        socket.connect(self.interface.context(), plan.to, plan.from).context("connecting")?;
        let handle = self.sockets.add(socket);
        self.streams.push(Stream::new(handle, Sender::Client, plan.id, plan.terminated));
        Ok(())
    }

    /// Takes what came, answers, and lets every stream send.
    pub(super) fn turn(&mut self) {
        self.interface.poll(now(), &mut self.device, &mut self.sockets);
        for stream in &mut self.streams {
            stream.turn(self.sockets.get_mut(stream.socket), self.sending);
        }
        self.interface.poll(now(), &mut self.device, &mut self.sockets);
    }

    pub(super) fn quiet(&mut self) {
        self.sending = false;
    }

    pub(super) fn close(&mut self) {
        for stream in &mut self.streams {
            stream.closing = true;
            self.sockets.get_mut::<tcp::Socket<'_>>(stream.socket).close();
        }
    }

    pub(super) fn mark(&mut self) {
        for stream in &mut self.streams {
            stream.marked = stream.received.bytes();
        }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { forwarded: self.counts(false), terminated: self.counts(true) }
    }

    fn counts(&self, terminated: bool) -> StreamCounts {
        let mut counts = StreamCounts::default();
        for stream in self.streams.iter().filter(|stream| stream.terminated == terminated) {
            counts.open += usize::from(stream.was_open);
            counts.advanced += usize::from(stream.received.bytes() > stream.marked);
            counts.closed += usize::from(stream.is_closed(self.sockets.get(stream.socket)));
            counts.sent += stream.sent.bytes();
            counts.received += stream.received.bytes();
        }
        counts
    }

    pub(super) fn report(&self) -> Vec<StreamReport> {
        self.streams.iter().map(|stream| stream.report(self.sockets.get(stream.socket))).collect()
    }
}

impl Stream {
    fn new(socket: SocketHandle, end: Sender, id: u64, terminated: bool) -> Self {
        let greets = end == Sender::Client && !terminated;
        let greeting = if greets { id.to_be_bytes().to_vec() } else { Vec::new() };
        let (sent, received) = Self::passed(id, end);
        let received = if terminated { sent.clone() } else { received };
        Self { socket, end, id, terminated, greeting, sent, received, marked: 0, was_open: false, closing: false }
    }

    fn passed(id: u64, end: Sender) -> (Passed, Passed) {
        let other = if end == Sender::Client { Sender::Server } else { Sender::Client };
        (Passed::new(Pattern::new(id, end)), Passed::new(Pattern::new(id, other)))
    }

    fn turn(&mut self, socket: &mut tcp::Socket<'static>, sending: bool) {
        while socket.can_recv() {
            // What a socket that can receive hands out is all taken.
            let _state = socket.recv(|arrived| {
                self.take(arrived);
                (arrived.len(), ())
            });
        }
        if !socket.can_send() || self.closing {
            return;
        }
        if self.end == Sender::Client && !self.greeting.is_empty() {
            let sent = socket.send_slice(&self.greeting).unwrap_or(0);
            self.greeting.drain(..sent);
        }
        self.was_open |= if self.end == Sender::Client { self.greeting.is_empty() } else { self.greeting.len() == 8 };
        let allowed = (self.received.bytes() + CHUNK).saturating_sub(self.sent.bytes()).min(CHUNK);
        if sending && self.was_open && allowed > 0 {
            let mut chunk = vec![0; allowed as usize];
            self.sent.next(&mut chunk);
            let sent = socket.send_slice(&chunk).unwrap_or(0);
            self.sent.note(&chunk[..sent]);
        }
    }

    fn take(&mut self, mut arrived: &[u8]) {
        if self.end == Sender::Server && self.greeting.len() < 8 {
            let wanted = (8 - self.greeting.len()).min(arrived.len());
            let (number, rest) = arrived.split_at(wanted);
            self.greeting.extend_from_slice(number);
            arrived = rest;
            if let Ok(number) = <[u8; 8]>::try_from(self.greeting.as_slice()) {
                self.id = u64::from_be_bytes(number);
                (self.sent, self.received) = Self::passed(self.id, self.end);
            }
        }
        if !arrived.is_empty() {
            self.received.receive(arrived);
        }
    }

    fn is_closed(&self, socket: &tcp::Socket<'static>) -> bool {
        self.closing && matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait)
    }

    fn report(&self, socket: &tcp::Socket<'static>) -> StreamReport {
        let reset = self.was_open && !self.closing && !socket.is_active();
        let mismatch = (!self.received.is_intact()).then(|| "other bytes arrived than were sent".to_owned());
        StreamReport {
            id: self.id,
            terminated: self.terminated,
            sent: self.sent.bytes(),
            sent_hash: self.sent.hash(),
            received: self.received.bytes(),
            received_hash: self.received.hash(),
            reset,
            failure: reset.then(|| "reset".to_owned()).or(mismatch),
            closed: self.is_closed(socket),
        }
    }
}

impl Device for WireDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        Some((Received(self.wire.receive()?), Sending(&self.wire)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&self.wire))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = scenario::MTU as usize;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut datagram = vec![0; length];
        let result = f(&mut datagram);
        self.0.send(datagram);
        result
    }
}

fn stream_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 16 * 1024]);
    tcp::Socket::new(buffer(), buffer())
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(clock::monotonic().as_nanos() / 1000).unwrap_or(i64::MAX))
}

/// How far a stream may be ahead of what came back.
const CHUNK: u64 = 2400;
