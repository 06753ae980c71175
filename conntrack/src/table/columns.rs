//! Records as columns: what stands at the same place of many records stands together, numbers that follow from others are
//! written as differences, and what is then alike is compressed.
//!
//! The columns are the records' own bytes in another order, so their length is known, and a hostile block cannot make
//! more of them than its head says.

use hibernet_snapshot::Invalid;

use crate::pack::{self, KIND_ALL, KIND_MARK, KIND_REPLY, KIND_V6, KIND_ZONE};
use crate::tuple::proto;

/// The records of a block as compressed columns.
pub(crate) fn compress(records: &[u8]) -> Vec<u8> {
    lz4_flex::block::compress(&to_columns(records))
}

/// The `plain` bytes of `flows` records.
pub(crate) fn decompress(stored: &[u8], flows: usize, plain: usize) -> Result<Vec<u8>, Invalid> {
    let mut columns = vec![0; plain];
    let refused = |found: String| Invalid::new("columns", found, format!("compressed records of {plain} bytes"));
    match lz4_flex::block::decompress_into(stored, &mut columns) {
        Ok(length) if length == plain => from_columns(&columns, flows),
        Ok(length) => Err(refused(format!("{length} bytes"))),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// A group of neighbouring bytes of a record that some records have.
#[derive(Clone, Copy)]
struct Group {
    /// Bytes of it.
    width: usize,
    /// Whether a record of that kind and protocol has it.
    has: fn(u8, u8) -> bool,
}

/// The groups in the order in which they stand in a record.
const GROUPS: [Group; 11] = [
    // Status and remaining time, behind kind and protocol.
    Group { width: 6, has: |_, _| true },
    Group { width: 12, has: |kind, _| kind & KIND_V6 == 0 },
    Group { width: 36, has: |kind, _| kind & KIND_V6 != 0 },
    Group { width: 12, has: |kind, _| kind & KIND_V6 == 0 && kind & KIND_REPLY != 0 },
    Group { width: 36, has: |kind, _| kind & KIND_V6 != 0 && kind & KIND_REPLY != 0 },
    Group { width: 2, has: |kind, _| kind & KIND_ZONE != 0 },
    Group { width: 4, has: |kind, _| kind & KIND_MARK != 0 },
    Group { width: 22, has: |_, _| true },
    Group { width: 54, has: |_, protocol| protocol == proto::TCP },
    Group { width: 4, has: |_, protocol| protocol == proto::UDP },
    Group { width: 11, has: |_, protocol| protocol == proto::SCTP },
];

/// Where each column begins: kinds, protocols, and every byte of every group.
struct Layout {
    starts: Vec<usize>,
}

impl Layout {
    fn of(kinds: &[u8], protocols: &[u8]) -> (Self, usize) {
        let mut starts = Vec::with_capacity(COLUMNS);
        let mut at = kinds.len() + protocols.len();
        for Group { width, has } in GROUPS {
            let records = kinds.iter().zip(protocols).filter(|(kind, protocol)| has(**kind, **protocol)).count();
            for _ in 0..width {
                starts.push(at);
                at += records;
            }
        }
        (Self { starts }, at)
    }
}

fn to_columns(records: &[u8]) -> Vec<u8> {
    let (mut kinds, mut protocols) = (Vec::new(), Vec::new());
    let mut rest = records;
    while let Ok((record, behind)) = pack::split(rest)
        && let [kind, protocol, ..] = *record
    {
        kinds.push(kind);
        protocols.push(protocol);
        rest = behind;
    }
    let (Layout { mut starts }, length) = Layout::of(&kinds, &protocols);
    let mut columns = vec![0; length];
    let mut copy = [0; pack::LONGEST];
    rest = records;
    while let Ok((record, behind)) = pack::split(rest)
        && let [kind, protocol, ..] = *record
    {
        rest = behind;
        let Some(copy) = copy.get_mut(..record.len()) else { break };
        copy.copy_from_slice(record);
        relate(copy, Sign::Subtract);
        let mut bytes = copy.iter().skip(2);
        let mut column = 0;
        for Group { width, has } in GROUPS {
            if has(kind, protocol) {
                for (start, byte) in starts.iter_mut().skip(column).take(width).zip(&mut bytes) {
                    if let Some(to) = columns.get_mut(*start) {
                        *to = *byte;
                    }
                    *start += 1;
                }
            }
            column += width;
        }
    }
    for (to, from) in columns.iter_mut().zip(kinds.iter().chain(&protocols)) {
        *to = *from;
    }
    columns
}

fn from_columns(columns: &[u8], flows: usize) -> Result<Vec<u8>, Invalid> {
    let wrong = |found: String| Invalid::new("columns", found, format!("columns of {flows} records"));
    let short = || wrong(format!("{} bytes", columns.len()));
    let (kinds, behind) = columns.split_at_checked(flows).ok_or_else(short)?;
    let (protocols, _) = behind.split_at_checked(flows).ok_or_else(short)?;
    if let Some(kind) = kinds.iter().find(|kind| **kind & !KIND_ALL != 0) {
        return Err(Invalid::new("kind", format!("{kind:#04x}"), "only the four known bits"));
    }
    let (Layout { mut starts }, length) = Layout::of(kinds, protocols);
    if length != columns.len() {
        return Err(wrong(format!("{} bytes for records of {length}", columns.len())));
    }
    let mut records = vec![0; length];
    let mut rest = records.as_mut_slice();
    for (kind, protocol) in kinds.iter().zip(protocols) {
        let (record, behind) =
            core::mem::take(&mut rest).split_at_mut_checked(pack::length(*kind, *protocol)).ok_or_else(short)?;
        rest = behind;
        if let Some(head) = record.first_chunk_mut() {
            *head = [*kind, *protocol];
        }
        let mut bytes = record.iter_mut().skip(2);
        let mut column = 0;
        for Group { width, has } in GROUPS {
            if has(*kind, *protocol) {
                for (start, byte) in starts.iter_mut().skip(column).take(width).zip(&mut bytes) {
                    *byte = columns.get(*start).copied().unwrap_or_default();
                    *start += 1;
                }
            }
            column += width;
        }
        relate(record, Sign::Add);
    }
    Ok(records)
}

/// To differences, or back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Subtract,
    Add,
}

/// Replaces numbers that follow from others by how they differ from them, or the other way round.
fn relate(record: &mut [u8], sign: Sign) {
    let [kind, protocol, ..] = *record else { return };
    let ends = if kind & KIND_V6 == 0 { 4 } else { 16 };
    if kind & KIND_REPLY != 0 {
        // Of the reply, what is that of the original the other way round.
        let size = 2 * ends + 4;
        for (at, from) in [(0, ends), (ends, 0)] {
            for byte in 0..ends {
                exclusive(record, 8 + size + at + byte, 8 + from + byte);
            }
        }
        for (at, from) in [(2 * ends, 2 * ends + 2), (2 * ends + 2, 2 * ends)] {
            for byte in 0..2 {
                exclusive(record, 8 + size + at + byte, 8 + from + byte);
            }
        }
    }
    if protocol == proto::TCP {
        let Some(tcp) = record.len().checked_sub(54).and_then(|at| record.get_mut(at..)) else { return };
        let replied = tcp.get(2) == Some(&1);
        let [own, other] = if replied { [36, 18] } else { [18, 36] };
        // What a side may send and what its peer has acknowledged lie near what it has sent; so does the last segment.
        for (at, from) in [(22, 18), (40, 36), (30, 36), (48, 18), (6, own), (10, other)] {
            differ(tcp, at, from, sign);
        }
    }
}

fn exclusive(record: &mut [u8], at: usize, from: usize) {
    let with = record.get(from).copied().unwrap_or_default();
    if let Some(byte) = record.get_mut(at) {
        *byte ^= with;
    }
}

fn differ(record: &mut [u8], at: usize, from: usize, sign: Sign) {
    let base = record.get(from..).and_then(|bytes| bytes.first_chunk()).copied().map_or(0, u32::from_le_bytes);
    if let Some(number) = record.get_mut(at..).and_then(|bytes| bytes.first_chunk_mut()) {
        let value = u32::from_le_bytes(*number);
        let changed = if sign == Sign::Subtract { value.wrapping_sub(base) } else { value.wrapping_add(base) };
        *number = changed.to_le_bytes();
    }
}

/// Columns there are beside kinds and protocols.
const COLUMNS: usize = 199;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Vec<u8>> {
        let protocol = prop_oneof![Just(proto::TCP), Just(proto::UDP), Just(proto::SCTP), any::<u8>()];
        (0..=KIND_ALL, protocol, prop::collection::vec(any::<u8>(), pack::LONGEST)).prop_map(
            |(kind, protocol, mut bytes)| {
                (bytes[0], bytes[1]) = (kind, protocol);
                bytes.truncate(pack::length(kind, protocol));
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn columns_give_back_the_records_they_were_made_of(records in prop::collection::vec(record(), 1..40)) {
            let plain = records.concat();
            prop_assert_eq!(decompress(&compress(&plain), records.len(), plain.len()).unwrap(), plain);
        }

        #[test]
        fn arbitrary_columns_are_refused_or_give_as_many_bytes_as_they_say(
            stored: Vec<u8>, flows in 1usize..100, plain in 0usize..10_000, squeezed: bool,
        ) {
            let stored = if squeezed { lz4_flex::block::compress(&stored) } else { stored };
            if let Ok(records) = decompress(&stored, flows, plain) {
                prop_assert_eq!(records.len(), plain);
            }
        }
    }

    #[test]
    fn a_block_that_would_grow_beyond_what_its_head_says_is_refused() {
        let stored = lz4_flex::block::compress(&vec![0; 1 << 20]);
        assert!(stored.len() < 10_000);
        assert!(decompress(&stored, 100, 4200).unwrap_err().to_string().starts_with("columns: "));
    }
}
