//! What a run came to, for programs: JSON, whose fields stay as they are. For people it displays as
//! Markdown, and draws itself.

mod chart;
mod curve;
mod table;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::bars::{self, Judged};
use super::machine::Machine;
use super::measure::{Measure, Spread, median};
use super::{Notes, Row, Sample, Settings, Way};

/// All figures. Displays as Markdown.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
pub struct Report {
    /// What they were taken with.
    pub machine: Machine,
    /// What made them too low, if anything.
    pub busy: Vec<String>,
    /// Rows and ways that could not be had, and why.
    pub skipped: Vec<String>,
    /// Rounds.
    pub rounds: usize,
    /// Length of a measurement, seconds.
    pub seconds: u64,
    /// Workers of relay and agent.
    pub workers: usize,
    /// Threads of the baseline's relay and agent.
    pub threads: usize,
    /// One for each row and way.
    pub lines: Vec<Line>,
    /// The product, judged by the bars.
    pub bars: Vec<Judged>,
    /// Measurements that gave no figure, and ways that did not carry bytes right, in words.
    pub failures: Vec<String>,
}

/// One row over one way.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Line {
    /// The work.
    pub row: Row,
    /// The way.
    pub way: Way,
    /// What was measured, by its name.
    pub figures: BTreeMap<Measure, Taken>,
    /// Median of the rounds' ratios of the work's first figure to the baseline's with datagrams of
    /// the same size.
    pub to_stock: Option<f64>,
    /// Median of the rounds' ratios of the same to that without a tunnel.
    pub to_direct: Option<f64>,
}

/// A figure over all rounds.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Taken {
    /// Its unit; empty of a plain number.
    pub unit: String,
    /// Median, smallest and largest.
    #[serde(flatten)]
    pub spread: Spread,
    /// That of each round that gave one.
    pub rounds: Vec<f64>,
}

impl Report {
    /// Of a run's samples.
    #[must_use]
    pub fn new(settings: &Settings, notes: Notes, samples: &[Sample]) -> Report {
        let lines = settings.rows.iter().flat_map(|&row| {
            let ways = settings.ways.iter().filter(move |&&way| row.takes(way));
            ways.map(move |&way| Line::new(row, way, samples))
        });
        let failed = samples.iter().filter_map(|sample| {
            let why = sample.outcome.as_ref().err()?;
            let (row, way, round) = (sample.row, sample.way, sample.round + 1);
            Some(format!("{row}, {way}, round {round}: {why}"))
        });
        Report {
            machine: Machine::here(&settings.underpass, &settings.ways),
            busy: notes.busy,
            skipped: notes.skipped,
            rounds: settings.rounds,
            seconds: settings.length.as_secs(),
            workers: settings.workers,
            threads: settings.threads,
            lines: lines.collect(),
            bars: bars::judge(&settings.rows, &settings.ways, samples),
            failures: notes.failures.into_iter().chain(failed).collect(),
        }
    }
}

impl Report {
    /// Runs of different works as one report: what takes an hour may be taken in parts. Every ratio
    /// and bar stays that of its own run.
    ///
    /// # Errors
    /// There is none; they were not taken alike but for the number of their rounds, or two of them
    /// measured the same work.
    pub fn join(reports: Vec<Report>) -> Result<Report> {
        let mut reports = reports.into_iter();
        let Some(mut whole) = reports.next() else {
            anyhow::bail!("nothing is to be joined");
        };
        for report in reports {
            let taken = |report: &Report| {
                let Report {
                    seconds,
                    workers,
                    threads,
                    ..
                } = report;
                (*seconds, *workers, *threads)
            };
            ensure!(
                taken(&whole) == taken(&report),
                "the runs differ in seconds, workers or threads: {:?} and {:?}",
                taken(&whole),
                taken(&report)
            );
            ensure!(
                whole.machine.processor == report.machine.processor
                    && whole.machine.kernel == report.machine.kernel,
                "the runs are of different machines"
            );
            let twice = report
                .lines
                .iter()
                .find(|line| whole.lines.iter().any(|other| other.row == line.row));
            ensure!(
                twice.is_none(),
                "two of the runs measured {}",
                twice.map_or("", |line| line.row.name())
            );
            whole.add(report);
        }
        Ok(whole)
    }

    /// How many rounds there were, in words: runs of more and of fewer may be joined.
    pub(super) fn rounds_told(&self) -> String {
        let figures = self.lines.iter().flat_map(|line| line.figures.values());
        let most = figures.map(|taken| taken.rounds.len()).max().unwrap_or(0);
        if most > self.rounds {
            format!("{} to {most}", self.rounds)
        } else {
            self.rounds.to_string()
        }
    }

    fn add(&mut self, other: Report) {
        self.rounds = self.rounds.min(other.rounds);
        let texts = [
            (&mut self.machine.versions, other.machine.versions),
            (&mut self.busy, other.busy),
            (&mut self.skipped, other.skipped),
            (&mut self.failures, other.failures),
        ];
        for (texts, others) in texts {
            for text in others {
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
        }
        self.lines.extend(other.lines);
        self.bars.extend(other.bars);
    }

    /// As a picture, SVG.
    #[must_use]
    pub fn svg(&self) -> String {
        chart::draw(self)
    }

    /// The times of a SQL-like flow beside more and more flows in bulk, as a picture, SVG; nothing
    /// where they were not measured.
    #[must_use]
    pub fn curve(&self) -> Option<String> {
        curve::draw(self)
    }
}

impl Line {
    fn new(row: Row, way: Way, samples: &[Sample]) -> Line {
        let mut rounds: BTreeMap<Measure, Vec<f64>> = BTreeMap::new();
        let own = samples
            .iter()
            .filter(|sample| (sample.row, sample.way) == (row, way));
        for (measure, figure) in own
            .filter_map(|sample| sample.outcome.as_ref().ok())
            .flatten()
        {
            rounds.entry(*measure).or_default().push(*figure);
        }
        let taken = rounds.into_iter().filter_map(|(measure, rounds)| {
            let taken = Taken {
                unit: row.unit(measure).to_owned(),
                spread: Spread::of(&rounds)?,
                rounds,
            };
            Some((measure, taken))
        });
        let to = |other: Way| ratio(samples, row.headline(), (row, way), Some((row, other)));
        Line {
            row,
            way,
            figures: taken.collect(),
            to_stock: way.baseline().and_then(to),
            to_direct: to(Way::Direct),
        }
    }
}

/// Median of the rounds' ratios of a figure of one work and way to that of another; or of the
/// figure itself. A round whose other figure is not above zero, as a difference may be on a machine
/// that is not quiet, has no ratio.
pub(super) fn ratio(
    samples: &[Sample],
    measure: Measure,
    of: (Row, Way),
    to: Option<(Row, Way)>,
) -> Option<f64> {
    let figure = |(row, way): (Row, Way), round: usize| {
        let mut samples = samples.iter();
        let sample =
            samples.find(|sample| (sample.row, sample.way, sample.round) == (row, way, round))?;
        sample.outcome.as_ref().ok()?.get(&measure).copied()
    };
    let of_round = |round: usize| {
        let to = to.map_or(Some(1.0), |to| figure(to, round))?;
        (to > 0.0).then_some(figure(of, round)? / to)
    };
    let rounds = samples.iter().map(|sample| sample.round + 1).max()?;
    median((0..rounds).filter_map(of_round))
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
            outcome: rate
                .ok_or_else(|| "no".to_owned())
                .map(|rate| [(Measure::Rate, rate), (Measure::Cost, rate / 2.0)].into()),
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
            threads: 2,
            underpass: "underpass".into(),
            bench: "underpass-bench".into(),
        };
        let report = Report::new(&settings, Notes::default(), &samples);
        let poll = &report.lines[1];
        let rate = &poll.figures[&Measure::Rate];
        assert_eq!(rate.rounds, [8.0, 4.0]);
        let spread = Spread {
            median: 6.0,
            min: 4.0,
            max: 8.0,
        };
        assert_eq!(rate.spread, spread);
        assert_eq!((poll.to_stock, poll.to_direct), (Some(2.0), None));
        assert_eq!(report.failures, ["bulk, poll-1452, round 3: no"]);
        let text = report.to_string();
        let line = "| bulk, 1 flow | poll-1452 | 6.00 (4.00 to 8.00) Gbit/s | 2.00 |  |  | 3.00 s/GB |  |  |  |";
        assert!(text.contains(line), "{text}");
    }

    fn of_row(row: Row, rounds: usize) -> Report {
        let settings = Settings {
            rows: vec![row],
            ways: vec![Way::RingPath],
            rounds,
            ..Settings::usual("underpass".into(), "underpass-bench".into())
        };
        let sample = Sample {
            row,
            way: Way::RingPath,
            round: 0,
            outcome: Ok([
                (Measure::P50, 1.0),
                (Measure::P99, 2.0),
                (Measure::Rate, 3.0),
            ]
            .into()),
        };
        Report::new(&settings, Notes::default(), &[sample])
    }

    #[test]
    fn parts_that_were_written_and_read_are_one_report() {
        let parts = [Row::Bulk, Row::PingBesideBulk].map(|row| of_row(row, 1));
        let read = parts.iter().map(|part| {
            let text = serde_json::to_string(part).expect("written");
            let read: Report = serde_json::from_str(&text).expect("read");
            assert_eq!(&read, part);
            read
        });
        let whole = Report::join(read.collect()).expect("joined");
        let rows: Vec<Row> = whole.lines.iter().map(|line| line.row).collect();
        assert_eq!(rows, [Row::Bulk, Row::PingBesideBulk]);
        assert_eq!(whole.bars.len(), parts[0].bars.len() + parts[1].bars.len());
        assert_eq!(whole.machine.versions, parts[0].machine.versions);
    }

    #[test]
    fn runs_of_more_and_of_fewer_rounds_are_one_report_that_says_so() {
        let few = || of_row(Row::Bulk, 1);
        let more = || {
            let mut more = of_row(Row::Bulk8, 3);
            let lines = more.lines.iter_mut();
            for taken in lines.flat_map(|line| line.figures.values_mut()) {
                taken.rounds = vec![1.0, 2.0, 3.0];
            }
            more
        };
        assert_eq!(few().rounds_told(), "1");
        assert_eq!(more().rounds_told(), "3");
        for parts in [[few(), more()], [more(), few()]] {
            let whole = Report::join(parts.into()).expect("joined");
            assert_eq!(whole.rounds_told(), "1 to 3");
            assert!(
                whole
                    .to_string()
                    .contains("\n1 to 3 interleaved rounds of ")
            );
        }
    }

    #[test]
    fn what_does_not_belong_together_is_not_joined() {
        let join = |parts| Report::join(parts).expect_err("refused").to_string();
        let same = join(vec![of_row(Row::Bulk, 1), of_row(Row::Bulk, 1)]);
        assert_eq!(same, "two of the runs measured bulk");
        let mut longer = of_row(Row::Bulk8, 1);
        longer.seconds += 1;
        let other = join(vec![of_row(Row::Bulk, 1), longer]);
        assert!(other.contains("differ in seconds"), "{other}");
        assert_eq!(join(vec![]), "nothing is to be joined");
    }
}
