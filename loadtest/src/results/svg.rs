//! Line charts as SVG, to be put into a page: no script, no font, colours from the page's style sheet.

use std::fmt::Write;

/// Size of a chart, and of the room around its lines, in its own units.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;

/// Most lines of one chart: as many colours as can be told apart.
pub(super) const LINES_MAX: usize = 6;

/// About so many marks on an axis.
const TICKS: f64 = 5.0;

/// A chart to be.
pub(super) struct Chart<'a> {
    /// What is shown, for those who cannot see it.
    pub(super) title: String,
    pub(super) x: Axis<'a>,
    pub(super) y: Axis<'a>,
    /// At most [`LINES_MAX`]; each has the colour of its place.
    pub(super) lines: Vec<Line>,
}

/// How values lie along a side.
pub(super) struct Axis<'a> {
    pub(super) name: &'a str,
    pub(super) scale: Scale,
    /// How a mark is written.
    pub(super) show: &'a dyn Fn(f64) -> String,
}

/// From values to places.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// From zero.
    Linear,
    /// Equal factors are equal distances; values are above zero.
    Log,
    /// As linear, marked at whole numbers.
    Whole,
}

/// One line.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

impl Chart<'_> {
    /// The chart with its legend; nothing where there is no point.
    pub(super) fn render(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let (Some(x), Some(y)) = (
            Range::of(self.x.scale, points().map(|point| point.0)),
            Range::of(self.y.scale, points().map(|point| point.1)),
        ) else {
            return String::new();
        };
        let place = |point: &(f64, f64)| {
            let right = LEFT + x.share(point.0) * (WIDTH - LEFT - RIGHT);
            let down = HEIGHT - BOTTOM - y.share(point.1) * (HEIGHT - TOP - BOTTOM);
            (right, down)
        };
        let mut out = String::new();
        let title = escape(&self.title);
        let _ = write!(
            out,
            "<figure><figcaption>{title}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n"
        );
        self.grid(&mut out, &x, &y);
        for (n, line) in self.lines.iter().take(LINES_MAX).enumerate() {
            let mut path = String::new();
            for point in &line.points {
                let (right, down) = place(point);
                let _ = write!(path, "{right:.1},{down:.1} ");
            }
            let _ = writeln!(
                out,
                "<polyline class=\"line c{n}\" points=\"{}\"/>",
                path.trim_end()
            );
            // A single point is no line.
            if let [only] = line.points.as_slice() {
                let (right, down) = place(only);
                let _ = writeln!(
                    out,
                    "<circle class=\"dot c{n}\" cx=\"{right:.1}\" cy=\"{down:.1}\" r=\"3\"/>"
                );
            }
        }
        out.push_str("</svg>\n<div class=\"legend\">");
        for (n, line) in self.lines.iter().take(LINES_MAX).enumerate() {
            let _ = write!(
                out,
                "<span><i class=\"c{n}\"></i>{}</span>",
                escape(&line.name)
            );
        }
        out.push_str("</div></figure>\n");
        out
    }

    fn grid(&self, out: &mut String, x: &Range, y: &Range) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for value in y.ticks() {
            let down = bottom - y.share(value) * (bottom - TOP);
            let label = escape(&(self.y.show)(value));
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{down:.1}\" y2=\"{down:.1}\"/><text class=\"y\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                LEFT - 6.0,
                down + 4.0
            );
        }
        for value in x.ticks() {
            let at = LEFT + x.share(value) * (right - LEFT);
            let label = escape(&(self.x.show)(value));
            let _ = writeln!(
                out,
                "<text class=\"x\" x=\"{at:.1}\" y=\"{:.1}\">{label}</text>",
                bottom + 15.0
            );
        }
        let _ = writeln!(
            out,
            "<text class=\"x name\" x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"name\" x=\"2\" y=\"10\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 4.0,
            escape(self.x.name),
            escape(self.y.name)
        );
    }
}

/// The values of an axis, from end to end.
struct Range {
    scale: Scale,
    from: f64,
    to: f64,
}

impl Range {
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Option<Range> {
        let (least, most) = values
            .filter(|value| value.is_finite() && (scale != Scale::Log || *value > 0.0))
            .fold((f64::MAX, f64::MIN), |(least, most), value| {
                (least.min(value), most.max(value))
            });
        if least > most {
            return None;
        }
        Some(match scale {
            Scale::Linear => {
                let step = step(most.max(f64::MIN_POSITIVE));
                let to = (most / step).ceil().max(1.0) * step;
                Range {
                    scale,
                    from: 0.0,
                    to,
                }
            }
            Scale::Whole => Range {
                scale,
                from: 0.0,
                to: most.max(1.0),
            },
            Scale::Log => {
                let (from, to) = (least.log10().floor(), most.log10().ceil());
                Range {
                    scale,
                    from,
                    to: to.max(from + 1.0),
                }
            }
        })
    }

    /// 0 at one end, 1 at the other.
    fn share(&self, value: f64) -> f64 {
        let at = match self.scale {
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Linear | Scale::Whole => value,
        };
        ((at - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        let step = match self.scale {
            Scale::Linear => step(self.to),
            Scale::Whole | Scale::Log => step(self.to - self.from).ceil().max(1.0),
        };
        // Rounded up first, so that the last mark is not lost to a fraction.
        let count = ((self.to - self.from) / step + 1e-9).floor() as u32;
        let value = |n: u32| self.from + f64::from(n) * step;
        let all = (0..=count).map(value);
        match self.scale {
            Scale::Log => all.map(|power| 10f64.powf(power)).collect(),
            Scale::Linear | Scale::Whole => all.collect(),
        }
    }
}

/// A round distance between marks: 1, 2 or 5 times a power of ten.
fn step(length: f64) -> f64 {
    let rough = length / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let part = rough / power;
    let round = match part {
        ..=1.0 => 1.0,
        ..=2.0 => 2.0,
        ..=5.0 => 5.0,
        _ => 10.0,
    };
    round * power
}

/// For text and attributes of a page.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_cover_the_values() {
        let range = |scale, most| Range::of(scale, [most / 3.0, most].into_iter()).expect("values");
        assert_eq!(
            range(Scale::Linear, 9.3).ticks(),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        );
        assert_eq!(range(Scale::Log, 4_000.0).ticks(), [1e3, 1e4]);
        assert_eq!(range(Scale::Whole, 3.2).ticks(), [0.0, 1.0, 2.0, 3.0]);
        assert!(Range::of(Scale::Log, [0.0].into_iter()).is_none());
    }

    #[test]
    fn a_point_lies_where_its_values_say() {
        let show = |value: f64| value.to_string();
        let axis = |name| Axis {
            name,
            scale: Scale::Linear,
            show: &show,
        };
        let chart = Chart {
            title: "a <title>".into(),
            x: axis("x"),
            y: axis("y"),
            lines: vec![Line {
                name: "line".into(),
                points: vec![(0.0, 0.0), (10.0, 5.0)],
            }],
        };
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let drawn = chart.render();
        let expected = format!("points=\"{LEFT:.1},{bottom:.1} {right:.1},{TOP:.1}\"");
        assert!(drawn.contains(&expected), "{expected} is not in {drawn}");
        assert!(drawn.contains("a &lt;title&gt;") && !drawn.contains("<title>"));
    }
}
