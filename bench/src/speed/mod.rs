//! The side-by-side run: the same work over each way, in turns, so that a machine whose speed drifts favours nobody.
//!
//! Every single measurement has processes of its own: server, relay, agent, client. Before the first round each way carries bytes that
//! are checked one by one. A measurement that fails is reported as a failure and is no figure.

pub mod machine;
pub mod report;
pub mod row;
pub mod way;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use underpass_loadtest::{Endpoint, Mode, Plan, endpoint, run};

pub use report::Report;
pub use row::Row;
pub use way::Way;

/// Bytes that each way carries, up and down at once, to show that it carries them right.
const CHECKED: u64 = 64 << 20;

/// Addresses of servers: loopback, a free port.
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

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
    /// Workers of relay and agent, threads of the baseline's.
    pub workers: usize,
    /// The product's binary.
    pub underpass: PathBuf,
    /// The binary whose subcommands are the baseline.
    pub bench: PathBuf,
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

/// What one measurement gave.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figures {
    /// In the row's unit.
    pub rate: f64,
    /// Processor time of relay and agent, kernel's part included, in the row's unit of cost; none where there is neither.
    pub cost: Option<f64>,
    /// Jain's index of the flows' rates: 1 is even, 1/n is one flow taking all. Only where several flows run.
    pub fairness: Option<f64>,
}

/// Runs all rounds. `tell` hears of each step in words.
///
/// # Errors
/// A program is missing, or a way carries wrong bytes; single failures are in the report.
pub fn run(settings: &Settings, tell: impl Fn(&str)) -> Result<Report> {
    for row in &settings.rows {
        row.client()?;
    }
    let mut busy = machine::busy();
    for trouble in &busy {
        tell(&format!("warning: {trouble}: figures will be too low"));
    }
    for &way in &settings.ways {
        check(settings, way).with_context(|| format!("{way} does not carry bytes right"))?;
    }
    tell(&format!(
        "checked: {} ways carry {} MiB up and down, byte for byte",
        settings.ways.len(),
        CHECKED >> 20
    ));
    let mut samples = Vec::new();
    for round in 0..settings.rounds {
        for &row in &settings.rows {
            for &way in &settings.ways {
                let outcome = measure(settings, row, way).map_err(|error| format!("{error:#}"));
                tell(&told(settings, row, way, round, &outcome));
                samples.push(Sample {
                    row,
                    way,
                    round,
                    outcome,
                });
            }
        }
        busy.extend(machine::builds());
    }
    busy.sort();
    busy.dedup();
    Ok(Report::new(settings, busy, &samples))
}

/// Shows that a way carries every byte right.
fn check(settings: &Settings, way: Way) -> Result<()> {
    let endpoint = Endpoint::start(endpoint::Settings::new(LOCAL))?;
    let open = way.open(settings, endpoint.address())?;
    let plan = Plan {
        bytes: Some(CHECKED),
        ..Plan::new(open.address, Mode::Both)
    };
    let tally = run::run(&plan, |_| ())?.tally;
    ensure!(
        tally.right == plan.flows,
        "{:?}\n{}",
        tally.faults,
        open.logs()
    );
    Ok(())
}

fn measure(settings: &Settings, row: Row, way: Way) -> Result<Figures> {
    let server = row.serve()?;
    let open = way.open(settings, server.address)?;
    let before = open.cpu_time()?;
    let done = row
        .load(open.address, settings.length)
        .with_context(|| open.logs())?;
    let cpu = open.cpu_time()?.saturating_sub(before);
    Ok(Figures {
        rate: done.rate,
        cost: (!open.processes.is_empty()).then(|| row.cost(cpu, done.work)),
        fairness: done.fairness,
    })
}

fn told(
    settings: &Settings,
    row: Row,
    way: Way,
    round: usize,
    outcome: &Result<Figures, String>,
) -> String {
    let place = format!("round {} of {}, {row}, {way}", round + 1, settings.rounds);
    match outcome {
        Ok(figures) => format!("{place}: {} {}", row.number(figures.rate), row.unit()),
        Err(why) => format!("{place}: failed: {why}"),
    }
}
