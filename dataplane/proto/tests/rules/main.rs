//! The rules that users rely on, one sentence each: names, hosts, connection strings, the
//! allow-list, frames, snapshots.

mod allow;
mod frames;
mod names;
mod snapshots;
mod strings;

use underpass_proto::*;

pub(crate) const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";

pub(crate) fn endpoint(text: &str) -> Endpoint {
    text.parse().expect("an endpoint")
}
