//! `endpoint`: the far end of flows and calls, until a signal.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use underpass_loadtest::endpoint::{self, Endpoint, Serves};
use underpass_loadtest::io::Choice;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which flows to serve.
    #[arg(value_enum, default_value_t)]
    serves: Serves,
    /// Address to listen on; port 0 picks a free one. It is printed on stdout as one line of JSON.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How to talk to sockets.
    #[arg(long, value_enum, default_value_t)]
    io: Choice,
}

/// Serves until a signal, and says what it has seen.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Args {
        serves,
        listen,
        threads,
        io,
    } = *args;
    let endpoint = Endpoint::start(endpoint::Settings {
        serves,
        threads,
        io,
        ..endpoint::Settings::new(listen)
    })
    .with_context(|| format!("cannot listen on {listen}"))?;
    let mut stdout = std::io::stdout();
    writeln!(
        stdout,
        "{}",
        serde_json::json!({ "listen": endpoint.address(), "io": endpoint.kind().name() })
    )?;
    stdout.flush()?;
    wait_for_signal()?;
    writeln!(stdout, "{}", serde_json::to_string(&endpoint.stop())?)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn wait_for_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
