//! From a link to the routing decision.

use hibernet_snapshot::Instant;

use crate::drop_reason::DropReason;
use crate::hook::Hook;
use crate::icmp::IcmpError;
use crate::link::{LinkId, Medium};
use crate::packet::Packet;
use crate::path::burst::Waiting;
use crate::route::Decision;
use crate::stack::Stack;

impl Stack {
    /// What a link hands over: stripped of what is the link's, checked, then on its way.
    pub(super) fn accept_from_link(&mut self, link: LinkId, waiting: Waiting, now: Instant) {
        let Waiting { frame, offload, read, ahead, .. } = waiting;
        let medium = self.links.link(link).filter(|_| link != LinkId::LOOPBACK).map(|link| link.medium);
        let (frame, at, link_group) = match medium {
            Some(Medium::Ip) => (frame, 0, false),
            Some(Medium::Ethernet { mac }) => match self.accept_frame(link, mac, frame, now) {
                Some(carried) => carried,
                None => return,
            },
            None => return self.drop_unread(DropReason::NoSuchLink, Some(link), frame.len()),
        };
        let len = frame.len().saturating_sub(at);
        let read = read.filter(|(start, _)| *start == at).map(|(_, parsed)| parsed);
        let mut packet = Packet::received_in(link, frame, at, offload, read);
        if let Ok(packet) = &mut packet {
            packet.link_group = link_group;
            packet.ahead = ahead;
        }
        match packet {
            // No hook of the kernel sees these: IPv6 input drops them.
            Ok(packet) if packet.parsed().is_confined_to_loopback() => {
                self.drop_packet(DropReason::Martian, &packet);
            }
            Ok(packet) => self.receive(packet, now),
            Err(reason) => self.drop_unread(reason, Some(link), len),
        }
    }

    /// PREROUTING, then where the packet's destination says.
    pub(crate) fn receive(&mut self, packet: Packet, now: Instant) {
        let Ok(mut packet) = self.run_hook(Hook::Prerouting, packet, now) else { return };
        if self.sink.is_some() {
            return self.hand_out(packet, now);
        }
        let iif = packet.iif.unwrap_or(LinkId::LOOPBACK);
        let decision = self.routes.input(&self.links, iif, packet.src(), packet.dst());
        packet.tproxy &= matches!(decision, Decision::Forward(_) | Decision::Unroutable | Decision::Local);
        match decision {
            _ if packet.tproxy => self.deliver(packet, false, now),
            Decision::Local => self.deliver(packet, false, now),
            Decision::LocalGroup => self.deliver(packet, true, now),
            Decision::Forward(hop) => self.forward(packet, hop, now),
            Decision::Unroutable => {
                self.drop_packet(DropReason::NoRoute, &packet);
                self.answer_icmp(IcmpError::NoRoute, &packet);
            }
            Decision::Drop(reason) => self.drop_packet(reason, &packet),
        }
    }
}
