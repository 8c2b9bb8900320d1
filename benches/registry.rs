//! How long a look-up, a claim and a whole request take with few tunnels and with many:
//! `cargo bench --bench registry`. How many instructions they take is tested by
//! `tests/it/growth.rs`.

#[path = "../tests/it/support/crowd.rs"]
mod crowd;

use criterion::measurement::WallTime;
use criterion::{Bencher, BenchmarkGroup, BenchmarkId, Criterion};

use crowd::Crowd;

/// How many tunnels.
const SIZES: [usize; 3] = [10, 1_000, 100_000];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("tunnels");
    measure(&mut group, "look-up", |bencher, crowd| bencher.iter(|| crowd.look_up()));
    measure(&mut group, "list", |bencher, crowd| bencher.iter(|| crowd.list()));
    measure(&mut group, "claim", |bencher, crowd| bencher.iter(|| crowd.claim()));
    measure(&mut group, "request", |bencher, crowd| bencher.iter(|| crowd.request()));
    group.finish();
    criterion.final_summary();
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    what: &str,
    work: impl Fn(&mut Bencher<'_>, &mut Crowd),
) {
    for size in SIZES {
        group.bench_function(BenchmarkId::new(what, size), |bencher| work(bencher, &mut Crowd::of(size)));
    }
}
