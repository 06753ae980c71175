//! Between the hooks and one smoltcp socket: the numbers on the wire, and who may change the connection.
//!
//! smoltcp counts from a number of its own generator. What others see counts from the initial sequence number of RFC 6528:
//! the difference is added to what the socket sends, and taken from what is acknowledged to it. Timestamps (RFC 7323) are
//! written here altogether, since smoltcp's come from a clock that knows no connection.
//!
//! What smoltcp does not do is done before it sees a segment: RFC 5961's checks of RST, SYN and ACK, RFC 7323's protection
//! against wrapped numbers, RFC 9293's rule that an old segment does not set the window, and the acceptance of an
//! acknowledgement at the very edge of the window, as Linux has it.

use core::time::Duration;

use hibernet_snapshot::Instant;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber, TcpTimestampRepr};

use super::segment::{self, Ends, Head, Offers, Timestamps};
use super::seq::Seq;
use crate::drop_reason::DropReason;

/// The wire's view of one connection. No field is a key; [`Shim::offset`] leads to smoltcp's generator and is never saved.
#[derive(Debug)]
pub(super) struct Shim {
    /// Our initial sequence number.
    pub(super) iss: Seq,
    /// What is added to smoltcp's numbers; unknown until its SYN was seen.
    offset: Option<u32>,
    /// What our SYN says.
    opening: Opening,
    /// The window of the socket's own, smaller receive ring.
    ring: Ring,
    /// SND.NXT: behind the last byte, SYN or FIN that was ever sent.
    pub(super) nxt: Seq,
    /// While lost data is sent again (RFC 6582): SND.NXT when that began, and behind what has been sent again.
    recovery: Option<(Seq, Seq)>,
    /// The last acknowledgement sent.
    acked: Seq,
    /// The window sent with it, as it stood there.
    window: u16,
    /// What the peer's SYN offered.
    pub(super) offers: Offers,
    /// Shift of the windows we send.
    shift: u8,
    /// The peer's window, as it stood in the segment that set it.
    pub(super) peer_window: u16,
    /// The largest window the peer has offered, scaled.
    widest: u32,
    /// Numbers of the segment that set the window: SND.WL1 and SND.WL2.
    set_by: (Seq, Seq),
    /// Timestamps, where both ends use them.
    pub(super) clock: Option<Clock>,
    challenges: Challenges,
}

/// What our SYN says in place of what smoltcp would.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Opening {
    /// The largest segment that fits the links.
    pub(super) mss: u16,
    /// The window, which is never scaled there.
    pub(super) window: u16,
    /// By what later windows are shifted, if the peer agrees.
    pub(super) shift: u8,
}

/// The socket's receive ring, which may be smaller than what the peer is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Ring {
    /// By what the socket shifts its windows.
    pub(super) shift: u8,
    /// Bytes that the peer is offered beyond the ring.
    pub(super) promised: u32,
    /// The right edge of the window as the socket knows it.
    pub(super) edge: Seq,
}

/// The timestamps of one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Clock {
    /// What is added to our milliseconds: a connection's clock tells nothing of when the host started.
    pub(super) offset: u32,
    /// TS.Recent: the peer's timestamp that is echoed; `None` before its SYN.
    pub(super) recent: Option<u32>,
    /// Until when TS.Recent proves a segment old (RFC 7323, section 5.5: 24 days).
    pub(super) recent_until: Instant,
}

/// What becomes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    /// The socket gets it.
    Take(Passage),
    /// It ends here; its sender is told where we are, which a peer that is alive will answer.
    Challenge(DropReason),
    /// It ends here. A SYN that came again is answered again.
    Repeat,
    /// It ends here.
    Drop(DropReason),
}

/// With what numbers the socket gets a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Passage {
    ack: Option<Seq>,
    window: u16,
    /// smoltcp would not look at the acknowledgement: it gets that as a segment of its own, in front.
    pub(super) bare_first: bool,
}

/// RFC 5961, section 7: so many challenges in so long a time, counted for each connection by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Challenges {
    since: Instant,
    sent: u8,
}

impl Shim {
    /// The view of a connection whose SYN has not been sent. `clock_offset` is what its timestamps count from.
    pub(super) fn new(iss: Seq, clock_offset: u32, opening: Opening) -> Self {
        Self {
            iss,
            offset: None,
            opening,
            ring: Ring::default(),
            nxt: iss,
            recovery: None,
            acked: Seq(0),
            window: 0,
            offers: Offers::default(),
            shift: 0,
            peer_window: 0,
            widest: 0,
            set_by: (Seq(0), Seq(0)),
            clock: Some(Clock { offset: clock_offset, recent: None, recent_until: Instant::ZERO }),
            challenges: Challenges::default(),
        }
    }

    /// The peer's SYN has been taken.
    pub(super) fn meet(&mut self, syn: &Head, now: Instant) {
        self.offers = syn.offers;
        self.shift = if syn.offers.scale.is_some() { self.opening.shift } else { 0 };
        self.peer_window = syn.window;
        self.widest = u32::from(syn.window);
        self.set_by = (syn.seq, syn.ack.unwrap_or(self.iss));
        match (&mut self.clock, syn.timestamps) {
            (Some(clock), Some(timestamps)) => clock.hear(timestamps.value, now),
            (clock, _) => *clock = None,
        }
    }

    /// What smoltcp's numbers are to the wire's, from one number in both counts.
    pub(super) fn align(&mut self, wire: Seq, smoltcp: Seq) {
        self.offset = Some(wire.0.wrapping_sub(smoltcp.0));
    }

    /// The socket's number of a number on the wire.
    pub(super) fn inward(&self, wire: Seq) -> Seq {
        wire.minus(self.offset.unwrap_or(0))
    }

    /// Restores what [`Shim::acked`] and the window were for a connection that has acknowledged all it has received. `window`
    /// is the socket's.
    pub(super) fn resume(&mut self, nxt: Seq, acked: Seq, window: u16, una: Seq) {
        self.nxt = nxt;
        self.acked = acked;
        self.shift = if self.offers.scale.is_some() { self.opening.shift } else { 0 };
        self.ring.edge = acked.plus(u32::from(window) << self.ring_shift());
        self.window = self.outward_window(window);
        self.set_by = (acked, una);
        self.widest = self.scaled(self.peer_window);
    }

    /// The socket has another receive ring.
    pub(super) const fn set_ring(&mut self, shift: u8, promised: u32) {
        self.ring = Ring { shift, promised, ..self.ring };
    }

    /// Takes the place of the socket that was there: `by` is the view of the new one.
    pub(super) const fn take_socket(&mut self, by: &Self) {
        self.offset = by.offset;
        self.ring = by.ring;
    }

    /// Whether a segment is in the window, but not for the socket's ring: something is missing before it, or it is too long.
    pub(super) fn exceeds_ring(&self, head: &Head, rcv_nxt: Seq) -> bool {
        let in_window = rcv_nxt.is_before(head.end()) && head.seq.is_before(self.edge());
        in_window && (rcv_nxt.is_before(head.seq) || self.ring.edge.is_before(head.end()))
    }

    /// Whether what the socket sends tells of nothing but room in a ring that is smaller than what was offered.
    pub(super) fn is_idle_update(&self, head: &Head) -> bool {
        self.ring.promised > 0 && head.len() == 0 && !head.rst && head.ack == Some(self.acked)
    }

    /// What is sent of a window of the socket's.
    fn outward_window(&self, window: u16) -> u16 {
        let bytes = (u32::from(window) << self.ring_shift()).saturating_add(self.ring.promised);
        u16::try_from(bytes >> self.shift).unwrap_or(u16::MAX)
    }

    /// A peer that scales no windows is sent none that is.
    const fn ring_shift(&self) -> u8 {
        if self.offers.scale.is_some() { self.ring.shift } else { 0 }
    }

    /// Writes the wire's numbers into what the socket sends; the checksum is left to whoever takes it to a link. True if it
    /// has been sent before.
    pub(super) fn send(&mut self, datagram: &mut [u8], head: &Head, now: Instant) -> bool {
        if head.syn && self.offset.is_none() {
            self.align(self.iss, head.seq);
        }
        let seq = head.seq.plus(self.offset.unwrap_or(0));
        segment::set_seq(datagram, seq);
        let Opening { mss, window, shift } = self.opening;
        let window = if head.syn { window } else { self.outward_window(head.window) };
        segment::set_window(datagram, window);
        if head.syn {
            segment::set_mss(datagram, head, mss);
            segment::set_scale(datagram, head, shift);
        }
        self.see_edge(head);
        if let Some(timestamps) = self.timestamps(head.ack.is_some(), now) {
            segment::set_timestamps(datagram, head, timestamps);
        }
        let is_repeat = head.data > 0 && seq.is_before(self.nxt);
        if is_repeat {
            self.note_repeat(seq.plus(head.data));
        }
        if !head.rst {
            self.nxt = self.nxt.later(seq.plus(head.len()));
        }
        if let Some(ack) = head.ack {
            self.acked = ack;
            self.window = window;
        }
        is_repeat
    }

    /// Notes the window of what the socket sends.
    pub(super) fn see_edge(&mut self, head: &Head) {
        if let Some(ack) = head.ack {
            self.ring.edge = ack.plus(u32::from(head.window) << if head.syn { 0 } else { self.ring_shift() });
        }
    }

    /// How old the timestamp is that a segment sends back.
    pub(super) fn echo_age(&self, head: &Head, now: Instant) -> Option<Duration> {
        let age = self.clock?.at(now).wrapping_sub(head.timestamps?.echo);
        Some(Duration::from_millis(age.into()))
    }

    /// Judges a segment for a connection that is past LISTEN and SYN-SENT. `una` is SND.UNA, `rcv_nxt` RCV.NXT.
    pub(super) fn admit(&self, head: &Head, state: State, una: Seq, rcv_nxt: Seq, now: Instant) -> Admission {
        if self.is_old(head, now) {
            return Admission::Challenge(DropReason::TcpOldTimestamp);
        }
        let edge = self.edge();
        if head.rst {
            let in_window = head.seq.since(rcv_nxt) >= 0 && head.seq.is_before(edge);
            return match head.seq == rcv_nxt {
                // RFC 1337: what is over is not ended before its time.
                true if state == State::TimeWait => Admission::Drop(DropReason::TcpUnacceptable),
                true => Admission::Take(self.passage(head, head.ack, false)),
                false if in_window => Admission::Challenge(DropReason::TcpUnacceptable),
                false => Admission::Drop(DropReason::TcpUnacceptable),
            };
        }
        if head.syn {
            let again = state == State::SynReceived && head.ack.is_none() && head.seq.plus(1) == rcv_nxt;
            return if again { Admission::Repeat } else { Admission::Challenge(DropReason::TcpUnacceptable) };
        }
        let Some(ack) = head.ack else { return Admission::Drop(DropReason::TcpUnacceptable) };
        if state == State::SynReceived {
            return Admission::Take(self.passage(head, Some(ack), false));
        }
        if self.nxt.is_before(ack) || ack.is_before(una.minus(self.widest)) {
            return Admission::Challenge(DropReason::TcpUnacceptable);
        }
        let fits = |accepts: bool| accepts && head.end().since(self.acked) >= 0 && head.seq.since(edge) <= 0;
        let bare_first = fits(!smoltcp_accepts(head, rcv_nxt, self.ring.edge));
        Admission::Take(self.passage(head, Some(ack.later(una)), bare_first))
    }

    /// Takes note of what an admitted segment says, before the socket answers it.
    pub(super) fn hear(&mut self, head: &Head, now: Instant) {
        if let (Some(clock), Some(timestamps)) = (&mut self.clock, head.timestamps)
            && head.seq.since(self.acked) <= 0
            && clock.recent.is_none_or(|recent| timestamps.value.wrapping_sub(recent).cast_signed() >= 0)
        {
            clock.hear(timestamps.value, now);
        }
        if self.sets_window(head)
            && let Some(ack) = head.ack
        {
            self.peer_window = head.window;
            self.set_by = (head.seq, ack);
            self.widest = self.widest.max(self.scaled(head.window));
        }
    }

    /// Writes the socket's numbers into a segment for it.
    pub(super) fn deliver(&self, datagram: &mut [u8], head: &Head, passage: &Passage) {
        if let Some(ack) = passage.ack {
            segment::set_ack(datagram, self.inward(ack));
        }
        segment::set_window(datagram, passage.window);
        segment::shift_sack(datagram, head, self.offset.unwrap_or(0));
        if head.syn
            && let Some(mss) = head.offers.mss
        {
            // smoltcp's device takes datagrams of any size: ours is the smaller of the two all the same.
            segment::set_mss(datagram, head, mss.min(self.opening.mss));
        }
    }

    /// The acknowledgement of a segment by itself, at RCV.NXT, where smoltcp looks at it. In the socket's numbers.
    pub(super) fn bare(&self, ends: &Ends, passage: &Passage, rcv_nxt: Seq) -> Option<Vec<u8>> {
        let ack = passage.ack.map(|ack| number(self.inward(ack)));
        let repr = TcpRepr { seq_number: number(rcv_nxt), ack_number: ack, window_len: passage.window, ..EMPTY };
        segment::build(ends.remote, ends.local, &repr)
    }

    /// A segment for a connection that is past SYN-SENT, as it stands: SND.NXT, RCV.NXT, window. `None` if too many have been
    /// sent lately.
    pub(super) fn challenge(&mut self, ends: &Ends, rcv_nxt: Seq, now: Instant) -> Option<Vec<u8>> {
        if now.saturating_since(self.challenges.since) >= CHALLENGE_PERIOD {
            self.challenges = Challenges { since: now, sent: 0 };
        }
        if self.challenges.sent >= MOST_CHALLENGES {
            return None;
        }
        self.challenges.sent = self.challenges.sent.saturating_add(1);
        self.acknowledgement(ends, rcv_nxt, now)
    }

    /// SND.NXT, RCV.NXT, window, and nothing else.
    pub(super) fn acknowledgement(&self, ends: &Ends, rcv_nxt: Seq, now: Instant) -> Option<Vec<u8>> {
        let repr = TcpRepr {
            seq_number: number(self.nxt),
            ack_number: Some(number(rcv_nxt)),
            window_len: self.window,
            timestamp: self.timestamps(true, now).map(|stamps| TcpTimestampRepr::new(stamps.value, stamps.echo)),
            ..EMPTY
        };
        segment::build(ends.local, ends.remote, &repr)
    }

    /// Data up to `end` has been sent again.
    pub(super) fn note_repeat(&mut self, end: Seq) {
        let (until, sent) = self.recovery.unwrap_or((self.nxt, end));
        self.recovery = Some((until, sent.later(end)));
    }

    /// Whether an acknowledgement up to `base` uncovers another hole that nothing has been sent into since.
    pub(super) fn uncovers(&mut self, base: Seq) -> bool {
        let Some((until, sent)) = self.recovery else { return false };
        if !base.is_before(until) {
            self.recovery = None;
            return false;
        }
        !base.is_before(sent)
    }

    /// Bytes of data that fit a segment to the peer.
    pub(super) fn segment_room(&self) -> u32 {
        // RFC 9293, section 3.7.1: 536 where the peer has not said.
        let most = self.offers.mss.filter(|mss| *mss > 0).unwrap_or(536).max(LEAST_MSS).min(self.opening.mss);
        u32::from(most).saturating_sub(if self.clock.is_some() { 12 } else { 0 }).max(1)
    }

    /// Data from `seq` on that has been sent before, with the FIN behind it.
    pub(super) fn repeat(
        &self,
        ends: &Ends,
        seq: Seq,
        payload: &[u8],
        fin: bool,
        rcv_nxt: Seq,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let repr = TcpRepr {
            control: if fin { TcpControl::Fin } else { TcpControl::Psh },
            seq_number: number(seq),
            ack_number: Some(number(rcv_nxt)),
            window_len: self.window,
            timestamp: self.timestamps(true, now).map(|stamps| TcpTimestampRepr::new(stamps.value, stamps.echo)),
            payload,
            ..EMPTY
        };
        segment::build(ends.local, ends.remote, &repr)
    }

    /// Our SYN-ACK once more, for a peer whose SYN has come again.
    pub(super) fn syn_ack(&self, ends: &Ends, rcv_nxt: Seq, now: Instant) -> Option<Vec<u8>> {
        let Opening { mss, window, shift } = self.opening;
        let repr = TcpRepr {
            control: TcpControl::Syn,
            seq_number: number(self.iss),
            ack_number: Some(number(rcv_nxt)),
            window_len: window,
            window_scale: self.offers.scale.map(|_| shift),
            max_seg_size: Some(mss),
            sack_permitted: self.offers.sack,
            timestamp: self.timestamps(true, now).map(|stamps| TcpTimestampRepr::new(stamps.value, stamps.echo)),
            ..EMPTY
        };
        segment::build(ends.local, ends.remote, &repr)
    }

    /// The timestamp a segment sent now would carry; 0 where none are in use.
    pub(super) fn timestamp(&self, now: Instant) -> u32 {
        self.clock.map_or(0, |clock| clock.at(now))
    }

    /// Whether a window of a segment is to be scaled to this.
    pub(super) fn scaled(&self, window: u16) -> u32 {
        u32::from(window) << self.offers.scale.unwrap_or(0)
    }

    /// Whether a SYN for a connection in TIME-WAIT is of a new one (RFC 9293, section 3.6.1; RFC 6191).
    pub(super) fn is_successor(&self, syn: &Head, rcv_nxt: Seq) -> bool {
        let newer = match (self.clock.and_then(|clock| clock.recent), syn.timestamps) {
            (Some(recent), Some(timestamps)) => timestamps.value.wrapping_sub(recent).cast_signed() > 0,
            _ => false,
        };
        newer || rcv_nxt.is_before(syn.seq)
    }

    /// The right edge of the window the peer was told of.
    fn edge(&self) -> Seq {
        self.acked.plus(u32::from(self.window) << self.shift)
    }

    fn is_old(&self, head: &Head, now: Instant) -> bool {
        let Some(Clock { recent: Some(recent), recent_until, .. }) = self.clock else { return false };
        let older = |stamps: Timestamps| stamps.value.wrapping_sub(recent).cast_signed() < 0;
        !head.rst && now < recent_until && head.timestamps.is_some_and(older)
    }

    fn passage(&self, head: &Head, ack: Option<Seq>, bare_first: bool) -> Passage {
        let window = if self.sets_window(head) { head.window } else { self.peer_window };
        Passage { ack, window, bare_first }
    }

    fn sets_window(&self, head: &Head) -> bool {
        let (seq, ack) = self.set_by;
        seq.is_before(head.seq) || seq == head.seq && head.ack.is_some_and(|now| now.since(ack) >= 0)
    }

    fn timestamps(&self, acknowledges: bool, now: Instant) -> Option<Timestamps> {
        let clock = self.clock?;
        let echo = if acknowledges { clock.recent.unwrap_or(0) } else { 0 };
        Some(Timestamps { value: clock.at(now), echo })
    }
}

impl Clock {
    pub(super) fn at(&self, now: Instant) -> u32 {
        let millis = now.as_nanos().checked_div(1_000_000).unwrap_or(0);
        self.offset.wrapping_add(u32::try_from(millis & u64::from(u32::MAX)).unwrap_or(0))
    }

    fn hear(&mut self, value: u32, now: Instant) {
        self.recent = Some(value);
        self.recent_until = now.saturating_add(RECENT_FOR);
    }
}

impl Passage {
    /// As the segment stands: before the peer's SYN there is nothing to judge by.
    pub(super) const fn plain(head: &Head) -> Self {
        Self { ack: head.ack, window: head.window, bare_first: false }
    }
}

/// Whether smoltcp finds a segment acceptable (its reading of RFC 9293, section 3.10.7.4): it looks at no acknowledgement of
/// any other.
fn smoltcp_accepts(head: &Head, rcv_nxt: Seq, edge: Seq) -> bool {
    let window = edge.since(rcv_nxt).max(0);
    let start = head.seq.since(rcv_nxt);
    let end = head.seq.plus(head.data).since(rcv_nxt);
    match (head.data == 0, window == 0) {
        (true, _) if end == -1 => false,
        (true, true) => start == 0,
        (true, false) => (0..window).contains(&start),
        (false, true) => false,
        (false, false) => (0..window).contains(&start) || end > 0 && end <= window,
    }
}

pub(super) fn number(seq: Seq) -> TcpSeqNumber {
    TcpSeqNumber(seq.0.cast_signed())
}

/// A segment that says nothing.
pub(super) const EMPTY: TcpRepr<'static> = TcpRepr {
    src_port: 0,
    dst_port: 0,
    control: TcpControl::None,
    seq_number: TcpSeqNumber(0),
    ack_number: None,
    window_len: 0,
    window_scale: None,
    max_seg_size: None,
    sack_permitted: false,
    sack_ranges: [None, None, None],
    timestamp: None,
    payload: &[],
};
/// RFC 7323, section 5.5.
pub(super) const RECENT_FOR: Duration = Duration::from_secs(24 * 24 * 3600);
/// As Linux has it (`tcp_min_snd_mss`), and smoltcp.
const LEAST_MSS: u16 = 48;
const MOST_CHALLENGES: u8 = 10;
const CHALLENGE_PERIOD: Duration = Duration::from_secs(5);
