//! ICMP and ICMPv6 errors this host sends: which may be sent, and their bytes.

use core::net::IpAddr;

use hibernet_conntrack::{Parsed, proto};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol, Ipv4Packet};

use crate::link::Links;
use crate::reject::{V4_HEADER, V6_HEADER, header, set_tos};
use crate::route::is_broadcast;

/// What a sender is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IcmpError {
    /// No route: network unreachable, or in IPv6 no route to destination.
    NoRoute,
    /// IPv6: the source means nothing on the link that leads to the destination.
    Scope,
    /// The time to live or hop limit ran out on the way.
    TimeExceeded,
    /// The rest of a fragmented datagram did not come in time.
    Reassembly,
    /// Larger than the next link takes.
    TooBig {
        /// What it takes.
        mtu: u32,
    },
    /// The next hop does not tell its hardware address.
    Host,
    /// Nobody listens at the port, or a rule refuses.
    Port,
    /// A rule forbids it, and says so.
    Prohibited,
    /// Nothing here speaks the protocol.
    Protocol,
}

/// Whether an error about a packet may be sent at all (RFC 1122, section 3.2.2; RFC 4443, section 2.4 e).
///
/// Not about an error, a later fragment, a packet to a group or broadcast address (but too-big in IPv6 is for groups too),
/// or one whose source does not name a single host.
pub(crate) fn may_answer(bytes: &[u8], parsed: &Parsed, links: &Links, error: IcmpError) -> bool {
    let Parsed { src, dst, .. } = *parsed;
    let unreachable_source = src.is_loopback() && !dst.is_loopback();
    let source_is_many = src.is_unspecified() || src.is_multicast() || is_broadcast(links, src);
    let to_many = (dst.is_multicast() || is_broadcast(links, dst))
        && !(dst.is_ipv6() && matches!(error, IcmpError::TooBig { .. }));
    let later_fragment = parsed.fragment.is_some_and(|fragment| fragment.offset > 0);
    !source_is_many && !unreachable_source && !to_many && !later_fragment && !is_error(bytes, parsed)
}

/// The datagram that tells the sender of `bytes`, from `source`. `id` is IPv4's identification.
///
/// As the kernel does: IPv4 quotes as much as fits in 576 bytes and has a type of service of internetwork control; IPv6
/// quotes as much as fits in 1280.
pub(crate) fn error(bytes: &[u8], parsed: &Parsed, error: IcmpError, source: IpAddr, id: u16) -> Option<Vec<u8>> {
    match (source, parsed.src) {
        (IpAddr::V4(_), IpAddr::V4(_)) => error_v4(bytes, parsed, error, source, id),
        (IpAddr::V6(_), IpAddr::V6(_)) => error_v6(bytes, parsed, error, source),
        _ => None,
    }
}

fn error_v4(bytes: &[u8], parsed: &Parsed, error: IcmpError, source: IpAddr, id: u16) -> Option<Vec<u8>> {
    let (kind, code, rest) = match error {
        IcmpError::NoRoute | IcmpError::Scope => (3, 0, 0),
        IcmpError::TimeExceeded => (11, 0, 0),
        IcmpError::Reassembly => (11, 1, 0),
        IcmpError::TooBig { mtu } => (3, 4, mtu.min(0xffff)),
        IcmpError::Host => (3, 1, 0),
        IcmpError::Port => (3, 3, 0),
        IcmpError::Prohibited => (3, 13, 0),
        IcmpError::Protocol => (3, 2, 0),
    };
    let quote = bytes.get(..bytes.len().min(V4_QUOTE))?;
    let mut datagram = header(source, parsed.src, IpProtocol::Icmp, quote.len().saturating_add(ICMP_HEADER))?;
    let tos = bytes.get(1).copied().unwrap_or(0) & TOS_KEPT | INTERNETWORK_CONTROL;
    set_tos(&mut datagram, tos);
    let mut ip = Ipv4Packet::new_unchecked(datagram.as_mut_slice());
    ip.set_ident(id);
    ip.set_dont_frag(false);
    ip.fill_checksum();
    let message = datagram.get_mut(V4_HEADER..)?;
    fill(message, kind, code, rest, quote)?;
    Icmpv4Packet::new_unchecked(message).fill_checksum();
    Some(datagram)
}

fn error_v6(bytes: &[u8], parsed: &Parsed, error: IcmpError, source: IpAddr) -> Option<Vec<u8>> {
    let (kind, code, rest) = match error {
        IcmpError::NoRoute => (1, 0, 0),
        IcmpError::Scope => (1, 2, 0),
        IcmpError::TimeExceeded => (3, 0, 0),
        IcmpError::Reassembly => (3, 1, 0),
        IcmpError::TooBig { mtu } => (2, 0, mtu),
        IcmpError::Host => (1, 3, 0),
        IcmpError::Port => (1, 4, 0),
        IcmpError::Prohibited => (1, 1, 0),
        IcmpError::Protocol => (4, 1, next_header_at(bytes, parsed.header_len)),
    };
    let quote = bytes.get(..bytes.len().min(V6_QUOTE))?;
    let mut datagram = header(source, parsed.src, IpProtocol::Icmpv6, quote.len().saturating_add(ICMP_HEADER))?;
    let message = datagram.get_mut(V6_HEADER..)?;
    fill(message, kind, code, rest, quote)?;
    if let (IpAddr::V6(source), IpAddr::V6(dst)) = (source, parsed.src) {
        Icmpv6Packet::new_unchecked(message).fill_checksum(&source, &dst);
    }
    Some(datagram)
}

fn fill(message: &mut [u8], kind: u8, code: u8, rest: u32, quote: &[u8]) -> Option<()> {
    message.get_mut(..2)?.copy_from_slice(&[kind, code]);
    message.get_mut(4..8)?.copy_from_slice(&rest.to_be_bytes());
    message.get_mut(ICMP_HEADER..)?.copy_from_slice(quote);
    Some(())
}

/// Whether the packet is itself an error, or ICMP that is neither query nor answer: no error is sent about either. In
/// ICMPv6 all that is no error may have one, a redirect, too: there the kernel looks at the informational bit alone.
fn is_error(bytes: &[u8], parsed: &Parsed) -> bool {
    let kind = parsed.l4(bytes).first().copied();
    match parsed.proto {
        proto::ICMP => kind.is_none_or(|kind| !matches!(kind, 0 | 8 | 13..=18)),
        proto::ICMPV6 => kind.is_none_or(|kind| kind < 128),
        _ => false,
    }
}

/// Where the byte stands that names the transport protocol of an IPv6 packet.
fn next_header_at(bytes: &[u8], transport_at: usize) -> u32 {
    let (mut named_at, mut at) = (6_usize, V6_HEADER);
    while at < transport_at {
        let kind = bytes.get(named_at).copied().unwrap_or(0);
        let units = usize::from(bytes.get(at.saturating_add(1)).copied().unwrap_or(0));
        let len = match kind {
            44 => 8,
            51 => units.saturating_add(2).saturating_mul(4),
            _ => units.saturating_add(1).saturating_mul(8),
        };
        named_at = at;
        at = at.saturating_add(len);
    }
    u32::try_from(named_at).unwrap_or(0)
}

/// Most that an IPv4 error quotes: the error fits in 576 bytes (RFC 1812, section 4.3.2.3).
const V4_QUOTE: usize = 576 - V4_HEADER - ICMP_HEADER;
/// Most that an IPv6 error quotes: the error fits in the least MTU (RFC 4443, section 2.4 c).
const V6_QUOTE: usize = 1280 - V6_HEADER - ICMP_HEADER;
const ICMP_HEADER: usize = 8;
/// Precedence 6 (RFC 1812, section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;
/// The bits of the offending packet's type of service that its error keeps.
const TOS_KEPT: u8 = 0x1e;

#[cfg(test)]
mod tests {
    use hibernet_conntrack::parse;

    use super::*;
    use crate::test_packets::{hex, icmp_echo, udp, unhex};

    fn answer(bytes: &[u8], kind: IcmpError, source: &str, id: u16) -> Vec<u8> {
        error(bytes, &parse(bytes).unwrap(), kind, source.parse().unwrap(), id).unwrap()
    }

    #[test]
    fn a_time_exceeded_is_the_kernels_byte_for_byte() {
        let probe = unhex("4500002642420000011143460a000002c633640a03e8829a001230ef00010203040506070809");
        let expected = "45c00042081a000040015ddf0a0000010a0000020b0029630000000045000026424200000111\
                        43460a000002c633640a03e8829a001230ef00010203040506070809";
        assert_eq!(hex(&answer(&probe, IcmpError::TimeExceeded, "10.0.0.1", 0x081a)), expected);
    }

    #[test]
    fn a_quote_is_cut_where_the_kernel_cuts_it() {
        let long = udp("10.0.0.2:1", "198.51.100.10:25", &[0; 900]);
        assert_eq!(answer(&long, IcmpError::NoRoute, "10.0.0.1", 1).len(), 576);
        let long = udp("[fd00:10::2]:1", "[2001:db8:99::1]:25", &[0; 1400]);
        assert_eq!(answer(&long, IcmpError::TooBig { mtu: 1280 }, "fd00:10::1", 0).len(), 1280);
    }

    #[test]
    fn an_unknown_protocol_in_ipv6_is_pointed_at() {
        let packet = unhex(concat!(
            "60000000000ac840fd000010000000000000000000000002fd000010000000000000000000000001",
            "00010203040506070809"
        ));
        let told = answer(&packet, IcmpError::Protocol, "fd00:10::1", 0);
        assert_eq!(told[40..48], [4, 1, told[42], told[43], 0, 0, 0, 6]);
    }

    #[test]
    fn errors_about_errors_groups_and_fragments_are_not_sent() {
        let links = Links::new(Vec::new());
        let may = |bytes: &[u8]| may_answer(bytes, &parse(bytes).unwrap(), &links, IcmpError::Port);
        let datagram = udp("10.0.0.2:1", "198.51.100.10:25", b"x");
        assert!(may(&datagram));
        assert!(may(&icmp_echo("10.0.0.2", "10.0.0.1", 1, 1)));
        assert!(!may(&answer(&datagram, IcmpError::Port, "10.0.0.1", 1)));
        assert!(!may(&udp("10.0.0.2:1", "224.0.0.1:25", b"x")));
        assert!(!may(&udp("10.0.0.2:1", "255.255.255.255:25", b"x")));
        assert!(!may(&udp("0.0.0.0:1", "198.51.100.10:25", b"x")));
        for (kind, answered) in [(10, false), (13, true), (19, false)] {
            let mut message = icmp_echo("10.0.0.2", "10.0.0.1", 1, 1);
            message[20] = kind;
            assert_eq!(may(&message), answered, "ICMP type {kind}");
        }
        let mut fragment = datagram;
        fragment[7] = 1;
        crate::test_packets::fill_header_checksum(&mut fragment);
        assert!(!may(&fragment));
    }
}
