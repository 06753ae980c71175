//! One's complement differences (RFC 1624).

use super::Malformed;

/// By how much the one's complement sum over some bytes has changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference(u32);

impl Difference {
    /// Nothing was changed.
    pub(super) const NONE: Self = Self(0);

    /// Adds the changes counted in `other`.
    pub(super) const fn add(&mut self, other: Self) {
        self.0 = fold(self.0).wrapping_add(fold(other.0));
    }

    /// The checksum over bytes changed by this much (equation 3: ~HC + ~m + m').
    pub(super) const fn applied_to(self, checksum: u16) -> u16 {
        let sum = (!checksum as u32).wrapping_add(fold(self.0));
        !(fold(sum) as u16)
    }

    /// Counts that `old` was replaced by `new`, both 16-bit aligned within what the checksum covers.
    fn count(&mut self, old: &[u8], new: &[u8]) {
        let (old, _) = old.as_chunks::<2>();
        let (new, _) = new.as_chunks::<2>();
        for (old, new) in old.iter().zip(new) {
            let gone = u32::from(!u16::from_be_bytes(*old));
            self.0 = fold(self.0).wrapping_add(gone).wrapping_add(u32::from(u16::from_be_bytes(*new)));
        }
    }
}

/// Writes `new` at `offset` and counts the change. A field that has the value already counts for nothing.
pub(super) fn replace(bytes: &mut [u8], offset: usize, new: &[u8], change: &mut Difference) -> Result<(), Malformed> {
    let needed = offset.saturating_add(new.len());
    let found = bytes.len();
    let field = bytes.get_mut(offset..needed).ok_or(Malformed::Truncated { needed, found })?;
    if field != new {
        change.count(field, new);
        field.copy_from_slice(new);
    }
    Ok(())
}

/// Updates the checksum at `offset` for a difference in what it covers, and counts its own change.
pub(super) fn update(
    bytes: &mut [u8],
    offset: usize,
    by: Difference,
    change: &mut Difference,
) -> Result<(), Malformed> {
    if by.0 == 0 {
        return Ok(());
    }
    let old = read(bytes, offset)?;
    replace(bytes, offset, &by.applied_to(old).to_be_bytes(), change)
}

/// The 16-bit field at `offset`.
pub(super) fn read(bytes: &[u8], offset: usize) -> Result<u16, Malformed> {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .map(|field| u16::from_be_bytes(*field))
        .ok_or(Malformed::Truncated { needed: offset.saturating_add(2), found: bytes.len() })
}

/// Folds the carries back in (RFC 1071); twice is enough for any 32-bit sum.
const fn fold(sum: u32) -> u32 {
    let once = (sum >> 16).wrapping_add(sum & 0xffff);
    (once >> 16).wrapping_add(once & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_gives_the_example_of_rfc_1624() {
        // Section 4: checksum 0xdd2f, field 0x5555 becomes 0x3285, the checksum becomes zero.
        let mut change = Difference::NONE;
        let mut bytes = [0x55, 0x55];
        replace(&mut bytes, 0, &[0x32, 0x85], &mut change).unwrap();
        assert_eq!(change.applied_to(0xdd2f), 0x0000);
    }
}
