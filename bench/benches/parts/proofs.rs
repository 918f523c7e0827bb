//! Proofs of a registration.

use std::hint::black_box;

use criterion::Criterion;
use underpass_proto::key::KeyPair;
use underpass_proto::proof::{check_register, relay_proof};
use underpass_proto::{Exporter, HycoKeys, Key, Nonce, Register, Rule};

use crate::{endpoint, name};

/// What each registration costs: HMAC-SHA256 in the peer, four candidates in the relay.
pub(super) fn proofs(criterion: &mut Criterion) {
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
