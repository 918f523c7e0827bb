//! The relay: bindings for applications on one side, sessions of agents on the other. Reads no file: all it knows comes in snapshots.

use std::path::PathBuf;

use crate::{Settings, drain};

/// What ends a relay early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chosen io backend cannot be had.
    #[error("{0}")]
    Io(String),
    /// The public UDP address cannot be opened.
    #[error("cannot listen on {address} (udp): {source}")]
    Listen {
        /// What was tried.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A worker ended by itself.
    #[error("a worker failed: {0}")]
    Worker(String),
}

/// Runs a relay until it was asked to end and has drained. Dials the feed at `feed` (control's unix socket) and waits for its first snapshot without limit.
///
/// # Errors
/// See [`Error`].
pub fn run(feed: PathBuf, settings: Settings, requests: drain::Requests) -> Result<(), Error> {
    let _ = (feed, settings, requests);
    Err(Error::Io("not built".into()))
}
