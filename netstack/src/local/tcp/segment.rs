//! TCP segments in datagrams: what is read of them here, what is changed in them, and how one is made.
//!
//! The datagrams are those of this host's own sockets, in both directions: an IP header without options or extensions.

use core::net::{IpAddr, SocketAddr};

use hibernet_conntrack::{Tuple, proto};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpPacket, TcpRepr};

use super::seq::Seq;
use crate::reject::{V4_HEADER, V6_HEADER, header};

/// The two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl Ends {
    /// The tuple of what this host sends.
    pub(crate) const fn tuple(&self) -> Tuple {
        let Self { local, remote } = self;
        let (src, sport, dst, dport) = (local.ip(), local.port(), remote.ip(), remote.port());
        Tuple { src, dst, sport, dport, proto: proto::TCP }
    }
}

/// What a segment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) seq: Seq,
    pub(super) ack: Option<Seq>,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    /// As it stands there, not scaled.
    pub(super) window: u16,
    /// Bytes of data.
    pub(super) data: u32,
    pub(super) offers: Offers,
    pub(super) timestamps: Option<Timestamps>,
    /// Whether ports, flags and options are such that smoltcp can read them: it would drop the segment in silence.
    pub(super) readable: bool,
    /// Where the timestamps option's values start.
    timestamps_at: usize,
    /// Where the blocks of selective acknowledgement start and end.
    sack_at: (usize, usize),
    /// Where the values of the options of a SYN stand: segment size, window scale.
    offers_at: [Option<usize>; 2],
}

/// What a SYN offers (RFC 9293, RFC 7323, RFC 2018).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Offers {
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
    pub(super) sack: bool,
}

/// The timestamps option (RFC 7323).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Timestamps {
    pub(super) value: u32,
    pub(super) echo: u32,
}

impl Head {
    /// Reads a datagram's segment; `None` if it is cut.
    pub(super) fn read(datagram: &[u8]) -> Option<Self> {
        let at = header_len(datagram);
        let l4 = datagram.get(at..)?;
        let fixed: &[u8; FIXED] = l4.first_chunk()?;
        let [s1, s0, d1, d0, q3, q2, q1, q0, a3, a2, a1, a0, offset, flags, w1, w0, ..] = *fixed;
        let header_len = usize::from(offset >> 4).checked_mul(4).filter(|len| *len >= FIXED)?;
        let data = l4.len().checked_sub(header_len)?;
        let ends_or_opens = flags & (SYN | FIN | RST);
        let mut head = Self {
            seq: Seq(u32::from_be_bytes([q3, q2, q1, q0])),
            ack: (flags & ACK != 0).then_some(Seq(u32::from_be_bytes([a3, a2, a1, a0]))),
            syn: flags & SYN != 0,
            fin: flags & FIN != 0,
            rst: flags & RST != 0,
            window: u16::from_be_bytes([w1, w0]),
            data: u32::try_from(data).ok()?,
            offers: Offers::default(),
            timestamps: None,
            readable: [s1, s0] != [0, 0] && [d1, d0] != [0, 0] && ends_or_opens.count_ones() <= 1,
            timestamps_at: 0,
            sack_at: (0, 0),
            offers_at: [None; 2],
        };
        let is_sound = head.read_options(datagram, at.checked_add(FIXED)?, at.checked_add(header_len)?);
        head.readable &= is_sound.is_some();
        Some(head)
    }

    /// Whether the segment opens a connection.
    pub(super) const fn opens(&self) -> bool {
        self.syn && self.ack.is_none() && !self.rst
    }

    /// Sequence numbers the segment takes: data, SYN and FIN.
    pub(super) fn len(&self) -> u32 {
        self.data.saturating_add(u32::from(self.syn)).saturating_add(u32::from(self.fin))
    }

    /// The number behind the segment.
    pub(super) fn end(&self) -> Seq {
        self.seq.plus(self.len())
    }

    /// `None` from an option on that cannot be read.
    fn read_options(&mut self, datagram: &[u8], mut at: usize, end: usize) -> Option<()> {
        while let Some([kind, rest @ ..]) = datagram.get(at..end) {
            if *kind == END {
                return Some(());
            }
            if *kind == NO_OPERATION {
                at = at.saturating_add(1);
                continue;
            }
            let len = rest.first().map(|len| usize::from(*len)).filter(|len| *len >= 2)?;
            let (value_at, next) = (at.saturating_add(2), at.saturating_add(len));
            let value = datagram.get(value_at..next.min(end)).filter(|_| next <= end)?;
            match (*kind, value) {
                (MSS, [high, low]) => {
                    self.offers.mss = Some(u16::from_be_bytes([*high, *low]));
                    self.offers_at = [Some(value_at), self.offers_at[1]];
                }
                (SCALE, [shift]) => {
                    self.offers.scale = Some((*shift).min(MOST_SCALE));
                    self.offers_at = [self.offers_at[0], Some(value_at)];
                }
                (SACK_PERMITTED, []) => self.offers.sack = true,
                (SACK, blocks) if blocks.len() >= 8 && blocks.len() % 8 == 0 => self.sack_at = (value_at, next),
                (TIMESTAMPS, [v3, v2, v1, v0, e3, e2, e1, e0]) => {
                    let value = u32::from_be_bytes([*v3, *v2, *v1, *v0]);
                    self.timestamps = Some(Timestamps { value, echo: u32::from_be_bytes([*e3, *e2, *e1, *e0]) });
                    self.timestamps_at = value_at;
                }
                (MSS | SCALE | SACK_PERMITTED | SACK, _) => return None,
                _ => {}
            }
            at = next;
        }
        Some(())
    }
}

/// Writes the sequence number.
pub(super) fn set_seq(datagram: &mut [u8], seq: Seq) {
    put(datagram, header_len(datagram).saturating_add(SEQ), &seq.0.to_be_bytes());
}

/// Writes the acknowledgement number.
pub(super) fn set_ack(datagram: &mut [u8], ack: Seq) {
    put(datagram, header_len(datagram).saturating_add(ACKNOWLEDGEMENT), &ack.0.to_be_bytes());
}

/// Writes the window.
pub(super) fn set_window(datagram: &mut [u8], window: u16) {
    put(datagram, header_len(datagram).saturating_add(WINDOW), &window.to_be_bytes());
}

/// Writes the segment size of a SYN that offers one.
pub(super) fn set_mss(datagram: &mut [u8], head: &Head, mss: u16) {
    if let [Some(at), _] = head.offers_at {
        put(datagram, at, &mss.to_be_bytes());
    }
}

/// Writes the window scale of a SYN that offers one.
pub(super) fn set_scale(datagram: &mut [u8], head: &Head, scale: u8) {
    if let [_, Some(at)] = head.offers_at {
        put(datagram, at, &[scale]);
    }
}

/// Writes into the timestamps option of a segment that has one.
pub(super) fn set_timestamps(datagram: &mut [u8], head: &Head, timestamps: Timestamps) {
    if head.timestamps.is_some() {
        put(datagram, head.timestamps_at, &timestamps.value.to_be_bytes());
        put(datagram, head.timestamps_at.saturating_add(4), &timestamps.echo.to_be_bytes());
    }
}

/// Moves every edge of every block of selective acknowledgement back by `offset`.
pub(super) fn shift_sack(datagram: &mut [u8], head: &Head, offset: u32) {
    let (start, end) = head.sack_at;
    for edge in datagram.get_mut(start..end).unwrap_or_default().as_chunks_mut::<4>().0 {
        *edge = u32::from_be_bytes(*edge).wrapping_sub(offset).to_be_bytes();
    }
}

/// A segment from one end to the other, checksum included. `None` if it is too long or the ends are of two families.
pub(super) fn build(from: SocketAddr, to: SocketAddr, repr: &TcpRepr<'_>) -> Option<Vec<u8>> {
    let repr = TcpRepr { src_port: from.port(), dst_port: to.port(), ..*repr };
    let mut datagram = header(from.ip(), to.ip(), IpProtocol::Tcp, repr.buffer_len())?;
    let at = header_len(&datagram);
    let mut segment = TcpPacket::new_unchecked(datagram.get_mut(at..)?);
    repr.emit(&mut segment, &from.ip().into(), &to.ip().into(), &ChecksumCapabilities::default());
    Some(datagram)
}

/// The largest segment that fits a datagram of that size (RFC 9293, section 3.7.1).
pub(super) fn mss(mtu: usize, local: IpAddr) -> u16 {
    let header = FIXED.saturating_add(if local.is_ipv6() { V6_HEADER } else { V4_HEADER });
    u16::try_from(mtu.saturating_sub(header)).unwrap_or(u16::MAX)
}

fn header_len(datagram: &[u8]) -> usize {
    if datagram.first().is_some_and(|first| first >> 4 == 6) { V6_HEADER } else { V4_HEADER }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: &[u8; N]) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
        *field = *value;
    }
}

/// The words of an address: 0 and the address for IPv4.
pub(super) fn words(addr: IpAddr) -> [u64; 2] {
    let bits = match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    };
    [u64::try_from(bits >> 64).unwrap_or(0), u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0)]
}

const SEQ: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const WINDOW: usize = 14;
const FIXED: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;
/// RFC 7323, section 2.3.
const MOST_SCALE: u8 = 14;
