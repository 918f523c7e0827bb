//! The fault table as a program: rows that do harm to Underpass as users run it, while every byte
//! of every flow is checked.
//!
//! A row starts control, relay, agents, an endpoint and a client as processes of their own, does
//! one kind of harm again and again, and measures what came of it against what must hold. Whatever
//! the row, no flow may ever be corrupt, silently truncated or hung. A run has one seed: each row's
//! chances come from it and from the row's number, so that the same seed does the same harm.

mod apart;
mod calls;
mod chart;
mod local;
mod report;
mod rows;
mod scene;
mod soak;
mod table;
mod trial;

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

pub use chart::recovery_chart;
pub use report::Outcome;
pub use soak::{Soak, soak};
pub use table::{ELSEWHERE, ROWS, Row, Shown};
pub use trial::{Bar, Fault, Figure, Flows, Recoveries, RowResult};

use crate::stand::installation::Io;
use trial::Trial;

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The product's program.
    pub underpass: PathBuf,
    /// This program, for endpoints and clients.
    pub own: PathBuf,
    /// Of all chances.
    pub seed: u64,
    /// How much of each row.
    pub length: Length,
    /// Backend of relay and agents.
    pub io: Io,
    /// Workers of relay and agents.
    pub workers: u16,
    /// Whether each fault is told on stderr as it is done.
    pub talk: bool,
}

/// How much of each row is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// At most 20 rounds or 20 seconds a row.
    Ci,
    /// The whole table in ten minutes.
    TenMinutes,
    /// As the table says.
    Nightly,
}

impl Length {
    fn pick<T>(self, ci: T, ten_minutes: T, nightly: T) -> T {
        match self {
            Length::Ci => ci,
            Length::TenMinutes => ten_minutes,
            Length::Nightly => nightly,
        }
    }
}

/// Runs these rows, one after another. `shown` is told of each when it is done.
pub fn run(
    settings: &Settings,
    rows: &[&'static Row],
    mut shown: impl FnMut(&RowResult),
) -> Outcome {
    let mut results = Vec::new();
    for row in rows {
        let mut trial = Trial::new(settings, row.number, row.name);
        let ran: Result<()> = (row.run)(&mut trial);
        let result = trial.end(ran);
        shown(&result);
        results.push(result);
    }
    Outcome::new(settings, results)
}
