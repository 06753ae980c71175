//! The program that uses the stack's sockets: only wakers tell it what to look at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use anyhow::{Context, Result};
use hibernet_netstack::{Congestion, ListenOptions, Stack, StreamError, StreamOptions, TcpListener, TcpStream};
use hibernet_snapshot::Instant;
use serde::{Deserialize, Serialize};

use crate::flow::{Flow, Pipe, Sender};
use crate::protocol::{Settings, StreamReply};

/// All listeners and streams, by the ids the stack gave them: these are still good after a restore.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Program {
    listeners: Vec<(TcpListener, bool)>,
    streams: BTreeMap<TcpStream, Stream>,
    ids: BTreeMap<u64, TcpStream>,
    pub(super) accepted: u64,
    #[serde(skip)]
    ready: Ready,
}

#[derive(Serialize, Deserialize)]
struct Stream {
    id: u64,
    /// `None`: what comes is sent back.
    flow: Option<Flow>,
}

/// What was woken.
#[derive(Clone, Default)]
struct Ready(Arc<Mutex<BTreeSet<Woken>>>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Woken {
    Listener(TcpListener),
    Stream(TcpStream),
}

struct Bell {
    woken: Woken,
    ready: Ready,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ready.add(self.woken);
    }
}

impl Ready {
    fn add(&self, woken: Woken) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(woken);
    }

    fn take(&self) -> BTreeSet<Woken> {
        core::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn waker(&self, woken: Woken) -> Waker {
        Arc::new(Bell { woken, ready: self.clone() }).into()
    }
}

impl Program {
    pub(super) fn has_work(&self) -> bool {
        !self.ready.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Looks at everything once: the wakers of the saved process are gone.
    pub(super) fn wake_all(&mut self, stack: &mut Stack) {
        let listeners = self.listeners.iter().map(|(listener, _)| Woken::Listener(*listener));
        let streams = self.streams.keys().filter(|stream| stack.tcp_state(**stream).is_some());
        for woken in listeners.chain(streams.map(|stream| Woken::Stream(*stream))) {
            self.ready.add(woken);
        }
    }

    pub(super) fn listen(
        &mut self,
        stack: &mut Stack,
        port: u16,
        (backlog, half_open): (u32, u32),
        settings: Settings,
        echo: bool,
    ) -> Result<()> {
        let options = ListenOptions { backlog, half_open, cookies: true, stream: options(settings) };
        let listener = stack.tcp_listen(std::net::Ipv6Addr::UNSPECIFIED.into(), port, options)?;
        self.listeners.push((listener, echo));
        self.ready.add(Woken::Listener(listener));
        Ok(())
    }

    pub(super) fn connect(
        &mut self,
        stack: &mut Stack,
        id: u64,
        (from, to): (Option<SocketAddr>, SocketAddr),
        settings: Settings,
        now: Instant,
    ) -> Result<u16> {
        let stream = stack.tcp_connect(from, to, options(settings), now)?;
        self.add(stream, id, false);
        Ok(stack.tcp_local_addr(stream).context("a new stream has no address")?.port())
    }

    pub(super) fn set(&mut self, id: u64, more: u64, reading: Option<bool>, close: bool) -> Result<()> {
        let stream = *self.ids.get(&id).with_context(|| format!("there is no stream {id}"))?;
        let flow = self.streams.get_mut(&stream).and_then(|stream| stream.flow.as_mut());
        let flow = flow.with_context(|| format!("stream {id} is an echo"))?;
        flow.goal += more;
        flow.reading = reading.unwrap_or(flow.reading);
        flow.closing |= close;
        self.ready.add(Woken::Stream(stream));
        Ok(())
    }

    /// Sees to everything that was woken.
    pub(super) fn act(&mut self, stack: &mut Stack, now: Instant) {
        for woken in self.ready.take() {
            match woken {
                Woken::Listener(listener) => self.accept(stack, listener),
                Woken::Stream(stream) => self.pump(stack, stream, now),
            }
        }
    }

    /// How streams stand. One that nobody has accepted yet has its peer's port as id.
    pub(super) fn streams(&self, stack: &Stack, ids: &[u64]) -> Vec<StreamReply> {
        let known: BTreeMap<TcpStream, u64> = self.ids.iter().map(|(id, stream)| (*stream, *id)).collect();
        let all = stack.tcp_streams().into_iter().chain(known.keys().copied()).collect::<BTreeSet<_>>();
        let named = all.into_iter().filter_map(|stream| {
            let id = known.get(&stream).copied().or_else(|| Some(stack.tcp_peer_addr(stream)?.port().into()))?;
            (ids.is_empty() || ids.contains(&id)).then_some((stream, id))
        });
        let reply = |(stream, id)| {
            let fresh = Flow::new(id, Sender::Stack);
            let flow = self.streams.get(&stream).and_then(|stream| stream.flow.as_ref()).unwrap_or(&fresh);
            StreamReply {
                id,
                state: stack.tcp_state(stream).map_or_else(|| "Gone".to_owned(), |state| format!("{state:?}")),
                sent: flow.sent.sum(),
                got: flow.got.sum(),
                finished: flow.finished,
                over: flow.is_over(),
                failure: flow.failure.clone(),
            }
        };
        named.map(reply).collect()
    }

    fn accept(&mut self, stack: &mut Stack, listener: TcpListener) {
        let echo = self.listeners.iter().any(|(known, echo)| *known == listener && *echo);
        let waker = self.ready.waker(Woken::Listener(listener));
        while stack.tcp_wake_on_accept(listener, &waker) {
            let Some(stream) = stack.tcp_accept(listener) else { return };
            self.accepted += 1;
            let id = stack.tcp_peer_addr(stream).map_or(0, |peer| peer.port().into());
            self.add(stream, id, echo);
        }
    }

    fn add(&mut self, stream: TcpStream, id: u64, echo: bool) {
        let flow = (!echo).then(|| Flow::new(id, Sender::Stack));
        self.ids.insert(id, stream);
        self.streams.insert(stream, Stream { id, flow });
        self.ready.add(Woken::Stream(stream));
    }

    fn pump(&mut self, stack: &mut Stack, stream: TcpStream, now: Instant) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        let waker = self.ready.waker(Woken::Stream(stream));
        let mut socket = Socket { stack, stream, now };
        let over = match &mut known.flow {
            Some(flow) => {
                let moved = flow.pump(&mut socket);
                if moved && flow.failure.is_none() {
                    self.ready.add(Woken::Stream(stream));
                }
                // A program that has failed, or has closed and read all, gives the stream back.
                flow.failure.is_some() || flow.is_over()
            }
            None => echo(&mut socket).unwrap_or(true),
        };
        if over {
            stack.tcp_close(stream, now);
            if known.flow.is_none() {
                self.ids.remove(&known.id);
                self.streams.remove(&stream);
            }
        } else {
            stack.tcp_wake_on_read(stream, &waker);
            stack.tcp_wake_on_write(stream, &waker);
        }
    }
}

/// A stream of the stack as a pipe.
struct Socket<'a> {
    stack: &'a mut Stack,
    stream: TcpStream,
    now: Instant,
}

impl Pipe for Socket<'_> {
    fn read(&mut self, room: &mut [u8]) -> Result<Option<usize>, String> {
        ready(self.stack.tcp_read(self.stream, room, self.now))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        ready(self.stack.tcp_write(self.stream, bytes, self.now))
    }

    fn shut(&mut self) -> Result<(), String> {
        self.stack.tcp_shutdown(self.stream, self.now).map_err(|error| error.to_string())
    }
}

fn ready(result: Result<usize, StreamError>) -> Result<Option<usize>, String> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(StreamError::WouldBlock) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends back what has come, short messages as an honest client has. True at the end.
fn echo(socket: &mut Socket<'_>) -> Result<bool, String> {
    let mut room = [0; 1024];
    while let Some(read) = socket.read(&mut room)? {
        if read == 0 {
            return Ok(true);
        }
        socket.write(room.get(..read).unwrap_or_default())?;
    }
    Ok(false)
}

fn options(settings: Settings) -> StreamOptions {
    let default = StreamOptions::default();
    StreamOptions {
        receive_buffer: settings.receive.unwrap_or(default.receive_buffer),
        send_buffer: settings.send.unwrap_or(default.send_buffer),
        congestion: if settings.lossy { Congestion::Reno } else { Congestion::None },
        ..default
    }
}
