//! The stack on an Ethernet link: takes frames, asks and answers for addresses, sends frames.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_conntrack::proto;
use hibernet_snapshot::Instant;

use super::arp::Arp;
use super::frame::{Carries, HEADER, framed, group_mac, header, read_header};
use super::mac::MacAddr;
use super::ndp::{self, Ndp};
use super::neighbours::{Deed, NeighbourState, News, Overrides};
use super::saved::can_be_a_neighbour;
use crate::drop_reason::DropReason;
use crate::icmp::IcmpError;
use crate::link::{LinkId, Medium};
use crate::offload::Offload;
use crate::packet::Packet;
use crate::path::Ended;
use crate::route::{Decision, NextHop, is_own};
use crate::stack::{Egress, Stack, Work};
use crate::stats::count;

/// A neighbour on an Ethernet link, as [`Stack::neighbours`] lists it. Prints as `ip neigh` does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NeighbourEntry {
    /// Its address.
    pub addr: IpAddr,
    /// Name of the link it is on.
    pub link: String,
    /// Its hardware address, once known.
    pub mac: Option<MacAddr>,
    /// How sure that is.
    pub state: NeighbourState,
}

impl fmt::Display for NeighbourEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addr, link, mac, state } = self;
        match mac {
            Some(mac) => write!(f, "{addr} dev {link} lladdr {mac} {state}"),
            None => write!(f, "{addr} dev {link} {state}"),
        }
    }
}

/// Whether a packet is a message of neighbour discovery.
pub(crate) fn is_about_neighbours(packet: &Packet) -> bool {
    let kind = || packet.parsed().l4(packet.bytes()).first().copied();
    packet.parsed().proto == proto::ICMPV6 && packet.dst().is_ipv6() && kind().is_some_and(ndp::is_ndp)
}

impl Stack {
    /// The neighbours on Ethernet links, with their states at `now`, in order of link and address.
    pub fn neighbours(&self, now: Instant) -> Vec<NeighbourEntry> {
        let entry = |(link, addr, mac, state)| {
            let link = self.links.link(link).map_or_else(String::new, |link| link.name.clone());
            NeighbourEntry { addr, link, mac, state }
        };
        self.neighbours.list(now).map(entry).collect()
    }

    /// Reads the header of a frame that has come to the station `own`. The frame comes back if it carries a datagram, with
    /// where that begins and whether it was sent to a group; all else ends here.
    pub(crate) fn accept_frame(
        &mut self,
        link: LinkId,
        own: MacAddr,
        frame: Vec<u8>,
        now: Instant,
    ) -> Option<(Vec<u8>, usize, bool)> {
        let header = match read_header(&frame, own) {
            Ok(header) => header,
            Err(reason) => {
                self.drop_unread(reason, Some(link), frame.len());
                return None;
            }
        };
        let payload = frame.get(HEADER..).unwrap_or_default();
        let version = match header.carries {
            Carries::Arp => {
                self.hear_arp(link, own, payload, header.group, now);
                return None;
            }
            Carries::Ipv4 => 4,
            Carries::Ipv6 => 6,
        };
        if payload.first().is_some_and(|first| first >> 4 != version) {
            self.drop_unread(DropReason::NotIp, Some(link), payload.len());
            return None;
        }
        Some((frame, HEADER, header.group))
    }

    /// Sends a datagram to its next hop on an Ethernet link, or lets it wait until the hop's hardware address is known.
    pub(crate) fn send_framed(
        &mut self,
        link: LinkId,
        own: MacAddr,
        mut packet: Packet,
        now: Instant,
    ) -> Result<(), Ended> {
        // Groups are on the link itself, whatever router the route names.
        let to_many = packet.dst().is_multicast() || packet.dst() == IpAddr::V4(Ipv4Addr::BROADCAST);
        let hop = packet.via.filter(|_| !to_many).unwrap_or(packet.dst());
        if let Some(mac) = self.mac_of_many(link, hop) {
            return self.queue_frame(link, own, mac, packet);
        }
        if !can_be_a_neighbour(hop) || packet.src().is_multicast() {
            self.drop_packet(DropReason::Martian, &packet);
            return Err(Some(DropReason::Martian));
        }
        if let Some(mac) = self.neighbours.known(link, hop, is_about_neighbours(&packet), now) {
            return self.queue_frame(link, own, mac, packet);
        }
        // What waits may be saved, and leave on another link of that name: it must be as on the wire.
        let waiting = match packet.segments(false) {
            Some(Ok(segments)) => segments,
            Some(Err(reason)) => {
                self.drop_packet(reason, &packet);
                return Err(Some(reason));
            }
            None => {
                packet.complete_checksum();
                vec![packet]
            }
        };
        for packet in waiting {
            let deeds = self.neighbours.wait_for(link, hop, packet, now);
            self.do_all(deeds);
        }
        Ok(())
    }

    /// What stands in front of a packet on that link, if it is known: nothing, or an Ethernet header.
    pub(crate) fn link_header(&mut self, link: LinkId, packet: &Packet, now: Instant) -> Option<Vec<u8>> {
        let Some(own) = self.ethernet_mac(link) else { return Some(Vec::new()) };
        let hop = packet.via.unwrap_or(packet.dst());
        if packet.dst().is_multicast() || packet.src().is_multicast() || !can_be_a_neighbour(hop) {
            return None;
        }
        let to = self.neighbours.known(link, hop, is_about_neighbours(packet), now)?;
        let carries = if packet.dst().is_ipv4() { Carries::Ipv4 } else { Carries::Ipv6 };
        Some(header(to, own, carries).to_vec())
    }

    /// What the neighbour table has due: doubts, questions, packets whose next hop does not answer.
    pub(crate) fn attend_neighbours(&mut self, now: Instant) {
        if self.neighbours.next_deadline().is_some_and(|at| at <= now) {
            let deeds = self.neighbours.due(now);
            self.do_all(deeds);
        }
    }

    /// Takes a message of neighbour discovery that has passed INPUT.
    pub(crate) fn hear_ndp(&mut self, link: LinkId, packet: &Packet, now: Instant) {
        let (Some(own), IpAddr::V6(src)) = (self.ethernet_mac(link), packet.src()) else { return };
        match ndp::parse(packet) {
            Err(_) => self.drop_packet(DropReason::NdpInvalid, packet),
            Ok(None) => {}
            Ok(Some(Ndp::Solicitation { target, source_mac })) => {
                if let Some(anycast) = self.holds(link, target) {
                    self.answer_solicitation(link, own, src, target, source_mac, anycast, now);
                }
            }
            Ok(Some(Ndp::Advertisement { target, solicited, overrides, target_mac })) => {
                if !is_own(&self.links, target.into()) {
                    let overrides = if overrides { Overrides::Always } else { Overrides::Never };
                    let news = News { mac: target_mac, confirms: solicited, overrides, creates: false };
                    let deeds = self.neighbours.heard(link, target.into(), news, now);
                    self.do_all(deeds);
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    fn answer_solicitation(
        &mut self,
        link: LinkId,
        own: MacAddr,
        src: Ipv6Addr,
        target: Ipv6Addr,
        source_mac: Option<MacAddr>,
        anycast: bool,
        now: Instant,
    ) {
        // Who asks from no address looks for duplicates: all are told (RFC 4861, section 7.2.4).
        let (dst, solicited) = if src.is_unspecified() { (ndp::ALL_NODES, false) } else { (src, true) };
        if solicited && is_own(&self.links, src.into()) {
            return;
        }
        if solicited {
            let news = News { mac: source_mac, confirms: false, overrides: Overrides::Always, creates: true };
            let deeds = self.neighbours.heard(link, src.into(), news, now);
            self.do_all(deeds);
        }
        let answer = ndp::advertisement(own, dst, target, solicited, !anycast);
        self.send_ndp(link, answer);
    }

    /// An ARP packet: answered if it asks for an address of this host, and noted.
    fn hear_arp(&mut self, link: LinkId, own: MacAddr, payload: &[u8], group: bool, now: Instant) {
        let Some(arp) = Arp::parse(payload) else {
            return self.drop_unread(DropReason::ArpInvalid, Some(link), payload.len());
        };
        let (sender, target) = (IpAddr::V4(arp.sender), IpAddr::V4(arp.target));
        // A probe for an address somebody wants to take (RFC 5227): there is no sender to take note of.
        if arp.sender.is_unspecified() {
            if !arp.reply && is_own(&self.links, target) {
                self.send_arp(link, own, arp.sender_mac, &arp.answered_by(own));
            }
            return;
        }
        let asks_us = !arp.reply && self.routes.input(&self.links, link, sender, target) == Decision::Local;
        let news = News {
            mac: Some(arp.sender_mac),
            confirms: !asks_us && arp.reply && !group && !arp.is_gratuitous(),
            overrides: if asks_us || arp.is_gratuitous() { Overrides::Always } else { Overrides::UnlessLocked },
            creates: asks_us,
        };
        let deeds = self.neighbours.heard(link, sender, news, now);
        self.do_all(deeds);
        if asks_us {
            self.send_arp(link, own, arp.sender_mac, &arp.answered_by(own));
        }
    }

    fn do_all(&mut self, deeds: Vec<Deed>) {
        for deed in deeds {
            match deed {
                Deed::Solicit { link, target, known, source } => self.solicit(link, target, known, source),
                Deed::Send { link, mac, packet } => {
                    if let Some(own) = self.ethernet_mac(link) {
                        // Its sender was told that it is sent; the drop of one that finds no room is counted.
                        let _outcome = self.queue_frame(link, own, mac, packet);
                    }
                }
                Deed::GiveUp(packet) => {
                    self.drop_packet(DropReason::NeighbourUnreachable, &packet);
                    self.answer_icmp(IcmpError::Host, &packet);
                }
                Deed::Drop(reason, packet) => self.drop_packet(reason, &packet),
            }
        }
    }

    /// Asks for the hardware address of `target`: in the name of `source`, if that is an address of the link, so that the
    /// answer finds the neighbour with it (RFC 4861, section 7.2.2).
    fn solicit(&mut self, link: LinkId, target: IpAddr, known: Option<MacAddr>, source: Option<IpAddr>) {
        let Some(own) = self.ethernet_mac(link) else { return };
        let source = source.filter(|source| self.has_address(link, *source));
        match target {
            IpAddr::V4(target) => {
                let source = source.or_else(|| self.address_towards(link, target)).unwrap_or(target.into());
                let sender = if let IpAddr::V4(sender) = source { sender } else { Ipv4Addr::UNSPECIFIED };
                let request = Arp::request(own, if sender == target { Ipv4Addr::UNSPECIFIED } else { sender }, target);
                self.send_arp(link, own, known.unwrap_or(MacAddr::BROADCAST), &request);
            }
            IpAddr::V6(target) => {
                let source = source.or_else(|| self.link_local(link));
                let Some(IpAddr::V6(source)) = source else { return };
                let dst = if known.is_some() { target } else { ndp::solicited_node(target) };
                self.send_ndp(link, ndp::solicitation(own, source, dst, target));
            }
        }
    }

    fn send_arp(&mut self, link: LinkId, own: MacAddr, to: MacAddr, arp: &Arp) {
        let frame = framed(to, own, Carries::Arp, &arp.bytes());
        if self.egress.len() >= self.queues.egress {
            return self.drop_unread(DropReason::EgressFull, None, frame.len());
        }
        self.egress.push_back(Egress { link, datagram: frame, offload: Offload::NONE });
    }

    /// Queues a message of neighbour discovery for OUTPUT and the link it is for.
    fn send_ndp(&mut self, link: LinkId, datagram: Option<Vec<u8>>) {
        if let Some(mut packet) = datagram.and_then(|bytes| Packet::originated(bytes).ok()) {
            packet.leave_by(NextHop { link, via: None });
            count(&mut self.stats.originated);
            self.work.push_back(Work::Output(packet));
        }
    }

    fn queue_frame(&mut self, link: LinkId, own: MacAddr, to: MacAddr, packet: Packet) -> Result<(), Ended> {
        if self.egress.len() >= self.queues.egress {
            self.drop_packet(DropReason::EgressFull, &packet);
            return Err(Some(DropReason::EgressFull));
        }
        let carries = if packet.dst().is_ipv4() { Carries::Ipv4 } else { Carries::Ipv6 };
        count(&mut self.stats.sent);
        let header = header(to, own, carries);
        let offload = packet.offload().shifted(header.len());
        self.egress.push_back(Egress { link, datagram: packet.into_frame(&header), offload });
        Ok(())
    }

    /// The hardware address of this host on an Ethernet link.
    pub(crate) fn ethernet_mac(&self, link: LinkId) -> Option<MacAddr> {
        match self.links.link(link)?.medium {
            Medium::Ethernet { mac } => Some(mac),
            Medium::Ip => None,
        }
    }

    /// The hardware address of a group, or of everybody for a broadcast address of the link.
    fn mac_of_many(&self, link: LinkId, hop: IpAddr) -> Option<MacAddr> {
        let IpAddr::V4(addr) = hop else { return group_mac(hop) };
        let networks = self.links.link(link).map_or(&[][..], |link| link.addrs.as_slice());
        if addr.is_broadcast() || networks.iter().any(|network| network.broadcast() == Some(addr)) {
            return Some(MacAddr::BROADCAST);
        }
        group_mac(hop)
    }

    /// Whether a link has this address: as its own, or, if the answer is true, as a router's anycast address.
    fn holds(&self, link: LinkId, addr: Ipv6Addr) -> Option<bool> {
        if self.has_address(link, addr.into()) {
            return Some(false);
        }
        let networks = &self.links.link(link)?.addrs;
        networks.iter().any(|network| network.router_anycast() == Some(addr)).then_some(true)
    }

    fn has_address(&self, link: LinkId, addr: IpAddr) -> bool {
        self.links.link(link).is_some_and(|link| link.addrs.iter().any(|own| own.addr() == addr))
    }

    /// The address to ask for `target` from: of the link's the one whose network holds it, then the first, then any.
    fn address_towards(&self, link: LinkId, target: Ipv4Addr) -> Option<IpAddr> {
        let own = &self.links.link(link)?.addrs;
        let v4 = |cidr: &&crate::Cidr| cidr.addr().is_ipv4();
        let of_link = own.iter().filter(v4).find(|cidr| cidr.contains(target.into())).or_else(|| own.iter().find(v4));
        let any = || self.links.configured().iter().flat_map(|link| &link.addrs).find(v4);
        of_link.or_else(any).map(|cidr| cidr.addr())
    }

    fn link_local(&self, link: LinkId) -> Option<IpAddr> {
        let own = &self.links.link(link)?.addrs;
        let local = |addr: IpAddr| matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local());
        own.iter().map(|cidr| cidr.addr()).find(|addr| local(*addr))
    }
}
