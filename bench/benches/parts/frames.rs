//! Frames of the control streams, and the one that each flow begins with.

use std::hint::black_box;

use bytes::Bytes;
use criterion::Criterion;
use underpass_proto::wire::Open;
use underpass_proto::{FlowId, Frame, FrameReader};

use crate::{endpoint, name};

/// What each new flow costs at the wire: its Open, written and read.
pub(super) fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    let frame = open();
    group.bench_function("encode Open", |bencher| {
        bencher.iter(|| black_box(&frame).to_vec());
    });
    let encoded = Bytes::from(frame.to_vec());
    group.bench_function("read Open", |bencher| {
        bencher.iter(|| {
            let mut reader = FrameReader::new();
            reader.push(black_box(encoded.clone()));
            reader.next()
        });
    });
    group.finish();
}

fn open() -> Frame {
    Frame::Open(Open {
        hyco: name(),
        flow: FlowId(7),
        endpoint: endpoint(),
        application: ([10, 0, 0, 9], 50_000).into(),
    })
}
