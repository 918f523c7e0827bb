//! `report`: results of earlier runs beside each other, as a page.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use underpass_loadtest::results::{RUNS_MAX, Run, to_html};
use underpass_loadtest::scenario::Outcome;

/// Largest result that is read, bytes: a day of many groups.
const FILE_MAX: u64 = 1 << 30;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Results that `run --json` has written. The first is what the others are compared with; their
    /// file names are their names.
    #[arg(required = true, value_name = "JSON")]
    results: Vec<PathBuf>,
    /// The page to write.
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
}

/// Reads them and writes the page.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.results.len() > RUNS_MAX {
        bail!(
            "{} results on one page\nhint: at most {RUNS_MAX} can be told apart",
            args.results.len()
        );
    }
    let outcomes: Vec<Outcome> = args
        .results
        .iter()
        .map(|path| read(path))
        .collect::<Result<_, _>>()?;
    let runs: Vec<Run<'_>> = (args.results.iter().zip(&outcomes))
        .map(|(path, outcome)| Run {
            label: label(path, &args.results),
            outcome,
        })
        .collect();
    write_file(&args.html, &to_html(&runs))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a result.
pub(crate) fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The file's name alone where that is clear.
fn label(path: &Path, all: &[PathBuf]) -> String {
    let stem = |path: &Path| {
        path.file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
    };
    let own = stem(path);
    if all.iter().filter(|other| stem(other) == own).count() > 1 {
        return path.display().to_string();
    }
    own.unwrap_or_default()
}

fn read(path: &Path) -> anyhow::Result<Outcome> {
    let name = path.display();
    let len = std::fs::metadata(path)
        .with_context(|| format!("cannot read {name}"))?
        .len();
    if len > FILE_MAX {
        bail!("{name}: {len} bytes are no result (at most {FILE_MAX})");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    serde_json::from_str(&text).map_err(|error| {
        anyhow::anyhow!("{name}: no result of a run: {error}\nhint: give files that `underpass-loadtest run --json FILE` has written")
    })
}
