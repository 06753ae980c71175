//! Flows as an image holds them.

use hibernet_snapshot::{Entropy, Instant, Invalid, Schema, Snapshot};
use serde::{Deserialize, Serialize};

use super::{Flows, RestoreOptions, SaveBuffer, restore};
use crate::pack;

/// Flows as an image holds them: records, the first of them in here, the rest in blocks behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsSaved {
    pub(super) capacity: u32,
    pub(super) phase: u32,
    pub(super) count: u32,
    #[serde(with = "packed")]
    pub(super) records: Vec<u8>,
    /// Bodies of sections of their own.
    #[serde(skip)]
    pub(super) blocks: Vec<Vec<u8>>,
}

/// Flows in a block. All blocks but the last are full.
pub(crate) const BLOCK: usize = 1 << 14;
/// Bytes in front of a block's records.
pub(crate) const BLOCK_HEAD: usize = 16;

/// How the records of a block are written.
pub(crate) const PLAIN: u32 = 0;
/// As columns, compressed.
pub(crate) const COLUMNS: u32 = 1;

/// What a block says of itself: how many flows, how many of them IPv6, how they are written, and how long the plain records are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockHead {
    pub(crate) flows: u32,
    pub(crate) v6: u32,
    pub(crate) encoding: u32,
    pub(crate) plain: u32,
}

impl BlockHead {
    pub(crate) fn bytes(self) -> [u8; BLOCK_HEAD] {
        let Self { flows, v6, encoding, plain } = self;
        let mut out = [0; BLOCK_HEAD];
        for (to, from) in out.chunks_exact_mut(4).zip([flows, v6, encoding, plain]) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        out
    }

    /// Reads a block's head, and says what is behind it.
    pub(crate) fn read(block: &[u8]) -> Result<(Self, &[u8]), Invalid> {
        let mut input = pack::Reader::new(block);
        let (flows, v6) = (input.u32("flows")?, input.u32("v6")?);
        let (encoding, plain) = (input.u32("encoding")?, input.u32("length")?);
        if flows == 0 || flows as usize > BLOCK {
            return Err(Invalid::new("flows", flows.to_string(), format!("1 to {BLOCK}")));
        }
        if v6 > flows {
            return Err(Invalid::new("v6", v6.to_string(), format!("at most the flows, {flows}")));
        }
        let bounds = (flows as usize * pack::SHORTEST)..=(flows as usize * pack::LONGEST);
        if !bounds.contains(&(plain as usize)) {
            let expected = format!("{} to {} for {flows} flows", bounds.start(), bounds.end());
            return Err(Invalid::new("length", format!("{plain} bytes"), expected));
        }
        match encoding {
            PLAIN if input.rest().len() != plain as usize => {
                Err(Invalid::new("records", format!("{} bytes", input.rest().len()), format!("{plain} bytes")))
            }
            PLAIN | COLUMNS => Ok((Self { flows, v6, encoding, plain }, input.rest())),
            other => Err(Invalid::new("encoding", other.to_string(), "0 (plain) or 1 (columns)")),
        }
    }
}

impl FlowsSaved {
    /// What tables hold that share `capacity`, and that were told the same time: as one table would have saved it.
    pub(crate) fn of(tables: &[&Flows], capacity: u32) -> Self {
        super::frozen::freeze(tables, capacity, SaveBuffer::default()).in_one()
    }

    pub(crate) const fn empty(capacity: u32) -> Self {
        Self { capacity, phase: 0, count: 0, records: Vec::new(), blocks: Vec::new() }
    }

    /// How many flows are in it.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// How many flows the table has room for that they were saved from.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// All records, one behind the other.
    pub(crate) fn plain(&self) -> Result<Vec<u8>, Invalid> {
        let mut records = self.records.clone();
        for (number, block) in self.blocks.iter().enumerate() {
            let at = |invalid: Invalid| invalid.at(number).within("blocks");
            let (head, behind) = BlockHead::read(block).map_err(at)?;
            if head.encoding == COLUMNS {
                records.extend(super::frozen::plain_records(head, behind).map_err(at)?);
            } else {
                records.extend_from_slice(behind);
            }
        }
        Ok(records)
    }

    /// Adds the body of the next section of flows. It is looked at when the flows are restored.
    pub(crate) fn attach(&mut self, block: Vec<u8>) {
        self.blocks.push(block);
    }
}

#[cfg(test)]
impl FlowsSaved {
    pub(crate) fn of_records(capacity: u32, count: u32, records: Vec<u8>) -> Self {
        Self { capacity, phase: 0, count, records, blocks: Vec::new() }
    }

    pub(crate) fn flip(&mut self, at: usize, bit: u8) {
        let length = self.records.len();
        self.records[at % length] ^= 1 << bit;
    }
}

impl Snapshot for Flows {
    type Saved = FlowsSaved;
    type Supplied = Instant;
    const SCHEMA: Schema =
        Schema::Leaf { name: "Flows(capacity u32, phase u32, count u32, records packed as layout 1)" };

    /// Entries whose time has come but which nothing has collected yet are not written.
    fn save(&self) -> FlowsSaved {
        let Self { v4: _, v6: _, clock: _, now: _, capacity, len: _, next_serial: _, part: _, changes: _, tick: _ } =
            self;
        FlowsSaved::of(&[self], *capacity)
    }

    fn restore(saved: FlowsSaved, now: Instant, _: &mut Entropy) -> Result<Self, Invalid> {
        restore(saved, now, &mut RestoreOptions::default())
    }
}

/// Bytes as one run, not as a list of numbers.
mod packed {
    use core::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Run;
        impl Visitor<'_> for Run {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a run of bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Run)
    }
}
