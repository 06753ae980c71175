//! IP headers, read in place: what a datagram says of itself before any hook sees it.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::checksum;
use crate::invalid::InvalidReason;
use crate::tuple::{Tuple, proto};

/// A datagram whose IP header is sound.
///
/// Holds offsets into the bytes it was read from, not the bytes. A chain of IPv6 extension headers that leads nowhere is
/// not an error here, as it is none to a forwarding kernel: such a datagram has no layer 4 and conntrack calls it INVALID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol of layer 4; for IPv6 what the last extension header names.
    pub proto: u8,
    /// Where layer 4 starts: behind IPv4 options or IPv6 extension headers.
    pub header_len: usize,
    /// Where the datagram ends by its own length field. Bytes behind are padding of the link.
    pub end: usize,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Set when this is a fragment. An IPv6 "atomic" fragment (offset 0, no more to come) also carries one.
    pub fragment: Option<Fragment>,
    /// IPv4's don't-fragment bit; always set for IPv6, where routers do not fragment.
    pub dont_fragment: bool,
    /// Whether `header_len` and `proto` lead to a layer 4 header: not behind "no next header", a cut chain, or in a later
    /// fragment.
    pub has_l4: bool,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Offset of its first byte in the whole payload.
    pub offset: usize,
    /// Whether more follow.
    pub more: bool,
    /// What the fragments of one datagram have in common: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// IPv6: where the fragment header starts, which is where the unfragmentable part ends. IPv4: end of the header.
    pub header_at: usize,
    /// Where the byte stands that names the protocol behind the unfragmentable part.
    pub next_header_at: usize,
}

/// Why a datagram goes no further than IP's input: no hook sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ParseError {
    /// Not even the fixed header is there.
    #[error("found {found} bytes, expected an IP header of at least {expected}")]
    Short {
        /// Bytes there are.
        found: usize,
        /// Bytes the fixed header takes.
        expected: usize,
    },
    /// Neither IPv4 nor IPv6.
    #[error("found IP version {found}, expected 4 or 6")]
    Version {
        /// The version field.
        found: u8,
    },
    /// IPv4 header length below 20 bytes or beyond the datagram.
    #[error("found a header length of {found} bytes, expected 20 to {expected}")]
    HeaderLength {
        /// Stated length.
        found: usize,
        /// Bytes there are.
        expected: usize,
    },
    /// The length field promises more than there is, or less than the header.
    #[error("found a stated length of {found} bytes, expected {least} to {most}")]
    Length {
        /// Stated length, header included.
        found: usize,
        /// The header's.
        least: usize,
        /// Bytes there are.
        most: usize,
    },
    /// The IPv4 header checksum does not hold.
    #[error("the IPv4 header checksum does not hold")]
    HeaderChecksum,
    /// A multicast IPv6 source.
    #[error("found the source address {found}, expected no multicast one")]
    Source {
        /// The address.
        found: Ipv6Addr,
    },
    /// A multicast IPv6 destination of the reserved scope 0 (RFC 4291, section 2.7).
    #[error("found the destination address {found}, expected no reserved scope")]
    Destination {
        /// The address.
        found: Ipv6Addr,
    },
    /// The hop-by-hop options are cut, padded beyond reason, or one of them asks to be discarded where it is unknown.
    #[error("the hop-by-hop options cannot be processed, for the byte at {at}")]
    HopByHop {
        /// Offset of the byte at fault: the pointer of the answer, if there is to be one.
        at: usize,
        /// Code of the ICMPv6 parameter problem that the sender is owed (RFC 4443, section 3.4).
        answer: Option<u8>,
    },
}

/// Reads the IP header, with the checks of the kernel's IP input.
pub fn parse(datagram: &[u8]) -> Result<Parsed, ParseError> {
    match datagram.first() {
        None => Err(ParseError::Short { found: 0, expected: V4_HEADER }),
        Some(first) => match first >> 4 {
            4 => parse_v4(datagram),
            6 => parse_v6(datagram),
            found => Err(ParseError::Version { found }),
        },
    }
}

impl Parsed {
    /// Header and payload of layer 4, without padding of the link; empty where there is none.
    pub fn l4<'a>(&self, datagram: &'a [u8]) -> &'a [u8] {
        match self.has_l4 {
            true => datagram.get(self.header_len..self.end).unwrap_or_default(),
            false => &[],
        }
    }

    /// Whether this is IPv6.
    pub const fn is_v6(&self) -> bool {
        self.src.is_ipv6()
    }

    /// Whether IPv6 confines the datagram to the loopback link: from any other link it is dropped before the hooks.
    pub fn is_confined_to_loopback(&self) -> bool {
        match (self.src, self.dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                src.is_loopback()
                    || dst.is_loopback()
                    || dst.segments().first().is_some_and(|word| word & 0xff0f == 0xff01)
            }
            _ => false,
        }
    }
}

/// The tuple a datagram carries.
pub(crate) fn tuple_of(parsed: &Parsed, datagram: &[u8]) -> Result<Tuple, InvalidReason> {
    if !parsed.has_l4 {
        return Err(InvalidReason::NoTransportHeader);
    }
    let (sport, dport) =
        ports_at(parsed.proto, parsed.l4(datagram)).ok_or(InvalidReason::ShortPacket { proto: parsed.proto })?;
    Ok(Tuple { src: parsed.src, dst: parsed.dst, proto: parsed.proto, sport, dport })
}

/// The two 16-bit values that stand for ports. Ports take four bytes of layer 4, ICMP takes eight.
pub(crate) fn ports_at(protocol: u8, l4: &[u8]) -> Option<(u16, u16)> {
    match protocol {
        proto::TCP | proto::UDP | proto::SCTP | proto::UDP_LITE => Some((u16_at(l4, 0)?, u16_at(l4, 2)?)),
        proto::ICMP | proto::ICMPV6 => Some((u16_at(l4.get(..8)?, 4)?, u16_at(l4, 0)?)),
        proto::GRE => gre_keys(l4),
        _ => Some((0, 0)),
    }
}

/// GRE has no ports, but for PPTP's version 1 (RFC 2637, section 4.1), whose call id names the receiver's end.
fn gre_keys(l4: &[u8]) -> Option<(u16, u16)> {
    match l4 {
        [_, version, protocol @ ..] if version & 0x07 == 1 && l4.len() >= PPTP_HEADER => {
            (u16_at(protocol, 0)? == PPP).then_some((0, u16_at(l4, 6)?))
        }
        _ => Some((0, 0)),
    }
}

/// What of a UDP-Lite packet its checksum covers (RFC 3828, section 3.1); `None` if the header says what cannot be.
pub fn udp_lite_coverage(l4: &[u8]) -> Option<&[u8]> {
    match usize::from(u16_at(l4, 4)?) {
        0 => Some(l4),
        1..UDP_LITE_HEADER => None,
        covered => l4.get(..covered),
    }
}

/// Big-endian 16 bits at an offset.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*field))
}

/// Big-endian 32 bits at an offset.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*field))
}

fn parse_v4(datagram: &[u8]) -> Result<Parsed, ParseError> {
    let found = datagram.len();
    let Some(
        &[
            version_ihl,
            _,
            len_high,
            len_low,
            id_high,
            id_low,
            frag_high,
            frag_low,
            ttl,
            proto,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ],
    ) = datagram.first_chunk::<V4_HEADER>()
    else {
        return Err(ParseError::Short { found, expected: V4_HEADER });
    };
    let header_len = usize::from(version_ihl & 0x0f).saturating_mul(4);
    let header = match datagram.get(..header_len) {
        Some(header) if header_len >= V4_HEADER => header,
        _ => return Err(ParseError::HeaderLength { found: header_len, expected: found }),
    };
    // Nearly all headers are of one length: the sum over it is known to have five terms.
    let adds_up = match header.first_chunk::<V4_HEADER>() {
        Some(plain) if header_len == V4_HEADER => checksum::adds_up(0, plain),
        _ => checksum::adds_up(0, header),
    };
    if !adds_up {
        return Err(ParseError::HeaderChecksum);
    }
    let end = usize::from(u16::from_be_bytes([len_high, len_low]));
    if end > found || end < header_len {
        return Err(ParseError::Length { found: end, least: header_len, most: found });
    }
    let flags = u16::from_be_bytes([frag_high, frag_low]);
    let (offset, more) = (usize::from(flags & 0x1fff).saturating_mul(8), flags & 0x2000 != 0);
    let fragment = (offset > 0 || more).then(|| Fragment {
        offset,
        more,
        id: u32::from(u16::from_be_bytes([id_high, id_low])),
        header_at: header_len,
        next_header_at: V4_PROTOCOL,
    });
    Ok(Parsed {
        src: Ipv4Addr::new(s0, s1, s2, s3).into(),
        dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
        proto,
        header_len,
        end,
        ttl,
        fragment,
        dont_fragment: flags & 0x4000 != 0,
        has_l4: offset == 0,
    })
}

fn parse_v6(datagram: &[u8]) -> Result<Parsed, ParseError> {
    let found = datagram.len();
    let (Some(header), Some(src), Some(dst)) =
        (datagram.first_chunk::<V6_HEADER>(), v6_at(datagram, 8), v6_at(datagram, 24))
    else {
        return Err(ParseError::Short { found, expected: V6_HEADER });
    };
    let [_, _, _, _, len_high, len_low, next_header, ttl, ..] = *header;
    let stated = usize::from(u16::from_be_bytes([len_high, len_low])).saturating_add(V6_HEADER);
    // A length of nought before hop-by-hop options announces a jumbogram; the kernel then goes by what has arrived.
    let end = if stated == V6_HEADER && next_header == HOP_BY_HOP { found } else { stated };
    if end > found {
        return Err(ParseError::Length { found: end, least: V6_HEADER, most: found });
    }
    if src.is_multicast() {
        return Err(ParseError::Source { found: src });
    }
    if matches!(dst.segments(), [first, ..] if first & 0xff0f == 0xff00) {
        return Err(ParseError::Destination { found: dst });
    }
    let bytes = datagram.get(..end).unwrap_or_default();
    if next_header == HOP_BY_HOP {
        check_hop_by_hop(bytes, stated > V6_HEADER, dst.is_multicast())?;
    }
    let chain = walk_extensions(bytes, V6_HEADER, V6_NEXT_HEADER, next_header);
    Ok(Parsed {
        src: src.into(),
        dst: dst.into(),
        proto: chain.proto,
        header_len: chain.end,
        end,
        ttl,
        fragment: chain.fragment,
        dont_fragment: true,
        has_l4: chain.complete,
    })
}

/// Where a chain of IPv6 extension headers leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) proto: u8,
    pub(crate) end: usize,
    pub(crate) fragment: Option<Fragment>,
    pub(crate) complete: bool,
}

/// Walks extension headers (RFC 8200, section 4) from `start`. Each takes at least eight bytes, which bounds the walk.
pub(crate) fn walk_extensions(bytes: &[u8], start: usize, mut named_at: usize, mut next: u8) -> Chain {
    let mut at = start;
    let mut fragment = None;
    loop {
        let mut chain = Chain { proto: next, end: at, fragment, complete: false };
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | NO_NEXT_HEADER) {
            chain.complete = true;
            return chain;
        }
        let Some(&[following, units]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<2>()) else {
            return chain;
        };
        let len = match next {
            NO_NEXT_HEADER => return chain,
            FRAGMENT => {
                let (Some(flags), Some(id)) =
                    (u16_at(bytes, at.saturating_add(2)), u32_at(bytes, at.saturating_add(4)))
                else {
                    return chain;
                };
                let found = Fragment {
                    offset: usize::from(flags & 0xfff8),
                    more: flags & 1 != 0,
                    id,
                    header_at: at,
                    next_header_at: named_at,
                };
                fragment = fragment.or(Some(found));
                if found.offset > 0 {
                    return Chain { proto: following, end: at.saturating_add(8), fragment, complete: false };
                }
                8
            }
            AUTHENTICATION => usize::from(units).saturating_add(2).saturating_mul(4),
            _ => usize::from(units).saturating_add(1).saturating_mul(8),
        };
        named_at = at;
        next = following;
        at = at.saturating_add(len);
    }
}

/// Looks through hop-by-hop options as every node on the way must (RFC 8200, section 4.2).
fn check_hop_by_hop(bytes: &[u8], has_length: bool, to_multicast: bool) -> Result<(), ParseError> {
    let silently = |at| ParseError::HopByHop { at, answer: None };
    let units = bytes.get(V6_HEADER.saturating_add(1)).ok_or(silently(V6_HEADER))?;
    let end = usize::from(*units).saturating_add(1).saturating_mul(8).saturating_add(V6_HEADER);
    let bytes = bytes.get(..end).ok_or(silently(V6_HEADER))?;
    let mut at = V6_HEADER.saturating_add(2);
    let (mut padding, mut options) = (0_usize, 0_usize);
    while let Some(&kind) = bytes.get(at) {
        if kind == PAD1 {
            padding = padding.saturating_add(1);
            if padding > MOST_PADDING {
                return Err(silently(at));
            }
            at = at.saturating_add(1);
            continue;
        }
        let len = usize::from(*bytes.get(at.saturating_add(1)).ok_or(silently(at))?);
        let next = at.saturating_add(2).saturating_add(len);
        let value = bytes.get(at.saturating_add(2)..next).ok_or(silently(at))?;
        if kind == PAD_N {
            padding = padding.saturating_add(len).saturating_add(2);
            if padding > MOST_PADDING || value.iter().any(|byte| *byte != 0) {
                return Err(silently(at));
            }
        } else {
            padding = 0;
            options = options.saturating_add(1);
            if options > MOST_OPTIONS {
                return Err(silently(at));
            }
            check_option(kind, value, at, has_length, to_multicast)?;
        }
        at = next;
    }
    Ok(())
}

/// What becomes of a datagram with a hop-by-hop option that is no padding.
fn check_option(kind: u8, value: &[u8], at: usize, has_length: bool, to_multicast: bool) -> Result<(), ParseError> {
    let refused = |at, answer| Err(ParseError::HopByHop { at, answer });
    match kind {
        ROUTER_ALERT if value.len() == 2 => Ok(()),
        // Known and switched off: looked at no further than its alignment.
        IOAM if at & 3 == 0 => Ok(()),
        ROUTER_ALERT | IOAM | CALIPSO => refused(at, None),
        // No datagram here is longer than the length field can say, so a jumbo payload option is wrong in any case.
        JUMBO => match u32_at(value, 0) {
            Some(length) if value.len() == 4 && at & 3 == 2 => match length {
                0..=0xffff => refused(at.saturating_add(2), Some(HEADER_FIELD)),
                _ if has_length => refused(at, Some(HEADER_FIELD)),
                _ => refused(at, None),
            },
            _ => refused(at, None),
        },
        // The two highest bits say what to do with the unknown.
        _ => match kind >> 6 {
            0 => Ok(()),
            1 => refused(at, None),
            3 if to_multicast => refused(at, None),
            _ => refused(at, Some(UNKNOWN_OPTION)),
        },
    }
}

/// An IPv6 address at an offset.
pub(crate) fn v6_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes.get(at..)?.first_chunk::<16>().copied().map(Ipv6Addr::from)
}

/// An IPv4 address at an offset.
pub(crate) fn v4_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().copied().map(Ipv4Addr::from)
}

/// Bytes of an IPv4 header without options.
pub(crate) const V4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
pub(crate) const V6_HEADER: usize = 40;
const V4_PROTOCOL: usize = 9;
/// Bytes of a UDP-Lite header.
const UDP_LITE_HEADER: usize = 8;
/// Bytes of a GRE header of version 1 as far as the call id.
const PPTP_HEADER: usize = 8;
/// EtherType of PPP in GRE.
const PPP: u16 = 0x880b;
pub(crate) const V6_NEXT_HEADER: usize = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION: u8 = 60;

const PAD1: u8 = 0;
const PAD_N: u8 = 1;
/// RFC 2711.
const ROUTER_ALERT: u8 = 5;
/// RFC 5570: no domain of interpretation is configured, so none is valid.
const CALIPSO: u8 = 7;
/// RFC 9486.
const IOAM: u8 = 0x31;
/// RFC 2675.
const JUMBO: u8 = 0xc2;
/// ICMPv6 parameter problem: erroneous header field.
const HEADER_FIELD: u8 = 0;
/// ICMPv6 parameter problem: unrecognized option.
const UNKNOWN_OPTION: u8 = 2;
/// More padding in a row than aligns to eight bytes is refused (RFC 4942, section 2.1.9.5).
const MOST_PADDING: usize = 7;
/// `net.ipv6.max_hbh_opts_number`.
const MOST_OPTIONS: usize = 8;

#[cfg(test)]
mod tests;
