//! `struct virtio_net_hdr`, in which TUN, TAP and packet sockets say it (virtio 1.3, section 5.1.6;
//! `include/uapi/linux/virtio_net.h`).

use super::{ChecksumState, Offload, Segmentation, SegmentationKind};

impl Offload {
    /// What a header says. Nonsense in it is found when it is held against the packet.
    ///
    /// Words are in this machine's byte order, as the kernel's TUN and packet sockets have them by themselves.
    pub fn from_virtio(header: &[u8; VIRTIO_NET_HEADER]) -> Self {
        let [flags, kind, _, _, size @ .., start1, start0, offset1, offset0] = *header;
        let word = |a, b| u16::from_ne_bytes([a, b]);
        let checksum = if flags & NEEDS_CSUM != 0 {
            ChecksumState::Partial { start: word(start1, start0), offset: word(offset1, offset0) }
        } else if flags & DATA_VALID != 0 {
            ChecksumState::Verified
        } else {
            ChecksumState::Complete
        };
        // Whether the sender's congestion window was reduced stands in TCP's own flags.
        let kind = match kind & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(SegmentationKind::Tcp4),
            GSO_TCPV6 => Some(SegmentationKind::Tcp6),
            GSO_UDP_L4 => Some(SegmentationKind::Udp),
            _ => Some(SegmentationKind::Other),
        };
        let segmentation = kind.map(|kind| Segmentation { kind, size: u16::from_ne_bytes(size) });
        Self { checksum, segmentation }
    }

    /// The header for a frame or datagram that [`Egress`](crate::Egress) hands out.
    pub fn to_virtio(self, frame: &[u8]) -> [u8; VIRTIO_NET_HEADER] {
        let Self { checksum, segmentation } = self;
        let (flags, start, offset) = match checksum {
            ChecksumState::Partial { start, offset } => (NEEDS_CSUM, start, offset),
            ChecksumState::Complete | ChecksumState::Verified => (0, 0, 0),
        };
        let l4 = frame.get(usize::from(start)..).unwrap_or_default();
        let (kind, headers, size) = match segmentation {
            None => (GSO_NONE, 0, 0),
            Some(Segmentation { kind, size }) => {
                let reduced = kind.is_tcp() && l4.get(super::TCP_FLAGS).is_some_and(|flags| flags & CWR != 0);
                let ecn = if reduced { GSO_ECN } else { 0 };
                let headers = usize::from(start).saturating_add(kind.transport_header(l4));
                let kind = match kind {
                    SegmentationKind::Tcp4 => GSO_TCPV4 | ecn,
                    SegmentationKind::Tcp6 => GSO_TCPV6 | ecn,
                    SegmentationKind::Udp | SegmentationKind::Other => GSO_UDP_L4,
                };
                (kind, u16::try_from(headers).unwrap_or(0), size)
            }
        };
        let [headers, size, start, offset] = [headers, size, start, offset].map(u16::to_ne_bytes);
        let ([h1, h0], [s1, s0], [c1, c0], [o1, o0]) = (headers, size, start, offset);
        [flags, kind, h1, h0, s1, s0, c1, c0, o1, o0]
    }
}

/// Length of the header.
pub(crate) const VIRTIO_NET_HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;
/// The flag of TCP (RFC 3168).
const CWR: u8 = 0x80;
