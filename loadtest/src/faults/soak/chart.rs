//! Memory and open files over time, as one SVG picture: a panel for each, a line for each process.

use std::fmt::Write as _;

use super::{Look, PROCESSES};
use crate::stand::usage::Taken;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 46.0;
const PANEL: f64 = 170.0;
const GAP: f64 = 56.0;
const BOTTOM: f64 = 34.0;

/// One for each process.
const COLOURS: [&str; 4] = ["#2563ae", "#c2410c", "#15803d", "#7e22ce"];

/// Marks on the scale of values, and of time.
const MARKS: u32 = 4;

/// The picture.
pub(super) fn draw(looks: &[Look]) -> String {
    let height = TOP + 2.0 * PANEL + GAP + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    let length = looks.last().map_or(1.0, |look| look.at).max(1.0);
    let memory = |taken: &Taken| taken.memory as f64 / 1e6;
    let files = |taken: &Taken| taken.files as f64;
    panel(&mut out, looks, length, (TOP, "Memory, MB"), memory);
    panel(
        &mut out,
        looks,
        length,
        (TOP + PANEL + GAP, "Open files"),
        files,
    );
    out.push_str("</svg>\n");
    out
}

fn panel(
    out: &mut String,
    looks: &[Look],
    length: f64,
    (top, title): (f64, &str),
    value: impl Fn(&Taken) -> f64,
) {
    let all = looks.iter().flat_map(|look| &look.processes);
    let most = nice(all.map(&value).fold(1.0, f64::max));
    let bottom = top + PANEL;
    let _ = writeln!(
        out,
        "<text x=\"12\" y=\"{:.1}\" font-size=\"15\" fill=\"#222\">{title}</text>",
        top - 18.0
    );
    scales(out, top, most, length);
    for (nth, (name, colour)) in PROCESSES.iter().zip(COLOURS).enumerate() {
        let mut points = String::new();
        for look in looks {
            let x = LEFT + look.at / length * (WIDTH - LEFT - RIGHT);
            let y = bottom - value(&look.processes[nth]) / most * PANEL;
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let key = top + 16.0 * (nth as f64 + 1.0);
        let x = WIDTH - RIGHT + 12.0;
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <text x=\"{x:.1}\" y=\"{key:.1}\" fill=\"{colour}\">{name}</text>",
            points.trim_end()
        );
    }
}

fn scales(out: &mut String, top: f64, most: f64, length: f64) {
    let (bottom, right) = (top + PANEL, WIDTH - RIGHT);
    for nth in 0..=MARKS {
        let share = f64::from(nth) / f64::from(MARKS);
        let y = bottom - share * PANEL;
        let x = LEFT + share * (right - LEFT);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{:.0} min</text>",
            LEFT - 8.0,
            y + 4.0,
            share * most,
            bottom + 18.0,
            share * length / 60.0
        );
    }
}

/// The next larger of 4, 8, 20, 40, 80, 200, …: four marks fall on whole numbers.
fn nice(value: f64) -> f64 {
    let mut scale = 4.0;
    loop {
        for factor in [1.0, 2.0, 5.0] {
            if value <= scale * factor {
                return scale * factor;
            }
        }
        scale *= 10.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::soak::tests::looks;

    #[test]
    fn a_scale_ends_above_what_it_shows() {
        assert_eq!(
            [1.0, 4.0, 4.1, 21.0, 300.0].map(nice),
            [4.0, 4.0, 8.0, 40.0, 400.0]
        );
    }

    #[test]
    fn there_is_a_line_for_each_process_in_both_panels() {
        let picture = draw(&looks(10, |nth| 4_000_000 + nth as u64));
        assert_eq!(picture.matches("<polyline").count(), 2 * PROCESSES.len());
        assert!(picture.contains("9 min") && picture.ends_with("</svg>\n"));
    }
}
