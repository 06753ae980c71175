//! The bulk layout of saved flows: one record after another, in creation order, little-endian, no padding.
//!
//! A record begins with the kind byte, whose bits say which parts follow, so that a plain IPv4 flow costs no more than
//! what it knows. Every record is checked in full when it is read: what loads can be written back to the same bytes.
//! The layout is described field by field in SNAPSHOT-FORMAT.md.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use hibernet_snapshot::{Instant, Invalid};

use crate::protocol::{
    ProtocolState, SctpState, SctpTrack, TcpSegmentKind, TcpSide, TcpSideFlags, TcpState, TcpTrack, UdpTrack,
};
use crate::record::{Counters, FlowRecord};
use crate::status::Status;
use crate::table::clock::{MAX_AHEAD, TICK_NANOS};
use crate::tuple::{Direction, Tuple, Zone, proto};

/// IPv6 addresses follow instead of IPv4 ones.
const KIND_V6: u8 = 1 << 0;
/// The reply tuple follows; otherwise it is the inverse of the original.
const KIND_REPLY: u8 = 1 << 1;
/// A zone follows.
const KIND_ZONE: u8 = 1 << 2;
/// A mark follows.
const KIND_MARK: u8 = 1 << 3;
/// Bytes of the shortest record: IPv4, plain, no protocol state.
pub(crate) const SHORTEST: usize = 42;
const KIND_ALL: u8 = KIND_V6 | KIND_REPLY | KIND_ZONE | KIND_MARK;

/// Appends one flow. `now` is what its deadlines count from.
pub(crate) fn write(out: &mut Vec<u8>, flow: &FlowRecord, now: Instant) {
    let FlowRecord { orig, reply, zone, status, remaining, protocol, mark, counters } = flow;
    let plain = orig.inverted().as_ref() == Some(reply);
    let v6 = orig.src.is_ipv6();
    let mut kind = 0;
    kind |= if v6 { KIND_V6 } else { 0 };
    kind |= if plain { 0 } else { KIND_REPLY };
    kind |= if zone.id == 0 && !zone.orig_only { 0 } else { KIND_ZONE };
    kind |= if *mark == 0 { 0 } else { KIND_MARK };
    out.push(kind);
    out.push(orig.proto);
    out.extend(status.bits().to_le_bytes());
    out.extend(ticks(*remaining).to_le_bytes());
    write_ends(out, orig);
    if !plain {
        write_ends(out, reply);
    }
    if kind & KIND_ZONE != 0 {
        out.extend(zone.id.to_le_bytes());
    }
    if *mark != 0 {
        out.extend(mark.to_le_bytes());
    }
    for (packets, bytes) in counters.packets.iter().zip(counters.bytes) {
        out.extend(packets.to_le_bytes().iter().take(5));
        out.extend(bytes.to_le_bytes().iter().take(6));
    }
    match protocol {
        ProtocolState::Tcp(track) => write_tcp(out, track),
        ProtocolState::Udp(track) => out.extend(ticks(track.stream_at.saturating_since(now)).to_le_bytes()),
        ProtocolState::Sctp(track) => write_sctp(out, track),
        ProtocolState::Other => {}
    }
}

/// Reads one flow and checks all that can be said of it alone.
pub(crate) fn read(input: &mut Reader<'_>, now: Instant) -> Result<FlowRecord, Invalid> {
    let kind = input.u8("kind")?;
    if kind & !KIND_ALL != 0 {
        return Err(Invalid::new("kind", format!("{kind:#04x}"), "only the four known bits"));
    }
    let proto = input.u8("protocol")?;
    let bits = input.u16("status")?;
    let status = Status::from_bits(bits)
        .filter(|status| Status::SAVABLE.contains(*status) && status.contains(Status::CONFIRMED))
        .ok_or_else(|| Invalid::new("status", format!("{bits:#06x}"), "a confirmed flow's known status bits"))?;
    let left = input.u32("remaining")?;
    if left == 0 || left > MAX_AHEAD {
        return Err(Invalid::new("remaining", format!("{left} ticks"), format!("1 to {MAX_AHEAD}")));
    }
    let v6 = kind & KIND_V6 != 0;
    let orig = read_ends(input, v6, proto)?;
    let inverse = orig.inverted().filter(|_| orig.may_open()).ok_or_else(|| {
        Invalid::new("original", format!("ICMP type {}", orig.icmp_type()), "a query type of its family")
    })?;
    let reply = if kind & KIND_REPLY == 0 { inverse } else { read_ends(input, v6, proto)? };
    if kind & KIND_REPLY != 0 && reply == inverse {
        return Err(Invalid::new("reply", "the inverse of the original", "no reply tuple for a plain flow"));
    }
    if orig.is_icmp() && reply.dport != inverse.dport {
        return Err(Invalid::new("reply", "another ICMP type", "the type that answers the original's"));
    }
    check_nat(status, reply == inverse)?;
    check_severed(status)?;
    let orig_only = status.contains(Status::ZONE_ORIG_ONLY);
    let id = if kind & KIND_ZONE == 0 { 0 } else { input.u16("zone")? };
    if (kind & KIND_ZONE != 0) != (id != 0 || orig_only) {
        return Err(Invalid::new("zone", id.to_string(), "a zone other than the default"));
    }
    let mark = if kind & KIND_MARK == 0 { 0 } else { input.u32("mark")? };
    if kind & KIND_MARK != 0 && mark == 0 {
        return Err(Invalid::new("mark", "0", "no mark, or one other than 0"));
    }
    let mut counters = Counters::default();
    for (packets, bytes) in counters.packets.iter_mut().zip(&mut counters.bytes) {
        *packets = input.uint::<5>("packets")?;
        *bytes = input.uint::<6>("bytes")?;
    }
    let protocol = match proto {
        proto::TCP => ProtocolState::Tcp(read_tcp(input)?),
        proto::UDP => {
            let ahead = input.u32("stream_at")?;
            if ahead > MAX_AHEAD {
                return Err(Invalid::new("stream_at", format!("{ahead} ticks"), format!("at most {MAX_AHEAD}")));
            }
            ProtocolState::Udp(UdpTrack { stream_at: now.saturating_add(duration(ahead)) })
        }
        proto::SCTP => ProtocolState::Sctp(read_sctp(input)?),
        _ => ProtocolState::Other,
    };
    let (zone, remaining) = (Zone { id, orig_only }, duration(left));
    Ok(FlowRecord { orig, reply, zone, status, remaining, protocol, mark, counters })
}

/// A severed flow is spared by early drop, and nobody is told of a flow that goes on.
fn check_severed(status: Status) -> Result<(), Invalid> {
    let spared = !status.contains(Status::SEVERED) || status.contains(Status::ASSURED);
    if spared && (status.contains(Status::SEVERED) || !status.intersects(Status::TOLD)) {
        return Ok(());
    }
    Err(Invalid::new("status", format!("{status:?}"), "severed flows assured, and nobody told of others"))
}

/// A flow is translated where its tuples say so, and only there.
fn check_nat(status: Status, plain: bool) -> Result<(), Invalid> {
    let found = || format!("{status:?}");
    if status.contains(Status::SRC_NAT) && !status.contains(Status::SRC_NAT_DONE)
        || status.contains(Status::DST_NAT) && !status.contains(Status::DST_NAT_DONE)
    {
        return Err(Invalid::new("status", found(), "no translation before it is decided"));
    }
    if plain == status.intersects(Status::NAT) {
        return Err(Invalid::new("status", found(), "NAT bits exactly where the reply is no plain inverse"));
    }
    Ok(())
}

fn write_ends(out: &mut Vec<u8>, tuple: &Tuple) {
    for address in [tuple.src, tuple.dst] {
        match address {
            IpAddr::V4(address) => out.extend(address.octets()),
            IpAddr::V6(address) => out.extend(address.octets()),
        }
    }
    out.extend(tuple.sport.to_le_bytes());
    out.extend(tuple.dport.to_le_bytes());
}

fn read_ends(input: &mut Reader<'_>, v6: bool, proto: u8) -> Result<Tuple, Invalid> {
    let mut address = |field| -> Result<IpAddr, Invalid> {
        Ok(if v6 {
            IpAddr::V6(Ipv6Addr::from(input.bytes::<16>(field)?))
        } else {
            IpAddr::V4(Ipv4Addr::from(input.bytes::<4>(field)?))
        })
    };
    let (src, dst) = (address("src")?, address("dst")?);
    let (sport, dport) = (input.u16("sport")?, input.u16("dport")?);
    Ok(Tuple { src, dst, proto, sport, dport })
}

fn write_tcp(out: &mut Vec<u8>, track: &TcpTrack) {
    let TcpTrack {
        state,
        sides,
        retrans,
        last_dir,
        last_index,
        last_seq,
        last_ack,
        last_len,
        last_win,
        last_wscale,
        last_flags,
    } = track;
    out.extend([*state as u8, *retrans, last_dir.index() as u8, *last_index as u8, *last_wscale, *last_flags]);
    out.extend(last_seq.to_le_bytes());
    out.extend(last_ack.to_le_bytes());
    out.extend(last_len.to_le_bytes());
    out.extend(last_win.to_le_bytes());
    for TcpSide { td_end, td_maxend, td_maxwin, td_maxack, scale, flags } in sides {
        for number in [td_end, td_maxend, td_maxwin, td_maxack] {
            out.extend(number.to_le_bytes());
        }
        out.extend([*scale, flags.bits()]);
    }
}

fn read_tcp(input: &mut Reader<'_>) -> Result<TcpTrack, Invalid> {
    let state = input.u8("tcp.state")?;
    let state = TcpState::from_number(state)
        .filter(|state| *state != TcpState::None)
        .ok_or_else(|| Invalid::new("tcp.state", state.to_string(), "1 to 9"))?;
    let retrans = input.u8("tcp.retrans")?;
    let last_dir = read_direction(input, "tcp.last_dir")?;
    let kind = input.u8("tcp.last_index")?;
    let last_index =
        TcpSegmentKind::from_number(kind).ok_or_else(|| Invalid::new("tcp.last_index", kind.to_string(), "0 to 5"))?;
    let last_wscale = read_scale(input, "tcp.last_wscale")?;
    let last_flags = input.u8("tcp.last_flags")?;
    if last_flags & !0xc3 != 0 {
        return Err(Invalid::new("tcp.last_flags", format!("{last_flags:#04x}"), "no bits but 0xc3"));
    }
    let (last_seq, last_ack) = (input.u32("tcp.last_seq")?, input.u32("tcp.last_ack")?);
    let (last_len, last_win) = (input.u16("tcp.last_len")?, input.u16("tcp.last_win")?);
    let mut side = || -> Result<TcpSide, Invalid> {
        let (td_end, td_maxend) = (input.u32("tcp.td_end")?, input.u32("tcp.td_maxend")?);
        let (td_maxwin, td_maxack) = (input.u32("tcp.td_maxwin")?, input.u32("tcp.td_maxack")?);
        let scale = read_scale(input, "tcp.scale")?;
        let flags = TcpSideFlags::from_bits_retain(input.u8("tcp.flags")?);
        Ok(TcpSide { td_end, td_maxend, td_maxwin, td_maxack, scale, flags })
    };
    let sides = [side()?, side()?];
    Ok(TcpTrack {
        state,
        sides,
        retrans,
        last_dir,
        last_index,
        last_seq,
        last_ack,
        last_len,
        last_win,
        last_wscale,
        last_flags,
    })
}

fn read_scale(input: &mut Reader<'_>, field: &'static str) -> Result<u8, Invalid> {
    let scale = input.u8(field)?;
    if scale > 14 { Err(Invalid::new(field, scale.to_string(), "0 to 14 (RFC 7323)")) } else { Ok(scale) }
}

fn write_sctp(out: &mut Vec<u8>, track: &SctpTrack) {
    let SctpTrack { state, vtag, last_dir, flags } = track;
    out.extend([*state as u8, last_dir.index() as u8, *flags]);
    for number in vtag {
        out.extend(number.to_le_bytes());
    }
}

fn read_sctp(input: &mut Reader<'_>) -> Result<SctpTrack, Invalid> {
    let state = input.u8("sctp.state")?;
    let state = SctpState::from_number(state)
        .filter(|state| *state != SctpState::None)
        .ok_or_else(|| Invalid::new("sctp.state", state.to_string(), "1 to 8"))?;
    let last_dir = read_direction(input, "sctp.last_dir")?;
    let flags = input.u8("sctp.flags")?;
    if flags & !0x07 != 0 {
        return Err(Invalid::new("sctp.flags", format!("{flags:#04x}"), "the low three bits"));
    }
    let vtag = [input.u32("sctp.vtag")?, input.u32("sctp.vtag")?];
    Ok(SctpTrack { state, vtag, last_dir, flags })
}

fn read_direction(input: &mut Reader<'_>, field: &'static str) -> Result<Direction, Invalid> {
    match input.u8(field)? {
        0 => Ok(Direction::Original),
        1 => Ok(Direction::Reply),
        other => Err(Invalid::new(field, other.to_string(), "0 or 1")),
    }
}

fn ticks(duration: Duration) -> u32 {
    let ticks = duration.as_nanos().div_ceil(u128::from(TICK_NANOS));
    u32::try_from(ticks).unwrap_or(MAX_AHEAD).min(MAX_AHEAD)
}

const fn duration(ticks: u32) -> Duration {
    Duration::from_nanos(ticks as u64 * TICK_NANOS)
}

/// Bytes that are read from the front, each read with the name of what it was for.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn left(&self) -> usize {
        self.rest.len()
    }

    fn bytes<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Invalid> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(Invalid::new(field, format!("{} bytes", self.rest.len()), format!("{N} bytes")));
        };
        self.rest = rest;
        Ok(*bytes)
    }

    fn uint<const N: usize>(&mut self, field: &'static str) -> Result<u64, Invalid> {
        Ok(self.bytes::<N>(field)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, Invalid> {
        self.bytes(field).map(u8::from_le_bytes)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, Invalid> {
        self.bytes(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, Invalid> {
        self.bytes(field).map(u32::from_le_bytes)
    }
}
