//! Congestion notification over the fragments of a datagram (RFC 3168, section 5.3).

/// The codepoints seen, a bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen(pub(super) u8);

impl Seen {
    /// Adds that of a type of service or traffic class.
    pub(super) const fn add(&mut self, class: u8) {
        self.0 |= match class & 3 {
            0 => NOT_CAPABLE,
            1 | 2 => CAPABLE,
            _ => EXPERIENCED,
        };
    }

    /// Whether congestion was experienced; `None` if the fragments contradict each other.
    pub(super) const fn merged(self) -> Option<bool> {
        match self.0 {
            NOT_CAPABLE | CAPABLE => Some(false),
            EXPERIENCED | CAPABLE_AND_EXPERIENCED => Some(true),
            _ => None,
        }
    }
}

const NOT_CAPABLE: u8 = 1;
const CAPABLE: u8 = 2;
const EXPERIENCED: u8 = 4;
const CAPABLE_AND_EXPERIENCED: u8 = CAPABLE | EXPERIENCED;
