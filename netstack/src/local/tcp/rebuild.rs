//! A saved connection as a socket again: by a handshake, replayed in private.
//!
//! smoltcp shows none of its numbers and takes none. So a new socket is led to the saved state in a scratch interface that
//! has no link: it connects (or listens), and is sent the segments that bring it where the saved one was. What it sends
//! there is thrown away. The number of its SYN is all that has to be learned: with it the shim knows what to add.

use std::collections::VecDeque;

use hibernet_snapshot::Instant;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpListenEndpoint, TcpControl, TcpRepr, TcpTimestampRepr};

use super::connection::{Connection, Wait};
use super::cookie::Cookies;
use super::image::{ListenerImage, StreamImage, StreamReset, TcpSection, length};
use super::listener::Listener;
use super::rings::Rings;
use super::segment::{self, Head, Offers};
use super::seq::Seq;
use super::shim::{Clock, EMPTY, Shim, number};
use super::{Connections, Ends, StreamError, StreamState, TcpListener, TcpStream};
use crate::local::{Wire, clock, from_clock};
use crate::report::{RebuildFault, StreamOutcome, StreamReport};

/// What became of the saved streams.
#[derive(Debug, Default)]
pub(crate) struct Rebuilt {
    pub(crate) streams: Vec<StreamReport>,
    pub(crate) resets: Vec<StreamReset>,
    pub(crate) cookies_lost: u32,
}

impl Connections {
    /// Takes listeners and connections from an image. A connection that cannot be led to its saved state is left out, and its
    /// peer is to be reset.
    pub(crate) fn restore(&mut self, section: TcpSection, now: Instant) -> Rebuilt {
        let TcpSection { next_stream, next_listener, listeners, streams, ended, cookies } = section;
        self.next_stream = next_stream;
        self.next_listener = next_listener;
        for (id, ListenerImage { addr, port, options, arrived }) in listeners {
            let mut listener = Listener::new(addr, port, super::Owner::Embedder, options);
            listener.arrived = arrived.into_iter().map(TcpStream).collect();
            self.listeners.insert(TcpListener(id), listener);
        }
        self.ended = ended.into_iter().map(|(id, end)| (TcpStream(id), end.map(StreamError::from))).collect();
        let until = now.saturating_add(core::time::Duration::from_micros(cookies.period));
        let has_cookies = cookies.period > 0;
        self.cookies = if has_cookies {
            Cookies { until, sent: cookies.sent, finished: cookies.finished }
        } else {
            Cookies::default()
        };
        let mut rebuilt = Rebuilt { cookies_lost: self.cookies.in_flight(now), ..Rebuilt::default() };
        for (id, image) in streams {
            let stream = TcpStream(id);
            let outcome = match self.scratch.rebuild_in_time(stream, &image, None, now) {
                Ok(connection) => {
                    self.adopt(connection);
                    StreamOutcome::Kept
                }
                Err(fault) => {
                    rebuilt.resets.push(image.reset());
                    if image.owner == super::image::OwnerImage::Embedder {
                        self.ended.insert(stream, Some(StreamError::Reset));
                    }
                    StreamOutcome::Reset(fault)
                }
            };
            let Ends { local, remote } = image.ends();
            rebuilt.streams.push(StreamReport { stream, local, remote, outcome });
        }
        rebuilt
    }

    fn adopt(&mut self, connection: Connection) {
        if let Some(listener) = connection.listener.and_then(|id| self.listeners.get_mut(&id)) {
            listener.half_open = listener.half_open.saturating_add(1);
        }
        let is_closed = connection.state() == State::Closed;
        let slot = self.insert(connection);
        if is_closed {
            self.unfile(slot);
        } else {
            self.set_timer(slot);
        }
    }
}

/// The interface in which handshakes are replayed.
pub(super) struct Scratch {
    wire: Wire,
    /// Largest datagram of the links, which set the window of a SYN.
    mtu: usize,
    /// Rings that are asked for.
    rings: Option<Rings>,
    now: Instant,
    /// smoltcp's time there.
    at: smoltcp::time::Instant,
    /// What is thrown away.
    unsent: VecDeque<Head>,
}

/// The socket's numbers while it is led: those of its own side from its generator, those of the peer's as they are.
struct Led {
    connection: Connection,
    /// The socket's number for the first byte it sends.
    first: Seq,
    window: u16,
}

impl Scratch {
    /// `seed` is secret: smoltcp's numbers follow from it. `mtu` is that of the links.
    pub(super) fn new(mtu: usize, seed: u64) -> Self {
        let (now, at) = (Instant::ZERO, smoltcp::time::Instant::ZERO);
        Self { wire: Wire::new(mtu, seed), mtu, now, at, rings: None, unsent: VecDeque::new() }
    }

    /// Leads a connection into a socket with other rings. One that cannot be led there keeps what it has.
    pub(super) fn change_rings(&mut self, connection: &mut Connection, rings: Rings, now: Instant) {
        let image = connection.image(now);
        if let Ok(other) = self.rebuild_in_time(connection.stream, &image, Some(rings), now) {
            connection.take_socket(other);
        }
    }

    /// A socket whose timer has as long to run as the saved one's, with the smallest rings for what it holds, or with others.
    ///
    /// Timers start while the handshake is replayed. How long they run shows when that has been done; so it is done again, so
    /// much sooner or later that they end when they should.
    pub(super) fn rebuild_in_time(
        &mut self,
        stream: TcpStream,
        image: &StreamImage,
        rings: Option<Rings>,
        now: Instant,
    ) -> Result<Connection, RebuildFault> {
        (self.now, self.at, self.rings) = (now, clock(now), rings);
        let connection = self.rebuild(stream, image)?;
        if !image.has_timer() {
            return Ok(connection);
        }
        let runs = connection.due.map_or(0, |due| clock(due).total_micros().saturating_sub(self.at.total_micros()));
        let mut connection = if runs > 0 {
            let wanted = i64::try_from(image.timer).unwrap_or(i64::MAX);
            let begin = self.at.total_micros().saturating_add(wanted.saturating_sub(runs));
            self.at = smoltcp::time::Instant::from_micros(begin);
            self.rebuild(stream, image)?
        } else {
            connection
        };
        connection.due = Some(from_clock(clock(self.now) + smoltcp::time::Duration::from_micros(image.timer)));
        Ok(connection)
    }

    fn rebuild(&mut self, stream: TcpStream, image: &StreamImage) -> Result<Connection, RebuildFault> {
        let mut led = match image.state {
            StreamState::SynSent => self.syn_sent(stream, image)?,
            StreamState::SynReceived => self.syn_received(stream, image)?,
            _ => self.established(stream, image)?,
        };
        self.check(&mut led, image)?;
        let Led { mut connection, window, .. } = led;
        let una = connection.una(image.state.into());
        connection.shim.resume(Seq(image.nxt), image.rcv_nxt(), window, una);
        connection.apply_options();
        connection.due = match (image.state, image.unread.is_empty()) {
            (StreamState::Closed, _) | (StreamState::TimeWait, false) => None,
            _ => self.wire.interface.poll_at(self.at, connection.sockets()).map(from_clock),
        };
        Ok(connection)
    }

    fn syn_sent(&mut self, stream: TcpStream, image: &StreamImage) -> Result<Led, RebuildFault> {
        let mut led = self.connect(stream, image)?;
        led.connection.shim.align(Seq(image.iss), led.first.minus(1));
        Ok(led)
    }

    fn syn_received(&mut self, stream: TcpStream, image: &StreamImage) -> Result<Led, RebuildFault> {
        let Ends { local, .. } = image.ends();
        let mut led = if image.listener.is_some() {
            let mut connection = self.begin(stream, image);
            let endpoint = IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() };
            connection.socket().listen(endpoint).map_err(|_| RebuildFault::State)?;
            Led { connection, first: Seq(0), window: 0 }
        } else {
            self.connect(stream, image)?
        };
        self.say(&mut led, image, TcpRepr { control: TcpControl::Syn, ..self.opening(image) });
        let syn_ack = self.hear(&mut led).ok_or(RebuildFault::Numbers)?;
        led.first = syn_ack.seq.plus(1);
        led.connection.shim.align(Seq(image.iss), syn_ack.seq);
        Ok(led)
    }

    /// All states behind the handshake. The order keeps back what the saved socket has not sent yet: the scratch interface
    /// would let it go.
    fn established(&mut self, stream: TcpStream, image: &StreamImage) -> Result<Led, RebuildFault> {
        use StreamState::{CloseWait, Closed, Closing, FinWait2, LastAck, TimeWait};
        let mut led = self.connect(stream, image)?;
        let first = led.first;
        let syn_ack = TcpRepr { control: TcpControl::Syn, ack_number: Some(number(first)), ..self.opening(image) };
        self.say(&mut led, image, TcpRepr { window_len: u16::MAX, ..syn_ack });
        self.hear(&mut led).ok_or(RebuildFault::State)?;
        let mut at = Seq(image.start);
        let from_peer = |at: Seq| TcpRepr {
            seq_number: number(at),
            ack_number: Some(number(first)),
            window_len: image.peer_window,
            ..EMPTY
        };
        for piece in image.unread.chunks(PIECE) {
            self.say(&mut led, image, TcpRepr { payload: piece, ..from_peer(at) });
            at = at.plus(length(piece));
        }
        self.say(&mut led, image, from_peer(at));
        let fin = |at: Seq| TcpRepr { control: TcpControl::Fin, ..from_peer(at) };
        if matches!(image.state, CloseWait | LastAck | Closed) {
            self.say(&mut led, image, fin(at));
            at = at.plus(1);
        }
        self.hear(&mut led);
        let sent = Seq(image.nxt).since(Seq(image.base)).max(0).cast_unsigned();
        let (sent_bytes, rest) = image.unacked.split_at(usize::try_from(sent).unwrap_or(0).min(image.unacked.len()));
        led.send(sent_bytes)?;
        self.hear(&mut led);
        let fin_is_sent = image.has_fin() && sent > length(&image.unacked);
        if !fin_is_sent {
            led.send(rest)?;
        }
        if image.has_fin() {
            led.connection.socket().close();
        }
        if fin_is_sent {
            self.hear(&mut led);
        }
        if matches!(image.state, FinWait2 | TimeWait | Closed) {
            self.say(&mut led, image, TcpRepr { ack_number: Some(number(first.plus(1))), ..from_peer(at) });
        }
        match image.state {
            Closing => self.say(&mut led, image, fin(at)),
            TimeWait => self.say(&mut led, image, TcpRepr { ack_number: Some(number(first.plus(1))), ..fin(at) }),
            _ => {}
        }
        if matches!(image.state, Closing | TimeWait) && fin_is_sent {
            self.hear(&mut led);
        }
        led.connection.shim.align(Seq(image.base), first);
        Ok(led)
    }

    /// A socket that has sent its SYN.
    fn connect(&mut self, stream: TcpStream, image: &StreamImage) -> Result<Led, RebuildFault> {
        let mut connection = self.begin(stream, image);
        let Ends { local, remote } = image.ends();
        let context = self.wire.interface.context();
        connection.socket().connect(context, remote, local).map_err(|_| RebuildFault::State)?;
        let mut led = Led { connection, first: Seq(0), window: 0 };
        let syn = self.hear(&mut led).filter(|head| head.syn).ok_or(RebuildFault::Numbers)?;
        led.first = syn.seq.plus(1);
        Ok(led)
    }

    /// Whether the socket is what was saved; asked of itself, by an acknowledgement of what it has not sent.
    fn check(&mut self, led: &mut Led, image: &StreamImage) -> Result<(), RebuildFault> {
        let socket = led.connection.socket();
        let queues = (socket.recv_queue(), socket.send_queue());
        if socket.state() != State::from(image.state) {
            return Err(RebuildFault::State);
        }
        if queues != (image.unread.len(), image.unacked.len()) {
            return Err(RebuildFault::Queues);
        }
        if image.waits_for() == Some(Wait::Handshake) || image.state == StreamState::Closed {
            return Ok(());
        }
        // Long ago, so that the answer does not count against the answers the socket may give from now on.
        let then = self.at.min(clock(self.now)) - smoltcp::time::Duration::from_secs(2);
        let then = then.max(smoltcp::time::Instant::ZERO);
        let unsent = TcpRepr {
            seq_number: number(image.rcv_nxt()),
            ack_number: Some(number(led.first.plus(FAR))),
            window_len: image.peer_window,
            ..EMPTY
        };
        self.unsent.clear();
        self.say_at(led, image, unsent, then);
        let answer = self.unsent.pop_back().ok_or(RebuildFault::Numbers)?;
        let sent = answer.seq.since(led.first);
        let saved = Seq(image.nxt).since(Seq(image.base));
        if answer.ack != Some(image.rcv_nxt()) || sent > saved {
            return Err(RebuildFault::Numbers);
        }
        Ok(())
    }

    fn opening(&self, image: &StreamImage) -> TcpRepr<'static> {
        opening(image, segment::mss(self.mtu, image.local.0))
    }

    fn begin(&self, stream: TcpStream, image: &StreamImage) -> Connection {
        new(stream, image, self.mtu, self.rings, self.now)
    }

    fn say(&mut self, led: &mut Led, image: &StreamImage, repr: TcpRepr<'_>) {
        self.say_at(led, image, repr, self.at);
    }

    fn say_at(&mut self, led: &mut Led, image: &StreamImage, repr: TcpRepr<'_>, at: smoltcp::time::Instant) {
        let Ends { local, remote } = image.ends();
        if let Some(datagram) = segment::build(remote, local, &repr) {
            self.wire.feed_at(&datagram, led.connection.sockets(), at);
        }
        while let Some(head) = self.take_sent(led) {
            self.unsent.push_back(head);
        }
    }

    /// Lets the socket send, and throws away all but the last of what it has sent.
    fn hear(&mut self, led: &mut Led) -> Option<Head> {
        self.wire.flush_at(led.connection.sockets(), self.at);
        while let Some(head) = self.take_sent(led) {
            self.unsent.push_back(head);
        }
        let last = self.unsent.pop_back();
        self.unsent.clear();
        last
    }

    fn take_sent(&mut self, led: &mut Led) -> Option<Head> {
        let head = Head::read(&self.wire.device.take_sent()?.datagram)?;
        if head.ack.is_some() {
            led.window = head.window;
        }
        Some(head)
    }
}

impl Led {
    fn send(&mut self, bytes: &[u8]) -> Result<(), RebuildFault> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self.connection.socket().send_slice(bytes) {
            Ok(taken) if taken == bytes.len() => Ok(()),
            _ => Err(RebuildFault::Queues),
        }
    }
}

/// A connection as saved, with a socket that is still closed.
fn new(stream: TcpStream, image: &StreamImage, mtu: usize, rings: Option<Rings>, now: Instant) -> Connection {
    let until = |left: u64| now.saturating_add(core::time::Duration::from_micros(left));
    let mss = segment::mss(mtu, image.local.0);
    let mut shim = Shim::new(Seq(image.iss), 0, image.options.opening(mss));
    shim.offers = Offers { mss: image.peer_mss, scale: image.peer_scale, sack: image.peer_sack };
    shim.peer_window = image.peer_window;
    shim.clock = image.clock.map(|clock| {
        let from_zero = Clock { offset: 0, recent: clock.recent, recent_until: until(clock.recent_for) };
        Clock { offset: clock.value.wrapping_sub(from_zero.at(now)), ..from_zero }
    });
    let full = Rings::full(&image.options, mss);
    let rings = rings.unwrap_or_else(|| Rings::holding(full, image.unread.len(), image.unacked.len()));
    let (ends, owner) = (image.ends(), image.owner.into());
    let mut connection = Connection::with_rings(stream, ends, owner, image.options, (full, rings), shim);
    connection.listener = image.listener.map(TcpListener);
    connection.base = Seq(image.base);
    connection.start = Seq(image.start);
    connection.unacked = image.unacked.iter().copied().collect();
    connection.patience = image.waits_for().zip(image.patience.map(until));
    connection
}

/// The peer's SYN as it was, but for its number, that of the byte before the first unread one, and a segment size that is no
/// larger than `own`.
fn opening(image: &StreamImage, own: u16) -> TcpRepr<'static> {
    TcpRepr {
        seq_number: number(Seq(image.start).minus(1)),
        window_len: image.peer_window,
        max_seg_size: image.peer_mss.map(|mss| mss.min(own)),
        window_scale: image.peer_scale,
        sack_permitted: image.peer_sack,
        timestamp: image.clock.and_then(|clock| clock.recent).map(|recent| TcpTimestampRepr::new(recent, 0)),
        ..EMPTY
    }
}

/// Data that fits a datagram.
const PIECE: usize = 32_768;
/// Further than any window.
const FAR: u32 = 1 << 30;
/// What the seed of the scratch interface is drawn for.
pub(super) const SCRATCH_SEED: u64 = 0x7365_6564_7372_6373;
