//! The packet notation of the scenario files: one line of text that stands for the bytes of one IP packet.
//!
//! `PROTO SRC > DST words key=value ..`, as the oracle's README lists it. [`build`] makes the bytes, byte for byte those
//! that the oracle injects; [`decode`] reads bytes back into named fields, and a [`Decoded`] prints as the `text` of a
//! record. Words and keys that mean nothing for a protocol are passed over, as the oracle does.

mod build;
mod checksum;
mod decode;
mod l4;
mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

pub use build::{Fragment, build};
pub use decode::{Decoded, decode};

/// The `text` of a packet: what a person reads in a record.
pub fn text(packet: &[u8]) -> String {
    decode(packet).to_string()
}

/// One line of notation, split into its parts.
struct Line<'a> {
    proto: &'a str,
    src: Endpoint,
    dst: Endpoint,
    values: BTreeMap<&'a str, &'a str>,
    words: Vec<&'a str>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Result<Self> {
        let tokens = tokens(line);
        let [proto, src, arrow, dst, rest @ ..] = tokens.as_slice() else {
            bail!("packet notation is PROTO SRC > DST .., found {line:?}");
        };
        ensure!(*arrow == ">", "packet notation is PROTO SRC > DST .., found {line:?}");
        let (values, words): (Vec<&str>, Vec<&str>) = rest.iter().partition(|token| token.contains('='));
        let values = values.into_iter().filter_map(|token| token.split_once('=')).collect();
        let (src, dst): (Endpoint, Endpoint) = (src.parse()?, dst.parse()?);
        ensure!(src.addr.is_ipv4() == dst.addr.is_ipv4(), "source and destination of {line:?} are of two IP versions");
        Ok(Self { proto, src, dst, values, words })
    }

    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    fn first_word(&self) -> Option<&'a str> {
        self.words.first().copied()
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.values.get(key).copied()
    }

    /// The number behind `key`, which must fit its field.
    fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        self.value(key).map(|value| value.parse().with_context(|| format!("{key}={value}"))).transpose()
    }

    /// The number behind `key` modulo 2^32: sequence numbers may be given past either end.
    fn wrapping(&self, key: &str) -> Result<u32> {
        self.value(key).map_or(Ok(0), |value| wrapping(value).with_context(|| format!("{key}={value}")))
    }

    /// What follows the header: `data=` in hex, or `len=` bytes of the counting pattern.
    fn payload(&self) -> Result<Vec<u8>> {
        match self.value("data") {
            Some(hex) => bytes_of_hex(hex),
            None => Ok(pattern(self.number("len")?.unwrap_or(0))),
        }
    }
}

/// An address with or without a port: `10.0.0.2:80`, `[fd00::1]:80`, `10.0.0.2`, `[fd00::1]`, `fd00::1`.
struct Endpoint {
    addr: IpAddr,
    port: Option<u16>,
}

impl Endpoint {
    fn port(&self) -> Result<u16> {
        self.port.with_context(|| format!("{} needs a port", self.addr))
    }
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (addr, port) = if let Some(bracketed) = text.strip_prefix('[') {
            let (addr, rest) = bracketed.split_once(']').with_context(|| format!("{text:?} lacks its ]"))?;
            (addr, rest.strip_prefix(':'))
        } else if text.matches(':').count() > 1 {
            (text, None)
        } else {
            text.split_once(':').map_or((text, None), |(addr, port)| (addr, Some(port)))
        };
        let addr = addr.parse().with_context(|| format!("address {addr:?}"))?;
        let port = port.filter(|port| !port.is_empty());
        let port = port.map(|port| port.parse().with_context(|| format!("port of {text:?}"))).transpose()?;
        Ok(Self { addr, port })
    }
}

/// Payload byte i is i modulo 256.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len).collect()
}

/// Bytes written as hex digits; blanks between bytes are passed over.
pub fn bytes_of_hex(hex: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    ensure!(digits.len().is_multiple_of(2), "{hex:?} has an odd number of hex digits");
    let pair = |pair: &[u8]| -> Option<u8> { u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok() };
    digits.chunks(2).map(pair).collect::<Option<_>>().with_context(|| format!("{hex:?} is not hex"))
}

/// Lower-case hex digits of `bytes`.
pub fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn wrapping(value: &str) -> Result<u32> {
    let wide: i128 = value.parse()?;
    Ok(u32::try_from(wide.rem_euclid(1 << 32))?)
}

/// Splits at blanks, but keeps what stands in parentheses whole.
fn tokens(line: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let split = |ch: char| {
        match ch {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        ch.is_whitespace() && depth == 0
    };
    line.split(split).filter(|token| !token.is_empty()).collect()
}

/// ICMP message names of the notation.
const ICMP4: [(&str, u8); 13] = [
    ("echoreply", 0),
    ("unreach", 3),
    ("quench", 4),
    ("redirect", 5),
    ("echo", 8),
    ("ttlexc", 11),
    ("paramprob", 12),
    ("timestamp", 13),
    ("timestampreply", 14),
    ("inforeq", 15),
    ("inforeply", 16),
    ("mask", 17),
    ("maskreply", 18),
];

/// ICMPv6 message names of the notation.
const ICMP6: [(&str, u8); 14] = [
    ("unreach", 1),
    ("toobig", 2),
    ("ttlexc", 3),
    ("paramprob", 4),
    ("echo", 128),
    ("echoreply", 129),
    ("mldquery", 130),
    ("mldreport", 131),
    ("rs", 133),
    ("ra", 134),
    ("ns", 135),
    ("na", 136),
    ("redirect", 137),
    ("mld2", 143),
];

/// TCP flag letters in the order in which a text shows them.
const TCP_FLAGS: [(char, u8); 8] =
    [('S', 2), ('A', 16), ('F', 1), ('R', 4), ('P', 8), ('U', 32), ('E', 64), ('C', 128)];

const PROTO_ICMP: u8 = 1;
const PROTO_TCP: u8 = 6;
const PROTO_UDP: u8 = 17;
const PROTO_ICMP6: u8 = 58;

#[cfg(test)]
mod tests;
