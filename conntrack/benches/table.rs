//! Pieces of the packet path on a small table, in time: `cargo bench -p hibernet-conntrack --bench table`. Large tables, where
//! memory counts, are for `table-bench` of `hibernet-tests`.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark, which reads clocks"
)]

mod packets;
mod work;

use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};
use hibernet_conntrack::Direction;

use crate::work::{Connections, Newcomers, Seekers};

fn pieces(criterion: &mut Criterion) {
    for (family, v6) in [("IPv4", false), ("IPv6", true)] {
        let mut group = criterion.benchmark_group(family);
        group.throughput(Throughput::Elements(FLOWS.into()));
        group.bench_function("read, track, translate in bursts", |bencher| {
            pass(bencher, v6, Connections::pass_in_bursts);
        });
        group.bench_function("read, track, translate one by one", |bencher| {
            pass(bencher, v6, Connections::pass_one_by_one);
        });
        let mut seekers = Seekers::new(FLOWS, v6);
        group.bench_function("look up in bursts", |bencher| bencher.iter(|| seekers.refresh_in_bursts()));
        group.bench_function("new flows in bursts", |bencher| {
            let newcomers = || Newcomers::new(FLOWS, v6);
            bencher.iter_batched_ref(newcomers, Newcomers::confirm_in_bursts, criterion::BatchSize::LargeInput);
        });
        group.finish();
    }
}

/// Packets go both ways in turn; making them is not measured.
fn pass(bencher: &mut Bencher<'_>, v6: bool, work: fn(&mut Connections)) {
    let mut connections = Connections::new(FLOWS, v6);
    let mut direction = Direction::Original;
    bencher.iter_custom(|rounds| {
        let mut taken = Duration::ZERO;
        for _ in 0..rounds {
            connections.prepare(direction);
            direction = direction.opposite();
            let begun = Instant::now();
            work(&mut connections);
            taken += begun.elapsed();
        }
        taken
    });
}

const FLOWS: u16 = 1024;

criterion_group!(benches, pieces);
criterion_main!(benches);
