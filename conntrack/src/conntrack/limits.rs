//! Whom a full table lets go, and how many connections one source may leave half open.

use core::net::IpAddr;
use std::collections::BTreeMap;

use hibernet_snapshot::{Invalid, Snapshot};
use serde::{Deserialize, Serialize};

use super::{Conntrack, ConntrackParts, Refusal};
use crate::protocol::{ProtocolState, TcpState};
use crate::record::FlowRecord;
use crate::table::{Flows, Slot};
use crate::tracker::Packet;
use crate::tuple::{Direction, Tuple, proto};
use crate::wire::WireChoices;

/// Whom a full table lets go for a new flow.
///
/// The default is not what Linux does. Linux looks at eight neighbouring hash buckets and takes what is not ASSURED there:
/// about `16 * flows / nf_conntrack_buckets` candidates a try. With a table much smaller than its buckets that finds nobody,
/// and a flood of SYNs then shuts honest clients out for two minutes; with a larger one it takes anybody, a client that
/// is just connecting as soon as a SYN of the flood that nobody will ever answer. The oldest unassured flow is the one with the
/// least left to hope for, and finding it costs no search.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Snapshot)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EarlyDrop {
    /// Nobody: the new flow's packet is dropped.
    Off,
    /// The oldest flow that is not ASSURED.
    #[default]
    Lru,
    /// One that is not ASSURED among about as many as Linux finds in eight of `nf_conntrack_buckets`. Which ones those are is
    /// drawn afresh each time, so it tells nothing of how the table is filed.
    Kernel,
}

/// TCP flows that are not ESTABLISHED yet, by their source. Counts nothing where there is no limit.
#[derive(Debug, Default)]
pub(crate) struct HalfOpen {
    limit: u32,
    by_source: BTreeMap<IpAddr, u32>,
}

impl HalfOpen {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, by_source: BTreeMap::new() }
    }

    /// Counts all flows of a table, as after a restore.
    pub(crate) fn of(limit: u32, flows: &Flows) -> Self {
        let mut half_open = Self::new(limit);
        if limit != 0 {
            for (_, slot) in flows.occupied() {
                half_open.enter(flows, slot);
            }
        }
        half_open
    }

    /// Counts a flow that has entered the table.
    pub(crate) fn enter(&mut self, flows: &Flows, slot: Slot) {
        if self.limit != 0
            && let Some(flow) = flows.record(slot)
        {
            self.change(flow.orig.src, false, is_half_open(&flow.protocol));
        }
    }

    /// Forgets a flow that leaves the table.
    pub(crate) fn leave(&mut self, flow: &FlowRecord) {
        if self.limit != 0 {
            self.change(flow.orig.src, is_half_open(&flow.protocol), false);
        }
    }

    /// Follows a flow from one state to another.
    pub(crate) fn follow(&mut self, flows: &Flows, slot: Slot, was_half_open: bool, state: &ProtocolState) {
        let is_half_open = is_half_open(state);
        if self.limit != 0
            && was_half_open != is_half_open
            && let Some(orig) = flows.tuple(slot, Direction::Original)
        {
            self.change(orig.src, was_half_open, is_half_open);
        }
    }

    /// How many a source has; 0 where nothing is counted.
    pub(crate) fn of_source(&self, source: IpAddr) -> u32 {
        self.by_source.get(&source).copied().unwrap_or(0)
    }

    fn change(&mut self, source: IpAddr, before: bool, after: bool) {
        match (before, after) {
            (false, true) => {
                let count = self.by_source.entry(source).or_default();
                *count = count.saturating_add(1);
            }
            (true, false) => {
                let left = self.of_source(source).saturating_sub(1);
                if left == 0 {
                    self.by_source.remove(&source);
                } else {
                    self.by_source.insert(source, left);
                }
            }
            _ => {}
        }
    }
}

impl Conntrack {
    /// How many half-open flows a source may have; 0 is no limit.
    pub const fn half_open_limit(&self) -> u32 {
        self.half_open_limit
    }

    /// Half-open flows of a source. Counted only where there is a limit.
    pub(crate) fn half_open_of(&self, source: IpAddr) -> u32 {
        self.half_open.of_source(source)
    }

    /// Whether the table takes another flow, after making room if the policy has a way to.
    pub(super) fn make_room(&mut self) -> Result<(), Refusal> {
        if self.len() < self.sysctls.limit(self.capacity()) {
            return Ok(());
        }
        let victim = match self.early_drop {
            EarlyDrop::Off => None,
            EarlyDrop::Lru => self.table.flows().oldest_unassured(),
            EarlyDrop::Kernel => {
                let Self { table, ports, sysctls, .. } = self;
                neighbour(ports, sysctls.buckets, &[table.flows()]).map(|(_, slot)| slot)
            }
        };
        self.drop_early(victim)
    }

    /// Lets a flow go for a new one.
    pub(super) fn drop_early(&mut self, victim: Option<Slot>) -> Result<(), Refusal> {
        let Some(victim) = victim else {
            self.totals.drop = self.totals.drop.saturating_add(1);
            return Err(Refusal::TableFull);
        };
        self.totals.early_drop = self.totals.early_drop.saturating_add(1);
        self.destroy(victim);
        Ok(())
    }

    /// Refuses the SYN of a source that has as many half-open flows as it may have.
    pub(super) fn check_half_open(&self, packet: &Packet<'_>, tuple: &Tuple) -> Result<(), Refusal> {
        half_open_allows(self.half_open_limit, packet, tuple, |source| self.half_open_of(source))
    }
}

/// Whether a packet may open a flow as far as half-open flows are limited; `count` says how many a source has.
pub(crate) fn half_open_allows(
    limit: u32,
    packet: &Packet<'_>,
    tuple: &Tuple,
    count: impl FnOnce(IpAddr) -> u32,
) -> Result<(), Refusal> {
    let opens = || {
        let flags = packet.parsed.l4(packet.datagram).get(TCP_FLAGS).copied().unwrap_or(0);
        tuple.proto == proto::TCP && flags & FIN_SYN_RST_ACK == SYN
    };
    if limit != 0 && opens() && count(tuple.src) >= limit { Err(Refusal::HalfOpenLimit) } else { Ok(()) }
}

/// Somebody who is not ASSURED from what would be eight of the kernel's buckets: the number of the table, and the slot.
///
/// A flow is filed twice in Linux, so each has sixteen chances in `buckets` to be looked at. Sixteen places are drawn, and
/// every flow stands at one place by its table and slot. On a tape goes what can be seen of it: the victim's rank by age among those who could be it.
pub(crate) fn neighbour(choices: &mut WireChoices, buckets: u32, tables: &[&Flows]) -> Option<(usize, Slot)> {
    let buckets = u64::from(buckets.max(1));
    let seed = choices.draw_untaped([NEIGHBOURHOOD, buckets]);
    let count = u64::try_from(tables.len()).unwrap_or(1).max(1);
    let places = tables.iter().map(|flows| flows.places()).max().unwrap_or(0).saturating_mul(count);
    let drawn = (0..PLACES).map(|number| scatter(seed, number) % buckets);
    let candidates =
        drawn.flat_map(|place| (0..CHAIN).map(move |turn| place.saturating_add(buckets.saturating_mul(turn))));
    let found = candidates.filter(|place| *place < places).find_map(|place| {
        let number = usize::try_from(place % count).ok()?;
        Some((number, tables.get(number)?.unassured_at(place / count)?))
    });
    if !choices.is_taped() {
        return found;
    }
    let mut by_age: Vec<_> = tables
        .iter()
        .enumerate()
        .flat_map(|(number, flows)| flows.unassured().map(move |(serial, slot)| (serial, number, slot)))
        .collect();
    by_age.sort_unstable();
    let rank = found.and_then(|victim| by_age.iter().position(|(_, number, slot)| (*number, *slot) == victim));
    // Nought stands for nobody.
    let taped = choices.taped(rank.map_or(0, |rank| (rank as u64).saturating_add(1)));
    let rank = (taped % (by_age.len() as u64).saturating_add(1)).checked_sub(1)?;
    by_age.get(usize::try_from(rank).ok()?).map(|(_, number, slot)| (*number, *slot))
}

pub(super) fn half_open_flows(parts: &ConntrackParts<'_>) -> Result<HalfOpen, Invalid> {
    Ok(HalfOpen::of(*parts.half_open_limit, parts.table.flows()))
}

/// Whether a flow is a TCP flow that is not ESTABLISHED yet.
pub(super) const fn is_half_open(state: &ProtocolState) -> bool {
    match state {
        ProtocolState::Tcp(track) => {
            matches!(track.state, TcpState::SynSent | TcpState::SynRecv | TcpState::SynSent2)
        }
        _ => false,
    }
}

/// Spreads one draw over many numbers (the finaliser of SplitMix64: Steele, Lea and Flood, 2014).
const fn scatter(seed: u64, number: u64) -> u64 {
    let mut word = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// What the draw is for.
const NEIGHBOURHOOD: u64 = 0x6561_726c_7964_726f;
/// Eight buckets, both directions.
const PLACES: u64 = 16;
/// Flows at one place that are looked at: bounds the work where there are few buckets.
const CHAIN: u64 = 64;
const TCP_FLAGS: usize = 13;
/// TCP's SYN flag (RFC 9293, section 3.1).
const SYN: u8 = 0x02;
const FIN_SYN_RST_ACK: u8 = 0x17;

#[cfg(test)]
mod tests;
