//! `scenarios`: what is built in.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use underpass_loadtest::scenario::builtin;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print the file of one: a start for your own.
    Show {
        /// Its name.
        name: String,
    },
}

/// Lists them, or shows one.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut stdout = std::io::stdout();
    match &args.command {
        None => {
            for (name, _) in builtin::ALL {
                let about = builtin::scenario(name).map(|scenario| scenario.about);
                writeln!(stdout, "{name:<16} {}", about.unwrap_or_default())?;
            }
        }
        Some(Command::Show { name }) => match builtin::text(name) {
            Some(text) => write!(stdout, "{text}")?,
            None => bail!(
                "no scenario {name} is built in\nhint: `underpass-loadtest scenarios` lists those that are"
            ),
        },
    }
    Ok(ExitCode::SUCCESS)
}
