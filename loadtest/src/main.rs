//! The load generator's command line. Data on stdout, talk and progress on stderr.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load for TCP services and for whatever lies on the way to them: every byte checked, latency
/// without coordinated omission.
///
/// Exit codes: 0 all was right, 1 a call or a flow was not, 2 it could not be run.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario: a file, or one that is built in.
    Run(cli::run::Args),
    /// List the scenarios that are built in, or show one.
    Scenarios(cli::scenarios::Args),
    /// Put the results of runs beside each other on a page.
    Report(cli::report::Args),
    /// Be the far end of calls and flows, until a signal.
    Endpoint(cli::endpoint::Args),
    /// Open verified flows, each of a size or until a time, and say what came of them.
    Flows(cli::flows::Args),
    /// Be an endpoint that is at fault, until a signal.
    Faulty(cli::faulty::Args),
    /// Be a bad network between two UDP addresses, until a signal.
    Impair(Box<cli::impair::Args>),
    /// Do harm to Underpass in every way of its fault table, and say what came of it.
    Faults(cli::faults::Args),
    /// Do harm to Underpass by chance for a long time, and say whether it grows.
    Soak(cli::soak::Args),
    /// Become another program that may not use io_uring.
    #[command(hide = true)]
    WithoutIoUring(cli::sandbox::Args),
    /// One process of a run that is split over several.
    #[command(name = cli::processes::COMMAND, hide = true)]
    Part,
}

fn main() -> ExitCode {
    underpass_loadtest::raise_file_limit();
    let result = match Cli::parse().command {
        Command::Run(args) => cli::run::run(&args),
        Command::Scenarios(args) => cli::scenarios::run(&args),
        Command::Report(args) => cli::report::run(&args),
        Command::Endpoint(args) => cli::endpoint::run(&args),
        Command::Flows(args) => cli::flows::run(&args),
        Command::Faulty(args) => cli::faulty::run(&args),
        Command::Impair(args) => cli::impair::run(&args),
        Command::Faults(args) => cli::faults::run(&args),
        Command::Soak(args) => cli::soak::run(&args),
        Command::WithoutIoUring(args) => cli::sandbox::run(&args),
        Command::Part => cli::processes::part(),
    };
    result.unwrap_or_else(|error| {
        underpass_loadtest::note!("error: {error:#}");
        ExitCode::from(2)
    })
}
