//! Runs the TCP fidelity suite against any tunnel that forwards one address to another, and prints
//! one row each.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use underpass_loadtest::note;
use underpass_tests::fidelity::{self, Options, Tunnel};

/// Checks that a tunnel keeps the exact meaning of TCP. Direct TCP: give both the same address.
#[derive(Parser)]
#[command(name = "fidelity")]
struct Arguments {
    /// Where the tunnel listens for applications.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Where the tunnel connects to: this program listens there.
    #[arg(long, value_name = "ADDR")]
    endpoint: SocketAddr,
    /// A second address of the tunnel, whose endpoint is a name that does not exist.
    #[arg(long, value_name = "ADDR")]
    unknown_name: Option<SocketAddr>,
    /// Less of everything.
    #[arg(long)]
    short: bool,
    /// Only rows whose name contains this; may be given again.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Makes the bytes that are sent.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let Arguments {
        listen,
        endpoint,
        unknown_name,
        short,
        only,
        seed,
    } = Arguments::parse();
    let lengths = if short {
        Options::short()
    } else {
        Options::default()
    };
    let options = Options {
        only,
        seed,
        ..lengths
    };
    let tunnel = Tunnel {
        listen,
        endpoint,
        unknown_name,
        processes: None,
    };
    match fidelity::run(&tunnel, &options) {
        Ok(report) => {
            if let Err(error) = writeln!(io::stdout(), "{report}") {
                note!("error: cannot write to stdout: {error}");
                return ExitCode::FAILURE;
            }
            if report.passed() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            note!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
