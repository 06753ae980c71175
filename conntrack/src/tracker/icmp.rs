//! ICMP (RFC 792) and ICMPv6 (RFC 4443): queries are flows of their own, errors belong to the flow they quote.

use core::net::IpAddr;

use super::{Opened, Outcome, Packet};
use crate::headers::{self, u16_at};
use crate::invalid::InvalidReason;
use crate::protocol::ProtocolState;
use crate::sysctl::Sysctls;
use crate::tuple::{Tuple, proto};

/// What an ICMP or ICMPv6 message is to conntrack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IcmpClass {
    /// A query or its answer: tracked by its own tuple.
    Query,
    /// About a packet of some flow: RELATED to it, if there is one.
    Error {
        /// The packet it quotes.
        inner: InnerTuple,
    },
    /// Neighbour, multicast listener and multicast router discovery: not tracked.
    Untracked,
}

/// The packet an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct InnerTuple {
    /// Its tuple as the quoted header shows it. The flow is found by the inverse.
    pub(crate) tuple: Tuple,
    /// Where the quoted IP header starts in the datagram.
    pub(crate) ip_at: usize,
    /// Where the quoted layer 4 starts. At least the ports follow; more may be cut.
    pub(crate) l4_at: usize,
}

/// Tells what an ICMP message is, after the checks that hold for all of them.
///
/// Looking up the quoted packet's flow is the caller's; none is INVALID.
pub(crate) fn classify(packet: &Packet<'_>) -> Result<IcmpClass, InvalidReason> {
    match (packet.parsed.proto, packet.parsed.is_v6()) {
        (proto::ICMP, false) => classify_v4(packet),
        (proto::ICMPV6, true) => classify_v6(packet),
        // The other family's protocol: opens no flow later on.
        _ => Ok(IcmpClass::Query),
    }
}

/// Opens a query's flow. [`classify`] has had the packet before.
pub(super) fn open(packet: &Packet<'_>, sysctls: &Sysctls) -> Result<Opened, InvalidReason> {
    let protocol = packet.parsed.proto;
    let timeout = timeout(packet, sysctls).ok_or(InvalidReason::WrongFamily { proto: protocol })?;
    let kind = kind(packet)?;
    match (protocol, kind) {
        (proto::ICMP, ECHO | TIMESTAMP | INFORMATION | ADDRESS_MASK)
        | (proto::ICMPV6, V6_ECHO | V6_NODE_INFORMATION) => Ok(Opened { state: ProtocolState::Other, timeout }),
        _ => Err(InvalidReason::IcmpNotOpening { proto: protocol, kind }),
    }
}

/// Follows a query's flow. Never ASSURED: each request is as good as a new one.
pub(super) fn update(packet: &Packet<'_>, sysctls: &Sysctls) -> Outcome {
    match timeout(packet, sysctls) {
        Some(timeout) => Outcome::refreshed(timeout),
        None => Outcome::Invalid(InvalidReason::WrongFamily { proto: packet.parsed.proto }),
    }
}

fn timeout(packet: &Packet<'_>, sysctls: &Sysctls) -> Option<u32> {
    match (packet.parsed.proto, packet.parsed.is_v6()) {
        (proto::ICMP, false) => Some(sysctls.icmp_timeout),
        (proto::ICMPV6, true) => Some(sysctls.icmpv6_timeout),
        _ => None,
    }
}

fn classify_v4(packet: &Packet<'_>) -> Result<IcmpClass, InvalidReason> {
    let kind = kind(packet)?;
    packet.verify()?;
    match kind {
        UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM => error(packet, HEADER),
        0..=HIGHEST_TYPE => Ok(IcmpClass::Query),
        _ => Err(InvalidReason::IcmpType { proto: proto::ICMP, kind }),
    }
}

fn classify_v6(packet: &Packet<'_>) -> Result<IcmpClass, InvalidReason> {
    let kind = kind(packet)?;
    packet.verify()?;
    match kind {
        0..V6_FIRST_INFORMATIONAL => error(packet, HEADER),
        MLD_QUERY..=NEIGHBOUR_ADVERTISEMENT | MLD2_REPORT | MULTICAST_ROUTER | MULTICAST_ROUTER_SOLICITATION => {
            Ok(IcmpClass::Untracked)
        }
        V6_REDIRECT => redirect(packet),
        _ => Ok(IcmpClass::Query),
    }
}

/// A redirect quotes the packet in an option (RFC 4861, section 4.5); only the first option is looked at.
fn redirect(packet: &Packet<'_>) -> Result<IcmpClass, InvalidReason> {
    let from_neighbour = matches!(packet.parsed.src, IpAddr::V6(src) if src.is_unicast_link_local());
    if packet.parsed.ttl != 255 || !from_neighbour {
        return Err(InvalidReason::RedirectFromAfar { ttl: packet.parsed.ttl });
    }
    let l4 = packet.l4();
    // No code but 0 is defined: with another this is some other message, of a type that opens no flow.
    if l4.get(1) != Some(&0) {
        return Ok(IcmpClass::Query);
    }
    match l4.get(REDIRECT_OPTIONS..).and_then(|options| options.first_chunk::<2>()) {
        None | Some([_, 0]) => Err(InvalidReason::IcmpInner { proto: proto::ICMPV6 }),
        Some([REDIRECTED_HEADER, _]) => error(packet, REDIRECT_OPTIONS.saturating_add(REDIRECTED_HEADER_LEN)),
        Some(_) => Ok(IcmpClass::Query),
    }
}

/// Reads the quoted packet that starts at an offset in layer 4.
fn error(packet: &Packet<'_>, at: usize) -> Result<IcmpClass, InvalidReason> {
    let protocol = packet.parsed.proto;
    let ip_at = packet.parsed.header_len.saturating_add(at);
    let quoted = packet.datagram.get(ip_at..packet.parsed.end).unwrap_or_default();
    let (tuple, l4_offset) = match packet.parsed.is_v6() {
        true => quoted_v6(quoted),
        false => quoted_v4(quoted),
    }
    .ok_or(InvalidReason::IcmpInner { proto: protocol })?;
    if tuple.inverted().is_none() {
        return Err(InvalidReason::IcmpInner { proto: protocol });
    }
    if packet.parsed.dst != tuple.src {
        return Err(InvalidReason::IcmpMisdirected { proto: protocol });
    }
    Ok(IcmpClass::Error { inner: InnerTuple { tuple, ip_at, l4_at: ip_at.saturating_add(l4_offset) } })
}

/// Tuple and layer 4 offset of a quoted IPv4 packet. Only what the tuple needs is looked at: neither length nor checksum.
fn quoted_v4(quoted: &[u8]) -> Option<(Tuple, usize)> {
    let header = quoted.first_chunk::<{ headers::V4_HEADER }>()?;
    let [version_ihl, _, _, _, _, _, _, _, _, proto, ..] = *header;
    if u16_at(header, 6)? & 0x1fff != 0 {
        return None;
    }
    let l4_at = usize::from(version_ihl & 0x0f).saturating_mul(4);
    let tuple = quoted_tuple(
        quoted,
        l4_at,
        IpAddr::V4(headers::v4_at(header, 12)?),
        IpAddr::V4(headers::v4_at(header, 16)?),
        proto,
    )?;
    Some((tuple, l4_at))
}

/// Tuple and layer 4 offset of a quoted IPv6 packet.
fn quoted_v6(quoted: &[u8]) -> Option<(Tuple, usize)> {
    let header = quoted.first_chunk::<{ headers::V6_HEADER }>()?;
    let [_, _, _, _, _, _, next_header, ..] = *header;
    let chain = headers::walk_extensions(quoted, headers::V6_HEADER, headers::V6_NEXT_HEADER, next_header);
    if !chain.complete {
        return None;
    }
    let tuple = quoted_tuple(
        quoted,
        chain.end,
        IpAddr::V6(headers::v6_at(header, 8)?),
        IpAddr::V6(headers::v6_at(header, 24)?),
        chain.proto,
    )?;
    Some((tuple, chain.end))
}

fn quoted_tuple(quoted: &[u8], l4_at: usize, src: IpAddr, dst: IpAddr, proto: u8) -> Option<Tuple> {
    let (sport, dport) = headers::ports_at(proto, quoted.get(l4_at..)?)?;
    Some(Tuple { src, dst, proto, sport, dport })
}

/// The type of a message whose header is whole.
fn kind(packet: &Packet<'_>) -> Result<u8, InvalidReason> {
    match packet.l4().first_chunk::<HEADER>() {
        Some([kind, ..]) => Ok(*kind),
        None => Err(InvalidReason::ShortPacket { proto: packet.parsed.proto }),
    }
}

/// Type, code, checksum and four bytes that each type uses in its way.
const HEADER: usize = 8;

// ICMP types, RFC 792 and RFC 950.
const UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const REDIRECT: u8 = 5;
const ECHO: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
const TIMESTAMP: u8 = 13;
const INFORMATION: u8 = 15;
const ADDRESS_MASK: u8 = 17;
/// Address mask reply: conntrack knows no type above.
const HIGHEST_TYPE: u8 = 18;

// ICMPv6 types, RFC 4443, RFC 2710, RFC 3810, RFC 4861, RFC 4620. All below the first informational one are errors.
const V6_FIRST_INFORMATIONAL: u8 = 128;
const V6_ECHO: u8 = 128;
const MLD_QUERY: u8 = 130;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const V6_REDIRECT: u8 = 137;
const V6_NODE_INFORMATION: u8 = 139;
const MLD2_REPORT: u8 = 143;
/// RFC 4286.
const MULTICAST_ROUTER: u8 = 151;
const MULTICAST_ROUTER_SOLICITATION: u8 = 152;

/// Where a redirect's options begin: behind header, target and destination.
const REDIRECT_OPTIONS: usize = 40;
const REDIRECTED_HEADER: u8 = 4;
/// Bytes of that option before the quoted packet.
const REDIRECTED_HEADER_LEN: usize = 8;

#[cfg(test)]
mod tests;
