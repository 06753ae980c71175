//! TCP resets in answer to segments that are refused.

use core::net::IpAddr;

use hibernet_conntrack::{Parsed, proto, udp_lite_coverage};
use smoltcp::wire::{
    Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber, UdpPacket,
};

use crate::packet::Packet;

/// How the sender of a refused packet is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RejectWith {
    /// ICMP port unreachable.
    PortUnreachable,
    /// TCP reset.
    TcpReset,
    /// ICMP communication administratively prohibited.
    AdminProhibited,
}

/// The ends, numbers and flags of a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reset {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    pub(crate) seq: u32,
    pub(crate) ack: Option<u32>,
    /// Type of service, or traffic class.
    pub(crate) tos: u8,
}

impl Reset {
    /// The reset that answers a segment (RFC 9293, section 3.10.7.1); `None` where none may be sent.
    ///
    /// A reset is never answered, nor is a segment whose checksum is wrong.
    pub(crate) fn answering(packet: &Packet) -> Option<Self> {
        let (bytes, parsed) = (packet.bytes(), packet.parsed());
        if parsed.proto != proto::TCP || parsed.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return None;
        }
        let l4 = parsed.l4(bytes);
        let segment = TcpPacket::new_checked(l4).ok()?;
        let holds = || segment.verify_checksum(&parsed.src.into(), &parsed.dst.into());
        if segment.rst() || !(packet.offload().vouches() || holds()) {
            return None;
        }
        let (seq, ack) = if segment.ack() {
            (segment.ack_number().0.cast_unsigned(), None)
        } else {
            let data = l4.len().saturating_sub(usize::from(segment.header_len()));
            let taken = data.saturating_add(usize::from(segment.syn())).saturating_add(usize::from(segment.fin()));
            let next = segment.seq_number().0.cast_unsigned().wrapping_add(u32::try_from(taken).unwrap_or(0));
            (0, Some(next))
        };
        let (sport, dport) = (segment.dst_port(), segment.src_port());
        Some(Self { src: parsed.dst, dst: parsed.src, sport, dport, seq, ack, tos: 0 })
    }

    /// The reset with the type of service of the segment it answers: so a closed port answers, but not a rule.
    pub(crate) fn with_tos_of(mut self, bytes: &[u8]) -> Self {
        self.tos = match bytes {
            [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
            [_, tos, ..] => *tos,
            _ => 0,
        };
        self
    }

    /// The datagram: id 0, don't-fragment, time to live 64, as the kernel sends it. `None` if the families differ.
    pub(crate) fn datagram(&self) -> Option<Vec<u8>> {
        let Self { src, dst, sport, dport, seq, ack, tos } = *self;
        let mut bytes = header(src, dst, IpProtocol::Tcp, TCP_HEADER)?;
        set_tos(&mut bytes, tos);
        let start = bytes.len().saturating_sub(TCP_HEADER);
        let mut segment = TcpPacket::new_unchecked(bytes.get_mut(start..)?);
        segment.set_src_port(sport);
        segment.set_dst_port(dport);
        segment.set_seq_number(TcpSeqNumber(seq.cast_signed()));
        segment.set_ack_number(TcpSeqNumber(ack.unwrap_or(0).cast_signed()));
        segment.set_header_len(20);
        segment.set_rst(true);
        segment.set_ack(ack.is_some());
        segment.fill_checksum(&IpAddress::from(src), &IpAddress::from(dst));
        Some(bytes)
    }
}

/// Whether the transport checksum holds, or the protocol has none that is known here. In IPv6 UDP must have one (RFC 8200,
/// section 8.1).
pub(crate) fn transport_checksum_holds(bytes: &[u8], parsed: &Parsed) -> bool {
    let l4 = parsed.l4(bytes);
    let (src, dst) = (parsed.src.into(), parsed.dst.into());
    match parsed.proto {
        proto::TCP => TcpPacket::new_checked(l4).is_ok_and(|segment| segment.verify_checksum(&src, &dst)),
        proto::UDP if parsed.is_v6() && has_jumbo_length(l4) => {
            l4.get(6..8).is_some_and(|sum| sum != [0, 0]) && adds_up_with_pseudo_header(bytes, parsed, l4)
        }
        proto::UDP => UdpPacket::new_checked(l4).is_ok_and(|datagram| {
            (parsed.src.is_ipv4() || datagram.checksum() != 0) && datagram.verify_checksum(&src, &dst)
        }),
        proto::UDP_LITE => udp_lite_holds(bytes, parsed),
        proto::ICMP => Icmpv4Packet::new_checked(l4).is_ok_and(|message| message.verify_checksum()),
        proto::ICMPV6 => match (parsed.src, parsed.dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                Icmpv6Packet::new_checked(l4).is_ok_and(|message| message.verify_checksum(&src, &dst))
            }
            _ => true,
        },
        _ => true,
    }
}

/// Whether a UDP header says no length: then, in IPv6, all that follows belongs to it (RFC 2675, section 4).
pub(crate) fn has_jumbo_length(l4: &[u8]) -> bool {
    l4.get(4..6) == Some(&[0, 0])
}

/// Whether a packet is sound enough for its sender to be told of a `reject`, as the kernel judges.
///
/// It takes the Internet checksum over the whole payload of any protocol that is not known to have another or none: under
/// the pseudo header in IPv6 and for TCP and UDP, without it for the rest of IPv4. Nothing but zeros passes there, too.
pub(crate) fn may_be_rejected_with_icmp(bytes: &[u8], parsed: &Parsed) -> bool {
    let l4 = parsed.l4(bytes);
    let has_no_checksum = match parsed.proto {
        proto::GRE | ESP | AH | proto::SCTP | proto::UDP_LITE => true,
        proto::UDP => l4.get(6..8) == Some(&[0, 0]),
        _ => false,
    };
    match parsed.src {
        IpAddr::V6(_) if l4.is_empty() => false,
        _ if has_no_checksum => true,
        src if src.is_ipv6() || matches!(parsed.proto, proto::TCP | proto::UDP) => {
            adds_up_with_pseudo_header(bytes, parsed, l4)
        }
        _ => matches!(folded(words(l4)), 0 | 0xffff),
    }
}

/// Whether UDP-Lite's checksum, which there must be, holds over what it covers (RFC 3828, section 3.1).
fn udp_lite_holds(bytes: &[u8], parsed: &Parsed) -> bool {
    let l4 = parsed.l4(bytes);
    let has_checksum = l4.get(6..8).is_some_and(|sum| sum != [0, 0]);
    has_checksum && udp_lite_coverage(l4).is_some_and(|covered| adds_up_with_pseudo_header(bytes, parsed, covered))
}

/// Whether `covered`, which has its checksum in it, adds up with the pseudo header of the whole payload.
fn adds_up_with_pseudo_header(bytes: &[u8], parsed: &Parsed, covered: &[u8]) -> bool {
    // The sum does not depend on the order of its words, so addresses may be taken from where they stand.
    let addresses = if parsed.is_v6() { bytes.get(8..40) } else { bytes.get(12..20) };
    let len = parsed.l4(bytes).len() as u64;
    let parts = [words(addresses.unwrap_or_default()), len, parsed.proto.into(), words(covered)];
    folded(parts.into_iter().fold(0, u64::saturating_add)) == 0xffff
}

/// Sum of the 16-bit words, an odd last byte padded with zero.
fn words(bytes: &[u8]) -> u64 {
    let (pairs, odd) = bytes.as_chunks();
    let last = odd.first().map_or(0, |byte| u64::from(*byte) << 8);
    pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).fold(last, u64::saturating_add)
}

/// The sum in ones' complement arithmetic.
const fn folded(mut sum: u64) -> u64 {
    while sum > 0xffff {
        sum = (sum & 0xffff).saturating_add(sum >> 16);
    }
    sum
}

/// An IP header without options, and room for a payload.
pub(crate) fn header(src: IpAddr, dst: IpAddr, protocol: IpProtocol, payload: usize) -> Option<Vec<u8>> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = payload.saturating_add(V4_HEADER);
            let mut bytes = vec![0; len];
            let mut packet = Ipv4Packet::new_unchecked(bytes.as_mut_slice());
            packet.set_version(4);
            packet.set_header_len(20);
            packet.set_total_len(u16::try_from(len).ok()?);
            packet.set_dont_frag(true);
            packet.set_hop_limit(HOPS);
            packet.set_next_header(protocol);
            packet.set_src_addr(src);
            packet.set_dst_addr(dst);
            packet.fill_checksum();
            Some(bytes)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut bytes = vec![0; payload.saturating_add(V6_HEADER)];
            let mut packet = Ipv6Packet::new_unchecked(bytes.as_mut_slice());
            packet.set_version(6);
            packet.set_payload_len(u16::try_from(payload).ok()?);
            packet.set_hop_limit(HOPS);
            packet.set_next_header(protocol);
            packet.set_src_addr(src);
            packet.set_dst_addr(dst);
            Some(bytes)
        }
        _ => None,
    }
}

/// Sets IPv4's type of service or IPv6's traffic class.
pub(crate) fn set_tos(bytes: &mut [u8], tos: u8) {
    match bytes {
        [first, second, ..] if *first >> 4 == 6 => {
            *first = 0x60 | tos >> 4;
            *second = *second & 0x0f | tos << 4;
        }
        [_, field, ..] => {
            *field = tos;
            Ipv4Packet::new_unchecked(bytes).fill_checksum();
        }
        _ => {}
    }
}

/// Length of an IPv4 header without options.
pub(crate) const V4_HEADER: usize = 20;
/// Length of an IPv6 header without extensions.
pub(crate) const V6_HEADER: usize = 40;
/// Time to live and hop limit of packets made here.
const HOPS: u8 = 64;
const TCP_HEADER: usize = 20;
const ESP: u8 = 50;
const AH: u8 = 51;

#[cfg(test)]
mod tests {
    use hibernet_conntrack::parse;

    use super::*;
    use crate::test_packets::{hex, tcp, unhex};

    fn received(datagram: &[u8]) -> Packet {
        Packet::received(crate::LinkId::LOOPBACK, datagram.to_vec()).unwrap()
    }

    fn answer(segment: &[u8]) -> Option<Vec<u8>> {
        Reset::answering(&received(segment)).and_then(|reset| reset.datagram())
    }

    #[test]
    fn the_reset_of_a_syn_is_the_kernels_byte_for_byte() {
        let syn = unhex("45000028424240004006c44e0a000002c633640a000100190000000a000000005002ffff7b7f0000");
        let expected = "450000280000400040060691c633640a0a00000200190001000000000000000b501400007b6c0000";
        assert_eq!(hex(&answer(&syn).unwrap()), expected);
    }

    #[test]
    fn the_reset_of_a_segment_with_an_acknowledgement_has_its_number() {
        let data = unhex("4500002d424240004006c4490a000002c633640a00020063000003e9000013895018ffff5dad00000001020304");
        let expected = "450000280000400040060691c633640a0a0000020063000200001389000000005004000067b30000";
        assert_eq!(hex(&answer(&data).unwrap()), expected);
    }

    #[test]
    fn the_reset_of_a_closed_port_keeps_the_type_of_service() {
        let mut syn = tcp("10.0.0.2:5", "10.0.0.1:99", "S", 5, 0, b"");
        set_tos(&mut syn, 0x10);
        let reset = Reset::answering(&received(&syn)).unwrap().with_tos_of(&syn);
        let expected = "4510002800004000400626be0a0000010a000002006300050000000000000006501400009b600000";
        assert_eq!(hex(&reset.datagram().unwrap()), expected);
        let mut syn = tcp("[fd00::2]:5", "[fd00::1]:99", "S", 5, 0, b"");
        set_tos(&mut syn, 0x14);
        let reset = Reset::answering(&received(&syn)).unwrap().with_tos_of(&syn);
        assert_eq!(reset.datagram().unwrap()[..2], [0x61, 0x40]);
    }

    /// A datagram of any protocol with ten bytes of payload.
    fn datagram(version: u8, number: u8, payload: [u8; 10]) -> Vec<u8> {
        let mut bytes = match version {
            4 => unhex("4500001e00000000400000000a000002c633640a"),
            _ => unhex("60000000000a0040fd00001000000000000000000000000220010db8000100000000000000000010"),
        };
        bytes[if version == 4 { 9 } else { 6 }] = number;
        bytes.extend(payload);
        crate::test_packets::fill_header_checksum(&mut bytes);
        bytes
    }

    #[test]
    fn a_rejected_payload_must_add_up_unless_its_protocol_has_another_check_or_none() {
        let may = |bytes: Vec<u8>| may_be_rejected_with_icmp(&bytes, &parse(&bytes).unwrap());
        let plain = [1, 2, 3, 4, 5, 6, 7, 8, 0xef, 0xeb];
        for number in [4, 33, 99, 255] {
            assert!(may(datagram(4, number, [0; 10])));
            assert!(may(datagram(4, number, plain)));
            assert!(!may(datagram(4, number, [1; 10])));
            assert!(!may(datagram(6, number, plain)) && !may(datagram(6, number, [0; 10])));
        }
        for number in [proto::GRE, ESP, proto::SCTP, proto::UDP_LITE] {
            assert!(may(datagram(4, number, [1; 10])) && may(datagram(6, number, [1; 10])));
        }
        let echo = crate::test_packets::icmp_echo("fd00::2", "fd00::1", 1, 1);
        assert!(may(echo.clone()));
        let mut damaged = echo;
        *damaged.last_mut().unwrap() ^= 1;
        assert!(!may(damaged));
    }

    #[test]
    fn resets_and_damaged_segments_are_not_answered() {
        for (src, dst) in [("10.0.0.2:1", "10.0.0.1:2"), ("[fd00::2]:1", "[fd00::1]:2")] {
            assert!(answer(&tcp(src, dst, "S", 4, 0, b"")).is_some());
            assert_eq!(answer(&tcp(src, dst, "R", 4, 0, b"")), None);
            let mut damaged = tcp(src, dst, "S", 4, 0, b"abc");
            *damaged.last_mut().unwrap() ^= 1;
            assert_eq!(answer(&damaged), None);
        }
    }
}
