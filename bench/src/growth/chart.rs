//! One axis as a picture: a panel for each figure, a line for each process, both scales
//! logarithmic, so that straight growth is a straight line.

use crate::svg::{escaped, wrapped};
use std::fmt::Write as _;

use super::Axis;
use super::figure::{Kind, Part, Shape, number};
use super::report::{Line, Report};

/// Characters that fit a line of notes.
const NOTE_COLUMNS: usize = 170;

/// The picture's width, pixels; its height is what the panels need.
const WIDTH: usize = 990;
const COLUMNS: usize = 3;
const GAP: usize = 14;
const PANEL: usize = (WIDTH - 16 - (COLUMNS - 1) * GAP) / COLUMNS;
const HEIGHT: usize = 210;

/// The plot inside a panel.
const LEFT: f64 = 52.0;
const RIGHT: f64 = PANEL as f64 - 18.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = HEIGHT as f64 - 28.0;

/// A line that stays is drawn in the middle of so many powers of ten.
const DECADES_MIN: f64 = 2.0;

const STYLE: &str = r#"  <style>
    text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 11px; fill: #52606d }
    .name { font-size: 13px; font-weight: 600; fill: #1f2933 }
    .zone { fill: #f4f6f8; stroke: #c5ced6 }
    .grid { stroke: #d9e0e6; stroke-width: 1 }
    .slope { stroke: #9aa5b1; stroke-dasharray: 3 4; fill: none }
    .relay { stroke: #2f8f68; fill: none; stroke-width: 2.2 }
    .agent { stroke: #b7791f; fill: none; stroke-width: 2.2 }
    .control { stroke: #7a5bb5; fill: none; stroke-width: 2.2 }
    .all { stroke: #2b6cb0; fill: none; stroke-width: 2.2 }
    @media (prefers-color-scheme: dark) {
      text { fill: #a7b3be }
      .name { fill: #e4e9ee }
      .zone { fill: #171c22; stroke: #3a4550 }
      .grid { stroke: #2b343d }
      .slope { stroke: #616e7c }
      .relay { stroke: #4dba8c }
      .agent { stroke: #e0a94e }
      .control { stroke: #a68be0 }
      .all { stroke: #63a4e6 }
    }
  </style>
"#;

/// Draws it; SVG. Nothing where the axis has no figures.
pub(super) fn draw(report: &Report, axis: Axis) -> Option<String> {
    let mut panels: Vec<(Kind, Vec<&Line>)> = Vec::new();
    for line in report.lines.iter().filter(|line| line.axis == axis) {
        match panels.iter_mut().find(|(kind, _)| *kind == line.kind) {
            Some((_, lines)) => lines.push(line),
            None => panels.push((line.kind, vec![line])),
        }
    }
    let mut drawn = String::new();
    let mut told = Vec::new();
    for (n, (kind, lines)) in panels.iter().enumerate() {
        let (column, row) = (n % COLUMNS, n / COLUMNS);
        let at = (8 + column * (PANEL + GAP), 8 + row * (HEIGHT + GAP));
        Panel::of(*kind, lines)?.draw(&mut drawn, at);
        told.extend(lines.iter().map(|line| in_words(line)));
    }
    if panels.is_empty() {
        return None;
    }
    let rows = panels.len().div_ceil(COLUMNS);
    let note = format!(
        "Both scales are logarithmic; dashes: what grows as the count does. Medians of {} rounds, {} worker(s) each, io {}, datagrams of {} bytes. {}",
        report.rounds, report.workers, report.io, report.mtu_max, report.machine
    );
    let under = 8 + rows * (HEIGHT + GAP);
    for (n, line) in wrapped(&note, NOTE_COLUMNS).iter().enumerate() {
        let y = under + 8 + n * 15;
        let _ = writeln!(drawn, r#"  <text x="12" y="{y}">{}</text>"#, escaped(line));
    }
    let height = under + 16 + 15 * (wrapped(&note, NOTE_COLUMNS).len() - 1);
    Some(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title about\">\n  <title id=\"title\">Costs as {axis} grow</title>\n  <desc id=\"about\">{}</desc>\n{STYLE}{drawn}</svg>\n",
        escaped(&told.join(" "))
    ))
}

/// One figure: where its counts and values lie.
struct Panel<'a> {
    kind: Kind,
    lines: &'a [&'a Line],
    counts: (f64, f64),
    values: (f64, f64),
}

impl<'a> Panel<'a> {
    /// Nothing where there is no count.
    fn of(kind: Kind, lines: &'a [&'a Line]) -> Option<Panel<'a>> {
        let points = || lines.iter().flat_map(|line| &line.points);
        let counts = points().map(|point| (point.count as f64).log10());
        let counts = range(counts)?;
        let values = points().map(|point| point.spread.median);
        let values = values.filter(|value| *value > 0.0).map(f64::log10);
        let (from, to) = range(values).unwrap_or((0.0, 0.0));
        let (from, to) = (from.floor(), to.ceil());
        let lacking = (DECADES_MIN - (to - from)).max(0.0);
        Some(Panel {
            kind,
            lines,
            counts,
            values: (from - (lacking / 2.0).floor(), to + (lacking / 2.0).ceil()),
        })
    }

    fn x(&self, count: usize) -> f64 {
        let (from, to) = self.counts;
        let span = (to - from).max(f64::MIN_POSITIVE);
        LEFT + ((count as f64).log10() - from) / span * (RIGHT - LEFT)
    }

    /// What is nothing lies at the bottom.
    fn y(&self, value: f64) -> f64 {
        let (from, to) = self.values;
        let at = value.max(10_f64.powf(from)).log10();
        BOTTOM - (at - from) / (to - from) * (BOTTOM - TOP)
    }

    fn draw(&self, drawn: &mut String, (left, top): (usize, usize)) {
        let (kind, unit) = (self.kind.title(), self.kind.unit());
        let _ = writeln!(
            drawn,
            r#"  <g transform="translate({left} {top})">
  <rect class="zone" width="{PANEL}" height="{HEIGHT}" rx="10"/>
  <text class="name" x="14" y="22">{}, {unit}</text>"#,
            escaped(kind)
        );
        self.draw_names(drawn);
        self.draw_grid(drawn);
        for line in self.lines {
            let class = line.of.name();
            let points = line.points.iter();
            let points = points.map(|point| {
                let (x, y) = (self.x(point.count), self.y(point.spread.median));
                format!("{x:.1},{y:.1}")
            });
            let points: Vec<String> = points.collect();
            let _ = writeln!(
                drawn,
                r#"  <polyline class="{class}" points="{}"/>"#,
                points.join(" ")
            );
        }
        let _ = writeln!(drawn, "  </g>");
    }

    /// Which line is whose.
    fn draw_names(&self, drawn: &mut String) {
        let mut x = 14;
        for line in self.lines {
            let name = line.of.name();
            let _ = writeln!(
                drawn,
                r#"  <line class="{name}" x1="{x}" y1="34" x2="{}" y2="34"/><text x="{}" y="38">{name}</text>"#,
                x + 14,
                x + 18
            );
            x += 66;
        }
    }

    /// A line for each power of ten, each count's number, and the slope of what grows as the count
    /// does.
    fn draw_grid(&self, drawn: &mut String) {
        let (from, to) = self.values;
        let mut power = from;
        while power <= to {
            let value = 10_f64.powf(power);
            let y = self.y(value);
            let _ = writeln!(
                drawn,
                r#"  <line class="grid" x1="{LEFT}" y1="{y:.1}" x2="{RIGHT}" y2="{y:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 6.0,
                y + 4.0,
                short(value)
            );
            power += 1.0;
        }
        let counts = self.lines.iter().max_by_key(|line| line.points.len());
        for point in counts.iter().flat_map(|line| &line.points) {
            let x = self.x(point.count);
            let _ = writeln!(
                drawn,
                r#"  <text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                BOTTOM + 16.0,
                point.count
            );
        }
        if self.kind.shape() == Shape::Sum {
            let rise = (self.counts.1 - self.counts.0).min(to - from);
            let top = 10_f64.powf(from + rise);
            let x = LEFT
                + rise / (self.counts.1 - self.counts.0).max(f64::MIN_POSITIVE) * (RIGHT - LEFT);
            let _ = writeln!(
                drawn,
                r#"  <polyline class="slope" points="{LEFT:.1},{BOTTOM:.1} {x:.1},{:.1}"/>"#,
                self.y(top)
            );
        }
    }
}

/// A power of ten, short enough for the margin.
fn short(value: f64) -> String {
    if value >= 999_999.5 {
        format!("{:.0}M", value / 1e6)
    } else if value >= 9_999.5 {
        format!("{:.0}k", value / 1e3)
    } else if value >= 0.995 {
        format!("{value:.0}")
    } else {
        format!("{value}")
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| {
        let (from, to) = range.unwrap_or((value, value));
        Some((value.min(from), value.max(to)))
    })
}

/// A line for those who cannot see it.
fn in_words(line: &Line) -> String {
    let points = line.points.iter();
    let points = points.map(|point| format!("{} at {}", number(point.spread.median), point.count));
    let points: Vec<String> = points.collect();
    let of = match line.of {
        Part::Whole => String::new(),
        of => format!(" ({})", of.name()),
    };
    format!(
        "{}{of}, {}: {}.",
        line.kind.title(),
        line.unit,
        points.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn a_power_of_ten_is_a_step_on_both_scales() {
        let report = example();
        let line = report.lines.last().expect("a line");
        let lines = [line];
        let panel = Panel::of(line.kind, &lines).expect("drawn");
        let steps = |f: &dyn Fn(usize) -> f64| (f(10) - f(1), f(100) - f(10));
        let (first, second) = steps(&|count| panel.x(count));
        assert!((first - second).abs() < 1e-9 && first > 0.0);
        let (first, second) = steps(&|value| panel.y(value as f64));
        assert!((first - second).abs() < 1e-9 && first < 0.0);
        assert!((panel.y(0.0) - BOTTOM).abs() < 1e-9);
    }

    #[test]
    fn powers_of_ten_are_short() {
        let told: Vec<String> = [-2, 0, 3, 4, 7]
            .map(|power| short(10_f64.powi(power)))
            .to_vec();
        assert_eq!(told, ["0.01", "1", "1000", "10k", "10M"]);
    }

    #[test]
    fn a_picture_has_a_panel_for_each_figure_and_tells_it_in_words() {
        let report = example();
        let svg = draw(&report, Axis::Flows).expect("drawn");
        assert_eq!(svg.matches("class=\"zone\"").count(), 2);
        assert!(
            svg.contains(
                "processor time per request (relay), µs: 12.5 at 1, 12.5 at 10, 12.5 at 100."
            ),
            "{svg}"
        );
        assert_eq!(draw(&report, Axis::Agents), None);
    }
}
