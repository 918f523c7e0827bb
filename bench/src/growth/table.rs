//! Growth as Markdown: a table for each axis, and what of it is straight.

use std::fmt;

use super::figure::number;
use super::judge::{LIMIT, Verdict};
use super::report::{Line, Report};
use super::{Axis, Figures};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "Medians of {} rounds; loads of {} s, {} × the usual rates; {} worker(s) in relay and agent each, io {}, datagrams of {} bytes.",
            self.rounds, self.seconds, self.share, self.workers, self.io, self.mtu_max
        )?;
        for trouble in &self.busy {
            writeln!(f, "Not quiet: {trouble}.")?;
        }
        for axis in [Axis::Flows, Axis::Hycos, Axis::Agents] {
            let lines: Vec<&Line> = self.lines.iter().filter(|line| line.axis == axis).collect();
            write_axis(f, axis, &lines)?;
        }
        let is_judged = |line: &Line| line.verdict != Verdict::NotJudged;
        let steep: Vec<String> = self.steep().map(named).collect();
        if !self.lines.iter().any(is_judged) {
            writeln!(
                f,
                "\nNothing is judged: that takes a count and one of at most an eighth of it."
            )?;
        } else if steep.is_empty() {
            writeln!(
                f,
                "\nAll that is judged grows in straight lines: a unit costs at the largest count at most {LIMIT} × what it costs at a tenth of it, beyond fixed cost."
            )?;
        } else {
            writeln!(f, "\nNot straight: {}.", steep.join("; "))?;
        }
        for failure in &self.failures {
            writeln!(f, "\nFailed: {failure}")?;
        }
        Ok(())
    }
}

fn write_axis(f: &mut fmt::Formatter<'_>, axis: Axis, lines: &[&Line]) -> fmt::Result {
    let mut counts: Vec<usize> = lines
        .iter()
        .flat_map(|line| line.points.iter().map(|point| point.count))
        .collect();
    counts.sort_unstable();
    counts.dedup();
    if counts.is_empty() {
        return Ok(());
    }
    write!(f, "\n| {axis} | of | unit |")?;
    for count in &counts {
        write!(f, " {count} |")?;
    }
    write!(f, " |\n|---|---|---|")?;
    for _ in &counts {
        write!(f, "---|")?;
    }
    writeln!(f, "---|")?;
    for line in lines {
        let (kind, of) = (line.kind.title(), line.of.name());
        write!(f, "| {kind} | {of} | {} |", line.unit)?;
        for count in &counts {
            let point = line.points.iter().find(|point| point.count == *count);
            let told = point.map(|point| number(point.spread.median));
            write!(f, " {} |", told.unwrap_or_default())?;
        }
        writeln!(f, " {} |", line.verdict)?;
    }
    Ok(())
}

fn named(line: &Line) -> String {
    let (kind, of, axis) = (line.kind.title(), line.of.name(), line.axis);
    format!("{kind} ({of}) with {axis}: {}", line.verdict)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Straight { ratio: Some(ratio) } => write!(f, "straight, × {ratio:.2}"),
            Verdict::Straight { ratio: None } => f.write_str("does not grow"),
            Verdict::Steep { ratio } => write!(f, "**× {ratio:.2}**"),
            Verdict::NotJudged => Ok(()),
        }
    }
}

/// One count's outcome on a line.
pub(super) fn told(outcome: &Result<Figures, String>) -> String {
    let figures = match outcome {
        Ok(figures) => figures,
        Err(why) => return format!("failed: {why}"),
    };
    let told = figures.iter().map(|(figure, value)| {
        let (kind, of) = (figure.kind, figure.of.name());
        format!("{} ({of}) {} {}", kind.title(), number(*value), kind.unit())
    });
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;

    #[test]
    fn a_line_of_the_table_has_every_count_and_the_judgement() {
        let text = example().to_string();
        for line in [
            "| flows | of | unit | 1 | 10 | 100 | |",
            "| processor time per request | relay | µs | 12.5 | 12.5 | 12.5 | straight, × 1.00 |",
            "| time to open all flows | all | s | 1.00 | 100 | 10000 | **× 10.10** |",
            "Not straight: time to open all flows (all) with flows: **× 10.10**.",
            "Failed: 8000 flows: no",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
