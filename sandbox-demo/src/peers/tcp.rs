//! The streams of a peer: paced data both ways on every one.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::event::epoll;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::Shutdown;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;

use super::protocol::Progress;
use super::protocol::StreamCounts;
use super::protocol::StreamPlan;
use super::protocol::StreamReport;
use super::serve::Source;
use super::stream::Passed;
use super::stream::Pattern;
use super::stream::Sender;

/// All streams and listeners of one peer.
#[derive(Default)]
pub(super) struct Streams {
    listeners: Vec<OwnedFd>,
    streams: Vec<Stream>,
    planned: VecDeque<StreamPlan>,
    tick: usize,
    pace: Pace,
}

/// What the streams are told to do once they are open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Pace {
    /// Only tell the other end their number.
    #[default]
    Greet,
    /// Send on.
    Send,
    /// Send nothing new; what is under way arrives.
    Quiet,
    /// Close in order.
    Close,
}

/// One end of one connection.
struct Stream {
    socket: Option<OwnedFd>,
    phase: Phase,
    end: Sender,
    /// The stream's number: chosen by the client, which sends it first.
    id: u64,
    /// The other end is the gateway, which sends everything back; it needs no number.
    terminated: bool,
    greeting: Vec<u8>,
    sent: Passed,
    received: Passed,
    marked: u64,
    sent_all: bool,
    received_all: bool,
    reset: bool,
    failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    /// The client still sends, the server still reads the stream's number.
    Greeting,
    Open,
    Over,
}

impl Streams {
    pub(super) fn listen(&mut self, poll: &OwnedFd, at: SocketAddr) -> anyhow::Result<()> {
        let socket = stream_socket(at)?;
        sockopt::set_socket_reuseaddr(&socket, true).context("preparing a listener")?;
        rustix::net::bind(&socket, &at).with_context(|| format!("listening at {at}"))?;
        rustix::net::listen(&socket, 4096).with_context(|| format!("listening at {at}"))?;
        epoll::add(poll, &socket, Source::Listener(self.listeners.len()).token(), EventFlags::IN)?;
        self.listeners.push(socket);
        Ok(())
    }

    pub(super) fn plan(&mut self, streams: Vec<StreamPlan>) {
        self.planned.extend(streams);
    }

    /// Every stream sends from now on.
    pub(super) fn start(&mut self) {
        self.pace = Pace::Send;
    }

    /// No stream sends anything new.
    pub(super) fn quiet(&mut self) {
        self.pace = Pace::Quiet;
    }

    /// Every stream closes in order.
    pub(super) fn close(&mut self) {
        self.pace = Pace::Close;
    }

    /// Takes every connection that waits at a listener.
    pub(super) fn accept(&mut self, poll: &OwnedFd, listener: usize) -> anyhow::Result<()> {
        let Some(listener) = self.listeners.get(listener) else { return Ok(()) };
        loop {
            match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    epoll::add(poll, &socket, Source::Stream(self.streams.len()).token(), EventFlags::IN)?;
                    sockopt::set_tcp_nodelay(&socket, true)?;
                    self.streams.push(Stream::accepted(socket));
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno).context("accepting a stream"),
            }
        }
    }

    /// Something happened to stream `index`.
    pub(super) fn ready(&mut self, poll: &OwnedFd, index: usize) {
        if let Some(stream) = self.streams.get_mut(index) {
            stream.connected(poll, index);
            stream.read();
        }
    }

    /// Opens some of the planned streams and lets every stream send whose turn it is.
    pub(super) fn tick(&mut self, poll: &OwnedFd) -> anyhow::Result<()> {
        let connecting = self.streams.iter().filter(|stream| stream.phase == Phase::Connecting).count();
        for _ in connecting..MAX_CONNECTING {
            let Some(plan) = self.planned.pop_front() else { break };
            self.open(poll, &plan)?;
        }
        let turn = self.tick % TICKS_PER_ROUND;
        for stream in self.streams.iter_mut().skip(turn).step_by(TICKS_PER_ROUND) {
            stream.write(self.pace);
        }
        self.tick = self.tick.wrapping_add(1);
        Ok(())
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
        let streams = || self.streams.iter().filter(|stream| stream.terminated == terminated);
        let count = |predicate: fn(&&Stream) -> bool| streams().filter(predicate).count();
        StreamCounts {
            open: count(|stream| stream.phase == Phase::Open),
            advanced: count(|stream| stream.received.bytes() > stream.marked),
            closed: count(|stream| stream.is_closed()),
            sent: streams().map(|stream| stream.sent.bytes()).sum(),
            received: streams().map(|stream| stream.received.bytes()).sum(),
        }
    }

    pub(super) fn report(&self) -> Vec<StreamReport> {
        self.streams.iter().map(Stream::report).collect()
    }

    fn open(&mut self, poll: &OwnedFd, plan: &StreamPlan) -> anyhow::Result<()> {
        let socket = stream_socket(plan.to)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        rustix::net::bind(&socket, &plan.from).with_context(|| format!("binding a stream to {}", plan.from))?;
        epoll::add(poll, &socket, Source::Stream(self.streams.len()).token(), EventFlags::IN | EventFlags::OUT)?;
        match rustix::net::connect(&socket, &plan.to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno).with_context(|| format!("connecting {} to {}", plan.from, plan.to)),
        }
        self.streams.push(Stream::connecting(socket, plan));
        Ok(())
    }
}

impl Stream {
    fn connecting(socket: OwnedFd, plan: &StreamPlan) -> Self {
        let greeting = if plan.terminated { Vec::new() } else { plan.id.to_be_bytes().to_vec() };
        let mut stream = Self::new(socket, Phase::Connecting, Sender::Client, plan.id, greeting);
        if plan.terminated {
            stream.terminated = true;
            stream.received = stream.sent.clone();
        }
        stream
    }

    fn accepted(socket: OwnedFd) -> Self {
        Self::new(socket, Phase::Greeting, Sender::Server, 0, Vec::new())
    }

    fn new(socket: OwnedFd, phase: Phase, end: Sender, id: u64, greeting: Vec<u8>) -> Self {
        let (sent, received) = Self::passed(id, end);
        Self {
            socket: Some(socket),
            phase,
            end,
            id,
            terminated: false,
            greeting,
            sent,
            received,
            marked: 0,
            sent_all: false,
            received_all: false,
            reset: false,
            failure: None,
        }
    }

    fn passed(id: u64, end: Sender) -> (Passed, Passed) {
        let other = if end == Sender::Client { Sender::Server } else { Sender::Client };
        (Passed::new(Pattern::new(id, end)), Passed::new(Pattern::new(id, other)))
    }

    /// Notes that a connection was made, or was not.
    fn connected(&mut self, poll: &OwnedFd, index: usize) {
        let Some(socket) = self.socket.as_ref().filter(|_| self.phase == Phase::Connecting) else { return };
        match sockopt::socket_error(socket) {
            Ok(Ok(())) => {
                if rustix::net::getpeername(socket).is_ok() {
                    self.phase = if self.terminated { Phase::Open } else { Phase::Greeting };
                    let _ = epoll::modify(poll, socket, Source::Stream(index).token(), EventFlags::IN);
                }
            }
            Ok(Err(errno)) | Err(errno) => self.fail(errno),
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; 16 * 1024];
        while matches!(self.phase, Phase::Greeting | Phase::Open) && !self.received_all {
            let Some(socket) = &self.socket else { return };
            match rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) => {
                    self.received_all = true;
                    self.close_if_over();
                }
                Ok((read, _)) => self.take(buffer.get(..read).unwrap_or_default()),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(errno) => self.fail(errno),
            }
        }
    }

    fn take(&mut self, mut arrived: &[u8]) {
        if self.phase == Phase::Greeting && self.end == Sender::Server {
            let wanted = 8_usize.saturating_sub(self.greeting.len()).min(arrived.len());
            let (number, rest) = arrived.split_at(wanted);
            self.greeting.extend_from_slice(number);
            arrived = rest;
            let Ok(number) = <[u8; 8]>::try_from(self.greeting.as_slice()) else { return };
            self.id = u64::from_be_bytes(number);
            (self.sent, self.received) = Self::passed(self.id, self.end);
            self.phase = Phase::Open;
        }
        if !arrived.is_empty() {
            self.received.receive(arrived);
        }
    }

    /// Sends the next chunk, unless the other end has fallen behind.
    fn write(&mut self, pace: Pace) {
        if self.phase == Phase::Greeting && self.end == Sender::Client {
            let Some(socket) = &self.socket else { return };
            match rustix::net::send(socket, &self.greeting, SendFlags::NOSIGNAL) {
                Ok(8) => self.phase = Phase::Open,
                Ok(_) | Err(Errno::AGAIN) => return,
                Err(errno) => return self.fail(errno),
            }
        }
        if self.phase != Phase::Open || self.sent_all {
            return;
        }
        match pace {
            Pace::Greet | Pace::Quiet => {}
            Pace::Send => self.send_chunk(),
            Pace::Close => self.close(),
        }
    }

    fn send_chunk(&mut self) {
        let mut buffer = [0; CHUNK as usize];
        loop {
            // At most a chunk ahead of what came back: on a slow machine the traffic slows down, and never piles up.
            let allowed = (self.received.bytes() + CHUNK).saturating_sub(self.sent.bytes()).min(CHUNK);
            let chunk = &mut buffer[..allowed as usize];
            let Some(socket) = self.socket.as_ref().filter(|_| !chunk.is_empty()) else { return };
            self.sent.next(chunk);
            match rustix::net::send(socket, chunk, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.sent.note(&chunk[..sent]);
                    return;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(errno) => return self.fail(errno),
            }
        }
    }

    fn close(&mut self) {
        let Some(socket) = &self.socket else { return };
        match rustix::net::shutdown(socket, Shutdown::Write) {
            Ok(()) => {
                self.sent_all = true;
                self.close_if_over();
            }
            Err(errno) => self.fail(errno),
        }
    }

    fn close_if_over(&mut self) {
        if self.sent_all && self.received_all {
            self.phase = Phase::Over;
            self.socket = None;
        }
    }

    fn fail(&mut self, errno: Errno) {
        self.reset |= matches!(errno, Errno::CONNRESET | Errno::PIPE | Errno::CONNREFUSED);
        self.failure.get_or_insert_with(|| errno.to_string());
        self.phase = Phase::Over;
        self.socket = None;
    }

    fn is_closed(&self) -> bool {
        self.sent_all && self.received_all && self.failure.is_none()
    }

    fn report(&self) -> StreamReport {
        let mismatch = (!self.received.is_intact()).then(|| "other bytes arrived than were sent".to_owned());
        StreamReport {
            id: self.id,
            terminated: self.terminated,
            sent: self.sent.bytes(),
            sent_hash: self.sent.hash(),
            received: self.received.bytes(),
            received_hash: self.received.hash(),
            reset: self.reset,
            failure: self.failure.clone().or(mismatch),
            closed: self.is_closed(),
        }
    }
}

fn stream_socket(at: SocketAddr) -> anyhow::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None).context("making a stream's socket")
}

/// Bytes a stream sends in its turn: one segment.
const CHUNK: u64 = 1200;
/// Every stream has its turn once in so many ticks.
const TICKS_PER_ROUND: usize = 40;
/// Connection attempts under way at once.
const MAX_CONNECTING: usize = 64;
