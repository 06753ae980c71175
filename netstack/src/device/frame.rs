//! What a device puts in front of a datagram, and the checksums it leaves to its hardware.

use core::net::IpAddr;

use hibernet_conntrack::proto;
use smoltcp::phy::{ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use super::HookedError;

/// How a device frames datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Framing {
    ethernet: bool,
    /// Largest datagram.
    pub(super) mtu: usize,
}

/// What stands in front of one datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FrameHeader {
    /// Nothing.
    Bare,
    /// Destination, source and type of an Ethernet frame.
    Ethernet { destination: [u8; 6], source: [u8; 6], kind: u16 },
}

impl Framing {
    pub(super) fn of(capabilities: &DeviceCapabilities) -> Result<Self, HookedError> {
        // Not a match: other crates can switch on more media.
        let header = if capabilities.medium == Medium::Ip {
            0
        } else if capabilities.medium == Medium::Ethernet {
            ETHERNET_HEADER
        } else {
            return Err(HookedError::Medium { found: format!("{:?}", capabilities.medium) });
        };
        let mtu = capabilities.max_transmission_unit.saturating_sub(header).min(LARGEST);
        Ok(Self { ethernet: header != 0, mtu })
    }

    /// The header of a frame; `None` if the frame carries nothing that anybody here reads.
    pub(super) fn header(self, frame: &[u8]) -> Option<FrameHeader> {
        if !self.ethernet {
            return Some(FrameHeader::Bare);
        }
        let header: &[u8; ETHERNET_HEADER] = frame.first_chunk()?;
        let (destination, rest) = header.split_first_chunk::<6>()?;
        let (source, kind) = rest.split_first_chunk::<6>()?;
        let kind = u16::from_be_bytes(*kind.first_chunk()?);
        let known = matches!(kind, IPV4 | IPV6 | ARP);
        known.then_some(FrameHeader::Ethernet { destination: *destination, source: *source, kind })
    }

    /// The header that needs no frame to be known.
    pub(super) const fn bare(self) -> Option<FrameHeader> {
        if self.ethernet { None } else { Some(FrameHeader::Bare) }
    }
}

impl FrameHeader {
    pub(super) const fn len(self) -> usize {
        match self {
            Self::Bare => 0,
            Self::Ethernet { .. } => ETHERNET_HEADER,
        }
    }

    /// Whether the frame is the link's own business: ARP, or neighbour discovery (RFC 4861), which never comes from beyond
    /// the link.
    pub(super) fn passes_by(self, frame: &[u8]) -> bool {
        match self {
            Self::Bare => false,
            Self::Ethernet { kind: ARP, .. } => true,
            Self::Ethernet { kind: IPV6, .. } => {
                let datagram = frame.get(ETHERNET_HEADER..).unwrap_or_default();
                let at = |place: usize| datagram.get(place).copied();
                at(NEXT_HEADER) == Some(proto::ICMPV6)
                    && at(HOP_LIMIT) == Some(255)
                    && matches!(at(V6_HEADER), Some(133..=137))
            }
            Self::Ethernet { .. } => false,
        }
    }

    /// The header of what goes the other way.
    pub(super) const fn reversed(self) -> Self {
        match self {
            Self::Bare => Self::Bare,
            Self::Ethernet { destination, source, kind } => {
                Self::Ethernet { destination: source, source: destination, kind }
            }
        }
    }

    /// The datagram as a frame.
    pub(super) fn before(self, datagram: &[u8]) -> Vec<u8> {
        match self {
            Self::Bare => datagram.to_vec(),
            Self::Ethernet { destination, source, kind } => {
                [&destination, &source, kind.to_be_bytes().as_slice(), datagram].concat()
            }
        }
    }
}

/// Which checksums a device does not see to on the way in, because its hardware has verified them or nothing can damage
/// them. They may then be wrong, and are filled in before the hooks look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Checksums {
    ipv4: bool,
    tcp: bool,
    udp: bool,
    icmpv4: bool,
    icmpv6: bool,
}

impl Checksums {
    pub(super) fn missing_in(capabilities: &ChecksumCapabilities) -> Self {
        Self {
            ipv4: !capabilities.ipv4.rx(),
            tcp: !capabilities.tcp.rx(),
            udp: !capabilities.udp.rx(),
            icmpv4: !capabilities.icmpv4.rx(),
            icmpv6: !capabilities.icmpv6.rx(),
        }
    }

    /// Fills in what is missing. Fragments keep what they have: their checksum is that of a whole datagram.
    pub(super) fn fill(self, datagram: &mut [u8]) {
        match datagram.first().map(|first| first >> 4) {
            Some(4) => {
                let Ok(mut packet) = Ipv4Packet::new_checked(datagram) else { return };
                if self.ipv4 {
                    packet.fill_checksum();
                }
                if packet.more_frags() || packet.frag_offset() != 0 {
                    return;
                }
                let (src, dst) = (packet.src_addr().into(), packet.dst_addr().into());
                let protocol = packet.next_header().into();
                self.fill_transport(protocol, src, dst, packet.payload_mut());
            }
            Some(6) => {
                let Ok(mut packet) = Ipv6Packet::new_checked(datagram) else { return };
                let (src, dst) = (packet.src_addr().into(), packet.dst_addr().into());
                let protocol = packet.next_header().into();
                self.fill_transport(protocol, src, dst, packet.payload_mut());
            }
            _ => {}
        }
    }

    fn fill_transport(self, protocol: u8, src: IpAddr, dst: IpAddr, l4: &mut [u8]) {
        match (protocol, src, dst) {
            (proto::TCP, ..) if self.tcp => {
                if let Ok(mut segment) = TcpPacket::new_checked(l4) {
                    segment.fill_checksum(&src.into(), &dst.into());
                }
            }
            (proto::UDP, ..) if self.udp => {
                if let Ok(mut datagram) = UdpPacket::new_checked(l4) {
                    datagram.fill_checksum(&src.into(), &dst.into());
                }
            }
            (proto::ICMP, IpAddr::V4(_), _) if self.icmpv4 => {
                if let Ok(mut message) = Icmpv4Packet::new_checked(l4) {
                    message.fill_checksum();
                }
            }
            (proto::ICMPV6, IpAddr::V6(src), IpAddr::V6(dst)) if self.icmpv6 => {
                if let Ok(mut message) = Icmpv6Packet::new_checked(l4) {
                    message.fill_checksum(&src, &dst);
                }
            }
            _ => {}
        }
    }
}

const ETHERNET_HEADER: usize = 14;
/// Largest datagram of IP.
const LARGEST: usize = 65_535;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const NEXT_HEADER: usize = 6;
const HOP_LIMIT: usize = 7;
const V6_HEADER: usize = 40;
