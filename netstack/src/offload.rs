//! What links leave to others: checksums that are not there yet, and super-packets that stand for many segments.
//!
//! A kernel hands 64 KiB of one TCP stream to a link that says it can cut them, with one header and without a checksum.
//! Such a packet goes through the whole stack as one: connection tracking, rules and NAT see it once, as the kernel's do.
//! On the way out it stays whole where the link takes it ([`LinkOffloads`]), and is cut here where not: what leaves is then
//! what would have left had the segments come one by one.
//!
//! In the field of a missing checksum stands the sum over the pseudo header, so that who completes it adds the rest and
//! inverts it. What a link says of a packet is checked against the packet once, where it comes in; what does not fit is
//! dropped ([`DropReason::OffloadInvalid`]).

mod coalesce;
mod segments;
mod sum;
#[cfg(test)]
mod tests;
mod virtio;

use hibernet_conntrack::{Parsed, proto};

pub(crate) use self::coalesce::{Coalesced, Merged};
pub(crate) use self::segments::segments;
use crate::drop_reason::DropReason;

/// What is still to be done about a packet, or need not be done again.
///
/// The default is a packet as it must be on the wire, of which nothing is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum of TCP or UDP.
    pub checksum: ChecksumState,
    /// Into which segments the packet is to be cut; none for a packet that is one.
    pub segmentation: Option<Segmentation>,
}

/// How a packet's transport checksum stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ChecksumState {
    /// It is there. Whether it is right is looked at where it counts.
    #[default]
    Complete,
    /// It is there, and the link has verified it.
    Verified,
    /// It is missing: the sum of all from `start` on is to be written, inverted, at `start + offset`, where that of the
    /// pseudo header stands. Such a packet comes from memory, not from a wire, and counts as undamaged.
    Partial {
        /// Offset of the transport header in the frame or datagram.
        start: u16,
        /// Offset of the checksum behind `start`.
        offset: u16,
    },
}

/// How a super-packet is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segmentation {
    /// What it holds.
    pub kind: SegmentationKind,
    /// Bytes of data in every segment but the last, which may have fewer.
    pub size: u16,
}

/// What a super-packet holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either: each segment is a datagram of its own.
    Udp,
    /// What nobody here can cut: refused.
    Other,
}

/// What a link takes, of what is left undone. The default takes nothing: packets leave as they must be on the wire.
///
/// It belongs to the device that carries a link at present, so no image holds it: who opens a link says so again
/// ([`Stack::set_link_offloads`](crate::Stack::set_link_offloads)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkOffloads {
    /// Packets without TCP's or UDP's checksum. Segmentation needs it.
    pub checksum: bool,
    /// Super-packets of TCP over IPv4.
    pub tcp4: bool,
    /// Super-packets of TCP over IPv6.
    pub tcp6: bool,
    /// Super-packets of UDP.
    pub udp: bool,
}

/// A frame or datagram as a link hands it over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ingress {
    /// On an Ethernet link the frame, else the datagram.
    pub frame: Vec<u8>,
    /// What its link says of it.
    pub offload: Offload,
}

impl Offload {
    /// A packet as it must be on the wire, of which nothing is known.
    pub const NONE: Self = Self { checksum: ChecksumState::Complete, segmentation: None };

    /// Whether the checksum needs no look: verified, or never written.
    pub(crate) const fn vouches(self) -> bool {
        !matches!(self.checksum, ChecksumState::Complete)
    }

    pub(crate) const fn is_partial(self) -> bool {
        matches!(self.checksum, ChecksumState::Partial { .. })
    }

    /// The same with offsets that count from `by` bytes further in front.
    pub(crate) fn shifted(self, by: usize) -> Self {
        let ChecksumState::Partial { start, offset } = self.checksum else { return self };
        let start = start.saturating_add(u16::try_from(by).unwrap_or(u16::MAX));
        Self { checksum: ChecksumState::Partial { start, offset }, ..self }
    }

    /// What is left to do about a datagram of which a link has said `self`, counting from `at` bytes in front of it.
    ///
    /// What only other protocols leave out, or what is a fragment's, is completed at once. The pseudo header's sum is not
    /// believed but written.
    pub(crate) fn accept(self, datagram: &mut [u8], at: usize, parsed: &Parsed) -> Result<Self, DropReason> {
        let ChecksumState::Partial { start, offset } = self.checksum else {
            // A super-packet has no checksum of its own (virtio 1.3, section 5.1.6.2).
            return if self.segmentation.is_none() { Ok(self) } else { Err(DropReason::OffloadInvalid) };
        };
        let invalid = DropReason::OffloadInvalid;
        let start_here = usize::from(start).checked_sub(at).ok_or(invalid)?;
        let field = start_here.saturating_add(usize::from(offset));
        if field.saturating_add(2) > datagram.len() {
            return Err(invalid);
        }
        if !is_transport_checksum(datagram, parsed, start_here, offset) {
            if self.segmentation.is_some() {
                return Err(invalid);
            }
            sum::complete(datagram, start_here, field);
            return Ok(Self::NONE);
        }
        let checksum = ChecksumState::Partial { start: u16::try_from(start_here).map_err(|_| invalid)?, offset };
        let segmentation = match self.segmentation {
            Some(segmentation) => segmentation.check(datagram, parsed)?,
            None => None,
        };
        let offload = Self { checksum, segmentation };
        offload.write_pseudo_header(datagram, parsed);
        Ok(offload)
    }

    /// Writes the sum of the pseudo header where a missing checksum is to be: also after a translation of addresses.
    pub(crate) fn write_pseudo_header(self, datagram: &mut [u8], parsed: &Parsed) {
        let ChecksumState::Partial { start, offset } = self.checksum else { return };
        let len = datagram.len().saturating_sub(usize::from(start));
        let sum = sum::pseudo_header(parsed.src, parsed.dst, parsed.proto, len);
        sum::put(datagram, usize::from(start).saturating_add(usize::from(offset)), sum);
    }

    /// Computes a missing checksum.
    pub(crate) fn complete(&mut self, datagram: &mut [u8]) {
        if let ChecksumState::Partial { start, offset } = self.checksum {
            sum::complete(datagram, start.into(), usize::from(start).saturating_add(offset.into()));
            self.checksum = ChecksumState::Verified;
        }
    }
}

impl Segmentation {
    /// Refuses what cannot be cut. `None`: it is one segment as it is.
    fn check(self, datagram: &[u8], parsed: &Parsed) -> Result<Option<Self>, DropReason> {
        let invalid = DropReason::OffloadInvalid;
        let fits = match self.kind {
            SegmentationKind::Tcp4 => parsed.proto == proto::TCP && !parsed.is_v6(),
            SegmentationKind::Tcp6 => parsed.proto == proto::TCP && parsed.is_v6(),
            SegmentationKind::Udp => parsed.proto == proto::UDP,
            SegmentationKind::Other => false,
        };
        let l4 = parsed.l4(datagram);
        let header = self.kind.transport_header(l4);
        let data = l4.len().checked_sub(header).ok_or(invalid)?;
        // A SYN, a reset and urgent data are of one segment alone.
        let is_one_of_a_kind = self.kind.is_tcp() && l4.get(TCP_FLAGS).is_none_or(|flags| flags & SINGULAR != 0);
        if !fits || self.size == 0 || is_one_of_a_kind || header < self.kind.least_header() {
            return Err(invalid);
        }
        let most = if self.kind.is_tcp() { MOST_SEGMENTS } else { MOST_DATAGRAMS };
        match data.div_ceil(self.size.into()) {
            0 | 1 => Ok(None),
            count if count <= most => Ok(Some(self)),
            _ => Err(invalid),
        }
    }
}

impl SegmentationKind {
    const fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    const fn least_header(self) -> usize {
        if self.is_tcp() { 20 } else { UDP_HEADER }
    }

    /// Length of the transport header that all segments repeat.
    pub(crate) fn transport_header(self, l4: &[u8]) -> usize {
        match self {
            Self::Tcp4 | Self::Tcp6 => l4.get(TCP_OFFSET).map_or(0, |byte| usize::from(byte >> 4).saturating_mul(4)),
            Self::Udp | Self::Other => UDP_HEADER,
        }
    }
}

impl LinkOffloads {
    /// Everything this stack can leave undone.
    pub const ALL: Self = Self { checksum: true, tcp4: true, tcp6: true, udp: true };

    /// Whether the link takes a packet as it is.
    pub(crate) const fn take(self, offload: Offload) -> bool {
        let checksum = self.checksum || !offload.is_partial();
        checksum
            && match offload.segmentation {
                None => true,
                Some(Segmentation { kind: SegmentationKind::Tcp4, .. }) => self.tcp4,
                Some(Segmentation { kind: SegmentationKind::Tcp6, .. }) => self.tcp6,
                Some(Segmentation { kind: SegmentationKind::Udp, .. }) => self.udp,
                Some(Segmentation { kind: SegmentationKind::Other, .. }) => false,
            }
    }
}

/// Whether that is where the datagram's own TCP or UDP has its checksum, over all that follows.
fn is_transport_checksum(datagram: &[u8], parsed: &Parsed, start: usize, offset: u16) -> bool {
    let at_header = parsed.has_l4 && parsed.fragment.is_none() && start == parsed.header_len;
    at_header
        && match parsed.proto {
            proto::TCP => offset == TCP_CHECKSUM,
            proto::UDP => {
                let l4 = parsed.l4(datagram);
                let stated = l4.get(4..6).and_then(|len| len.first_chunk()).map(|len| u16::from_be_bytes(*len));
                offset == UDP_CHECKSUM && stated.map(usize::from) == Some(l4.len())
            }
            _ => false,
        }
}

/// Most segments of one packet: 64 KiB in the smallest that Linux sends (`net.ipv4.tcp_min_snd_mss`, 48).
const MOST_SEGMENTS: usize = 1366;
/// Most datagrams of one packet, as in Linux (`UDP_MAX_SEGMENTS`).
const MOST_DATAGRAMS: usize = 128;
const UDP_HEADER: usize = 8;
/// Offset of the checksum in TCP (RFC 9293) and UDP (RFC 768).
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// Offset of the byte with the header's length in TCP, and of that with the flags.
const TCP_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
/// SYN, RST, URG.
const SINGULAR: u8 = 0x02 | 0x04 | 0x20;
