//! The command line. Data goes to stdout, talk to stderr; a secret in an argument is refused before
//! anything is parsed.

mod advice;
mod agent;
mod allow;
mod argv;
mod connection;
mod control;
mod desk;
mod dumps;
mod environment;
mod failure;
mod generate;
mod identity;
mod installation;
mod key;
mod options;
mod probe;
mod prompt;
mod relay;
mod reload;
mod sender;
mod source;
mod status;
mod table;
mod up;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use underpass_proto::printable::printable_lines;

use crate::{demo, output};

pub use dumps::DumpArgs;
pub use failure::{Exit, Failure};
pub use options::{DataPlaneArgs, DirArgs, IoChoice};

/// Parses the arguments of the process, runs the command, and says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let code = match run(std::env::args_os().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Told(code)) => code,
        Err(Ended::Failure(failure)) => failure.tell(),
    };
    output::flush();
    code
}

/// Use a TCP service in another network without opening a port there.
#[derive(Parser, Debug)]
#[command(
    name = "underpass",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Cli {
    /// What to log, by level or module: error, warn, info, debug, underpass_dataplane=debug, …
    #[arg(
        long,
        global = true,
        env = "UNDERPASS_LOG",
        value_name = "FILTER",
        default_value = "info",
        display_order = 1000
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Everything on this machine: control, relay, agent and a real service
    Demo(demo::Args),
    /// The demo's service, started by the demo
    #[command(hide = true)]
    DemoService,
    /// Control and relay together, for one machine
    Up(up::Args),
    /// Load definitions and keys from files and feed the relay
    Control(control::Args),
    /// Accept agents and applications, and carry their bytes
    Relay(relay::Args),
    /// The on-premises side
    #[command(subcommand)]
    Agent(agent::Command),
    /// The application's side, where that is not beside the relay
    #[command(subcommand)]
    Sender(sender::Command),
    /// Make, change, show and delete hybrid connections
    #[command(subcommand)]
    Connection(connection::Command),
    /// Regenerate keys
    #[command(subcommand)]
    Key(key::Command),
    /// What control and relay know just now
    Status(status::Args),
    /// Dial an endpoint now, by every agent, and say hop by hop how far it came
    Probe(probe::Args),
    /// Print the completions of a shell
    Completions(generate::CompletionsArgs),
    /// Write the manual pages
    Man(generate::ManArgs),
}

impl Command {
    /// Whether it runs until it is told to end, and so may outlive the reader of its output.
    fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Demo(_)
                | Self::DemoService
                | Self::Up(_)
                | Self::Control(_)
                | Self::Relay(_)
                | Self::Agent(agent::Command::Run(_))
                | Self::Sender(sender::Command::Run(_))
        )
    }

    fn takes_connection_string(&self) -> bool {
        matches!(
            self,
            Self::Agent(agent::Command::Run(_)) | Self::Sender(sender::Command::Run(_))
        )
    }
}

enum Ended {
    /// The parser has said it.
    Told(ExitCode),
    Failure(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

fn run(arguments: Vec<OsString>) -> Result<(), Ended> {
    argv::refuse_secrets(&arguments)?;
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return Err(Ended::Told(ExitCode::from(Exit::Usage as u8)));
        }
        // Help and version are what was asked for.
        Err(text) => return Ok(written(text.print())?),
    };
    environment::leave_behind(cli.command.takes_connection_string())?;
    if cli.command.is_lasting() {
        output::start().map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot start a thread: {error}"))
        })?;
    }
    start_log(&cli.log)?;
    match cli.command {
        Command::Demo(args) => return Err(Ended::Told(demo::run(&args))),
        Command::DemoService => return Err(Ended::Told(demo::service_main())),
        Command::Up(args) => up::run(&args, &cli.log)?,
        Command::Control(args) => control::run(&args)?,
        Command::Relay(args) => relay::run(&args)?,
        Command::Agent(command) => agent::run(command)?,
        Command::Sender(command) => sender::run(command)?,
        Command::Connection(command) => connection::run(command)?,
        Command::Key(command) => key::run(command)?,
        Command::Status(args) => status::run(&args)?,
        Command::Probe(args) => probe::run(&args)?,
        Command::Completions(args) => generate::completions(&args)?,
        Command::Man(args) => generate::man(&args)?,
    }
    Ok(())
}

/// What the crate that watches files may log, unless it is asked for by name.
const QUIET_NOTIFY: &str = "notify=error";

fn start_log(filter: &str) -> Result<(), Failure> {
    let asked = filter;
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::new(Exit::Usage, format!("--log cannot be \"{}\": {error}", filter.escape_default())).hint("write a level, like --log debug, or a module and a level, like --log underpass_dataplane=debug")
    })?;
    // It tells of each watch that it takes off, as if somebody had to act on that.
    let filter = if asked.contains("notify") {
        filter
    } else {
        filter.add_directive(QUIET_NOTIFY.parse().expect("a directive"))
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(failure::colours())
        .fmt_fields(output::Fields)
        .with_writer(output::Log)
        // It would report them on stderr, and panic where that is what cannot be written.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// Writes data to stdout. A reader that closed it wants no more. Text of peers in it changes
/// nothing on a terminal.
fn print(text: &str) -> Result<(), Failure> {
    let text = printable_lines(text);
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Failed,
            format!("cannot write to stdout: {error}"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_takes_a_connection_string_and_lasts() {
        for role in ["agent", "sender"] {
            for (line, runs) in [
                (vec!["underpass", role, "run"], true),
                (vec!["underpass", role, "allow", "db.corp:1"], false),
            ] {
                let command = Cli::try_parse_from(&line).unwrap().command;
                assert_eq!(command.takes_connection_string(), runs, "{line:?}");
                assert_eq!(command.is_lasting(), runs, "{line:?}");
            }
        }
    }
}
