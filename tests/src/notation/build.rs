//! From a line of notation to the bytes of an IP packet.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::checksum::{FAULT, internet, octets};
use super::{Line, PROTO_TCP, l4};

/// One fragment of a packet's layer-4 segment; offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fragment {
    /// Where the piece starts in the segment.
    pub off: u16,
    /// How long it is; it ends earlier where the segment does.
    pub len: usize,
    /// Whether the header announces more fragments.
    pub mf: bool,
}

/// The bytes of the packet that `line` describes, or of one fragment of it.
pub fn build(line: &str, fragment: Option<Fragment>) -> Result<Vec<u8>> {
    let parsed = Line::parse(line)?;
    let (proto, mut segment) = l4::segment(&parsed).with_context(|| format!("in {line:?}"))?;
    if let Some(len) = parsed.number("trunc")? {
        segment.truncate(len);
    }
    let mut packet = match parsed.src.addr {
        IpAddr::V4(_) => ipv4(&parsed, proto, segment, fragment),
        IpAddr::V6(_) => ipv6(&parsed, proto, segment, fragment),
    }
    .with_context(|| format!("in {line:?}"))?;
    if let Some(len) = parsed.number("truncraw")? {
        packet.truncate(len);
    }
    Ok(packet)
}

/// Behind an IPv4 header of 20 bytes; TCP has DF unless it is a fragment or `nodf` stands there.
fn ipv4(line: &Line<'_>, proto: u8, segment: Vec<u8>, fragment: Option<Fragment>) -> Result<Vec<u8>> {
    let dont_fragment = line.has("df") || (proto == PROTO_TCP && fragment.is_none() && !line.has("nodf"));
    let mut flags = if dont_fragment { 0x4000_u16 } else { 0 };
    let segment = match fragment {
        Some(part) => {
            flags |= (part.off >> 3) | if part.mf { 0x2000 } else { 0 };
            piece(&segment, part).to_vec()
        }
        None => segment,
    };
    let total = u16::try_from(20 + segment.len()).context("longer than an IPv4 packet can be")?;
    let mut header = vec![0x45, line.number("tos")?.unwrap_or(0)];
    header.extend(total.to_be_bytes());
    header.extend(line.number::<u16>("ipid")?.unwrap_or(IP_ID).to_be_bytes());
    header.extend(flags.to_be_bytes());
    header.extend([line.number("ttl")?.unwrap_or(TTL), proto, 0, 0]);
    header.extend(octets(line.src.addr));
    header.extend(octets(line.dst.addr));
    let fault = if line.has("badipsum") { FAULT } else { 0 };
    let sum = internet(&header) ^ fault;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(segment);
    Ok(header)
}

/// Behind an IPv6 header, a hop-by-hop header of one PadN if `hopopts` stands there, and a fragment header.
fn ipv6(line: &Line<'_>, proto: u8, segment: Vec<u8>, fragment: Option<Fragment>) -> Result<Vec<u8>> {
    let mut next = proto;
    let mut body = Vec::new();
    if let Some(part) = fragment {
        body.extend([next, 0]);
        body.extend((part.off | u16::from(part.mf)).to_be_bytes());
        body.extend(line.number::<u32>("ipid")?.unwrap_or(u32::from(IP_ID)).to_be_bytes());
        body.extend(piece(&segment, part));
        next = IPV6_FRAGMENT;
    } else {
        body = segment;
    }
    if line.has("hopopts") {
        body.splice(0..0, [next, 0, 1, 4, 0, 0, 0, 0]);
        next = IPV6_HOP_BY_HOP;
    }
    let len = u16::try_from(body.len()).context("longer than an IPv6 packet can be")?;
    let class = u32::from(line.number::<u8>("tos")?.unwrap_or(0));
    let mut packet = (0x6000_0000 | (class << 20)).to_be_bytes().to_vec();
    packet.extend(len.to_be_bytes());
    packet.extend([next, line.number("ttl")?.unwrap_or(TTL)]);
    packet.extend(octets(line.src.addr));
    packet.extend(octets(line.dst.addr));
    packet.extend(body);
    Ok(packet)
}

fn piece(segment: &[u8], part: Fragment) -> &[u8] {
    let start = usize::from(part.off).min(segment.len());
    let end = start.saturating_add(part.len).min(segment.len());
    &segment[start..end]
}

const TTL: u8 = 64;
const IP_ID: u16 = 0x4242;
const IPV6_HOP_BY_HOP: u8 = 0;
const IPV6_FRAGMENT: u8 = 44;
