//! Packets of this host, and the way out that all packets share.

use hibernet_snapshot::Instant;

use super::Ended;
use super::forward::exceeds;
use crate::drop_reason::DropReason;
use crate::fragments::{Refragmented, refragment};
use crate::hook::Hook;
use crate::link::LinkId;
use crate::offload::Offload;
use crate::packet::Packet;
use crate::route::NextHop;
use crate::stack::{Egress, LocalSendError, Stack, Work};
use crate::stats::count;

impl Stack {
    /// Sends a datagram as a local raw sender would. What the kernel would report to it is in the error.
    pub fn local_output(&mut self, datagram: Vec<u8>, now: Instant) -> Result<(), LocalSendError> {
        self.tell(now);
        self.expire_fragments(now);
        let outcome = self.originate(datagram, now);
        self.settle(now);
        outcome
    }

    /// OUTPUT and POSTROUTING for a datagram made here, at once, so that its sender learns of a drop.
    pub(crate) fn originate(&mut self, datagram: Vec<u8>, now: Instant) -> Result<(), LocalSendError> {
        self.originate_on(datagram, None, now)
    }

    /// The same for a segment whose checksum, and cutting, are left to its link.
    pub(crate) fn originate_leaving(
        &mut self,
        datagram: Vec<u8>,
        offload: Offload,
        now: Instant,
    ) -> Result<(), LocalSendError> {
        let len = datagram.len();
        let packet = Packet::originated(datagram).and_then(|mut packet| {
            packet.leave_to_link(offload)?;
            Ok(packet)
        });
        let packet = packet.map_err(|reason| {
            self.drop_unread(reason, None, len);
            LocalSendError::from(reason)
        })?;
        count(&mut self.stats.originated);
        match self.send(packet, now) {
            Ok(()) | Err(None) => Ok(()),
            Err(Some(reason)) => Err(reason.into()),
        }
    }

    /// The same for a datagram that leaves by a way of its sender's choice, if it has one.
    pub(crate) fn originate_on(
        &mut self,
        datagram: Vec<u8>,
        hop: Option<NextHop>,
        now: Instant,
    ) -> Result<(), LocalSendError> {
        let len = datagram.len();
        let mut packet = Packet::originated(datagram).map_err(|reason| {
            self.drop_unread(reason, None, len);
            LocalSendError::from(reason)
        })?;
        count(&mut self.stats.originated);
        if let Some(hop) = hop {
            packet.leave_by(hop);
        }
        match self.send(packet, now) {
            Ok(()) | Err(None) => Ok(()),
            Err(Some(reason)) => Err(reason.into()),
        }
    }

    /// A packet made here: to its link by its destination, if that is not settled, and again where OUTPUT has changed the
    /// destination.
    pub(crate) fn send(&mut self, mut packet: Packet, now: Instant) -> Result<(), Ended> {
        if packet.oif.is_none() {
            self.find_way_out(&mut packet)?;
        }
        let dst = packet.dst();
        let mut packet = self.run_hook(Hook::Output, packet, now)?;
        if packet.dst() != dst {
            self.find_way_out(&mut packet)?;
        }
        self.leave(packet, now)
    }

    /// POSTROUTING, then the link.
    pub(super) fn leave(&mut self, packet: Packet, now: Instant) -> Result<(), Ended> {
        let packet = self.run_hook(Hook::Postrouting, packet, now)?;
        self.transmit(packet, now)
    }

    fn find_way_out(&mut self, packet: &mut Packet) -> Result<(), Ended> {
        let hop = match &self.sink {
            Some(sink) => self.way_out_of(sink, packet.dst()),
            None => self.routes.output(&self.links, packet.src(), packet.dst()),
        };
        match hop {
            Some(hop) => {
                packet.leave_by(hop);
                Ok(())
            }
            None => {
                self.drop_packet(DropReason::NoRoute, packet);
                Err(Some(DropReason::NoRoute))
            }
        }
    }

    pub(crate) fn transmit(&mut self, mut packet: Packet, now: Instant) -> Result<(), Ended> {
        let link = packet.oif.unwrap_or(LinkId::LOOPBACK);
        if link == LinkId::LOOPBACK {
            packet.iif = Some(LinkId::LOOPBACK);
            packet.oif = None;
            self.work.push_back(Work::Loopback(packet));
            return Ok(());
        }
        let limit = self.links.mtu(link);
        // Those that may not be cut were refused before they were routed on; one that a local sender brings here all the
        // same is dropped. IPv6 leaves it to the sender to cut, and here is the sender.
        let forbidden = exceeds(&packet, limit) && !(packet.local && packet.src().is_ipv6());
        let offload = packet.offload();
        if !forbidden && offload != Offload::NONE {
            let (fits, takes) = (packet.longest_segment() <= limit, self.links.offloads(link));
            if fits && takes.take(offload) {
                return self.queue_egress(link, packet, now);
            }
            if fits
                && let Some(front) = self.link_header(link, &packet, now)
                && let Some(frames) = packet.framed_segments(takes.checksum, &front)
            {
                return self.queue_frames(link, &packet, frames);
            }
            if let Some(segments) = packet.segments(fits && takes.checksum) {
                return self.transmit_segments(&packet, segments, now);
            }
            packet.complete_checksum();
        }
        let refragmented = if forbidden {
            Refragmented::TooBig
        } else {
            refragment(packet.bytes(), packet.parsed(), packet.reassembled.as_ref(), limit, || self.next_ip_id())
        };
        match refragmented {
            Refragmented::Whole => self.queue_egress(link, packet, now),
            Refragmented::Pieces(pieces) => self.queue_pieces(link, &packet, pieces, now),
            Refragmented::TooBig => {
                self.drop_packet(DropReason::PacketTooBig, &packet);
                Err(Some(DropReason::PacketTooBig))
            }
        }
    }

    /// Queues the segments of a packet in its place: all, or none if there is no room for all.
    fn queue_frames(&mut self, link: LinkId, packet: &Packet, frames: Vec<(Vec<u8>, Offload)>) -> Result<(), Ended> {
        if self.egress.len().saturating_add(frames.len()) > self.queues.egress {
            self.drop_packet(DropReason::EgressFull, packet);
            return Err(Some(DropReason::EgressFull));
        }
        self.stats.sent = self.stats.sent.saturating_add(frames.len() as u64);
        self.egress.extend(frames.into_iter().map(|(datagram, offload)| Egress { link, datagram, offload }));
        Ok(())
    }

    /// Sends the segments of a packet in its place: all, or none if there is no room for all.
    fn transmit_segments(
        &mut self,
        packet: &Packet,
        segments: Result<Vec<Packet>, DropReason>,
        now: Instant,
    ) -> Result<(), Ended> {
        let room = self.queues.egress.saturating_sub(self.egress.len());
        let segments = segments.and_then(|all| if all.len() > room { Err(DropReason::EgressFull) } else { Ok(all) });
        match segments {
            Ok(segments) => segments.into_iter().try_for_each(|segment| self.transmit(segment, now)),
            Err(reason) => {
                self.drop_packet(reason, packet);
                Err(Some(reason))
            }
        }
    }

    fn queue_pieces(&mut self, link: LinkId, packet: &Packet, pieces: Vec<Vec<u8>>, now: Instant) -> Result<(), Ended> {
        if self.egress.len().saturating_add(pieces.len()) > self.queues.egress {
            self.drop_packet(DropReason::EgressFull, packet);
            return Err(Some(DropReason::EgressFull));
        }
        let mac = self.ethernet_mac(link);
        for datagram in pieces {
            match mac {
                None => {
                    count(&mut self.stats.sent);
                    self.egress.push_back(Egress { link, datagram, offload: Offload::NONE });
                }
                Some(mac) => match packet.piece(datagram, Offload::NONE) {
                    Ok(piece) => self.send_framed(link, mac, piece, now)?,
                    Err(reason) => {
                        self.drop_packet(reason, packet);
                        return Err(Some(reason));
                    }
                },
            }
        }
        Ok(())
    }

    fn queue_egress(&mut self, link: LinkId, packet: Packet, now: Instant) -> Result<(), Ended> {
        if let Some(mac) = self.ethernet_mac(link) {
            return self.send_framed(link, mac, packet, now);
        }
        if self.egress.len() >= self.queues.egress {
            self.drop_packet(DropReason::EgressFull, &packet);
            return Err(Some(DropReason::EgressFull));
        }
        count(&mut self.stats.sent);
        let offload = packet.offload();
        self.egress.push_back(Egress { link, datagram: packet.into_bytes(), offload });
        Ok(())
    }
}
