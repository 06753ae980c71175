//! Work on many threads whose results come out in order.

use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, sync_channel};

use parking_lot::Mutex;

/// How a save is packed. The bytes do not depend on the number of threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packing {
    threads: NonZeroUsize,
    compress: bool,
}

impl Default for Packing {
    /// On the calling thread, plain.
    fn default() -> Self {
        Self { threads: NonZeroUsize::MIN, compress: false }
    }
}

impl Packing {
    /// On as many threads, the calling one included; nought counts as one.
    #[must_use]
    pub const fn on_threads(self, threads: usize) -> Self {
        let threads = match NonZeroUsize::new(threads) {
            Some(threads) => threads,
            None => NonZeroUsize::MIN,
        };
        Self { threads, ..self }
    }

    /// With flow records as compressed columns: about half the bytes, for about four times the work. What users send is
    /// never compressed: its length would tell of it.
    #[must_use]
    pub const fn compressed(self, compress: bool) -> Self {
        Self { compress, ..self }
    }

    /// How many threads pack.
    pub const fn threads(&self) -> usize {
        self.threads.get()
    }

    /// Whether flow records are compressed.
    pub const fn compresses(&self) -> bool {
        self.compress
    }
}

/// Does jobs 0 to `jobs` on `threads` threads, the calling one included, and hands their results to `sink` in order. At most
/// a few results a thread wait at once, so that memory is bounded. An error of `sink` ends it.
pub(super) fn in_order<M: Send, E>(
    jobs: usize,
    threads: usize,
    work: impl Fn(usize, &mut Vec<u8>) + Sync,
    look: impl Fn(&[u8]) -> M + Sync,
    mut sink: impl FnMut(&[u8], M) -> Result<(), E>,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let spare = Mutex::new(Vec::new());
    let done = |number: usize| {
        let mut out = spare.lock().pop().unwrap_or_default();
        work(number, &mut out);
        let seen = look(&out);
        (number, out, seen)
    };
    let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < jobs);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        for _ in 1..threads.min(jobs) {
            let (sender, done, claim) = (sender.clone(), &done, &claim);
            scope.spawn(move || {
                while let Some(number) = claim() {
                    if sender.send(done(number)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut waiting: BTreeMap<usize, (Vec<u8>, M)> = BTreeMap::new();
        for number in 0..jobs {
            let (out, seen) = loop {
                for (number, out, seen) in receiver.try_iter() {
                    waiting.insert(number, (out, seen));
                }
                if let Some(ready) = waiting.remove(&number) {
                    break ready;
                }
                let mine = if waiting.len() < threads { claim() } else { None };
                match mine.map(&done).or_else(|| wait(&receiver)) {
                    Some((number, out, seen)) => waiting.insert(number, (out, seen)),
                    // Every job was claimed, and whoever claimed it has handed it over or panicked.
                    None => return Ok(()),
                };
            };
            sink(&out, seen)?;
            spare.lock().push(out);
        }
        Ok(())
    })
}

fn wait<T>(receiver: &Receiver<T>) -> Option<T> {
    receiver.recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_number_of_threads() {
        for (jobs, threads) in [(0, 1), (1, 4), (7, 1), (100, 2), (100, 5)] {
            let mut seen = Vec::new();
            let work = |number: usize, out: &mut Vec<u8>| {
                out.clear();
                out.extend((number as u64).to_le_bytes());
            };
            let look = |out: &[u8]| out.len();
            let sink = |out: &[u8], length: usize| {
                assert_eq!(length, 8);
                seen.push(u64::from_le_bytes(out.try_into().unwrap()) as usize);
                Ok::<_, ()>(())
            };
            in_order(jobs, threads, work, look, sink).unwrap();
            assert_eq!(seen, (0..jobs).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_the_work_and_comes_back() {
        let mut taken = 0;
        let sink = |_: &[u8], ()| {
            taken += 1;
            if taken == 3 { Err("full") } else { Ok(()) }
        };
        assert_eq!(in_order(1000, 3, |_, _| {}, |_| (), sink), Err("full"));
        assert_eq!(taken, 3);
    }
}
