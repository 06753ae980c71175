//! What no table can beat: the machine's own rates.

use std::hint::black_box;

use crate::Plan;
use crate::figures::Limits;
use crate::machine::{ROUNDS, median, timed, together};
use crate::tuples::scatter;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

/// `bytes` is what the table of one thread takes.
pub(crate) fn measured(plan: Plan, bytes: usize) -> Limits {
    let mut workers: Vec<Vec<Line>> = (0..plan.threads).map(|_| lines(bytes)).collect();
    let random_line_ns = median(ROUNDS, |round| together(&mut workers, |lines| random_line_ns(lines, round as u64)));
    let mut workers: Vec<[Vec<Line>; 2]> = (0..plan.threads).map(|_| [lines(COPIED), lines(COPIED)]).collect();
    let copied = median(ROUNDS, |_| together(&mut workers, memcpy_gbps));
    Limits { random_line_ns, memcpy_gbps: copied * plan.threads as f64 }
}

fn lines(bytes: usize) -> Vec<Line> {
    (0..bytes.div_ceil(64).max(1)).map(|number| Line([number as u64; 8])).collect()
}

/// Reads at random places, each of which is known before the last read is back.
fn random_line_ns(lines: &[Line], seed: u64) -> f64 {
    let count = lines.len() as u64;
    let (taken, _) = timed(|| {
        (0..READS).fold(0_u64, |sum, read| {
            let at = ((scatter(seed << 32 ^ read) >> 32) * count) >> 32;
            sum.wrapping_add(lines[at as usize].0[0])
        })
    });
    taken as f64 / READS as f64
}

fn memcpy_gbps([from, to]: &mut [Vec<Line>; 2]) -> f64 {
    let (taken, ()) = timed(|| black_box(&mut *to).copy_from_slice(black_box(from)));
    COPIED as f64 / taken as f64
}

const READS: u64 = 2_000_000;
const COPIED: usize = 128 << 20;
