//! A report as one picture for a README: a panel for each work, a bar for each way, light or dark
//! as the reader's page is.

use crate::svg::{escaped, wrapped};
use std::fmt::Write as _;

use super::{Line, Report, Taken};
use crate::peers::Way;
use crate::peers::measure::{Measure, with_unit};

/// The picture's width, pixels; its height is what the panels need.
const WIDTH: usize = 990;

/// Panels beside each other.
const COLUMNS: usize = 2;

const GAP: usize = 14;
const PANEL: usize = (WIDTH - 16 - (COLUMNS - 1) * GAP) / COLUMNS;

/// Height of a bar with what is above it.
const STEP: usize = 21;
const BAR: usize = 14;

/// Where bars begin in a panel, and the length of the longest.
const NAMES: usize = 118;
const LONGEST: f64 = 200.0;

/// Height of a panel without its bars.
const HEAD: usize = 66;

/// Characters of the small text in a line.
const WRAP: usize = 165;

const STYLE: &str = r#"  <style>
    text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 13px; fill: #1f2933 }
    .name { font-size: 15px; font-weight: 600 }
    .small { font-size: 11.5px; fill: #52606d }
    .zone { fill: #f4f6f8; stroke: #c5ced6 }
    .peer { fill: #9aa5b1 }
    .stock { fill: #8fb8a8 }
    .ours { fill: #2f8f68 }
    .spread { stroke: #1f2933; stroke-width: 1.2 }
    .strong { font-weight: 600 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e4e9ee }
      .small { fill: #a7b3be }
      .zone { fill: #171c22; stroke: #3a4550 }
      .peer { fill: #616e7c }
      .stock { fill: #4d7a69 }
      .ours { fill: #4dba8c }
      .spread { stroke: #e4e9ee }
    }
  </style>
"#;

/// Draws it; SVG.
#[must_use]
pub(super) fn draw(report: &Report) -> String {
    let panels = panels(report);
    let heights: Vec<usize> = panels
        .chunks(COLUMNS)
        .map(|row| row.iter().map(Panel::height).max().unwrap_or_default())
        .collect();
    let mut drawn = String::new();
    let mut top = 8;
    for (row, height) in panels.chunks(COLUMNS).zip(heights) {
        for (column, panel) in row.iter().enumerate() {
            panel.draw(&mut drawn, 8 + column * (PANEL + GAP), top, height);
        }
        top += height + GAP;
    }
    for line in notes(report) {
        top += 15;
        let _ = writeln!(
            drawn,
            r#"  <text class="small" x="12" y="{top}">{}</text>"#,
            escaped(&line)
        );
    }
    let height = top + 10;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"title about\">\n  <title id=\"title\">Underpass beside other tunnels</title>\n  <desc id=\"about\">{}</desc>\n{STYLE}{drawn}</svg>\n",
        escaped(&in_words(&panels))
    )
}

/// One work: the ways through a tunnel as bars, the way without one in words.
struct Panel<'a> {
    title: String,
    lines: Vec<(&'a Line, &'a Taken)>,
    direct: Option<&'a Taken>,
    more_is_better: bool,
}

/// Works without a figure have no panel.
fn panels(report: &Report) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for line in &report.lines {
        let measure = line.row.headline();
        let Some(taken) = line.figures.get(&measure) else {
            continue;
        };
        let title = match measure {
            Measure::Rate => line.row.title().to_owned(),
            _ => format!("{}: {}", line.row.title(), measure.title()),
        };
        if panels.last().is_none_or(|panel| panel.title != title) {
            panels.push(Panel {
                title,
                lines: Vec::new(),
                direct: None,
                more_is_better: measure.is_better_high(),
            });
        }
        let panel = panels.last_mut().expect("one was just made");
        if line.way == Way::Direct {
            panel.direct = Some(taken);
        } else {
            panel.lines.push((line, taken));
        }
    }
    panels.retain(|panel| !panel.lines.is_empty());
    panels
}

impl Panel<'_> {
    fn height(&self) -> usize {
        HEAD + self.lines.len() * STEP
    }

    /// Bars are as long as their medians beside the largest of the panel.
    fn draw(&self, drawn: &mut String, left: usize, top: usize, height: usize) {
        let largest = self.lines.iter().map(|(_, taken)| taken.spread.max);
        let largest = largest.fold(f64::MIN_POSITIVE, f64::max);
        let length = |figure: f64| (figure / largest * LONGEST).max(0.0);
        let (x, y) = (left + 14, top + 24);
        let direct = self.direct.map(|direct| {
            let number = number(self.lines[0].0, direct.spread.median);
            format!("without a tunnel: {number}")
        });
        let better = (!self.more_is_better).then(|| "less is better".to_owned());
        let about: Vec<String> = better.into_iter().chain(direct).collect();
        let _ = writeln!(
            drawn,
            r#"  <rect class="zone" x="{left}" y="{top}" width="{PANEL}" height="{height}" rx="10"/>
  <text class="name" x="{x}" y="{y}">{}</text>
  <text class="small" x="{x}" y="{}">{}</text>"#,
            escaped(&self.title),
            y + 17,
            escaped(&about.join("; "))
        );
        for (n, (line, taken)) in self.lines.iter().enumerate() {
            let (bar_x, bar_y) = (left + NAMES, top + HEAD - 10 + n * STEP);
            let (text_y, middle) = (bar_y + BAR - 3, bar_y + BAR / 2);
            let spread = taken.spread;
            let from = bar_x as f64 + length(spread.min);
            let to = bar_x as f64 + length(spread.max);
            let (class, strong) = class(line.way);
            let _ = writeln!(
                drawn,
                r#"  <text{strong} x="{x}" y="{text_y}">{}</text>
  <rect class="{class}" x="{bar_x}" y="{bar_y}" width="{:.1}" height="{BAR}" rx="2"/>
  <line class="spread" x1="{from:.1}" y1="{middle}" x2="{to:.1}" y2="{middle}"/>
  <text{strong} x="{:.1}" y="{text_y}">{}</text>"#,
                line.way,
                length(spread.median),
                to + 7.0,
                escaped(&number(line, spread.median))
            );
        }
    }
}

fn class(way: Way) -> (&'static str, &'static str) {
    if way.is_underpass() {
        ("ours", r#" class="strong""#)
    } else if way.baseline().is_some() {
        ("stock", "")
    } else {
        ("peer", "")
    }
}

fn number(line: &Line, figure: f64) -> String {
    let measure = line.row.headline();
    with_unit(&measure.number(figure), line.row.unit(measure))
}

/// What the picture shows, for those who cannot see it.
fn in_words(panels: &[Panel<'_>]) -> String {
    let panel = |panel: &Panel<'_>| {
        let line = |(line, taken): &(&Line, &Taken)| {
            format!("{} {}", line.way, number(line, taken.spread.median))
        };
        let lines: Vec<String> = panel.lines.iter().map(line).collect();
        format!("{}: {}.", panel.title, lines.join(", "))
    };
    panels.iter().map(panel).collect::<Vec<_>>().join(" ")
}

/// What the figures were taken with, in lines that fit.
fn notes(report: &Report) -> Vec<String> {
    let (rounds, seconds, workers) = (report.rounds_told(), report.seconds, report.workers);
    let taken = format!(
        "Green: Underpass (ring or poll: io_uring or readiness; 1452 or path: size of datagrams). stock: the same relay made of the quinn crate. Bars: medians of {rounds} interleaved rounds of {seconds} s; lines: smallest to largest. {workers} workers in relay and agent each, everything on one machine."
    );
    [taken, report.machine.to_string()]
        .iter()
        .flat_map(|note| wrapped(note, WRAP))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{Notes, Row, Sample, Settings};

    #[test]
    fn the_longest_bar_is_the_best_and_what_failed_has_none() {
        let sample = |way, rate: Option<f64>| Sample {
            row: Row::Bulk,
            way,
            round: 0,
            outcome: rate
                .map(|rate| [(Measure::Rate, rate)].into())
                .ok_or_else(|| "no".to_owned()),
        };
        let samples = [
            sample(Way::Direct, Some(20.0)),
            sample(Way::Ssh, Some(5.0)),
            sample(Way::Rathole, None),
            sample(Way::RingPath, Some(10.0)),
        ];
        let settings = Settings {
            rows: vec![Row::Bulk, Row::Http64],
            ..Settings::usual("underpass".into(), "a<b".into())
        };
        let mut report = Report::new(&settings, Notes::default(), &samples);
        report.machine.processor = "A & B".into();
        let svg = draw(&report);
        assert!(
            svg.contains(
                "<desc id=\"about\">bulk, 1 flow: ssh 5.00 Gbit/s, ring-path 10.00 Gbit/s.</desc>"
            ),
            "{svg}"
        );
        assert!(svg.contains("without a tunnel: 20.00 Gbit/s"), "{svg}");
        assert!(svg.contains("width=\"200.0\" height=\"14\""), "{svg}");
        assert!(svg.contains("width=\"100.0\" height=\"14\""), "{svg}");
        assert!(svg.contains("A &amp; B"), "{svg}");
        assert_eq!(svg.matches("class=\"zone\"").count(), 1);
    }
}
