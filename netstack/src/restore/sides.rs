//! Which side an address is on: the guest's, this host's, or the rest of the world.

use core::net::IpAddr;

use crate::link::{LinkId, Links};
use crate::route::RouteTable;

/// The links, and which of them lead to the guest.
pub(super) struct Sides<'a> {
    links: &'a Links,
    routes: &'a RouteTable,
    inside: Vec<LinkId>,
}

impl<'a> Sides<'a> {
    /// An error is the name of a link that does not exist.
    pub(super) fn new(links: &'a Links, routes: &'a RouteTable, inside: &[String]) -> Result<Self, String> {
        let id = |name: &String| links.id(name).ok_or_else(|| name.clone());
        Ok(Self { links, routes, inside: inside.iter().map(id).collect::<Result<_, _>>()? })
    }

    /// The link of a name.
    pub(super) fn link(&self, name: &str) -> Option<LinkId> {
        self.links.id(name)
    }

    /// The link on which `addr` is talked to from `from`; the loopback link for this host's own addresses.
    pub(super) fn link_to(&self, addr: IpAddr, from: IpAddr) -> Option<LinkId> {
        self.routes.output(self.links, from, addr).map(|hop| hop.link)
    }

    /// Whether whoever is behind a link belongs to the guest, or is this host.
    pub(super) fn is_inside(&self, link: LinkId) -> bool {
        link == LinkId::LOOPBACK || self.inside.contains(&link)
    }

    /// The same for the link of a number.
    pub(super) fn is_inside_at(&self, number: u16) -> bool {
        self.links.at(number).is_some_and(|link| self.is_inside(link))
    }

    /// The same for whoever has an address; one to which no link leads is outside.
    pub(super) fn has_inside(&self, addr: IpAddr, from: IpAddr) -> bool {
        self.link_to(addr, from).is_some_and(|link| self.is_inside(link))
    }
}
