//! Which of its addresses this host speaks from, and which it takes packets in with.
//!
//! IPv4 looks at one link's addresses in the order in which they were given. IPv6 weighs all addresses of all links by RFC
//! 6724, and among equals takes the one that was given last: Linux puts newer addresses in front.

use core::cmp::Reverse;
use core::net::{IpAddr, Ipv6Addr};

use crate::cidr::Cidr;
use crate::link::{LinkId, Links};

/// The IPv4 address of a link for talking by way of `hop`: the first whose network holds it, else the link's first, else
/// the first of any link.
pub(crate) fn v4(links: &Links, link: LinkId, hop: IpAddr) -> Option<IpAddr> {
    let fits = |cidr: &&Cidr| cidr.addr().is_ipv4();
    let own = links.link(link)?.addrs.as_slice();
    own.iter()
        .filter(fits)
        .find(|cidr| cidr.contains(hop))
        .or_else(|| own.iter().find(fits))
        .or_else(|| links.configured().iter().flat_map(|link| &link.addrs).find(fits))
        .map(Cidr::addr)
}

/// The IPv6 address for talking to `dst` over `link` (RFC 6724, section 5): in this order, the destination itself, of a
/// sufficient scope and no larger one than need be, of the link, of the destination's label, with the longest common prefix.
pub(crate) fn v6(links: &Links, link: LinkId, dst: Ipv6Addr) -> Option<IpAddr> {
    let wanted = Scope::of(dst);
    let mut best: Option<(Rank, Ipv6Addr)> = None;
    for (id, config) in links.iter() {
        // Addresses of other links cannot be reached from within a narrower scope.
        if id != link && (wanted == Scope::Link || dst.is_multicast()) {
            continue;
        }
        for (addr, cidr) in newest_first(&config.addrs) {
            let scope = Scope::of(addr);
            let rank = Rank {
                same: addr == dst,
                suffices: scope >= wanted,
                scope: if scope >= wanted { Reverse(scope) } else { Reverse(Scope::Global) },
                on_link: id == link,
                same_label: label(addr) == label(dst),
                prefix: common_prefix(addr, dst).min(u32::from(cidr.prefix())),
            };
            if best.is_none_or(|(leader, _)| rank > leader) {
                best = Some((rank, addr));
            }
        }
    }
    best.map(|(_, addr)| addr.into())
}

/// The address that REDIRECT gives a packet for `dst` which came in by `link`: IPv4's first, in IPv6 the newest of the
/// destination's scope.
pub(crate) fn redirected(links: &Links, link: LinkId, dst: IpAddr) -> Option<IpAddr> {
    let addrs = &links.link(link)?.addrs;
    match dst {
        IpAddr::V4(_) => addrs.iter().map(Cidr::addr).find(IpAddr::is_ipv4),
        IpAddr::V6(dst) => {
            let mut of_scope =
                newest_first(addrs).map(|(addr, _)| addr).filter(|addr| Scope::of(*addr) == Scope::of(dst));
            of_scope.next().map(IpAddr::from)
        }
    }
}

/// How well an address is suited; the greater, the better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rank {
    same: bool,
    suffices: bool,
    scope: Reverse<Scope>,
    on_link: bool,
    same_label: bool,
    prefix: u32,
}

/// As far as addresses are told apart here (RFC 4007; RFC 4291, section 2.7; site-local is RFC 3879's).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Scope {
    Link,
    Site,
    Global,
}

impl Scope {
    /// Of a group by its scope field. All that is neither link nor site counts as global, unique local addresses too; the
    /// loopback address is of its link.
    fn of(addr: Ipv6Addr) -> Self {
        if addr.is_loopback() {
            return Self::Link;
        }
        let [first, second, ..] = addr.octets();
        match (first, second) {
            (0xff, flags_and_scope) => match flags_and_scope & 0x0f {
                2 => Self::Link,
                5 => Self::Site,
                _ => Self::Global,
            },
            (0xfe, 0x80..=0xbf) => Self::Link,
            (0xfe, 0xc0..=0xff) => Self::Site,
            _ => Self::Global,
        }
    }
}

fn newest_first(addrs: &[Cidr]) -> impl Iterator<Item = (Ipv6Addr, &Cidr)> {
    addrs.iter().rev().filter_map(|cidr| match cidr.addr() {
        IpAddr::V6(addr) => Some((addr, cidr)),
        IpAddr::V4(_) => None,
    })
}

/// The label of the longest prefix in the policy table (RFC 6724, section 2.1, as Linux has it).
fn label(addr: Ipv6Addr) -> u8 {
    let bits = addr.to_bits();
    let within = |(prefix, len, _): &&(u128, u32, u8)| {
        bits.checked_shr(128_u32.saturating_sub(*len)).is_some_and(|found| found == *prefix)
    };
    LABELS.iter().find(within).map_or(1, |(_, _, label)| *label)
}

const fn common_prefix(a: Ipv6Addr, b: Ipv6Addr) -> u32 {
    (a.to_bits() ^ b.to_bits()).leading_zeros()
}

/// Prefix, its length and its label, longest first. What is in none has the label 1.
const LABELS: [(u128, u32, u8); 7] = [
    (1, 128, 0),
    (0, 96, 3),
    (0xffff, 96, 4),
    (0x200_1001, 28, 7),
    (0x2001_0000, 32, 6),
    (0x2002, 16, 2),
    (0x7e, 7, 5),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::LinkConfig;

    fn links(inside: &[&str], outside: &[&str]) -> Links {
        let link = |name: &str, addrs: &[&str]| {
            let addrs = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
            LinkConfig { name: name.to_owned(), mtu: 1500, addrs, medium: crate::Medium::Ip }
        };
        Links::new(vec![link("in", inside), link("out", outside)])
    }

    fn spoken_from(links: &Links, dst: &str) -> String {
        v6(links, links.id("out").unwrap(), dst.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn ipv4_speaks_from_the_network_of_the_next_hop_or_the_first_address() {
        let links = links(&["10.0.0.1/24"], &["203.0.113.1/24", "192.0.2.1/24", "203.0.113.11/24"]);
        let out = links.id("out").unwrap();
        for (hop, expected) in [("192.0.2.9", "192.0.2.1"), ("203.0.113.9", "203.0.113.1"), ("8.8.8.8", "203.0.113.1")]
        {
            assert_eq!(v4(&links, out, hop.parse().unwrap()).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn ipv6_prefers_scope_then_the_link_then_the_label_then_the_prefix_then_the_newest() {
        let inside = ["fd00:10::1/64", "fe80::1/64"];
        let plain = links(&inside, &["2001:db8:ff::1/64", "2001:db8:fe::1/64", "2001:db8:ff::11/64"]);
        assert_eq!(spoken_from(&plain, "2001:db8:fe::9"), "2001:db8:fe::1", "the longest prefix");
        assert_eq!(spoken_from(&plain, "2001:db8:1::9"), "2001:db8:ff::11", "the newest of equals");
        assert_eq!(spoken_from(&plain, "fd00:10::9"), "2001:db8:ff::11", "the link before the label");
        let local = links(&inside, &["2001:db8:ff::1/64", "fe80::2/64", "fd00:ff::1/64"]);
        assert_eq!(spoken_from(&local, "fe80::9"), "fe80::2", "no wider a scope than need be");
        assert_eq!(spoken_from(&local, "2001:db8:1::9"), "2001:db8:ff::1", "a scope that suffices, and the label");
        assert_eq!(spoken_from(&local, "fd00:99::9"), "fd00:ff::1", "the label");
        assert_eq!(spoken_from(&plain, "fd00:10::1"), "fd00:10::1", "the destination, of whatever link");
        let bare = links(&inside, &["203.0.113.1/24"]);
        assert_eq!(spoken_from(&bare, "2001:db8:1::9"), "fd00:10::1", "another link's, where the link has none");
        assert_eq!(v6(&bare, bare.id("out").unwrap(), "fe80::9".parse().unwrap()), None);
    }

    #[test]
    fn a_redirect_stays_in_the_scope_of_the_destination() {
        let links = links(&["10.0.0.1/24", "192.168.5.1/24", "fd00:10::1/64", "fec0::1/64", "fd00:11::1/64"], &[]);
        let link = links.id("in").unwrap();
        for (dst, expected) in [
            ("192.168.5.9", Some("10.0.0.1")),
            ("2001:db8::9", Some("fd00:11::1")),
            ("ff0e::1", Some("fd00:11::1")),
            ("ff05::1", Some("fec0::1")),
            ("ff02::1", None),
            ("fe80::9", None),
        ] {
            let found = redirected(&links, link, dst.parse().unwrap()).map(|addr| addr.to_string());
            assert_eq!(found.as_deref(), expected, "{dst}");
        }
    }
}
