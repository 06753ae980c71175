//! NAT and marks: what the nat stations and rules ask of conntrack.

use core::net::IpAddr;

use hibernet_snapshot::Instant;

use super::limits::is_half_open;
use super::{Conntrack, Refusal};
use crate::attachment::{Attached, Attachment, Binding};
use crate::event::EventKind;
use crate::headers::{Parsed, parse};
use crate::nat::{
    Manip, NatRange, OneTable, Search, Surroundings, bit_of, rewrite, rewrite_quoted, translation, unique_tuple,
};
use crate::protocol::{ProtocolState, TcpState};
use crate::status::{CtState, Status};
use crate::tuple::{Direction, Tuple, Zone, proto};

impl Conntrack {
    /// Whether the packet opens a flow for which `manip` is not decided yet. Later packets never ask again: a rule that
    /// comes later does not touch a flow.
    pub const fn nat_pending(&self, attachment: &Attachment, manip: Manip) -> bool {
        is_undecided(attachment, manip)
    }

    /// Decides the binding of a new flow as a rule says. If nothing in the range is free, `confirm` will drop the packet.
    pub fn nat_bind(&mut self, attachment: &mut Attachment, manip: Manip, range: &NatRange) {
        let Self { table, sources, ports, .. } = self;
        decide(attachment, manip, range, &mut OneTable { table, sources, ports });
    }

    /// Decides that no rule translates a new flow. It may still lose its source port, to a flow that has its tuple.
    pub fn nat_null_bind(&mut self, attachment: &mut Attachment, manip: Manip) {
        if let Some(range) = null_range(attachment, manip) {
            self.nat_bind(attachment, manip, &range);
        }
    }

    /// Translates a packet as its flow's binding says; `true` if anything changed. INVALID and UNTRACKED packets, and those
    /// whose flow has left the table, pass as they are.
    pub fn nat_translate(&self, attachment: &Attachment, manip: Manip, datagram: &mut [u8]) -> Result<bool, Refusal> {
        let Some(translation) = self.translation(attachment, manip) else { return Ok(false) };
        let Ok(parsed) = parse(datagram) else { return Err(Refusal::Untranslatable) };
        translation.write(manip, datagram, &parsed).map(|()| true)
    }

    /// [`Conntrack::nat_translate`] for who has read the datagram's header as it is now.
    pub fn nat_translate_parsed(
        &self,
        attachment: &Attachment,
        manip: Manip,
        datagram: &mut [u8],
        parsed: &Parsed,
    ) -> Result<bool, Refusal> {
        let Some(translation) = self.translation(attachment, manip) else { return Ok(false) };
        translation.write(manip, datagram, parsed).map(|()| true)
    }

    /// What a packet of a flow becomes at `manip`; `None` where it stays as it is.
    #[inline]
    fn translation(&self, attachment: &Attachment, manip: Manip) -> Option<Translation> {
        let Attached::Flow { handle, direction, state, .. } = &attachment.0 else {
            return Translation::of(&attachment.own_binding()?, manip);
        };
        let flows = self.table.flows();
        let slot = flows.slot(*handle)?;
        if !flows.core(slot)?.status().contains(bit_of(*direction, manip)) {
            return None;
        }
        let target = flows.tuple(slot, direction.opposite())?.inverted()?;
        Some(Translation { target, state: *state })
    }

    /// The flow's mark (`ct mark`).
    pub fn mark(&self, attachment: &Attachment) -> u32 {
        match &attachment.0 {
            Attached::Unconfirmed(flow) => flow.mark,
            Attached::Flow { handle, .. } => {
                let flows = self.table.flows();
                flows.slot(*handle).and_then(|slot| flows.core(slot)).map_or(0, |core| core.mark)
            }
            _ => 0,
        }
    }

    /// Sets the flow's mark (`ct mark set`).
    pub fn set_mark(&mut self, attachment: &mut Attachment, mark: u32) {
        match &mut attachment.0 {
            Attached::Unconfirmed(flow) => flow.mark = mark,
            Attached::Flow { handle, .. } => {
                let Some(slot) = self.table.flows().slot(*handle) else { return };
                let Some(core) = self.table.flows_mut().core_mut(slot) else { return };
                if core.mark != mark {
                    core.mark = mark;
                    self.report(EventKind::Update, slot);
                }
            }
            _ => {}
        }
    }

    /// The router resets the flow of a packet that a rule rejects: a TCP flow in the table is in state CLOSE from now on,
    /// whatever it was, and goes after `tcp_timeout_close`.
    pub fn set_closing(&mut self, attachment: &Attachment, now: Instant) {
        let flows = self.table.flows_mut();
        flows.advance(now);
        let clock = flows.clock();
        let Some(slot) = attachment.handle().and_then(|handle| flows.slot(handle)) else { return };
        let Some(core) = flows.core_mut(slot) else { return };
        let ProtocolState::Tcp(mut track) = core.protocol(clock, now) else { return };
        let was_half_open = is_half_open(&ProtocolState::Tcp(track));
        let before = core::mem::replace(&mut track.state, TcpState::Close);
        let closing = ProtocolState::Tcp(track);
        core.set_protocol(&closing, clock);
        flows.set_timeout(slot, self.sysctls.tcp_timeout_close);
        self.half_open.follow(self.table.flows(), slot, was_half_open, &closing);
        if before != TcpState::Close {
            self.report(EventKind::Update, slot);
        }
    }

    /// Where a flow was sent to before destination NAT: `SO_ORIGINAL_DST`, asked with the tuple as the local socket sees
    /// its peer's packets.
    pub fn original_destination(&self, incoming: &Tuple, zone: Zone) -> Option<(IpAddr, u16)> {
        let (handle, direction) = self.find(&incoming.inverted()?, zone)?;
        let flow = self.flow(handle)?;
        (direction == Direction::Reply).then_some((flow.orig.dst, flow.orig.dport))
    }

    /// Tells the time without a packet: what [`Conntrack::flows`] and a save count remaining times from.
    pub fn advance(&mut self, now: Instant) {
        self.table.flows_mut().advance(now);
    }

    /// What translates a packet: its flow's binding, its direction and state.
    pub(crate) fn binding(&self, attachment: &Attachment) -> Option<(Binding, Direction, CtState)> {
        match &attachment.0 {
            Attached::Flow { handle, direction, state, .. } => {
                let flows = self.table.flows();
                let slot = flows.slot(*handle)?;
                let status = flows.core(slot)?.status();
                if !status.intersects(Status::NAT) {
                    return None;
                }
                let orig = flows.tuple(slot, Direction::Original)?;
                let reply = flows.tuple(slot, Direction::Reply)?;
                Some((Binding { orig, reply, status }, *direction, *state))
            }
            _ => attachment.own_binding(),
        }
    }
}

/// Whether a packet opens a flow for which `manip` is not decided yet.
pub(crate) const fn is_undecided(attachment: &Attachment, manip: Manip) -> bool {
    match &attachment.0 {
        Attached::Unconfirmed(flow) => !flow.status.contains(done(manip)),
        _ => false,
    }
}

/// Decides the binding of a new flow as a rule says, where it is not decided yet.
pub(crate) fn decide(
    attachment: &mut Attachment,
    manip: Manip,
    range: &NatRange,
    surroundings: &mut impl Surroundings,
) {
    if !is_undecided(attachment, manip) {
        return;
    }
    let Attached::Unconfirmed(flow) = &mut attachment.0 else { return };
    flow.status |= done(manip);
    let Some(current) = flow.reply.inverted() else { return };
    let mut search = Search { surroundings, zone: flow.zone };
    let bound = unique_tuple(&mut search, &current, &flow.orig, range, manip);
    if let Some(reply) = bound.inverted()
        && bound != current
    {
        flow.reply = reply;
        flow.status |= match manip {
            Manip::Source => Status::SRC_NAT,
            Manip::Destination => Status::DST_NAT,
        };
        flow.status.set(Status::MASQUERADE, range.masquerade || flow.status.contains(Status::MASQUERADE));
    }
}

/// The range that leaves a new flow the address it has.
pub(crate) fn null_range(attachment: &Attachment, manip: Manip) -> Option<NatRange> {
    let Attached::Unconfirmed(flow) = &attachment.0 else { return None };
    Some(NatRange::address(manip.address(&flow.reply.inverted()?)))
}

/// What a packet becomes.
struct Translation {
    target: Tuple,
    state: CtState,
}

impl Translation {
    fn of((binding, direction, state): &(Binding, Direction, CtState), manip: Manip) -> Option<Self> {
        Some(Self { target: translation(binding, *direction, manip)?, state: *state })
    }

    /// Writes it into the bytes of the packet.
    fn write(&self, manip: Manip, datagram: &mut [u8], parsed: &Parsed) -> Result<(), Refusal> {
        let translated = if self.state == CtState::Related && is_icmp(parsed) {
            rewrite_quoted(datagram, parsed, manip, &self.target)
        } else {
            rewrite(datagram, parsed, manip, &self.target)
        };
        translated.map_err(|_| Refusal::Untranslatable)
    }
}

/// Translates a packet as what [`Conntrack::binding`] found for it says; `true` if anything changed.
pub(crate) fn translate(
    bound: &(Binding, Direction, CtState),
    manip: Manip,
    datagram: &mut [u8],
) -> Result<bool, Refusal> {
    let Some(translation) = Translation::of(bound, manip) else { return Ok(false) };
    let Ok(parsed) = parse(datagram) else { return Err(Refusal::Untranslatable) };
    translation.write(manip, datagram, &parsed).map(|()| true)
}

const fn done(manip: Manip) -> Status {
    match manip {
        Manip::Source => Status::SRC_NAT_DONE,
        Manip::Destination => Status::DST_NAT_DONE,
    }
}

const fn is_icmp(parsed: &Parsed) -> bool {
    matches!(parsed.proto, proto::ICMP | proto::ICMPV6)
}
