//! Where a packet goes: to this host, on over a link, or nowhere.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cidr::Cidr;
use crate::drop_reason::DropReason;
use crate::link::{LinkId, Links, Medium};
use crate::source;

/// A route. Routes to the networks of the links' own addresses need not be given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Snapshot)]
pub struct Route {
    /// Destinations; the longest prefix that holds an address wins, among equals the first given.
    #[snapshot(saved)]
    pub destination: Cidr,
    /// The next router; `None` when destinations are on the link itself.
    #[snapshot(saved)]
    pub via: Option<IpAddr>,
    /// Name of the link.
    #[snapshot(saved)]
    pub link: String,
}

/// Why a route is refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RouteError {
    /// The link does not exist.
    #[error("route to {destination}: no link is named `{found}`")]
    NoSuchLink {
        /// The route's destination.
        destination: Cidr,
        /// The name given.
        found: String,
    },
    /// The router is of the other family.
    #[error("route to {destination} via {found}: the router must be of the destination's family")]
    Family {
        /// The route's destination.
        destination: Cidr,
        /// The router given.
        found: IpAddr,
    },
    /// More routes than a stack holds.
    #[error("{found} routes: at most {most}")]
    TooMany {
        /// Routes given.
        found: usize,
        /// Routes allowed.
        most: usize,
    },
}

/// Where an answer may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WayBack {
    /// Where the routes say.
    Routed,
    /// Over the link that the question came in by.
    On(NextHop),
    /// Over that link, but no route leads there: it is not sent.
    Nowhere,
}

/// What to do with a packet that came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// It is for this host.
    Local,
    /// It is for a group or broadcast domain this host belongs to.
    LocalGroup,
    /// It goes out again.
    Forward(NextHop),
    /// There is no route; the sender may be told.
    Unroutable,
    /// It goes nowhere, silently.
    Drop(DropReason),
}

/// The way out for one packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NextHop {
    /// The link.
    pub link: LinkId,
    /// The router; none where the destination is on the link itself.
    pub via: Option<IpAddr>,
}

/// Routes in the order they are tried, and what the links' addresses mean.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RouteTable {
    given: Vec<Route>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    destination: Cidr,
    via: Option<IpAddr>,
    link: LinkId,
}

impl RouteTable {
    /// The given routes and those to the links' own networks.
    pub(crate) fn new(links: &Links, given: Vec<Route>) -> Result<Self, RouteError> {
        if given.len() > MAX_ROUTES {
            return Err(RouteError::TooMany { found: given.len(), most: MAX_ROUTES });
        }
        let mut entries = Vec::new();
        for (id, link) in links.iter().filter(|(id, _)| *id != LinkId::LOOPBACK) {
            entries.extend(link.addrs.iter().map(|cidr| Entry { destination: *cidr, via: None, link: id }));
        }
        for route in &given {
            let Route { destination, via, link } = route;
            let link = links
                .id(link)
                .ok_or_else(|| RouteError::NoSuchLink { destination: *destination, found: link.clone() })?;
            if let Some(router) = via
                && router.is_ipv4() != destination.addr().is_ipv4()
            {
                return Err(RouteError::Family { destination: *destination, found: *router });
            }
            entries.push(Entry { destination: *destination, via: *via, link });
        }
        entries.sort_by_key(|entry| core::cmp::Reverse(entry.destination.prefix()));
        Ok(Self { given, entries })
    }

    /// The routes as they were given.
    pub(crate) fn given(&self) -> &[Route] {
        &self.given
    }

    /// What to do with a packet from outside, as the kernel decides after prerouting.
    ///
    /// Measured: sources of loopback, multicast, limited broadcast and zero, and IPv4 sources that are this host's own,
    /// are dropped in silence; so are destinations of loopback and zero. Any other source passes (no reverse path
    /// filter), even one that is a broadcast address of some network.
    pub(crate) fn input(&self, links: &Links, iif: LinkId, src: IpAddr, dst: IpAddr) -> Decision {
        let from_outside = iif != LinkId::LOOPBACK;
        if from_outside && is_martian(links, src, dst) {
            return Decision::Drop(DropReason::Martian);
        }
        match destination_kind(links, iif, dst) {
            DestinationKind::Own => return Decision::Local,
            DestinationKind::Group => return Decision::LocalGroup,
            DestinationKind::Foreign => return Decision::Drop(DropReason::NotForwardable),
            DestinationKind::Unicast => {}
        }
        // A link-local destination is reached on the packet's own link or not at all.
        if is_link_local(dst) {
            return self.hop_on(iif, dst).map_or(Decision::Unroutable, Decision::Forward);
        }
        match self.next_hop(dst) {
            Some(hop) => Decision::Forward(hop),
            None => Decision::Unroutable,
        }
    }

    /// The way to an address that is not this host's own.
    pub(crate) fn next_hop(&self, dst: IpAddr) -> Option<NextHop> {
        self.entry(dst).map(|entry| NextHop { link: entry.link, via: entry.via })
    }

    /// The way out for a packet of this host: its own addresses are reached over the loopback link, and link-local ones on
    /// the link that has the link-local address it is sent from.
    pub(crate) fn output(&self, links: &Links, src: IpAddr, dst: IpAddr) -> Option<NextHop> {
        if is_own(links, dst) {
            return Some(NextHop { link: LinkId::LOOPBACK, via: None });
        }
        if is_link_local(src)
            && (is_link_local(dst) || dst.is_multicast())
            && let Some((link, _)) = links.iter().find(|(_, link)| link.addrs.iter().any(|own| own.addr() == src))
        {
            return Some(NextHop { link, via: None });
        }
        self.next_hop(dst)
    }

    /// The way back for an answer to a packet from `dst` that came in by `iif`. Answers to a link-local address stay on its
    /// link (RFC 4007), and so do `bound` ones, of which the asker does not know the sender.
    pub(crate) fn way_back(&self, iif: Option<LinkId>, dst: IpAddr, bound: bool) -> WayBack {
        match iif {
            Some(link) if (bound || is_link_local(dst)) && link != LinkId::LOOPBACK => {
                self.hop_on(link, dst).map_or(WayBack::Nowhere, WayBack::On)
            }
            _ => WayBack::Routed,
        }
    }

    /// The address this host speaks from when it talks to `dst`: an own destination speaks from itself.
    pub(crate) fn source_for(&self, links: &Links, dst: IpAddr) -> Option<IpAddr> {
        if is_own(links, dst) {
            return Some(dst);
        }
        let entry = self.entry(dst)?;
        match dst {
            IpAddr::V4(_) => source::v4(links, entry.link, entry.via.unwrap_or(dst)),
            IpAddr::V6(dst) => source::v6(links, entry.link, dst),
        }
    }

    /// The address that masquerade gives a packet for `dst` which leaves by `link`.
    pub(crate) fn masqueraded(&self, links: &Links, link: LinkId, dst: IpAddr) -> Option<IpAddr> {
        match dst {
            IpAddr::V4(_) => source::v4(links, link, self.entry(dst).and_then(|entry| entry.via).unwrap_or(dst)),
            IpAddr::V6(dst) => source::v6(links, link, dst),
        }
    }

    /// The address that an error about a packet from `dst` comes from, where the packet was for another host. IPv6 prefers
    /// one of the link that the packet came in by.
    pub(crate) fn error_source(&self, links: &Links, iif: Option<LinkId>, dst: IpAddr) -> Option<IpAddr> {
        match (iif, dst) {
            (Some(link), IpAddr::V6(to)) if link != LinkId::LOOPBACK => {
                (is_own(links, dst) || self.entry(dst).is_some()).then_some(())?;
                source::v6(links, link, to)
            }
            _ => self.source_for(links, dst),
        }
    }

    /// The way to `dst` over that link, if some route leads there.
    fn hop_on(&self, link: LinkId, dst: IpAddr) -> Option<NextHop> {
        let entry = self.entries.iter().find(|entry| entry.link == link && entry.destination.contains(dst))?;
        Some(NextHop { link, via: entry.via })
    }

    fn entry(&self, dst: IpAddr) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.destination.contains(dst))
    }
}

/// Whether an address is one of this host's own.
pub(crate) fn is_own(links: &Links, addr: IpAddr) -> bool {
    if addr.is_loopback() {
        return true;
    }
    links.configured().iter().flat_map(|link| &link.addrs).any(|cidr| {
        cidr.addr() == addr || matches!((cidr.router_anycast(), addr), (Some(any), IpAddr::V6(addr)) if any == addr)
    })
}

/// Whether an address is a router's anycast address of one of the links' networks (RFC 4291, section 2.6.1).
pub(crate) fn is_anycast(links: &Links, addr: IpAddr) -> bool {
    let is_any = |cidr: &Cidr| cidr.router_anycast().is_some_and(|any| IpAddr::V6(any) == addr && cidr.addr() != addr);
    links.configured().iter().flat_map(|link| &link.addrs).any(is_any)
}

/// Whether an IPv6 address means something on its link alone.
pub(crate) fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

/// Whether an IPv4 address is a broadcast address here: the limited one, or that of a link's network.
pub(crate) fn is_broadcast(links: &Links, addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            addr.is_broadcast()
                || links.configured().iter().flat_map(|link| &link.addrs).any(|cidr| cidr.broadcast() == Some(addr))
        }
        IpAddr::V6(_) => false,
    }
}

enum DestinationKind {
    Own,
    Group,
    Foreign,
    Unicast,
}

fn destination_kind(links: &Links, iif: LinkId, dst: IpAddr) -> DestinationKind {
    if is_own(links, dst) {
        return DestinationKind::Own;
    }
    if is_broadcast(links, dst) {
        return DestinationKind::Group;
    }
    match dst {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => DestinationKind::Foreign,
        IpAddr::V4(group) if group.is_multicast() => {
            if group == ALL_SYSTEMS {
                DestinationKind::Group
            } else {
                DestinationKind::Foreign
            }
        }
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => DestinationKind::Foreign,
        IpAddr::V6(group) if group.is_multicast() => {
            if is_own_group(links, iif, group) {
                DestinationKind::Group
            } else {
                DestinationKind::Foreign
            }
        }
        _ => DestinationKind::Unicast,
    }
}

/// Groups an IPv6 router belongs to: all nodes, all routers, the solicited-node groups of its addresses (RFC 4291).
fn is_own_group(links: &Links, iif: LinkId, group: Ipv6Addr) -> bool {
    if ALL_NODES_AND_ROUTERS.contains(&group) {
        return true;
    }
    let solicited = |addr: Ipv6Addr| {
        Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | (addr.to_bits() & 0x00ff_ffff))
    };
    // Where nobody asks for hardware addresses the kernel joins no such group.
    links.link(iif).filter(|link| link.medium != Medium::Ip).is_some_and(|link| {
        link.addrs.iter().any(|cidr| matches!(cidr.addr(), IpAddr::V6(addr) if solicited(addr) == group))
    })
}

fn is_martian(links: &Links, src: IpAddr, dst: IpAddr) -> bool {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let from_nobody = src.is_unspecified() && !dst.is_broadcast();
            let bad_source = src.is_multicast() || src.is_broadcast() || src.is_loopback() || from_nobody;
            bad_source || is_own(links, IpAddr::V4(src)) || dst.is_loopback() || dst.is_unspecified()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let from_nobody = src.is_unspecified() && !dst.is_multicast();
            src.is_multicast() || src.is_loopback() || from_nobody || dst.is_loopback() || dst.is_unspecified()
        }
        _ => true,
    }
}

/// All systems on this subnet (RFC 1112).
const ALL_SYSTEMS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
/// All nodes and all routers, by scope (RFC 4291, section 2.7.1).
const ALL_NODES_AND_ROUTERS: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 2),
];
/// Most routes of a stack.
pub(crate) const MAX_ROUTES: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::LinkConfig;

    fn links() -> Links {
        let link = |name: &str, addrs: &[&str]| LinkConfig {
            name: name.into(),
            medium: Medium::Ip,
            mtu: 1500,
            addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
        };
        Links::new(vec![
            link("in", &["10.0.0.1/24", "fd00:10::1/64"]),
            link("out", &["203.0.113.1/24", "2001:db8:ff::1/64"]),
        ])
    }

    fn table(links: &Links, routes: &[(&str, Option<&str>, &str)]) -> RouteTable {
        let routes = routes
            .iter()
            .map(|(destination, via, link)| Route {
                destination: destination.parse().unwrap(),
                via: via.map(|via| via.parse().unwrap()),
                link: (*link).into(),
            })
            .collect();
        RouteTable::new(links, routes).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let links = links();
        let table = table(&links, &[("0.0.0.0/0", None, "out"), ("198.51.100.0/24", None, "in")]);
        let way = |dst| table.next_hop(ip(dst)).map(|hop| hop.link.index());
        assert_eq!(way("198.51.100.9"), Some(1));
        assert_eq!(way("198.51.101.9"), Some(2));
        assert_eq!(way("10.0.0.9"), Some(1));
        assert_eq!(way("2001:db8:99::1"), None);
    }

    #[test]
    fn packets_that_came_in_go_where_the_kernel_sends_them() {
        let links = links();
        let table = table(&links, &[]);
        let iif = links.id("in").unwrap();
        let out = Decision::Forward(NextHop { link: links.id("out").unwrap(), via: None });
        let back = Decision::Forward(NextHop { link: iif, via: None });
        for (src, dst, expected) in [
            ("10.0.0.2", "198.51.100.10", Decision::Unroutable),
            ("10.0.0.2", "255.255.255.255", Decision::LocalGroup),
            ("10.0.0.2", "10.0.0.255", Decision::LocalGroup),
            ("10.0.0.2", "203.0.113.255", Decision::LocalGroup),
            ("10.0.0.2", "224.0.0.1", Decision::LocalGroup),
            ("10.0.0.2", "224.0.0.2", Decision::Drop(DropReason::NotForwardable)),
            ("127.0.0.1", "203.0.113.9", Decision::Drop(DropReason::Martian)),
            ("10.0.0.2", "127.0.0.1", Decision::Drop(DropReason::Martian)),
            ("0.0.0.0", "203.0.113.9", Decision::Drop(DropReason::Martian)),
            ("0.0.0.0", "255.255.255.255", Decision::LocalGroup),
            ("240.0.0.1", "203.0.113.10", out),
            ("203.0.113.255", "203.0.113.10", out),
            ("224.0.0.9", "203.0.113.10", Decision::Drop(DropReason::Martian)),
            ("255.255.255.255", "203.0.113.10", Decision::Drop(DropReason::Martian)),
            ("10.0.0.1", "203.0.113.10", Decision::Drop(DropReason::Martian)),
            ("10.0.0.2", "10.0.0.0", back),
            ("10.0.0.2", "203.0.113.1", Decision::Local),
            ("::", "2001:db8:ff::9", Decision::Drop(DropReason::Martian)),
            ("ff02::9", "2001:db8:ff::9", Decision::Drop(DropReason::Martian)),
            ("fd00:10::2", "ff0e::1", Decision::Drop(DropReason::NotForwardable)),
            ("fd00:10::2", "ff02::1", Decision::LocalGroup),
            ("fd00:10::2", "ff02::1:ff00:1", Decision::Drop(DropReason::NotForwardable)),
            ("fe80::2", "2001:db8:ff::9", out),
            ("fd00:10::1", "2001:db8:ff::9", out),
            ("fd00:10::2", "fd00:10::1", Decision::Local),
            ("fd00:10::2", "fd00:10::", Decision::Local),
            ("fd00:10::2", "fe80::9", Decision::Unroutable),
        ] {
            assert_eq!(table.input(&links, iif, ip(src), ip(dst)), expected, "{src} > {dst}");
        }
    }

    #[test]
    fn a_default_route_does_not_lead_to_link_local_destinations() {
        let links = links();
        let table = table(&links, &[("::/0", None, "out")]);
        let iif = links.id("in").unwrap();
        assert_eq!(table.input(&links, iif, ip("fd00:10::2"), ip("fe80::9")), Decision::Unroutable);
    }

    #[test]
    fn the_host_speaks_from_the_address_next_to_the_next_hop() {
        let links = links();
        let table = table(&links, &[("0.0.0.0/0", Some("10.0.0.254"), "in"), ("::/0", None, "out")]);
        let source = |dst| table.source_for(&links, ip(dst));
        assert_eq!(source("198.51.100.1"), Some(ip("10.0.0.1")));
        assert_eq!(source("203.0.113.77"), Some(ip("203.0.113.1")));
        assert_eq!(source("2001:db8:1::1"), Some(ip("2001:db8:ff::1")));
        assert_eq!(source("fd00:10::1"), Some(ip("fd00:10::1")));
    }

    #[test]
    fn a_route_over_a_missing_link_is_refused() {
        let route = Route { destination: Cidr::all_v4(), via: None, link: "wan".into() };
        let error = RouteTable::new(&links(), vec![route]).unwrap_err();
        assert_eq!(error.to_string(), "route to 0.0.0.0/0: no link is named `wan`");
    }
}
