//! What came of a run, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::trial::{Flows, RowResult, number};
use super::{ELSEWHERE, Length, Settings};

/// What came of a run. Displays as a table.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Outcome {
    /// Of all chances.
    pub seed: u64,
    /// How much of each row.
    pub length: Length,
    /// Backend of relay and agents.
    pub io: &'static str,
    /// Whether every row held.
    pub held: bool,
    /// All flows together.
    pub flows: Flows,
    /// Faults that were done.
    pub faults: u64,
    /// Row by row.
    pub rows: Vec<RowResult>,
}

impl Outcome {
    pub(super) fn new(settings: &Settings, rows: Vec<RowResult>) -> Outcome {
        let mut flows = Flows::default();
        rows.iter().for_each(|row| flows.add(&row.flows));
        Outcome {
            seed: settings.seed,
            length: settings.length,
            io: settings.io.name(),
            held: rows.iter().all(RowResult::held),
            flows,
            faults: rows.iter().map(|row| row.faults).sum(),
            rows,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            write!(f, "{row}")?;
        }
        for row in ELSEWHERE {
            writeln!(
                f,
                "row {:>2}  {}: by tests: {}",
                row.number, row.name, row.by
            )?;
        }
        let Flows {
            ok,
            error,
            corrupt,
            truncated,
            hung,
            bytes,
            ..
        } = self.flows;
        let verdict = if self.held { "held" } else { "NOT held" };
        writeln!(
            f,
            "\nseed {}, {}: {verdict}. {} faults, {} flows, {}: ok {ok}, error {error}, corrupt {corrupt}, truncated {truncated}, hung {hung}",
            self.seed,
            self.io,
            self.faults,
            self.flows.total(),
            indicatif::BinaryBytes(bytes),
        )
    }
}

impl fmt::Display for RowResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (&self.skipped, self.held()) {
            (Some(_), _) => "skipped",
            (None, true) => "held",
            (None, false) => "NOT HELD",
        };
        if self.row > 0 {
            write!(f, "row {:>2}  ", self.row)?; // A soak is none.
        }
        writeln!(f, "{}: {verdict} ({:.1} s)", self.name, self.seconds)?;
        if let Some(why) = &self.skipped {
            return writeln!(f, "        {why}");
        }
        for figure in &self.figures {
            let value = format!("{} {}", number(figure.value), figure.unit);
            write!(f, "        {:<58} {:>14}", figure.name, value.trim_end())?;
            match figure.bar {
                Some(bar) if figure.held() => writeln!(f, "   ({bar})")?,
                Some(bar) => writeln!(f, "   MISSED ({bar})")?,
                None => writeln!(f)?,
            }
        }
        let Flows {
            ok,
            error,
            corrupt,
            truncated,
            hung,
            bytes,
            told,
        } = &self.flows;
        writeln!(
            f,
            "        {} faults; flows: ok {ok}, error {error}, corrupt {corrupt}, truncated {truncated}, hung {hung}; {}",
            self.faults,
            indicatif::BinaryBytes(*bytes)
        )?;
        for what in told.iter().filter(|_| !self.held()) {
            writeln!(f, "        {what}")?;
        }
        if let Some(why) = &self.broken {
            writeln!(f, "        broken off: {why}")?;
        }
        Ok(())
    }
}
