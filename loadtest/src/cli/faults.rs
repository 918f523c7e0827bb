//! `faults`: the fault table, against the product's program.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use underpass_loadtest::faults::{self, ELSEWHERE, Length, ROWS, Row, Settings, recovery_chart};
use underpass_loadtest::stand::installation::{Io, binary};

use super::report::write_file;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rows by number: 1,2,6-10. Without it, all.
    #[arg(long, value_name = "N,N-N,…", value_parser = rows)]
    rows: Option<Rows>,
    /// List the rows and what must hold.
    #[arg(long)]
    list: bool,
    /// How much of each row.
    #[arg(long, value_enum, default_value = "ten-minutes")]
    length: Length,
    #[command(flatten)]
    subject: Subject,
    /// Write everything that was done and measured as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the times to recover as a picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What is tried, and by which chances.
#[derive(clap::Args)]
pub(super) struct Subject {
    /// Seed of all chances; without it a random one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// The product's program; without it the one beside this program.
    #[arg(long, value_name = "PATH")]
    underpass: Option<PathBuf>,
    /// Backend of relay and agents.
    #[arg(long, value_enum, default_value = "auto")]
    io: Backend,
    /// Workers of relay and agents.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=255))]
    workers: u16,
    /// Do not tell each fault on stderr as it is done.
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    Auto,
    Ring,
    Poll,
}

/// Runs them and prints the table.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut stdout = std::io::stdout();
    if args.list {
        for row in ROWS {
            writeln!(stdout, "{:>2}  {}: {}", row.number, row.name, row.holds)?;
        }
        for row in ELSEWHERE {
            writeln!(
                stdout,
                "{:>2}  {}: by tests: {}",
                row.number, row.name, row.by
            )?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let settings = args.subject.settings(args.length)?;
    let all = ROWS.iter().collect();
    let rows = args.rows.as_ref().map_or(all, |rows| rows.0.clone());
    let told = |row: &faults::RowResult| {
        if settings.talk {
            let _ = write!(std::io::stderr(), "{row}");
        }
    };
    underpass_loadtest::note!("seed {}, {} rows", settings.seed, rows.len());
    let outcome = faults::run(&settings, &rows, told);
    if let Some(path) = &args.json {
        write_file(path, &serde_json::to_string_pretty(&outcome)?)?;
    }
    if let Some(path) = &args.svg {
        match recovery_chart(&outcome.rows) {
            Some(picture) => write_file(path, &picture)?,
            None => underpass_loadtest::note!(
                "no recovery was timed: {} is not written",
                path.display()
            ),
        }
    }
    write!(stdout, "{outcome}")?;
    Ok(if outcome.held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Subject {
    /// How a run of this length is made.
    pub(super) fn settings(&self, length: Length) -> anyhow::Result<Settings> {
        let underpass = match &self.underpass {
            Some(path) if !path.is_file() => {
                bail!(
                    "{} is no file\nhint: give the program `underpass` by --underpass",
                    path.display()
                )
            }
            Some(path) => path.clone(),
            None => binary().context("no product to test\nhint: name it by --underpass PATH")?,
        };
        Ok(Settings {
            underpass,
            own: std::env::current_exe().context("cannot find this program's own file")?,
            seed: self.seed.unwrap_or_else(rand::random),
            length,
            io: match self.io {
                Backend::Auto => Io::Auto,
                Backend::Ring => Io::Ring,
                Backend::Poll => Io::Poll,
            },
            workers: self.workers,
            talk: !self.quiet,
        })
    }
}

/// Rows that were asked for.
#[derive(Clone)]
struct Rows(Vec<&'static Row>);

fn rows(text: &str) -> Result<Rows, String> {
    let number = |text: &str| {
        let wrong = |_| format!("{text:?} is no row: write 1,2,6-10");
        text.trim().parse::<u8>().map_err(wrong)
    };
    let mut rows = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (number(from)?, number(to)?);
        let found: Vec<&Row> = (from..=to).filter_map(Row::numbered).collect();
        if found.is_empty() {
            let elsewhere = ELSEWHERE.iter().find(|row| row.number == from);
            return Err(match elsewhere {
                Some(row) => format!("row {from} is shown by tests: {}", row.by),
                None => format!("there is no row {part}: --list shows them"),
            });
        }
        rows.extend(found);
    }
    Ok(Rows(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbers_and_ranges() {
        let numbers =
            |text| rows(text).map(|rows| rows.0.iter().map(|row| row.number).collect::<Vec<_>>());
        assert_eq!(numbers("1,2-3"), Ok(vec![1, 2, 3]));
        assert!(numbers("16").is_err_and(|told| told.contains("by tests")));
        assert!(numbers("99").is_err() && numbers("x").is_err() && numbers("").is_err());
    }
}
