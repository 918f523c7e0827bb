//! One flush: packets made of what was written, encrypted, and handed to the kernel. And what the
//! size of chunks does to it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};

use crate::PAYLOADS;
use crate::pair::Pair;

/// Bytes that one flow gives to a flush.
const SHARE: usize = 64 << 10;

/// Bytes that are written in chunks of several sizes.
const PORTION: usize = 256 << 10;

/// Sizes of chunks, bytes: a small message, a page, a packet of loopback's, a read.
const CHUNKS: [usize; 4] = [1 << 10, 4 << 10, 16 << 10, 64 << 10];

/// A share of one flow, by size of datagrams. What the peer does with it does not count.
pub(super) fn flush(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flush");
    group.throughput(Throughput::Bytes(SHARE as u64));
    for payload in PAYLOADS {
        let mut pair = Pair::new(u16::try_from(payload).expect("a UDP payload"));
        group.bench_function(BenchmarkId::new("64 KiB", payload), |bencher| {
            bencher.iter_custom(|rounds| timed(&mut pair, rounds, SHARE, SHARE));
        });
    }
    group.finish();
}

/// The same bytes in chunks of several sizes, at the internet's size of datagrams.
pub(super) fn chunks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chunks");
    group.throughput(Throughput::Bytes(PORTION as u64));
    let mut pair = Pair::new(1_452);
    for size in CHUNKS {
        group.bench_function(BenchmarkId::new("256 KiB", size), |bencher| {
            bencher.iter_custom(|rounds| timed(&mut pair, rounds, PORTION, size));
        });
    }
    group.finish();
}

/// Time of writing and flushing.
fn timed(pair: &mut Pair, rounds: u64, len: usize, chunk: usize) -> Duration {
    let chunk = Bytes::from(vec![7; chunk]);
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let mut chunks = vec![chunk.clone(); len / chunk.len()];
        let start = Instant::now();
        pair.write(&mut chunks);
        pair.flush();
        spent += start.elapsed();
        pair.settle();
    }
    spent
}
