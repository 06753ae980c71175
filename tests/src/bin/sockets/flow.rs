//! One end of a stream: numbered bytes out, numbered bytes in, both hashed. The same at the kernel's end and at the stack's.

use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest, Sha256};

/// What one end has done and still has to do. Saved beside the image at the stack's end.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Flow {
    pub(super) sent: Passed,
    pub(super) got: Passed,
    /// Bytes to have sent, from the first on.
    pub(super) goal: u64,
    /// Takes what arrives; an end that does not lets the window close.
    pub(super) reading: bool,
    /// Ends its own direction once all is sent.
    pub(super) closing: bool,
    pub(super) shut: bool,
    /// The other end has sent all.
    pub(super) finished: bool,
    pub(super) failure: Option<String>,
}

/// Bytes that passed in one direction.
#[derive(Clone)]
pub(super) struct Passed {
    seed: u64,
    pub(super) bytes: u64,
    hash: Sha256,
    /// The first byte that was not the one that had to come.
    pub(super) broken_at: Option<u64>,
}

/// [`Passed`] as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    seed: u64,
    bytes: u64,
    hash: Vec<u8>,
    broken_at: Option<u64>,
}

/// What a flow is about, for a comparison of both ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    pub(super) hash: String,
    pub(super) broken_at: Option<u64>,
}

/// Which end of a stream sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Stack,
    Kernel,
}

/// A stream that does not block.
pub(super) trait Pipe {
    /// 0 means the end; `None` that nothing has come yet.
    fn read(&mut self, room: &mut [u8]) -> Result<Option<usize>, String>;
    /// `None` means that there is no room.
    fn write(&mut self, bytes: &[u8]) -> Result<Option<usize>, String>;
    fn shut(&mut self) -> Result<(), String>;
}

impl Flow {
    /// The end of stream `id` that is `own`.
    pub(super) fn new(id: u64, own: Sender) -> Self {
        let other = if own == Sender::Stack { Sender::Kernel } else { Sender::Stack };
        Self {
            sent: Passed::new(id, own),
            got: Passed::new(id, other),
            goal: 0,
            reading: true,
            closing: false,
            shut: false,
            finished: false,
            failure: None,
        }
    }

    /// Does what can be done now. True if anything moved.
    pub(super) fn pump(&mut self, pipe: &mut dyn Pipe) -> bool {
        match self.try_pump(pipe) {
            Ok(moved) => moved,
            Err(failure) => {
                let first = self.failure.is_none();
                self.failure.get_or_insert(failure);
                first
            }
        }
    }

    /// Both directions have ended in order.
    pub(super) fn is_over(&self) -> bool {
        self.finished && self.shut
    }

    fn try_pump(&mut self, pipe: &mut dyn Pipe) -> Result<bool, String> {
        let mut moved = false;
        let mut buffer = vec![0; CHUNK];
        for _ in 0..ROUNDS {
            let mut idle = true;
            if self.reading
                && !self.finished
                && let Some(read) = pipe.read(&mut buffer)?
            {
                idle = false;
                self.finished = read == 0;
                self.got.receive(buffer.get(..read).unwrap_or_default());
            }
            let left = usize::try_from(self.goal.saturating_sub(self.sent.bytes)).unwrap_or(CHUNK).min(CHUNK);
            if left > 0 && !self.shut {
                let chunk = self.sent.next(left);
                if let Some(taken) = pipe.write(&chunk)? {
                    idle = false;
                    self.sent.note(chunk.get(..taken).unwrap_or_default());
                }
            }
            if self.closing && !self.shut && self.sent.bytes >= self.goal {
                pipe.shut()?;
                self.shut = true;
                idle = false;
            }
            if idle {
                return Ok(moved);
            }
            moved = true;
        }
        Ok(moved)
    }
}

impl Passed {
    fn new(id: u64, sender: Sender) -> Self {
        let seed = mix(id.wrapping_mul(2).wrapping_add(u64::from(sender == Sender::Stack)));
        Self { seed, bytes: 0, hash: Sha256::new(), broken_at: None }
    }

    pub(super) fn sum(&self) -> Sum {
        let hash = self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Sum { bytes: self.bytes, hash, broken_at: self.broken_at }
    }

    fn next(&self, len: usize) -> Vec<u8> {
        let skip = usize::try_from(self.bytes % 8).unwrap_or(0);
        let first = self.bytes / 8;
        let words = (first..).take(len.div_ceil(8).saturating_add(1));
        let bytes = words.flat_map(|word| mix(self.seed.wrapping_add(word)).to_le_bytes());
        bytes.skip(skip).take(len).collect()
    }

    fn note(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
    }

    fn receive(&mut self, bytes: &[u8]) {
        let expected = self.next(bytes.len());
        if let Some(at) = bytes.iter().zip(&expected).position(|(found, expected)| found != expected) {
            self.broken_at.get_or_insert(self.bytes.saturating_add(at as u64));
        }
        self.note(bytes);
    }
}

impl Serialize for Passed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { seed, bytes, hash, broken_at } = self;
        let hash = SerializableState::serialize(hash).to_vec();
        Serialize::serialize(&Written { seed: *seed, bytes: *bytes, hash, broken_at: *broken_at }, serializer)
    }
}

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { seed, bytes, hash, broken_at } = Deserialize::deserialize(deserializer)?;
        let state = hash.as_slice().try_into().map_err(serde::de::Error::custom)?;
        let hash = <Sha256 as SerializableState>::deserialize(&state).map_err(serde::de::Error::custom)?;
        Ok(Self { seed, bytes, hash, broken_at })
    }
}

/// Whether what one end sent is what the other got, byte for byte.
pub(super) fn compare(what: &str, sent: &Sum, got: &Sum) -> anyhow::Result<()> {
    if let Some(at) = got.broken_at {
        anyhow::bail!("{what}: byte {at} is not the one that was sent");
    }
    anyhow::ensure!(sent.bytes == got.bytes, "{what}: {} bytes sent, {} arrived", sent.bytes, got.bytes);
    anyhow::ensure!(sent.hash == got.hash, "{what}: the hashes of {} bytes differ", sent.bytes);
    Ok(())
}

/// The finaliser of SplitMix64.
pub(super) fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers that a seed determines.
pub(super) struct Lot(pub(super) u64);

impl Lot {
    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0).checked_rem(bound).unwrap_or(0)
    }
}

const CHUNK: usize = 32 * 1024;
/// Turns before others have theirs.
const ROUNDS: usize = 16;
