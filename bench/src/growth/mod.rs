//! How costs grow with flows, with hybrid connections and with agents: each count by itself, in
//! turns, judged for straight lines.
//!
//! Relay and agent have one worker unless told otherwise, so that costs are those of a core. Loads
//! have a fixed rate far below saturation and are the same at every count: what differs between two
//! counts is the count.

mod axes;
mod chart;
mod cost;
mod figure;
mod host;
mod judge;
mod load;
mod report;
mod stand;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

pub use figure::Figure;
pub use host::run as host_agents;
pub use report::Report;

use crate::peers::machine;

/// What grows.
#[derive(ValueEnum, Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Flows of one hybrid connection.
    Flows,
    /// Hybrid connections of one relay.
    Hycos,
    /// Agents of one relay, a session each.
    Agents,
}

/// How it is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What grows, one after the other.
    pub axes: Vec<Axis>,
    /// Measurements of each count.
    pub rounds: usize,
    /// Length of each load, and of each look at processes that rest.
    pub length: Duration,
    /// Rates of the loads, of the usual ones.
    pub share: f64,
    /// Workers of relay and agent.
    pub workers: usize,
    /// Backend of relay and agent, as on their command line.
    pub io: String,
    /// UDP payload that datagrams are held at, bytes.
    pub mtu_max: u16,
    /// Counts below this one are left out.
    pub least: usize,
    /// Counts above this one are left out.
    pub most: usize,
    /// The product's binary.
    pub underpass: PathBuf,
    /// The binary that hosts many agents.
    pub bench: PathBuf,
}

/// Figures of one count in one round.
pub type Figures = BTreeMap<Figure, f64>;

/// One count in one round.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What grew.
    pub axis: Axis,
    /// How far.
    pub count: usize,
    /// Figures, or why there are none.
    pub outcome: Result<Figures, String>,
}

/// Measures all counts of each axis, in turns. `tell` hears of each step in words.
///
/// # Errors
/// Nothing is to be measured; single failures are in the report.
pub fn run(settings: &Settings, tell: impl Fn(&str)) -> Result<Report> {
    ensure!(
        !settings.axes.is_empty() && settings.rounds > 0,
        "nothing is to be measured"
    );
    let mut busy = machine::busy();
    for trouble in &busy {
        tell(&format!("warning: {trouble}: figures will be wrong"));
    }
    let mut samples = Vec::new();
    for &axis in &settings.axes {
        for round in 1..=settings.rounds {
            for &count in axis
                .counts()
                .iter()
                .filter(|count| (settings.least..=settings.most).contains(*count))
            {
                let outcome = axis
                    .measure(settings, count)
                    .map_err(|error| format!("{error:#}"));
                let place = format!("round {round} of {}, {count} {axis}", settings.rounds);
                tell(&format!("{place}: {}", table::told(&outcome)));
                samples.push(Sample {
                    axis,
                    count,
                    outcome,
                });
            }
            busy.extend(machine::builds());
        }
    }
    busy.sort();
    busy.dedup();
    Ok(Report::new(settings, busy, &samples))
}

impl Axis {
    /// How far it grows, in steps.
    #[must_use]
    pub fn counts(self) -> &'static [usize] {
        match self {
            Axis::Flows => &[1, 10, 100, 1_000, 8_000],
            Axis::Hycos => &[1, 10, 100, 1_000, 10_000],
            Axis::Agents => &[1, 10, 100, 1_000],
        }
    }

    /// What its counts count.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Axis::Flows => "flows",
            Axis::Hycos => "hybrid connections",
            Axis::Agents => "agents",
        }
    }

    /// The file of its picture.
    #[must_use]
    pub fn picture(self) -> &'static str {
        match self {
            Axis::Flows => "growth-flows.svg",
            Axis::Hycos => "growth-hycos.svg",
            Axis::Agents => "growth-agents.svg",
        }
    }

    fn measure(self, settings: &Settings, count: usize) -> Result<Figures> {
        match self {
            Axis::Flows => axes::flows(settings, count),
            Axis::Hycos => axes::hycos(settings, count),
            Axis::Agents => axes::agents(settings, count),
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}
