//! Locks and counters of shards: the real ones, or under `--cfg loom` those of a model checker that tries every order in
//! which threads can come (`.ci/loom`).

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub(super) use parking_lot::{Mutex, MutexGuard};

#[cfg(loom)]
pub(super) use self::modelled::{Mutex, MutexGuard};

/// Sets a word to zero. Nobody else can see it any more.
#[cfg(not(loom))]
pub(super) fn wipe(word: &mut AtomicU64) {
    zeroize::Zeroize::zeroize(word.get_mut());
}

/// Sets a word to zero. Nobody else can see it any more.
#[cfg(loom)]
pub(super) fn wipe(word: &mut AtomicU64) {
    word.with_mut(zeroize::Zeroize::zeroize);
}

#[cfg(loom)]
mod modelled {
    use std::sync::PoisonError;

    pub(crate) use loom::sync::MutexGuard;

    /// The modelled lock with the face of the real one.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
