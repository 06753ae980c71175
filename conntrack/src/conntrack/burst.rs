//! Packets that come together, in stages: what one waits for in memory is fetched while others are worked on.
//!
//! A look-up in a large table waits twice, for a line of the index and for an entry, some 140 ns each. Packets of a burst do
//! that together: first each tuple is hashed and its line asked for, then each line is read and the entries behind it are asked
//! for, and only then is one packet after the other followed, in the order they came. The first two stages change nothing, so
//! that a burst leads to what its packets would one by one.

use hibernet_snapshot::Instant;

use super::{Conntrack, Origin, Refusal};
use crate::attachment::{Attached, Attachment};
use crate::headers::{Parsed, tuple_of};
use crate::table::{Handle, Place};
use crate::tuple::{Direction, Tuple, Zone};

/// Most packets that go through the stages together. More in one call are several bursts.
pub const BURST: usize = 32;

/// A packet of a burst: the arguments of [`Conntrack::track`].
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// The datagram.
    pub datagram: &'a [u8],
    /// What [`crate::parse`] made of it.
    pub parsed: &'a Parsed,
    /// What the raw chains have set.
    pub zone: Zone,
    /// Where it comes from.
    pub origin: Origin,
}

/// What the first stages found out ahead of a packet: its tuple, and where that is filed under the present key.
///
/// Good for the packet it was made of. For another one, or after the table was filed under another key, it is of no use and
/// does no harm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead(Option<Place>);

impl Ahead {
    /// Where `tuple` is filed, if that was found out and still holds.
    #[inline]
    pub(super) fn place_of(&self, tuple: &Tuple, conntrack: &Conntrack) -> Option<Place> {
        self.0.filter(|place| place.is_of(tuple) && conntrack.table.is_current(place))
    }
}

impl Conntrack {
    /// The first stage for one packet: reads and hashes its tuple, asks for the line of the index it is filed in.
    pub fn look_ahead(&self, datagram: &[u8], parsed: &Parsed) -> Ahead {
        Ahead(tuple_of(parsed, datagram).ok().map(|tuple| self.ahead_of(&tuple)))
    }

    /// The second stage for one packet: reads that line and asks for the flows it leads to. Give the first stage a few other
    /// packets in between.
    pub fn fetch_ahead(&self, ahead: &Ahead) {
        if let Ahead(Some(place)) = ahead {
            self.table.fetch_flows(place, true);
        }
    }

    /// The last stage for one packet: [`Conntrack::track`] of what was looked ahead for.
    pub fn track_ahead(&mut self, packet: &Incoming<'_>, ahead: &Ahead, now: Instant) -> Result<Attachment, Refusal> {
        let Incoming { datagram, parsed, zone, origin } = *packet;
        self.track_with(datagram, parsed, zone, origin, super::follow::Room::Needed, ahead, now)
    }

    /// The station `track` for packets that have come together, one by one handed to `each` with its number in the burst: as
    /// [`Conntrack::track`] for each of them in order.
    pub fn track_burst(
        &mut self,
        packets: &[Incoming<'_>],
        now: Instant,
        mut each: impl FnMut(&mut Self, usize, Result<Attachment, Refusal>),
    ) {
        let mut number = 0_usize;
        for burst in packets.chunks(BURST) {
            let mut ahead = [Ahead::default(); BURST];
            for (packet, ahead) in burst.iter().zip(&mut ahead) {
                *ahead = self.look_ahead(packet.datagram, packet.parsed);
            }
            for (_, ahead) in burst.iter().zip(&ahead) {
                self.fetch_ahead(ahead);
            }
            for (packet, ahead) in burst.iter().zip(&ahead) {
                let tracked = self.track_ahead(packet, ahead, now);
                each(self, number, tracked);
                number = number.wrapping_add(1);
            }
        }
    }

    /// The station `confirm` for packets that have come together, each result handed to `each` with its number: as
    /// [`Conntrack::confirm`] for each of them in order.
    pub fn confirm_burst(
        &mut self,
        attachments: &mut [Attachment],
        now: Instant,
        mut each: impl FnMut(usize, Result<(), Refusal>),
    ) {
        let mut number = 0_usize;
        for burst in attachments.chunks_mut(BURST) {
            let mut places = [None; BURST];
            for ((attachment, place), ahead) in burst.iter().zip(&mut places).zip(0..) {
                if let Attached::Unconfirmed(flow) = &attachment.0 {
                    *place = Some(self.ahead_of(&flow.orig));
                    self.table.fetch_vacant(&flow.orig, ahead);
                }
            }
            for place in places.iter().flatten() {
                self.table.fetch_flows(place, false);
            }
            for (attachment, place) in burst.iter_mut().zip(places) {
                each(number, self.confirm_at(attachment, place, now));
                number = number.wrapping_add(1);
            }
        }
    }

    /// Finds the flows of tuples, in one zone, that are asked for together; each answer is handed to `each` with its number:
    /// as [`Conntrack::find`].
    pub fn find_burst(&self, tuples: &[Tuple], zone: Zone, mut each: impl FnMut(usize, Option<(Handle, Direction)>)) {
        let mut number = 0_usize;
        for burst in tuples.chunks(BURST) {
            let places = self.places_of(burst);
            for (_, place) in burst.iter().zip(places) {
                let found = place.and_then(|place| self.table.find_at(&place, zone));
                let flows = self.table.flows();
                let found = found.filter(|(slot, _)| !flows.is_expired(*slot));
                each(number, found.and_then(|(slot, direction)| Some((flows.handle(slot)?, direction))));
                number = number.wrapping_add(1);
            }
        }
    }

    /// Keeps the flow alive to which `tuple` belongs, for `timeout` seconds from now: its packets go by another way, which
    /// tells of them (`nf_ct_refresh`, as for flows that are offloaded). `None`: there is no such flow, or its time has come.
    pub fn refresh(&mut self, tuple: &Tuple, zone: Zone, timeout: u32, now: Instant) -> Option<(Handle, Direction)> {
        self.table.flows_mut().advance(now);
        self.refresh_at(&self.table.place(tuple), zone, timeout)
    }

    /// [`Conntrack::refresh`] for tuples that come together; each answer is handed to `each` with its number.
    pub fn refresh_burst(
        &mut self,
        tuples: &[Tuple],
        zone: Zone,
        timeout: u32,
        now: Instant,
        mut each: impl FnMut(usize, Option<(Handle, Direction)>),
    ) {
        self.table.flows_mut().advance(now);
        let mut number = 0_usize;
        for burst in tuples.chunks(BURST) {
            let places = self.places_of(burst);
            for (_, place) in burst.iter().zip(&places) {
                each(number, place.as_ref().and_then(|place| self.refresh_at(place, zone, timeout)));
                number = number.wrapping_add(1);
            }
        }
    }

    #[inline]
    fn refresh_at(&mut self, place: &Place, zone: Zone, timeout: u32) -> Option<(Handle, Direction)> {
        let (slot, direction) = self.table.find_at(place, zone)?;
        let flows = self.table.flows_mut();
        if flows.is_expired(slot) {
            return None;
        }
        flows.set_timeout(slot, timeout);
        Some((flows.handle(slot)?, direction))
    }

    /// Both stages of a look-up for at most [`BURST`] tuples.
    fn places_of(&self, burst: &[Tuple]) -> [Option<Place>; BURST] {
        let mut places = [None; BURST];
        for (tuple, place) in burst.iter().zip(&mut places) {
            *place = Some(self.ahead_of(tuple));
        }
        for place in places.iter().flatten() {
            self.table.fetch_flows(place, false);
        }
        places
    }

    fn ahead_of(&self, tuple: &Tuple) -> Place {
        let place = self.table.place(tuple);
        self.table.fetch_line(&place);
        place
    }
}

#[cfg(test)]
mod tests;
