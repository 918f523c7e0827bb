//! Encryption of packets.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use rustls::SupportedCipherSuite;
use rustls::crypto::{aws_lc_rs, ring};
use rustls::quic::{Keys, Version};

use crate::PAYLOADS;

/// Bytes that a packet's payload leaves for its header and tag.
const OVERHEAD: usize = 64;

/// Sealing one packet, by suite and library: what decides which comes first
/// (`dataplane/src/quic/config.rs`).
pub(super) fn aead(criterion: &mut Criterion) {
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
