//! Clocks, memory, threads.

use std::hint::black_box;
use std::sync::Barrier;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// Rounds whose median counts.
pub(crate) const ROUNDS: usize = 7;

/// CPU time of this thread, in nanoseconds.
pub(crate) fn cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds of CPU time that `work` takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let begun = cpu_time();
    let done = black_box(work());
    (cpu_time() - begun, done)
}

/// The median of what `round` says, called as often as it takes.
pub(crate) fn median(rounds: usize, mut round: impl FnMut(usize) -> f64) -> f64 {
    let mut all: Vec<f64> = (0..rounds).map(&mut round).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The median of the milliseconds that `round` says in nanoseconds.
pub(crate) fn median_ms(mut round: impl FnMut() -> u64) -> f64 {
    median(ROUNDS, |_| round() as f64 / 1e6)
}

/// Lets each worker do the same at the same time, on a thread of its own; the mean of what they say.
pub(crate) fn together<W: Send>(workers: &mut [W], work: impl Fn(&mut W) -> f64 + Sync) -> f64 {
    let barrier = Barrier::new(workers.len());
    let all: Vec<f64> = std::thread::scope(|scope| {
        let start = |worker| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                work(worker)
            })
        };
        let threads: Vec<_> = workers.iter_mut().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(f64::NAN)).collect()
    });
    all.iter().sum::<f64>() / all.len() as f64
}

/// Bytes of this process that are in memory.
pub(crate) fn resident() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").context("/proc/self/statm")?;
    let pages: usize = text.split(' ').nth(1).and_then(|field| field.parse().ok()).context("/proc/self/statm")?;
    Ok(pages * rustix::param::page_size())
}

/// Bytes that could be used.
pub(crate) fn free_memory() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().context("MemAvailable")?;
    Ok(kilobytes * 1024)
}

/// Threads that can run at once.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes in memory for each of `flows`, of tables that `make` makes. Small ones are made often enough to be seen.
pub(crate) fn bytes_per_flow<T>(flows: usize, mut make: impl FnMut() -> T) -> Result<f64> {
    let copies = SEEN_FLOWS.div_ceil(flows).max(1);
    let mut tables = Vec::with_capacity(copies);
    // The first one also pays for what is there once.
    let warm = make();
    let before = resident()?;
    tables.extend((0..copies).map(|_| make()));
    let bytes = resident()?.saturating_sub(before);
    drop(warm);
    Ok(bytes as f64 / (copies * flows) as f64)
}

/// So many flows change the memory in use by much more than chance does.
const SEEN_FLOWS: usize = 65_536;
