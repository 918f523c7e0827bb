//! What growth came to, for programs: JSON, whose fields stay as they are. For people it displays
//! as Markdown, and draws itself.

use std::collections::BTreeMap;

use serde::Serialize;

use super::figure::{Figure, Kind, Part, Shape};
use super::judge::{Verdict, judge};
use super::{Axis, Sample, Settings, chart};
use crate::peers::machine::Machine;
use crate::peers::measure::Spread;

/// All figures. Displays as Markdown.
#[derive(Serialize, Debug)]
pub struct Report {
    /// What they were taken with.
    pub machine: Machine,
    /// What made them wrong, if anything.
    pub busy: Vec<String>,
    /// Rounds.
    pub rounds: usize,
    /// Length of each load, seconds.
    pub seconds: u64,
    /// Rates of the loads, of the usual ones.
    pub share: f64,
    /// Workers of relay and agent.
    pub workers: usize,
    /// Backend of relay and agent.
    pub io: String,
    /// UDP payload that datagrams were held at, bytes.
    pub mtu_max: u16,
    /// One for each axis and figure.
    pub lines: Vec<Line>,
    /// Counts that gave no figures, in words.
    pub failures: Vec<String>,
}

/// One figure along one axis.
#[derive(Serialize, Clone, Debug)]
pub struct Line {
    /// What grows.
    pub axis: Axis,
    /// What was measured.
    pub kind: Kind,
    /// Of which process.
    pub of: Part,
    /// Its unit.
    pub unit: &'static str,
    /// What it does where growth is straight.
    pub shape: Shape,
    /// By count, smallest first.
    pub points: Vec<Point>,
    /// Whether growth is straight.
    pub verdict: Verdict,
}

/// A figure at one count.
#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Point {
    /// The count.
    pub count: usize,
    /// Median, smallest and largest of all rounds.
    #[serde(flatten)]
    pub spread: Spread,
}

impl Report {
    /// Of a run's samples.
    #[must_use]
    pub fn new(settings: &Settings, busy: Vec<String>, samples: &[Sample]) -> Report {
        let failed = samples.iter().filter_map(|sample| {
            let why = sample.outcome.as_ref().err()?;
            Some(format!("{} {}: {why}", sample.count, sample.axis))
        });
        let axes = settings.axes.iter();
        Report {
            machine: machine(settings),
            busy,
            rounds: settings.rounds,
            seconds: settings.length.as_secs(),
            share: settings.share,
            workers: settings.workers,
            io: settings.io.clone(),
            mtu_max: settings.mtu_max,
            lines: axes.flat_map(|&axis| lines(axis, samples)).collect(),
            failures: failed.collect(),
        }
    }

    /// One axis as a picture, SVG; nothing where it has no figures.
    #[must_use]
    pub fn svg(&self, axis: Axis) -> Option<String> {
        chart::draw(self, axis)
    }

    /// Lines that are worse than straight.
    pub fn steep(&self) -> impl Iterator<Item = &Line> {
        let is_steep = |line: &&Line| matches!(line.verdict, Verdict::Steep { .. });
        self.lines.iter().filter(is_steep)
    }
}

/// Of the programs only the product takes part.
fn machine(settings: &Settings) -> Machine {
    let mut machine = Machine::here(&settings.underpass, &[]);
    machine.versions.truncate(1);
    machine
}

fn lines(axis: Axis, samples: &[Sample]) -> Vec<Line> {
    let mut rounds: BTreeMap<Figure, BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.axis == axis) {
        for (&figure, &value) in sample.outcome.iter().flatten() {
            let counts = rounds.entry(figure).or_default();
            counts.entry(sample.count).or_default().push(value);
        }
    }
    let line = |(figure, counts): (Figure, BTreeMap<usize, Vec<f64>>)| {
        let points = counts.into_iter().filter_map(|(count, rounds)| {
            let spread = Spread::of(&rounds)?;
            Some(Point { count, spread })
        });
        let points: Vec<Point> = points.collect();
        let medians = points
            .iter()
            .map(|point| (point.count as u64, point.spread.median));
        let medians: Vec<(u64, f64)> = medians.collect();
        let shape = figure.kind.shape();
        Line {
            axis,
            kind: figure.kind,
            of: figure.of,
            unit: figure.kind.unit(),
            shape,
            verdict: judge(shape, &medians),
            points,
        }
    };
    rounds.into_iter().map(line).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    /// Of one round along one axis.
    pub(in crate::growth) fn settings() -> Settings {
        Settings {
            axes: vec![Axis::Flows],
            rounds: 1,
            length: Duration::from_secs(2),
            share: 1.0,
            workers: 1,
            io: "auto".into(),
            mtu_max: 1_452,
            least: 0,
            most: usize::MAX,
            underpass: "underpass".into(),
            bench: "bench".into(),
        }
    }

    /// Of flows: a cost that stays, and one that grows with the square of the count.
    pub(in crate::growth) fn example() -> Report {
        let settings = settings();
        let sample = |count: usize| Sample {
            axis: Axis::Flows,
            count,
            outcome: Ok([
                (Kind::RequestCpu.of(Part::Relay), 12.5),
                (Kind::OpeningTime.of(Part::Whole), (count * count) as f64),
            ]
            .into()),
        };
        let failed = Sample {
            outcome: Err("no".into()),
            ..sample(8_000)
        };
        let samples = [sample(1), sample(10), sample(100), failed];
        Report::new(&settings, Vec::new(), &samples)
    }

    #[test]
    fn lines_are_judged_and_failures_told() {
        let report = example();
        assert_eq!(report.failures, ["8000 flows: no"]);
        assert_eq!(report.lines.len(), 2);
        let straight = Verdict::Straight { ratio: Some(1.0) };
        assert_eq!(report.lines[0].verdict, straight);
        let steep: Vec<Kind> = report.steep().map(|line| line.kind).collect();
        assert_eq!(steep, [Kind::OpeningTime]);
    }
}
