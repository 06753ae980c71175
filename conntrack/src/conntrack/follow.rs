//! The station `track`: which flow a packet belongs to, and what it does to it.

use core::time::Duration;

use hibernet_snapshot::Instant;

use super::burst::Ahead;
use super::limits::is_half_open;
use super::{Conntrack, Origin, Refusal};
use crate::attachment::{Attached, Attachment, Binding};
use crate::event::EventKind;
use crate::headers::{Parsed, parse, tuple_of};
use crate::invalid::{IgnoreReason, InvalidReason};
use crate::record::{Counters, FlowRecord};
use crate::status::{CtState, Status};
use crate::table::{Place, Slot};
use crate::tracker::icmp::{IcmpClass, InnerTuple};
use crate::tracker::{self, Outcome, Packet};
use crate::tuple::{Direction, Tuple, Zone, proto};

/// Whether a new flow is meant to enter the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Needed,
    NotNeeded,
}

impl Conntrack {
    /// The station `track`: attaches a flow, new or known, or says why there is none. An error is a drop.
    ///
    /// `parsed` is what [`crate::parse`] made of `datagram`; `zone` what the raw chains have set. Call it once a packet, and
    /// only for packets to which nothing is attached yet.
    pub fn track(
        &mut self,
        datagram: &[u8],
        parsed: &Parsed,
        zone: Zone,
        origin: Origin,
        now: Instant,
    ) -> Result<Attachment, Refusal> {
        self.track_with(datagram, parsed, zone, origin, Room::Needed, &Ahead::default(), now)
    }

    /// As [`Conntrack::track`] at prerouting, for a packet whose flow is not meant to enter the table: neither the table's
    /// limit nor that of half-open flows stands in its way, and nothing is dropped early for it.
    pub fn track_without_room(
        &mut self,
        datagram: &[u8],
        parsed: &Parsed,
        zone: Zone,
        origin: Origin,
        now: Instant,
    ) -> Result<Attachment, Refusal> {
        self.track_with(datagram, parsed, zone, origin, Room::NotNeeded, &Ahead::default(), now)
    }

    /// As [`Conntrack::track`] at prerouting, for the acknowledgement that ends a handshake nobody kept: the flow begins as
    /// if its SYN and SYN-ACK, `opening`, had been tracked.
    pub fn track_handshake(
        &mut self,
        opening: [&[u8]; 2],
        datagram: &[u8],
        parsed: &Parsed,
        zone: Zone,
        origin: Origin,
        now: Instant,
    ) -> Result<Attachment, Refusal> {
        self.table.flows_mut().advance(now);
        let packet = Packet { datagram, parsed, verify_checksum: self.sysctls.checksum && origin == Origin::Link };
        let Subject::Flow(tuple) = subject(&packet) else {
            return self.track(datagram, parsed, zone, origin, now);
        };
        if let Some(attachment) = self.resolve(&packet, &tuple, zone, now)? {
            return Ok(attachment);
        }
        let [syn, syn_ack] = opening;
        let (Some(reply), Ok(syn_parsed), Ok(syn_ack_parsed)) = (tuple.inverted(), parse(syn), parse(syn_ack)) else {
            return Ok(self.invalid(not_opening(&tuple)));
        };
        self.make_room()?;
        let made = |datagram, parsed| Packet { datagram, parsed, verify_checksum: false };
        let mut attachment = self.open(&made(syn, &syn_parsed), &tuple, &reply, zone, now);
        let Attached::Unconfirmed(flow) = &mut attachment.0 else { return Ok(attachment) };
        if self.sysctls.acct {
            flow.counters = Counters::default();
            flow.counters.count(Direction::Original, parsed.end);
        }
        let answer = made(syn_ack, &syn_ack_parsed);
        for (packet, direction) in [(&answer, Direction::Reply), (&packet, Direction::Original)] {
            match tracker::update(&mut flow.protocol, packet, direction, flow.status, &self.sysctls, now) {
                Outcome::Accept { timeout, assure, .. } => {
                    flow.remaining = Duration::from_secs(u64::from(timeout));
                    flow.status |= Status::SEEN_REPLY;
                    flow.status.set(Status::ASSURED, assure);
                }
                Outcome::Invalid(reason) | Outcome::InvalidEnding { why: reason, .. } => {
                    return Ok(self.invalid(reason));
                }
                Outcome::Ignore { .. } | Outcome::Reopen | Outcome::Remove => {}
            }
        }
        Ok(attachment)
    }

    #[expect(clippy::too_many_arguments, reason = "those of the public functions, and what sets them apart")]
    pub(super) fn track_with(
        &mut self,
        datagram: &[u8],
        parsed: &Parsed,
        zone: Zone,
        origin: Origin,
        room: Room,
        ahead: &Ahead,
        now: Instant,
    ) -> Result<Attachment, Refusal> {
        self.table.flows_mut().advance(now);
        let packet = Packet { datagram, parsed, verify_checksum: self.sysctls.checksum && origin == Origin::Link };
        let tuple = match subject(&packet) {
            Subject::Flow(tuple) => tuple,
            Subject::Quoted(inner) => {
                let related = inner.tuple.inverted().map(|answer| self.relate(&answer, zone)).transpose()?.flatten();
                return Ok(related.unwrap_or_else(|| self.invalid(unrelated(&inner))));
            }
            Subject::Untracked => return Ok(Attachment::untracked()),
            Subject::Invalid(reason) => return Ok(self.invalid(reason)),
        };
        let place = ahead.place_of(&tuple, self).unwrap_or_else(|| self.table.place(&tuple));
        if let Some(attachment) = self.resolve_at(&place, &packet, zone, now)? {
            return Ok(attachment);
        }
        let Some(reply) = tuple.inverted() else { return Ok(self.invalid(not_opening(&tuple))) };
        if room == Room::Needed {
            self.check_half_open(&packet, &tuple)?;
            self.make_room()?;
        }
        Ok(self.open(&packet, &tuple, &reply, zone, now))
    }

    /// The packet's place in a flow of the table. `None`: there is none, or it was over and is gone.
    pub(crate) fn resolve(
        &mut self,
        packet: &Packet<'_>,
        tuple: &Tuple,
        zone: Zone,
        now: Instant,
    ) -> Result<Option<Attachment>, Refusal> {
        self.resolve_at(&self.table.place(tuple), packet, zone, now)
    }

    #[inline]
    fn resolve_at(
        &mut self,
        place: &Place,
        packet: &Packet<'_>,
        zone: Zone,
        now: Instant,
    ) -> Result<Option<Attachment>, Refusal> {
        let Some((slot, direction)) = self.table.find_at(place, zone) else { return Ok(None) };
        if self.table.flows().is_expired(slot) {
            self.destroy(slot);
            return Ok(None);
        }
        if self.is_severed(slot) {
            self.meet_severed(packet, slot, direction)?;
            self.destroy(slot);
            return Ok(None);
        }
        Ok(self.follow(packet, slot, direction, now))
    }

    /// A new flow, which its packet owns until `confirm`. The table's limit comes before: where it is full, even what would
    /// be INVALID is dropped.
    pub(crate) fn open(
        &mut self,
        packet: &Packet<'_>,
        tuple: &Tuple,
        reply: &Tuple,
        zone: Zone,
        now: Instant,
    ) -> Attachment {
        let opened = match tracker::open(packet, tuple, &self.sysctls, now) {
            Ok(opened) => opened,
            Err(reason) => return self.invalid(reason),
        };
        let mut status = Status::empty();
        status.set(Status::ZONE_ORIG_ONLY, zone.orig_only);
        let mut counters = Counters::default();
        if self.sysctls.acct {
            counters.count(Direction::Original, packet.parsed.end);
        }
        Attachment(Attached::Unconfirmed(Box::new(FlowRecord {
            orig: *tuple,
            reply: *reply,
            zone,
            status,
            remaining: Duration::from_secs(u64::from(opened.timeout)),
            protocol: opened.state,
            mark: 0,
            counters,
        })))
    }

    /// Lets the tracker see the packet. `None`: the flow was over and is gone, the packet may open another.
    fn follow(&mut self, packet: &Packet<'_>, slot: Slot, direction: Direction, now: Instant) -> Option<Attachment> {
        let clock = self.table.flows().clock();
        let core = self.table.flows().core(slot)?;
        let before = core.status();
        let mut protocol = core.protocol(clock, now);
        let was_half_open = is_half_open(&protocol);
        let outcome = tracker::update(&mut protocol, packet, direction, before, &self.sysctls, now);
        if let Some(core) = self.table.flows_mut().core_mut(slot) {
            core.set_protocol(&protocol, clock);
        }
        self.half_open.follow(self.table.flows(), slot, was_half_open, &protocol);
        let state = match direction {
            Direction::Original if !before.contains(Status::SEEN_REPLY) => CtState::New,
            Direction::Original | Direction::Reply => CtState::Established,
        };
        match outcome {
            Outcome::Accept { timeout, assure, changed } => {
                self.count(slot, direction, packet.parsed.end);
                self.table.flows_mut().set_timeout(slot, timeout);
                let news = self.note(slot, direction, assure);
                if news || changed {
                    self.report(EventKind::Update, slot);
                }
                Some(self.attach(slot, direction, state, None))
            }
            Outcome::Ignore { why, changed } => {
                let news = self.note(slot, direction, false);
                if news || changed {
                    self.report(EventKind::Update, slot);
                }
                Some(self.attach(slot, direction, state, why))
            }
            Outcome::Invalid(reason) => Some(self.invalid(reason)),
            Outcome::InvalidEnding { why, least, most } => {
                let left = self.table.flows().record(slot).map_or(Duration::ZERO, |flow| flow.remaining);
                if left >= Duration::from_secs(u64::from(least.max(most))) {
                    self.table.flows_mut().set_timeout(slot, most);
                }
                Some(self.invalid(why))
            }
            Outcome::Reopen => {
                self.destroy(slot);
                None
            }
            Outcome::Remove => {
                self.count(slot, direction, packet.parsed.end);
                let attachment = match self.table.flows().record(slot) {
                    Some(flow) => Attached::Detached { binding: Box::new(Binding::of(&flow)), direction, state },
                    None => Attached::Nothing,
                };
                self.destroy(slot);
                Some(Attachment(attachment))
            }
        }
    }

    /// An ICMP error belongs to the flow of the packet it quotes, and goes the other way: as an answer to that packet would.
    /// The quoted packet is as it arrived at who complains, behind NAT; so only the answer's tuple is in the table.
    pub(crate) fn relate(&self, answer: &Tuple, zone: Zone) -> Result<Option<Attachment>, Refusal> {
        let found = self.table.find(answer, zone).filter(|(slot, _)| !self.table.flows().is_expired(*slot));
        let Some((slot, direction)) = found else { return Ok(None) };
        match self.is_severed(slot) {
            // Nobody is told of an error.
            true => Err(Refusal::Severed),
            false => Ok(Some(self.attach(slot, direction, CtState::Related, None))),
        }
    }

    fn attach(&self, slot: Slot, direction: Direction, state: CtState, ignored: Option<IgnoreReason>) -> Attachment {
        match self.table.flows().handle(slot) {
            Some(handle) => Attachment(Attached::Flow { handle, direction, state, ignored }),
            None => Attachment::default(),
        }
    }

    pub(crate) fn invalid(&mut self, reason: InvalidReason) -> Attachment {
        self.totals.invalid = self.totals.invalid.saturating_add(1);
        Attachment(Attached::Invalid(reason))
    }

    /// Counts a packet, if the flow's first was counted: `nf_conntrack_acct` is for flows that begin.
    fn count(&mut self, slot: Slot, direction: Direction, length: usize) {
        let Some(core) = self.table.flows_mut().core_mut(slot) else { return };
        let mut counters = core.counters();
        if counters.are_kept() {
            counters.count(direction, length);
            core.set_counters(counters);
        }
    }

    /// Notes that a reply was seen, that the flow is assured. True if that is news.
    fn note(&mut self, slot: Slot, direction: Direction, assure: bool) -> bool {
        let flows = self.table.flows_mut();
        let Some(core) = flows.core_mut(slot) else { return false };
        let before = core.status();
        let mut after = before;
        after.set(Status::SEEN_REPLY, before.contains(Status::SEEN_REPLY) || direction == Direction::Reply);
        after.set(Status::ASSURED, before.contains(Status::ASSURED) || assure);
        core.set_status(after);
        if after.contains(Status::ASSURED) && !before.contains(Status::ASSURED) {
            flows.assure(slot);
        }
        after != before
    }
}

/// What a packet is about, as far as it says so itself.
pub(crate) enum Subject {
    /// The flow with this tuple.
    Flow(Tuple),
    /// The flow of the packet that this one, an ICMP error, quotes.
    Quoted(InnerTuple),
    /// Nothing that is tracked.
    Untracked,
    /// Nothing that could be told.
    Invalid(InvalidReason),
}

pub(crate) fn subject(packet: &Packet<'_>) -> Subject {
    if matches!(packet.parsed.proto, proto::ICMP | proto::ICMPV6) {
        match tracker::icmp::classify(packet) {
            Ok(IcmpClass::Query) => {}
            Ok(IcmpClass::Untracked) => return Subject::Untracked,
            Ok(IcmpClass::Error { inner }) => return Subject::Quoted(inner),
            Err(reason) => return Subject::Invalid(reason),
        }
    }
    match tuple_of(packet.parsed, packet.datagram) {
        Ok(tuple) => Subject::Flow(tuple),
        Err(reason) => Subject::Invalid(reason),
    }
}

/// Why a packet without a flow opens none, if nothing answers its tuple.
pub(crate) const fn not_opening(tuple: &Tuple) -> InvalidReason {
    InvalidReason::IcmpNotOpening { proto: tuple.proto, kind: tuple.icmp_type() }
}

/// Why an ICMP error is INVALID that quotes a packet of no flow.
pub(crate) const fn unrelated(inner: &InnerTuple) -> InvalidReason {
    InvalidReason::IcmpUnrelated { proto: inner.tuple.proto }
}
