//! Goodput by loss as a picture: a line for each way, rates on a scale of powers of ten.

use std::fmt::Write as _;

use super::Report;
use crate::svg::escaped;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 46.0;

/// The least rate that is drawn, Mbit/s; below it a line runs along the bottom.
const LEAST: f64 = 0.1;

const COLOURS: [&str; 6] = [
    "#9aa5b1", "#b8860b", "#c2553b", "#8a4fa3", "#2f8f68", "#2563ae",
];

pub(super) fn draw(report: &Report) -> String {
    let mut losses: Vec<u32> = report.points.iter().map(|point| point.per_mille).collect();
    losses.sort_unstable();
    losses.dedup();
    let right = WIDTH - RIGHT;
    let bottom = HEIGHT - BOTTOM;
    let across = |per_mille: u32| {
        let nth = losses
            .iter()
            .position(|&loss| loss == per_mille)
            .unwrap_or(0);
        let last = losses.len().saturating_sub(1).max(1);
        LEFT + (right - LEFT) * nth as f64 / last as f64
    };
    let most = f64::from(report.rate_mbit).max(1.0);
    let up = |mbit: f64| {
        let share = (mbit.max(LEAST) / LEAST).log10() / (most / LEAST).log10();
        bottom - share.clamp(0.0, 1.0) * (bottom - TOP)
    };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" fill=\"#1f2933\">Goodput of four flows over {} Mbit/s that lose packets, Mbit/s</text>\n",
        report.rate_mbit
    );
    let mut mark = LEAST;
    while mark <= most * 1.001 {
        let y = up(mark);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#52606d\">{mark}</text>",
            LEFT - 8.0,
            y + 4.0
        );
        mark *= 10.0;
    }
    for &loss in &losses {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#52606d\">{} %</text>",
            across(loss),
            bottom + 18.0,
            f64::from(loss) / 10.0
        );
    }
    for (way, colour) in report.ways().into_iter().zip(COLOURS.iter().cycle()) {
        let of_it = report.points.iter().filter(|point| point.way == way);
        let mut points: Vec<(f64, f64)> = of_it
            .map(|point| (across(point.per_mille), up(point.median())))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\" points=\"{}\"/>",
            path.join(" ")
        );
        if let Some((x, y)) = points.last() {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
                x + 8.0,
                y + 4.0,
                escaped(way.name())
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
