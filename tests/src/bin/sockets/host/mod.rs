//! The process of the stack: one link, one stack, and the program that uses its sockets.
//!
//! Restored, it is told the image's path and the device's name. What the program itself has to remember is in a file beside
//! the image.

mod program;

use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hibernet_conntrack::{Config as ConntrackConfig, Sysctls};
use hibernet_netstack::{
    Cidr, Decoded, Ingress, LinkConfig, LinkId, Medium, Offload, RestorePolicy, Route, Ruleset, Stack, StackConfig,
    StreamOutcome, Supplied,
};
use hibernet_snapshot::file::{OsFilesystem, write_atomic};
use hibernet_snapshot::image::Limits;
use hibernet_snapshot::{Entropy, Instant};
use rustix::event::{PollFd, PollFlags, Timespec};
use sandbox_demo::parts::{Link, die_with, monotonic};
use serde::Serialize;
use serde_json::Value;

use self::program::Program;
use super::protocol::{HelloReply, HostConfig, Request, SaveReply, StatsReply};
use super::weather::{RST, SYN, Segment, Sky, Way};

/// How the process comes to its stack.
pub(super) struct Start {
    pub(super) parent: u32,
    pub(super) device: String,
    pub(super) image: Option<PathBuf>,
}

/// The stack at work.
struct Host {
    stack: Stack,
    link: LinkId,
    device: Link,
    sky: Sky,
    program: Program,
    entropy: Entropy,
    held: bool,
    counts: StatsReply,
    syns: Vec<(u16, u16, u32)>,
}

/// Runs the process until its standard input ends.
pub(super) fn run(start: &Start) -> Result<()> {
    die_with(start.parent)?;
    let device = Link::open(&start.device.parse().map_err(anyhow::Error::msg)?, Medium::Ip)?;
    let mut requests = Requests::default();
    let mut host = match &start.image {
        Some(image) => Host::restored(image, device)?,
        None => {
            say(&HelloReply::default())?;
            let line = requests.next_line()?.context("the configuration is missing")?;
            let host = Host::fresh(&serde_json::from_slice(&line)?, device)?;
            say(&Value::Null)?;
            host
        }
    };
    loop {
        host.wait()?;
        while let Some(line) = requests.poll()? {
            let request: Request = serde_json::from_slice(&line).context("a request")?;
            let answer = host.answer(request).map_err(|error| format!("{error:#}"));
            write_line(&answer)?;
        }
        if requests.over {
            return Ok(());
        }
        host.turn();
    }
}

impl Host {
    fn fresh(config: &HostConfig, device: Link) -> Result<Self> {
        let mut entropy = Entropy::from_os()?;
        let mut sysctls = Sysctls::default();
        for (name, value) in &config.sysctls {
            sysctls.set(name, value).with_context(|| format!("sysctl {name}"))?;
        }
        let (name, addrs) = (device.name().to_owned(), config.addrs.clone());
        let link = LinkConfig { name, mtu: 1500, addrs, medium: Medium::Ip };
        let stack = StackConfig {
            routes: vec![Route { destination: Cidr::all_v4(), via: Some(config.gateway), link: link.name.clone() }],
            links: vec![link],
            rules: ruleset(config.rules.as_ref())?,
            conntrack: ConntrackConfig { sysctls, capacity: config.capacity, ..ConntrackConfig::default() },
            ..StackConfig::default()
        };
        let stack = Stack::new(stack, entropy.fork(), monotonic())?;
        Self::new(stack, device, Program::default(), entropy)
    }

    fn restored(path: &Path, device: Link) -> Result<Self> {
        let image = std::fs::read(path).context("reading the image")?;
        let mut entropy = Entropy::from_os()?;
        let begun = monotonic();
        let validated = Decoded::open(&image, &Limits::default())?.validate(&mut entropy, begun)?;
        let (stack, report) = validated.rehash(entropy.fork(), RestorePolicy::default())?.open(Supplied::default());
        let nanos = since(begun);
        let lost = report.streams.iter().filter(|stream| !matches!(stream.outcome, StreamOutcome::Kept));
        let hello = HelloReply {
            parent: report.parent.to_string(),
            nanos,
            streams_kept: report.streams_kept,
            streams_reset: report.streams_reset,
            flows_kept: report.kept,
            flows: report.flows.len(),
            lost: lost.map(|stream| format!("{stream:?}")).collect(),
        };
        let program = serde_json::from_slice(&std::fs::read(beside(path))?).context("the program's own state")?;
        let mut host = Self::new(stack, device, program, entropy)?;
        host.program.wake_all(&mut host.stack);
        say(&hello)?;
        Ok(host)
    }

    fn new(mut stack: Stack, device: Link, program: Program, entropy: Entropy) -> Result<Self> {
        let link = stack.link(device.name()).context("the stack has no link of the device's name")?;
        let (counts, syns) = (StatsReply::default(), Vec::new());
        stack.set_link_coalescing(link, true);
        Ok(Self { stack, link, device, sky: Sky::clear(), program, entropy, held: false, counts, syns })
    }

    /// One turn: a burst from the link, what is due, and what the program can do.
    fn turn(&mut self) {
        if self.held {
            return;
        }
        self.device.flush();
        let mut now = monotonic();
        let mut burst = Vec::new();
        for _ in 0..BURST {
            let Some(Ingress { frame, .. }) = self.device.receive() else { break };
            self.counts.received += 1;
            burst.extend(self.sky.pass(Way::Inward, frame).into_iter().map(whole));
        }
        self.stack.ingress_burst(self.link, burst, now);
        self.emit();
        now = monotonic();
        self.stack.poll(now);
        self.program.act(&mut self.stack, now);
        self.emit();
        while self.stack.next_event().is_some() {}
        self.counts.most_flows = self.counts.most_flows.max(self.stack.conntrack().len());
        self.counts.accepted = self.program.accepted;
    }

    fn emit(&mut self) {
        while let Some(out) = self.stack.egress() {
            if let Some(Segment { src, dst, seq, flags }) = Segment::read(&out.datagram) {
                if flags & RST != 0 {
                    self.counts.resets_sent += 1;
                    *self.counts.resets_by_port.entry(dst).or_default() += 1;
                }
                if flags & SYN != 0 && self.syns.len() < MOST_SYNS {
                    self.syns.push((src, dst, seq));
                }
            }
            for frame in self.sky.pass(Way::Outward, out.datagram) {
                self.device.send(frame);
            }
        }
    }

    fn wait(&mut self) -> Result<()> {
        let now = monotonic();
        let due = self.stack.next_deadline(now).map_or(LONGEST_WAIT, |due| since_to(now, due)).min(LONGEST_WAIT);
        let mut wait = if self.held { LONGEST_WAIT } else { due };
        if self.program.has_work() && !self.held {
            wait = 0;
        } else if (self.sky.holds_back() || self.device.is_blocked().is_some()) && !self.held {
            wait = wait.min(1_000_000);
        }
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::try_from(wait).unwrap_or(0) };
        let stdin = io::stdin();
        let mut fds = vec![PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        if !self.held
            && let Some(fd) = self.device.fd()
        {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        let ready = rustix::event::poll(&mut fds, Some(&wait)).context("waiting")?;
        if ready == 0 && !self.held {
            for (way, frame) in self.sky.settle() {
                match way {
                    Way::Inward => self.stack.ingress(self.link, frame, monotonic()),
                    Way::Outward => self.device.send(frame),
                }
            }
            self.emit();
        }
        Ok(())
    }

    fn answer(&mut self, request: Request) -> Result<Value> {
        let now = monotonic();
        let answer = match request {
            Request::Listen { port, backlog, half_open, settings, echo } => {
                self.program.listen(&mut self.stack, port, (backlog, half_open), settings, echo)?;
                Value::Null
            }
            Request::Connect { id, from, to, settings } => {
                serde_json::to_value(self.program.connect(&mut self.stack, id, (from, to), settings, now)?)?
            }
            Request::Set { id, more, reading, close } => {
                self.program.set(id, more, reading, close)?;
                Value::Null
            }
            Request::Block(blocks) => {
                self.sky.block(blocks);
                Value::Null
            }
            Request::Weather(weather) => {
                self.sky.set(weather);
                Value::Null
            }
            Request::Streams(ids) => serde_json::to_value(self.program.streams(&self.stack, &ids))?,
            Request::Stats => serde_json::to_value(self.stats()?)?,
            Request::Syns => serde_json::to_value(&self.syns)?,
            Request::Rules(rules) => {
                self.stack.load_rules(ruleset(Some(&rules))?)?;
                Value::Null
            }
            Request::Flush => {
                self.stack.conntrack_mut().flush(now);
                Value::Null
            }
            Request::Save(path) => serde_json::to_value(self.save(&path)?)?,
        };
        self.emit();
        Ok(answer)
    }

    fn save(&mut self, path: &Path) -> Result<SaveReply> {
        self.held = true;
        let generation = self.entropy.public_id();
        let begun = monotonic();
        self.stack.poll(begun);
        self.emit();
        let image = self.stack.save(generation, begun)?;
        let nanos = since(begun);
        write_atomic(&mut OsFilesystem, path, &image)?;
        std::fs::write(beside(path), serde_json::to_vec(&self.program)?)?;
        let streams = self.stack.tcp_streams().len();
        Ok(SaveReply { generation: generation.to_string(), bytes: image.len(), nanos, streams })
    }

    fn stats(&mut self) -> Result<StatsReply> {
        let stats = self.stack.stats();
        let streams = self.stack.tcp_streams().len();
        Ok(StatsReply {
            flows: self.stack.conntrack().len(),
            streams,
            most_streams: self.counts.most_streams.max(streams),
            cookies_sent: stats.cookies_sent,
            cookies_accepted: stats.cookies_accepted,
            drops: stats.drops().map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
            weather: self.sky.counts,
            overruns: self.device.counts().receive_overruns,
            memory: own_memory()?,
            ..self.counts.clone()
        })
    }
}

/// Lines of standard input. Each waits for the answer of the one before, so none is left in a buffer.
#[derive(Default)]
struct Requests {
    over: bool,
}

impl Requests {
    /// The next line; waits for it.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let read = io::stdin().lock().read_until(b'\n', &mut line).context("reading a request")?;
        self.over = read == 0;
        Ok((read > 0).then_some(line))
    }

    /// The next line if one has begun.
    fn poll(&mut self) -> Result<Option<Vec<u8>>> {
        let stdin = io::stdin();
        let mut fds = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if ready == 0 { Ok(None) } else { self.next_line() }
    }
}

/// A frame of a device that leaves nothing undone.
fn whole(frame: Vec<u8>) -> Ingress {
    Ingress { frame, offload: Offload::NONE }
}

/// Where the program's own state is.
fn beside(image: &Path) -> PathBuf {
    image.with_extension("program")
}

fn ruleset(rules: Option<&Value>) -> Result<Ruleset> {
    Ok(rules.map_or(Ok(Ruleset::open()), |rules| Ruleset::from_json(&rules.to_string()))?)
}

/// Anonymous memory of this process that is in use: the rings of its links are not in it.
fn own_memory() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading the own status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("the kernel has no RssAnon")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("RssAnon")?;
    Ok(kib * 1024)
}

fn say<T: Serialize>(answer: &T) -> Result<()> {
    write_line(&Ok(serde_json::to_value(answer)?))
}

fn write_line(answer: &Result<Value, String>) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).context("answering")
}

fn since(begun: Instant) -> u64 {
    since_to(begun, monotonic())
}

fn since_to(begun: Instant, end: Instant) -> u64 {
    u64::try_from(end.saturating_since(begun).as_nanos()).unwrap_or(u64::MAX)
}

const BURST: usize = 64;
/// Nanoseconds.
const LONGEST_WAIT: u64 = 200_000_000;
/// SYNs that are remembered.
const MOST_SYNS: usize = 4096;
