//! The side-by-side run: the same work over Underpass, its baseline, other tunnels and no tunnel,
//! in turns, so that a machine whose speed drifts favours nobody.
//!
//! Every single measurement has processes of its own: server, relay, agent, client; only PostgreSQL
//! serves the whole run. Before the first round each way carries bytes that are checked one by one.
//! A measurement that fails is reported as a failure and is no figure. What is not installed is
//! left out by name.

pub mod bars;
pub mod machine;
pub mod measure;
pub mod report;
pub mod rows;
pub mod site;
pub mod stage;
pub mod tools;
pub mod usage;
pub mod ways;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;
use underpass_loadtest::{Endpoint, Mode, Plan, endpoint, run as load};

use measure::{Figures, Measure};
pub use report::Report;
pub use rows::Row;
use stage::Stage;
use ways::Tunnel;
pub use ways::Way;

/// Bytes that each way carries, up and down at once, to show that it carries them right.
const CHECKED: u64 = 64 << 20;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Works to measure.
    pub rows: Vec<Row>,
    /// Ways to measure them over.
    pub ways: Vec<Way>,
    /// Measurements of each row over each way.
    pub rounds: usize,
    /// Length of a measurement.
    pub length: Duration,
    /// Workers of relay and agent.
    pub workers: usize,
    /// Threads of the baseline's relay and agent.
    pub threads: usize,
    /// The product's binary.
    pub underpass: PathBuf,
    /// The binary whose subcommands are the baseline.
    pub bench: PathBuf,
}

impl Settings {
    /// Everything but `poll`, as the table of the documentation is made.
    #[must_use]
    pub fn usual(underpass: PathBuf, bench: PathBuf) -> Settings {
        Settings {
            rows: Row::value_variants().to_vec(),
            ways: Way::USUAL.to_vec(),
            rounds: 5,
            length: Duration::from_secs(5),
            workers: machine::usual_workers(),
            threads: machine::cores(),
            underpass,
            bench,
        }
    }

    /// A choice that ends within two minutes on two cores.
    #[must_use]
    pub fn short(underpass: PathBuf, bench: PathBuf) -> Settings {
        Settings {
            rows: vec![Row::Bulk, Row::Http64, Row::Pgbench],
            ways: vec![
                Way::Direct,
                Way::Ssh,
                Way::Rathole,
                Way::RatholeNoise,
                Way::RingPath,
            ],
            rounds: 2,
            length: Duration::from_secs(2),
            ..Settings::usual(underpass, bench)
        }
    }
}

/// One measurement's outcome.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The work.
    pub row: Row,
    /// The way.
    pub way: Way,
    /// From 0.
    pub round: usize,
    /// Figures, or why there are none.
    pub outcome: Result<Figures, String>,
}

/// Runs all rounds. `tell` hears of each step in words.
///
/// # Errors
/// Nothing that was asked for can be measured here; single failures are in the report.
pub fn run(mut settings: Settings, tell: impl Fn(&str)) -> Result<Report> {
    let mut notes = Notes::default();
    keep_possible(&mut settings, &mut notes.skipped);
    for skipped in &notes.skipped {
        tell(&format!("skipped: {skipped}"));
    }
    ensure!(
        !settings.rows.is_empty() && !settings.ways.is_empty(),
        "nothing can be measured: install what is named above"
    );
    notes.busy = machine::busy();
    for trouble in &notes.busy {
        tell(&format!("warning: {trouble}: figures will be too low"));
    }
    let mut stage = Stage::new(settings);
    check_ways(&mut stage, &mut notes.failures, &tell);
    let mut samples = Vec::new();
    for round in 0..stage.settings.rounds {
        for row in stage.settings.rows.clone() {
            let first = samples.len();
            for way in stage.settings.ways.clone() {
                if !row.takes(way) {
                    continue;
                }
                let outcome = measure(&mut stage, row, way);
                let sample = Sample {
                    row,
                    way,
                    round,
                    outcome: outcome.map_err(|error| format!("{error:#}")),
                };
                tell(&sample.told(stage.settings.rounds));
                samples.push(sample);
            }
            tell_apart(&mut samples[first..]);
        }
        notes.busy.extend(machine::builds());
    }
    notes.busy.sort();
    notes.busy.dedup();
    Ok(Report::new(&stage.settings, notes, &samples))
}

/// What is said beside the figures, in words.
#[derive(Default, Debug)]
pub struct Notes {
    /// Rows and ways that cannot be had here, and why.
    pub skipped: Vec<String>,
    /// What made figures too low, if anything.
    pub busy: Vec<String>,
    /// Ways that did not open, or did not carry bytes right.
    pub failures: Vec<String>,
}

/// Takes out what is not installed.
fn keep_possible(settings: &mut Settings, skipped: &mut Vec<String>) {
    settings.rows.retain(|row| {
        let possible = row.check_possible();
        skipped.extend(possible.as_ref().err().map(|why| format!("{row}: {why}")));
        possible.is_ok()
    });
    settings.ways.retain(|way| {
        let installed = way.check_installed();
        skipped.extend(installed.as_ref().err().map(|why| format!("{way}: {why}")));
        installed.is_ok()
    });
}

/// Takes out the ways that do not carry every byte right, on loopback and, where that is measured,
/// between namespaces.
fn check_ways(stage: &mut Stage, failures: &mut Vec<String>, tell: &impl Fn(&str)) {
    let apart = |row: &&Row| row.is_apart();
    let rows = &stage.settings.rows;
    let places = [
        rows.iter().find(|row| !row.is_apart()),
        rows.iter().find(apart),
    ];
    let places: Vec<Row> = places.into_iter().flatten().copied().collect();
    let mut right = Vec::new();
    for way in stage.settings.ways.clone() {
        let rows = places.iter().filter(|row| row.takes(way));
        let checked = rows.copied().try_for_each(|row| {
            stage.prepare(row)?;
            check(stage, row, way)
        });
        match checked {
            Ok(()) => right.push(way),
            Err(error) => {
                let failure = format!("{way} does not carry bytes right: {error:#}");
                tell(&failure);
                failures.push(failure);
            }
        }
    }
    tell(&format!(
        "checked: {} ways carry {} MiB up and down, byte for byte",
        right.len(),
        CHECKED >> 20
    ));
    stage.settings.ways = right;
}

/// Shows that a way carries every byte right where a row runs.
fn check(stage: &Stage, row: Row, way: Way) -> Result<()> {
    let site = stage.site(row);
    let listen = SocketAddr::new(site.server_ip(), 0);
    let endpoint = site.in_far(|| Ok(Endpoint::start(endpoint::Settings::new(listen))?))?;
    let open = way.open(&tunnel(stage, row, endpoint.address()))?;
    let plan = Plan {
        bytes: Some(CHECKED),
        ..Plan::new(open.address, Mode::Both)
    };
    let tally = site.in_near(|| Ok(load::run(&plan, |_| ())?))?.tally;
    ensure!(
        tally.right == plan.flows,
        "{:?}\n{}",
        tally.faults,
        open.logs()
    );
    Ok(())
}

fn measure(stage: &mut Stage, row: Row, way: Way) -> Result<Figures> {
    stage.prepare(row)?;
    let stage = &*stage;
    let server = row.serve(stage)?;
    let open = way.open(&tunnel(stage, row, server.address))?;
    let before = open.usage()?;
    let done = row
        .load(stage, &server, &open)
        .with_context(|| open.logs())?;
    let mut figures = done.figures;
    if let Some((before, after)) = before.zip(open.usage()?) {
        figures.extend(after.since(&before, |cpu| row.cost(cpu, done.work)));
    }
    Ok(figures)
}

/// Adds to each tunnel's times of a round what it adds to those without one.
fn tell_apart(samples: &mut [Sample]) {
    let direct = samples.iter().find(|sample| sample.way == Way::Direct);
    let Some(Ok(direct)) = direct.map(|sample| sample.outcome.clone()) else {
        return;
    };
    for sample in samples
        .iter_mut()
        .filter(|sample| sample.way != Way::Direct)
    {
        let Ok(figures) = &mut sample.outcome else {
            continue;
        };
        for (added, whole) in [
            (Measure::AddedP50, Measure::P50),
            (Measure::AddedP99, Measure::P99),
        ] {
            if let Some((with, without)) = figures.get(&whole).zip(direct.get(&whole)) {
                let difference = with - without;
                figures.insert(added, difference);
            }
        }
    }
}

fn tunnel(stage: &Stage, row: Row, server: SocketAddr) -> Tunnel<'_> {
    Tunnel {
        settings: &stage.settings,
        site: stage.site(row),
        workers: row.workers(stage.settings.workers),
        threads: row.workers(stage.settings.threads),
        server,
    }
}

impl Sample {
    /// In words.
    fn told(&self, rounds: usize) -> String {
        let Sample {
            row, way, round, ..
        } = self;
        let place = format!("round {} of {rounds}, {row}, {way}", round + 1);
        match &self.outcome {
            Ok(figures) => {
                let told = row.measures().iter().filter_map(|&measure| {
                    Some(measure.told(*figures.get(&measure)?, row.unit(measure)))
                });
                format!("{place}: {}", told.collect::<Vec<_>>().join(", "))
            }
            Err(why) => format!("{place}: failed: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tunnel_adds_is_told_beside_its_times() {
        let sample = |way, outcome: Result<Figures, String>| Sample {
            row: Row::PingPong,
            way,
            round: 0,
            outcome,
        };
        let times = |p50, p99| Ok([(Measure::P50, p50), (Measure::P99, p99)].into());
        let mut samples = [
            sample(Way::Direct, times(10.0, 30.0)),
            sample(Way::Ssh, Err("no".into())),
            sample(Way::RingPath, times(60.0, 90.0)),
        ];
        tell_apart(&mut samples);
        let ring = samples[2].outcome.as_ref().expect("figures");
        assert_eq!(
            (ring[&Measure::AddedP50], ring[&Measure::AddedP99]),
            (50.0, 60.0)
        );
        let direct = samples[0].outcome.as_ref().expect("figures");
        assert!(!direct.contains_key(&Measure::AddedP50));
    }
}
