//! TCP connections of this host, live through a restore.
//!
//! A segment's way: [`Connections::feed`] finds the connection by its ends; `shim` judges the segment and puts the socket's
//! numbers into it; smoltcp answers; `shim` puts the wire's numbers into what it sends. `api` is what an embedder calls,
//! `image` what a save writes, `rebuild` the way back.

mod admit;
mod aged;
mod api;
mod connection;
mod cookie;
mod image;
mod listener;
mod options;
mod rebuild;
mod rings;
mod round_trip;
mod segment;
mod seq;
mod shim;
#[cfg(test)]
mod tests;
mod unreachable;

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashTable;
use hibernet_conntrack::{CanaryScan, WireChoices};
use hibernet_snapshot::Instant;
use serde::{Deserialize, Serialize};
use slab::Slab;
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpListenEndpoint;

pub(crate) use self::admit::Asked;
pub(crate) use self::aged::Removed;
pub use self::api::StreamState;
use self::connection::{Connection, Owner};
use self::cookie::Cookies;
pub(crate) use self::image::{StreamReset, TcpSection};
use self::listener::Listener;
use self::options::MOST_MEMORY;
pub use self::options::{Congestion, ListenOptions, StreamOptions};
pub(crate) use self::rebuild::Rebuilt;
use self::rebuild::{SCRATCH_SEED, Scratch};
pub(crate) use self::segment::Ends;
use self::segment::{Head, words};
use self::seq::Seq;
use self::shim::Shim;
use super::error::unreachable;
use super::{ANY, Local, Sent, Wire};
use crate::drop_reason::DropReason;
use crate::stack::Errno;

/// A TCP stream of this host. An id is never used twice, and stays valid through a restore: an embedder may save it beside
/// what it knows of the stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TcpStream(u64);

/// A port at which TCP connections are accepted. An id is never used twice, and stays valid through a restore.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TcpListener(u64);

/// Why a stream did not do what it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Not now: register a waker (`EAGAIN`).
    #[error("the stream is not ready")]
    WouldBlock,
    /// The peer has no such port (`ECONNREFUSED`).
    #[error("connection refused")]
    Refused,
    /// The peer, or a restore, has ended the connection (`ECONNRESET`).
    #[error("connection reset")]
    Reset,
    /// The peer has not answered for too long (`ETIMEDOUT`).
    #[error("connection timed out")]
    TimedOut,
    /// An ICMP error says that the peer cannot be reached: `EHOSTUNREACH`, or what else a kernel's socket would be told
    /// ([`StreamError::errno`]). Over a restore it becomes [`StreamError::TimedOut`].
    #[error("{}: {by} says that the peer is unreachable, code {code}", self.errno().name())]
    Unreachable {
        /// Who sent the error.
        by: IpAddr,
        /// Code of the error (RFC 792; RFC 4443, section 3.1).
        code: u8,
    },
    /// This side has been shut down for writing (`EPIPE`).
    #[error("broken pipe")]
    BrokenPipe,
    /// The id names no stream: it is closed (`EBADF`).
    #[error("no such stream")]
    NoSuchStream,
}

impl StreamError {
    /// What a socket of the kernel would report.
    pub const fn errno(&self) -> Errno {
        match self {
            Self::WouldBlock => Errno::Again,
            Self::Refused => Errno::ConnectionRefused,
            Self::Reset => Errno::ConnectionReset,
            Self::TimedOut => Errno::TimedOut,
            Self::Unreachable { by, code } => unreachable(*by, *code),
            Self::BrokenPipe => Errno::BrokenPipe,
            Self::NoSuchStream => Errno::BadDescriptor,
        }
    }
}

/// Who took a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fed {
    /// A connection, or a listener that opened one.
    Connection,
    /// A listener, for the cookie in it.
    Cookie,
}

/// All connections and listeners.
pub(super) struct Connections {
    pub(super) wire: Wire,
    /// What the connections have sent, in the wire's numbers.
    out: VecDeque<Sent>,
    live: Slab<Connection>,
    /// Connections that a burst has given something, in the order they got it.
    touched: Vec<usize>,
    /// The connection the last segment was for.
    last: usize,
    /// Where connections are led from one socket into another.
    scratch: Scratch,
    /// Places in `live` by ends, under a secret key. Never walked: its order would follow from the key.
    index: HashTable<usize>,
    ids: BTreeMap<TcpStream, usize>,
    /// Streams that are over and whose owner does not know yet.
    ended: BTreeMap<TcpStream, Option<StreamError>>,
    listeners: BTreeMap<TcpListener, Listener>,
    /// When which stream has to be looked at. Often too early: a timer that moves on is moved when its time has come.
    timers: BTreeSet<(Instant, TcpStream)>,
    next_stream: u64,
    next_listener: u64,
    most: usize,
    /// Bytes the buffers of all connections take.
    memory: u64,
    keys: WireChoices,
    cookies: Cookies,
}

impl Connections {
    /// No connections. If there is an echo service, its listener is number 0.
    pub(super) fn new(echo: Option<u16>, wire: Wire, keys: WireChoices) -> Self {
        let mut listeners = BTreeMap::new();
        if let Some(port) = echo {
            listeners.insert(ECHO, Listener::new(ANY, port, Owner::Echo, ListenOptions::default()));
        }
        Self {
            scratch: Scratch::new(wire.mtu, keys.fixed([SCRATCH_SEED, 0])),
            wire,
            out: VecDeque::new(),
            live: Slab::new(),
            touched: Vec::new(),
            last: 0,
            index: HashTable::new(),
            ids: BTreeMap::new(),
            ended: BTreeMap::new(),
            listeners,
            timers: BTreeSet::new(),
            next_stream: 0,
            next_listener: ECHO.0.saturating_add(1),
            most: 0,
            memory: 0,
            keys,
            cookies: Cookies::default(),
        }
    }

    /// The next datagram the connections have sent.
    pub(super) fn take_sent(&mut self) -> Option<Sent> {
        self.out.pop_front()
    }

    /// The source of initial numbers and timestamp offsets.
    pub(super) const fn choices_mut(&mut self) -> &mut WireChoices {
        &mut self.keys
    }

    pub(super) fn watch(&self, scan: &mut CanaryScan) {
        self.keys.watch("TCP numbers", scan);
        scan.watch_key("scratch seed", &self.keys.fixed([SCRATCH_SEED, 0]).to_le_bytes());
    }

    pub(super) const fn most(&self) -> usize {
        self.most
    }

    pub(super) fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// Gives a segment to its connection or to a listener. What takes it writes in it; with an error it is as it was.
    fn feed(&mut self, ends: Ends, datagram: &mut [u8], now: Instant) -> Result<Fed, DropReason> {
        let head = Head::read(datagram).ok_or(DropReason::LocalMalformed)?;
        if let Some(slot) = self.find_again(&ends) {
            if !head.readable {
                return Err(DropReason::LocalMalformed);
            }
            let Some(connection) = self.live.get_mut(slot) else { return Err(DropReason::NoConnection) };
            let successor = if head.opens() { connection.succeeded_by(&head) } else { None };
            let Some(floor) = successor else {
                let before = connection.socket().state();
                let fed = connection.feed(&head, datagram, (&mut self.wire, &mut self.scratch), &mut self.out, now);
                if connection.socket().state() != before || connection.listener.is_some() {
                    self.serve(slot, now);
                } else {
                    self.touch(slot);
                }
                return fed.map(|()| Fed::Connection);
            };
            self.remove(slot);
            return self.accept(ends, (&head, datagram), Some(floor), now);
        }
        let Some(listener) = self.listener(ends.local) else { return Err(DropReason::NoConnection) };
        if !head.opens() || !head.readable {
            let acknowledges = head.ack.is_some();
            if acknowledges && head.readable && self.finish_cookie(listener, ends, datagram, now)? {
                return Ok(Fed::Cookie);
            }
            // RFC 9293, section 3.10.7.2: a listener answers an acknowledgement with a reset, and nothing else but a SYN.
            return Err(if acknowledges { DropReason::NoConnection } else { DropReason::LocalMalformed });
        }
        self.accept(ends, (&head, datagram), None, now)
    }

    /// Opens a connection for a SYN. `floor`: its numbers start behind this one.
    fn accept(
        &mut self,
        ends: Ends,
        (head, datagram): (&Head, &mut [u8]),
        floor: Option<Seq>,
        now: Instant,
    ) -> Result<Fed, DropReason> {
        let Some(id) = self.listener(ends.local) else { return Err(DropReason::NoConnection) };
        let Some(listener) = self.listeners.get(&id).filter(|listener| listener.has_place()) else {
            return Err(DropReason::LocalBacklogFull);
        };
        if !self.has_room(&listener.options.stream) {
            return Err(DropReason::LocalBacklogFull);
        }
        let (owner, options) = (listener.owner, listener.options.stream);
        let mss = self.wire.mss(ends.local.ip());
        let shim = self.shim(&ends, &options, floor, now);
        let mut connection = Connection::new(self.next_id(), ends, owner, options, mss, shim);
        connection.listener = Some(id);
        let endpoint = IpListenEndpoint { addr: Some(ends.local.ip().into()), port: ends.local.port() };
        connection.socket().listen(endpoint).map_err(|_| DropReason::LocalMalformed)?;
        connection.feed(head, datagram, (&mut self.wire, &mut self.scratch), &mut self.out, now)?;
        if connection.state() == State::Listen {
            return Err(DropReason::LocalMalformed);
        }
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.half_open = listener.half_open.saturating_add(1);
        }
        let slot = self.insert(connection);
        self.serve(slot, now);
        Ok(Fed::Connection)
    }

    /// The wire's view of a connection to come: numbers after RFC 6528, behind `floor`.
    fn shim(&mut self, ends: &Ends, options: &StreamOptions, floor: Option<Seq>, now: Instant) -> Shim {
        let iss = initial_number(self.keys.choose_for(&subject(ends, INITIAL_NUMBER)), now);
        // As Linux numbers the successor of a connection in TIME-WAIT.
        let behind = floor.map(|floor| floor.plus(65_537)).filter(|least| iss.is_before(*least));
        let clock = self.keys.choose_for(&subject(ends, CLOCK));
        Shim::new(behind.unwrap_or(iss), low(clock), options.opening(self.wire.mss(ends.local.ip())))
    }

    /// Lets a connection send and its service act, and sees to what has become of it.
    fn serve(&mut self, slot: usize, now: Instant) {
        let Self { wire, out, live, scratch, .. } = self;
        let Some(connection) = live.get_mut(slot) else { return };
        if connection.owner == Owner::Echo {
            let waiting = connection.socket().recv_queue();
            if let Some(rings) = connection.rings_to_write(waiting) {
                connection.flush(wire, out, now);
                scratch.change_rings(connection, rings, now);
            }
            connection.echo();
        }
        connection.flush(wire, out, now);
        self.see_to(slot);
    }

    /// Notes that a connection has something to answer: it is served once, when the burst is over.
    fn touch(&mut self, slot: usize) {
        if let Some(connection) = self.live.get_mut(slot)
            && !core::mem::replace(&mut connection.touched, true)
        {
            self.touched.push(slot);
        }
    }

    /// Whether connections have something to answer.
    pub(super) fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Serves the connections that a burst has given something.
    pub(super) fn serve_touched(&mut self, now: Instant) {
        let mut touched = core::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            if self.live.get(slot).is_some_and(|connection| connection.touched) {
                self.serve(slot, now);
            }
        }
        // Its room is used again.
        self.touched = touched;
    }

    /// Sees to what has become of a connection.
    fn see_to(&mut self, slot: usize) {
        let Some(connection) = self.live.get_mut(slot) else { return };
        let (state, stream) = (connection.socket().state(), connection.stream);
        if let Some(id) = connection.listener.filter(|_| state != State::SynReceived) {
            connection.listener = None;
            self.announce(id, stream, state);
        }
        match state {
            State::Closed | State::Listen => self.bury(slot),
            _ => self.set_timer(slot),
        }
    }

    /// A handshake is over: the stream waits to be accepted, unless nothing came of it or it was given back already.
    fn announce(&mut self, id: TcpListener, stream: TcpStream, state: State) {
        let Some(listener) = self.listeners.get_mut(&id) else { return };
        listener.half_open = listener.half_open.saturating_sub(1);
        let slot = self.ids.get(&stream).copied();
        let Some(connection) = slot.and_then(|slot| self.live.get_mut(slot)) else { return };
        if matches!(state, State::Closed | State::Listen) {
            connection.owner = Owner::Orphan;
        } else if connection.owner == Owner::Embedder {
            listener.arrived.push_back(stream);
            listener.wake();
        }
    }

    /// A stream is given back before it was accepted: nobody will accept it.
    fn withdraw(&mut self, stream: TcpStream) {
        for listener in self.listeners.values_mut() {
            listener.arrived.retain(|waiting| *waiting != stream);
        }
    }

    /// A connection is over. Its owner may still read what has arrived, and is told why it ended.
    fn bury(&mut self, slot: usize) {
        let Some(connection) = self.live.get_mut(slot) else { return };
        let (stream, failure) = (connection.stream, connection.failure);
        let is_owned = connection.owner == Owner::Embedder;
        if is_owned && failure.is_none() && connection.socket().recv_queue() > 0 {
            self.unfile(slot);
            return;
        }
        self.remove(slot);
        if is_owned {
            self.ended.insert(stream, failure);
        }
    }

    /// Whether there is room for another connection.
    fn has_room(&self, options: &StreamOptions) -> bool {
        self.live.len() < self.most && self.memory.saturating_add(options.memory()) <= MOST_MEMORY
    }

    fn insert(&mut self, connection: Connection) -> usize {
        let (stream, ends) = (connection.stream, connection.ends);
        self.memory = self.memory.saturating_add(connection.options.memory());
        let slot = self.live.insert(connection);
        self.ids.insert(stream, slot);
        let Self { index, live, keys, .. } = self;
        let place = |slot: &usize| live.get(*slot).map_or(0, |connection| filed(keys, &connection.ends));
        index.insert_unique(filed(keys, &ends), slot, place);
        slot
    }

    /// As [`Connections::find`], for one segment of a burst after the other.
    fn find_again(&mut self, ends: &Ends) -> Option<usize> {
        let is_last = self.live.get(self.last).is_some_and(|connection| connection.ends == *ends && connection.filed);
        if !is_last {
            self.last = self.find(ends)?;
        }
        Some(self.last)
    }

    fn find(&self, ends: &Ends) -> Option<usize> {
        let is_it = |slot: &usize| self.live.get(*slot).is_some_and(|connection| connection.ends == *ends);
        self.index.find(filed(&self.keys, ends), is_it).copied()
    }

    /// Takes a connection out of the index: its ends are free for another.
    fn unfile(&mut self, slot: usize) {
        let Some(connection) = self.live.get_mut(slot) else { return };
        if let Some(queued) = connection.queued.take() {
            self.timers.remove(&(queued, connection.stream));
        }
        connection.filed = false;
        if let Ok(entry) = self.index.find_entry(filed(&self.keys, &connection.ends), |found| *found == slot) {
            entry.remove();
        }
    }

    fn remove(&mut self, slot: usize) {
        self.unfile(slot);
        if let Some(connection) = self.live.try_remove(slot) {
            self.ids.remove(&connection.stream);
            self.memory = self.memory.saturating_sub(connection.options.memory());
        }
    }

    /// Runs the timers, and serves whoever has something to answer.
    pub(super) fn poll(&mut self, now: Instant) {
        self.serve_touched(now);
        while let Some((due, stream)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, stream));
            let Some(slot) = self.ids.get(&stream).copied() else { continue };
            let Some(connection) = self.live.get_mut(slot) else { continue };
            connection.queued = None;
            if connection.deadline().is_none_or(|deadline| deadline > now) {
                self.set_timer(slot);
            } else if connection.lose_patience(now) {
                self.see_to(slot);
            } else {
                connection.send_again(&mut self.out, now);
                connection.give_back(&mut self.scratch, now);
                self.serve(slot, now);
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.has_touched() { Some(Instant::ZERO) } else { self.timers.first().map(|(due, _)| *due) }
    }

    /// Queues a connection for its deadline, unless it is queued for an earlier time already.
    fn set_timer(&mut self, slot: usize) {
        let Some(connection) = self.live.get_mut(slot) else { return };
        let Some(deadline) = connection.deadline() else { return };
        if connection.queued.is_some_and(|queued| queued <= deadline) {
            return;
        }
        if let Some(queued) = connection.queued.replace(deadline) {
            self.timers.remove(&(queued, connection.stream));
        }
        self.timers.insert((deadline, connection.stream));
    }

    fn next_id(&mut self) -> TcpStream {
        let stream = TcpStream(self.next_stream);
        self.next_stream = self.next_stream.wrapping_add(1);
        stream
    }
}

impl core::fmt::Debug for Connections {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Sockets would print their sequence numbers and buffers.
        f.debug_struct("Connections").field("streams", &self.ids.keys()).finish_non_exhaustive()
    }
}

impl Connection {
    /// If this connection is in TIME-WAIT and a SYN starts its successor: the number behind our last one.
    fn succeeded_by(&mut self, syn: &Head) -> Option<Seq> {
        let socket = self.socket();
        let (state, unread) = (socket.state(), socket.recv_queue());
        let rcv_nxt = self.rcv_nxt(state, unread);
        (state == State::TimeWait && self.shim.is_successor(syn, rcv_nxt)).then_some(self.shim.nxt)
    }
}

impl Local {
    /// Gives a segment to its connection or to a listener: a datagram whose IP header has no options or extensions. What takes
    /// it writes in it; with an error it is as it was.
    pub(crate) fn feed_segment(&mut self, ends: Ends, datagram: &mut [u8], now: Instant) -> Result<Fed, DropReason> {
        self.tcp.feed(ends, datagram, now)
    }

    /// Whether connections have something to answer to the burst that has come.
    pub(crate) fn has_touched(&self) -> bool {
        self.tcp.has_touched()
    }

    /// Lets them answer.
    pub(crate) fn serve_touched(&mut self, now: Instant) {
        self.tcp.serve_touched(now);
    }
}

/// RFC 6528: a clock of 4 microseconds, moved by what nobody can guess of these two ends.
fn initial_number(chosen: u64, now: Instant) -> Seq {
    let clock = now.as_nanos().checked_div(4000).unwrap_or(0);
    Seq(low(chosen).wrapping_add(low(clock)))
}

/// What is asked of a key about two ends.
fn subject(ends: &Ends, asked: u64) -> [u64; 6] {
    let Ends { local, remote } = ends;
    let ([l1, l0], [r1, r0]) = (words(local.ip()), words(remote.ip()));
    let ports = u64::from(local.port()) << 16 | u64::from(remote.port());
    [l1, l0, r1, r0, ports, asked]
}

fn filed(keys: &WireChoices, ends: &Ends) -> u64 {
    keys.fixed_for(&subject(ends, PLACE))
}

const fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

/// The listener of the echo service.
const ECHO: TcpListener = TcpListener(0);
const PLACE: u64 = 1;
const INITIAL_NUMBER: u64 = 2;
const CLOCK: u64 = 3;
