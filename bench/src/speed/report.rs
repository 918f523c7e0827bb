//! What a run came to: for people a Markdown table, for programs JSON, whose fields stay as they are.

use std::fmt;

use serde::Serialize;

use super::machine::Machine;
use super::{Figures, Row, Sample, Settings, Way};

/// All figures. Displays as Markdown.
#[derive(Serialize, Debug)]
pub struct Report {
    /// What they were taken with.
    pub machine: Machine,
    /// What made them too low, if anything.
    pub busy: Vec<String>,
    /// Rounds.
    pub rounds: usize,
    /// Length of a measurement, seconds.
    pub seconds: u64,
    /// Workers of relay and agent, threads of the baseline's.
    pub workers: usize,
    /// One for each row and way.
    pub lines: Vec<Line>,
    /// Measurements that gave no figure, in words.
    pub failures: Vec<String>,
}

/// One row over one way.
#[derive(Serialize, Clone, Debug)]
pub struct Line {
    /// The work.
    #[serde(serialize_with = "name_of_row")]
    pub row: Row,
    /// The way.
    #[serde(serialize_with = "name_of_way")]
    pub way: Way,
    /// Unit of the rates.
    pub unit: &'static str,
    /// The rate of each round that gave one.
    pub rates: Vec<f64>,
    /// Median, smallest and largest of them.
    pub rate: Option<Spread>,
    /// Median of the rounds' ratios to the baseline with datagrams of the same size.
    pub to_stock: Option<f64>,
    /// Median of the rounds' ratios to no relay at all.
    pub to_direct: Option<f64>,
    /// Unit of the cost.
    pub cost_unit: &'static str,
    /// Median of the processor time of relay and agent for a unit of the work.
    pub cost: Option<f64>,
    /// Median of Jain's index.
    pub fairness: Option<f64>,
}

/// Median, smallest and largest.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Report {
    /// Of a run's samples.
    #[must_use]
    pub fn new(settings: &Settings, busy: Vec<String>, samples: &[Sample]) -> Report {
        let lines = settings.rows.iter().flat_map(|&row| {
            let ways = settings.ways.iter();
            ways.map(move |&way| Line::new(row, way, samples))
        });
        let failures = samples.iter().filter_map(|sample| {
            let why = sample.outcome.as_ref().err()?;
            let (row, way, round) = (sample.row, sample.way, sample.round + 1);
            Some(format!("{row}, {way}, round {round}: {why}"))
        });
        Report {
            machine: Machine::here(&settings.underpass),
            busy,
            rounds: settings.rounds,
            seconds: settings.length.as_secs(),
            workers: settings.workers,
            lines: lines.collect(),
            failures: failures.collect(),
        }
    }
}

impl Line {
    fn new(row: Row, way: Way, samples: &[Sample]) -> Line {
        let figures: Vec<(usize, Figures)> = of(row, way, samples).collect();
        let rates: Vec<f64> = figures.iter().map(|(_, figures)| figures.rate).collect();
        let ratio = |other: Way| {
            let ratios = figures.iter().filter_map(|(round, figures)| {
                let (_, beside) = of(row, other, samples).find(|(same, _)| same == round)?;
                Some(figures.rate / beside.rate)
            });
            median(ratios)
        };
        Line {
            row,
            way,
            unit: row.unit(),
            rate: Spread::of(&rates),
            to_stock: way.baseline().and_then(ratio),
            to_direct: ratio(Way::Direct),
            cost_unit: row.cost_unit(),
            cost: median(figures.iter().filter_map(|(_, figures)| figures.cost)),
            fairness: median(figures.iter().filter_map(|(_, figures)| figures.fairness)),
            rates,
        }
    }
}

fn of(row: Row, way: Way, samples: &[Sample]) -> impl Iterator<Item = (usize, Figures)> {
    samples.iter().filter_map(move |sample| {
        let figures = *sample.outcome.as_ref().ok()?;
        (sample.row == row && sample.way == way).then_some((sample.round, figures))
    })
}

impl Spread {
    fn of(values: &[f64]) -> Option<Spread> {
        Some(Spread {
            median: median(values.iter().copied())?,
            min: values.iter().copied().reduce(f64::min)?,
            max: values.iter().copied().reduce(f64::max)?,
        })
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    let even = values.len().is_multiple_of(2);
    Some(if even {
        f64::midpoint(values[middle - 1], upper)
    } else {
        upper
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn name_of_row<S: serde::Serializer>(row: &Row, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(row.name())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn name_of_way<S: serde::Serializer>(way: &Way, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(way.name())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "{}, {} cores, {}; {}.",
            machine.processor,
            machine.cores,
            machine.kernel,
            machine.versions.join(", ")
        )?;
        writeln!(
            f,
            "{} interleaved rounds of {} s, {} workers in relay and agent each. Rate: median (smallest to largest). Ratios: medians of the rounds' ratios; `stock` with datagrams of the same size. CPU: of relay and agent.",
            self.rounds, self.seconds, self.workers
        )?;
        for trouble in &self.busy {
            writeln!(f, "Not quiet: {trouble}.")?;
        }
        writeln!(
            f,
            "\n| work | way | rate | × stock | × direct | CPU | fairness |\n|---|---|---|---|---|---|---|"
        )?;
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        for failure in &self.failures {
            writeln!(f, "\nFailed: {failure}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |rate| self.row.number(rate);
        let rate = self.rate.map_or_else(String::new, |rate| {
            let (median, min, max) = (number(rate.median), number(rate.min), number(rate.max));
            format!("{median} ({min} to {max}) {}", self.unit)
        });
        let ratio =
            |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let cost = self
            .cost
            .map_or_else(String::new, |cost| format!("{cost:.2} {}", self.cost_unit));
        let fairness = self
            .fairness
            .map_or_else(String::new, |index| format!("{index:.3}"));
        write!(
            f,
            "| {} | {} | {rate} | {} | {} | {cost} | {fairness} |",
            self.row.title(),
            self.way,
            ratio(self.to_stock),
            ratio(self.to_direct)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let sample = |way, round, rate: Option<f64>| Sample {
            row: Row::Bulk,
            way,
            round,
            outcome: rate.ok_or_else(|| "no".to_owned()).map(|rate| Figures {
                rate,
                cost: Some(rate / 2.0),
                fairness: None,
            }),
        };
        // The machine halves its speed in the second round: medians of rates would say 1.5, 2.
        let samples = [
            sample(Way::Stock1452, 0, Some(4.0)),
            sample(Way::Poll1452, 0, Some(8.0)),
            sample(Way::Stock1452, 1, Some(2.0)),
            sample(Way::Poll1452, 1, Some(4.0)),
            sample(Way::Stock1452, 2, Some(4.0)),
            sample(Way::Poll1452, 2, None),
        ];
        let settings = Settings {
            rows: vec![Row::Bulk],
            ways: vec![Way::Stock1452, Way::Poll1452],
            rounds: 3,
            length: Duration::from_secs(1),
            workers: 2,
            underpass: "underpass".into(),
            bench: "underpass-bench".into(),
        };
        let report = Report::new(&settings, Vec::new(), &samples);
        let poll = &report.lines[1];
        assert_eq!(poll.rates, [8.0, 4.0]);
        assert_eq!(
            poll.rate,
            Some(Spread {
                median: 6.0,
                min: 4.0,
                max: 8.0
            })
        );
        assert_eq!(
            (poll.to_stock, poll.to_direct, poll.cost),
            (Some(2.0), None, Some(3.0))
        );
        assert_eq!(report.failures, ["bulk, poll-1452, round 3: no"]);
        assert!(report.to_string().contains(
            "| bulk, 1 flow | poll-1452 | 6.00 (4.00 to 8.00) Gbit/s | 2.00 |  | 3.00 s/GB |  |"
        ));
    }
}
