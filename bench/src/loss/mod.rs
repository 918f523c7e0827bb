//! Goodput while a path loses packets, beside tunnels over TCP: two namespaces joined by a cable
//! with a rate, where the kernel drops packets by chance (nftables), whatever they carry. Both
//! directions lose. Verified flows: what counts is what came and was right.

mod chart;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use underpass_loadtest::endpoint::{self, Endpoint};
use underpass_loadtest::scenario::Stop;
use underpass_loadtest::{Mode, Plan, run};
use underpass_tests::deadline::{MOMENT, pause};
use underpass_tests::network::Machine;

use crate::peers::measure::{Spread, median};
use crate::peers::site::Site;
use crate::peers::ways::Tunnel;
use crate::peers::{self, Way, tools};

/// Flows at once: enough that none of them is what is measured.
const FLOWS: u64 = 4;

/// Before a measurement, so that congestion control has seen the path.
const WARM_UP: Duration = Duration::from_secs(1);

/// Rate of the cable, Mbit/s, each direction: far below what two cores carry, so that the path is
/// what is measured.
pub const RATE_MBIT: u32 = 100;

/// How it is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Lost, parts of 1,000.
    pub per_mille: Vec<u32>,
    /// Which ways.
    pub ways: Vec<Way>,
    /// Measurements of each.
    pub rounds: usize,
    /// Length of each.
    pub length: Duration,
    /// The product's and this program.
    pub peers: peers::Settings,
}

/// One way at one loss.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Point {
    /// The way.
    pub way: Way,
    /// Lost, parts of 1,000.
    pub per_mille: u32,
    /// Each round, Mbit/s.
    pub mbit: Vec<f64>,
    /// Flows that were not right.
    pub bad: u64,
}

/// What came of it. Displays as a table.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Of the cable.
    pub rate_mbit: u32,
    /// Way by way, loss by loss.
    pub points: Vec<Point>,
    /// Ways that are not here.
    pub missing: Vec<String>,
}

/// Ways that are measured when none is asked for.
pub const USUAL: [Way; 5] = [
    Way::Direct,
    Way::Ssh,
    Way::Rathole,
    Way::RatholeNoise,
    Way::Ring1452,
];

/// Measures all, in turns.
///
/// # Errors
/// When namespaces or nftables cannot be had, or a way cannot be opened.
pub fn measure(settings: &Settings, mut tell: impl FnMut(&str)) -> Result<Report> {
    if let Some(why) = Machine::unavailable() {
        anyhow::bail!("{why}\nhint: run it as root");
    }
    tools::packaged("nft", "nftables").map_err(|missing| anyhow::anyhow!("{missing}"))?;
    let mut report = Report {
        rate_mbit: RATE_MBIT,
        points: Vec::new(),
        missing: Vec::new(),
    };
    let ways = settings
        .ways
        .iter()
        .filter(|way| match way.check_installed() {
            Ok(()) => true,
            Err(missing) => {
                report.missing.push(format!("{way}: {missing}"));
                false
            }
        });
    let ways: Vec<Way> = ways.copied().collect();
    let site = Site::apart()?;
    site.limit(RATE_MBIT)?;
    let start = || {
        Ok(Endpoint::start(endpoint::Settings::new(
            (site.server_ip(), 0).into(),
        ))?)
    };
    let endpoint = site.in_far(start)?;
    for _ in 0..settings.rounds {
        for &way in &ways {
            // Opened on a good path: what is measured is a tunnel that is up.
            site.lose(0)?;
            let tunnel = Tunnel {
                settings: &settings.peers,
                site: &site,
                workers: settings.peers.workers,
                threads: settings.peers.threads,
                server: endpoint.address(),
            };
            let open = way.open(&tunnel)?;
            for &per_mille in &settings.per_mille {
                tell(&format!("{way}, {} % lost", f64::from(per_mille) / 10.0));
                let taken = one(&site, open.address, per_mille, settings.length);
                let (mbit, bad) = taken.with_context(|| open.logs())?;
                report.take(way, per_mille, mbit, bad);
            }
        }
    }
    Ok(report)
}

/// One measurement: Mbit/s that came, and flows that were not right.
fn one(
    site: &Site,
    target: std::net::SocketAddr,
    per_mille: u32,
    length: Duration,
) -> Result<(f64, u64)> {
    let (stop, down) = (Stop::default(), AtomicU64::new(0));
    let plan = Plan {
        flows: FLOWS,
        bytes: None,
        duration: Some(MOMENT * 10),
        stall: MOMENT,
        stop: stop.clone(),
        ..Plan::new(target, Mode::Download)
    };
    site.lose(per_mille)?;
    let flows = || {
        Ok(run::run(&plan, |counters| {
            down.store(counters.bytes_down(), Ordering::Relaxed);
        })?)
    };
    thread::scope(|scope| {
        let running = scope.spawn(|| site.in_near(flows));
        pause(WARM_UP);
        let (before, began) = (down.load(Ordering::Relaxed), Instant::now());
        pause(length);
        let bits = (down.load(Ordering::Relaxed) - before) as f64 * 8.0;
        let mbit = bits / began.elapsed().as_secs_f64() / 1e6;
        // What is under way comes over a good path, or the last of it would take minutes.
        let healed = site.lose(0);
        stop.stop();
        let outcome = running.join().expect("the flows do not panic")?;
        healed?;
        ensure!(
            outcome.tally.violations() == 0,
            "bytes were wrong or missing: {:?}",
            outcome.tally.faults
        );
        Ok((mbit, outcome.tally.flows() - outcome.tally.right))
    })
}

impl Report {
    fn take(&mut self, way: Way, per_mille: u32, mbit: f64, bad: u64) {
        let same = |point: &&mut Point| (point.way, point.per_mille) == (way, per_mille);
        if let Some(point) = self.points.iter_mut().find(same) {
            point.mbit.push(mbit);
            point.bad += bad;
            return;
        }
        self.points.push(Point {
            way,
            per_mille,
            mbit: vec![mbit],
            bad,
        });
    }

    /// A picture: a line for each way.
    #[must_use]
    pub fn svg(&self) -> String {
        chart::draw(self)
    }

    fn ways(&self) -> Vec<Way> {
        let mut ways: Vec<Way> = Vec::new();
        for point in &self.points {
            if !ways.contains(&point.way) {
                ways.push(point.way);
            }
        }
        ways
    }
}

impl Point {
    /// The median of its rounds.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(self.mbit.iter().copied()).unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Mbit/s of {} (median of the rounds, smallest to largest)\n",
            self.rate_mbit
        )?;
        for way in self.ways() {
            for point in self.points.iter().filter(|point| point.way == way) {
                let Some(Spread { median, min, max }) = Spread::of(&point.mbit) else {
                    continue;
                };
                write!(
                    f,
                    "{:<14} {:>5.1} % lost {median:>8.2} ({min:.2} to {max:.2})",
                    way,
                    f64::from(point.per_mille) / 10.0
                )?;
                match point.bad {
                    0 => writeln!(f)?,
                    bad => writeln!(f, "   {bad} flows ended in an error")?,
                }
            }
        }
        self.missing
            .iter()
            .try_for_each(|missing| writeln!(f, "not measured: {missing}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_one_way_and_loss_are_one_point() {
        let mut report = Report {
            rate_mbit: 1,
            points: Vec::new(),
            missing: Vec::new(),
        };
        for mbit in [3.0, 1.0, 2.0] {
            report.take(Way::Ssh, 10, mbit, 0);
        }
        report.take(Way::Ssh, 20, 9.0, 1);
        assert_eq!(report.points.len(), 2);
        assert_eq!(report.points[0].median(), 2.0);
        assert!(report.to_string().contains("1 flows ended in an error"));
        let drawn = report.svg();
        assert!(drawn.contains("<polyline") && drawn.contains("ssh") && !drawn.contains("NaN"));
    }
}
