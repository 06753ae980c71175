//! Links: where datagrams come from and go to.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_snapshot::{Invalid, Snapshot};
use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;

/// A link of a stack: the loopback link, then the configured ones in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct LinkId(u16);

impl LinkId {
    /// The loopback link, `lo`: every stack has one.
    pub const LOOPBACK: Self = Self(0);

    /// Its number; 0 is the loopback link.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An IP link: datagrams in, datagrams out, no addresses of a lower layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Snapshot)]
#[snapshot(validate = sound)]
pub struct LinkConfig {
    /// Name, unique in the stack; rules match it. 1 to 15 bytes, as for the kernel's devices.
    #[snapshot(saved)]
    pub name: String,
    /// Largest datagram the link takes, 1280 to 65535 (RFC 8200, section 5).
    #[snapshot(saved)]
    pub mtu: u32,
    /// Addresses of this host on the link, with their networks. The first of a family is the primary one.
    #[snapshot(saved)]
    pub addrs: Vec<Cidr>,
}

/// The links of a stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Links {
    links: Vec<LinkConfig>,
}

impl Links {
    /// The configured links behind a loopback link.
    pub(crate) fn new(configured: Vec<LinkConfig>) -> Self {
        let mut links = vec![LinkConfig {
            name: LOOPBACK_NAME.to_owned(),
            mtu: 65_535,
            addrs: vec![
                Cidr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8).unwrap_or(Cidr::host(IpAddr::V4(Ipv4Addr::LOCALHOST))),
                Cidr::host(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            ],
        }];
        links.extend(configured);
        Self { links }
    }

    pub(crate) fn id(&self, name: &str) -> Option<LinkId> {
        let at = self.links.iter().position(|link| link.name == name)?;
        u16::try_from(at).ok().map(LinkId)
    }

    pub(crate) fn link(&self, id: LinkId) -> Option<&LinkConfig> {
        self.links.get(id.index())
    }

    pub(crate) fn link_mut(&mut self, id: LinkId) -> Option<&mut LinkConfig> {
        self.links.get_mut(id.index())
    }

    pub(crate) fn mtu(&self, id: LinkId) -> usize {
        self.link(id).map_or(0, |link| usize::try_from(link.mtu).unwrap_or(usize::MAX))
    }

    /// All links with their ids, the loopback link first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (LinkId, &LinkConfig)> {
        self.links.iter().enumerate().filter_map(|(at, link)| Some((LinkId(u16::try_from(at).ok()?), link)))
    }

    /// The links as they were configured.
    pub(crate) fn configured(&self) -> &[LinkConfig] {
        self.links.get(1..).unwrap_or_default()
    }

    /// The smallest MTU among the configured links.
    pub(crate) fn smallest_mtu(&self) -> usize {
        let smallest = self.configured().iter().map(|link| link.mtu).min();
        smallest.map_or(65_535, |mtu| usize::try_from(mtu).unwrap_or(65_535))
    }
}

/// Checks one link; also what a saved link must fulfil.
pub(crate) fn sound(link: &LinkConfig) -> Result<(), Invalid> {
    let refuse = |field: &'static str, found: String, expected: &'static str| {
        Err(Invalid { field: field.into(), found, expected: expected.into() })
    };
    let printable = link.name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if link.name.is_empty() || link.name.len() > 15 || !printable || link.name == LOOPBACK_NAME {
        return refuse("name", format!("{:?}", link.name), "1 to 15 printable ASCII bytes, not `lo`");
    }
    if !(1280..=65_535).contains(&link.mtu) {
        return refuse("mtu", link.mtu.to_string(), "1280 to 65535");
    }
    if link.addrs.len() > MAX_ADDRS {
        return refuse("addrs", format!("{} addresses", link.addrs.len()), "at most 64 addresses");
    }
    for cidr in &link.addrs {
        if !is_unicast(cidr.addr()) {
            return refuse("addrs", cidr.to_string(), "unicast addresses outside the loopback networks");
        }
    }
    Ok(())
}

/// Whether an address can belong to a host on a link.
fn is_unicast(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || addr.is_broadcast())
        }
        IpAddr::V6(addr) => !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast()),
    }
}

/// Name of the loopback link.
const LOOPBACK_NAME: &str = "lo";
/// Most addresses of one link.
const MAX_ADDRS: usize = 64;
/// Most links of a stack.
pub(crate) const MAX_LINKS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, mtu: u32, addr: &str) -> LinkConfig {
        LinkConfig { name: name.into(), mtu, addrs: vec![addr.parse().unwrap()] }
    }

    #[test]
    fn a_link_that_could_not_work_is_refused_with_the_field() {
        assert!(sound(&link("in", 1500, "10.0.0.1/24")).is_ok());
        for (bad, field) in [
            (link("", 1500, "10.0.0.1/24"), "name"),
            (link("lo", 1500, "10.0.0.1/24"), "name"),
            (link("a/b", 1500, "10.0.0.1/24"), "name"),
            (link("in", 1279, "10.0.0.1/24"), "mtu"),
            (link("in", 65_536, "10.0.0.1/24"), "mtu"),
            (link("in", 1500, "224.0.0.1/24"), "addrs"),
            (link("in", 1500, "127.0.0.2/8"), "addrs"),
            (link("in", 1500, "::/64"), "addrs"),
        ] {
            assert_eq!(sound(&bad).unwrap_err().field, field);
        }
    }

    #[test]
    fn the_loopback_link_is_always_there() {
        let links = Links::new(vec![link("in", 1500, "10.0.0.1/24")]);
        assert_eq!(links.id("lo"), Some(LinkId::LOOPBACK));
        assert_eq!(links.id("in").map(LinkId::index), Some(1));
        assert_eq!(links.configured().len(), 1);
    }
}
