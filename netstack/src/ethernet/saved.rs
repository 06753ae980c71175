//! Neighbours in an image: with what remains of their times, and checked on the way back.

use core::net::IpAddr;
use core::time::Duration;
use std::collections::VecDeque;

use hibernet_snapshot::{Entropy, Instant, Invalid, Snapshot};

use super::mac::MacAddr;
use super::neighbours::{
    Confidence, DELAY, KEPT, LOCKED, LONGEST_REACHABLE, MAX_LINK_WAITING_BYTES, MAX_NEIGHBOURS, MAX_WAITING,
    MAX_WAITING_BYTES, Neighbour, Neighbours, State,
};
use crate::link::{LinkId, Links, Medium};
use crate::packet::Packet;

/// The neighbour table as it is saved: ascending by link and address.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
pub(crate) struct NeighboursSection {
    #[snapshot(saved)]
    neighbours: Vec<NeighbourSection>,
}

/// One neighbour.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
struct NeighbourSection {
    #[snapshot(saved)]
    link: u16,
    #[snapshot(saved)]
    addr: IpAddr,
    #[snapshot(saved)]
    state: StateSection,
    /// How long ago it was last needed, a day at most.
    #[snapshot(saved)]
    unneeded: Duration,
    /// Whether a packet was ever sent to it.
    #[snapshot(saved)]
    used: bool,
    /// How long ARP cannot replace its address.
    #[snapshot(saved)]
    locked: Duration,
}

/// What is known of a neighbour. Questions that were on their way are asked again from the first.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
enum StateSection {
    Incomplete {
        #[snapshot(saved)]
        waiting: Vec<WaitingSection>,
    },
    Reachable {
        #[snapshot(saved)]
        mac: MacAddr,
        #[snapshot(saved)]
        remaining: Duration,
    },
    Stale {
        #[snapshot(saved)]
        mac: MacAddr,
    },
    Delay {
        #[snapshot(saved)]
        mac: MacAddr,
        #[snapshot(saved)]
        remaining: Duration,
    },
    Probe {
        #[snapshot(saved)]
        mac: MacAddr,
    },
}

/// A packet that waits.
#[derive(Clone, PartialEq, Eq, Debug, Snapshot)]
struct WaitingSection {
    #[snapshot(saved)]
    datagram: Vec<u8>,
    /// The link it came in on; none for packets of this host.
    #[snapshot(saved)]
    iif: Option<u16>,
}

impl Neighbours {
    /// What is to be saved at `now`.
    pub(crate) fn section(&self, now: Instant) -> NeighboursSection {
        let Self { tables, timers: _, times: _ } = self;
        let all = tables.iter().flat_map(|(link, table)| table.entries.iter().map(move |entry| (*link, entry)));
        let saved = |(link, (addr, neighbour)): (LinkId, (&IpAddr, &Neighbour))| {
            let Neighbour { state, kept_until, used, locked_until } = neighbour;
            Some(NeighbourSection {
                link: number(link)?,
                addr: *addr,
                state: StateSection::of(state, now),
                unneeded: KEPT.saturating_sub(kept_until.saturating_since(now)),
                used: *used,
                locked: locked_until.saturating_since(now),
            })
        };
        NeighboursSection { neighbours: all.filter_map(saved).collect() }
    }
}

/// Neighbours that passed every check. Their table has no key yet.
#[derive(Debug)]
pub(crate) struct CheckedNeighbours {
    pub(super) neighbours: Vec<(LinkId, IpAddr, Neighbour)>,
}

impl CheckedNeighbours {
    /// The table, under a key drawn from `entropy`.
    pub(crate) fn open(self, entropy: &mut Entropy) -> Neighbours {
        let mut table = Neighbours::new(entropy);
        for (link, addr, neighbour) in self.neighbours {
            let waiting = neighbour.waiting_bytes();
            table.insert(link, addr, neighbour);
            table.wait(link, waiting);
        }
        table
    }
}

impl NeighboursSection {
    /// The neighbours as they were saved, with times that count from `now`. Each is checked against all that the table
    /// relies on.
    pub(crate) fn check(self, links: &Links, now: Instant) -> Result<CheckedNeighbours, Invalid> {
        let mut neighbours = Vec::new();
        let mut last = None;
        let mut of_link = OfLink::default();
        for (at, section) in self.neighbours.into_iter().enumerate() {
            let place = |invalid: Invalid| invalid.at(at).within("neighbours");
            let key = (section.link, section.addr);
            if last.is_some_and(|last| last >= key) {
                return Err(place(Invalid::new(
                    "addr",
                    format!("{} on link {}", key.1, key.0),
                    "ascending neighbours",
                )));
            }
            last = Some(key);
            let (link, addr, neighbour) = section.check(links, now).map_err(place)?;
            of_link.add(link, addr, &neighbour).map_err(place)?;
            neighbours.push((link, addr, neighbour));
        }
        Ok(CheckedNeighbours { neighbours })
    }
}

/// What the neighbours of one link come to.
#[derive(Default)]
struct OfLink {
    link: Option<LinkId>,
    v4: usize,
    v6: usize,
    waiting: usize,
}

impl OfLink {
    /// Adds a neighbour; refused where it is more than a link may have. They come link by link.
    fn add(&mut self, link: LinkId, addr: IpAddr, neighbour: &Neighbour) -> Result<(), Invalid> {
        if self.link != Some(link) {
            *self = Self { link: Some(link), ..Self::default() };
        }
        let count = if addr.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        *count = count.saturating_add(1);
        self.waiting = self.waiting.saturating_add(neighbour.waiting_bytes());
        if self.v4.max(self.v6) > MAX_NEIGHBOURS || self.waiting > MAX_LINK_WAITING_BYTES {
            let found = format!("{} and {} neighbours, {} bytes that wait", self.v4, self.v6, self.waiting);
            let expected = format!("at most {MAX_NEIGHBOURS} of each IP version, {MAX_LINK_WAITING_BYTES} bytes");
            return Err(Invalid::new("link", found, expected));
        }
        Ok(())
    }
}

impl NeighbourSection {
    fn check(self, links: &Links, now: Instant) -> Result<(LinkId, IpAddr, Neighbour), Invalid> {
        let Self { link: at, addr, state, unneeded, used, locked } = self;
        let link = links.at(at).filter(|link| ethernet_mac(links, *link).is_some());
        let Some(link) = link else {
            return Err(Invalid::new("link", at.to_string(), "an Ethernet link"));
        };
        if !can_be_a_neighbour(addr) {
            return Err(Invalid::new("addr", addr.to_string(), "the unicast address of a host"));
        }
        let state = state.into_state(addr, link, links, now)?;
        let known = matches!(state, State::Known { .. });
        if unneeded > KEPT {
            return Err(Invalid::new("unneeded", format!("{unneeded:?}"), format!("at most {KEPT:?}")));
        }
        if locked > LOCKED || !known && !locked.is_zero() {
            return Err(Invalid::new("locked", format!("{locked:?}"), "at most a second, and for known neighbours"));
        }
        if !known && !used {
            return Err(Invalid::new("used", "false", "true of a neighbour that is being asked for"));
        }
        let kept_until = now.saturating_add(KEPT.saturating_sub(unneeded));
        Ok((link, addr, Neighbour { state, kept_until, used, locked_until: now.saturating_add(locked) }))
    }
}

impl StateSection {
    fn of(state: &State, now: Instant) -> Self {
        match state {
            State::Incomplete { probes: _, due: _, waiting } => {
                let waiting = waiting.iter().map(|packet| WaitingSection {
                    datagram: packet.bytes().to_vec(),
                    iif: packet.iif.filter(|_| !packet.local).and_then(number),
                });
                Self::Incomplete { waiting: waiting.collect() }
            }
            State::Known { mac, confidence } => match *confidence {
                Confidence::Reachable { until } if until > now => {
                    Self::Reachable { mac: *mac, remaining: until.saturating_since(now) }
                }
                Confidence::Reachable { .. } | Confidence::Stale => Self::Stale { mac: *mac },
                Confidence::Delay { until } if until > now => {
                    Self::Delay { mac: *mac, remaining: until.saturating_since(now) }
                }
                Confidence::Delay { .. } | Confidence::Probe { .. } => Self::Probe { mac: *mac },
            },
        }
    }

    fn into_state(self, addr: IpAddr, link: LinkId, links: &Links, now: Instant) -> Result<State, Invalid> {
        let (mac, confidence) = match self {
            Self::Incomplete { waiting } => {
                let waiting = packets(waiting, addr, link, links)?;
                return Ok(State::Incomplete { probes: 0, due: now, waiting });
            }
            Self::Reachable { mac, remaining } => {
                let until = now.saturating_add(within(remaining, LONGEST_REACHABLE)?);
                (mac, Confidence::Reachable { until })
            }
            Self::Stale { mac } => (mac, Confidence::Stale),
            Self::Delay { mac, remaining } => {
                (mac, Confidence::Delay { until: now.saturating_add(within(remaining, DELAY)?) })
            }
            Self::Probe { mac } => (mac, Confidence::Probe { probes: 0, due: now }),
        };
        if !mac.is_unicast() {
            return Err(Invalid::new("state.mac", mac.to_string(), "the hardware address of one station"));
        }
        Ok(State::Known { mac, confidence })
    }
}

fn within(remaining: Duration, most: Duration) -> Result<Duration, Invalid> {
    if remaining.is_zero() || remaining > most {
        return Err(Invalid::new("state.remaining", format!("{remaining:?}"), format!("above zero, at most {most:?}")));
    }
    Ok(remaining)
}

/// The packets that wait for `addr`. What connection tracking knows of them is found again should they fail.
fn packets(
    sections: Vec<WaitingSection>,
    addr: IpAddr,
    link: LinkId,
    links: &Links,
) -> Result<VecDeque<Packet>, Invalid> {
    let bytes = sections.iter().map(|section| section.datagram.len()).fold(0, usize::saturating_add);
    if sections.is_empty() || sections.len() > MAX_WAITING || bytes > MAX_WAITING_BYTES {
        let found = format!("{} packets of {bytes} bytes", sections.len());
        let expected = format!("1 to {MAX_WAITING} packets of at most {MAX_WAITING_BYTES} bytes");
        return Err(Invalid::new("state.waiting", found, expected));
    }
    let mut packets = VecDeque::with_capacity(sections.len());
    for (at, WaitingSection { datagram, iif }) in sections.into_iter().enumerate() {
        let refuse = |found: String| {
            let expected = format!("a datagram that can leave on link {}", link.index());
            Err(Invalid::new("", found, expected).at(at).within("state.waiting"))
        };
        let len = datagram.len();
        let known = iif.and_then(|iif| links.at(iif));
        let packet = match (iif, known) {
            (None, _) => Packet::originated(datagram),
            (Some(_), Some(known)) => Packet::received(known, datagram),
            (Some(iif), None) => return refuse(format!("one that came in on link {iif}")),
        };
        let mut packet = match packet {
            Ok(packet) if packet.len() == len && len <= links.mtu(link) => packet,
            Ok(_) => return refuse(format!("{len} bytes")),
            Err(reason) => return refuse(reason.to_string()),
        };
        if packet.dst().is_ipv4() != addr.is_ipv4() {
            return refuse(format!("one for {}", packet.dst()));
        }
        packet.oif = Some(link);
        packets.push_back(packet);
    }
    Ok(packets)
}

/// The hardware address of this host on an Ethernet link.
fn ethernet_mac(links: &Links, link: LinkId) -> Option<MacAddr> {
    match links.link(link)?.medium {
        Medium::Ethernet { mac } => Some(mac),
        Medium::Ip => None,
    }
}

/// Whether an address can be that of a host on a link.
pub(super) fn can_be_a_neighbour(addr: IpAddr) -> bool {
    let broadcast = matches!(addr, IpAddr::V4(addr) if addr.is_broadcast());
    !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || broadcast)
}

fn number(link: LinkId) -> Option<u16> {
    u16::try_from(link.index()).ok()
}
