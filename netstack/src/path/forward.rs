//! On to the next link.

use core::net::IpAddr;

use hibernet_snapshot::Instant;

use crate::drop_reason::DropReason;
use crate::hook::Hook;
use crate::icmp::IcmpError;
use crate::packet::Packet;
use crate::route::{NextHop, is_link_local};
use crate::stack::Stack;
use crate::stats::count;

impl Stack {
    /// Sends a packet that came in on its way. In the kernel's order: time to live, scope, size, FORWARD.
    pub(super) fn forward(&mut self, mut packet: Packet, hop: NextHop, now: Instant) {
        if packet.link_group {
            return self.drop_packet(DropReason::NotForwardable, &packet);
        }
        if packet.parsed().ttl <= 1 {
            self.drop_packet(DropReason::TimeToLive, &packet);
            self.answer_icmp(IcmpError::TimeExceeded, &packet);
            return;
        }
        if is_link_local(packet.src()) && packet.iif != Some(hop.link) {
            self.drop_packet(DropReason::Scope, &packet);
            self.answer_icmp(IcmpError::Scope, &packet);
            return;
        }
        let mtu = self.links.mtu(hop.link);
        if exceeds(&packet, mtu) {
            self.drop_packet(DropReason::PacketTooBig, &packet);
            self.answer_icmp(IcmpError::TooBig { mtu: u32::try_from(mtu).unwrap_or(u32::MAX) }, &packet);
            return;
        }
        packet.age();
        packet.leave_by(hop);
        let Ok(packet) = self.run_hook(Hook::Forward, packet, now) else { return };
        count(&mut self.stats.forwarded);
        // The sender of a forwarded packet is told by ICMP or not at all.
        let _outcome = self.leave(packet, now);
    }
}

/// Whether a packet is larger than a link takes and may not be cut.
///
/// One that came in fragments leaves in fragments of those sizes, so the largest of them counts. So does of a super-packet
/// the longest segment.
pub(super) fn exceeds(packet: &Packet, mtu: usize) -> bool {
    match (&packet.reassembled, packet.src()) {
        (Some(fragments), IpAddr::V4(_)) => fragments.dont_fragment && fragments.largest > mtu,
        (Some(fragments), IpAddr::V6(_)) => fragments.largest > mtu,
        (None, IpAddr::V4(_)) => packet.parsed().dont_fragment && packet.longest_segment() > mtu,
        (None, IpAddr::V6(_)) => packet.longest_segment() > mtu,
    }
}
