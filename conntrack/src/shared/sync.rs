//! Locks and counters of shards, in one place: another kind can be put in theirs.

pub(super) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub(super) use parking_lot::{Mutex, MutexGuard};
