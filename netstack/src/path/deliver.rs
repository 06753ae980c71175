//! To this host: INPUT, then the local stack.

use core::net::IpAddr;

use hibernet_conntrack::proto;
use hibernet_snapshot::Instant;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{TcpPacket, TcpRepr, UdpPacket};

use crate::drop_reason::DropReason;
use crate::ethernet::is_about_neighbours;
use crate::hook::Hook;
use crate::icmp::{IcmpError, timestamp_reply};
use crate::local::Segment;
use crate::packet::Packet;
use crate::reject::{Reset, transport_checksum_holds};
use crate::stack::Stack;
use crate::stats::count;

impl Stack {
    /// Hands a packet to the local stack. `group`: its destination is a broadcast or multicast address.
    pub(super) fn deliver(&mut self, packet: Packet, group: bool, now: Instant) {
        let Ok(packet) = self.run_hook(Hook::Input, packet, now) else { return };
        count(&mut self.stats.delivered);
        let l4 = packet.parsed().l4(packet.bytes());
        if !transport_checksum_holds(packet.bytes(), packet.parsed()) {
            return self.drop_packet(DropReason::LocalMalformed, &packet);
        }
        match packet.parsed().proto {
            proto::UDP => match UdpPacket::new_checked(l4) {
                Ok(datagram) => {
                    let port = datagram.dst_port();
                    self.deliver_udp(packet, port, group, now);
                }
                _ => self.drop_packet(DropReason::LocalMalformed, &packet),
            },
            proto::TCP if group || packet.link_group => self.drop_packet(DropReason::NoListener, &packet),
            proto::TCP => match TcpPacket::new_checked(l4) {
                Ok(tcp) => {
                    let segment = Segment {
                        local: (packet.dst(), tcp.dst_port()).into(),
                        remote: (packet.src(), tcp.src_port()).into(),
                        opening: tcp.syn() && !tcp.ack() && !tcp.rst(),
                        acknowledges: tcp.ack(),
                        readable: is_readable(&tcp, &packet),
                    };
                    self.deliver_tcp(packet, segment, now);
                }
                _ => self.drop_packet(DropReason::LocalMalformed, &packet),
            },
            proto::ICMP if packet.dst().is_ipv4() => self.deliver_icmp(packet, group, now),
            proto::ICMPV6 if packet.dst().is_ipv6() => self.deliver_icmp(packet, group, now),
            // A kernel takes part in these; as long as there is no group, what it would do shows nowhere.
            IGMP if packet.dst().is_ipv4() => self.drop_packet(DropReason::NoListener, &packet),
            PIM => self.drop_packet(DropReason::NoListener, &packet),
            _ if group => self.drop_packet(DropReason::NoListener, &packet),
            _ if !packet.parsed().has_l4 => self.drop_packet(DropReason::LocalMalformed, &packet),
            _ => {
                self.drop_packet(DropReason::ProtocolUnreachable, &packet);
                self.answer_icmp(IcmpError::Protocol, &packet);
            }
        }
    }

    fn deliver_udp(&mut self, packet: Packet, port: u16, group: bool, now: Instant) {
        let Some(socket) = self.local.udp_socket(packet.dst(), port, group) else {
            if group {
                return self.drop_packet(DropReason::NoListener, &packet);
            }
            self.drop_packet(DropReason::PortUnreachable, &packet);
            return self.answer_icmp(IcmpError::Port, &packet);
        };
        if !self.local.udp_has_room(socket, packet.len()) {
            return self.drop_packet(DropReason::SocketBufferFull, &packet);
        }
        let answer_from = if group { self.routes.source_for(&self.links, packet.src()) } else { Some(packet.dst()) };
        self.local.feed_datagram(plain(&packet, packet.dst()), now);
        if let Some(answer_from) = answer_from {
            self.local.echo_udp(socket, answer_from, now);
        }
    }

    fn deliver_tcp(&mut self, packet: Packet, segment: Segment, now: Instant) {
        match self.local.feed_segment(segment, plain(&packet, packet.dst()), now) {
            Ok(()) => {}
            Err(reason) => {
                self.drop_packet(reason, &packet);
                if reason == DropReason::NoConnection {
                    self.refuse_segment(&packet, now);
                }
            }
        }
    }

    /// The reset of a closed port. Unlike the one a rule asks for it is tracked like any packet of this host.
    fn refuse_segment(&mut self, packet: &Packet, now: Instant) {
        let reset = Reset::answering(packet.bytes(), packet.parsed());
        let reset = reset.and_then(|reset| reset.with_tos_of(packet.bytes()).datagram());
        match reset {
            Some(datagram) => {
                count(&mut self.stats.errors_sent);
                // Its sender is this host; the drop of a reset is counted.
                let _outcome = self.originate(datagram, now);
            }
            None => count(&mut self.stats.errors_suppressed),
        }
    }

    /// Echo and timestamp requests are answered; errors and answers have nobody here who waits for them.
    ///
    /// Neighbour discovery is for the link, if it is one that has neighbours.
    fn deliver_icmp(&mut self, packet: Packet, group: bool, now: Instant) {
        if is_about_neighbours(&packet) {
            if let Some(link) = packet.iif {
                self.hear_ndp(link, &packet, now);
            }
            return;
        }
        let id = u16::try_from(self.next_ip_id() & 0xffff).unwrap_or(0);
        if !group && let Some(reply) = timestamp_reply(packet.bytes(), packet.parsed(), packet.dst(), id) {
            // Its sender is this host; the drop of an answer is counted.
            let _outcome = self.originate(reply, now);
            return;
        }
        let request = match packet.parsed().proto {
            proto::ICMP => ECHO_REQUEST,
            _ => ECHO_REQUEST_V6,
        };
        if packet.parsed().l4(packet.bytes()).first() != Some(&request) {
            return;
        }
        if group && packet.dst().is_ipv4() {
            return self.drop_packet(DropReason::EchoBroadcast, &packet);
        }
        let answer_from = if group { self.routes.source_for(&self.links, packet.src()) } else { Some(packet.dst()) };
        if let Some(answer_from) = answer_from {
            self.local.feed_datagram(plain(&packet, answer_from), now);
        }
    }
}

/// Whether ports, flags and options are such that a socket can read them: smoltcp would drop the segment in silence.
fn is_readable(segment: &TcpPacket<&[u8]>, packet: &Packet) -> bool {
    let verified = ChecksumCapabilities::ignored();
    TcpRepr::parse(segment, &packet.src().into(), &packet.dst().into(), &verified).is_ok()
}

/// The datagram without IPv6 extension headers and with another destination: what the sockets below need to see.
fn plain(packet: &Packet, dst: IpAddr) -> Vec<u8> {
    let l4 = packet.parsed().l4(packet.bytes());
    let protocol = packet.parsed().proto.into();
    let mut bytes = crate::reject::header(packet.src(), dst, protocol, l4.len()).unwrap_or_default();
    if let Some(room) = bytes.len().checked_sub(l4.len()).and_then(|at| bytes.get_mut(at..)) {
        room.copy_from_slice(l4);
    }
    bytes
}

/// Protocol number of group membership (RFC 2236).
const IGMP: u8 = 2;
/// Protocol number of multicast routing (RFC 7761).
const PIM: u8 = 103;
/// Type of an echo request (RFC 792).
const ECHO_REQUEST: u8 = 8;
/// Type of an echo request of ICMPv6 (RFC 4443).
const ECHO_REQUEST_V6: u8 = 128;
