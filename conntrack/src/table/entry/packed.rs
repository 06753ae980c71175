//! An entry as the record of an image, and back: straight from the table's own form, since millions go this way at once.
//!
//! The layout is described field by field in SNAPSHOT-FORMAT.md. A record is checked in full when it is read: what loads
//! can be written back to the same bytes. What two records have in common shows when they are filed.

use hibernet_snapshot::Invalid;

use super::{Core, Entry, Window, narrow_flags, nibbles, pack_direction, pack_nibbles, unpack_direction, widen_flags};
use crate::pack::{KIND_ALL, KIND_MARK, KIND_REPLY, KIND_V6, KIND_ZONE, Reader};
use crate::protocol::{SctpState, TcpSegmentKind, TcpState};
use crate::status::Status;
use crate::table::addr::{Addr, Ends};
use crate::table::clock::{MAX_AHEAD, Tick};
use crate::tuple::{Direction, proto};

impl<A: Addr> Entry<A> {
    /// Appends the entry's record. `now` is the tick that deadlines count from.
    #[inline]
    pub(crate) fn write(&self, out: &mut Vec<u8>, now: Tick) {
        let Self { orig, reply, core } = self;
        let plain = orig.inverted(core.proto).as_ref() == Some(reply);
        let zone = core.zone();
        let mut kind = 0;
        kind |= if A::IS_V6 { KIND_V6 } else { 0 };
        kind |= if plain { 0 } else { KIND_REPLY };
        kind |= if zone.id == 0 && !zone.orig_only { 0 } else { KIND_ZONE };
        kind |= if core.mark == 0 { 0 } else { KIND_MARK };
        let [status0, status1] = core.status.to_le_bytes();
        let [left0, left1, left2, left3] = ahead(core.deadline, now).to_le_bytes();
        out.extend_from_slice(&[kind, core.proto, status0, status1, left0, left1, left2, left3]);
        orig.write(out);
        if !plain {
            reply.write(out);
        }
        if kind & KIND_ZONE != 0 {
            out.extend_from_slice(&zone.id.to_le_bytes());
        }
        if core.mark != 0 {
            out.extend_from_slice(&core.mark.to_le_bytes());
        }
        out.extend_from_slice(&core.counter_bytes());
        match core.proto {
            proto::TCP => out.extend_from_slice(&core.tcp_bytes()),
            proto::UDP => {
                let [first, _] = core.windows;
                out.extend_from_slice(&ahead(Tick(first.end), now).to_le_bytes());
            }
            proto::SCTP => out.extend_from_slice(&core.sctp_bytes()),
            _ => {}
        }
    }

    /// Reads a record of this family, whose deadlines count from `now`, and checks all that can be said of it alone.
    #[inline]
    pub(crate) fn read(input: &mut Reader<'_>, now: Tick) -> Result<Self, Invalid> {
        let [kind, proto, status0, status1, left @ ..] = input.bytes::<8>("record")?;
        if kind & !KIND_ALL != 0 || (kind & KIND_V6 != 0) != A::IS_V6 {
            return Err(Invalid::new("kind", format!("{kind:#04x}"), "only the four known bits"));
        }
        let status = checked_status(u16::from_le_bytes([status0, status1]))?;
        let left = u32::from_le_bytes(left);
        if left == 0 || left > MAX_AHEAD {
            return Err(Invalid::new("remaining", format!("{left} ticks"), format!("1 to {MAX_AHEAD}")));
        }
        let orig = Ends::<A>::read(input)?;
        let inverse = orig.inverted(proto).filter(|_| orig.tuple(proto).may_open()).ok_or_else(|| {
            Invalid::new(
                "original",
                format!("ICMP type {}", orig.tuple(proto).icmp_type()),
                "a query type of its family",
            )
        })?;
        let reply = if kind & KIND_REPLY == 0 { inverse } else { Ends::read(input)? };
        if kind & KIND_REPLY != 0 && reply == inverse {
            return Err(Invalid::new("reply", "the inverse of the original", "no reply tuple for a plain flow"));
        }
        if matches!(proto, proto::ICMP | proto::ICMPV6) && reply.dport() != inverse.dport() {
            return Err(Invalid::new("reply", "another ICMP type", "the type that answers the original's"));
        }
        check_nat(status, reply == inverse)?;
        check_severed(status)?;
        let mut core = Core::new(proto, 0);
        core.status = status.bits();
        core.deadline = now.plus(left);
        core.zone = if kind & KIND_ZONE == 0 { 0 } else { input.u16("zone")? };
        if (kind & KIND_ZONE != 0) != (core.zone != 0 || status.contains(Status::ZONE_ORIG_ONLY)) {
            return Err(Invalid::new("zone", core.zone.to_string(), "a zone other than the default"));
        }
        core.mark = if kind & KIND_MARK == 0 { 0 } else { input.u32("mark")? };
        if kind & KIND_MARK != 0 && core.mark == 0 {
            return Err(Invalid::new("mark", "0", "no mark, or one other than 0"));
        }
        core.read_counters(&input.bytes("counters")?);
        match proto {
            proto::TCP => core.read_tcp(&input.bytes("tcp")?)?,
            proto::UDP => {
                let ahead = input.u32("stream_at")?;
                if ahead > MAX_AHEAD {
                    return Err(Invalid::new("stream_at", format!("{ahead} ticks"), format!("at most {MAX_AHEAD}")));
                }
                let [first, _] = &mut core.windows;
                first.end = now.plus(ahead).0;
            }
            proto::SCTP => core.read_sctp(&input.bytes("sctp")?)?,
            _ => {}
        }
        Ok(Self { orig, reply, core })
    }
}

impl Core {
    fn counter_bytes(&self) -> [u8; 22] {
        let ([packets0, packets1], [bytes0, bytes1]) = (self.packets, self.bytes);
        let mut out = [0; 22];
        out[..5].copy_from_slice(&packets0);
        out[5..11].copy_from_slice(&bytes0);
        out[11..16].copy_from_slice(&packets1);
        out[16..].copy_from_slice(&bytes1);
        out
    }

    fn read_counters(&mut self, input: &[u8; 22]) {
        let ([packets0, packets1], [bytes0, bytes1]) = (&mut self.packets, &mut self.bytes);
        packets0.copy_from_slice(&input[..5]);
        bytes0.copy_from_slice(&input[5..11]);
        packets1.copy_from_slice(&input[11..16]);
        bytes1.copy_from_slice(&input[16..]);
    }

    fn tcp_bytes(&self) -> [u8; 54] {
        let (direction, kind) = unpack_direction(self.last_kind);
        let [wscale, flags] = nibbles(self.last_syn);
        let ([scale0, scale1], [flags0, flags1]) = (nibbles(self.scales), self.flags);
        let [window0, window1] = self.windows;
        let mut out = [0; 54];
        out[..6].copy_from_slice(&[
            self.state,
            self.retrans,
            direction.index() as u8,
            kind,
            wscale,
            widen_flags(flags),
        ]);
        out[6..10].copy_from_slice(&self.last_seq.to_le_bytes());
        out[10..14].copy_from_slice(&self.last_ack.to_le_bytes());
        out[14..16].copy_from_slice(&self.last_len.to_le_bytes());
        out[16..18].copy_from_slice(&self.last_win.to_le_bytes());
        out[18..36].copy_from_slice(&window0.bytes(scale0, flags0));
        out[36..].copy_from_slice(&window1.bytes(scale1, flags1));
        out
    }

    fn read_tcp(&mut self, input: &[u8; 54]) -> Result<(), Invalid> {
        let [state, retrans, direction, kind, wscale, flags, seq0, seq1, seq2, seq3, ack0, ack1, ack2, ack3, rest @ ..] =
            *input;
        let [len0, len1, win0, win1, sides @ ..] = rest;
        if !matches!(TcpState::from_number(state), Some(state) if state != TcpState::None) {
            return Err(Invalid::new("tcp.state", state.to_string(), "1 to 9"));
        }
        let direction = direction_of("tcp.last_dir", direction)?;
        if TcpSegmentKind::from_number(kind).is_none() {
            return Err(Invalid::new("tcp.last_index", kind.to_string(), "0 to 5"));
        }
        check_scale("tcp.last_wscale", wscale)?;
        if flags & !0xc3 != 0 {
            return Err(Invalid::new("tcp.last_flags", format!("{flags:#04x}"), "no bits but 0xc3"));
        }
        self.state = state;
        self.retrans = retrans;
        self.last_kind = pack_direction(direction, kind);
        self.last_syn = pack_nibbles(wscale, narrow_flags(flags));
        self.last_seq = u32::from_le_bytes([seq0, seq1, seq2, seq3]);
        self.last_ack = u32::from_le_bytes([ack0, ack1, ack2, ack3]);
        self.last_len = u16::from_le_bytes([len0, len1]);
        self.last_win = u16::from_le_bytes([win0, win1]);
        let mut first = [0; 18];
        let mut second = [0; 18];
        first.copy_from_slice(&sides[..18]);
        second.copy_from_slice(&sides[18..]);
        let (window0, scale0, flags0) = Window::read(&first)?;
        let (window1, scale1, flags1) = Window::read(&second)?;
        self.windows = [window0, window1];
        self.scales = pack_nibbles(scale0, scale1);
        self.flags = [flags0, flags1];
        Ok(())
    }

    fn sctp_bytes(&self) -> [u8; 11] {
        let (direction, flags) = unpack_direction(self.last_kind);
        let [window0, window1] = self.windows;
        let mut out = [self.state, direction.index() as u8, flags, 0, 0, 0, 0, 0, 0, 0, 0];
        out[3..7].copy_from_slice(&window0.end.to_le_bytes());
        out[7..].copy_from_slice(&window1.end.to_le_bytes());
        out
    }

    fn read_sctp(&mut self, input: &[u8; 11]) -> Result<(), Invalid> {
        let [state, direction, flags, tag0, tag1, tag2, tag3, other @ ..] = *input;
        if !matches!(SctpState::from_number(state), Some(state) if state != SctpState::None) {
            return Err(Invalid::new("sctp.state", state.to_string(), "1 to 8"));
        }
        let direction = direction_of("sctp.last_dir", direction)?;
        if flags & !0x07 != 0 {
            return Err(Invalid::new("sctp.flags", format!("{flags:#04x}"), "the low three bits"));
        }
        self.state = state;
        self.last_kind = pack_direction(direction, flags);
        let [window0, window1] = &mut self.windows;
        window0.end = u32::from_le_bytes([tag0, tag1, tag2, tag3]);
        window1.end = u32::from_le_bytes(other);
        Ok(())
    }
}

impl Window {
    fn bytes(self, scale: u8, flags: u8) -> [u8; 18] {
        let Self { end, maxend, maxwin, maxack } = self;
        let mut out = [0; 18];
        out[..4].copy_from_slice(&end.to_le_bytes());
        out[4..8].copy_from_slice(&maxend.to_le_bytes());
        out[8..12].copy_from_slice(&maxwin.to_le_bytes());
        out[12..16].copy_from_slice(&maxack.to_le_bytes());
        out[16..].copy_from_slice(&[scale, flags]);
        out
    }

    fn read(input: &[u8; 18]) -> Result<(Self, u8, u8), Invalid> {
        let [e0, e1, e2, e3, m0, m1, m2, m3, w0, w1, w2, w3, a0, a1, a2, a3, scale, flags] = *input;
        check_scale("tcp.scale", scale)?;
        let window = Self {
            end: u32::from_le_bytes([e0, e1, e2, e3]),
            maxend: u32::from_le_bytes([m0, m1, m2, m3]),
            maxwin: u32::from_le_bytes([w0, w1, w2, w3]),
            maxack: u32::from_le_bytes([a0, a1, a2, a3]),
        };
        Ok((window, scale, flags))
    }
}

/// Ticks from `now` to a tick; none to one that has come.
fn ahead(tick: Tick, now: Tick) -> u32 {
    u32::try_from(tick.ahead_of(now)).unwrap_or(0)
}

fn checked_status(bits: u16) -> Result<Status, Invalid> {
    Status::from_bits(bits)
        .filter(|status| Status::SAVABLE.contains(*status) && status.contains(Status::CONFIRMED))
        .ok_or_else(|| Invalid::new("status", format!("{bits:#06x}"), "a confirmed flow's known status bits"))
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

fn check_scale(field: &'static str, scale: u8) -> Result<(), Invalid> {
    if scale > 14 { Err(Invalid::new(field, scale.to_string(), "0 to 14 (RFC 7323)")) } else { Ok(()) }
}

fn direction_of(field: &'static str, number: u8) -> Result<Direction, Invalid> {
    match number {
        0 => Ok(Direction::Original),
        1 => Ok(Direction::Reply),
        other => Err(Invalid::new(field, other.to_string(), "0 or 1")),
    }
}
