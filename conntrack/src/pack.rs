//! The bulk layout of saved flows: one record after another, in creation order, little-endian, no padding.
//!
//! A record begins with the kind byte, whose bits say which parts follow, so that a plain IPv4 flow costs no more than
//! what it knows. What stands in a record is written and read by the table's entries; here is how one is told from the next.
//! The layout is described field by field in SNAPSHOT-FORMAT.md.

use hibernet_snapshot::Invalid;

use crate::tuple::proto;

/// IPv6 addresses follow instead of IPv4 ones.
pub(crate) const KIND_V6: u8 = 1 << 0;
/// The reply tuple follows; otherwise it is the inverse of the original.
pub(crate) const KIND_REPLY: u8 = 1 << 1;
/// A zone follows.
pub(crate) const KIND_ZONE: u8 = 1 << 2;
/// A mark follows.
pub(crate) const KIND_MARK: u8 = 1 << 3;
pub(crate) const KIND_ALL: u8 = KIND_V6 | KIND_REPLY | KIND_ZONE | KIND_MARK;
/// Bytes of the shortest record: IPv4, plain, no protocol state.
pub(crate) const SHORTEST: usize = 42;
/// Bytes of the longest: IPv6, with a reply tuple, zone and mark, TCP.
pub(crate) const LONGEST: usize = 162;

/// How long a record is, by its first two bytes.
pub(crate) const fn length(kind: u8, protocol: u8) -> usize {
    let ends = if kind & KIND_V6 == 0 { 12 } else { 36 };
    let tuples = if kind & KIND_REPLY == 0 { ends } else { 2 * ends };
    let zone = if kind & KIND_ZONE == 0 { 0 } else { 2 };
    let mark = if kind & KIND_MARK == 0 { 0 } else { 4 };
    let state = match protocol {
        proto::TCP => 54,
        proto::UDP => 4,
        proto::SCTP => 11,
        _ => 0,
    };
    8 + tuples + zone + mark + 22 + state
}

/// Splits the first record off, in which nothing is looked at yet.
pub(crate) fn split(run: &[u8]) -> Result<(&[u8], &[u8]), Invalid> {
    let cut = |left: usize, needed: usize| Invalid::new("record", format!("{left} bytes"), format!("{needed} bytes"));
    let [kind, protocol, ..] = *run else { return Err(cut(run.len(), SHORTEST)) };
    if kind & !KIND_ALL != 0 {
        return Err(Invalid::new("kind", format!("{kind:#04x}"), "only the four known bits"));
    }
    let needed = length(kind, protocol);
    run.split_at_checked(needed).ok_or_else(|| cut(run.len(), needed))
}

/// Bytes that are read from the front, each read with the name of what it was for.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Leaves out bytes that were looked at otherwise.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    #[inline]
    pub(crate) fn bytes<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Invalid> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(cut(field, self.rest.len(), N));
        };
        self.rest = rest;
        Ok(*bytes)
    }

    #[inline]
    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Invalid> {
        self.bytes(field).map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Invalid> {
        self.bytes(field).map(u32::from_le_bytes)
    }
}

#[cold]
fn cut(field: &'static str, left: usize, needed: usize) -> Invalid {
    Invalid::new(field, format!("{left} bytes"), format!("{needed} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_and_the_longest_record_are_as_long_as_it_says() {
        let lengths = (0..=KIND_ALL).flat_map(|kind| (0..=255).map(move |protocol| length(kind, protocol)));
        assert_eq!((lengths.clone().min(), lengths.max()), (Some(SHORTEST), Some(LONGEST)));
    }
}
