//! SYN cookies (RFC 4987, section 3.6): handshakes of which nothing is kept.
//!
//! A listener whose half-open places are taken answers a SYN with an initial number that only this host can have made for
//! these ends, and forgets it. The acknowledgement that comes back with that number is proof of the handshake: then the SYN
//! and the SYN-ACK are made again and shown to connection tracking and to a socket, which both go on as if they had seen
//! them. What has no room in 24 bits of proof and three of segment size goes along in the timestamp, as in Linux; a peer
//! without timestamps gets a connection without window scaling and selective acknowledgement.

use core::time::Duration;
use std::collections::VecDeque;

use hibernet_conntrack::WireChoices;
use hibernet_snapshot::Instant;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpListenEndpoint, TcpControl, TcpRepr, TcpTimestampRepr};

use super::connection::Connection;
use super::segment::{self, Ends, Head, Offers};
use super::seq::Seq;
use super::shim::{Clock, EMPTY, Shim, number};
use super::{CLOCK, Connections, TcpListener, low, subject};
use crate::drop_reason::DropReason;
use crate::local::Local;

/// How many cookies are out there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Cookies {
    /// End of the present period.
    pub(super) until: Instant,
    /// Sent in the present period and in the one before.
    pub(super) sent: [u32; 2],
    /// Come back in these.
    pub(super) finished: [u32; 2],
}

/// The two segments of a handshake that was answered with a cookie, made again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Handshake {
    pub(crate) syn: Vec<u8>,
    pub(crate) syn_ack: Vec<u8>,
}

/// What a cookie stands for.
struct Proven {
    offers: Offers,
    /// The cookie, which is our initial number.
    iss: Seq,
    /// The timestamps of SYN and SYN-ACK, where there are any.
    timestamps: Option<(u32, u32)>,
}

impl Cookies {
    /// Cookies that may still come back.
    pub(super) fn in_flight(&self, now: Instant) -> u32 {
        let mut present = *self;
        present.turn(now);
        let sum = |counts: [u32; 2]| counts.into_iter().fold(0, u32::saturating_add);
        sum(present.sent).saturating_sub(sum(present.finished))
    }

    /// Whether a cookie may come back.
    pub(super) fn is_recent(&self, now: Instant) -> bool {
        let mut present = *self;
        present.turn(now);
        present.sent != [0, 0]
    }

    pub(super) fn turn(&mut self, now: Instant) {
        if now < self.until {
            return;
        }
        let [sent, _] = self.sent;
        let [finished, _] = self.finished;
        let is_next = now.saturating_since(self.until) < PERIOD;
        (self.sent, self.finished) = if is_next { ([0, sent], [0, finished]) } else { ([0, 0], [0, 0]) };
        self.until = if is_next { self.until } else { now }.saturating_add(PERIOD);
    }

    fn count(counts: &mut [u32; 2]) {
        let [present, _] = counts;
        *present = present.saturating_add(1);
    }
}

impl Connections {
    /// Whether a packet may have to do with cookies: most of the time none has.
    pub(super) fn deals_in_cookies(&self, now: Instant) -> bool {
        self.cookies.is_recent(now) || self.listeners.values().any(super::Listener::wants_cookie)
    }

    /// Whether a SYN between these ends will be answered with a cookie.
    pub(super) fn wants_cookie(&self, ends: &Ends) -> bool {
        let listener = self.listener(ends.local).and_then(|id| self.listeners.get(&id));
        listener.is_some_and(super::Listener::wants_cookie) && self.find(ends).is_none()
    }

    /// The SYN-ACK with a cookie for a SYN; `None` if the listener has a place for it.
    pub(super) fn cookie_for(&mut self, ends: &Ends, syn: &[u8], now: Instant) -> Option<Vec<u8>> {
        if !self.wants_cookie(ends) {
            return None;
        }
        let head = Head::read(syn).filter(|head| head.syn && head.ack.is_none() && !head.rst && !head.fin)?;
        let offers = Offers { mss: MSS.get(mss_index(head.offers.mss)).copied(), ..head.offers };
        let iss = cookie(&self.keys, ends, head.seq, period(now), mss_index(head.offers.mss));
        let clock = Clock { offset: self.clock_offset(ends), recent: None, recent_until: now };
        let timestamps = head.timestamps.map(|stamps| (stamps.value, stamped(clock.at(now), &offers)));
        let proven = Proven { offers, iss, timestamps };
        let syn_ack = self.syn_ack(ends, head.seq, &proven)?;
        self.cookies.turn(now);
        Cookies::count(&mut self.cookies.sent);
        Some(syn_ack)
    }

    /// The handshake an acknowledgement ends, if it carries a cookie of ours.
    pub(super) fn handshake(&self, ends: &Ends, datagram: &[u8], now: Instant) -> Option<Handshake> {
        if !self.cookies.is_recent(now) || self.find(ends).is_some() {
            return None;
        }
        let listener = self.listener(ends.local)?;
        self.listeners.get(&listener).filter(|listener| listener.options.cookies)?;
        let head = Head::read(datagram)?;
        let proven = self.prove(ends, &head, now)?;
        let syn_ack = self.syn_ack(ends, head.seq.minus(1), &proven)?;
        Some(Handshake { syn: syn(ends, &head, &proven)?, syn_ack })
    }

    /// Opens the connection whose handshake an acknowledgement ends. False if it carries no cookie of ours.
    pub(super) fn finish_cookie(
        &mut self,
        id: TcpListener,
        ends: Ends,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<bool, DropReason> {
        let Some(Handshake { mut syn, .. }) = self.handshake(&ends, datagram, now) else { return Ok(false) };
        let (Some(opening), Some(head)) = (Head::read(&syn), Head::read(datagram)) else { return Ok(false) };
        let Some(Proven { iss, .. }) = self.prove(&ends, &head, now) else { return Ok(false) };
        let room = self.listeners.get(&id).is_some_and(|listener| self.has_room(&listener.options.stream));
        let Some(listener) = self.listeners.get_mut(&id).filter(|listener| room && !listener.is_full()) else {
            return Err(DropReason::LocalBacklogFull);
        };
        listener.half_open = listener.half_open.saturating_add(1);
        let (owner, options) = (listener.owner, listener.options.stream);
        let mss = self.wire.mss(ends.local.ip());
        let shim = Shim::new(iss, self.clock_offset(&ends), options.opening(mss));
        let mut connection = Connection::new(self.next_id(), ends, owner, options, mss, shim);
        connection.listener = Some(id);
        let endpoint = IpListenEndpoint { addr: Some(ends.local.ip().into()), port: ends.local.port() };
        let mut unsent = VecDeque::new();
        let Self { wire, out, scratch, .. } = self;
        let opened = connection.socket().listen(endpoint).is_ok()
            && connection.feed(&opening, &mut syn, (wire, scratch), &mut unsent, now).is_ok()
            && connection.state() == State::SynReceived;
        if opened {
            // The SYN-ACK that has been sent already, as a cookie.
            connection.flush(wire, &mut unsent, now);
        }
        let finished = connection.feed(&head, datagram, (wire, scratch), out, now);
        let slot = self.insert(connection);
        self.serve(slot, now);
        finished?;
        self.cookies.turn(now);
        Cookies::count(&mut self.cookies.finished);
        Ok(true)
    }

    fn clock_offset(&mut self, ends: &Ends) -> u32 {
        low(self.keys.choose_for(&subject(ends, CLOCK)))
    }

    fn prove(&self, ends: &Ends, head: &Head, now: Instant) -> Option<Proven> {
        let iss = head.ack.filter(|_| !head.syn && !head.rst)?.minus(1);
        let irs = head.seq.minus(1);
        let index = usize::try_from(iss.0 >> PROOF_BITS & 7).ok()?;
        let now = period(now);
        let mut periods = [now, now.wrapping_sub(1)].into_iter();
        periods.find(|period| cookie(&self.keys, ends, irs, *period, index) == iss)?;
        let mss = MSS.get(index).copied();
        let Some(stamps) = head.timestamps else {
            return Some(Proven { offers: Offers { mss, scale: None, sack: false }, iss, timestamps: None });
        };
        let scale = u8::try_from(stamps.echo & NO_SCALE).ok().filter(|scale| *scale <= 14);
        let offers = Offers { mss, scale, sack: stamps.echo & SACK != 0 };
        Some(Proven { offers, iss, timestamps: Some((stamps.value, stamps.echo)) })
    }

    fn syn_ack(&self, ends: &Ends, irs: Seq, proven: &Proven) -> Option<Vec<u8>> {
        let Proven { offers, iss, timestamps } = proven;
        let listener = self.listener(ends.local).and_then(|id| self.listeners.get(&id))?;
        let options = listener.options.stream;
        let told = offers.with(*timestamps);
        let opening = options.opening(self.wire.mss(ends.local.ip()));
        let repr = TcpRepr {
            control: TcpControl::Syn,
            seq_number: number(*iss),
            ack_number: Some(number(irs.plus(1))),
            window_len: opening.window,
            max_seg_size: Some(opening.mss),
            window_scale: told.scale.map(|_| opening.shift),
            sack_permitted: told.sack,
            timestamp: timestamps.map(|(theirs, ours)| TcpTimestampRepr::new(ours, theirs)),
            ..EMPTY
        };
        segment::build(ends.local, ends.remote, &repr)
    }
}

impl Offers {
    /// What can be agreed on: without timestamps there is nothing to remember the rest in.
    fn with(self, timestamps: Option<(u32, u32)>) -> Self {
        let Self { mss, scale, sack } = self;
        let remembers = timestamps.is_some();
        Self { mss, scale: scale.filter(|_| remembers), sack: sack && remembers }
    }
}

impl Local {
    /// Whether a packet may have to do with cookies.
    pub(crate) fn deals_in_cookies(&self, now: Instant) -> bool {
        self.tcp.deals_in_cookies(now)
    }

    /// Whether a SYN between these ends will be answered with a cookie, and leave nothing behind.
    pub(crate) fn wants_cookie(&self, ends: &Ends) -> bool {
        self.tcp.wants_cookie(ends)
    }

    /// The SYN-ACK with a cookie for a SYN; `None` if the listener has a place for it.
    pub(crate) fn cookie_for(&mut self, ends: &Ends, syn: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.tcp.cookie_for(ends, syn, now)
    }

    /// The handshake an acknowledgement ends, if it carries a cookie of ours.
    pub(crate) fn handshake(&self, ends: &Ends, datagram: &[u8], now: Instant) -> Option<Handshake> {
        self.tcp.handshake(ends, datagram, now)
    }
}

/// The SYN that led to a cookie, as far as it can be known.
fn syn(ends: &Ends, ack: &Head, proven: &Proven) -> Option<Vec<u8>> {
    let Proven { offers, timestamps, .. } = proven;
    let repr = TcpRepr {
        control: TcpControl::Syn,
        seq_number: number(ack.seq.minus(1)),
        window_len: ack.window,
        max_seg_size: offers.mss,
        window_scale: offers.scale,
        sack_permitted: offers.sack,
        timestamp: timestamps.map(|(theirs, _)| TcpTimestampRepr::new(theirs, 0)),
        ..EMPTY
    };
    segment::build(ends.remote, ends.local, &repr)
}

/// Five bits of the time, three of the segment size, twenty-four of proof.
fn cookie(keys: &WireChoices, ends: &Ends, irs: Seq, period: u64, index: usize) -> Seq {
    let index = index as u64 & 7;
    let asked = u64::from(irs.0) << 32 | period << 11 & 0xffff_f800 | index << 8 | COOKIE;
    let proof = low(keys.fixed_for(&subject(ends, asked))) & PROOF;
    Seq((low(period) & 31) << 27 | low(index) << PROOF_BITS | proof)
}

/// The timestamp with what the peer offered in its lowest bits, not later than it is.
fn stamped(at: u32, offers: &Offers) -> u32 {
    let bits = offers.scale.map_or(NO_SCALE, u32::from) | if offers.sack { SACK } else { 0 };
    let stamp = at & !STAMP | bits;
    if stamp > at { stamp.wrapping_sub(STAMP.wrapping_add(1)) } else { stamp }
}

/// The largest segment size of the table that the peer takes.
fn mss_index(offered: Option<u16>) -> usize {
    // RFC 9293, section 3.7.1: 536 where none is offered.
    let offered = offered.unwrap_or(536);
    MSS.iter().rposition(|mss| *mss <= offered).unwrap_or(0)
}

const fn period(now: Instant) -> u64 {
    now.as_nanos() / (PERIOD.as_nanos() as u64)
}

/// A cookie is good for one to two of these.
pub(super) const PERIOD: Duration = Duration::from_secs(64);
/// Segment sizes a cookie can stand for.
const MSS: [u16; 8] = [216, 536, 1024, 1220, 1340, 1440, 1460, 8940];
const PROOF_BITS: u32 = 24;
const PROOF: u32 = 0x00ff_ffff;
/// Bits of a timestamp that carry offers: four of window scale, one of selective acknowledgement.
const STAMP: u32 = 0x1f;
const NO_SCALE: u32 = 0x0f;
const SACK: u32 = 0x10;
/// Tells a cookie from what else is asked of the key.
const COOKIE: u64 = 4;
