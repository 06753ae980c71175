//! One TCP connection of this host: a smoltcp socket in a set of its own, its shim, and what a save needs to know.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::VecDeque;

use hibernet_snapshot::Instant;
use parking_lot::Mutex;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, State};

use super::options::StreamOptions;
use super::rebuild::Scratch;
use super::rings::{REST, Rings};
use super::round_trip::{LONGEST_WAIT, RoundTrip};
use super::segment::{Ends, Head, mss};
use super::seq::Seq;
use super::shim::{Admission, Passage, Shim};
use super::{StreamError, TcpListener, TcpStream};
use crate::drop_reason::DropReason;
use crate::local::{Sent, Wire, clock, from_clock};

/// One connection.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) ends: Ends,
    pub(super) owner: Owner,
    /// The listener that will hand the stream out, as long as the handshake is not finished.
    pub(super) listener: Option<TcpListener>,
    pub(super) options: StreamOptions,
    pub(super) shim: Shim,
    /// Sizes of the socket's rings, and what they may become.
    pub(super) rings: Rings,
    pub(super) full: Rings,
    /// A save looks at the socket by `&self`, and smoltcp's peek wants `&mut`. Nobody waits for this lock: whoever has
    /// `&mut` goes around it.
    sockets: Mutex<SocketSet<'static>>,
    socket: SocketHandle,
    /// The bytes in the socket's send buffer: nothing of smoltcp shows them.
    pub(super) unacked: VecDeque<u8>,
    /// The number of the first of them.
    pub(super) base: Seq,
    /// The number of the first byte nobody has read.
    pub(super) start: Seq,
    /// When the connection is given up, and what for.
    pub(super) patience: Option<(Wait, Instant)>,
    trip: RoundTrip,
    /// When the first segment is sent again if nothing is acknowledged until then, and how long that wait was.
    again: Option<(Instant, Duration)>,
    /// When smoltcp's timers want it next.
    pub(super) due: Option<Instant>,
    /// When it has rested long enough for smaller rings.
    rest: Option<Instant>,
    /// It has been given something that it has not answered yet.
    pub(super) touched: bool,
    /// It can be found by its ends.
    pub(super) filed: bool,
    /// When it is queued to be looked at.
    pub(super) queued: Option<Instant>,
    /// What is told instead of a timeout, as long as nothing is heard of the peer.
    pub(super) doubt: Option<StreamError>,
    /// Why it ended, where it did not end in order.
    pub(super) failure: Option<StreamError>,
}

/// Who reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// The echo service.
    Echo,
    /// Who holds the stream's id.
    Embedder,
    /// Nobody any more: what is queued is still sent.
    Orphan,
}

/// What a connection waits for, and not for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// The end of a handshake.
    Handshake,
    /// The acknowledgement of data or of a FIN.
    Acknowledgement,
    /// The FIN of a peer that nobody here listens to any more.
    Fin,
    /// A sign of life.
    Life,
}

impl Connection {
    /// A connection whose socket is still closed, on links with segments of `mss` bytes.
    pub(super) fn new(
        stream: TcpStream,
        ends: Ends,
        owner: Owner,
        options: StreamOptions,
        mss: u16,
        shim: Shim,
    ) -> Self {
        let full = Rings::full(&options, mss);
        Self::with_rings(stream, ends, owner, options, (full, Rings::holding(full, 0, 0)), shim)
    }

    /// The same with rings of these sizes.
    pub(super) fn with_rings(
        stream: TcpStream,
        ends: Ends,
        owner: Owner,
        options: StreamOptions,
        (full, rings): (Rings, Rings),
        mut shim: Shim,
    ) -> Self {
        let mut socket = rings.socket();
        shim.set_ring(rings.shift(), rings.promised(full));
        // What has come is acknowledged when a burst is over: a delay would add to that.
        socket.set_ack_delay(None);
        socket.set_congestion_control(options.congestion.into());
        socket.set_tsval_generator(shim.clock.map(|_| no_time as fn() -> u32));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let socket = sockets.add(socket);
        let base = shim.iss.plus(1);
        let mut connection = Self {
            stream,
            ends,
            owner,
            listener: None,
            options,
            shim,
            rings,
            full,
            sockets: Mutex::new(sockets),
            socket,
            unacked: VecDeque::new(),
            base,
            start: Seq(0),
            patience: None,
            trip: RoundTrip::default(),
            again: None,
            due: None,
            rest: None,
            touched: false,
            filed: true,
            queued: None,
            doubt: None,
            failure: None,
        };
        connection.apply_options();
        connection
    }

    /// Hands the settings that may change to the socket.
    pub(super) fn apply_options(&mut self) {
        let StreamOptions { nodelay, keepalive, hop_limit, .. } = self.options;
        let socket = self.socket();
        socket.set_nagle_enabled(!nodelay);
        socket.set_hop_limit(Some(hop_limit.max(1)));
        let keepalive = keepalive.map(|every| smoltcp::time::Duration::from_micros(micros(every)));
        if socket.keep_alive() != keepalive {
            socket.set_keep_alive(keepalive);
        }
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut().get_mut(self.socket)
    }

    /// Looks at the socket without disturbing it.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut Socket<'static>) -> T) -> T {
        look(self.sockets.lock().get_mut(self.socket))
    }

    pub(super) fn state(&self) -> State {
        self.look(|socket| socket.state())
    }

    /// SND.UNA.
    pub(super) fn una(&self, state: State) -> Seq {
        match state {
            State::SynSent | State::SynReceived => self.shim.iss,
            State::FinWait2 | State::TimeWait => self.base.plus(1),
            _ => self.base,
        }
    }

    /// RCV.NXT.
    pub(super) fn rcv_nxt(&self, state: State, unread: usize) -> Seq {
        let unread = u32::try_from(unread).unwrap_or(0);
        self.start.plus(unread).plus(u32::from(has_peer_fin(state)))
    }

    /// Gives the connection a segment. What it answers at once is appended to `out`; what it answers to a burst is sent when
    /// it is flushed. The datagram is written in unless there is a reason
    /// against.
    pub(super) fn feed(
        &mut self,
        head: &Head,
        datagram: &mut [u8],
        (wire, scratch): (&mut Wire, &mut Scratch),
        out: &mut VecDeque<Sent>,
        now: Instant,
    ) -> Result<(), DropReason> {
        let socket = self.socket();
        let (before, unread) = (socket.state(), socket.recv_queue());
        let (una, rcv_nxt) = (self.una(before), self.rcv_nxt(before, unread));
        let ends = self.ends;
        let mut passage = match before {
            State::Closed => return Err(DropReason::NoConnection),
            State::Listen | State::SynSent => Passage::plain(head),
            _ => match self.shim.admit(head, before, una, rcv_nxt, now) {
                Admission::Take(passage) => {
                    self.shim.hear(head, now);
                    passage
                }
                Admission::Challenge(reason) => {
                    out.extend(self.shim.challenge(&ends, rcv_nxt, now).map(Sent::whole));
                    return Err(reason);
                }
                Admission::Repeat => {
                    out.extend(self.shim.syn_ack(&ends, rcv_nxt, now).map(Sent::whole));
                    return Ok(());
                }
                Admission::Drop(reason) => return Err(reason),
            },
        };
        let rings = if head.syn { None } else { self.rings_for(head, rcv_nxt) };
        // A handshake is not replayed in its middle: first the acknowledgement that ends it.
        passage.bare_first |= rings.is_some() && before == State::SynReceived;
        if passage.bare_first
            && let Some(bare) = self.shim.bare(&ends, &passage, rcv_nxt)
        {
            wire.feed(&bare, self.sockets.get_mut(), now);
            self.collect(wire, out, now);
        }
        if let Some(rings) = rings {
            self.flush(wire, out, now);
            scratch.change_rings(self, rings, now);
        }
        self.shim.deliver(datagram, head, &passage);
        wire.feed(datagram, self.sockets.get_mut(), now);
        let after = self.socket().state();
        if matches!(before, State::Listen | State::SynSent) && !matches!(after, State::Listen | State::SynSent) {
            self.shim.meet(head, now);
            self.start = head.seq.plus(1);
        }
        self.collect(wire, out, now);
        if head.rst {
            self.failure = match (before, after) {
                (State::SynSent, State::Closed) => Some(StreamError::Refused),
                (_, State::Closed | State::Listen) => Some(StreamError::Reset),
                _ => self.failure,
            };
        }
        let acknowledged = self.una(after);
        let is_acknowledged = acknowledged != una;
        if is_acknowledged {
            self.doubt = None;
            self.trip.acknowledged(acknowledged, self.shim.echo_age(head, now), now);
            if self.shim.uncovers(self.base) {
                self.repeat_first(out, now);
            }
        }
        let progress = is_acknowledged || self.zero_window_is_heard();
        self.rearm(progress, now);
        Ok(())
    }

    /// Lets the connection send what it can. What it sends is appended to `out`.
    pub(super) fn flush(&mut self, wire: &mut Wire, out: &mut VecDeque<Sent>, now: Instant) {
        self.touched = false;
        let socket = self.socket();
        // At the end of TIME-WAIT smoltcp throws away what nobody has read yet.
        let is_kept = socket.state() == State::TimeWait && socket.recv_queue() > 0;
        if !is_kept {
            wire.flush(self.sockets.get_mut(), now);
            self.collect_unasked(wire, out, now);
        }
        self.due = wire.interface.poll_at(clock(now), self.sockets.get_mut()).map(from_clock);
        if is_kept {
            self.due = None;
        }
        self.rest = self.rings_at_rest().map(|_| now.saturating_add(REST));
        self.rearm(false, now);
    }

    /// Gives a connection that has rested smaller rings.
    pub(super) fn give_back(&mut self, scratch: &mut Scratch, now: Instant) {
        if self.rest.take_if(|rest| *rest <= now).is_some()
            && let Some(rings) = self.rings_at_rest()
        {
            self.unacked.shrink_to_fit();
            scratch.change_rings(self, rings, now);
        }
    }

    /// Goes on with the socket of another, which has been led to where this one is.
    pub(super) fn take_socket(&mut self, other: Self) {
        let Self { sockets, socket, shim, rings, due, .. } = other;
        // Whoever waits for the socket that was there is to look at this one.
        self.socket().abort();
        self.sockets = sockets;
        self.socket = socket;
        self.shim.take_socket(&shim);
        self.rings = rings;
        self.due = due;
    }

    /// When the connection has to be looked at.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let patience = self.patience.map(|(_, until)| until);
        let again = self.again.map(|(at, _)| at);
        [self.due, patience, again, self.rest].into_iter().flatten().min()
    }

    /// Gives the connection up if it has waited long enough. True if that is all: a peer that has answered before is still to
    /// be told, with the reset the socket sends next.
    pub(super) fn lose_patience(&mut self, now: Instant) -> bool {
        let Some((wait, _)) = self.patience.filter(|(_, until)| *until <= now) else { return false };
        self.failure = self.doubt.or(Some(StreamError::TimedOut));
        self.patience = None;
        self.socket().abort();
        wait == Wait::Handshake
    }

    /// Sends the first segment that is not acknowledged once more, if it is time.
    ///
    /// smoltcp doubles its wait with every retransmission and takes that back only once data that was sent a single time is
    /// acknowledged. On a link that loses a little all the time it rarely is, so that after some losses a connection stands
    /// still for up to a minute. Here the wait begins anew with every progress (RFC 6298, section 5.7 asks for no more).
    pub(super) fn send_again(&mut self, out: &mut VecDeque<Sent>, now: Instant) {
        let due = self.again.filter(|(at, _)| *at <= now && self.failure.is_none());
        let Some((_, wait)) = due else { return };
        let wait = wait.saturating_mul(2).min(LONGEST_WAIT);
        self.again = Some((now.saturating_add(wait), wait));
        self.repeat_first(out, now);
    }

    /// Sends the first segment that is not acknowledged once more.
    ///
    /// smoltcp does so by itself for the first loss in a window. For the others it waits for its timer where RFC 6582 has an
    /// acknowledgement that covers a part of the window bring the next.
    fn repeat_first(&mut self, out: &mut VecDeque<Sent>, now: Instant) {
        let socket = self.socket();
        let (state, unread) = (socket.state(), socket.recv_queue());
        let rcv_nxt = self.rcv_nxt(state, unread);
        let sent = self.shim.nxt.since(self.base).max(0).cast_unsigned();
        let room = self.shim.segment_room();
        let length = usize::try_from(sent.min(room)).unwrap_or(0).min(self.unacked.len());
        let payload: Vec<u8> = self.unacked.iter().take(length).copied().collect();
        let fin = length == self.unacked.len() && u32::try_from(length).is_ok_and(|length| sent > length);
        self.trip.repeated();
        self.shim.note_repeat(self.base.plus(sent.min(room)));
        let repeat = self.shim.repeat(&self.ends, self.base, &payload, fin, rcv_nxt, now);
        out.extend(repeat.map(Sent::whole));
    }

    /// Arms the wait for an acknowledgement, anew if there was one.
    fn await_acknowledgement(&mut self, progress: bool, now: Instant) {
        let is_open =
            !matches!(self.socket().state(), State::SynSent | State::SynReceived | State::Closed | State::Listen);
        let under_way = is_open && self.base.is_before(self.shim.nxt) && !self.has_all_acknowledged();
        // A closed window has a timer of its own.
        let is_closed = self.shim.peer_window == 0 && !self.unacked.is_empty();
        if !under_way || is_closed {
            self.again = None;
        } else if progress || self.again.is_none() {
            let wait = self.trip.wait();
            self.again = Some((now.saturating_add(wait), wait));
        }
    }

    fn has_all_acknowledged(&mut self) -> bool {
        matches!(self.socket().state(), State::FinWait2 | State::TimeWait)
    }

    /// Ends the connection with a reset.
    pub(super) fn abort(&mut self) {
        self.socket().abort();
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        let failure = self.failure;
        let socket = self.socket();
        match socket.state() {
            State::SynSent | State::SynReceived | State::Listen => return Err(StreamError::WouldBlock),
            State::Closed => return Err(failure.unwrap_or(StreamError::BrokenPipe)),
            _ => {}
        }
        let taken = socket.send_slice(bytes).map_err(|_| StreamError::BrokenPipe)?;
        if taken == 0 && !bytes.is_empty() {
            return Err(StreamError::WouldBlock);
        }
        self.unacked.extend(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    pub(super) fn read(&mut self, room: &mut [u8]) -> Result<usize, StreamError> {
        let failure = self.failure;
        let socket = self.socket();
        let taken = match socket.recv_slice(room) {
            Ok(0) if !room.is_empty() => return Err(StreamError::WouldBlock),
            Ok(taken) => taken,
            Err(RecvError::Finished) => return Ok(0),
            Err(RecvError::InvalidState) => {
                return match socket.state() {
                    State::SynSent | State::SynReceived | State::Listen => Err(StreamError::WouldBlock),
                    _ => failure.map_or(Ok(0), Err),
                };
            }
        };
        self.start = self.start.plus(u32::try_from(taken).unwrap_or(0));
        Ok(taken)
    }

    /// Sends back what has arrived, as far as there is room, and closes after the peer.
    pub(super) fn echo(&mut self) {
        let mut bytes = [0; 2048];
        loop {
            let socket = self.socket();
            let room = socket.send_capacity().saturating_sub(socket.send_queue()).min(bytes.len());
            if !socket.can_send() {
                break;
            }
            let Some(Ok(taken)) = bytes.get_mut(..room).map(|room| self.read(room)) else { break };
            if taken == 0 || bytes.get(..taken).is_none_or(|bytes| self.write(bytes).is_err()) {
                break;
            }
        }
        let socket = self.socket();
        if socket.state() == State::CloseWait && socket.recv_queue() == 0 {
            socket.close();
        }
    }

    /// Arms the patience for what the connection waits for now; anew if there is progress.
    pub(super) fn rearm(&mut self, progress: bool, now: Instant) {
        self.await_acknowledgement(progress, now);
        let Some(wait) = self.waits_for() else {
            self.patience = None;
            return;
        };
        let is_renewed = progress && matches!(wait, Wait::Acknowledgement | Wait::Life);
        if self.patience.is_some_and(|(armed, _)| armed == wait) && !is_renewed {
            return;
        }
        let StreamOptions { keepalive, user_timeout, .. } = self.options;
        let long = match wait {
            Wait::Handshake if self.listener.is_some() => SYN_RECEIVED,
            Wait::Handshake => user_timeout.unwrap_or(SYN_SENT),
            Wait::Acknowledgement => user_timeout.unwrap_or(ACKNOWLEDGEMENT),
            Wait::Fin => FIN,
            Wait::Life => keepalive.unwrap_or_default().saturating_mul(KEEPALIVES),
        };
        self.patience = Some((wait, now.saturating_add(long)));
    }

    /// What the connection waits for.
    pub(super) fn waits_for(&mut self) -> Option<Wait> {
        let has_data = !self.unacked.is_empty();
        match self.socket().state() {
            State::SynSent | State::SynReceived => Some(Wait::Handshake),
            State::Listen | State::Closed | State::TimeWait => None,
            State::FinWait1 | State::Closing | State::LastAck => Some(Wait::Acknowledgement),
            _ if has_data => Some(Wait::Acknowledgement),
            State::FinWait2 if self.owner == Owner::Orphan => Some(Wait::Fin),
            _ => self.options.keepalive.map(|_| Wait::Life),
        }
    }

    /// A peer that offers no window but answers is alive; only a user's own timeout counts against it.
    fn zero_window_is_heard(&mut self) -> bool {
        match self.waits_for() {
            Some(Wait::Acknowledgement) => self.shim.peer_window == 0 && self.options.user_timeout.is_none(),
            _ => true,
        }
    }

    /// Takes what the socket has sent in answer, in the wire's numbers, and notes what has been acknowledged.
    fn collect(&mut self, wire: &mut Wire, out: &mut VecDeque<Sent>, now: Instant) {
        while let Some(sent) = wire.device.take_sent() {
            self.pass_on(sent, false, out, now);
        }
        let queued = self.socket().send_queue();
        let acked = self.unacked.len().saturating_sub(queued);
        if acked > 0 {
            self.unacked.drain(..acked);
            self.base = self.base.plus(u32::try_from(acked).unwrap_or(0));
        }
    }

    /// Takes what the socket has sent of its own accord.
    fn collect_unasked(&mut self, wire: &mut Wire, out: &mut VecDeque<Sent>, now: Instant) {
        while let Some(sent) = wire.device.take_sent() {
            self.pass_on(sent, true, out, now);
        }
    }

    fn pass_on(&mut self, mut sent: Sent, unasked: bool, out: &mut VecDeque<Sent>, now: Instant) {
        let Some(head) = Head::read(&sent.datagram) else { return };
        let before = self.shim.nxt;
        if unasked && self.shim.is_idle_update(&head) {
            return self.shim.see_edge(&head);
        }
        if self.shim.send(&mut sent.datagram, &head, now) {
            self.trip.repeated();
        } else if before != self.shim.nxt {
            self.trip.sent(self.shim.nxt, now);
        }
        sent.cut(head.data, self.shim.segment_room());
        out.push_back(sent);
    }

    /// The set and the socket in it, for the rebuild.
    pub(super) fn sockets(&mut self) -> &mut SocketSet<'static> {
        self.sockets.get_mut()
    }
}

impl Wire {
    /// The largest segment that fits the links.
    pub(super) fn mss(&self, local: IpAddr) -> u16 {
        mss(self.mtu, local)
    }
}

/// Whether the peer's FIN has been taken in that state.
pub(super) const fn has_peer_fin(state: State) -> bool {
    matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
}

/// smoltcp has a timestamp to write into; the shim writes it.
const fn no_time() -> u32 {
    0
}

pub(super) fn micros(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros()).unwrap_or(u64::MAX)
}

/// Six repeats of a SYN (`tcp_syn_retries`).
const SYN_SENT: Duration = Duration::from_secs(127);
/// Five repeats of a SYN-ACK (`tcp_synack_retries`).
const SYN_RECEIVED: Duration = Duration::from_secs(63);
/// Fifteen repeats of a segment (`tcp_retries2`).
const ACKNOWLEDGEMENT: Duration = Duration::from_millis(924_600);
/// `tcp_fin_timeout`.
const FIN: Duration = Duration::from_secs(60);
/// Nine probes without an answer (`tcp_keepalive_probes`), after the first silence.
const KEEPALIVES: u32 = 10;
