//! The outcome as a table for a terminal.

use std::fmt;
use std::time::Duration;

use crate::scenario::{Distribution, Fault, GroupOutcome, Outcome, Pace};
use crate::units::show_time;

/// Displays an outcome.
pub struct Table<'a>(pub &'a Outcome);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.0;
        let early = if outcome.stopped_early {
            ", stopped early"
        } else {
            ""
        };
        writeln!(
            f,
            "{} {} by {}, seed {}, {:.2} s{early}\n",
            outcome.scenario,
            outcome.targets.join(","),
            outcome.io,
            outcome.seed,
            outcome.seconds
        )?;
        let width = (outcome.groups.iter())
            .map(|group| group.name.len())
            .fold("group".len(), usize::max);
        writeln!(
            f,
            "{:<width$} {:>7} {:>9} {:>10} {:>10} {:>10} {:>11} {:>6}",
            "group", "flows", "connects", "calls", "calls/s", "Gbit/s up", "Gbit/s down", "bad"
        )?;
        for group in &outcome.groups {
            writeln!(
                f,
                "{:<width$} {:>7} {:>9} {:>10} {:>10.1} {:>10.3} {:>11.3} {:>6}",
                group.name,
                group.flows,
                group.counts.connections,
                group.counts.right,
                group.calls_per_second(),
                group.gbit_per_second_up(),
                group.gbit_per_second_down(),
                group.counts.bad()
            )?;
        }
        writeln!(
            f,
            "\n{:<width$} {:<14} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "group", "time", "count", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for group in &outcome.groups {
            times(f, width, group)?;
        }
        writeln!(f)?;
        for group in &outcome.groups {
            notes(f, group)?;
        }
        Ok(())
    }
}

/// What the latency of a group with this pace counts from.
pub(super) fn latency_name(pace: Pace) -> &'static str {
    match pace {
        Pace::Closed { .. } => "service",
        Pace::Rate(_) => "since due",
        Pace::Burst { .. } => "since burst",
    }
}

fn times(f: &mut fmt::Formatter<'_>, width: usize, group: &GroupOutcome) -> fmt::Result {
    let rows = [
        (latency_name(group.pace), &group.latency),
        ("  service", &group.service),
        ("  begun late", &group.lateness),
        ("  connect", &group.connect),
    ];
    let mut group = group.name.as_str();
    for (name, distribution) in rows {
        if distribution.count() > 0 {
            row(f, width, group, name, distribution)?;
            group = ""; // Before its first row alone.
        }
    }
    Ok(())
}

fn row(
    f: &mut fmt::Formatter<'_>,
    width: usize,
    group: &str,
    name: &str,
    times: &Distribution,
) -> fmt::Result {
    write!(f, "{group:<width$} {name:<14} {:>9}", times.count())?;
    let percentiles = [0.5, 0.9, 0.99, 0.999].map(|quantile| times.at(quantile));
    for time in percentiles.into_iter().chain([times.max()]) {
        write!(f, " {:>9}", show_time(time.unwrap_or(Duration::ZERO)))?;
    }
    writeln!(f)
}

/// What needs words.
fn notes(f: &mut fmt::Formatter<'_>, group: &GroupOutcome) -> fmt::Result {
    let (name, counts) = (&group.name, group.counts);
    if counts.bad() > 0 {
        writeln!(
            f,
            "{name}: {} failed, {} corrupt, {} truncated, {} hung",
            counts.failed, counts.corrupt, counts.truncated, counts.hung
        )?;
    }
    if counts.cut > 0 {
        writeln!(
            f,
            "{name}: {} calls were under way at the end and given up",
            counts.cut
        )?;
    }
    if counts.unsent > 0 {
        let why = if counts.bad() == 0 {
            ": the rate is more than this way carries"
        } else {
            ""
        };
        let unsent = counts.unsent;
        writeln!(
            f,
            "{name}: {unsent} calls were due and not begun at the end{why}"
        )?;
    }
    for (fault, times) in alike(&group.faults) {
        let (flow, second) = (fault.flow, fault.second);
        write!(
            f,
            "{name}: flow {flow} at {second} s: {}: {}",
            fault.ending, fault.what
        )?;
        match times {
            1 => writeln!(f)?,
            _ => writeln!(f, " ({times} times)")?,
        }
    }
    Ok(())
}

/// The first of those that say the same, and how many they are.
fn alike(faults: &[Fault]) -> Vec<(&Fault, usize)> {
    let mut all: Vec<(&Fault, usize)> = Vec::new();
    for fault in faults {
        let same = |(first, _): &&mut (&Fault, usize)| {
            (&first.ending, &first.what) == (&fault.ending, &fault.what)
        };
        match all.iter_mut().find(same) {
            Some((_, times)) => *times += 1,
            None => all.push((fault, 1)),
        }
    }
    all
}
