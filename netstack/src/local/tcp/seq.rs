//! Sequence numbers as they are on the wire.

/// A sequence number (RFC 9293, section 3.4): numbers wrap, and one comes before another within half their range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seq(pub(super) u32);

impl Seq {
    /// The number so many bytes on.
    pub(super) const fn plus(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The number so many bytes back.
    pub(super) const fn minus(self, bytes: u32) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }

    /// Bytes from `earlier` to here; negative if this is the earlier one.
    pub(super) const fn since(self, earlier: Self) -> i32 {
        self.0.wrapping_sub(earlier.0).cast_signed()
    }

    /// Whether this number comes before the other.
    pub(super) const fn is_before(self, other: Self) -> bool {
        self.since(other) < 0
    }

    /// The later of two numbers.
    pub(super) const fn later(self, other: Self) -> Self {
        if self.is_before(other) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_across_the_wrap() {
        let (before, after) = (Seq(0xffff_fff0), Seq(0x10));
        assert!(before.is_before(after) && !after.is_before(before));
        assert_eq!(after.since(before), 0x20);
        assert_eq!(before.since(after), -0x20);
        assert_eq!(before.later(after), after);
        assert_eq!(before.plus(0x20), after);
        assert_eq!(after.minus(0x20), before);
    }
}
