//! Which machine and which network namespace this process is in, as flow ids need it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::LazyLock;

use underpass_proto::Locality;

/// This process's. Without `/proc`, zeros: then equal addresses of two machines look like one
/// connection.
pub(crate) fn here() -> Locality {
    static HERE: LazyLock<Locality> = LazyLock::new(find);
    *HERE
}

fn find() -> Locality {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    Locality {
        kernel: boot_id.trim().bytes().fold(0xcbf2_9ce4_8422_2325, fnv),
        network: fs::metadata("/proc/self/ns/net").map_or(0, |meta| meta.ino()),
    }
}
