//! The layer-4 part of a line of notation.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};

use super::checksum::{FAULT, internet, octets, transport};
use super::{
    ICMP4, ICMP6, Line, PROTO_ICMP, PROTO_ICMP6, PROTO_TCP, PROTO_UDP, TCP_FLAGS, build, bytes_of_hex, wrapping,
};

/// Protocol number and whole segment, before any cut.
pub(super) fn segment(line: &Line<'_>) -> Result<(u8, Vec<u8>)> {
    match line.proto {
        "tcp" => Ok((PROTO_TCP, tcp(line)?)),
        "udp" => Ok((PROTO_UDP, udp(line)?)),
        "icmp" => Ok((PROTO_ICMP, icmp(line)?)),
        "icmp6" => Ok((PROTO_ICMP6, icmp6(line)?)),
        other => {
            let number = other.strip_prefix("proto").with_context(|| format!("protocol {other:?} is not known"))?;
            Ok((number.parse().with_context(|| format!("protocol {other:?}"))?, line.payload()?))
        }
    }
}

fn tcp(line: &Line<'_>) -> Result<Vec<u8>> {
    let options = tcp_options(line)?;
    let offset = match line.number::<u8>("doff")? {
        Some(offset) if offset < 16 => offset,
        Some(offset) => bail!("doff={offset} does not fit its four bits"),
        None => u8::try_from(5 + options.len() / 4).ok().filter(|offset| *offset < 16).context("too many options")?,
    };
    let mut segment = [line.src.port()?.to_be_bytes(), line.dst.port()?.to_be_bytes()].concat();
    segment.extend(line.wrapping("seq")?.to_be_bytes());
    segment.extend(line.wrapping("ack")?.to_be_bytes());
    segment.extend([offset << 4, tcp_flags(line)?]);
    segment.extend(line.number::<u16>("win")?.unwrap_or(u16::MAX).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(line.number::<u16>("urg")?.unwrap_or(0).to_be_bytes());
    segment.extend(options);
    segment.extend(line.payload()?);
    Ok(summed(line, PROTO_TCP, segment, 16))
}

/// The first word names the flags, unless it is one of the words that may stand where flags are left out.
fn tcp_flags(line: &Line<'_>) -> Result<u8> {
    let letters = match line.first_word() {
        None | Some("sackok" | "badsum" | "none") => "",
        Some(letters) => letters,
    };
    let bit = |letter: char| TCP_FLAGS.iter().find(|(name, _)| *name == letter).map(|(_, bit)| *bit);
    letters.chars().try_fold(0, |flags, letter| {
        Ok(flags | bit(letter).with_context(|| format!("TCP flag {letter:?} of {letters:?} is not known"))?)
    })
}

fn tcp_options(line: &Line<'_>) -> Result<Vec<u8>> {
    let mut options = Vec::new();
    if let Some(mss) = line.number::<u16>("mss")? {
        options.extend([2, 4]);
        options.extend(mss.to_be_bytes());
    }
    if line.has("sackok") {
        options.extend([4, 2]);
    }
    if let Some(stamps) = line.value("ts") {
        let (value, echo) = stamps.split_once(':').context("ts is VALUE:ECHO")?;
        if options.len() % 4 == 0 {
            options.extend([NOP, NOP]);
        }
        options.extend([8, 10]);
        options.extend(wrapping(value)?.to_be_bytes());
        options.extend(wrapping(echo)?.to_be_bytes());
    }
    if let Some(shift) = line.number::<u8>("wscale")? {
        options.extend([NOP, 3, 3, shift]);
    }
    if let Some(blocks) = line.value("sack") {
        let blocks: Vec<_> = blocks.split(',').collect();
        let len = u8::try_from(2 + 8 * blocks.len()).context("too many SACK blocks")?;
        options.extend([NOP, NOP, 5, len]);
        for block in blocks {
            let (left, right) = block.split_once(':').context("sack is LEFT:RIGHT,..")?;
            options.extend(wrapping(left)?.to_be_bytes());
            options.extend(wrapping(right)?.to_be_bytes());
        }
    }
    if let Some(raw) = line.value("optraw") {
        options.extend(bytes_of_hex(raw)?);
    }
    options.resize(options.len().next_multiple_of(4), NOP);
    Ok(options)
}

fn udp(line: &Line<'_>) -> Result<Vec<u8>> {
    let payload = line.payload()?;
    let len = match line.number::<u16>("udplen")? {
        Some(len) => len,
        None => u16::try_from(8 + payload.len()).context("longer than UDP's length can say")?,
    };
    let mut segment = [line.src.port()?.to_be_bytes(), line.dst.port()?.to_be_bytes(), len.to_be_bytes()].concat();
    segment.extend([0, 0]);
    segment.extend(payload);
    Ok(if line.has("nosum") { segment } else { summed(line, PROTO_UDP, segment, 6) })
}

fn icmp(line: &Line<'_>) -> Result<Vec<u8>> {
    let mut message = icmp_message(line, &ICMP4)?;
    let sum = internet(&message) ^ fault(line);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Ok(message)
}

fn icmp6(line: &Line<'_>) -> Result<Vec<u8>> {
    let message = icmp_message(line, &ICMP6)?;
    Ok(summed(line, PROTO_ICMP6, message, 2))
}

/// Type, code, a zero checksum, the second word, and the inner packet or payload.
fn icmp_message(line: &Line<'_>, names: &[(&str, u8)]) -> Result<Vec<u8>> {
    let named = line.first_word().and_then(|word| names.iter().find(|(name, _)| *name == word));
    let kind = match named {
        Some((_, kind)) => *kind,
        None => line.number("type")?.unwrap_or(0),
    };
    let mut message = vec![kind, line.number("code")?.unwrap_or(0), 0, 0];
    message.extend(icmp_second_word(line)?);
    let mut payload = line.payload()?;
    if let Some(inner) = line.value("inner") {
        let inner = inner.trim().strip_prefix('(').and_then(|inner| inner.strip_suffix(')'));
        let mut packet = build(inner.context("inner=(PACKET) lacks its parentheses")?, None)?;
        if let Some(cut) = line.number("innercut")? {
            packet.truncate(cut);
        }
        payload.splice(0..0, packet);
    } else if let Some(hex) = line.value("innerhex") {
        payload = bytes_of_hex(hex)?;
    }
    message.extend(payload);
    Ok(message)
}

/// Identifier and sequence number, or what the message has in their place.
fn icmp_second_word(line: &Line<'_>) -> Result<Vec<u8>> {
    if let Some(pointer) = line.value("ptr") {
        let wide: u32 = pointer.parse().context("ptr")?;
        return match line.proto {
            "icmp6" => Ok(wide.to_be_bytes().to_vec()),
            _ => Ok(vec![u8::try_from(wide).context("ptr")?, 0, 0, 0]),
        };
    }
    if let Some(gateway) = line.value("gw") {
        return Ok(octets(gateway.parse::<IpAddr>().context("gw")?));
    }
    if let Some(mtu) = line.number::<u32>("mtu")? {
        return Ok(mtu.to_be_bytes().to_vec());
    }
    let (id, seq) = (line.number::<u16>("id")?.unwrap_or(0), line.number::<u16>("seq")?.unwrap_or(0));
    Ok([id.to_be_bytes(), seq.to_be_bytes()].concat())
}

/// The segment with its checksum at `at`: under the pseudo header, spoiled if `badsum` stands there.
fn summed(line: &Line<'_>, proto: u8, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = match transport(line.src.addr, line.dst.addr, proto, &segment) {
        0 if proto == PROTO_UDP => u16::MAX,
        sum => sum,
    };
    segment[at..at + 2].copy_from_slice(&(sum ^ fault(line)).to_be_bytes());
    segment
}

fn fault(line: &Line<'_>) -> u16 {
    if line.has("badsum") { FAULT } else { 0 }
}

const NOP: u8 = 1;
