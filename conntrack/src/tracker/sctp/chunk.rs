//! The chunks of an SCTP packet, read in place.

use crate::headers::{u16_at, u32_at};

/// The kinds of chunk conntrack tells apart (RFC 9260, section 3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Data,
    Init,
    InitAck,
    Heartbeat,
    HeartbeatAck,
    Abort,
    Shutdown,
    ShutdownAck,
    Error,
    CookieEcho,
    CookieAck,
    ShutdownComplete,
    /// Says nothing of the state.
    Other,
}

impl Kind {
    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Data,
            1 => Self::Init,
            2 => Self::InitAck,
            4 => Self::Heartbeat,
            5 => Self::HeartbeatAck,
            6 => Self::Abort,
            7 => Self::Shutdown,
            8 => Self::ShutdownAck,
            9 => Self::Error,
            10 => Self::CookieEcho,
            11 => Self::CookieAck,
            14 => Self::ShutdownComplete,
            _ => Self::Other,
        }
    }

    /// Whether a rule of its own holds for the verification tag; else it must be the expected one.
    pub(super) const fn has_tag_rule(self) -> bool {
        matches!(
            self,
            Self::Init
                | Self::ShutdownComplete
                | Self::CookieEcho
                | Self::Abort
                | Self::ShutdownAck
                | Self::Heartbeat
                | Self::HeartbeatAck
        )
    }
}

/// One chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk<'a> {
    pub(super) kind: Kind,
    /// Type as sent.
    pub(super) number: u8,
    flags: u8,
    /// Length field: header and value, without padding.
    len: u16,
    /// Whatever follows the chunk's header in the packet, further chunks included.
    following: &'a [u8],
}

impl Chunk<'_> {
    /// The tag an INIT or INIT ACK names; `None` if its fixed part is cut.
    pub(super) fn initiate_tag(&self) -> Option<u32> {
        u32_at(self.following.get(..INIT_VALUE)?, 0)
    }

    /// Whether the T bit is set: the verification tag is the receiver's own, sent back.
    pub(super) const fn is_reflected(&self) -> bool {
        self.flags & T_BIT != 0
    }
}

/// The chunks behind the common header, as far as they can be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks<'a>(pub(super) &'a [u8]);

impl Chunks<'_> {
    /// Whether there are chunks, none of them of length zero, and those that must be alone or first are (RFC 9260, section 6.10).
    pub(super) fn are_well_bundled(self) -> bool {
        let mut lone = false;
        let mut count = 0_usize;
        for chunk in self {
            lone |= matches!(chunk.kind, Kind::Init | Kind::InitAck | Kind::ShutdownComplete);
            let first = lone || matches!(chunk.kind, Kind::CookieEcho | Kind::CookieAck);
            if chunk.len == 0 || (first && count > 0) {
                return false;
            }
            count = count.saturating_add(1);
        }
        count > 0
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let &[number, flags, ..] = self.0.first_chunk::<CHUNK_HEADER>()?;
        let len = u16_at(self.0, 2)?;
        let chunk = Chunk {
            kind: Kind::of(number),
            number,
            flags,
            len,
            following: self.0.get(CHUNK_HEADER..).unwrap_or_default(),
        };
        // A length of nought would not lead on: it ends the walk, and are_well_bundled refuses it.
        let padded = usize::from(len).checked_next_multiple_of(4).filter(|padded| *padded > 0);
        self.0 = padded.and_then(|padded| self.0.get(padded..)).unwrap_or_default();
        Some(chunk)
    }
}

/// Type, flags and length.
const CHUNK_HEADER: usize = 4;
/// Fixed part of an INIT's value.
const INIT_VALUE: usize = 16;
const T_BIT: u8 = 1;
