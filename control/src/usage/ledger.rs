//! Adds up what relays report: bytes per hybrid connection and calendar month. Knows no files and
//! no clock.
//!
//! A relay reports what it carried since it began. What of that is counted already is kept beside
//! the sums, so that nothing is counted twice and nothing is lost, whichever process ends when. A
//! figure that is smaller than the one before is a worker that did not answer in time: it is waited
//! for.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime};
use underpass_proto::wire::Instance;
use underpass_proto::{HycoName, Report};

/// Relays whose figures are remembered: the one that runs, perhaps its successor, and some that may
/// yet come back.
const RELAYS_MAX: usize = 8;

/// Hybrid connections of one month that are counted by name; more, made and deleted within it, are
/// counted together.
const NAMES_MAX: usize = 50_000;

/// A calendar month, UTC. Written `2026-11`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Month {
    year: i32,
    month: u8,
}

/// Bytes both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Data {
    /// From applications.
    pub to_endpoint: u64,
    /// To applications.
    pub to_application: u64,
}

/// One month, and what is counted of each relay. This is also what stands in the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ledger {
    pub(super) month: Month,
    /// Grows with each writing: tells which file knows best what is counted.
    pub(super) sequence: u64,
    hybrid_connections: BTreeMap<HycoName, Data>,
    #[serde(default)]
    others: Data,
    relays: Vec<Relay>,
}

/// What is counted of one relay process, the newest last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Relay {
    instance: Instance,
    counted: BTreeMap<HycoName, Data>,
}

impl Ledger {
    pub(super) fn new(month: Month) -> Self {
        Self {
            month,
            sequence: 0,
            hybrid_connections: BTreeMap::new(),
            others: Data::default(),
            relays: Vec::new(),
        }
    }

    /// Goes on in another month, whose file said this, with what is counted of each relay.
    pub(super) fn turn_to(&mut self, other: Self) {
        let relays = std::mem::take(&mut self.relays);
        *self = Self {
            sequence: self.sequence.max(other.sequence),
            relays,
            ..other
        };
    }

    /// Takes over what is counted of each relay, if `other` knows better.
    pub(super) fn learn(&mut self, other: Self) {
        if other.sequence > self.sequence {
            self.sequence = other.sequence;
            self.relays = other.relays;
        }
    }

    /// Counts what is new in a report. Whether anything was.
    pub(super) fn count(&mut self, report: &Report) -> bool {
        let mut changed = false;
        let mut relay = self.take_relay(report.instance);
        if !report.truncated {
            // The relay counts from zero again should a name come back.
            let named: HashSet<&HycoName> = report.hycos.iter().map(|hyco| &hyco.name).collect();
            relay.counted.retain(|name, _| named.contains(name));
        }
        for hyco in &report.hycos {
            let now = Data {
                to_endpoint: hyco.bytes_to_endpoint,
                to_application: hyco.bytes_to_application,
            };
            if now == Data::default() {
                continue;
            }
            let counted = relay.counted.entry(hyco.name.clone()).or_default();
            let new = now.less(*counted);
            if new == Data::default() {
                continue;
            }
            counted.add(new);
            self.sum_of(&hyco.name).add(new);
            changed = true;
        }
        if !relay.counted.is_empty() {
            self.relays.push(relay);
        }
        changed
    }

    /// What one hybrid connection carried this month.
    pub(super) fn of(&self, name: &HycoName) -> Data {
        self.hybrid_connections
            .get(name)
            .copied()
            .unwrap_or_default()
    }

    /// What all of them carried this month.
    pub(super) fn total(&self) -> Data {
        let mut total = self.others;
        self.hybrid_connections
            .values()
            .for_each(|data| total.add(*data));
        total
    }

    /// What is known of a relay, out of the list; the oldest is forgotten to make room for a new
    /// one.
    fn take_relay(&mut self, instance: Instance) -> Relay {
        let known = self
            .relays
            .iter()
            .position(|relay| relay.instance == instance);
        if let Some(index) = known {
            return self.relays.remove(index);
        }
        if self.relays.len() >= RELAYS_MAX {
            self.relays.remove(0);
        }
        Relay {
            instance,
            counted: BTreeMap::new(),
        }
    }

    fn sum_of(&mut self, name: &HycoName) -> &mut Data {
        let room = self.hybrid_connections.len() < NAMES_MAX;
        if room || self.hybrid_connections.contains_key(name) {
            self.hybrid_connections.entry(name.clone()).or_default()
        } else {
            &mut self.others
        }
    }
}

impl Data {
    /// Both ways together.
    #[must_use]
    pub fn sum(self) -> u64 {
        self.to_endpoint.saturating_add(self.to_application)
    }

    fn add(&mut self, other: Self) {
        self.to_endpoint = self.to_endpoint.saturating_add(other.to_endpoint);
        self.to_application = self.to_application.saturating_add(other.to_application);
    }

    fn less(self, other: Self) -> Self {
        Self {
            to_endpoint: self.to_endpoint.saturating_sub(other.to_endpoint),
            to_application: self.to_application.saturating_sub(other.to_application),
        }
    }
}

impl Month {
    /// The month of a time, seconds since 1970. Beyond the year 9999 it stays December 9999.
    #[must_use]
    pub fn of(unix_secs: u64) -> Self {
        let time = i64::try_from(unix_secs)
            .ok()
            .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok());
        let date = time.map_or(Date::MAX, OffsetDateTime::date);
        Self {
            year: date.year(),
            month: date.month().into(),
        }
    }
}

impl fmt::Display for Month {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:04}-{:02}", self.year, self.month)
    }
}

impl FromStr for Month {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (year, month) = text.split_once('-')?;
            let digits = |text: &str, len| {
                text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit())
            };
            if !digits(year, 4) || !digits(month, 2) {
                return None;
            }
            let month = month
                .parse()
                .ok()
                .filter(|month| (1..=12).contains(month))?;
            Some(Self {
                year: year.parse().ok()?,
                month,
            })
        };
        read().ok_or("a month is written like 2026-11")
    }
}

impl Serialize for Month {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Month {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use underpass_proto::snapshot::HycoReport;

    use super::*;

    const NOVEMBER: u64 = 1_795_392_000;

    #[test]
    fn differences_are_added_up_and_nothing_twice() {
        let mut ledger = Ledger::new(Month::of(NOVEMBER));
        assert!(ledger.count(&report(
            1,
            &[("payroll-sql", 100, 10), ("archive-sql", 0, 0)]
        )));
        assert!(!ledger.count(&report(1, &[("payroll-sql", 100, 10)])));
        assert!(ledger.count(&report(
            1,
            &[("payroll-sql", 150, 10), ("archive-sql", 1, 0)]
        )));
        assert_eq!(data(&ledger, "payroll-sql"), (150, 10));
        assert_eq!(ledger.total().sum(), 161);
    }

    #[test]
    fn a_relay_that_begins_anew_counts_from_zero_and_its_predecessor_may_come_back() {
        let mut ledger = Ledger::new(Month::of(NOVEMBER));
        ledger.count(&report(1, &[("payroll-sql", 100, 0)]));
        ledger.count(&report(2, &[("payroll-sql", 30, 0)]));
        ledger.count(&report(1, &[("payroll-sql", 105, 0)]));
        assert_eq!(data(&ledger, "payroll-sql"), (135, 0));
    }

    #[test]
    fn a_figure_that_shrinks_for_a_moment_is_not_counted_again() {
        let mut ledger = Ledger::new(Month::of(NOVEMBER));
        for figure in [100, 40, 0, 100, 101] {
            ledger.count(&report(1, &[("payroll-sql", figure, 0)]));
        }
        assert_eq!(data(&ledger, "payroll-sql"), (101, 0));
    }

    #[test]
    fn a_report_that_leaves_some_out_loses_nothing() {
        let mut ledger = Ledger::new(Month::of(NOVEMBER));
        ledger.count(&report(
            1,
            &[("payroll-sql", 100, 0), ("archive-sql", 5, 0)],
        ));
        for counts in [("payroll-sql", 200, 0), ("archive-sql", 7, 0)] {
            ledger.count(&Report {
                truncated: true,
                ..report(1, &[counts])
            });
        }
        assert_eq!(
            (data(&ledger, "payroll-sql"), data(&ledger, "archive-sql")),
            ((200, 0), (7, 0))
        );
    }

    #[test]
    fn relays_are_remembered_up_to_a_bound() {
        let mut ledger = Ledger::new(Month::of(NOVEMBER));
        for instance in 0..100 {
            ledger.count(&report(instance, &[("payroll-sql", 1, 0)]));
        }
        assert_eq!(
            (ledger.relays.len(), data(&ledger, "payroll-sql")),
            (RELAYS_MAX, (100, 0))
        );
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        assert_eq!(Month::of(0).to_string(), "1970-01");
        assert_eq!(Month::of(1_798_761_599).to_string(), "2026-12");
        assert_eq!(Month::of(1_798_761_600).to_string(), "2027-01");
        assert_eq!(Month::of(u64::MAX).to_string(), "9999-12");
        for text in ["1970-01", "2026-11"] {
            assert_eq!(text.parse::<Month>().unwrap().to_string(), text);
        }
        for wrong in ["", "2026", "2026-13", "2026-00", "26-1", "+026-01"] {
            assert!(wrong.parse::<Month>().is_err(), "{wrong}");
        }
    }

    fn data(ledger: &Ledger, name: &str) -> (u64, u64) {
        let Data {
            to_endpoint,
            to_application,
        } = ledger.of(&name.parse().unwrap());
        (to_endpoint, to_application)
    }

    pub(in crate::usage) fn report(instance: u8, hycos: &[(&str, u64, u64)]) -> Report {
        let hycos = hycos
            .iter()
            .map(|(name, to_endpoint, to_application)| HycoReport {
                bytes_to_endpoint: *to_endpoint,
                bytes_to_application: *to_application,
                ..HycoReport::new(name.parse().unwrap())
            });
        Report {
            instance: Instance([instance; 16]),
            hycos: hycos.collect(),
            ..Report::default()
        }
    }
}
