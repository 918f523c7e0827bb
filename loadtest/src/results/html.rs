//! A page about one run, or about several beside each other: one file that needs nothing else,
//! light or dark as the reader likes.

use std::fmt::Write;
use std::time::Duration;

use super::svg::{Axis, Chart, LINES_MAX, Line, Scale, escape};
use super::table::latency_name;
use crate::scenario::{GroupOutcome, Outcome, Second};
use crate::units::show_time;

/// Most runs of one page: each has a colour.
pub const RUNS_MAX: usize = LINES_MAX;

/// Points of a percentile curve for each further nine.
const POINTS_PER_NINE: u32 = 12;

const STYLE: &str = include_str!("style.css");

/// A run and what it is called on the page.
pub struct Run<'a> {
    /// Names its lines and columns.
    pub label: String,
    /// What came of it.
    pub outcome: &'a Outcome,
}

/// The page. With several runs the first is what the others are compared with; groups belong
/// together by name.
///
/// # Panics
/// Without a run.
pub fn to_html(runs: &[Run<'_>]) -> String {
    let first = runs[0].outcome;
    let title = if runs.len() == 1 {
        format!("{} · underpass-loadtest", first.scenario)
    } else {
        format!("{} runs · underpass-loadtest", runs.len())
    };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n<title>{0}</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    about(&mut out, runs);
    for name in group_names(runs) {
        let groups: Vec<Part<'_>> = (runs.iter().enumerate())
            .filter_map(|(n, run)| {
                let group = run.outcome.group(name)?;
                Some(Part { n, run, group })
            })
            .collect();
        let _ = writeln!(out, "<section><h2>{}</h2>", escape(name));
        figures(&mut out, &groups);
        out.push_str("<div class=\"charts\">\n");
        for chart in [
            throughput(&groups),
            calls(&groups),
            latency(&groups),
            curve(&groups),
        ] {
            out.push_str(&chart.render());
        }
        out.push_str("</div>\n");
        faults(&mut out, &groups);
        out.push_str("</section>\n");
    }
    out.push_str("</main></body></html>\n");
    out
}

/// One group of one run.
struct Part<'a> {
    n: usize,
    run: &'a Run<'a>,
    group: &'a GroupOutcome,
}

type Rate = fn(&GroupOutcome) -> f64;

/// In the order of the first run, then those that only others have.
fn group_names<'a>(runs: &'a [Run<'_>]) -> Vec<&'a str> {
    let mut names = Vec::new();
    for group in runs.iter().flat_map(|run| &run.outcome.groups) {
        if !names.contains(&group.name.as_str()) {
            names.push(group.name.as_str());
        }
    }
    names
}

fn about(out: &mut String, runs: &[Run<'_>]) {
    out.push_str("<div class=\"scroll\"><table><tr><th>run</th><th>scenario</th><th>target</th><th>seconds</th><th>sockets by</th><th>seed</th><th>machine</th></tr>\n");
    for (n, run) in runs.iter().enumerate() {
        let outcome = run.outcome;
        let early = if outcome.stopped_early {
            " (stopped early)"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "<tr><td><i class=\"c{n}\"></i>{}</td><td>{}</td><td>{}</td><td>{:.1}{early}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&run.label),
            escape(&outcome.scenario),
            escape(&outcome.targets.join(", ")),
            outcome.seconds,
            escape(&outcome.io),
            outcome.seed,
            escape(&outcome.machine)
        );
    }
    out.push_str("</table></div>\n");
}

/// One row for each run; behind a figure, how many times that of the first run it is.
fn figures(out: &mut String, groups: &[Part<'_>]) {
    out.push_str("<div class=\"scroll\"><table class=\"figures\"><tr><th>run</th><th>flows</th><th>calls</th><th>bad</th><th>calls/s</th><th>Gbit/s up</th><th>Gbit/s down</th><th>time</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th></tr>\n");
    let Some(first) = groups.first() else { return };
    for part in groups {
        let group = part.group;
        let ratio = |value: f64, reference: f64| {
            if std::ptr::eq(part, first) || reference <= 0.0 {
                return String::new();
            }
            format!(" <small>× {:.2}</small>", value / reference)
        };
        let _ = write!(
            out,
            "<tr><td><i class=\"c{}\"></i>{}</td><td>{}</td><td>{}</td><td{}>{}</td>",
            part.n,
            escape(&part.run.label),
            group.flows,
            group.counts.right,
            if group.counts.bad() > 0 {
                " class=\"bad\""
            } else {
                ""
            },
            group.counts.bad()
        );
        let rates: [(Rate, usize); 3] = [
            (GroupOutcome::calls_per_second, 1),
            (GroupOutcome::gbit_per_second_up, 3),
            (GroupOutcome::gbit_per_second_down, 3),
        ];
        for (rate, digits) in rates {
            let value = rate(group);
            let _ = write!(
                out,
                "<td>{value:.digits$}{}</td>",
                ratio(value, rate(first.group))
            );
        }
        let _ = write!(out, "<td>{}</td>", latency_name(group.pace));
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            let at = |group: &GroupOutcome| group.latency.at(quantile).unwrap_or_default();
            let (value, reference) = (at(group), at(first.group));
            let ratio = ratio(value.as_secs_f64(), reference.as_secs_f64());
            let _ = write!(out, "<td>{}{ratio}</td>", show_time(value));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

fn throughput<'a>(groups: &[Part<'_>]) -> Chart<'a> {
    let one = |part: &Part<'_>, name: String, bytes: fn(&Second) -> u64| Line {
        name,
        points: over_time(part, |second, seconds| {
            bytes(second) as f64 * 8e-6 / seconds
        }),
    };
    let mut lines = match groups {
        [only] => vec![
            one(only, "up".into(), |second| second.up),
            one(only, "down".into(), |second| second.down),
        ],
        all => (all.iter())
            .map(|part| {
                one(part, part.run.label.clone(), |second| {
                    second.up + second.down
                })
            })
            .collect(),
    };
    let points = || lines.iter().flat_map(|line| &line.points);
    let large = points().any(|point| point.1 >= 1_000.0);
    if large {
        let all = lines.iter_mut().flat_map(|line| &mut line.points);
        all.for_each(|point| point.1 /= 1_000.0);
    }
    Chart {
        title: "Throughput over time".into(),
        x: seconds(),
        y: Axis {
            name: if large { "Gbit/s" } else { "Mbit/s" },
            scale: Scale::Linear,
            show: &number,
        },
        lines,
    }
}

fn calls<'a>(groups: &[Part<'_>]) -> Chart<'a> {
    let one = |part: &Part<'_>, name: String, count: fn(&Second) -> u64| Line {
        name,
        points: over_time(part, |second, seconds| count(second) as f64 / seconds),
    };
    let lines = match groups {
        [only] => vec![
            one(only, "right".into(), |second| second.right),
            one(only, "bad".into(), |second| second.bad),
        ],
        all => (all.iter())
            .map(|part| one(part, part.run.label.clone(), |second| second.right))
            .collect(),
    };
    Chart {
        title: "Calls answered over time".into(),
        x: seconds(),
        y: Axis {
            name: "per second",
            scale: Scale::Linear,
            show: &number,
        },
        lines,
    }
}

fn latency<'a>(groups: &[Part<'_>]) -> Chart<'a> {
    let one = |part: &Part<'_>, name: String, quantile: f64| Line {
        name,
        points: (part.group.series.iter().enumerate())
            .filter_map(|(n, second)| {
                let at = (n as f64 + 0.5) * part.run.outcome.interval_seconds;
                Some((at, micros(second.latency.at(quantile)?)))
            })
            .collect(),
    };
    let (title, lines) = match groups {
        [only] => (
            "Latency over time",
            vec![
                one(only, "p50".into(), 0.5),
                one(only, "p99".into(), 0.99),
                one(only, "max".into(), 1.0),
            ],
        ),
        all => (
            "Latency over time, p99 of each second",
            (all.iter())
                .map(|part| one(part, part.run.label.clone(), 0.99))
                .collect(),
        ),
    };
    Chart {
        title: title.into(),
        x: seconds(),
        y: times(),
        lines,
    }
}

/// Latency by percentile; each further nine is as wide as the one before.
fn curve<'a>(groups: &[Part<'_>]) -> Chart<'a> {
    let lines = (groups.iter())
        .map(|part| {
            let latency = &part.group.latency;
            // Beyond this there is less than one call.
            let nines = (latency.count().max(1) as f64).log10();
            let last = (nines * f64::from(POINTS_PER_NINE)).floor() as u32;
            Line {
                name: match groups.len() {
                    1 => latency_name(part.group.pace).into(),
                    _ => part.run.label.clone(),
                },
                points: (0..=last)
                    .filter_map(|n| {
                        let nines = f64::from(n) / f64::from(POINTS_PER_NINE);
                        let quantile = 1.0 - 10f64.powf(-nines);
                        Some((nines, micros(latency.at(quantile)?)))
                    })
                    .collect(),
            }
        })
        .collect();
    Chart {
        title: "Latency by percentile".into(),
        x: Axis {
            name: "percent of calls that took at most this long",
            scale: Scale::Whole,
            show: &percent,
        },
        y: times(),
        lines,
    }
}

fn faults(out: &mut String, groups: &[Part<'_>]) {
    let all = || {
        groups
            .iter()
            .flat_map(|part| part.group.faults.iter().map(move |fault| (part, fault)))
    };
    if all().next().is_none() {
        return;
    }
    out.push_str("<h3>What was not right</h3><ul>\n");
    for (part, fault) in all() {
        let _ = writeln!(
            out,
            "<li><i class=\"c{}\"></i>flow {} at {} s: {}: {}</li>",
            part.n,
            fault.flow,
            fault.second,
            escape(&fault.ending),
            escape(&fault.what)
        );
    }
    out.push_str("</ul>\n");
}

/// A point in the middle of each entry until the group's end; the last entry may be shorter than
/// the others.
fn over_time(part: &Part<'_>, value: impl Fn(&Second, f64) -> f64) -> Vec<(f64, f64)> {
    let interval = part.run.outcome.interval_seconds;
    let end = part.group.seconds;
    (part.group.series.iter().enumerate())
        .map(|(n, second)| (n as f64 * interval, second))
        .map(|(begin, second)| (begin, (end - begin).min(interval), second))
        // A sliver of time says nothing about a rate.
        .filter(|(_, length, _)| *length > interval / 10.0)
        .map(|(begin, length, second)| (begin + length / 2.0, value(second, length)))
        .collect()
}

fn seconds<'a>() -> Axis<'a> {
    Axis {
        name: "seconds",
        scale: Scale::Whole,
        show: &number,
    }
}

fn times<'a>() -> Axis<'a> {
    Axis {
        name: "",
        scale: Scale::Log,
        show: &|us| {
            show_time(Duration::from_secs_f64(us / 1e6))
                .replace(".00", "")
                .replace(".0", "")
        },
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// `90`, `99`, `99.9` for one, two, three nines.
fn percent(nines: f64) -> String {
    let digits = (nines - 2.0).max(0.0) as usize;
    format!("{:.digits$} %", 100.0 * (1.0 - 10f64.powf(-nines)))
}
