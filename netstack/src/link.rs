//! Links: where datagrams come from and go to.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_snapshot::{Invalid, Snapshot};
use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;
use crate::ethernet::MacAddr;
use crate::offload::LinkOffloads;

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

/// What a link carries.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize, Snapshot)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// IP datagrams: no addresses of a lower layer.
    #[default]
    Ip,
    /// Ethernet frames: neighbours are found by ARP and neighbour discovery.
    Ethernet {
        /// The hardware address of this host on the link: that of one station.
        #[snapshot(saved)]
        mac: MacAddr,
    },
}

impl Medium {
    /// Whether it is IP alone.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
    fn is_ip(&self) -> bool {
        *self == Self::Ip
    }
}

/// A link: what goes in and out on it, and who this host is there.
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
    ///
    /// An Ethernet link without a link-local address of IPv6 gets the one that follows from its hardware address
    /// ([`MacAddr::link_local`]).
    #[snapshot(saved)]
    pub addrs: Vec<Cidr>,
    /// What it carries.
    #[serde(default, skip_serializing_if = "Medium::is_ip")]
    #[snapshot(saved)]
    pub medium: Medium,
}

/// The links of a stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Links {
    /// The loopback link and the configured ones, with the addresses they have by themselves.
    links: Vec<LinkConfig>,
    /// The configured ones as they were given.
    given: Vec<LinkConfig>,
    /// What the devices behind them take. Beyond the end: nothing.
    offloads: Vec<LinkOffloads>,
    /// Those whose bursts are put together.
    coalescing: Vec<LinkId>,
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
            medium: Medium::Ip,
        }];
        links.extend(configured.iter().cloned().map(with_link_local));
        Self { links, given: configured, offloads: Vec::new(), coalescing: Vec::new() }
    }

    pub(crate) fn id(&self, name: &str) -> Option<LinkId> {
        let at = self.links.iter().position(|link| link.name == name)?;
        u16::try_from(at).ok().map(LinkId)
    }

    pub(crate) fn link(&self, id: LinkId) -> Option<&LinkConfig> {
        self.links.get(id.index())
    }

    /// The link of a number.
    pub(crate) fn at(&self, number: u16) -> Option<LinkId> {
        self.links.get(usize::from(number)).map(|_| LinkId(number))
    }

    /// Gives a configured link other addresses; comes back with those it had. `None` for any other link.
    pub(crate) fn readdress(&mut self, id: LinkId, addrs: Vec<Cidr>) -> Option<Vec<Cidr>> {
        let given = self.given.get_mut(id.index().checked_sub(1)?)?;
        given.addrs = addrs;
        let link = self.links.get_mut(id.index())?;
        Some(core::mem::replace(link, with_link_local(given.clone())).addrs)
    }

    pub(crate) fn mtu(&self, id: LinkId) -> usize {
        self.link(id).map_or(0, |link| usize::try_from(link.mtu).unwrap_or(usize::MAX))
    }

    /// What the device behind a link takes. Over the loopback link nothing is lost that could be missing.
    pub(crate) fn offloads(&self, id: LinkId) -> LinkOffloads {
        match id {
            LinkId::LOOPBACK => LinkOffloads::ALL,
            id => self.offloads.get(id.index()).copied().unwrap_or_default(),
        }
    }
    /// Says whether segments of a burst are put together.
    pub(crate) fn set_coalescing(&mut self, id: LinkId, coalesces: bool) {
        self.coalescing.retain(|other| *other != id);
        if coalesces {
            self.coalescing.push(id);
        }
    }

    /// Whether segments of a burst on this link are put together.
    pub(crate) fn coalesces(&self, id: LinkId) -> bool {
        self.coalescing.contains(&id)
    }

    pub(crate) fn set_offloads(&mut self, id: LinkId, offloads: LinkOffloads) {
        if self.offloads.len() < self.links.len() {
            self.offloads.resize(self.links.len(), LinkOffloads::default());
        }
        if let Some(room) = self.offloads.get_mut(id.index()) {
            *room = offloads;
        }
    }

    /// All links with their ids, the loopback link first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (LinkId, &LinkConfig)> {
        self.links.iter().enumerate().filter_map(|(at, link)| Some((LinkId(u16::try_from(at).ok()?), link)))
    }

    /// The configured links, with the addresses they have by themselves.
    pub(crate) fn configured(&self) -> &[LinkConfig] {
        self.links.get(1..).unwrap_or_default()
    }

    /// The links as they were configured.
    pub(crate) fn given(&self) -> &[LinkConfig] {
        &self.given
    }

    /// The smallest MTU among the configured links.
    pub(crate) fn smallest_mtu(&self) -> usize {
        let smallest = self.configured().iter().map(|link| link.mtu).min();
        smallest.map_or(65_535, |mtu| usize::try_from(mtu).unwrap_or(65_535))
    }
}

/// The link with a link-local address, if it is of Ethernet and has none.
fn with_link_local(mut link: LinkConfig) -> LinkConfig {
    let has_one = link.addrs.iter().any(|own| matches!(own.addr(), IpAddr::V6(addr) if addr.is_unicast_link_local()));
    if let Medium::Ethernet { mac } = link.medium
        && !has_one
        && let Ok(cidr) = Cidr::new(mac.link_local().into(), LINK_LOCAL_PREFIX)
    {
        link.addrs.push(cidr);
    }
    link
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
    if let Medium::Ethernet { mac } = link.medium
        && !mac.is_unicast()
    {
        return refuse("medium.mac", mac.to_string(), "the hardware address of one station");
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
/// Length of the prefix of link-local addresses (RFC 4291, section 2.5.6).
const LINK_LOCAL_PREFIX: u8 = 64;
/// Most addresses of one link.
const MAX_ADDRS: usize = 64;
/// Most links of a stack.
pub(crate) const MAX_LINKS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, mtu: u32, addr: &str) -> LinkConfig {
        LinkConfig { name: name.into(), mtu, addrs: vec![addr.parse().unwrap()], medium: Medium::Ip }
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
    fn an_ethernet_link_has_a_link_local_address_of_its_own_unless_it_is_given_one() {
        let mac: MacAddr = "02:00:00:00:00:01".parse().unwrap();
        let ethernet = |addr: &str| LinkConfig { medium: Medium::Ethernet { mac }, ..link("in", 1500, addr) };
        let addrs = |link: LinkConfig| {
            let links = Links::new(vec![link]);
            let text: Vec<String> = links.configured()[0].addrs.iter().map(ToString::to_string).collect();
            assert_eq!(links.given()[0].addrs.len(), 1);
            text
        };
        assert_eq!(addrs(ethernet("10.0.0.1/24")), ["10.0.0.1/24", "fe80::ff:fe00:1/64"]);
        assert_eq!(addrs(ethernet("fe80::1/64")), ["fe80::1/64"]);
        assert_eq!(addrs(link("in", 1500, "10.0.0.1/24")), ["10.0.0.1/24"]);
        let group =
            LinkConfig { medium: Medium::Ethernet { mac: MacAddr::BROADCAST }, ..link("in", 1500, "10.0.0.1/24") };
        assert_eq!(sound(&group).unwrap_err().field, "medium.mac");
    }

    #[test]
    fn json_says_what_a_link_carries_unless_it_is_ip() {
        let read = |text: &str| serde_json::from_str::<LinkConfig>(text).map(|link| link.medium);
        assert_eq!(read(r#"{"name":"a","mtu":1500,"addrs":[]}"#).unwrap(), Medium::Ip);
        let ethernet = r#"{"name":"a","mtu":1500,"addrs":[],"medium":{"ethernet":{"mac":"02:00:00:00:00:01"}}}"#;
        let mac = "02:00:00:00:00:01".parse().unwrap();
        assert_eq!(read(ethernet).unwrap(), Medium::Ethernet { mac });
    }

    #[test]
    fn the_loopback_link_is_always_there() {
        let links = Links::new(vec![link("in", 1500, "10.0.0.1/24")]);
        assert_eq!(links.id("lo"), Some(LinkId::LOOPBACK));
        assert_eq!(links.id("in").map(LinkId::index), Some(1));
        assert_eq!(links.configured().len(), 1);
    }
}
