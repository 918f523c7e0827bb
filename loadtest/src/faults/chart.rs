//! Recovery times as one SVG picture: a line of dots for each kind of recovery, on a scale of
//! times.

use std::fmt::Write as _;

use super::trial::{Recoveries, RowResult};
use crate::results::escape;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 46.0;
const LINE: f64 = 26.0;
const BOTTOM: f64 = 34.0;

/// Ends of the scale, powers of ten of a millisecond.
const FROM: f64 = 0.0;
const TO: f64 = 5.0;

/// Marks below the scale.
const MARKS: [(f64, &str); 6] = [
    (1.0, "1 ms"),
    (10.0, "10 ms"),
    (100.0, "100 ms"),
    (1e3, "1 s"),
    (1e4, "10 s"),
    (1e5, "100 s"),
];

/// The picture; `None` where nothing was timed.
#[must_use]
pub fn recovery_chart(rows: &[RowResult]) -> Option<String> {
    let lines: Vec<(u8, &Recoveries)> = rows
        .iter()
        .flat_map(|row| {
            row.recoveries
                .iter()
                .map(|recoveries| (row.row, recoveries))
        })
        .filter(|(_, recoveries)| !recoveries.ms.is_empty())
        .collect();
    if lines.is_empty() {
        return None;
    }
    let bottom = TOP + LINE * lines.len() as f64;
    let height = bottom + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" fill=\"#222\">Times to recover: a dot for each round, a red mark for the bar</text>\n"
    );
    for (ms, name) in MARKS {
        let x = place(ms);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{name}</text>",
            bottom + 18.0
        );
    }
    for (nth, (row, recoveries)) in lines.iter().enumerate() {
        draw(&mut out, TOP + LINE * (nth as f64 + 0.5), *row, recoveries);
    }
    out.push_str("</svg>\n");
    Some(out)
}

fn draw(out: &mut String, y: f64, row: u8, recoveries: &Recoveries) {
    let name = escape(&format!("{row}  {}", recoveries.name));
    let below = y + 4.0;
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{below:.1}\" text-anchor=\"end\" fill=\"#222\">{name}</text>",
        LEFT - 12.0
    );
    if let Some(bar) = recoveries.bar_ms {
        let x = place(bar);
        let (top, end) = (y - 9.0, y + 9.0);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{end:.1}\" stroke=\"#c22\" stroke-width=\"2\"/>"
        );
    }
    for ms in &recoveries.ms {
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#2563ae\" fill-opacity=\"0.45\"/>",
            place(*ms)
        );
    }
    let longest = recoveries.ms.iter().copied().fold(0.0, f64::max);
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{below:.1}\" fill=\"#555\">max {longest:.0} ms</text>",
        WIDTH - RIGHT + 10.0
    );
}

fn place(ms: f64) -> f64 {
    let share = (ms.max(1.0).log10() - FROM) / (TO - FROM);
    LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_where_the_scale_says() {
        assert_eq!(place(1.0), LEFT);
        assert_eq!(place(1e5), WIDTH - RIGHT);
        let middle = place(10f64.powf(2.5));
        assert!(
            (middle - (LEFT + WIDTH - RIGHT) / 2.0).abs() < 0.1,
            "{middle}"
        );
    }
}
