//! One TCP segment, read in place.

use crate::headers::{u16_at, u32_at};
use crate::invalid::InvalidReason;
use crate::protocol::TcpSegmentKind;
use crate::tracker::Packet;
use crate::tuple::proto;

/// A segment whose header, checksum and flags are sound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    /// Sequence number.
    pub(super) seq: u32,
    /// Acknowledgement number, also where the ACK flag is not set.
    pub(super) ack: u32,
    /// Window, unscaled.
    pub(super) window: u16,
    /// Flag bits.
    flags: u8,
    /// Options, padding included.
    pub(super) options: &'a [u8],
    /// Sequence space it takes: data, SYN and FIN.
    len: u32,
}

impl<'a> Segment<'a> {
    pub(super) fn read(packet: &Packet<'a>) -> Result<Self, InvalidReason> {
        let l4 = packet.l4();
        let (Some(seq), Some(ack), Some(window), Some(&[data_offset, flags])) =
            (u32_at(l4, 4), u32_at(l4, 8), u16_at(l4, 14), l4.get(12..HEADER).and_then(|rest| rest.first_chunk::<2>()))
        else {
            return Err(InvalidReason::ShortPacket { proto: proto::TCP });
        };
        let header_len = usize::from(data_offset >> 4).saturating_mul(4);
        let (Some(options), Some(data)) = (l4.get(HEADER..header_len), l4.get(header_len..)) else {
            return Err(InvalidReason::Malformed { proto: proto::TCP });
        };
        packet.verify()?;
        if !is_known(flags) {
            return Err(InvalidReason::TcpFlags { flags });
        }
        let controls = u32::from(flags & SYN != 0).saturating_add(u32::from(flags & FIN != 0));
        // The datagram's length has 16 bits: what does not fit in 32 cannot come.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX).saturating_add(controls);
        Ok(Self { seq, ack, window, flags, options, len })
    }

    /// Which of the kinds the state table tells apart.
    pub(super) fn kind(&self) -> TcpSegmentKind {
        if self.is_rst() {
            TcpSegmentKind::Rst
        } else if self.is_syn() {
            if self.has_ack() { TcpSegmentKind::SynAck } else { TcpSegmentKind::Syn }
        } else if self.flags & FIN != 0 {
            TcpSegmentKind::Fin
        } else if self.has_ack() {
            TcpSegmentKind::Ack
        } else {
            TcpSegmentKind::None
        }
    }

    pub(super) fn is_syn(&self) -> bool {
        self.flags & SYN != 0
    }

    pub(super) fn is_rst(&self) -> bool {
        self.flags & RST != 0
    }

    pub(super) fn has_ack(&self) -> bool {
        self.flags & ACK != 0
    }

    /// The sequence number behind the segment.
    pub(super) fn end(&self) -> u32 {
        self.seq.wrapping_add(self.len)
    }

    /// Sequence space in the 16 bits that are kept: a datagram's payload less the TCP header always fits.
    pub(super) fn len_u16(&self) -> u16 {
        u16::try_from(self.len).unwrap_or(u16::MAX)
    }
}

/// Whether segments of these flags exist. PSH, ECE and CWR are not looked at.
fn is_known(flags: u8) -> bool {
    matches!(
        flags & (FIN | SYN | RST | ACK | URG),
        SYN | SYN_URG | SYN_ACK | RST | RST_ACK | FIN_ACK | FIN_ACK_URG | ACK | ACK_URG
    )
}

/// Bytes of a TCP header without options.
const HEADER: usize = 20;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const SYN_URG: u8 = SYN | URG;
const SYN_ACK: u8 = SYN | ACK;
const RST_ACK: u8 = RST | ACK;
const FIN_ACK: u8 = FIN | ACK;
const FIN_ACK_URG: u8 = FIN | ACK | URG;
const ACK_URG: u8 = ACK | URG;
