//! Who gets the next flow, of few listeners and of many.

use criterion::{BenchmarkId, Criterion};
use rand::SeedableRng;
use rand::rngs::StdRng;
use underpass_dataplane::parts::Listeners;

/// Listeners of one hybrid connection: one, as many as some have, and more than any should.
const LISTENERS: [u32; 3] = [1, 10, 1_000];

pub(super) fn picks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("roster");
    for count in LISTENERS {
        let listeners = Listeners::new(count);
        let mut rng = StdRng::seed_from_u64(7);
        group.bench_function(BenchmarkId::new("pick", count), |bencher| {
            bencher.iter(|| assert!(listeners.pick(&mut rng)));
        });
    }
    group.finish();
}
