//! What flows in bulk do to the one beside them, as a picture: the times of a SQL-like flow over
//! how many there are, a colour for each way.

use std::fmt::Write as _;

use super::Report;
use crate::peers::Way;
use crate::peers::measure::Measure;
use crate::svg::{escaped, wrapped};

const WIDTH: f64 = 720.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 560.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 330.0;

/// Characters of the notes in a line.
const WRAP: usize = 100;

/// One for each way, in turn.
const COLOURS: [&str; 6] = [
    "#7b8794", "#b7791f", "#2b6cb0", "#2f8f68", "#7a5bb5", "#c0453e",
];

const STYLE: &str = r#"  <style>
    text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 12px; fill: #52606d }
    .name { font-size: 15px; font-weight: 600; fill: #1f2933 }
    .zone { fill: #f4f6f8; stroke: #c5ced6 }
    .grid { stroke: #d9e0e6 }
    @media (prefers-color-scheme: dark) {
      text { fill: #a7b3be }
      .name { fill: #e4e9ee }
      .zone { fill: #171c22; stroke: #3a4550 }
      .grid { stroke: #2b343d }
    }
  </style>
"#;

/// The times of one way: flows in bulk, median of p50 and of p99, µs.
struct Curve {
    way: Way,
    points: Vec<(u32, f64, f64)>,
}

/// Draws it; SVG. Nothing where no way has a figure.
pub(super) fn draw(report: &Report) -> Option<String> {
    let curves = curves(report);
    let mut counts: Vec<u32> = curves.iter().flat_map(Curve::counts).collect();
    counts.sort_unstable();
    counts.dedup();
    let times = || {
        let points = curves.iter().flat_map(|curve| &curve.points);
        points.flat_map(|(_, p50, p99)| [*p50, *p99])
    };
    let lowest = times().reduce(f64::min)?.max(1.0).log10().floor();
    let highest = times().reduce(f64::max)?.max(1.0).log10().ceil();
    let scale = Scale {
        counts,
        decades: (lowest, highest.max(lowest + 1.0)),
    };
    let mut drawn = scale.grid();
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        scale.draw(curve, colour, &mut drawn);
    }
    draw_names(&curves, &mut drawn);
    let notes = wrapped(
        &format!(
            "Solid: p99; dashes: p50. 100 statements a second, timed from when they were due; {} rounds of {} s, one worker each, everything on one machine. {}",
            report.rounds_told(),
            report.seconds,
            report.machine
        ),
        WRAP,
    );
    for (n, line) in notes.iter().enumerate() {
        let y = BOTTOM + 62.0 + n as f64 * 15.0;
        let _ = writeln!(drawn, r#"  <text x="14" y="{y}">{}</text>"#, escaped(line));
    }
    let height = BOTTOM + 62.0 + notes.len() as f64 * 15.0;
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title about\">\n  <title id=\"title\">A SQL-like flow beside flows in bulk</title>\n  <desc id=\"about\">{}</desc>\n{STYLE}{drawn}</svg>\n",
        escaped(&in_words(&curves))
    ))
}

fn curves(report: &Report) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for line in &report.lines {
        let median = |measure| Some(line.figures.get(&measure)?.spread.median);
        let times = median(Measure::P50).zip(median(Measure::P99));
        let Some((beside, (p50, p99))) = line.row.in_bulk().zip(times) else {
            continue;
        };
        let point = (beside, p50, p99);
        match curves.iter_mut().find(|curve| curve.way == line.way) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve {
                way: line.way,
                points: vec![point],
            }),
        }
    }
    curves
}

impl Curve {
    fn counts(&self) -> impl Iterator<Item = u32> {
        self.points.iter().map(|(count, ..)| *count)
    }
}

/// Where counts and times lie: counts evenly apart, times by their logarithm.
struct Scale {
    counts: Vec<u32>,
    decades: (f64, f64),
}

impl Scale {
    fn x(&self, count: u32) -> f64 {
        let at = self.counts.iter().position(|other| *other == count);
        let steps = self.counts.len().saturating_sub(1).max(1) as f64;
        LEFT + at.unwrap_or_default() as f64 / steps * (RIGHT - LEFT)
    }

    fn y(&self, time: f64) -> f64 {
        let (from, to) = self.decades;
        BOTTOM - (time.max(1.0).log10() - from) / (to - from) * (BOTTOM - TOP)
    }

    fn grid(&self) -> String {
        let mut drawn = format!(
            "  <rect class=\"zone\" x=\"4\" y=\"4\" width=\"{}\" height=\"{}\" rx=\"10\"/>\n  <text class=\"name\" x=\"18\" y=\"30\">Time of a statement beside flows in bulk of the same session</text>\n",
            WIDTH - 8.0,
            BOTTOM + 34.0
        );
        let (from, to) = self.decades;
        for decade in from as i32..=to as i32 {
            let time = 10_f64.powi(decade);
            let (y, name) = (self.y(time), name(time));
            let _ = writeln!(
                drawn,
                r#"  <line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{RIGHT}" y2="{y:.1}"/><text x="{}" y="{:.1}" text-anchor="end">{name}</text>"#,
                LEFT - 8.0,
                y + 4.0
            );
        }
        for &count in &self.counts {
            let _ = writeln!(
                drawn,
                r#"  <text x="{:.1}" y="{}" text-anchor="middle">{count}</text>"#,
                self.x(count),
                BOTTOM + 20.0
            );
        }
        drawn
    }

    fn draw(&self, curve: &Curve, colour: &str, drawn: &mut String) {
        let mut line = |dashes: &str, time: fn(&(u32, f64, f64)) -> f64| {
            let points = curve.points.iter();
            let points =
                points.map(|point| format!("{:.1},{:.1}", self.x(point.0), self.y(time(point))));
            let points: Vec<String> = points.collect();
            let _ = writeln!(
                drawn,
                r#"  <polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>"#,
                points.join(" ")
            );
        };
        line("", |point| point.2);
        line(r#" stroke-dasharray="3 4""#, |point| point.1);
    }
}

fn draw_names(curves: &[Curve], drawn: &mut String) {
    for (n, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let y = TOP + 10.0 + n as f64 * 20.0;
        let _ = writeln!(
            drawn,
            r#"  <line x1="{}" y1="{y}" x2="{}" y2="{y}" stroke="{colour}" stroke-width="3"/><text x="{}" y="{}">{}</text>"#,
            RIGHT + 24.0,
            RIGHT + 44.0,
            RIGHT + 52.0,
            y + 4.0,
            curve.way
        );
    }
}

/// A time as people say it.
fn name(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us} µs"),
    }
}

/// What the picture shows, for those who cannot see it.
fn in_words(curves: &[Curve]) -> String {
    let told = curves.iter().map(|curve| {
        let points = curve.points.iter();
        let points = points
            .map(|(count, p50, p99)| format!("beside {count}: p50 {p50:.0} µs, p99 {p99:.0} µs"));
        let points: Vec<String> = points.collect();
        format!("{} {}.", curve.way, points.join("; "))
    });
    told.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Notes, Row, Sample, Settings};

    fn report(samples: &[Sample]) -> Report {
        let settings = Settings {
            rows: vec![Row::Bulk, Row::SqlBeside0, Row::SqlBeside64],
            ..Settings::usual("underpass".into(), "underpass-bench".into())
        };
        Report::new(&settings, Notes::default(), samples)
    }

    #[test]
    fn more_in_bulk_lies_to_the_right_and_a_longer_time_above() {
        let sample = |row, p50, p99| Sample {
            row,
            way: Way::RingPath,
            round: 0,
            outcome: Ok([(Measure::P50, p50), (Measure::P99, p99)].into()),
        };
        let report = report(&[
            sample(Row::SqlBeside0, 100.0, 1_000.0),
            sample(Row::SqlBeside64, 1_000.0, 10_000.0),
        ]);
        let svg = report.curve().expect("a curve");
        // From 100 µs at the bottom to 10 ms at the top.
        assert!(svg.contains(r#"points="70.0,193.0 560.0,56.0""#), "{svg}");
        assert!(svg.contains(r#"points="70.0,330.0 560.0,193.0""#), "{svg}");
        assert!(svg.contains(">10 ms<"), "{svg}");
        assert!(
            svg.contains("beside 64: p50 1000 µs, p99 10000 µs."),
            "{svg}"
        );
    }

    #[test]
    fn nothing_measured_is_no_picture() {
        assert_eq!(report(&[]).curve(), None);
    }
}
