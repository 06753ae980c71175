//! Ethernet II frames: the header comes off here, and goes on here.

use core::net::IpAddr;

use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

use super::mac::MacAddr;
use crate::drop_reason::DropReason;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carries {
    Arp,
    Ipv4,
    Ipv6,
}

/// The header of a frame that is for this station.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHeader {
    /// Whether it was sent to a group rather than to this station alone.
    pub(crate) group: bool,
    pub(crate) carries: Carries,
}

/// Reads the header of a frame that has come to the station `own`. Groups are everybody's: which of them this host belongs
/// to is decided by IP address.
pub(crate) fn read_header(frame: &[u8], own: MacAddr) -> Result<FrameHeader, DropReason> {
    let frame = EthernetFrame::new_checked(frame).map_err(|_| DropReason::FrameMalformed)?;
    let (EthernetAddress(dst), EthernetAddress(src)) = (frame.dst_addr(), frame.src_addr());
    let (dst, src) = (MacAddr::new(dst), MacAddr::new(src));
    if src.is_group() {
        return Err(DropReason::FrameMalformed);
    }
    if !dst.is_group() && dst != own {
        return Err(DropReason::FrameOtherHost);
    }
    let carries = match frame.ethertype() {
        EthernetProtocol::Arp => Carries::Arp,
        EthernetProtocol::Ipv4 => Carries::Ipv4,
        EthernetProtocol::Ipv6 => Carries::Ipv6,
        EthernetProtocol::Unknown(VLAN | SERVICE_VLAN) => return Err(DropReason::FrameVlan),
        EthernetProtocol::Unknown(_) => return Err(DropReason::FrameEthertype),
    };
    Ok(FrameHeader { group: dst.is_group(), carries })
}

/// A frame around a payload.
pub(crate) fn framed(dst: MacAddr, src: MacAddr, carries: Carries, payload: &[u8]) -> Vec<u8> {
    [&header(dst, src, carries), payload].concat()
}

/// What stands in front of a payload.
pub(crate) fn header(dst: MacAddr, src: MacAddr, carries: Carries) -> [u8; HEADER] {
    let ethertype = match carries {
        Carries::Arp => EthernetProtocol::Arp,
        Carries::Ipv4 => EthernetProtocol::Ipv4,
        Carries::Ipv6 => EthernetProtocol::Ipv6,
    };
    let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (dst.octets(), src.octets());
    let [high, low] = u16::from(ethertype).to_be_bytes();
    [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, high, low]
}

/// The hardware address of an IP group (RFC 1112, section 6.4; RFC 2464, section 7); `None` for a single host.
pub(crate) fn group_mac(group: IpAddr) -> Option<MacAddr> {
    match group {
        IpAddr::V4(group) if group.is_multicast() => {
            let [_, b, c, d] = group.octets();
            Some(MacAddr::new([0x01, 0x00, 0x5e, b & 0x7f, c, d]))
        }
        IpAddr::V6(group) if group.is_multicast() => {
            let [.., a, b, c, d] = group.octets();
            Some(MacAddr::new([0x33, 0x33, a, b, c, d]))
        }
        _ => None,
    }
}

/// Length of the header: two addresses and what the frame carries.
pub(crate) const HEADER: usize = 14;
/// A tag of IEEE 802.1Q.
const VLAN: u16 = 0x8100;
/// A service tag of IEEE 802.1ad.
const SERVICE_VLAN: u16 = 0x88a8;

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);

    #[test]
    fn a_frame_that_is_built_is_read_back() {
        for carries in [Carries::Arp, Carries::Ipv4, Carries::Ipv6] {
            let frame = framed(OWN, OTHER, carries, b"payload");
            assert_eq!(read_header(&frame, OWN), Ok(FrameHeader { group: false, carries }));
            assert_eq!(&frame[HEADER..], b"payload");
            let frame = framed(MacAddr::BROADCAST, OTHER, carries, b"");
            assert_eq!(read_header(&frame, OWN), Ok(FrameHeader { group: true, carries }));
        }
    }

    #[test]
    fn each_kind_of_frame_that_is_not_ours_has_its_reason() {
        let of_type = |ethertype: u16| {
            let mut frame = framed(OWN, OTHER, Carries::Arp, b"");
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            frame
        };
        for (frame, reason) in [
            (vec![0; 13], DropReason::FrameMalformed),
            (framed(OWN, MacAddr::BROADCAST, Carries::Arp, b""), DropReason::FrameMalformed),
            (framed(OTHER, OTHER, Carries::Ipv4, b""), DropReason::FrameOtherHost),
            (of_type(0x8100), DropReason::FrameVlan),
            (of_type(0x88a8), DropReason::FrameVlan),
            (of_type(0x0026), DropReason::FrameEthertype),
            (of_type(0x88cc), DropReason::FrameEthertype),
        ] {
            assert_eq!(read_header(&frame, OWN), Err(reason));
        }
    }

    #[test]
    fn groups_have_the_hardware_addresses_of_the_rfcs() {
        for (group, mac) in [
            ("224.0.0.1", Some("01:00:5e:00:00:01")),
            ("239.255.1.2", Some("01:00:5e:7f:01:02")),
            ("ff02::1:ff00:1", Some("33:33:ff:00:00:01")),
            ("10.0.0.1", None),
            ("fd00::1", None),
        ] {
            assert_eq!(group_mac(group.parse().unwrap()), mac.map(|mac| mac.parse().unwrap()));
        }
    }
}
