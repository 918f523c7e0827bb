//! The agent: dials out to relays, registers as listener, and dials endpoints for the flows that come. Never listens.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Settings, drain};

/// One connection string and how this listener wants to be picked.
#[derive(Clone, Debug)]
pub struct Connect {
    /// File that holds the connection string, for messages and for watching; the string itself is in `string`.
    pub string_file: Option<PathBuf>,
    /// The parsed string (listen rule).
    pub string: underpass_proto::ConnectionString,
    /// Share of new flows relative to other listeners (default 100).
    pub weight: u16,
    /// Lower is preferred (default 0).
    pub priority: u8,
}

/// What an agent is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to listen for. Strings of one relay address share sessions.
    pub connects: Vec<Connect>,
    /// Entries beyond the targets of the strings. Empty: only the targets.
    pub allow: underpass_proto::AllowList,
    /// Extra CA certificates (PEM already decoded to DER) to trust where a string has no pin; empty: the system's roots.
    pub ca: Vec<Vec<u8>>,
    /// Stable over restarts: hash of machine id, host name and configuration path.
    pub agent_id: underpass_proto::AgentId,
}

/// What ends an agent early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chosen io backend cannot be had.
    #[error("{0}")]
    Io(String),
    /// No registration was ever accepted and all were refused.
    #[error("{0}")]
    NotAuthorised(String),
    /// `check` only: no relay answered.
    #[error("{0}")]
    Unreachable(String),
    /// A worker ended by itself.
    #[error("a worker failed: {0}")]
    Worker(String),
}

/// One line of what `check` found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The hybrid connection.
    pub hyco: underpass_proto::HycoName,
    /// Its endpoint, as the relay says it.
    pub endpoint: underpass_proto::Endpoint,
    /// Smoothed round-trip time to the relay, microseconds.
    pub rtt_us: u64,
}

/// Runs an agent until it was asked to end and has drained. Retries for ever but for [`Error::NotAuthorised`].
///
/// # Errors
/// See [`Error`].
pub fn run(config: Config, settings: Settings, requests: drain::Requests) -> Result<(), Error> {
    let _ = (config, settings, requests);
    Err(Error::Io("not built".into()))
}

/// Connects and registers once, takes no flows, and says what it found.
///
/// # Errors
/// [`Error::Unreachable`] within `deadline`, [`Error::NotAuthorised`] when any registration was refused.
pub fn check(
    config: Config,
    settings: Settings,
    deadline: Duration,
) -> Result<Vec<Checked>, Error> {
    let _ = (config, settings, deadline);
    Err(Error::Io("not built".into()))
}
