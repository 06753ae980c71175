//! The bytes of a stream: generated from a seed and an offset, hashed at both ends.

use sha2::Digest;
use sha2::Sha256;

/// One direction of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pattern {
    seed: u64,
}

/// Which end of a stream sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// The end that connected.
    Client,
    /// The end that accepted.
    Server,
}

/// Bytes that passed one end of one direction, with their running hash.
#[derive(Clone)]
pub(crate) struct Passed {
    pattern: Pattern,
    bytes: u64,
    hash: Sha256,
    intact: bool,
}

impl Pattern {
    /// The bytes `sender` sends on stream `id`.
    pub(crate) fn new(id: u64, sender: Sender) -> Self {
        Self { seed: mix(id.wrapping_mul(2).wrapping_add(u64::from(sender == Sender::Server))) }
    }

    /// Writes the bytes from `offset` on into `buffer`.
    pub(crate) fn fill(self, offset: u64, buffer: &mut [u8]) {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let word = mix(self.seed.wrapping_add(at / 8)).to_le_bytes();
            let word = &word[(at % 8) as usize..];
            let length = word.len().min(rest.len());
            let (head, tail) = rest.split_at_mut(length);
            head.copy_from_slice(&word[..length]);
            at += length as u64;
            rest = tail;
        }
    }
}

impl Passed {
    pub(crate) fn new(pattern: Pattern) -> Self {
        Self { pattern, bytes: 0, hash: Sha256::new(), intact: true }
    }

    /// How many bytes passed.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes to send, at most as many as fit `buffer`.
    pub(crate) fn next(&self, buffer: &mut [u8]) {
        self.pattern.fill(self.bytes, buffer);
    }

    /// Notes that these bytes passed.
    pub(crate) fn note(&mut self, passed: &[u8]) {
        self.hash.update(passed);
        self.bytes += passed.len() as u64;
    }

    /// Notes bytes that arrived and compares them with what must have been sent.
    pub(crate) fn receive(&mut self, arrived: &[u8]) {
        let mut expected = vec![0; arrived.len()];
        self.next(&mut expected);
        self.intact &= expected == arrived;
        self.note(arrived);
    }

    /// Everything that arrived was what must have been sent.
    pub(crate) fn is_intact(&self) -> bool {
        self.intact
    }

    /// The hash of all that passed, in hex.
    pub(crate) fn hash(&self) -> String {
        self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The finaliser of SplitMix64: every input bit moves every output bit.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_read_in_pieces_is_the_stream_read_at_once() {
        let pattern = Pattern::new(7, Sender::Client);
        let mut whole = vec![0; 100];
        pattern.fill(3, &mut whole);
        let mut pieces = Vec::new();
        for length in [1_usize, 7, 8, 30, 54] {
            let mut piece = vec![0; length];
            pattern.fill(3 + pieces.len() as u64, &mut piece);
            pieces.extend(piece);
        }
        assert_eq!(pieces, whole);
    }

    #[test]
    fn streams_and_directions_differ() {
        let bytes = |id, sender| {
            let mut buffer = [0; 16];
            Pattern::new(id, sender).fill(0, &mut buffer);
            buffer
        };
        assert_ne!(bytes(1, Sender::Client), bytes(1, Sender::Server));
        assert_ne!(bytes(1, Sender::Client), bytes(2, Sender::Client));
    }

    #[test]
    fn both_ends_agree_unless_a_byte_is_lost_or_repeated() {
        let pattern = Pattern::new(1, Sender::Server);
        let (mut sent, mut received) = (Passed::new(pattern), Passed::new(pattern));
        for length in [10, 1400, 3] {
            let mut chunk = vec![0; length];
            sent.next(&mut chunk);
            sent.note(&chunk);
            received.receive(&chunk);
        }
        assert!(received.is_intact());
        assert_eq!((sent.bytes(), sent.hash()), (received.bytes(), received.hash()));
        received.receive(b"again");
        assert!(!received.is_intact());
        assert_ne!(sent.hash(), received.hash());
    }
}
