//! What `agent.toml` and `sender.toml` both say: how the process works, and whom it trusts.

use std::path::{Path, PathBuf};

use underpass_proto::limits::WORKERS_MAX;

use super::document::{Document, Section};

/// The smallest and largest `mtu_max`: QUIC's floor, and what a UDP datagram over IPv4 can carry.
pub const MTU_MAX_BOUNDS: std::ops::RangeInclusive<u16> = 1200..=65_507;

/// The fields that both have.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DataPlane {
    /// CA certificates to trust where a string has no pin.
    pub ca_file: Option<PathBuf>,
    /// Number of workers.
    pub workers: Option<u16>,
    /// `auto`, `ring` or `poll`.
    pub io: Option<&'static str>,
    /// Largest UDP payload.
    pub mtu_max: Option<u16>,
}

impl DataPlane {
    /// Reads the fields; `folder` is where relative paths start.
    pub fn read<'t>(document: &mut Document<'t>, root: &mut Section<'t>, folder: &Path) -> Self {
        let ca_file = document.string(root, "ca_file", "ca.pem");
        let workers = document.integer(root, "workers", 1..=WORKERS_MAX, 2);
        let io = document.word(
            root,
            "io",
            &[("auto", "auto"), ("ring", "ring"), ("poll", "poll")],
        );
        let mtu_max = document.integer(root, "mtu_max", MTU_MAX_BOUNDS, 1452);
        Self {
            ca_file: ca_file.map(|file| folder.join(file.value)),
            workers: workers.map(|workers| workers.value),
            io: io.map(|io| io.value),
            mtu_max: mtu_max.map(|mtu| mtu.value),
        }
    }

    /// Whether all but the certificates is the same: what is settled when a process starts.
    #[must_use]
    pub fn works_like(&self, other: &Self) -> bool {
        (self.workers, self.io, self.mtu_max) == (other.workers, other.io, other.mtu_max)
    }
}
