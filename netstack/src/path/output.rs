//! Packets of this host, and the way out that all packets share.

use hibernet_snapshot::Instant;

use super::Ended;
use super::forward::exceeds;
use crate::drop_reason::DropReason;
use crate::fragments::{Refragmented, refragment};
use crate::hook::Hook;
use crate::link::LinkId;
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
                    self.egress.push_back(Egress { link, datagram });
                }
                Some(mac) => match packet.piece(datagram) {
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
        self.egress.push_back(Egress { link, datagram: packet.into_bytes() });
        Ok(())
    }
}
