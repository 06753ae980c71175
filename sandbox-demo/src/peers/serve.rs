//! A peer's event loop: one thread, its sockets, and the supervisor's requests on standard input.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use hibernet_snapshot::Instant;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::event::epoll::EventData;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use serde_json::Value;

use super::counters::KernelCounters;
use super::ping::Pings;
use super::protocol::PeerReport;
use super::protocol::PeerRequest;
use super::tcp::Streams;
use super::udp::Datagrams;
use crate::clock;
use crate::fault::raise_file_limit;
use crate::link::make_tun;
use crate::netlink::Netlink;
use crate::netns;

/// What an event came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Supervisor,
    Listener(usize),
    Stream(usize),
    DatagramFlow(usize),
    DatagramServer(usize),
    Ping(usize),
    PingWatcher(usize),
}

/// Runs a peer for the supervisor with process id `parent`, in a network namespace of its own, until its standard
/// input ends.
pub(crate) fn serve(parent: u32) -> anyhow::Result<()> {
    raise_file_limit(FILES_NEEDED)?;
    netns::enter_network().context("making a peer's network namespace")?;
    netns::die_with(parent)?;
    netns::calm_kernel();
    let mut service = Service::new()?;
    say(&Ok(Value::Null))?;
    service.run()
}

struct Service {
    poll: OwnedFd,
    streams: Streams,
    datagrams: Datagrams,
    pings: Pings,
    unread: Vec<u8>,
    input_over: bool,
}

impl Service {
    fn new() -> anyhow::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll instance")?;
        rustix::io::ioctl_fionbio(std::io::stdin(), true).context("preparing standard input")?;
        epoll::add(&poll, std::io::stdin(), Source::Supervisor.token(), EventFlags::IN)?;
        Ok(Self {
            poll,
            streams: Streams::default(),
            datagrams: Datagrams::default(),
            pings: Pings::default(),
            unread: Vec::new(),
            input_over: false,
        })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut next_tick = clock::monotonic();
        let mut events = Vec::with_capacity(256);
        while !self.input_over {
            self.wait(&mut events, next_tick)?;
            for event in events.drain(..) {
                self.dispatch(Source::of(event.data))?;
            }
            let now = clock::monotonic();
            if now >= next_tick {
                // A late tick is not made up for: traffic slows down with the machine.
                next_tick = next_tick.saturating_add(TICK).max(now);
                self.streams.tick(&self.poll)?;
                self.datagrams.tick();
                self.pings.tick();
            }
        }
        Ok(())
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, until: Instant) -> anyhow::Result<()> {
        let left = until.saturating_since(clock::monotonic());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match epoll::wait(&self.poll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).context("waiting for events"),
        }
    }

    fn dispatch(&mut self, source: Source) -> anyhow::Result<()> {
        match source {
            Source::Supervisor => self.hear()?,
            Source::Listener(index) => self.streams.accept(&self.poll, index)?,
            Source::Stream(index) => self.streams.ready(&self.poll, index),
            Source::DatagramFlow(index) => self.datagrams.flow_ready(index),
            Source::DatagramServer(index) => self.datagrams.server_ready(index),
            Source::Ping(index) => self.pings.ping_ready(index),
            Source::PingWatcher(index) => self.pings.watcher_ready(index),
        }
        Ok(())
    }

    fn hear(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 65_536];
        loop {
            match rustix::io::read(std::io::stdin(), &mut buffer) {
                Ok(0) => {
                    self.input_over = true;
                    return Ok(());
                }
                Ok(read) => self.unread.extend_from_slice(&buffer[..read]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("reading the supervisor's request"),
            }
        }
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let request = serde_json::from_slice(&line).context("reading the supervisor's request")?;
            let answer = self.answer(request).map_err(|error| format!("{error:#}"));
            say(&answer)?;
        }
        Ok(())
    }

    fn answer(&mut self, request: PeerRequest) -> anyhow::Result<Value> {
        let poll = &self.poll;
        match request {
            PeerRequest::MakeTun { device, mtu } => {
                make_tun(&device)?;
                Netlink::open()?.set_queue(&device, mtu, TUN_QUEUE)?;
            }
            PeerRequest::Network { device, addresses, gateways } => {
                let mut netlink = Netlink::open()?;
                netlink.set_up("lo")?;
                netlink.set_up(&device)?;
                for (address, prefix_len) in addresses {
                    netlink.add_address(&device, address, prefix_len)?;
                }
                for gateway in gateways {
                    netlink.add_default_route(gateway)?;
                }
            }
            PeerRequest::Listen { at } => at.into_iter().try_for_each(|at| self.streams.listen(poll, at))?,
            PeerRequest::Answer { at } => {
                for address in at {
                    self.datagrams.answer_at(poll, address)?;
                    self.pings.watch(poll, SocketAddr::ip(&address))?;
                }
            }
            PeerRequest::Connect { streams } => self.streams.plan(streams),
            PeerRequest::Send { flows } => flows.iter().try_for_each(|plan| self.datagrams.send_on(poll, plan))?,
            PeerRequest::Ping { targets } => targets.into_iter().try_for_each(|to| self.pings.ping(poll, to))?,
            PeerRequest::Mark => {
                self.streams.mark();
                return Ok(serde_json::to_value(self.streams.progress())?);
            }
            PeerRequest::Progress => return Ok(serde_json::to_value(self.streams.progress())?),
            PeerRequest::StartStreams => self.streams.start(),
            PeerRequest::QuietStreams => self.streams.quiet(),
            PeerRequest::CloseStreams => self.streams.close(),
            PeerRequest::FinishDatagrams => {
                self.datagrams.finish();
                self.pings.finish();
            }
            PeerRequest::Report => return Ok(serde_json::to_value(self.report())?),
            PeerRequest::Counters => return Ok(serde_json::to_value(KernelCounters::read())?),
            PeerRequest::Clear => {
                self.streams = Streams::default();
                self.datagrams = Datagrams::default();
                self.pings = Pings::default();
            }
        }
        Ok(Value::Null)
    }

    fn report(&self) -> PeerReport {
        PeerReport { streams: self.streams.report(), udp: self.datagrams.report(), ping: self.pings.report() }
    }
}

impl Source {
    /// The number epoll hands back.
    pub(super) fn token(self) -> EventData {
        let (kind, index) = match self {
            Self::Supervisor => (0, 0),
            Self::Listener(index) => (1, index),
            Self::Stream(index) => (2, index),
            Self::DatagramFlow(index) => (3, index),
            Self::DatagramServer(index) => (4, index),
            Self::Ping(index) => (5, index),
            Self::PingWatcher(index) => (6, index),
        };
        EventData::new_u64(kind << 32 | index as u64)
    }

    fn of(token: EventData) -> Self {
        let index = (token.u64() & 0xffff_ffff) as usize;
        match token.u64() >> 32 {
            1 => Self::Listener(index),
            2 => Self::Stream(index),
            3 => Self::DatagramFlow(index),
            4 => Self::DatagramServer(index),
            5 => Self::Ping(index),
            6 => Self::PingWatcher(index),
            _ => Self::Supervisor,
        }
    }
}

fn say(answer: &Result<Value, String>) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer).context("writing to the supervisor")?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line).and_then(|()| stdout.flush()).context("writing to the supervisor")
}

/// Datagrams that may wait for the gateway: as many as the receive ring of a packet socket holds.
const TUN_QUEUE: u32 = 8192;
/// The grain of all pacing.
const TICK: Duration = Duration::from_millis(5);
/// A thousand connections, a hundred flows, and room.
pub(crate) const FILES_NEEDED: u64 = 1280;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_survives_its_token() {
        for source in [
            Source::Supervisor,
            Source::Listener(1),
            Source::Stream(999),
            Source::DatagramFlow(3),
            Source::DatagramServer(4),
            Source::Ping(5),
            Source::PingWatcher(6),
        ] {
            assert_eq!(Source::of(source.token()), source);
        }
    }
}
