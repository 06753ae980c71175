//! The search for a free tuple.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::manip::Manip;
use super::range::NatRange;
use super::sources::Sources;
use crate::table::Table;
use crate::tuple::{Direction, Tuple, Zone, proto};
use crate::wire::WireChoices;

/// What a search may ask: which tuples are taken, how a socket is seen already, and where to begin.
pub(crate) trait Surroundings {
    /// Whether any flow has `tuple` as one of its directions.
    fn is_taken(&self, tuple: &Tuple, zone: Zone) -> bool;
    /// The newest mapping of `orig`'s socket that is allowed, out of the newest few.
    fn mapping(&self, orig: &Tuple, zone: u16, allowed: impl FnMut(&(IpAddr, u16)) -> bool) -> Option<(IpAddr, u16)>;
    /// [`WireChoices::choose`]
    fn choose(&mut self, subject: [u64; 2]) -> u64;
    /// [`WireChoices::draw`]
    fn draw(&mut self, subject: [u64; 2]) -> u64;
}

/// A search for a tuple in a zone.
pub(crate) struct Search<'a, S> {
    pub(crate) surroundings: &'a mut S,
    pub(crate) zone: Zone,
}

/// All flows in one table.
pub(crate) struct OneTable<'a> {
    pub(crate) table: &'a Table,
    pub(crate) sources: &'a Sources,
    pub(crate) ports: &'a mut WireChoices,
}

impl Surroundings for OneTable<'_> {
    fn is_taken(&self, tuple: &Tuple, zone: Zone) -> bool {
        self.table.is_taken(tuple, zone)
    }

    fn mapping(
        &self,
        orig: &Tuple,
        zone: u16,
        mut allowed: impl FnMut(&(IpAddr, u16)) -> bool,
    ) -> Option<(IpAddr, u16)> {
        let mut mappings = self.sources.mappings(self.table.flows(), orig, zone).map(|(_, outside)| outside);
        mappings.find(|outside| allowed(outside))
    }

    fn choose(&mut self, subject: [u64; 2]) -> u64 {
        self.ports.choose(subject)
    }

    fn draw(&mut self, subject: [u64; 2]) -> u64 {
        self.ports.draw(subject)
    }
}

/// The tuple a flow's packets get: `tuple` changed at `manip` as `range` allows, and free if there is a free one.
///
/// In order of preference: as it is; as other flows of the same inside socket are seen (source NAT); with another address
/// of the range alone; with another port. If nothing is free the last candidate comes back, and `confirm` refuses it.
pub(crate) fn unique_tuple(
    search: &mut Search<'_, impl Surroundings>,
    tuple: &Tuple,
    orig: &Tuple,
    range: &NatRange,
    manip: Manip,
) -> Tuple {
    let own_port = manip.port(tuple);
    let may_stay = !range.random && !range.fully_random;
    if manip == Manip::Source && may_stay {
        if range.allows(tuple.src, own_port) {
            if search.is_free(tuple) {
                return *tuple;
            }
        } else if let Some(mapped) = search.existing_mapping(tuple, orig, range) {
            return mapped;
        }
    }
    let tuple = with_address(tuple, manip, search.choose_address(tuple, range, manip));
    if may_stay {
        let fits = range.allows_port(own_port);
        let only_one = range.ports.is_some_and(|(first, last)| first == last);
        if fits && (only_one && range.ports.is_some() || search.is_free(&tuple)) {
            return tuple;
        }
    }
    search.free_port(&tuple, range, manip)
}

impl<S: Surroundings> Search<'_, S> {
    /// Whether no flow in the table is answered with what would answer `tuple`.
    fn is_free(&self, tuple: &Tuple) -> bool {
        tuple.inverted().is_some_and(|reply| !self.surroundings.is_taken(&reply, self.zone))
    }

    fn existing_mapping(&self, tuple: &Tuple, orig: &Tuple, range: &NatRange) -> Option<Tuple> {
        let zone = self.zone.of(Direction::Original);
        let allowed = |(address, port): &(IpAddr, u16)| range.allows(*address, *port);
        let (address, port) = self.surroundings.mapping(orig, zone, allowed)?;
        let mapped = with_port(&with_address(tuple, Manip::Source, address), Manip::Source, port);
        self.is_free(&mapped).then_some(mapped)
    }

    fn choose_address(&mut self, tuple: &Tuple, range: &NatRange, manip: Manip) -> IpAddr {
        let Some((first, last)) = range.addrs else { return manip.address(tuple) };
        if first == last {
            return first;
        }
        let other = if range.persistent { 0 } else { address_word(manip.opposite().address(tuple)) };
        let seed = self.surroundings.choose([address_word(manip.address(tuple)), other]);
        address_between(first, last, seed)
    }

    /// Tries ports from a keyed start on: up to 128 in a row, then fewer and fewer from elsewhere. Bounded at 256 tries.
    fn free_port(&mut self, tuple: &Tuple, range: &NatRange, manip: Manip) -> Tuple {
        let Some((first, last)) = ports(tuple, range, manip) else { return *tuple };
        let size = u32::from(last).saturating_sub(u32::from(first)).saturating_add(1);
        let subject = [
            address_word(tuple.src) ^ address_word(tuple.dst).rotate_left(32),
            u64::from(tuple.sport) | u64::from(tuple.dport) << 16 | u64::from(tuple.proto) << 32,
        ];
        let mut tries = size.min(MOST_TRIES);
        let mut candidate = *tuple;
        // A destination is looked for from the front of its range, unless the rule says otherwise.
        let ordered = manip == Manip::Destination && !range.random && !range.fully_random;
        let mut start = if ordered { 0 } else { self.surroundings.draw(subject) };
        loop {
            for step in 0..tries {
                let offset = (start.wrapping_add(u64::from(step)) % u64::from(size)) as u16;
                candidate = with_port(tuple, manip, first.saturating_add(offset));
                if self.is_free(&candidate) {
                    return candidate;
                }
            }
            if tries >= size || tries < FEWEST_TRIES {
                return candidate;
            }
            tries /= 2;
            start = self.surroundings.draw(subject);
        }
    }
}

/// First and last port to search; `None` where there is nothing to change.
fn ports(tuple: &Tuple, range: &NatRange, manip: Manip) -> Option<(u16, u16)> {
    match tuple.proto {
        proto::ICMP | proto::ICMPV6 => Some(range.ports.unwrap_or((0, u16::MAX))),
        proto::TCP | proto::UDP | proto::SCTP | proto::UDP_LITE => match (range.ports, manip) {
            (Some(ports), _) => Some(ports),
            (None, Manip::Destination) => None,
            // A privileged port stays privileged, and clear of the r-commands' 512 to 599 (RFC 1282 era servers check).
            (None, Manip::Source) => Some(match tuple.sport {
                0..512 => (1, 511),
                512..1024 => (600, 1023),
                _ => (1024, u16::MAX),
            }),
        },
        _ => None,
    }
}

fn with_address(tuple: &Tuple, manip: Manip, address: IpAddr) -> Tuple {
    match manip {
        Manip::Source => Tuple { src: address, ..*tuple },
        Manip::Destination => Tuple { dst: address, ..*tuple },
    }
}

fn with_port(tuple: &Tuple, manip: Manip, port: u16) -> Tuple {
    match manip {
        _ if tuple.is_icmp() => Tuple { sport: port, ..*tuple },
        Manip::Source => Tuple { sport: port, ..*tuple },
        Manip::Destination => Tuple { dport: port, ..*tuple },
    }
}

/// An address as one word, for the keyed function.
fn address_word(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(17)
        }
    }
}

fn address_between(first: IpAddr, last: IpAddr, seed: u64) -> IpAddr {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let size = u64::from(u32::from(last).saturating_sub(u32::from(first))) + 1;
            IpAddr::V4(Ipv4Addr::from(u32::from(first).saturating_add((seed % size) as u32)))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let size = u128::from(last).saturating_sub(u128::from(first)).saturating_add(1);
            IpAddr::V6(Ipv6Addr::from(u128::from(first).saturating_add(u128::from(seed) % size)))
        }
        _ => first,
    }
}

const MOST_TRIES: u32 = 128;
const FEWEST_TRIES: u32 = 16;
