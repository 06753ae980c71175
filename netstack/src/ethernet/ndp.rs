//! Neighbour solicitations and advertisements of IPv6 (RFC 4861).

use core::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{
    EthernetAddress, Icmpv6Message, Icmpv6Packet, IpProtocol, NdiscNeighborFlags, NdiscOption, NdiscOptionType,
    NdiscRepr, RawHardwareAddress,
};

use super::mac::MacAddr;
use crate::packet::Packet;
use crate::reject::{V6_HEADER, header};

/// A message about who has an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ndp {
    /// Asks for the hardware address of `target`.
    Solicitation {
        target: Ipv6Addr,
        /// The asker's own hardware address.
        source_mac: Option<MacAddr>,
    },
    /// Tells the hardware address of `target`.
    Advertisement {
        target: Ipv6Addr,
        /// It answers a question.
        solicited: bool,
        /// It is to replace what is known.
        overrides: bool,
        target_mac: Option<MacAddr>,
    },
}

/// Whether an ICMPv6 type is one of neighbour discovery: router and neighbour solicitation and advertisement, redirect.
pub(crate) const fn is_ndp(kind: u8) -> bool {
    matches!(kind, 133..=137)
}

/// Reads a message of neighbour discovery, checksum already verified. `Ok(None)` for router solicitations, advertisements
/// and redirects: a router that advertises nothing has no use for them. The error is for what a receiver must discard (RFC
/// 4861, sections 7.1.1 and 7.1.2; RFC 6980 for fragments).
pub(crate) fn parse(packet: &Packet) -> Result<Option<Ndp>, InvalidNdp> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src(), packet.dst()) else { return Err(InvalidNdp) };
    let message = packet.parsed().l4(packet.bytes());
    if packet.parsed().ttl != HOP_LIMIT || packet.reassembled.is_some() || packet.parsed().fragment.is_some() {
        return Err(InvalidNdp);
    }
    let kind = message.first().copied().map(Icmpv6Message::from);
    if !matches!(kind, Some(Icmpv6Message::NeighborSolicit | Icmpv6Message::NeighborAdvert)) {
        return Ok(None);
    }
    // The fixed part is there for the accessors that follow.
    let (Some(_), Some(options)) = (message.get(..OPTIONS_AT), message.get(OPTIONS_AT..)) else {
        return Err(InvalidNdp);
    };
    let icmp = Icmpv6Packet::new_checked(message).map_err(|_| InvalidNdp)?;
    let target = icmp.target_addr();
    if icmp.msg_code() != 0 || target.is_multicast() || target.is_unspecified() || target.is_loopback() {
        return Err(InvalidNdp);
    }
    let [source_mac, target_mac] = link_layer_addresses(options)?;
    if kind == Some(Icmpv6Message::NeighborSolicit) {
        // Who asks from no address looks for duplicates of it: at the group of the address, and without a hardware address.
        if src.is_unspecified() && (!is_solicited_node(dst) || source_mac.is_some()) {
            return Err(InvalidNdp);
        }
        return Ok(Some(Ndp::Solicitation { target, source_mac }));
    }
    let flags = icmp.neighbor_flags();
    let (solicited, overrides) =
        (flags.contains(NdiscNeighborFlags::SOLICITED), flags.contains(NdiscNeighborFlags::OVERRIDE));
    if dst.is_multicast() && solicited {
        return Err(InvalidNdp);
    }
    Ok(Some(Ndp::Advertisement { target, solicited, overrides, target_mac }))
}

/// A message that a receiver must discard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct InvalidNdp;

/// The source's and the target's hardware address, of the options that follow the fixed part. Options of other types are
/// passed over; one without a length, or that runs past the message, makes the whole message invalid.
fn link_layer_addresses(mut options: &[u8]) -> Result<[Option<MacAddr>; 2], InvalidNdp> {
    let mut found = [None; 2];
    while let [kind, units, ..] = options {
        let len = usize::from(*units).saturating_mul(OPTION_UNIT);
        let (Some(option), Some(rest)) = (options.get(..len).filter(|_| len > 0), options.get(len..)) else {
            return Err(InvalidNdp);
        };
        options = rest;
        let place = match NdiscOptionType::from(*kind) {
            NdiscOptionType::SourceLinkLayerAddr => 0,
            NdiscOptionType::TargetLinkLayerAddr => 1,
            _ => continue,
        };
        let option = NdiscOption::new_checked(option).map_err(|_| InvalidNdp)?;
        let octets = option.link_layer_addr().as_bytes().first_chunk::<6>().copied();
        let mac = octets.map(MacAddr::new).filter(|mac| len == OPTION_UNIT && mac.is_unicast()).ok_or(InvalidNdp)?;
        // The first of a kind counts.
        if let Some(slot @ None) = found.get_mut(place) {
            *slot = Some(mac);
        }
    }
    if options.is_empty() { Ok(found) } else { Err(InvalidNdp) }
}

/// A datagram that asks for `target`: at the group of the address, or at the hardware address that is known (`dst` is then
/// the target itself).
pub(crate) fn solicitation(own: MacAddr, src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr) -> Option<Vec<u8>> {
    datagram(src, dst, NdiscRepr::NeighborSolicit { target_addr: target, lladdr: Some(raw(own)) })
}

/// A datagram that answers for `target`, as a router.
pub(crate) fn advertisement(
    own: MacAddr,
    dst: Ipv6Addr,
    target: Ipv6Addr,
    solicited: bool,
    overrides: bool,
) -> Option<Vec<u8>> {
    let mut flags = NdiscNeighborFlags::ROUTER;
    flags.set(NdiscNeighborFlags::SOLICITED, solicited);
    flags.set(NdiscNeighborFlags::OVERRIDE, overrides);
    datagram(target, dst, NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr: Some(raw(own)) })
}

/// The group that the holder of an address belongs to (RFC 4291, section 2.7.1).
pub(crate) const fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(SOLICITED_NODE | (addr.to_bits() & 0x00ff_ffff))
}

fn is_solicited_node(addr: Ipv6Addr) -> bool {
    addr.to_bits() & !0x00ff_ffff == SOLICITED_NODE
}

fn datagram(src: Ipv6Addr, dst: Ipv6Addr, repr: NdiscRepr<'_>) -> Option<Vec<u8>> {
    let mut bytes = header(src.into(), dst.into(), IpProtocol::Icmpv6, repr.buffer_len())?;
    *bytes.get_mut(HOP_LIMIT_AT)? = HOP_LIMIT;
    let mut icmp = Icmpv6Packet::new_unchecked(bytes.get_mut(V6_HEADER..)?);
    repr.emit(&mut icmp);
    icmp.fill_checksum(&src, &dst);
    Some(bytes)
}

fn raw(mac: MacAddr) -> RawHardwareAddress {
    EthernetAddress(mac.octets()).into()
}

/// What all these messages are sent with: a router on the way would have made it less (RFC 4861, section 7.1).
const HOP_LIMIT: u8 = 255;
const HOP_LIMIT_AT: usize = 7;
/// Type, code, checksum, flags, target.
const OPTIONS_AT: usize = 24;
/// Options are as many times eight bytes long as they say.
const OPTION_UNIT: usize = 8;
/// ff02::1:ff00:0/104.
const SOLICITED_NODE: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
/// All nodes of a link (RFC 4291, section 2.7.1).
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinkId;

    const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn read(bytes: Vec<u8>) -> Result<Option<Ndp>, InvalidNdp> {
        parse(&Packet::received(LinkId::LOOPBACK, bytes).unwrap())
    }

    fn question() -> Vec<u8> {
        solicitation(OWN, ip("fe80::2"), solicited_node(ip("fd00::1")), ip("fd00::1")).unwrap()
    }

    #[test]
    fn a_question_and_an_answer_are_read_as_they_were_written() {
        let target = ip("fd00::1");
        assert_eq!(read(question()), Ok(Some(Ndp::Solicitation { target, source_mac: Some(OWN) })));
        for (dst, solicited, overrides) in [("fe80::2", true, true), ("ff02::1", false, true), ("fe80::2", true, false)]
        {
            let answer = advertisement(OWN, ip(dst), target, solicited, overrides).unwrap();
            let expected = Ndp::Advertisement { target, solicited, overrides, target_mac: Some(OWN) };
            assert_eq!(read(answer), Ok(Some(expected)));
        }
        assert_eq!(solicited_node(ip("fd00::12:3456")), ip("ff02::1:ff12:3456"));
    }

    #[test]
    fn a_message_that_breaks_a_rule_of_the_rfc_is_invalid() {
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = question();
            change(&mut bytes);
            read(bytes)
        };
        assert!(changed(&|bytes| bytes[64] = 77).is_ok(), "an unknown option is passed over");
        for (what, change) in [
            ("hop limit", &(|bytes: &mut Vec<u8>| bytes[7] = 254) as &dyn Fn(&mut Vec<u8>)),
            ("code", &|bytes| bytes[41] = 1),
            ("target is a group", &|bytes| bytes[48] = 0xff),
            ("option without length", &|bytes| bytes[65] = 0),
            ("option past the end", &|bytes| bytes[65] = 2),
            ("hardware address of a group", &|bytes| bytes[66] = 0x33),
            ("question from nobody with a hardware address", &|bytes| bytes[8..24].fill(0)),
            ("cut in the target", &|bytes| {
                bytes.truncate(60);
                bytes[5] = 20;
            }),
            ("half an option", &|bytes| {
                bytes.truncate(65);
                bytes[5] = 25;
            }),
        ] {
            assert_eq!(changed(change), Err(InvalidNdp), "{what}");
        }
        let to_all = advertisement(OWN, ip("ff02::1"), ip("fd00::1"), true, true).unwrap();
        assert_eq!(read(to_all), Err(InvalidNdp), "an answer to a question nobody asked");
    }

    #[test]
    fn a_search_for_duplicates_is_read_where_it_goes_to_the_group_of_the_address() {
        let search = |dst: &str| {
            let repr = NdiscRepr::NeighborSolicit { target_addr: ip("fd00::1"), lladdr: None };
            read(datagram(Ipv6Addr::UNSPECIFIED, ip(dst), repr).unwrap())
        };
        let expected = Ndp::Solicitation { target: ip("fd00::1"), source_mac: None };
        assert_eq!(search("ff02::1:ff00:1"), Ok(Some(expected)));
        assert_eq!(search("ff02::1"), Err(InvalidNdp));
    }

    #[test]
    fn messages_of_routers_are_passed_over() {
        for kind in [133, 134, 137] {
            let mut bytes = question();
            bytes[40] = kind;
            assert!(is_ndp(kind));
            assert_eq!(read(bytes), Ok(None));
        }
        assert!(!is_ndp(132) && !is_ndp(138));
    }
}
