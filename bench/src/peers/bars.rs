//! What must be reached, as data, and the judgement of a run by it. A floor that is missed is a
//! defect; a goal is where the project is going.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::measure::Measure;
use super::report::ratio;
use super::ways::Mtu;
use super::{Row, Sample, Way};

/// How much a bar means.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Below it is a defect.
    Floor,
    /// Not yet reached is no defect.
    Goal,
}

/// What a figure is compared with.
#[derive(Clone, Copy, Debug)]
enum To {
    /// The same figure over another way, in the same round.
    Way(Way),
    /// The same figure of another work over the same way, in the same round.
    Row(Row),
    /// A number.
    Number,
}

/// One bar for the product's ways of a size of datagrams.
#[derive(Clone, Copy, Debug)]
struct Bar {
    row: Row,
    mtu: Mtu,
    measure: Measure,
    level: Level,
    to: To,
    /// The smallest ratio or number that meets it, or the largest where less is better.
    factor: f64,
}

use Level::{Floor, Goal};
use Measure::{
    AddedP50, AddedP99, AgentMemory, AllAnswered, Cost, Fairness, Lost, P99, Rate, RelayMemory,
};
use To::Number;

/// All bars, row by row.
#[rustfmt::skip] // A table: one bar, one line.
const BARS: &[Bar] = &[
    bar(Row::Bulk, Mtu::Path, Rate, Floor, To::Way(Way::Ssh), 1.3),
    bar(Row::Bulk, Mtu::Path, Rate, Floor, To::Way(Way::RatholeNoise), 2.5),
    bar(Row::Bulk, Mtu::Path, Rate, Floor, To::Way(Way::Rathole), 1.6),
    bar(Row::Bulk, Mtu::Path, Rate, Goal, To::Way(Way::Direct), 0.5),
    bar(Row::Bulk, Mtu::Path, Cost, Goal, To::Way(Way::Ssh), 1.0),
    bar(Row::Bulk, Mtu::Path, Cost, Goal, To::Way(Way::Rathole), 1.0),
    bar(Row::Bulk, Mtu::Path, Cost, Goal, To::Way(Way::RatholeNoise), 1.0),
    bar(Row::Bulk, Mtu::Path, Cost, Goal, To::Way(Way::StockPath), 1.0),
    bar(Row::Bulk, Mtu::Held, Rate, Floor, To::Way(Way::Stock1452), 1.4),
    bar(Row::Bulk, Mtu::Held, Rate, Floor, To::Way(Way::RatholeNoise), 1.8),
    bar(Row::Bulk, Mtu::Held, Rate, Floor, To::Way(Way::Rathole), 1.1),
    bar(Row::Bulk, Mtu::Held, Rate, Goal, To::Way(Way::Ssh), 1.0),
    bar(Row::Bulk8, Mtu::Path, Rate, Floor, To::Row(Row::Bulk), 0.9),
    bar(Row::Bulk8, Mtu::Path, Rate, Goal, To::Row(Row::Bulk), 1.0),
    bar(Row::Bulk8, Mtu::Path, Fairness, Floor, Number, 0.95),
    bar(Row::Bulk8, Mtu::Path, Fairness, Goal, Number, 0.98),
    bar(Row::BulkReverse, Mtu::Path, Rate, Floor, To::Row(Row::Bulk), 0.9),
    bar(Row::BulkReverse, Mtu::Path, Rate, Goal, To::Row(Row::Bulk), 1.0),
    bar(Row::Bulk8Reverse, Mtu::Path, Rate, Floor, To::Row(Row::Bulk), 0.9),
    bar(Row::Bulk8Reverse, Mtu::Path, Rate, Goal, To::Row(Row::Bulk), 1.0),
    bar(Row::Bulk8Reverse, Mtu::Path, Fairness, Floor, Number, 0.95),
    bar(Row::Bulk8Reverse, Mtu::Path, Fairness, Goal, Number, 0.98),
    bar(Row::Namespaces, Mtu::Path, Rate, Floor, To::Way(Way::Rathole), 1.1),
    bar(Row::Namespaces, Mtu::Path, Rate, Floor, To::Way(Way::RatholeNoise), 1.5),
    bar(Row::Namespaces, Mtu::Path, Rate, Goal, To::Way(Way::Ssh), 1.0),
    bar(Row::Http64, Mtu::Path, Rate, Floor, To::Way(Way::Rathole), 1.2),
    bar(Row::Http64, Mtu::Path, Rate, Floor, To::Way(Way::Ssh), 2.2),
    bar(Row::Http64, Mtu::Path, Rate, Goal, To::Way(Way::Direct), 0.5),
    bar(Row::HttpNew, Mtu::Path, Rate, Floor, To::Way(Way::Rathole), 1.4),
    bar(Row::HttpNew, Mtu::Path, Rate, Goal, To::Way(Way::Direct), 0.65),
    bar(Row::Pgbench, Mtu::Path, Rate, Floor, To::Way(Way::Rathole), 1.0),
    bar(Row::Pgbench, Mtu::Path, Rate, Floor, To::Way(Way::RatholeNoise), 1.15),
    bar(Row::Pgbench, Mtu::Path, Rate, Floor, To::Way(Way::Ssh), 1.15),
    bar(Row::Pgbench, Mtu::Path, Rate, Goal, To::Way(Way::Direct), 0.55),
    bar(Row::PingPong, Mtu::Path, AddedP50, Floor, To::Way(Way::Rathole), 1.0),
    bar(Row::PingPong, Mtu::Path, AddedP50, Goal, To::Way(Way::Rathole), 0.7),
    bar(Row::PingPong, Mtu::Path, AddedP99, Floor, To::Way(Way::Rathole), 1.0),
    bar(Row::PingPong, Mtu::Path, AddedP99, Goal, To::Way(Way::Rathole), 0.7),
    bar(Row::PingBesideBulk, Mtu::Path, P99, Floor, Number, 5_000.0),
    bar(Row::PingBesideBulk, Mtu::Path, P99, Goal, Number, 1_500.0),
    bar(Row::IdleMemory, Mtu::Path, RelayMemory, Floor, Number, 6_000.0),
    bar(Row::IdleMemory, Mtu::Path, RelayMemory, Goal, Number, 2_500.0),
    bar(Row::IdleMemory, Mtu::Path, AgentMemory, Floor, Number, 6_000.0),
    bar(Row::IdleMemory, Mtu::Path, AgentMemory, Goal, Number, 2_500.0),
    bar(Row::Burst, Mtu::Path, Lost, Floor, Number, 0.0),
    bar(Row::Burst, Mtu::Path, AllAnswered, Goal, Number, 1_000.0),
];

const fn bar(row: Row, mtu: Mtu, measure: Measure, level: Level, to: To, factor: f64) -> Bar {
    Bar {
        row,
        mtu,
        measure,
        level,
        to,
        factor,
    }
}

/// A bar and what a run has to say to it.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Judged {
    /// The work.
    pub row: Row,
    /// The product's way.
    pub way: Way,
    /// What is judged.
    pub measure: Measure,
    /// How much it means.
    pub level: Level,
    /// What the figure is compared with, in words; `None`: with a number.
    pub to: Option<String>,
    /// The smallest ratio or number that meets it, or the largest where less is better.
    pub bar: f64,
    /// Median of the rounds' ratios, or of the figures; none where either side was not measured.
    pub measured: Option<f64>,
    /// Whether the bar is met; none where nothing was measured.
    pub met: Option<bool>,
}

/// Judges the product's ways by the bars of the works that ran.
#[must_use]
pub fn judge(rows: &[Row], ways: &[Way], samples: &[Sample]) -> Vec<Judged> {
    let rows = rows.iter().copied();
    let bars = rows.flat_map(|row| BARS.iter().filter(move |bar| bar.row == row));
    let ours = |mtu: Mtu| {
        let ways = ways.iter().copied();
        ways.filter(move |way| way.is_underpass() && way.mtu() == Some(mtu))
    };
    bars.flat_map(|bar| ours(bar.mtu).map(move |way| bar.judge(way, samples)))
        .collect()
}

impl Bar {
    fn judge(&self, way: Way, samples: &[Sample]) -> Judged {
        let own = (self.row, way);
        let measured = match self.to {
            To::Way(other) => ratio(samples, self.measure, own, Some((self.row, other))),
            To::Row(other) => ratio(samples, self.measure, own, Some((other, way))),
            Number => ratio(samples, self.measure, own, None),
        };
        let met = measured.map(|measured| {
            if self.measure.is_better_high() {
                measured >= self.factor
            } else {
                measured <= self.factor
            }
        });
        Judged {
            row: self.row,
            way,
            measure: self.measure,
            level: self.level,
            to: match self.to {
                To::Way(other) => Some(other.to_string()),
                To::Row(other) => Some(other.title().to_owned()),
                Number => None,
            },
            bar: self.factor,
            measured,
            met,
        }
    }
}

impl Judged {
    /// Whether it is a defect.
    #[must_use]
    pub fn is_floor_missed(&self) -> bool {
        self.level == Floor && self.met == Some(false)
    }

    /// In words.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (self.level, self.met) {
            (_, None) => "not judged",
            (Floor, Some(true)) => "met",
            (Floor, Some(false)) => "**floor missed**",
            (Goal, Some(true)) => "goal met",
            (Goal, Some(false)) => "goal not yet met",
        }
    }
}

/// A line of a Markdown table.
impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |figure: f64| match self.to {
            Some(_) => format!("{figure:.2}"),
            None => self.measure.number(figure),
        };
        let bound = if self.measure.is_better_high() {
            "≥"
        } else {
            "≤"
        };
        let to = self.to.as_ref().map(|to| format!(" × {to}"));
        write!(
            f,
            "| {} | {} | {} {bound} {}{} | {} | {} |",
            self.row.title(),
            self.way,
            self.measure.title(),
            number(self.bar),
            to.unwrap_or_default(),
            self.measured.map(number).unwrap_or_default(),
            self.verdict()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(row: Row, way: Way, figures: &[(Measure, f64)]) -> Sample {
        Sample {
            row,
            way,
            round: 0,
            outcome: Ok(figures.iter().copied().collect()),
        }
    }

    #[test]
    fn floors_goals_and_missing_peers_are_told_apart() {
        let samples = [
            sample(Row::Bulk, Way::Direct, &[(Rate, 20.0)]),
            sample(Row::Bulk, Way::Rathole, &[(Rate, 5.0), (Cost, 1.5)]),
            sample(Row::Bulk, Way::Ssh, &[(Rate, 8.0), (Cost, 2.5)]),
            sample(Row::Bulk, Way::RingPath, &[(Rate, 10.0), (Cost, 2.0)]),
        ];
        let ways = [Way::Direct, Way::Rathole, Way::Ssh, Way::RingPath];
        let judged = judge(&[Row::Bulk], &ways, &samples);
        let verdict = |to: &str, measure: Measure| {
            let mut judged = judged.iter();
            let found =
                judged.find(|judged| judged.to.as_deref() == Some(to) && judged.measure == measure);
            found.expect("judged").verdict()
        };
        assert_eq!(verdict("rathole", Rate), "met");
        assert_eq!(verdict("ssh", Rate), "**floor missed**");
        assert_eq!(verdict("direct", Rate), "goal met");
        assert_eq!(verdict("rathole-noise", Rate), "not judged");
        assert_eq!(verdict("ssh", Cost), "goal met");
        assert_eq!(verdict("rathole", Cost), "goal not yet met");
        assert!(judged.iter().all(|judged| judged.way == Way::RingPath));
        assert_eq!(
            judged[0].to_string(),
            "| bulk, 1 flow | ring-path | rate ≥ 1.30 × ssh | 1.25 | **floor missed** |"
        );
    }

    #[test]
    fn a_number_is_a_bar_of_its_own_and_another_row_can_be_one() {
        let samples = [
            sample(Row::Bulk, Way::RingPath, &[(Rate, 10.0)]),
            sample(Row::Bulk8, Way::RingPath, &[(Rate, 9.5), (Fairness, 0.96)]),
        ];
        let judged = judge(&[Row::Bulk8], &[Way::RingPath], &samples);
        let verdicts: Vec<_> = judged.iter().map(Judged::verdict).collect();
        assert_eq!(
            verdicts,
            ["met", "goal not yet met", "met", "goal not yet met"]
        );
    }

    #[test]
    fn every_bar_stands_on_ways_that_its_work_is_measured_over() {
        for bar in BARS {
            if let To::Way(way) = bar.to {
                assert!(bar.row.takes(way) && !way.is_underpass(), "{bar:?}");
            }
        }
    }
}
