//! One flow as the table holds it: 128 bytes for IPv4, 192 for IPv6.
//!
//! | field | bytes v4 / v6 | class |
//! | --- | --- | --- |
//! | original tuple, reply tuple | 24 / 72 | saved |
//! | deadline, in ticks of 1/128 s | 4 | saved, as what remains |
//! | status bits, zone | 4 | saved |
//! | protocol, its state | 2 | saved |
//! | serial number: order of creation and generation of the slot | 6 | rebuilt: renumbered 0..n |
//! | packets, bytes, by direction | 22 | saved |
//! | window scales, repeats of the last segment | 2 | saved |
//! | mark | 4 | saved |
//! | TCP windows of both sides | 32 | saved |
//! | last segment: seq, ack, length, window, kind, direction, options | 14 | saved |
//! | TCP flags of both sides | 2 | saved |
//! | links of the timer wheel and of the list of unassured flows | 12 | rebuilt |
//!
//! UDP and SCTP keep their few words in the window fields.

mod packed;

use super::addr::Ends;
use super::clock::{Clock, Tick};
use super::fetch::fetch;
use super::links::Links;
use crate::protocol::{
    ProtocolState, SctpState, SctpTrack, TcpSegmentKind, TcpSide, TcpSideFlags, TcpState, TcpTrack, UdpTrack,
};
use crate::record::Counters;
use crate::status::Status;
use crate::tuple::{Direction, Zone, proto};
use hibernet_snapshot::Instant;

/// A flow of one address family. The first 64 bytes of an IPv4 entry are all that a UDP packet touches.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry<A> {
    pub(crate) orig: Ends<A>,
    pub(crate) reply: Ends<A>,
    pub(crate) core: Core,
}

impl<A: Default> Entry<A> {
    /// What stands in a slot without a flow.
    pub(crate) fn vacant() -> Self {
        Self { orig: Ends::default(), reply: Ends::default(), core: Core::default() }
    }
}

impl<A> Entry<A> {
    /// Has the entry fetched into the cache: the lines a look-up reads, or the `whole` of it.
    #[inline]
    pub(crate) fn fetch(&self, whole: bool) {
        fetch(self);
        if size_of::<A>() > 4 {
            // An IPv6 entry's tuples alone take more than one line.
            fetch(&self.core);
        }
        if whole {
            fetch(&self.core.timer);
        }
    }
}

/// What does not depend on the address family.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Core {
    pub(crate) deadline: Tick,
    status: u16,
    zone: u16,
    pub(crate) proto: u8,
    state: u8,
    serial: [u8; 6],
    packets: [[u8; 5]; 2],
    bytes: [[u8; 6]; 2],
    /// Original side in the low nibble.
    scales: u8,
    retrans: u8,
    pub(crate) mark: u32,
    windows: [Window; 2],
    last_seq: u32,
    last_ack: u32,
    last_len: u16,
    last_win: u16,
    flags: [u8; 2],
    /// Kind of the last segment, direction in the top bit.
    last_kind: u8,
    /// Window scale of an ignored SYN in the low nibble, its flags in the high one.
    last_syn: u8,
    pub(crate) timer: Links,
    pub(crate) unassured: Links,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Window {
    end: u32,
    maxend: u32,
    maxwin: u32,
    maxack: u32,
}

impl Core {
    pub(crate) fn new(proto: u8, mark: u32) -> Self {
        Self { proto, mark, ..Self::default() }
    }

    /// Serial number, unique in a table's life. Zero is a vacant slot.
    #[inline]
    pub(crate) fn serial(&self) -> u64 {
        number(self.serial)
    }

    pub(crate) fn set_serial(&mut self, serial: u64) {
        self.serial = bytes(serial);
    }

    #[inline]
    pub(crate) fn status(&self) -> Status {
        Status::from_bits_truncate(self.status)
    }

    pub(crate) fn set_status(&mut self, status: Status) {
        self.status = status.bits();
    }

    #[inline]
    pub(crate) fn zone(&self) -> Zone {
        Zone { id: self.zone, orig_only: self.status().contains(Status::ZONE_ORIG_ONLY) }
    }

    pub(crate) fn set_zone(&mut self, zone: Zone) {
        self.zone = zone.id;
        let mut status = self.status();
        status.set(Status::ZONE_ORIG_ONLY, zone.orig_only);
        self.set_status(status);
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters { packets: self.packets.map(number), bytes: self.bytes.map(number) }
    }

    /// Counters stop at their limits (2^40 packets, 2^48 bytes) rather than start again.
    pub(crate) fn set_counters(&mut self, counters: Counters) {
        self.packets = counters.packets.map(bytes);
        self.bytes = counters.bytes.map(bytes);
    }

    pub(crate) fn protocol(&self, clock: Clock, now: Instant) -> ProtocolState {
        match self.proto {
            proto::TCP => ProtocolState::Tcp(self.tcp()),
            proto::UDP => {
                let [first, _] = self.windows;
                // What is past counts as just reached: a restored flow knows no more than that.
                let at = Tick(first.end).max_of(clock.tick(now));
                ProtocolState::Udp(UdpTrack { stream_at: clock.instant(at, now) })
            }
            proto::SCTP => ProtocolState::Sctp(self.sctp()),
            _ => ProtocolState::Other,
        }
    }

    pub(crate) fn set_protocol(&mut self, state: &ProtocolState, clock: Clock) {
        match state {
            ProtocolState::Tcp(track) => self.set_tcp(track),
            ProtocolState::Udp(UdpTrack { stream_at }) => {
                let [first, _] = &mut self.windows;
                first.end = clock.tick(*stream_at).0;
            }
            ProtocolState::Sctp(track) => self.set_sctp(track),
            ProtocolState::Other => {}
        }
    }

    fn tcp(&self) -> TcpTrack {
        let [scale0, scale1] = nibbles(self.scales);
        let [wscale, last_flags] = nibbles(self.last_syn);
        let [window0, window1] = self.windows;
        let [flags0, flags1] = self.flags;
        let (last_dir, kind) = unpack_direction(self.last_kind);
        TcpTrack {
            state: TcpState::from_number(self.state).unwrap_or(TcpState::None),
            sides: [window0.side(scale0, flags0), window1.side(scale1, flags1)],
            retrans: self.retrans,
            last_dir,
            last_index: TcpSegmentKind::from_number(kind).unwrap_or(TcpSegmentKind::None),
            last_seq: self.last_seq,
            last_ack: self.last_ack,
            last_len: self.last_len,
            last_win: self.last_win,
            last_wscale: wscale,
            last_flags: widen_flags(last_flags),
        }
    }

    fn set_tcp(&mut self, track: &TcpTrack) {
        let TcpTrack { state, sides, retrans, last_dir, last_index, last_seq, last_ack, last_len, last_win, .. } =
            *track;
        let [side0, side1] = sides;
        self.state = state as u8;
        self.scales = pack_nibbles(side0.scale, side1.scale);
        self.windows = sides.map(Window::of);
        self.flags = [side0.flags.bits(), side1.flags.bits()];
        self.retrans = retrans;
        self.last_kind = pack_direction(last_dir, last_index as u8);
        self.last_seq = last_seq;
        self.last_ack = last_ack;
        self.last_len = last_len;
        self.last_win = last_win;
        self.last_syn = pack_nibbles(track.last_wscale, narrow_flags(track.last_flags));
    }

    fn sctp(&self) -> SctpTrack {
        let [window0, window1] = self.windows;
        let (last_dir, flags) = unpack_direction(self.last_kind);
        SctpTrack {
            state: SctpState::from_number(self.state).unwrap_or(SctpState::None),
            vtag: [window0.end, window1.end],
            last_dir,
            flags,
        }
    }

    fn set_sctp(&mut self, track: &SctpTrack) {
        let SctpTrack { state, vtag, last_dir, flags } = *track;
        let [vtag0, vtag1] = vtag;
        self.state = state as u8;
        self.windows = [Window { end: vtag0, ..Window::default() }, Window { end: vtag1, ..Window::default() }];
        self.last_kind = pack_direction(last_dir, flags);
    }
}

impl Window {
    fn side(self, scale: u8, flags: u8) -> TcpSide {
        let Self { end, maxend, maxwin, maxack } = self;
        let flags = TcpSideFlags::from_bits_truncate(flags);
        TcpSide { td_end: end, td_maxend: maxend, td_maxwin: maxwin, td_maxack: maxack, scale, flags }
    }

    fn of(side: TcpSide) -> Self {
        Self { end: side.td_end, maxend: side.td_maxend, maxwin: side.td_maxwin, maxack: side.td_maxack }
    }
}

/// The flags a remembered SYN can have, in four bits: 0x01, 0x02 and 0x40, 0x80 of [`TcpSideFlags`].
const fn narrow_flags(flags: u8) -> u8 {
    flags & 0x03 | (flags >> 4) & 0x0c
}

const fn widen_flags(nibble: u8) -> u8 {
    nibble & 0x03 | (nibble & 0x0c) << 4
}

const fn nibbles(byte: u8) -> [u8; 2] {
    [byte & 0x0f, byte >> 4]
}

const fn pack_nibbles(low: u8, high: u8) -> u8 {
    low & 0x0f | high << 4
}

const fn pack_direction(direction: Direction, low: u8) -> u8 {
    low & 0x7f | if matches!(direction, Direction::Reply) { 0x80 } else { 0 }
}

const fn unpack_direction(byte: u8) -> (Direction, u8) {
    (if byte & 0x80 == 0 { Direction::Original } else { Direction::Reply }, byte & 0x7f)
}

#[inline]
fn number<const N: usize>(bytes: [u8; N]) -> u64 {
    let mut wide = [0; 8];
    if let Some(low) = wide.first_chunk_mut() {
        *low = bytes;
    }
    u64::from_le_bytes(wide)
}

#[inline]
fn bytes<const N: usize>(number: u64) -> [u8; N] {
    let limit = if N < 8 { (1 << (8 * N)) - 1 } else { u64::MAX };
    number.min(limit).to_le_bytes().first_chunk().copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_two_cache_lines_for_ipv4_and_three_for_ipv6() {
        assert_eq!(size_of::<Entry<[u8; 4]>>(), 128);
        assert_eq!(size_of::<Entry<[u8; 16]>>(), 192);
    }

    #[test]
    fn a_udp_packet_touches_the_first_line_of_an_ipv4_entry_alone() {
        let core = core::mem::offset_of!(Entry<[u8; 4]>, core);
        assert_eq!(core + core::mem::offset_of!(Core, mark), 64);
    }

    #[test]
    fn counters_stop_at_their_limits() {
        let mut core = Core::default();
        core.set_counters(Counters { packets: [u64::MAX, 5], bytes: [1 << 47, u64::MAX] });
        let Counters { packets, bytes } = core.counters();
        assert_eq!(packets, [(1 << 40) - 1, 5]);
        assert_eq!(bytes, [1 << 47, (1 << 48) - 1]);
    }

    #[test]
    fn a_tcp_track_comes_out_as_it_went_in() {
        let side = |n: u32| TcpSide {
            td_end: n,
            td_maxend: n + 1,
            td_maxwin: n + 2,
            td_maxack: n + 3,
            scale: (n % 15) as u8,
            flags: TcpSideFlags::from_bits_truncate(n as u8),
        };
        let track = TcpTrack {
            state: TcpState::SynSent2,
            sides: [side(0xffff_ff00), side(77)],
            retrans: 3,
            last_dir: Direction::Reply,
            last_index: TcpSegmentKind::Rst,
            last_seq: 1,
            last_ack: 2,
            last_len: 65535,
            last_win: 4,
            last_wscale: 14,
            last_flags: 0xc3,
        };
        let mut core = Core { proto: proto::TCP, ..Core::default() };
        let clock = Clock::new(Instant::ZERO, 0);
        core.set_protocol(&ProtocolState::Tcp(track), clock);
        assert_eq!(core.protocol(clock, Instant::ZERO), ProtocolState::Tcp(track));
    }
}
