//! What `agent.toml` and `sender.toml` both say: how the process works, and whom it trusts.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use underpass_proto::limits::{KEEP_ALIVE_MAX, PING_AFTER, WORKERS_MAX};

use super::document::{Document, Section};
use crate::quantity::duration;

/// The smallest and largest `mtu_max`: QUIC's floor, and what a UDP datagram over IPv4 can carry.
pub const MTU_MAX_BOUNDS: std::ops::RangeInclusive<u16> = 1200..=65_507;

/// A time between signs of life that a relay grants.
#[derive(Debug)]
struct KeepAlive(Duration);

impl FromStr for KeepAlive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let every = duration(text)?;
        if (PING_AFTER..=KEEP_ALIVE_MAX).contains(&every) {
            return Ok(Self(every));
        }
        Err(format!(
            "a time from {} s to {} s is needed",
            PING_AFTER.as_secs(),
            KEEP_ALIVE_MAX.as_secs()
        ))
    }
}

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
    /// How often the relay gets a sign of life.
    pub keep_alive: Option<Duration>,
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
        let keep_alive = document.parsed::<KeepAlive>(root, "keep_alive", "30s");
        Self {
            ca_file: ca_file.map(|file| folder.join(file.value)),
            workers: workers.map(|workers| workers.value),
            io: io.map(|io| io.value),
            mtu_max: mtu_max.map(|mtu| mtu.value),
            keep_alive: keep_alive.map(|every| every.value.0),
        }
    }

    /// Whether all but the certificates is the same: what is settled when a process starts.
    #[must_use]
    pub fn works_like(&self, other: &Self) -> bool {
        let settled = |it: &Self| (it.workers, it.io, it.mtu_max, it.keep_alive);
        settled(self) == settled(other)
    }
}
