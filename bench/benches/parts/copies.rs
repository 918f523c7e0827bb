//! The one copy of a byte in user space, beside none.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};

use crate::PAYLOADS;

/// The copy into a packet, and a chunk handed on without one.
pub(super) fn copies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copies");
    for size in PAYLOADS {
        let chunk = Bytes::from(vec![1; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("into a packet", size), |bencher| {
            bencher.iter_batched_ref(
                || BytesMut::with_capacity(size),
                |packet| packet.extend_from_slice(black_box(&chunk)),
                BatchSize::SmallInput,
            );
        });
        group.bench_function(BenchmarkId::new("handed on", size), |bencher| {
            bencher.iter(|| black_box(&chunk).slice(1..));
        });
    }
    group.finish();
}
