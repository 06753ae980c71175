//! A packet on its way through the stack.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hibernet_conntrack::{Ahead, Attachment, Parsed, Zone, parse, proto};

use crate::drop_reason::DropReason;
use crate::event::PacketEnds;
use crate::fragments::Cuts;
use crate::link::LinkId;
use crate::offload::{Offload, segments};
use crate::reject::RejectWith;
use crate::route::NextHop;
use crate::rules::Subject;

/// A datagram and what the stack knows of it.
///
/// Not `Clone`: a new flow that is not in the table yet is a value inside its first packet, and no second packet may hold
/// it. What needs a second copy takes [`Packet::duplicate`].
#[derive(Debug)]
pub struct Packet {
    /// The datagram, behind what its link had in front of it: room for what the next link wants there.
    frame: Vec<u8>,
    at: usize,
    parsed: Parsed,
    pub(crate) attachment: Attachment,
    /// The zone that a rule chose. Like a kernel's packet, it is chosen once: later rules change nothing.
    pub(crate) zone: Option<Zone>,
    pub(crate) iif: Option<LinkId>,
    pub(crate) oif: Option<LinkId>,
    /// The router its route leads to; none where the destination is on the link itself.
    pub(crate) via: Option<IpAddr>,
    /// Whether it came in a frame to a group: it is not routed on, and its sender is told nothing (RFC 1122, section 3.2.2).
    pub(crate) link_group: bool,
    pub(crate) local: bool,
    /// A rule hands it to this host, whatever its destination is.
    pub(crate) tproxy: bool,
    /// How it came, if reassembly has put it together.
    pub(crate) reassembled: Option<Cuts>,
    offload: Offload,
    /// Connection tracking has verified its transport checksum.
    pub(crate) checked: bool,
    /// What the first stages of its burst found out for `track`.
    pub(crate) ahead: Ahead,
}

/// What a chain or station says of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// It goes on.
    Accept,
    /// It ends here.
    Drop(DropReason),
    /// It is kept: nothing more happens to it now.
    Stolen(Keeper),
    /// It ends here and its sender is told.
    Reject(RejectWith),
}

/// Who keeps a stolen packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Keeper {
    /// Reassembly, until the rest of the datagram is there.
    Fragments,
    /// Nobody: a SYN that was answered with a cookie.
    SynCookie,
}

impl Packet {
    /// A datagram that came in on a link.
    pub fn received(link: LinkId, bytes: Vec<u8>) -> Result<Self, DropReason> {
        Self::new(bytes, 0, Offload::NONE, Some(link), false)
    }

    /// A datagram that came in on a link behind `at` bytes of the link's, with what the link says of both; `read` if its
    /// header was read already.
    pub(crate) fn received_in(
        link: LinkId,
        frame: Vec<u8>,
        at: usize,
        offload: Offload,
        read: Option<Parsed>,
    ) -> Result<Self, DropReason> {
        match read {
            Some(parsed) => Self::with_header(frame, at, parsed, offload, Some(link), false),
            None => Self::new(frame, at, offload, Some(link), false),
        }
    }

    /// A datagram this host makes.
    pub(crate) fn originated(bytes: Vec<u8>) -> Result<Self, DropReason> {
        Self::new(bytes, 0, Offload::NONE, None, true)
    }

    /// The same bytes as a packet of its own, for flooding and mirroring.
    ///
    /// The copy belongs to the same flow if that is in the table. A new flow stays with the original, and ends with it when
    /// it is dropped; the copy is then exempt from tracking.
    pub fn duplicate(&self) -> Self {
        let Self {
            frame,
            at,
            parsed,
            attachment,
            zone,
            iif,
            oif,
            via,
            link_group,
            local,
            tproxy,
            reassembled,
            offload,
            checked,
            ahead,
        } = self;
        Self {
            frame: frame.clone(),
            at: *at,
            parsed: *parsed,
            attachment: attachment.for_duplicate(),
            zone: *zone,
            iif: *iif,
            oif: *oif,
            via: *via,
            link_group: *link_group,
            local: *local,
            tproxy: *tproxy,
            reassembled: reassembled.clone(),
            offload: *offload,
            checked: *checked,
            ahead: *ahead,
        }
    }

    /// Settles the way it leaves by.
    pub(crate) const fn leave_by(&mut self, hop: NextHop) {
        self.oif = Some(hop.link);
        self.via = hop.via;
    }

    /// A fragment or segment of it, cut on the way out or to a socket.
    pub(crate) fn piece(&self, bytes: Vec<u8>, offload: Offload) -> Result<Self, DropReason> {
        let Self { frame: _, at: _, parsed: _, attachment, zone, iif, oif, via, link_group, local, tproxy, .. } = self;
        let attachment = attachment.for_duplicate();
        let (zone, oif, via, link_group, tproxy) = (*zone, *oif, *via, *link_group, *tproxy);
        Ok(Self { attachment, zone, oif, via, link_group, tproxy, ..Self::new(bytes, 0, offload, *iif, *local)? })
    }

    /// Its segments as packets, with complete checksums or, if `partial`, with missing ones; none if it is one segment.
    pub(crate) fn segments(&self, partial: bool) -> Option<Result<Vec<Self>, DropReason>> {
        let pieces = segments(self.bytes(), &self.parsed, self.offload.segmentation?, partial, &[])?;
        Some(pieces.into_iter().map(|(bytes, offload)| self.piece(bytes, offload)).collect())
    }

    /// Its segments as frames behind `front`, as [`Packet::segments`].
    pub(crate) fn framed_segments(&self, partial: bool, front: &[u8]) -> Option<Vec<(Vec<u8>, Offload)>> {
        segments(self.bytes(), &self.parsed, self.offload.segmentation?, partial, front)
    }

    /// What is left to do about it.
    pub(crate) const fn offload(&self) -> Offload {
        self.offload
    }

    /// Says what is left to do about a packet this host has made: in front of the sum over the pseudo header, which is
    /// written here. Refused where it does not fit the packet.
    pub(crate) fn leave_to_link(&mut self, offload: Offload) -> Result<(), DropReason> {
        let Self { frame, at, parsed, .. } = self;
        self.offload = offload.accept(frame.get_mut(*at..).unwrap_or_default(), 0, parsed)?;
        Ok(())
    }

    /// Length of the longest segment it stands for: what a link's MTU is held against.
    pub(crate) fn longest_segment(&self) -> usize {
        let Some(segmentation) = self.offload.segmentation else { return self.len() };
        let transport = segmentation.kind.transport_header(self.parsed.l4(self.bytes()));
        self.parsed.header_len.saturating_add(transport).saturating_add(segmentation.size.into()).min(self.len())
    }

    /// Computes a checksum that is missing.
    pub(crate) fn complete_checksum(&mut self) {
        let Self { frame, at, offload, .. } = self;
        offload.complete(frame.get_mut(*at..).unwrap_or_default());
    }

    /// The datagram as it is now.
    pub fn bytes(&self) -> &[u8] {
        self.frame.get(self.at..).unwrap_or_default()
    }

    /// What connection tracking says of it.
    pub const fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.frame.drain(..self.at.min(self.frame.len()));
        self.frame
    }

    /// The datagram behind `header`: in the room that its last link's header has left, if it is as long.
    pub(crate) fn into_frame(mut self, header: &[u8]) -> Vec<u8> {
        if self.at == header.len()
            && let Some(room) = self.frame.get_mut(..self.at)
        {
            room.copy_from_slice(header);
            return self.frame;
        }
        [header, self.bytes()].concat()
    }

    pub(crate) const fn parsed(&self) -> &Parsed {
        &self.parsed
    }

    pub(crate) const fn src(&self) -> IpAddr {
        self.parsed.src
    }

    pub(crate) const fn dst(&self) -> IpAddr {
        self.parsed.dst
    }

    pub(crate) fn len(&self) -> usize {
        self.frame.len().saturating_sub(self.at)
    }

    /// Bytes and attachment apart, for connection tracking to change both.
    pub(crate) fn parts_mut(&mut self) -> (&mut [u8], &mut Attachment) {
        (self.frame.get_mut(self.at..).unwrap_or_default(), &mut self.attachment)
    }

    /// The bytes to be translated, with what their header says and whose they are.
    pub(crate) fn translatable(&mut self) -> (&mut [u8], &Parsed, &Attachment) {
        (self.frame.get_mut(self.at..).unwrap_or_default(), &self.parsed, &self.attachment)
    }

    /// Reads the addresses again after a translation. Offsets do not change by one.
    pub(crate) fn readdress(&mut self) {
        if let Some((src, dst)) = addresses(self.bytes()) {
            self.parsed.src = src;
            self.parsed.dst = dst;
            let Self { frame, at, parsed, offload, .. } = self;
            offload.write_pseudo_header(frame.get_mut(*at..).unwrap_or_default(), parsed);
        }
    }

    /// Takes over a datagram put together from fragments.
    pub(crate) fn replace(&mut self, bytes: Vec<u8>, cuts: Option<Cuts>) -> Result<(), DropReason> {
        self.parsed = parse(&bytes).map_err(DropReason::from)?;
        self.frame = bytes;
        self.at = 0;
        self.offload = Offload::NONE;
        self.reassembled = cuts;
        Ok(())
    }

    /// What rules look at. `mark` is that of the packet's flow.
    pub(crate) fn subject(&self, mark: Option<u32>) -> Subject {
        let l4 = self.parsed.l4(self.bytes());
        let has_ports = matches!(self.parsed.proto, proto::TCP | proto::UDP | proto::SCTP | proto::UDP_LITE | DCCP);
        let ports = match l4 {
            [s1, s0, d1, d0, ..] if has_ports => Some((u16::from_be_bytes([*s1, *s0]), u16::from_be_bytes([*d1, *d0]))),
            _ => None,
        };
        let tcp_flags = if self.parsed.proto == proto::TCP { l4.get(TCP_FLAGS).copied() } else { None };
        Subject {
            iif: self.iif,
            oif: self.oif,
            src: self.parsed.src,
            dst: self.parsed.dst,
            proto: self.parsed.proto,
            ports,
            tcp_flags,
            state: self.attachment.state(),
            direction: self.attachment.direction(),
            mark,
        }
    }

    /// Between whom it travels.
    pub(crate) fn ends(&self) -> PacketEnds {
        let Subject { src, dst, proto, ports, .. } = self.subject(None);
        PacketEnds { src, dst, proto, ports }
    }

    /// Takes one from time to live or hop limit, with IPv4's checksum brought after (RFC 1624, equation 3).
    pub(crate) fn age(&mut self) {
        self.parsed.ttl = self.parsed.ttl.saturating_sub(1);
        let is_v4 = self.parsed.src.is_ipv4();
        let ttl = self.parsed.ttl;
        let (bytes, _) = self.parts_mut();
        match is_v4 {
            true => {
                if let Some([old, proto, sum1, sum0]) =
                    bytes.get_mut(V4_TTL..).and_then(|rest| rest.first_chunk_mut::<4>())
                {
                    let (before, after) = ([*old, *proto], [ttl, *proto]);
                    *old = ttl;
                    let sum = u32::from(!u16::from_be_bytes([*sum1, *sum0]))
                        .wrapping_add(u32::from(!u16::from_be_bytes(before)))
                        .wrapping_add(u32::from(u16::from_be_bytes(after)));
                    let folded = (sum & 0xffff).wrapping_add(sum >> 16);
                    let folded = (folded & 0xffff).wrapping_add(folded >> 16);
                    let [high, low] = (!u16::try_from(folded & 0xffff).unwrap_or(0)).to_be_bytes();
                    *sum1 = high;
                    *sum0 = low;
                }
            }
            false => {
                if let Some(hops) = bytes.get_mut(V6_HOP_LIMIT) {
                    *hops = ttl;
                }
            }
        }
    }

    fn new(frame: Vec<u8>, at: usize, offload: Offload, iif: Option<LinkId>, local: bool) -> Result<Self, DropReason> {
        let parsed = parse(frame.get(at..).unwrap_or_default()).map_err(DropReason::from)?;
        Self::with_header(frame, at, parsed, offload, iif, local)
    }

    fn with_header(
        mut frame: Vec<u8>,
        at: usize,
        parsed: Parsed,
        offload: Offload,
        iif: Option<LinkId>,
        local: bool,
    ) -> Result<Self, DropReason> {
        // What a link padded the datagram with is no part of it.
        frame.truncate(at.saturating_add(parsed.end));
        let offload = match offload {
            Offload::NONE => offload,
            said => said.accept(frame.get_mut(at..).unwrap_or_default(), at, &parsed)?,
        };
        Ok(Self {
            frame,
            at,
            parsed,
            attachment: Attachment::default(),
            zone: None,
            iif,
            oif: None,
            via: None,
            link_group: false,
            local,
            tproxy: false,
            reassembled: None,
            offload,
            checked: false,
            ahead: Ahead::default(),
        })
    }
}

fn addresses(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match bytes.first()? >> 4 {
        4 => {
            let [s3, s2, s1, s0, d3, d2, d1, d0] = *bytes.get(12..)?.first_chunk::<8>()?;
            Some((Ipv4Addr::new(s3, s2, s1, s0).into(), Ipv4Addr::new(d3, d2, d1, d0).into()))
        }
        _ => {
            let src = bytes.get(8..)?.first_chunk::<16>()?;
            let dst = bytes.get(24..)?.first_chunk::<16>()?;
            Some((Ipv6Addr::from(*src).into(), Ipv6Addr::from(*dst).into()))
        }
    }
}

const V4_TTL: usize = 8;
const V6_HOP_LIMIT: usize = 7;
const TCP_FLAGS: usize = 13;
const DCCP: u8 = 33;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_packets::udp;

    #[test]
    fn ageing_keeps_the_header_checksum_right_for_every_ttl() {
        for ttl in 1..=255 {
            let mut bytes = udp("10.0.0.2:1", "198.51.100.10:2", b"payload");
            bytes[V4_TTL] = ttl;
            crate::test_packets::fill_header_checksum(&mut bytes);
            let mut packet = Packet::received(LinkId::LOOPBACK, bytes).unwrap();
            packet.age();
            let again = Packet::received(LinkId::LOOPBACK, packet.into_bytes()).unwrap();
            assert_eq!(again.parsed().ttl, ttl - 1);
        }
    }

    #[test]
    fn a_duplicate_has_the_bytes_and_stays_out_of_tracking() {
        let mut packet = Packet::received(LinkId::LOOPBACK, udp("10.0.0.2:1", "198.51.100.10:2", b"x")).unwrap();
        packet.attachment = Attachment::untracked();
        let copy = packet.duplicate();
        assert_eq!(copy.bytes(), packet.bytes());
        assert_eq!(copy.attachment().state(), Some(hibernet_conntrack::CtState::Untracked));
    }

    #[test]
    fn a_duplicate_of_a_first_packet_leaves_the_new_flow_with_the_original() {
        use hibernet_conntrack::{Config, Conntrack, CtState, Origin};
        use hibernet_snapshot::{Entropy, Instant};

        let now = Instant::ZERO;
        let mut conntrack = Conntrack::new(Config::default(), &mut Entropy::from_test_seed(1), now).unwrap();
        let mut packet = Packet::received(LinkId::LOOPBACK, udp("10.0.0.2:1", "198.51.100.10:2", b"x")).unwrap();
        packet.attachment =
            conntrack.track(packet.bytes(), packet.parsed(), Zone::default(), Origin::Link, now).unwrap();
        let mut copies = [packet.duplicate(), packet.duplicate()];
        for copy in &mut copies {
            assert_eq!(copy.attachment().state(), Some(CtState::Untracked));
            conntrack.confirm(&mut copy.attachment, now).unwrap();
        }
        assert!(conntrack.is_empty());
        conntrack.confirm(&mut packet.attachment, now).unwrap();
        assert_eq!(conntrack.len(), 1);
        assert_eq!(packet.duplicate().attachment().handle(), packet.attachment().handle());
    }

    #[test]
    fn padding_of_the_link_is_cut_off() {
        let mut bytes = udp("[fd00::2]:1", "[fd00::3]:2", b"x");
        let len = bytes.len();
        bytes.extend([0; 20]);
        assert_eq!(Packet::received(LinkId::LOOPBACK, bytes).unwrap().len(), len);
    }
}
