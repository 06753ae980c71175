//! Puts a translation into the bytes of a datagram.
//!
//! Pure functions: no table, no decision. Checksums are updated by the difference of what was changed (RFC 1624, equation
//! 3), so a datagram that was damaged before is just as damaged after. Measured on Linux 6.18:
//! - UDP's "no checksum" (0) stays, in IPv6 too; a computed 0 is written as 0xffff.
//! - SCTP has no difference to go by: its CRC32c is computed anew, and a wrong one becomes right. So it is in a quoted
//!   packet, over no more than what is quoted.
//! - An error with a wrong checksum of its own is not translated: the caller drops it ([`Malformed::Checksum`]).
//! - An error's quote is changed at the opposite end. TCP quoted for 8 bytes gets its port changed alone; one shorter
//!   than 8 bytes cannot be translated and the error is dropped ([`Malformed::Truncated`]).
//!
//! Left to the caller: whether the flow is translated at this hook at all, and that a redirect about a translated flow is
//! dropped.

mod difference;
mod quote;
#[cfg(test)]
mod tests;
mod transport;

use core::net::IpAddr;

use thiserror::Error;

use self::difference::Difference;
use self::transport::Port;
use crate::checksum::transport_holds;
use crate::headers::Parsed;
use crate::nat::manip::Manip;
use crate::tuple::{Tuple, proto};

/// Gives `datagram` the source or destination of `target`: address, and port or ICMP identifier where there is one.
///
/// `target` is the tuple the datagram will have, that is the inverse of the flow's other direction. Fragments behind the
/// first have addresses alone.
pub(crate) fn rewrite(datagram: &mut [u8], parsed: &Parsed, manip: Manip, target: &Tuple) -> Result<(), Malformed> {
    let place = Place::of_datagram(parsed);
    let datagram = within(datagram, parsed.end)?;
    let mut change = Difference::NONE;
    translate(datagram, &place, manip, &End::of(manip, target), &mut change)
}

/// Translates an ICMP error about a flow: the quoted header at the opposite end, the error's own address at this one.
///
/// `target` is the tuple a plain packet of the flow would get that travels the error's way (the same as for [`rewrite`]):
/// the quoted packet went the other way, so what is the source here is the destination there.
pub(crate) fn rewrite_quoted(
    datagram: &mut [u8],
    parsed: &Parsed,
    manip: Manip,
    target: &Tuple,
) -> Result<(), Malformed> {
    if !matches!(parsed.proto, proto::ICMP | proto::ICMPV6) {
        return Err(Malformed::NoQuote { protocol: parsed.proto });
    }
    let place = Place::of_datagram(parsed);
    let datagram = within(datagram, parsed.end)?;
    if !transport_holds(parsed, datagram) {
        return Err(Malformed::Checksum);
    }
    let end = End::of(manip, target);

    let mut change = Difference::NONE;
    let start = parsed.header_len.saturating_add(transport::ICMP_HEADER);
    let quoted = datagram.get_mut(start..).ok_or(Malformed::Truncated { needed: start, found: parsed.end })?;
    let quoted_place = quote::locate(quoted, place.version)?;
    translate(quoted, &quoted_place, manip.opposite(), &end, &mut change)?;

    let checksum = parsed.header_len.saturating_add(transport::ICMP_CHECKSUM);
    let mut outer = Difference::NONE;
    difference::update(datagram, checksum, change, &mut outer)?;
    translate(datagram, &place, manip, &end, &mut outer)
}

/// Why a datagram cannot be translated. Nothing is said about how far the translation got: drop it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum Malformed {
    /// A header is not all there.
    #[error("the translation needs {needed} bytes of the datagram, {found} are there")]
    Truncated {
        /// Length that would do.
        needed: usize,
        /// Length there is.
        found: usize,
    },
    /// The binding is of the other address family.
    #[error("the address {address} does not fit into an IPv{version} header")]
    Family {
        /// IP version of the datagram.
        version: u8,
        /// What should go into it.
        address: IpAddr,
    },
    /// The quoted datagram is of another IP version than its error.
    #[error("an IPv{expected} error quotes a datagram of version {found}")]
    QuotedVersion {
        /// IP version of the error.
        expected: u8,
        /// Version field of the quoted header.
        found: u8,
    },
    /// The checksum of the error is wrong.
    #[error("the ICMP checksum of the error is wrong")]
    Checksum,
    /// Only ICMP and ICMPv6 quote.
    #[error("protocol {protocol} quotes no datagram")]
    NoQuote {
        /// What was found.
        protocol: u8,
    },
}

/// Where the parts of a datagram are, or of as much as is quoted of it.
struct Place {
    /// IP version.
    version: u8,
    /// Transport protocol.
    protocol: u8,
    /// Offset of the transport header; `None` where there is none, as in a fragment behind the first.
    transport: Option<usize>,
    /// Whether a check over the whole payload can be computed from what is here.
    whole: bool,
}

impl Place {
    fn of_datagram(parsed: &Parsed) -> Self {
        Self {
            version: if parsed.is_v6() { 6 } else { 4 },
            protocol: parsed.proto,
            transport: parsed.has_l4.then_some(parsed.header_len),
            whole: parsed.fragment.is_none_or(|fragment| fragment.offset == 0 && !fragment.more),
        }
    }
}

/// One end of a flow, to be written into a packet.
struct End {
    address: IpAddr,
    port: u16,
}

impl End {
    const fn of(manip: Manip, target: &Tuple) -> Self {
        Self { address: manip.address(target), port: manip.port(target) }
    }
}

/// Writes `end` at the source or destination of the datagram in `bytes`, adding what changed to `change`.
fn translate(
    bytes: &mut [u8],
    place: &Place,
    manip: Manip,
    end: &End,
    change: &mut Difference,
) -> Result<(), Malformed> {
    let mut pseudo_header = Difference::NONE;
    match (place.version, end.address) {
        (4, IpAddr::V4(address)) => {
            let offset = match manip {
                Manip::Source => 12,
                Manip::Destination => 16,
            };
            difference::replace(bytes, offset, &address.octets(), &mut pseudo_header)?;
            difference::update(bytes, IPV4_CHECKSUM, pseudo_header, change)?;
        }
        (6, IpAddr::V6(address)) => {
            let offset = match manip {
                Manip::Source => 8,
                Manip::Destination => 24,
            };
            difference::replace(bytes, offset, &address.octets(), &mut pseudo_header)?;
        }
        (version, address) => return Err(Malformed::Family { version, address }),
    }
    change.add(pseudo_header);
    let Some(start) = place.transport else { return Ok(()) };
    let port = Port { number: end.port, manip };
    transport::translate(bytes, start, place, port, pseudo_header, change)
}

/// The datagram without what a link may have padded it with.
fn within(datagram: &mut [u8], end: usize) -> Result<&mut [u8], Malformed> {
    let found = datagram.len();
    datagram.get_mut(..end).ok_or(Malformed::Truncated { needed: end, found })
}

/// Offset of the header checksum, RFC 791.
const IPV4_CHECKSUM: usize = 10;
