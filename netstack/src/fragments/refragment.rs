//! Datagrams into fragments: as they came, or as the link demands.

use hibernet_conntrack::{Parsed, proto};
use smoltcp::wire::Ipv4Packet;

use super::Cuts;
use super::queue::{FRAGMENT_HEADER, V6_HEADER};

/// What a datagram looks like on its link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refragmented {
    /// It goes as it is.
    Whole,
    /// It goes in these pieces, in order.
    Pieces(Vec<Vec<u8>>),
    /// It cannot be cut that small.
    TooBig,
}

/// Cuts a datagram for a link that takes `mtu` bytes. Call it for what may be cut: whether don't-fragment or IPv6 forbids
/// it is the caller's to know.
///
/// A datagram that was put together leaves in the fragments it came in, with the first one's header. If one of them would
/// not fit, for the link is narrower or the first header longer than theirs, or if the first had less than the transport
/// header, all pieces are as long as the link takes, and as the largest fragment was at most. Linux 6.18 in detail:
/// - IPv4: fragments that leave as they came have don't-fragment cleared, others keep it. Options that are not to be
///   copied (RFC 791, section 3.1) become no-operations behind the first.
/// - IPv6: the datagram gets another identification, `id`. It leaves whole if it is no longer than the largest fragment
///   was. The fragment header goes behind hop-by-hop options, routing header, and destination options in front of that;
///   without a routing header, behind all destination options.
pub(crate) fn refragment(
    datagram: &[u8],
    parsed: &Parsed,
    cuts: Option<&Cuts>,
    mtu: usize,
    id: impl FnOnce() -> u32,
) -> Refragmented {
    let Some(datagram) = datagram.get(..parsed.end) else { return Refragmented::TooBig };
    let fits = datagram.len() <= mtu;
    let as_came = match (cuts, parsed.is_v6()) {
        (None, _) => true,
        (Some(_), false) => false,
        (Some(cuts), true) => datagram.len() <= cuts.largest,
    };
    if fits && as_came {
        return Refragmented::Whole;
    }
    let pieces =
        if parsed.is_v6() { cut_v6(datagram, parsed, cuts, mtu, id) } else { cut_v4(datagram, parsed, cuts, mtu) };
    pieces.map_or(Refragmented::TooBig, Refragmented::Pieces)
}

fn cut_v4(datagram: &[u8], parsed: &Parsed, cuts: Option<&Cuts>, mtu: usize) -> Option<Vec<Vec<u8>>> {
    let (header, payload) = datagram.split_at_checked(parsed.header_len)?;
    let limit = cuts.map_or(mtu, |cuts| cuts.largest.min(mtu));
    let plan = Plan::new(datagram.len(), header.len(), as_came(cuts, parsed), limit.checked_sub(header.len())?)?;
    let (base, more_follow) = parsed.fragment.map_or((0, false), |fragment| (fragment.offset, fragment.more));
    let mut header = header.to_vec();
    let mut pieces = Vec::with_capacity(plan.lengths.len());
    let mut rest = payload;
    for len in plan.lengths {
        let offset = payload.len().saturating_sub(rest.len());
        let (piece, following) = rest.split_at_checked(len)?;
        rest = following;
        let mut bytes = [header.as_slice(), piece].concat();
        let total = u16::try_from(bytes.len()).ok()?;
        // Its header has been parsed: no accessor runs past it.
        let mut packet = Ipv4Packet::new_unchecked(bytes.as_mut_slice());
        packet.set_total_len(total);
        packet.set_frag_offset(u16::try_from(base.saturating_add(offset)).ok()?);
        packet.set_more_frags(more_follow || !rest.is_empty());
        packet.set_dont_frag(parsed.dont_fragment && !plan.as_came);
        packet.fill_checksum();
        pieces.push(bytes);
        if offset == 0 {
            blank_uncopied_options(&mut header);
        }
    }
    Some(pieces)
}

fn cut_v6(
    datagram: &[u8],
    parsed: &Parsed,
    cuts: Option<&Cuts>,
    mtu: usize,
    id: impl FnOnce() -> u32,
) -> Option<Vec<Vec<u8>>> {
    if parsed.fragment.is_some() {
        return None;
    }
    let (at, named_at) = unfragmentable(datagram)?;
    let (head, payload) = datagram.split_at_checked(at)?;
    let limit = cuts.map_or(mtu, |cuts| cuts.largest.max(LEAST_MTU).min(mtu));
    let plan =
        Plan::new(datagram.len(), at, as_came(cuts, parsed), limit.checked_sub(at)?.checked_sub(FRAGMENT_HEADER)?)?;
    let mut head = head.to_vec();
    let next_header = core::mem::replace(head.get_mut(named_at)?, FRAGMENT);
    let id = id().to_be_bytes();
    let mut pieces = Vec::with_capacity(plan.lengths.len());
    let mut rest = payload;
    for len in plan.lengths {
        let offset = payload.len().saturating_sub(rest.len());
        let (piece, following) = rest.split_at_checked(len)?;
        rest = following;
        let place = u16::try_from(offset).ok()? | u16::from(!rest.is_empty());
        let [high, low] = place.to_be_bytes();
        let mut bytes = [&head, [next_header, 0, high, low].as_slice(), &id, piece].concat();
        let len = u16::try_from(bytes.len().checked_sub(V6_HEADER)?).ok()?;
        bytes.get_mut(4..6)?.copy_from_slice(&len.to_be_bytes());
        pieces.push(bytes);
    }
    Some(pieces)
}

/// How long the pieces are.
struct Plan {
    lengths: Vec<usize>,
    /// Whether they are the fragments that came.
    as_came: bool,
}

impl Plan {
    /// For a datagram of that length with a header of that length, in pieces of at most `room`. `None` if there is no room.
    fn new(datagram: usize, header: usize, cuts: Option<&Cuts>, room: usize) -> Option<Self> {
        if let Some(lengths) = cuts.and_then(|cuts| cuts.lengths(datagram, header, room)) {
            return Some(Self { lengths, as_came: true });
        }
        let step = room & !7;
        let payload = datagram.checked_sub(header)?;
        let count = payload.checked_div(step)?;
        let mut lengths = vec![step; count];
        match payload.saturating_sub(step.saturating_mul(count)) {
            0 => {}
            rest => lengths.push(rest),
        }
        Some(Self { lengths, as_came: false })
    }
}

impl Cuts {
    /// The lengths of the original pieces behind a header of that length, if they can be sent.
    fn lengths(&self, datagram: usize, header: usize, room: usize) -> Option<Vec<usize>> {
        let mut lengths = Vec::with_capacity(self.ends.len());
        let mut start = header;
        for end in &self.ends {
            let len = end.checked_sub(start)?;
            let is_last = *end == datagram;
            if len == 0 || len > room || !is_last && len % 8 != 0 {
                return None;
            }
            lengths.push(len);
            start = *end;
        }
        (start == datagram).then_some(lengths)
    }
}

/// The cuts, if the first piece has the fixed part of the transport header: a kernel that looks at one which does not joins
/// it with the next, and so gives the original sizes up.
fn as_came<'a>(cuts: Option<&'a Cuts>, parsed: &Parsed) -> Option<&'a Cuts> {
    let header = match parsed.proto {
        proto::TCP => 20,
        proto::SCTP => 12,
        _ => 0,
    };
    let header_end = parsed.header_len.saturating_add(header);
    cuts.filter(|cuts| cuts.ends.first().is_some_and(|end| *end >= header_end))
}

/// Makes the options that are not to be copied into later fragments no-operations.
fn blank_uncopied_options(header: &mut [u8]) {
    let mut at = 20_usize;
    while let Some(&kind) = header.get(at) {
        let len = match kind {
            END_OF_OPTIONS => return,
            NO_OPERATION => 1,
            _ => usize::from(header.get(at.saturating_add(1)).copied().unwrap_or(0)),
        };
        let next = at.saturating_add(len);
        if len < 1 || kind != NO_OPERATION && len < 2 {
            return;
        }
        let Some(option) = header.get_mut(at..next) else { return };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        at = next;
    }
}

/// The end of the headers that all fragments carry, and where the header behind them is named (RFC 8200, section 4.5).
fn unfragmentable(datagram: &[u8]) -> Option<(usize, usize)> {
    let (mut at, mut named_at) = (V6_HEADER, NEXT_HEADER);
    let mut routed = false;
    loop {
        match *datagram.get(named_at)? {
            HOP_BY_HOP => {}
            ROUTING => routed = true,
            DESTINATION_OPTIONS if !routed => {}
            _ => return (at <= datagram.len()).then_some((at, named_at)),
        }
        let units = usize::from(*datagram.get(at.saturating_add(1))?);
        named_at = at;
        at = at.saturating_add(units.saturating_add(1).saturating_mul(8));
    }
}

/// Every link takes that much (RFC 8200, section 5).
const LEAST_MTU: usize = 1280;
/// Offset in the IPv6 header.
const NEXT_HEADER: usize = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Options of IPv4 (RFC 791, section 3.1).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const COPIED: u8 = 0x80;
