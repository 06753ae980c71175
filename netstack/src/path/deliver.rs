//! To this host: INPUT, then the local stack.

use hibernet_conntrack::{Attachment, proto};
use hibernet_snapshot::Instant;

use crate::drop_reason::DropReason;
use crate::ethernet::is_about_neighbours;
use crate::hook::Hook;
use crate::icmp::IcmpError;
use crate::local::{Asked, Ends, Fed};
use crate::packet::Packet;
use crate::ping::{is_echo_request, reply};
use crate::reject::{Reset, V4_HEADER, V6_HEADER, transport_checksum_holds};
use crate::route::{WayBack, is_anycast};
use crate::stack::Stack;
use crate::stats::count;

impl Stack {
    /// Hands a packet to the local stack. `group`: its destination is a broadcast or multicast address.
    pub(super) fn deliver(&mut self, packet: Packet, group: bool, now: Instant) {
        let Ok(packet) = self.run_hook(Hook::Input, packet, now) else { return };
        count(&mut self.stats.delivered);
        let is_verified = packet.checked || packet.offload().vouches();
        if !is_verified && !transport_checksum_holds(packet.bytes(), packet.parsed()) {
            return self.drop_packet(DropReason::LocalMalformed, &packet);
        }
        match packet.parsed().proto {
            _ if packet.tproxy && packet.link_group => self.drop_packet(DropReason::NoListener, &packet),
            proto::UDP => self.deliver_udp(packet, group, now),
            proto::TCP if group || packet.link_group => self.drop_packet(DropReason::NoListener, &packet),
            proto::TCP => self.deliver_tcp(packet, now),
            proto::ICMP if packet.dst().is_ipv4() => self.deliver_icmp(packet, group, now),
            proto::ICMPV6 if packet.dst().is_ipv6() => self.deliver_icmp(packet, group, now),
            // A kernel takes part in these; as long as there is no group, what it would do shows nowhere.
            IGMP if packet.dst().is_ipv4() => self.drop_packet(DropReason::NoListener, &packet),
            PIM => self.drop_packet(DropReason::NoListener, &packet),
            _ if group => self.drop_packet(DropReason::NoListener, &packet),
            _ if !packet.parsed().has_l4 => self.drop_packet(DropReason::LocalMalformed, &packet),
            // The protocol is known, but nobody can listen.
            proto::UDP_LITE => self.refuse_datagram(packet),
            _ => {
                self.drop_packet(DropReason::ProtocolUnreachable, &packet);
                self.answer_icmp(IcmpError::Protocol, &packet);
            }
        }
    }

    fn deliver_udp(&mut self, packet: Packet, group: bool, now: Instant) {
        // Each segment of UDP is a datagram of its own.
        match packet.segments(false) {
            Some(Ok(datagrams)) => return datagrams.into_iter().for_each(|one| self.deliver_udp(one, group, now)),
            Some(Err(reason)) => return self.drop_packet(reason, &packet),
            None => {}
        }
        let fed = if packet.tproxy { self.hold_datagram(&packet) } else { self.feed_udp(&packet, group, now) };
        match fed {
            Ok(()) => {}
            Err(DropReason::PortUnreachable) => self.refuse_datagram(packet),
            Err(reason) => self.drop_packet(reason, &packet),
        }
    }

    /// The answer of a closed port. Unlike those on the way it is tracked like any packet of this host: in a zone of its own
    /// the datagram's flow is not found by it.
    fn refuse_datagram(&mut self, mut packet: Packet) {
        self.drop_packet(DropReason::PortUnreachable, &packet);
        packet.attachment = Attachment::default();
        self.answer_icmp(IcmpError::Port, &packet);
    }

    fn deliver_tcp(&mut self, mut packet: Packet, now: Instant) {
        let Some([s1, s0, d1, d0]) = packet.parsed().l4(packet.bytes()).first_chunk() else {
            return self.drop_packet(DropReason::LocalMalformed, &packet);
        };
        let local = (packet.dst(), u16::from_be_bytes([*d1, *d0])).into();
        let remote = (packet.src(), u16::from_be_bytes([*s1, *s0])).into();
        let ends = Ends { local, remote };
        if packet.tproxy {
            match self.local.asks_for(ends, &packet) {
                Asked::Known => {}
                Asked::Opening(floor) => return self.hold_opening(ends, packet, floor),
                Asked::Nothing => return self.refuse_proxied(ends, &packet, now),
            }
        }
        let fed = match is_plain(&packet) {
            true => self.local.feed_segment(ends, packet.parts_mut().0, now),
            false => self.local.feed_segment(ends, &mut plain(&packet), now),
        };
        match fed {
            Ok(Fed::Connection) => {}
            Ok(Fed::Cookie) => count(&mut self.stats.cookies_accepted),
            Err(reason) => {
                self.drop_packet(reason, &packet);
                if reason == DropReason::NoConnection {
                    self.refuse_segment(&packet, now);
                }
            }
        }
    }

    /// The reset of a closed port. Unlike the one a rule asks for it is tracked like any packet of this host.
    pub(crate) fn refuse_segment(&mut self, packet: &Packet, now: Instant) {
        let reset = Reset::answering(packet);
        let reset = reset.and_then(|reset| reset.with_tos_of(packet.bytes()).datagram());
        match reset {
            Some(datagram) => {
                let hop = match self.routes.way_back(packet.iif, packet.src(), false) {
                    WayBack::Routed => None,
                    WayBack::On(hop) => Some(hop),
                    WayBack::Nowhere => return count(&mut self.stats.errors_suppressed),
                };
                count(&mut self.stats.errors_sent);
                // Its sender is this host; the drop of a reset is counted.
                let _outcome = self.originate_on(datagram, hop, now);
            }
            None => count(&mut self.stats.errors_suppressed),
        }
    }

    /// Echo and timestamp requests are answered; errors and echo replies go to the sockets that wait for them.
    ///
    /// Neighbour discovery is for the link, if it is one that has neighbours.
    fn deliver_icmp(&mut self, packet: Packet, group: bool, now: Instant) {
        if is_about_neighbours(&packet) {
            if let Some(link) = packet.iif {
                self.hear_ndp(link, &packet, now);
            }
            return;
        }
        if packet.tproxy {
            if let Err(reason) = self.hold_echo(&packet) {
                self.drop_packet(reason, &packet);
            }
            return;
        }
        match (packet.parsed().proto, packet.parsed().l4(packet.bytes()).first()) {
            (proto::ICMP, Some(&ECHO_REPLY)) | (proto::ICMPV6, Some(&ECHO_REPLY_V6)) if !group => {
                if let Err(reason) = self.local.feed_echo_reply(&packet) {
                    self.drop_packet(reason, &packet);
                }
                return;
            }
            _ if !group => self.local.heed_icmp_error(&packet, now),
            _ => {}
        }
        let is_echo = is_echo_request(packet.bytes(), packet.parsed());
        if group && packet.dst().is_ipv4() {
            if is_echo {
                self.drop_packet(DropReason::EchoBroadcast, &packet);
            }
            return;
        }
        // Of a packet to a group or to anybody the asker does not know who answers: the answer comes from its link.
        let to_any = group || is_anycast(&self.links, packet.dst());
        let hop = match self.routes.way_back(packet.iif, packet.src(), to_any) {
            WayBack::Routed => None,
            WayBack::On(hop) => Some(hop),
            WayBack::Nowhere => return count(&mut self.stats.errors_suppressed),
        };
        let source = match to_any {
            true => self.routes.error_source(&self.links, packet.iif, packet.src()),
            false => Some(packet.dst()),
        };
        let Some(source) = source else { return };
        let id = u16::try_from(self.next_ip_id() & 0xffff).unwrap_or(0);
        if let Some(answer) = reply(packet.bytes(), packet.parsed(), source, id) {
            // Its sender is this host; the drop of an answer is counted.
            let _outcome = self.originate_on(answer, hop, now);
        }
    }
}

/// Whether the IP header has neither options nor extensions.
fn is_plain(packet: &Packet) -> bool {
    packet.parsed().header_len == if packet.parsed().is_v6() { V6_HEADER } else { V4_HEADER }
}

/// The datagram without IPv6 extension headers: what the sockets below need to see.
pub(crate) fn plain(packet: &Packet) -> Vec<u8> {
    let l4 = packet.parsed().l4(packet.bytes());
    let protocol = packet.parsed().proto.into();
    let mut bytes = crate::reject::header(packet.src(), packet.dst(), protocol, l4.len()).unwrap_or_default();
    if let Some(room) = bytes.len().checked_sub(l4.len()).and_then(|at| bytes.get_mut(at..)) {
        room.copy_from_slice(l4);
    }
    bytes
}

/// Protocol number of group membership (RFC 2236).
const IGMP: u8 = 2;
/// Protocol number of multicast routing (RFC 7761).
const PIM: u8 = 103;
/// Type of an echo reply (RFC 792).
const ECHO_REPLY: u8 = 0;
/// Type of an echo reply of ICMPv6 (RFC 4443).
const ECHO_REPLY_V6: u8 = 129;
