//! A report as Markdown.

use std::fmt;

use super::{Line, Report};
use crate::peers::measure::{Measure, with_unit};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "{} interleaved rounds of {} s, {} workers in relay and agent each, {} threads in those of `stock`. Figures: median (smallest to largest). Ratios: medians of the rounds' ratios of the first figure; `stock` with datagrams of the same size. Fairness: Jain's index. The rest is of all processes of the tunnel: processor time, peak of memory, context switches, datagrams dropped.",
            self.rounds_told(),
            self.seconds,
            self.workers,
            self.threads
        )?;
        for trouble in &self.busy {
            writeln!(f, "Not quiet: {trouble}.")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "Skipped: {skipped}.")?;
        }
        writeln!(
            f,
            "\n| work | way | figures | × stock | × direct | fairness | CPU | memory | switches | drops |\n|---|---|---|---|---|---|---|---|---|---|"
        )?;
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        if !self.bars.is_empty() {
            writeln!(
                f,
                "\n| work | way | bar | measured | |\n|---|---|---|---|---|"
            )?;
        }
        for bar in &self.bars {
            writeln!(f, "{bar}")?;
        }
        for failure in &self.failures {
            writeln!(f, "\nFailed: {failure}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.row.measures().iter().filter_map(|measure| {
            let taken = self.figures.get(measure)?;
            let number = |figure| measure.number(figure);
            let spread = taken.spread;
            let (min, max) = (number(spread.min), number(spread.max));
            let number = format!("{} ({min} to {max})", number(spread.median));
            Some(measure.named(&with_unit(&number, &taken.unit)))
        });
        let figures: Vec<String> = figures.collect();
        let median = |measure: Measure| {
            let taken = self.figures.get(&measure)?;
            Some(with_unit(&measure.number(taken.spread.median), &taken.unit))
        };
        let ratio = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.2}"));
        let cells = [
            Some(figures.join("; ")),
            ratio(self.to_stock),
            ratio(self.to_direct),
            median(Measure::Fairness),
            median(Measure::Cost),
            median(Measure::PeakRss),
            median(Measure::Switches),
            median(Measure::UdpDrops),
        ];
        write!(f, "| {} | {} |", self.row.title(), self.way)?;
        for cell in cells {
            write!(f, " {} |", cell.unwrap_or_default())?;
        }
        Ok(())
    }
}
