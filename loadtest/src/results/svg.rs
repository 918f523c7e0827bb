//! Line charts as SVG, to be put into a page: no script, no font, colours from the page's style
//! sheet.

use std::fmt::Write;

/// Size of a chart, and of the room around its lines, in its own units.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 28.0;
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
    /// Of x written below, of y beside the title.
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
        let title = match self.y.name {
            "" => escape(&self.title),
            unit => escape(&format!("{}, {unit}", self.title)),
        };
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
            "<text class=\"x\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 4.0,
            escape(self.x.name)
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
                let marks = marks(least / 5.0, most * 5.0);
                let below = marks.iter().rfind(|mark| **mark <= least);
                let above = marks.iter().find(|mark| **mark >= most && **mark > least);
                let (from, to) = (below.copied()?.log10(), above.copied()?.log10());
                Range { scale, from, to }
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
        let length = self.to - self.from;
        let step = match self.scale {
            Scale::Linear => step(length),
            Scale::Whole => step(length).ceil().max(1.0),
            Scale::Log => {
                let all = marks(10f64.powf(self.from), 10f64.powf(self.to));
                let is_power = |mark: &f64| (mark.log10() - mark.log10().round()).abs() < 1e-6;
                let few = length < 1.5; // Else the powers of ten are enough.
                return all
                    .into_iter()
                    .filter(|mark| few || is_power(mark))
                    .collect();
            }
        };
        // Rounded up first, so that the last mark is not lost to a fraction.
        let count = (length / step + 1e-9).floor() as u32;
        (0..=count)
            .map(|n| self.from + f64::from(n) * step)
            .collect()
    }
}

/// 1, 2 and 5 times the powers of ten between these, both included.
fn marks(from: f64, to: f64) -> Vec<f64> {
    let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
    powers
        .flat_map(|power| [1.0, 2.0, 5.0].map(|part| part * 10f64.powi(power)))
        .filter(|mark| (from * 0.999_999..=to * 1.000_001).contains(mark))
        .collect()
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
pub fn escape(text: &str) -> String {
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
        assert_eq!(range(Scale::Log, 4_000.0).ticks(), [1e3, 2e3, 5e3]);
        let wide = Range::of(Scale::Log, [3.0, 40_000.0].into_iter()).expect("values");
        assert_eq!(wide.ticks(), [10.0, 100.0, 1e3, 1e4]);
        let alone = Range::of(Scale::Log, [100.0].into_iter()).expect("a value");
        assert_eq!(alone.ticks(), [100.0, 200.0]);
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
            y: axis(""),
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
