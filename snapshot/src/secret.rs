//! Values that must not be written, copied or printed.

use core::fmt;

use zeroize::Zeroize;

/// A value that lives in memory only.
///
/// It has no serde, no [`Snapshot`](crate::Snapshot), no `Clone`, and prints as `Secret(..)`. It is boxed, so that a move leaves
/// no copy behind, and wiped when dropped. There is no `Deref`: every look at it says [`expose`](Self::expose).
pub struct Secret<T: Zeroize>(Box<T>);

impl<T: Zeroize> Secret<T> {
    /// Takes charge of `value`. Copies the caller made of it before are the caller's to wipe.
    pub fn new(value: T) -> Self {
        Self(Box::new(value))
    }

    /// The value itself.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// The value itself, to be filled in place.
    pub(crate) fn expose_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    struct Probe(Rc<Cell<bool>>);

    impl Zeroize for Probe {
        fn zeroize(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn a_secret_is_wiped_when_it_is_dropped_and_not_before() {
        let wiped = Rc::new(Cell::new(false));
        let secret = Secret::new(Probe(Rc::clone(&wiped)));
        let moved = Box::new(secret);
        assert!(!wiped.get());
        drop(moved);
        assert!(wiped.get());
    }

    #[test]
    fn a_secret_prints_nothing_of_its_value() {
        assert_eq!(format!("{:?}", Secret::new(0x5eed_u64)), "Secret(..)");
        assert_eq!(format!("{:#?}", Some(Secret::new([1_u8; 16]))), "Some(\n    Secret(..),\n)");
    }
}
