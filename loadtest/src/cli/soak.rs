//! `soak`: harm by chance for a long time, and what the processes take meanwhile.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use underpass_loadtest::faults::{self, Length};
use underpass_loadtest::units::duration;

use super::faults::Subject;
use super::report::write_file;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// For how long: 10m, 1h.
    #[arg(long = "for", value_name = "TIME", value_parser = duration, default_value = "1h")]
    length: Duration,
    #[command(flatten)]
    subject: Subject,
    /// Write everything that was done and measured as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write memory and open files as a picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Runs it and prints what came of it.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let settings = args.subject.settings(Length::Nightly)?;
    underpass_loadtest::note!("seed {}, {:?}", settings.seed, args.length);
    let soak = faults::soak(&settings, args.length);
    if let Some(path) = &args.json {
        write_file(path, &serde_json::to_string_pretty(&soak)?)?;
    }
    if let Some(path) = &args.svg {
        write_file(path, &soak.chart())?;
    }
    write!(std::io::stdout(), "{soak}")?;
    Ok(if soak.result.held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
