//! Ports, identifiers and transport checksums.

use super::difference::{self, Difference};
use super::{Malformed, Place};
use crate::checksum::crc32c;
use crate::nat::manip::Manip;
use crate::tuple::proto;

/// A port, and at which end it goes; or an ICMP identifier, which has no end.
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) manip: Manip,
}

impl Port {
    const fn offset(&self) -> usize {
        match self.manip {
            Manip::Source => 0,
            Manip::Destination => 2,
        }
    }
}

/// Bytes of an ICMP header before what it carries or quotes (RFC 792, RFC 4443).
pub(super) const ICMP_HEADER: usize = 8;

/// Offset of the checksum in ICMP and ICMPv6.
pub(super) const ICMP_CHECKSUM: usize = 2;

/// Writes the port into the transport header at `start` and mends its checksum for that and for the addresses.
///
/// Of TCP, UDP, SCTP and GRE 8 bytes must be there, which is what any error quotes (RFC 792); checks behind those are
/// mended if they are there. Protocols without ports of their own are left as they are, but the kernel wants to see as
/// much of GRE, too.
pub(super) fn translate(
    bytes: &mut [u8],
    start: usize,
    place: &Place,
    port: Port,
    pseudo_header: Difference,
    change: &mut Difference,
) -> Result<(), Malformed> {
    let found = bytes.len();
    let header = bytes.get_mut(start..).ok_or(Malformed::Truncated { needed: start, found })?;
    let is_known = matches!(
        place.protocol,
        proto::TCP | proto::UDP | proto::SCTP | proto::UDP_LITE | proto::ICMP | proto::ICMPV6 | proto::GRE
    );
    if is_known && header.len() < GUARANTEED {
        return Err(Malformed::Truncated { needed: start.saturating_add(GUARANTEED), found });
    }
    match place.protocol {
        proto::TCP => tcp(header, &port, pseudo_header, change),
        proto::UDP => udp(header, &port, true, pseudo_header, change),
        proto::UDP_LITE => udp(header, &port, false, pseudo_header, change),
        proto::SCTP => sctp(header, &port, place.whole, change),
        proto::ICMP => {
            let is_query = matches!(header.first(), Some(0 | 8 | 13..=18));
            icmp(header, is_query.then_some(port.number), Difference::NONE, change)
        }
        proto::ICMPV6 => {
            let is_echo = matches!(header.first(), Some(128 | 129));
            icmp(header, is_echo.then_some(port.number), pseudo_header, change)
        }
        _ => Ok(()),
    }
}

fn tcp(header: &mut [u8], port: &Port, mut covered: Difference, change: &mut Difference) -> Result<(), Malformed> {
    change_port(header, port, &mut covered, change)?;
    if header.len() < TCP_HEADER {
        return Ok(());
    }
    difference::update(header, TCP_CHECKSUM, covered, change)
}

/// UDP and UDP-Lite. `optional`: a checksum of zero means that there is none.
fn udp(
    header: &mut [u8],
    port: &Port,
    optional: bool,
    mut covered: Difference,
    change: &mut Difference,
) -> Result<(), Malformed> {
    change_port(header, port, &mut covered, change)?;
    match difference::read(header, UDP_CHECKSUM)? {
        0 if optional => Ok(()),
        old => {
            let new = match covered.applied_to(old) {
                0 => 0xffff,
                new => new,
            };
            difference::replace(header, UDP_CHECKSUM, &new.to_be_bytes(), change)
        }
    }
}

fn sctp(header: &mut [u8], port: &Port, whole: bool, change: &mut Difference) -> Result<(), Malformed> {
    let mut covered = Difference::NONE;
    change_port(header, port, &mut covered, change)?;
    if !whole {
        return Ok(());
    }
    let Some((before, rest)) = header.split_first_chunk::<SCTP_CHECKSUM>() else { return Ok(()) };
    let Some((_, after)) = rest.split_first_chunk::<4>() else { return Ok(()) };
    let crc = !crc32c(crc32c(crc32c(!0, before), &[0; 4]), after);
    difference::replace(header, SCTP_CHECKSUM, &crc.to_le_bytes(), change)
}

fn icmp(
    header: &mut [u8],
    identifier: Option<u16>,
    mut covered: Difference,
    change: &mut Difference,
) -> Result<(), Malformed> {
    if let Some(identifier) = identifier {
        let mut own = Difference::NONE;
        difference::replace(header, ICMP_IDENTIFIER, &identifier.to_be_bytes(), &mut own)?;
        covered.add(own);
        change.add(own);
    }
    difference::update(header, ICMP_CHECKSUM, covered, change)
}

/// Writes the port and counts it both in what the checksum covers and in what was changed in all.
fn change_port(
    header: &mut [u8],
    port: &Port,
    covered: &mut Difference,
    change: &mut Difference,
) -> Result<(), Malformed> {
    let mut own = Difference::NONE;
    difference::replace(header, port.offset(), &port.number.to_be_bytes(), &mut own)?;
    covered.add(own);
    change.add(own);
    Ok(())
}

/// Bytes of a transport header that an error quotes at least.
const GUARANTEED: usize = 8;
const TCP_HEADER: usize = 20;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const SCTP_CHECKSUM: usize = 8;
const ICMP_IDENTIFIER: usize = 4;
