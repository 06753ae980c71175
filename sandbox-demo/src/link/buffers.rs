//! Buffers that frames are read into and that come back once they have left.

/// Buffers without a frame. The one that came back last is taken first: the processor still has it in its caches.
#[derive(Default)]
pub(crate) struct Buffers {
    free: Vec<Vec<u8>>,
}

impl Buffers {
    /// An empty buffer with room for the longest frame. What is never written to costs no memory.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| Vec::with_capacity(LONGEST_FRAME))
    }

    /// Takes a buffer back, if it is one of ours or as good.
    pub(super) fn give(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() >= LONGEST_FRAME && self.free.len() < MOST_FREE {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}

/// The longest IPv6 datagram without a jumbo payload, in a frame with a VLAN tag.
pub(super) const LONGEST_FRAME: usize = 65_535 + 40 + 18;
/// Enough for a burst of each of some links.
const MOST_FREE: usize = 128;
