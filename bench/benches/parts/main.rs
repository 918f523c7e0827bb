//! The small parts of the data plane, each by itself: frames, proofs, packet encryption, the one
//! copy of a byte, a flush, a pick. Never the whole: what a user gets is measured by
//! `underpass-bench peers`.
//!
//! `cargo bench -p underpass-bench [-- NAME]`; with `-- --quick` in minutes

mod aead;
mod copies;
mod flush;
mod frames;
mod pair;
mod proofs;
mod roster;

use criterion::{criterion_group, criterion_main};
use underpass_proto::{Endpoint, HycoName};

/// UDP payloads that matter: the internet's, a jumbo frame's, and the largest, which loopback
/// takes.
const PAYLOADS: [usize; 3] = [1_452, 8_952, 65_507];

criterion_group!(
    parts,
    frames::frames,
    proofs::proofs,
    aead::aead,
    copies::copies,
    flush::flush,
    flush::chunks,
    roster::picks
);
criterion_main!(parts);

fn name() -> HycoName {
    "payroll-sql".parse().expect("a name")
}

fn endpoint() -> Endpoint {
    "sql01.corp.example:1433".parse().expect("an endpoint")
}
