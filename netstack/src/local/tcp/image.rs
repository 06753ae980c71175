//! What a save writes of TCP connections and listeners, and what it takes on the way back.
//!
//! Every number is one of the wire, every time what remains of it. smoltcp's own numbers, and the offset that would lead to
//! them, are in no field.

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, BTreeSet};

use hibernet_snapshot::{Instant, Invalid, Snapshot};

use super::connection::{Connection, Owner, Wait, has_peer_fin, micros};
use super::cookie::{Cookies, PERIOD};
use super::options::MOST_MEMORY;
use super::segment::{Ends, Offers};
use super::seq::Seq;
use super::shim::{Clock, RECENT_FOR};
use super::{Connections, ECHO, ListenOptions, StreamError, StreamOptions, StreamState};
use crate::local::clock;

/// Connections, listeners, and the ids in use.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
#[snapshot(validate = sound)]
pub(crate) struct TcpSection {
    #[snapshot(saved)]
    pub(super) next_stream: u64,
    #[snapshot(saved)]
    pub(super) next_listener: u64,
    #[snapshot(saved)]
    pub(super) listeners: BTreeMap<u64, ListenerImage>,
    #[snapshot(saved)]
    pub(super) streams: BTreeMap<u64, StreamImage>,
    /// Streams that are over and whose owner does not know yet.
    #[snapshot(saved)]
    pub(super) ended: BTreeMap<u64, Option<EndImage>>,
    #[snapshot(saved)]
    pub(super) cookies: CookiesImage,
}

/// A listener.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(super) struct ListenerImage {
    #[snapshot(saved)]
    pub(super) addr: IpAddr,
    #[snapshot(saved)]
    pub(super) port: u16,
    #[snapshot(saved)]
    pub(super) options: ListenOptions,
    /// Streams that wait to be accepted, in the order they came.
    #[snapshot(saved)]
    pub(super) arrived: Vec<u64>,
}

/// A connection.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(super) struct StreamImage {
    #[snapshot(saved)]
    pub(super) local: (IpAddr, u16),
    #[snapshot(saved)]
    pub(super) remote: (IpAddr, u16),
    #[snapshot(saved)]
    pub(super) state: StreamState,
    #[snapshot(saved)]
    pub(super) owner: OwnerImage,
    /// The listener whose handshake this is, not finished.
    #[snapshot(saved)]
    pub(super) listener: Option<u64>,
    #[snapshot(saved)]
    pub(super) options: StreamOptions,
    /// ISS.
    #[snapshot(saved)]
    pub(super) iss: u32,
    /// The number of the first byte in `unacked`.
    #[snapshot(saved)]
    pub(super) base: u32,
    /// SND.NXT.
    #[snapshot(saved)]
    pub(super) nxt: u32,
    /// The number of the first byte in `unread`.
    #[snapshot(saved)]
    pub(super) start: u32,
    #[snapshot(saved)]
    pub(super) peer_mss: Option<u16>,
    #[snapshot(saved)]
    pub(super) peer_scale: Option<u8>,
    #[snapshot(saved)]
    pub(super) peer_sack: bool,
    /// The peer's window, not scaled.
    #[snapshot(saved)]
    pub(super) peer_window: u16,
    /// Where both ends use timestamps.
    #[snapshot(saved)]
    pub(super) clock: Option<ClockImage>,
    /// Received and not read.
    #[snapshot(saved)]
    pub(super) unread: Vec<u8>,
    /// Written and not acknowledged.
    #[snapshot(saved)]
    pub(super) unacked: Vec<u8>,
    /// Microseconds until it is given up.
    #[snapshot(saved)]
    pub(super) patience: Option<u64>,
    /// Microseconds until the next retransmission, or until TIME-WAIT is over; 0 where nothing of the kind is due.
    #[snapshot(saved)]
    pub(super) timer: u64,
}

/// Timestamps of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
pub(super) struct ClockImage {
    /// What a segment would carry now.
    #[snapshot(saved)]
    pub(super) value: u32,
    /// TS.Recent.
    #[snapshot(saved)]
    pub(super) recent: Option<u32>,
    /// Microseconds for which it proves a segment old.
    #[snapshot(saved)]
    pub(super) recent_for: u64,
}

/// Who reads and writes a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
pub(super) enum OwnerImage {
    Echo,
    Embedder,
    Orphan,
}

/// Why a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
pub(super) enum EndImage {
    Refused,
    Reset,
    TimedOut,
}

/// Cookies that may still come back, to be told of: under another key none does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Snapshot)]
pub(super) struct CookiesImage {
    /// Microseconds to the end of the present period.
    #[snapshot(saved)]
    pub(super) period: u64,
    #[snapshot(saved)]
    pub(super) sent: [u32; 2],
    #[snapshot(saved)]
    pub(super) finished: [u32; 2],
}

/// The numbers of a connection that was not rebuilt, for the resets that tell its peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StreamReset {
    pub(crate) ends: Ends,
    /// SND.UNA and SND.NXT: the peer waits for a number between them.
    pub(crate) numbers: [u32; 2],
    /// RCV.NXT; none before the peer's SYN.
    pub(crate) ack: Option<u32>,
}

impl Connections {
    /// What is to be saved at `now`.
    pub(crate) fn section(&self, now: Instant) -> TcpSection {
        let Self {
            wire: _,
            out: _,
            live,
            touched: _,
            last: _,
            scratch: _,
            index: _,
            ids,
            ended,
            listeners,
            timers: _,
            next_stream,
            next_listener,
            most: _,
            memory: _,
            keys: _,
            cookies,
        } = self;
        let streams = ids.iter().filter_map(|(id, slot)| Some((id.0, live.get(*slot)?.image(now)))).collect();
        let listeners = listeners.iter().filter(|(id, _)| **id != ECHO).map(|(id, listener)| {
            let arrived = listener.arrived.iter().map(|stream| stream.0).collect();
            let (addr, port, options) = (listener.addr, listener.port, listener.options);
            (id.0, ListenerImage { addr, port, options, arrived })
        });
        TcpSection {
            next_stream: *next_stream,
            next_listener: *next_listener,
            listeners: listeners.collect(),
            streams,
            ended: ended.iter().map(|(id, failure)| (id.0, failure.and_then(EndImage::of))).collect(),
            cookies: CookiesImage::of(cookies, now),
        }
    }
}

impl Connection {
    pub(super) fn image(&self, now: Instant) -> StreamImage {
        let (state, unread) = self.look(|socket| {
            let mut unread = vec![0; socket.recv_queue()];
            let read = socket.peek_slice(&mut unread).unwrap_or(0);
            unread.truncate(read);
            (socket.state(), unread)
        });
        let since = |later: Instant| micros(later.saturating_since(now));
        let ticks = |at: Instant| u64::try_from(clock(at).total_micros()).unwrap_or(0);
        let Offers { mss, scale, sack } = self.shim.offers;
        let clock = |Clock { offset: _, recent, recent_until }: Clock| ClockImage {
            value: self.shim.timestamp(now),
            recent,
            recent_for: since(recent_until),
        };
        let end = |end: SocketAddr| (end.ip(), end.port());
        let mut image = StreamImage {
            local: end(self.ends.local),
            remote: end(self.ends.remote),
            state: state.into(),
            owner: self.owner.into(),
            listener: self.listener.map(|id| id.0),
            options: self.options,
            iss: self.shim.iss.0,
            base: self.base.0,
            nxt: self.shim.nxt.0,
            start: self.start.0,
            peer_mss: mss,
            peer_scale: scale,
            peer_sack: sack,
            peer_window: self.shim.peer_window,
            clock: self.shim.clock.map(clock),
            unread,
            unacked: self.unacked.iter().copied().collect(),
            patience: self.patience.map(|(_, until)| since(until)),
            timer: 0,
        };
        if image.has_timer() {
            image.timer = self.due.map_or(0, |due| ticks(due).saturating_sub(ticks(now)).min(MOST_TIMER));
        }
        image
    }
}

impl StreamImage {
    /// Both ends.
    pub(super) const fn ends(&self) -> Ends {
        let (local, remote) = (self.local, self.remote);
        Ends { local: SocketAddr::new(local.0, local.1), remote: SocketAddr::new(remote.0, remote.1) }
    }

    /// Whether a FIN of ours is behind `unacked`, or has been acknowledged.
    pub(super) const fn has_fin(&self) -> bool {
        use StreamState::{Closed, Closing, FinWait1, FinWait2, LastAck, TimeWait};
        matches!(self.state, FinWait1 | FinWait2 | Closing | LastAck | TimeWait | Closed)
    }

    /// RCV.NXT.
    pub(super) fn rcv_nxt(&self) -> Seq {
        let fin = has_peer_fin(self.state.into()) || self.state == StreamState::Closed;
        Seq(self.start).plus(length(&self.unread)).plus(u32::from(fin))
    }

    /// What the connection waits for.
    pub(super) fn waits_for(&self) -> Option<Wait> {
        use StreamState::{Closed, Closing, FinWait1, FinWait2, LastAck, SynReceived, SynSent, TimeWait};
        match self.state {
            SynSent | SynReceived => Some(Wait::Handshake),
            Closed | TimeWait => None,
            FinWait1 | Closing | LastAck => Some(Wait::Acknowledgement),
            _ if !self.unacked.is_empty() => Some(Wait::Acknowledgement),
            FinWait2 if self.owner == OwnerImage::Orphan => Some(Wait::Fin),
            _ => self.options.keepalive.map(|_| Wait::Life),
        }
    }

    /// Whether a timer of the socket runs: a retransmission, the probe of a closed window, or TIME-WAIT whose end does not wait
    /// for the reader.
    pub(super) fn has_timer(&self) -> bool {
        match self.state {
            StreamState::SynSent | StreamState::SynReceived => true,
            StreamState::TimeWait => self.unread.is_empty(),
            StreamState::FinWait2 | StreamState::Closed => false,
            _ => self.nxt != self.base || self.peer_window == 0 && !self.unacked.is_empty(),
        }
    }

    pub(super) fn reset(&self) -> StreamReset {
        let ack = (self.state != StreamState::SynSent).then(|| self.rcv_nxt().0);
        let first = if self.waits_for() == Some(Wait::Handshake) { self.nxt } else { self.base };
        StreamReset { ends: self.ends(), numbers: [first, self.nxt], ack }
    }

    fn check(&self) -> Result<(), Invalid> {
        let expect = |holds: bool, field: &str, found: String, expected: &str| match holds {
            true => Ok(()),
            false => Err(Invalid::new(field, found, expected)),
        };
        let Ends { local, remote } = self.ends();
        let are_ends = local.is_ipv4() == remote.is_ipv4()
            && [local, remote].iter().all(|end| end.port() != 0 && can_be_an_end(end.ip()));
        expect(are_ends, "local", format!("{local} to {remote}"), "two ends of one family")?;
        let handshake = self.waits_for() == Some(Wait::Handshake);
        let sent = Seq(self.nxt).since(Seq(self.base));
        let unacked = length(&self.unacked);
        let fits = match self.state {
            StreamState::SynSent | StreamState::SynReceived => {
                sent == 0 && self.base == self.iss.wrapping_add(1) && unacked == 0 && self.unread.is_empty()
            }
            StreamState::FinWait2 | StreamState::TimeWait | StreamState::Closed => sent == 1 && unacked == 0,
            _ => sent >= 0 && sent.cast_unsigned() <= unacked.saturating_add(u32::from(self.has_fin())),
        };
        expect(fits, "nxt", format!("{sent} sent of {unacked}, {:?}", self.state), "no more than is queued")?;
        let has_room = unacked <= self.options.send_buffer && length(&self.unread) <= self.options.receive_buffer;
        expect(has_room, "unread", format!("{} and {unacked} bytes", self.unread.len()), "what the buffers hold")?;
        let is_closed = self.state == StreamState::Closed;
        let is_owned = self.owner == OwnerImage::Embedder;
        expect(!is_closed || is_owned && !self.unread.is_empty(), "state", "Closed".into(), "something to be read")?;
        let may_have = self.listener.is_none() || self.state == StreamState::SynReceived;
        expect(may_have, "listener", format!("{:?}", self.listener), "none but of a handshake")?;
        let has_offers = self.peer_mss.is_some() || self.peer_scale.is_some() || self.peer_sack;
        let met = self.state != StreamState::SynSent || !has_offers && self.peer_window == 0 && self.start == 0;
        expect(met, "peer_window", format!("{}", self.peer_window), "nothing before the peer's SYN")?;
        expect(
            self.peer_scale.is_none_or(|scale| scale <= 14),
            "peer_scale",
            format!("{:?}", self.peer_scale),
            "0 to 14",
        )?;
        let clocks = match (self.state, self.clock) {
            (StreamState::SynSent, clock) => clock.is_some_and(|clock| clock.recent.is_none() && clock.recent_for == 0),
            (_, None) => true,
            (_, Some(clock)) => clock.recent.is_some() && clock.recent_for <= micros(RECENT_FOR),
        };
        expect(clocks, "clock", format!("{:?}", self.clock), "timestamps as the handshake left them")?;
        let patient = self.patience.is_some() == self.waits_for().is_some();
        let patient = patient && self.patience.is_none_or(|left| left <= MOST_PATIENCE);
        expect(patient, "patience", format!("{:?}", self.patience), "what the state waits for")?;
        let times = self.timer <= if self.has_timer() { MOST_TIMER } else { 0 };
        expect(times, "timer", self.timer.to_string(), "an hour at most, where something is due")?;
        expect(!handshake || self.owner != OwnerImage::Orphan, "owner", "Orphan".into(), "an owner, in a handshake")
    }
}

fn sound(section: &TcpSection) -> Result<(), Invalid> {
    let TcpSection { next_stream, next_listener, listeners, streams, ended, cookies } = section;
    let memory = streams.values().fold(0_u64, |sum, stream| sum.saturating_add(stream.options.memory()));
    if memory > MOST_MEMORY {
        return Err(Invalid::new("streams", format!("buffers of {memory} bytes"), format!("{MOST_MEMORY} at most")));
    }
    let mut ends = BTreeSet::new();
    for (at, (id, stream)) in streams.iter().enumerate() {
        let place = |invalid: Invalid| invalid.at(at).within("streams");
        stream.check().map_err(place)?;
        let is_known = stream.listener.is_none_or(|id| id == ECHO.0 || listeners.contains_key(&id));
        let is_new = stream.state == StreamState::Closed || ends.insert((stream.local, stream.remote));
        if id >= next_stream || ended.contains_key(id) || !is_known || !is_new {
            let found = format!("stream {id} of listener {:?}", stream.listener);
            return Err(place(Invalid::new("", found, "an id and ends of its own, a listener that is there")));
        }
    }
    if let Some(id) = ended.keys().find(|id| *id >= next_stream) {
        return Err(Invalid::new("ended", id.to_string(), format!("below {next_stream}")));
    }
    let mut arrived = BTreeSet::new();
    for (at, (id, listener)) in listeners.iter().enumerate() {
        let refuse = |found: String, expected: &str| Err(Invalid::new("", found, expected).at(at).within("listeners"));
        if *id == ECHO.0 || id >= next_listener || listener.port == 0 {
            return refuse(format!("listener {id} at port {}", listener.port), "an id below the next, a port");
        }
        for stream in &listener.arrived {
            let waits = streams.get(stream).is_some_and(|stream| {
                stream.owner == OwnerImage::Embedder && stream.waits_for() != Some(Wait::Handshake)
            });
            if !(waits || ended.contains_key(stream)) || !arrived.insert(*stream) {
                return refuse(format!("stream {stream} waits"), "streams that are there, each once");
            }
        }
        let overlap = |other: &ListenerImage| super::listener::is_same_place(listener.addr, other.addr);
        if listeners.range(..id).any(|(_, other)| other.port == listener.port && overlap(other)) {
            return refuse(format!("port {} twice", listener.port), "one listener for a port");
        }
    }
    let is_over = (cookies.sent, cookies.finished) == ([0; 2], [0; 2]);
    if is_over != (cookies.period == 0) || cookies.period > micros(PERIOD) {
        return Err(Invalid::new(
            "cookies.period",
            cookies.period.to_string(),
            "one period at most, where there are any",
        ));
    }
    Ok(())
}

fn can_be_an_end(addr: IpAddr) -> bool {
    let is_broadcast = matches!(addr, IpAddr::V4(addr) if addr.is_broadcast());
    !addr.is_unspecified() && !addr.is_multicast() && !is_broadcast
}

pub(super) fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

impl CookiesImage {
    fn of(cookies: &Cookies, now: Instant) -> Self {
        let mut cookies = *cookies;
        cookies.turn(now);
        let Cookies { until, sent, finished } = cookies;
        let period = if (sent, finished) == ([0; 2], [0; 2]) { 0 } else { micros(until.saturating_since(now)) };
        Self { period, sent, finished }
    }
}

impl EndImage {
    fn of(failure: StreamError) -> Option<Self> {
        match failure {
            StreamError::Refused => Some(Self::Refused),
            StreamError::Reset => Some(Self::Reset),
            StreamError::TimedOut | StreamError::Unreachable { .. } => Some(Self::TimedOut),
            StreamError::WouldBlock | StreamError::BrokenPipe | StreamError::NoSuchStream => None,
        }
    }
}

impl From<EndImage> for StreamError {
    fn from(end: EndImage) -> Self {
        match end {
            EndImage::Refused => Self::Refused,
            EndImage::Reset => Self::Reset,
            EndImage::TimedOut => Self::TimedOut,
        }
    }
}

impl From<Owner> for OwnerImage {
    fn from(owner: Owner) -> Self {
        match owner {
            Owner::Echo => Self::Echo,
            Owner::Embedder => Self::Embedder,
            Owner::Orphan => Self::Orphan,
        }
    }
}

impl From<OwnerImage> for Owner {
    fn from(owner: OwnerImage) -> Self {
        match owner {
            OwnerImage::Echo => Self::Echo,
            OwnerImage::Embedder => Self::Embedder,
            OwnerImage::Orphan => Self::Orphan,
        }
    }
}

/// Retransmissions are not further apart than a minute in smoltcp; in microseconds.
pub(super) const MOST_TIMER: u64 = 3_600_000_000;
/// The longest of all waits is ten keepalive intervals of the longest kind; in microseconds.
const MOST_PATIENCE: u64 = 320 * 24 * 3600 * 1_000_000;
