//! One row under way: what was done and when, what was measured against which bar, and how every
//! flow ended.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use super::Settings;
use crate::pattern::derive;
use crate::report::Report;
use crate::run::Tally;
use crate::scenario;
use crate::stand::deadline::pause;
use crate::stand::installation::Setup;

/// Faults that are kept with their time; the others are counted. A nightly row has some thousands.
const FAULTS_KEPT: usize = 20_000;

/// Endings told in words in each row.
const ENDINGS_TOLD: usize = 20;

/// A row under way.
pub(crate) struct Trial<'a> {
    /// Of the whole run.
    pub(crate) settings: &'a Settings,
    /// Of this row alone.
    pub(crate) seed: u64,
    rng: StdRng,
    began: Instant,
    result: RowResult,
}

/// What came of a row.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RowResult {
    /// Its number in the table.
    pub row: u8,
    /// The fault.
    pub name: &'static str,
    /// How long it took, seconds.
    pub seconds: f64,
    /// How the flows ended.
    pub flows: Flows,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// Every recovery that was timed, by name, milliseconds.
    pub recoveries: Vec<Recoveries>,
    /// How many faults were done.
    pub faults: u64,
    /// The first of them.
    pub log: Vec<Fault>,
    /// Why it could not be run to its end.
    pub broken: Option<String>,
    /// Why it was not run here.
    pub skipped: Option<String>,
}

/// Flows by how they ended, and what they carried.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Flows {
    /// Every byte came and was right.
    pub ok: u64,
    /// An explicit error.
    pub error: u64,
    /// Wrong bytes.
    pub corrupt: u64,
    /// A clean end after missing bytes.
    pub truncated: u64,
    /// Past the deadline.
    pub hung: u64,
    /// Bytes sent and received, all of them checked.
    pub bytes: u64,
    /// The first endings that were not right, in words.
    pub told: Vec<String>,
}

/// A figure, and what it is held against.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What must hold; `None`: for information.
    pub bar: Option<Bar>,
}

/// What must hold of a figure.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// Below this.
    Under(f64),
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// Just this.
    Exactly(f64),
}

/// Times of one kind of recovery.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Recoveries {
    /// From what to what.
    pub name: String,
    /// Milliseconds, in the order of the rounds.
    pub ms: Vec<f64>,
    /// Its bar, milliseconds.
    pub bar_ms: Option<f64>,
}

/// One fault that was done.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Fault {
    /// Since the row began, seconds.
    pub at: f64,
    /// What.
    pub what: String,
}

impl<'a> Trial<'a> {
    /// Begins a row.
    pub(super) fn new(settings: &'a Settings, row: u8, name: &'static str) -> Trial<'a> {
        let seed = derive(settings.seed, row.into());
        Trial {
            settings,
            seed,
            rng: StdRng::seed_from_u64(seed),
            began: Instant::now(),
            result: RowResult {
                row,
                name,
                seconds: 0.0,
                flows: Flows::default(),
                figures: Vec::new(),
                recoveries: Vec::new(),
                faults: 0,
                log: Vec::new(),
                broken: None,
                skipped: None,
            },
        }
    }

    /// Ends it.
    pub(super) fn end(mut self, ran: anyhow::Result<()>) -> RowResult {
        self.result.seconds = self.began.elapsed().as_secs_f64();
        if let Err(error) = ran {
            self.result.broken = Some(format!("{error:#}"));
        }
        self.result
    }

    /// One of three, by the length of the run.
    pub(crate) fn pick<T>(&self, ci: T, ten_minutes: T, nightly: T) -> T {
        self.settings.length.pick(ci, ten_minutes, nightly)
    }

    /// How relay and agents are started.
    #[must_use]
    pub(crate) fn setup(&self) -> Setup {
        Setup {
            program: Some(self.settings.underpass.clone()),
            workers: self.settings.workers,
            log: "info",
            ..Setup::new(self.settings.io)
        }
    }

    /// This program itself.
    #[must_use]
    pub(crate) fn own(&self) -> &PathBuf {
        &self.settings.own
    }

    /// A number below `end`, by the seed.
    pub(crate) fn chance(&mut self, end: u64) -> u64 {
        self.rng.random_range(0..end)
    }

    /// A time between two, by the seed.
    pub(crate) fn time_between(&mut self, from: Duration, to: Duration) -> Duration {
        from + (to - from).mul_f64(self.rng.random::<f64>())
    }

    /// Lets traffic flow for a time between two, by the seed.
    pub(crate) fn flow_for(&mut self, from_ms: u64, to_ms: u64) {
        let time = self.time_between(Duration::from_millis(from_ms), Duration::from_millis(to_ms));
        pause(time);
    }

    /// Something bad is done now.
    pub(crate) fn fault(&mut self, what: impl Into<String>) {
        let fault = Fault {
            at: self.began.elapsed().as_secs_f64(),
            what: what.into(),
        };
        if self.settings.talk {
            crate::note!(
                "row {:>2} {:>8.3} s  {}",
                self.result.row,
                fault.at,
                fault.what
            );
        }
        self.result.faults += 1;
        if self.result.log.len() < FAULTS_KEPT {
            self.result.log.push(fault);
        }
    }

    /// It cannot be run here.
    pub(crate) fn skip(&mut self, why: impl Into<String>) {
        self.result.skipped = Some(why.into());
    }

    /// Something was measured.
    pub(crate) fn figure(
        &mut self,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
        bar: Option<Bar>,
    ) {
        self.result.figures.push(Figure {
            name: name.into(),
            value,
            unit,
            bar,
        });
    }

    /// Something was counted.
    pub(crate) fn count(&mut self, name: impl Into<String>, value: u64, bar: Option<Bar>) {
        self.figure(name, value as f64, "", bar);
    }

    /// Recoveries were timed: their p99 (with fewer than 100, the longest) is held against a bar.
    pub(crate) fn recovered(&mut self, name: &str, times: &[Duration], bar: Option<Duration>) {
        let mut ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        self.result.recoveries.push(Recoveries {
            name: name.to_owned(),
            ms: ms.clone(),
            bar_ms: bar.map(|bar| bar.as_secs_f64() * 1e3),
        });
        ms.sort_by(f64::total_cmp);
        let at = |quantile: f64| {
            let rank = (quantile * ms.len() as f64).ceil() as usize;
            ms.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
        };
        let bar = bar.map(|bar| Bar::Under(bar.as_secs_f64() * 1e3));
        if let [only] = ms.as_slice() {
            return self.figure(name, *only, "ms", bar);
        }
        self.count(
            format!("{name}: rounds"),
            ms.len() as u64,
            Some(Bar::AtLeast(1.0)),
        );
        self.figure(format!("{name}: median"), at(0.5), "ms", None);
        self.figure(format!("{name}: p99"), at(0.99), "ms", bar);
    }

    /// Flows of a process ended.
    pub(crate) fn take(&mut self, report: &Report) {
        let all = report.flows;
        let flows = &mut self.result.flows;
        flows.ok += all.ok;
        flows.error += all.error;
        flows.corrupt += all.corrupt;
        flows.truncated += all.truncated;
        flows.hung += all.hung;
        flows.bytes += report.bytes_up + report.bytes_down;
        for fault in &report.faults {
            self.tell(
                &fault.ending,
                format!(
                    "flow {} of seed {}: {}",
                    fault.flow, report.seed, fault.what
                ),
            );
        }
    }

    /// Calls of a process ended: each counts as a flow does.
    pub(super) fn take_calls(&mut self, outcome: &scenario::Outcome) {
        for group in &outcome.groups {
            let flows = &mut self.result.flows;
            flows.ok += group.counts.right;
            flows.error += group.counts.failed;
            flows.corrupt += group.counts.corrupt;
            flows.truncated += group.counts.truncated;
            flows.hung += group.counts.hung;
            flows.bytes += group.bytes_up + group.bytes_down;
            for fault in &group.faults {
                let ending = match &*fault.ending {
                    "failed" => "error",
                    other => other,
                };
                self.tell(
                    ending,
                    format!(
                        "{} flow {} at {} s: {}",
                        group.name, fault.flow, fault.second, fault.what
                    ),
                );
            }
        }
    }

    /// Flows of this process ended.
    pub(super) fn take_tally(&mut self, tally: &Tally, bytes: u64) {
        let flows = &mut self.result.flows;
        flows.ok += tally.right;
        flows.error += tally.failed;
        flows.corrupt += tally.corrupt;
        flows.truncated += tally.truncated;
        flows.hung += tally.hung;
        flows.bytes += bytes;
        for (flow, ending) in &tally.faults {
            self.tell(ending.name(), format!("probe {flow}: {ending:?}"));
        }
    }

    /// Something ended that this program watched without the verified protocol.
    pub(crate) fn ended(&mut self, ending: Watched, what: &str) {
        let flows = &mut self.result.flows;
        let (counter, name) = match ending {
            Watched::Ok => (&mut flows.ok, "ok"),
            Watched::Error => (&mut flows.error, "error"),
            Watched::Corrupt => (&mut flows.corrupt, "corrupt"),
            Watched::Truncated => (&mut flows.truncated, "truncated"),
            Watched::Hung => (&mut flows.hung, "hung"),
        };
        *counter += 1;
        if ending != Watched::Ok {
            self.tell(name, what.to_owned());
        }
    }

    fn tell(&mut self, ending: &str, what: String) {
        let told = &mut self.result.flows.told;
        // Errors are what faults bring; the others must not be crowded out by them.
        let grave = ending != "error";
        if grave && told.len() < 2 * ENDINGS_TOLD || told.len() < ENDINGS_TOLD {
            told.push(format!("{ending}: {what}"));
        }
    }
}

/// How a flow that was watched without the verified protocol ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Watched {
    /// As it should.
    Ok,
    /// In an explicit error.
    Error,
    /// With wrong bytes.
    Corrupt,
    /// Clean, after missing bytes.
    Truncated,
    /// Not within its deadline.
    Hung,
}

impl RowResult {
    /// Whether it ran, every bar was met, and no flow ended as none may.
    #[must_use]
    pub fn held(&self) -> bool {
        self.broken.is_none()
            && self.flows.violations() == 0
            && self.figures.iter().all(Figure::held)
    }
}

impl Flows {
    /// Flows in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ok + self.error + self.violations()
    }

    /// Flows that ended as none ever may.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.corrupt + self.truncated + self.hung
    }

    pub(super) fn add(&mut self, other: &Flows) {
        self.ok += other.ok;
        self.error += other.error;
        self.corrupt += other.corrupt;
        self.truncated += other.truncated;
        self.hung += other.hung;
        self.bytes += other.bytes;
    }
}

impl Figure {
    /// Whether its bar is met. What is not a number meets none.
    #[must_use]
    pub fn held(&self) -> bool {
        match self.bar {
            None => true,
            Some(Bar::Under(most)) => self.value < most,
            Some(Bar::AtLeast(least)) => self.value >= least,
            Some(Bar::AtMost(most)) => self.value <= most,
            Some(Bar::Exactly(value)) => self.value == value,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::Under(most) => write!(f, "< {}", number(*most)),
            Bar::AtLeast(least) => write!(f, "≥ {}", number(*least)),
            Bar::AtMost(most) => write!(f, "≤ {}", number(*most)),
            Bar::Exactly(value) => write!(f, "= {}", number(*value)),
        }
    }
}

/// With three digits that count, and no more after the point than say something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_or_missed_and_no_number_meets_none() {
        let figure = |value, bar| Figure {
            name: String::new(),
            value,
            unit: "",
            bar: Some(bar),
        };
        assert!(figure(1.9, Bar::Under(2.0)).held() && !figure(2.0, Bar::Under(2.0)).held());
        assert!(figure(2.0, Bar::AtMost(2.0)).held() && figure(2.0, Bar::AtLeast(2.0)).held());
        assert!(!figure(1.0, Bar::Exactly(0.0)).held() && figure(0.0, Bar::Exactly(0.0)).held());
        for bar in [
            Bar::Under(2.0),
            Bar::AtMost(2.0),
            Bar::AtLeast(2.0),
            Bar::Exactly(2.0),
        ] {
            assert!(!figure(f64::NAN, bar).held());
        }
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let shown = [0.0, 7.0, 0.125, 12.34, 1_234.5].map(number);
        assert_eq!(shown, ["0", "7", "0.12", "12.3", "1234"]);
    }
}
