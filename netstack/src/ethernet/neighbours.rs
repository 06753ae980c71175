//! The neighbour table: which hardware address the next hop of a packet has.
//!
//! One machine for ARP and neighbour discovery, with the states of RFC 4861, section 7.3.2, and the kernel's constants. The
//! table sends nothing: it says what is to be done ([`Deed`]).

use core::fmt;
use core::net::IpAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hibernet_conntrack::{CanaryScan, WireChoices};
use hibernet_snapshot::{Entropy, Instant, Redraw};

use super::mac::MacAddr;
use crate::drop_reason::DropReason;
use crate::link::LinkId;
use crate::packet::Packet;

/// What a neighbour is believed to be (RFC 4861, section 7.3.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum NeighbourState {
    /// It was asked for its hardware address and has not answered; packets wait.
    Incomplete,
    /// It was heard of lately: the address is right.
    Reachable,
    /// The address was right, or somebody said so; it is used, and checked once it is.
    Stale,
    /// It is in use again; a check follows unless something confirms it.
    Delay,
    /// It is being checked; packets go to the address that is known.
    Probe,
}

impl NeighbourState {
    /// The name, as `ip neigh` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Incomplete => "INCOMPLETE",
            Self::Reachable => "REACHABLE",
            Self::Stale => "STALE",
            Self::Delay => "DELAY",
            Self::Probe => "PROBE",
        }
    }
}

impl fmt::Display for NeighbourState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The neighbours of all Ethernet links.
#[derive(Debug)]
pub(crate) struct Neighbours {
    pub(super) tables: BTreeMap<LinkId, Table>,
    /// When each neighbour that waits for something is looked at next.
    pub(super) timers: BTreeSet<(Instant, LinkId, IpAddr)>,
    /// How long each confirmation counts: others see it in when they are checked.
    pub(super) times: WireChoices,
}

/// The neighbours of one link.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: BTreeMap<IpAddr, Neighbour>,
    /// Neighbours of IPv4 and of IPv6.
    pub(super) counts: [usize; 2],
    /// Bytes of packets that wait.
    pub(super) waiting: usize,
}

#[derive(Debug)]
pub(super) struct Neighbour {
    pub(super) state: State,
    /// [`KEPT`] after it was last used or heard of: the order in which neighbours make room for others.
    pub(super) kept_until: Instant,
    /// Whether a packet was ever sent to it: those that were only heard of make room first.
    pub(super) used: bool,
    /// Until when an ARP packet does not replace the address.
    pub(super) locked_until: Instant,
}

#[derive(Debug)]
pub(super) enum State {
    Incomplete { probes: u8, due: Instant, waiting: VecDeque<Packet> },
    Known { mac: MacAddr, confidence: Confidence },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Confidence {
    Reachable { until: Instant },
    Stale,
    Delay { until: Instant },
    Probe { probes: u8, due: Instant },
}

/// What is to be done for the table.
#[derive(Debug)]
pub(crate) enum Deed {
    /// Ask for the target's hardware address: everybody, or the one who has it.
    Solicit {
        link: LinkId,
        target: IpAddr,
        known: Option<MacAddr>,
        /// Who would talk to it: the source of the first packet that waits.
        source: Option<IpAddr>,
    },
    /// The packet can go.
    Send { link: LinkId, mac: MacAddr, packet: Packet },
    /// The neighbour does not answer.
    GiveUp(Packet),
    /// There is no room for the packet to wait.
    Drop(DropReason, Packet),
}

/// Something that was heard of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct News {
    /// Its hardware address, if it was told.
    pub(crate) mac: Option<MacAddr>,
    /// Whether it answers a question, so that both ways are known to work.
    pub(crate) confirms: bool,
    /// What another address than the known one means.
    pub(crate) overrides: Overrides,
    /// Whether a neighbour nobody knows is worth a place.
    pub(crate) creates: bool,
}

/// Whether another hardware address than the known one takes its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Overrides {
    /// It does.
    Always,
    /// It does, unless the known one was learnt a moment ago: of two that answer the first wins.
    UnlessLocked,
    /// It does not, but puts the known one in doubt (RFC 4861, section 7.2.5).
    Never,
}

impl Neighbours {
    /// No neighbours.
    pub(crate) fn new(entropy: &mut Entropy) -> Self {
        Self { tables: BTreeMap::new(), timers: BTreeSet::new(), times: WireChoices::redraw(entropy) }
    }

    /// The hardware address of the next hop `hop`, if it is known. It counts as used from now on, unless what is sent
    /// is only `about` neighbours: who asks does not become worth more than who is talked to.
    pub(crate) fn known(&mut self, link: LinkId, hop: IpAddr, about: bool, now: Instant) -> Option<MacAddr> {
        let neighbour = self.tables.get_mut(&link)?.entries.get_mut(&hop)?;
        if !about {
            neighbour.kept_until = now.saturating_add(KEPT);
            neighbour.used = true;
        }
        let State::Known { mac, confidence } = &neighbour.state else { return None };
        let mac = *mac;
        let in_doubt = match *confidence {
            Confidence::Stale => true,
            Confidence::Reachable { until } => until <= now,
            Confidence::Delay { .. } | Confidence::Probe { .. } => false,
        };
        if in_doubt {
            self.set_confidence(link, hop, Confidence::Delay { until: now.saturating_add(DELAY) });
        }
        Some(mac)
    }

    /// Lets a packet wait until the hardware address of `hop` is known; the first asks for it.
    pub(crate) fn wait_for(&mut self, link: LinkId, hop: IpAddr, packet: Packet, now: Instant) -> Vec<Deed> {
        let mut deeds = Vec::new();
        if self.waiting_mut(link, hop).is_some() {
            self.queue(link, hop, packet, now, &mut deeds);
            return deeds;
        }
        self.make_room(link, hop, now, &mut deeds);
        self.make_room_for_bytes(link, hop, packet.len(), now, &mut deeds);
        let (source, len) = (Some(packet.src()), packet.len());
        let due = now.saturating_add(RETRANS);
        let state = State::Incomplete { probes: 1, due, waiting: VecDeque::from([packet]) };
        let kept_until = now.saturating_add(KEPT);
        self.insert(link, hop, Neighbour { state, kept_until, used: true, locked_until: Instant::ZERO });
        self.wait(link, len);
        deeds.push(Deed::Solicit { link, target: hop, known: None, source });
        deeds
    }

    /// Takes note of what was heard of a neighbour.
    pub(crate) fn heard(&mut self, link: LinkId, addr: IpAddr, news: News, now: Instant) -> Vec<Deed> {
        let News { mac: told, confirms, overrides, creates } = news;
        let mut deeds = Vec::new();
        let confidence = |choices: &mut WireChoices| match confirms {
            true => Confidence::Reachable { until: now.saturating_add(reachable_time(choices)) },
            false => Confidence::Stale,
        };
        let (kept_until, locked_until) = (now.saturating_add(KEPT), now.saturating_add(LOCKED));
        let Some(neighbour) = self.tables.get_mut(&link).and_then(|table| table.entries.get_mut(&addr)) else {
            if let Some(mac) = told.filter(|_| creates) {
                self.make_room(link, addr, now, &mut deeds);
                let state = State::Known { mac, confidence: confidence(&mut self.times) };
                self.insert(link, addr, Neighbour { state, kept_until, used: false, locked_until });
            }
            return deeds;
        };
        let (mac, confidence) = match (&neighbour.state, told) {
            (State::Incomplete { .. }, None) => return deeds,
            (State::Incomplete { .. }, Some(mac)) => (mac, confidence(&mut self.times)),
            (State::Known { mac: known, .. }, told) if told.is_none_or(|told| told == *known) => {
                neighbour.kept_until = kept_until;
                if !confirms {
                    return deeds;
                }
                (*known, confidence(&mut self.times))
            }
            (State::Known { mac: known, confidence: old }, Some(told)) => match overrides {
                Overrides::Always => (told, confidence(&mut self.times)),
                Overrides::UnlessLocked if neighbour.locked_until <= now => (told, confidence(&mut self.times)),
                Overrides::Never if matches!(old, Confidence::Reachable { .. }) => (*known, Confidence::Stale),
                Overrides::UnlessLocked | Overrides::Never => return deeds,
            },
            (State::Known { .. }, None) => return deeds,
        };
        neighbour.kept_until = kept_until;
        let changes = match &neighbour.state {
            State::Incomplete { .. } => true,
            State::Known { mac: known, confidence: old } => {
                *known != mac || core::mem::discriminant(old) != core::mem::discriminant(&confidence)
            }
        };
        if changes {
            neighbour.locked_until = locked_until;
        }
        let before = core::mem::replace(&mut neighbour.state, State::Known { mac, confidence });
        self.retime(link, addr, before.timer());
        if let State::Incomplete { waiting, .. } = before {
            for packet in waiting {
                self.wait_no_more(link, packet.len());
                deeds.push(Deed::Send { link, mac, packet });
            }
        }
        deeds
    }

    /// When [`Neighbours::due`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _, _)| *at)
    }

    /// Does what is due: doubts, checks, gives up.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Deed> {
        let mut deeds = Vec::new();
        while let Some((_, link, addr)) = self.timers.first().filter(|(at, _, _)| *at <= now).copied() {
            self.look_at(link, addr, now, &mut deeds);
        }
        deeds
    }

    /// Adds the key to what a canary scan looks for.
    pub(crate) fn watch(&self, scan: &mut CanaryScan) {
        self.times.watch("neighbour times", scan);
    }

    /// The confirmation times, for tests that record and replay them.
    pub(crate) const fn times_mut(&mut self) -> &mut WireChoices {
        &mut self.times
    }

    /// All neighbours in order of link and address: hardware address and state at `now`.
    pub(crate) fn list(&self, now: Instant) -> impl Iterator<Item = (LinkId, IpAddr, Option<MacAddr>, NeighbourState)> {
        self.tables.iter().flat_map(move |(link, table)| {
            table.entries.iter().map(move |(addr, neighbour)| (*link, *addr, neighbour.mac(), neighbour.state_at(now)))
        })
    }

    /// One neighbour whose timer has run out.
    fn look_at(&mut self, link: LinkId, addr: IpAddr, now: Instant, deeds: &mut Vec<Deed>) {
        let Some(neighbour) = self.tables.get_mut(&link).and_then(|table| table.entries.get_mut(&addr)) else {
            self.timers.retain(|(_, of, who)| (*of, *who) != (link, addr));
            return;
        };
        let before = neighbour.state.timer();
        let again = now.saturating_add(RETRANS);
        match &mut neighbour.state {
            State::Incomplete { probes, due, waiting } if *probes < PROBES => {
                *probes = probes.saturating_add(1);
                *due = again;
                let source = waiting.front().map(Packet::src);
                deeds.push(Deed::Solicit { link, target: addr, known: None, source });
            }
            State::Known { mac, confidence } => match confidence {
                Confidence::Reachable { .. } => *confidence = Confidence::Stale,
                Confidence::Delay { .. } => {
                    *confidence = Confidence::Probe { probes: 1, due: again };
                    deeds.push(Deed::Solicit { link, target: addr, known: Some(*mac), source: None });
                }
                Confidence::Probe { probes, due } if *probes < PROBES => {
                    *probes = probes.saturating_add(1);
                    *due = again;
                    deeds.push(Deed::Solicit { link, target: addr, known: Some(*mac), source: None });
                }
                Confidence::Probe { .. } | Confidence::Stale => {
                    self.remove(link, addr);
                    return;
                }
            },
            State::Incomplete { .. } => {
                deeds.extend(self.remove(link, addr).into_iter().map(Deed::GiveUp));
                return;
            }
        }
        self.retime(link, addr, before);
    }

    /// Puts a packet behind those that wait for `hop`. The oldest make room, as in the kernel.
    fn queue(&mut self, link: LinkId, hop: IpAddr, packet: Packet, now: Instant, deeds: &mut Vec<Deed>) {
        let len = packet.len();
        let mut freed = 0_usize;
        if let Some(waiting) = self.waiting_mut(link, hop) {
            let mut bytes = waiting.iter().map(Packet::len).fold(len, usize::saturating_add);
            while waiting.len() >= MAX_WAITING || bytes > MAX_WAITING_BYTES {
                let Some(oldest) = waiting.pop_front() else { break };
                bytes = bytes.saturating_sub(oldest.len());
                freed = freed.saturating_add(oldest.len());
                deeds.push(Deed::Drop(DropReason::NeighbourQueueFull, oldest));
            }
            waiting.push_back(packet);
        }
        self.wait_no_more(link, freed);
        self.make_room_for_bytes(link, hop, len, now, deeds);
        self.wait(link, len);
    }

    /// Makes room for another neighbour: at the limit for any, from a threshold on at the cost of one that nobody needs.
    fn make_room(&mut self, link: LinkId, newcomer: IpAddr, now: Instant, deeds: &mut Vec<Deed>) {
        let Some(table) = self.tables.get(&link) else { return };
        let count = table.counts.get(family(newcomer)).copied().unwrap_or(0);
        if count < FEW {
            return;
        }
        let Some(victim) = table.victim(|addr, _| family(*addr) == family(newcomer), now) else { return };
        let unneeded = table.entries.get(&victim).is_some_and(|neighbour| neighbour.is_unneeded(now));
        if count >= MAX_NEIGHBOURS || unneeded {
            let lost = self.remove(link, victim);
            deeds.extend(lost.into_iter().map(|packet| Deed::Drop(DropReason::NeighbourTableFull, packet)));
        }
    }

    /// Makes room for bytes that wait on a link, at the cost of others that are being asked for.
    fn make_room_for_bytes(&mut self, link: LinkId, hop: IpAddr, len: usize, now: Instant, deeds: &mut Vec<Deed>) {
        while let Some(table) = self.tables.get(&link)
            && table.waiting.saturating_add(len) > MAX_LINK_WAITING_BYTES
        {
            let asked_for = |addr: &IpAddr, neighbour: &Neighbour| *addr != hop && neighbour.mac().is_none();
            let Some(victim) = table.victim(asked_for, now) else { return };
            let lost = self.remove(link, victim);
            deeds.extend(lost.into_iter().map(|packet| Deed::Drop(DropReason::NeighbourQueueFull, packet)));
        }
    }

    pub(super) fn insert(&mut self, link: LinkId, addr: IpAddr, neighbour: Neighbour) {
        let timer = neighbour.state.timer();
        let table = self.tables.entry(link).or_default();
        if let Some(count) = table.counts.get_mut(family(addr)) {
            *count = count.saturating_add(1);
        }
        table.entries.insert(addr, neighbour);
        self.timers.extend(timer.map(|at| (at, link, addr)));
    }

    /// Forgets a neighbour; comes back with the packets that waited for it.
    fn remove(&mut self, link: LinkId, addr: IpAddr) -> VecDeque<Packet> {
        let Some(table) = self.tables.get_mut(&link) else { return VecDeque::new() };
        let Some(neighbour) = table.entries.remove(&addr) else { return VecDeque::new() };
        if let Some(count) = table.counts.get_mut(family(addr)) {
            *count = count.saturating_sub(1);
        }
        if let Some(at) = neighbour.state.timer() {
            self.timers.remove(&(at, link, addr));
        }
        self.wait_no_more(link, neighbour.waiting_bytes());
        match neighbour.state {
            State::Incomplete { waiting, .. } => waiting,
            State::Known { .. } => VecDeque::new(),
        }
    }

    fn set_confidence(&mut self, link: LinkId, addr: IpAddr, new: Confidence) {
        let Some(neighbour) = self.tables.get_mut(&link).and_then(|table| table.entries.get_mut(&addr)) else { return };
        let before = neighbour.state.timer();
        if let State::Known { confidence, .. } = &mut neighbour.state {
            *confidence = new;
        }
        self.retime(link, addr, before);
    }

    /// Files the timer of a neighbour whose state has changed; it was filed under `before`.
    fn retime(&mut self, link: LinkId, addr: IpAddr, before: Option<Instant>) {
        if let Some(at) = before {
            self.timers.remove(&(at, link, addr));
        }
        let neighbour = self.tables.get(&link).and_then(|table| table.entries.get(&addr));
        self.timers.extend(neighbour.and_then(|neighbour| neighbour.state.timer()).map(|at| (at, link, addr)));
    }

    fn waiting_mut(&mut self, link: LinkId, addr: IpAddr) -> Option<&mut VecDeque<Packet>> {
        match &mut self.tables.get_mut(&link)?.entries.get_mut(&addr)?.state {
            State::Incomplete { waiting, .. } => Some(waiting),
            State::Known { .. } => None,
        }
    }

    pub(super) fn wait(&mut self, link: LinkId, len: usize) {
        if let Some(table) = self.tables.get_mut(&link) {
            table.waiting = table.waiting.saturating_add(len);
        }
    }

    fn wait_no_more(&mut self, link: LinkId, len: usize) {
        if let Some(table) = self.tables.get_mut(&link) {
            table.waiting = table.waiting.saturating_sub(len);
        }
    }
}

impl Table {
    /// Who makes room first, of those that may: one no packet was ever sent to, or that is still being asked for; of these,
    /// and then of all others, the one that was not needed for the longest time.
    fn victim(&self, may: impl Fn(&IpAddr, &Neighbour) -> bool, now: Instant) -> Option<IpAddr> {
        let candidates = self.entries.iter().filter(|(addr, neighbour)| may(addr, neighbour));
        let first = candidates.min_by_key(|(addr, neighbour)| {
            let served = neighbour.used && neighbour.mac().is_some();
            (served, neighbour.kept_until.max(now), **addr)
        });
        first.map(|(addr, _)| *addr)
    }
}

impl Neighbour {
    pub(super) const fn mac(&self) -> Option<MacAddr> {
        match &self.state {
            State::Incomplete { .. } => None,
            State::Known { mac, .. } => Some(*mac),
        }
    }

    /// Bytes of the packets that wait for it.
    pub(super) fn waiting_bytes(&self) -> usize {
        match &self.state {
            State::Incomplete { waiting, .. } => waiting.iter().map(Packet::len).fold(0, usize::saturating_add),
            State::Known { .. } => 0,
        }
    }

    fn state_at(&self, now: Instant) -> NeighbourState {
        match &self.state {
            State::Incomplete { .. } => NeighbourState::Incomplete,
            State::Known { confidence, .. } => match confidence {
                Confidence::Reachable { until } if *until > now => NeighbourState::Reachable,
                Confidence::Reachable { .. } | Confidence::Stale => NeighbourState::Stale,
                Confidence::Delay { .. } => NeighbourState::Delay,
                Confidence::Probe { .. } => NeighbourState::Probe,
            },
        }
    }

    /// Whether nobody would miss it: nothing is known of it that is not in doubt, and it was not needed for a while.
    fn is_unneeded(&self, now: Instant) -> bool {
        let last_needed_long_ago = self.kept_until.saturating_since(now) <= KEPT.saturating_sub(UNNEEDED);
        last_needed_long_ago && self.state_at(now) == NeighbourState::Stale
    }
}

impl State {
    /// When it is to be looked at.
    pub(super) const fn timer(&self) -> Option<Instant> {
        match self {
            Self::Incomplete { due, .. } => Some(*due),
            Self::Known { confidence, .. } => match confidence {
                Confidence::Reachable { until } | Confidence::Delay { until } => Some(*until),
                Confidence::Probe { due, .. } => Some(*due),
                Confidence::Stale => None,
            },
        }
    }
}

/// How long a confirmation counts: half to one and a half times the base, drawn each time (RFC 4861, section 6.3.2), so that
/// hosts that started together do not check together.
fn reachable_time(times: &mut WireChoices) -> Duration {
    let spread = times.draw([0, 0]).checked_rem(BASE_REACHABLE_MS.saturating_add(1)).unwrap_or(0);
    Duration::from_millis((BASE_REACHABLE_MS / 2).saturating_add(spread))
}

const fn family(addr: IpAddr) -> usize {
    match addr {
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 1,
    }
}

/// REACHABLE_TIME (RFC 4861, section 10; `base_reachable_time_ms`).
const BASE_REACHABLE_MS: u64 = 30_000;
/// The longest that a confirmation counts.
pub(super) const LONGEST_REACHABLE: Duration = Duration::from_millis(BASE_REACHABLE_MS / 2 * 3);
/// RETRANS_TIMER (RFC 4861, section 10; `retrans_time_ms`).
pub(super) const RETRANS: Duration = Duration::from_secs(1);
/// MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT (RFC 4861, section 10; `mcast_solicit`, `ucast_solicit`).
pub(super) const PROBES: u8 = 3;
/// DELAY_FIRST_PROBE_TIME (RFC 4861, section 10; `delay_first_probe_time`).
pub(super) const DELAY: Duration = Duration::from_secs(5);
/// How long ARP cannot replace an address that was just learnt (`locktime`).
pub(super) const LOCKED: Duration = Duration::from_secs(1);
/// Most packets that wait for one neighbour (`unres_qlen`).
pub(super) const MAX_WAITING: usize = 101;
/// Most bytes that wait for one neighbour (`unres_qlen_bytes`).
pub(super) const MAX_WAITING_BYTES: usize = 212_992;
/// Most bytes that wait for all neighbours of a link. The kernel has no such bound.
pub(super) const MAX_LINK_WAITING_BYTES: usize = 1 << 20;
/// Most neighbours of a link in each IP version (`gc_thresh3`; the kernel counts over all links).
pub(super) const MAX_NEIGHBOURS: usize = 1024;
/// Neighbours that are never forgotten for want of use (`gc_thresh1`).
const FEW: usize = 128;
/// How long a neighbour has not been needed before it is forgotten, where there are many (`gc_stale_time`).
const UNNEEDED: Duration = Duration::from_secs(60);
/// How far back the order of use is known.
pub(super) const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests;
