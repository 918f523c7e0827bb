//! `faulty`: an endpoint that is at fault, until a signal.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use underpass_loadtest::endpoint::faulty::{Faulty, Ill};

use super::endpoint::wait_for_signal;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is wrong with it.
    #[arg(value_enum)]
    ill: Ill,
    /// Its address; port 0 picks a free one. It is printed on stdout as one line of JSON.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Seed of the bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Serves until a signal, and says what it has seen.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let endpoint = Faulty::start(args.listen, args.ill, args.seed)
        .with_context(|| format!("cannot be an endpoint on {}", args.listen))?;
    let mut stdout = std::io::stdout();
    writeln!(
        stdout,
        "{}",
        serde_json::json!({ "listen": endpoint.address(), "ill": args.ill })
    )?;
    stdout.flush()?;
    wait_for_signal()?;
    writeln!(stdout, "{}", serde_json::to_string(&endpoint.seen())?)?;
    Ok(ExitCode::SUCCESS)
}
