//! The small parts of the data plane, each by itself: frames, proofs, packet encryption, the one copy of a byte.
//! Never the whole: what a user gets is measured by `underpass-bench peers`.
//!
//! `cargo bench -p underpass-bench --bench parts [-- NAME]`

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustls::SupportedCipherSuite;
use rustls::crypto::{aws_lc_rs, ring};
use rustls::quic::{Keys, Version};
use underpass_proto::key::KeyPair;
use underpass_proto::proof::{check_register, relay_proof};
use underpass_proto::wire::Open;
use underpass_proto::{
    Endpoint, Exporter, FlowId, Frame, FrameReader, HycoKeys, HycoName, Key, Nonce, Register, Rule,
};

/// UDP payloads that matter: the internet's, a jumbo frame's, and the largest, which loopback takes.
const PAYLOADS: [usize; 3] = [1_452, 8_952, 65_507];

/// Bytes that a packet's payload leaves for its header and tag.
const OVERHEAD: usize = 64;

criterion_group!(parts, frames, proofs, aead, copies);
criterion_main!(parts);

fn name() -> HycoName {
    "payroll-sql".parse().expect("a name")
}

fn endpoint() -> Endpoint {
    "sql01.corp.example:1433".parse().expect("an endpoint")
}

fn open() -> Frame {
    Frame::Open(Open {
        hyco: name(),
        flow: FlowId(7),
        endpoint: endpoint(),
        application: ([10, 0, 0, 9], 50_000).into(),
    })
}

/// What each new flow costs at the wire: its Open, written and read.
fn frames(criterion: &mut Criterion) {
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

/// What each registration costs: HMAC-SHA256 in the peer, four candidates in the relay.
fn proofs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("proofs");
    let key = |fill| Key::from_random([fill; 32]);
    let pair = |fill| KeyPair {
        primary: key(fill),
        secondary: Some(key(fill + 1)),
    };
    let keys = HycoKeys {
        listen: Some(pair(1)),
        send: Some(pair(3)),
    };
    let exporter = Exporter([9; 32]);
    let register = || {
        Register::new(
            &key(1),
            name(),
            Rule::Listen,
            Nonce([5; 16]),
            100,
            0,
            &exporter,
        )
    };
    group.bench_function("make Register", |bencher| bencher.iter(register));
    let said = register();
    group.bench_function("check Register", |bencher| {
        bencher.iter(|| check_register(black_box(&said), Some(&keys), &exporter));
    });
    group.bench_function("check Register of an unknown name", |bencher| {
        bencher.iter(|| check_register(black_box(&said), None, &exporter));
    });
    let endpoint = endpoint();
    group.bench_function("make the relay's proof", |bencher| {
        bencher.iter(|| relay_proof(&key(1), black_box(&said), &endpoint, &exporter));
    });
    group.finish();
}

/// Sealing one packet, by suite and library: what decides which comes first (`dataplane/src/quic/config.rs`).
fn aead(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("aead");
    let suites = [
        (
            "AES-128-GCM ring",
            ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ),
        (
            "AES-128-GCM aws-lc",
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ),
        (
            "AES-256-GCM aws-lc",
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ),
        (
            "ChaCha20 aws-lc",
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ),
    ];
    for (library, suite) in suites {
        let keys = packet_keys(suite);
        for size in PAYLOADS {
            let mut payload = vec![0; size - OVERHEAD];
            group.throughput(Throughput::Bytes(payload.len() as u64));
            group.bench_function(BenchmarkId::new(library, size), |bencher| {
                let mut number = 0;
                bencher.iter(|| {
                    number += 1;
                    let sealed = keys
                        .local
                        .packet
                        .encrypt_in_place(number, &[0; 20], &mut payload);
                    black_box(sealed.expect("a payload of one packet").as_ref()[0])
                });
            });
        }
    }
    group.finish();
}

/// Keys as QUIC makes them, from a fixed connection ID (RFC 9001, section 5.2).
fn packet_keys(suite: SupportedCipherSuite) -> Keys {
    let tls13 = suite.tls13().expect("a suite of TLS 1.3");
    let quic = tls13.quic.expect("a suite that QUIC can use");
    let initial = Keys::initial(Version::V1, tls13, quic, &[7; 8], rustls::Side::Client);
    black_box(initial)
}

/// The copy into a packet, and a chunk handed on without one.
fn copies(criterion: &mut Criterion) {
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
