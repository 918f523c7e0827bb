//! What is measured of a work over a way: names, units, and which direction is better. Knows no
//! works and no ways.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A kind of figure. Its name in JSON is its name here, in snake case.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Work done in a second, in the row's unit.
    Rate,
    /// Jain's index of the flows' rates: 1 is even, 1/n is one flow taking all.
    Fairness,
    /// Median time of a message there and back, from when it was due, microseconds.
    P50,
    /// The 99th percentile of the same.
    P99,
    /// What the tunnel adds to the median of the same round without one, microseconds.
    AddedP50,
    /// The same of the 99th percentile.
    AddedP99,
    /// What each idle flow takes of the relay's memory: anonymous pages, bytes.
    RelayMemory,
    /// The same of the agent.
    AgentMemory,
    /// From the moment that all flows speak until the last is answered, milliseconds.
    AllAnswered,
    /// Flows that were not answered.
    Lost,
    /// Flows that there were.
    Flows,
    /// Processor time of all processes of the tunnel, kernel's part included, in the row's unit of
    /// cost.
    Cost,
    /// The largest resident set of each process of the tunnel, added up, MiB.
    PeakRss,
    /// Context switches of all threads of the tunnel, each second.
    Switches,
    /// Datagrams that found no room in a receive buffer of the tunnel's network namespaces.
    UdpDrops,
}

/// One measurement's figures.
pub type Figures = BTreeMap<Measure, f64>;

impl Measure {
    /// In words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Measure::Rate => "rate",
            Measure::Fairness => "fairness",
            Measure::P50 => "p50",
            Measure::P99 => "p99",
            Measure::AddedP50 => "added p50",
            Measure::AddedP99 => "added p99",
            Measure::RelayMemory => "relay",
            Measure::AgentMemory => "agent",
            Measure::AllAnswered => "all answered",
            Measure::Lost => "lost",
            Measure::Flows => "flows",
            Measure::Cost => "CPU",
            Measure::PeakRss => "memory",
            Measure::Switches => "switches",
            Measure::UdpDrops => "drops",
        }
    }

    /// Whether more of it is better.
    #[must_use]
    pub fn is_better_high(self) -> bool {
        matches!(self, Measure::Rate | Measure::Fairness)
    }

    /// Its unit where that is the same of every work; nothing where it is a plain number.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Measure::RelayMemory | Measure::AgentMemory => "B/flow",
            Measure::P50 | Measure::P99 | Measure::AddedP50 | Measure::AddedP99 => "µs",
            Measure::AllAnswered => "ms",
            Measure::PeakRss => "MiB",
            Measure::Switches => "/s",
            _ => "",
        }
    }

    /// A figure with as many digits as mean something.
    #[must_use]
    pub fn number(self, figure: f64) -> String {
        match self {
            Measure::Fairness => format!("{figure:.3}"),
            Measure::Cost => format!("{figure:.2}"),
            Measure::Rate if figure < 1000.0 => format!("{figure:.2}"),
            _ => format!("{figure:.0}"),
        }
    }

    /// A figure in words, with its unit; with its name where a unit does not say what it is.
    #[must_use]
    pub fn told(self, figure: f64, unit: &str) -> String {
        self.named(&with_unit(&self.number(figure), unit))
    }

    /// A number of it, with its name where a unit does not say what it is.
    #[must_use]
    pub fn named(self, number: &str) -> String {
        match self {
            Measure::Rate => number.to_owned(),
            _ => format!("{} {number}", self.title()),
        }
    }
}

/// A number and its unit.
#[must_use]
pub fn with_unit(number: &str, unit: &str) -> String {
    match unit {
        "" => number.to_owned(),
        unit if unit.starts_with('/') => format!("{number}{unit}"),
        unit => format!("{number} {unit}"),
    }
}

/// Median, smallest and largest of some figures.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these; none of nothing.
    #[must_use]
    pub fn of(figures: &[f64]) -> Option<Spread> {
        Some(Spread {
            median: median(figures.iter().copied())?,
            min: figures.iter().copied().reduce(f64::min)?,
            max: figures.iter().copied().reduce(f64::max)?,
        })
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let upper = *figures.get(middle)?;
    let even = figures.len().is_multiple_of(2);
    Some(if even {
        f64::midpoint(figures[middle - 1], upper)
    } else {
        upper
    })
}

/// Jain's index of fairness (DEC-TR-301): (Σx)² / (n Σx²).
#[must_use]
pub fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    sum * sum / (rates.len() as f64 * squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        assert_eq!(median([4.0, 1.0, 3.0].into_iter()), Some(3.0));
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), Some(2.5));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn one_flow_that_takes_all_is_unfair() {
        assert_eq!(jain(&[2.0, 2.0]), 1.0);
        assert_eq!(jain(&[4.0, 0.0]), 0.5);
    }
}
