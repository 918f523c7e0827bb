//! SQL: pgbench's select-only work on one PostgreSQL, which serves the whole run.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use underpass_tests::deadline::MOMENT;
use underpass_tests::process::run_ok;
use underpass_tests::servers::postgres::{self, Postgres};

use super::Done;
use crate::peers::tools::{self, Missing};

/// Connections.
const CLIENTS: &str = "8";

/// Tables of 100,000 rows for each: all of them fit the server's default buffers.
const SCALE: &str = "5";

pub(super) fn check_installed() -> Result<(), Missing> {
    let missing = |name: &str| Missing {
        what: format!("{name} is not installed"),
        install: Some("apt-get install postgresql postgresql-contrib".into()),
    };
    for name in ["postgres", "pgbench"] {
        postgres::server_program(name).map_err(|_| missing(name))?;
    }
    if rustix::process::getuid().is_root() {
        tools::packaged("nsenter", "util-linux")?;
    }
    Ok(())
}

/// A server with pgbench's tables.
pub(super) fn prepare() -> Result<Postgres> {
    let server = Postgres::start()?;
    let mut command = postgres::client("pgbench", server.address)?;
    command.args(["--initialize", "--quiet", "--scale", SCALE]);
    run_ok(&mut command, MOMENT)?;
    Ok(server)
}

pub(super) fn load(address: SocketAddr, length: Duration) -> Result<Done> {
    let mut command = postgres::client("pgbench", address)?;
    command.args(["--select-only", "--no-vacuum", "--protocol=prepared"]);
    command.args(["--client", CLIENTS, "--jobs", "1"]);
    command.args(["--time", &length.as_secs().max(1).to_string()]);
    told(&run_ok(&mut command, length + MOMENT)?)
}

fn told(text: &str) -> Result<Done> {
    let number = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    let failed = number("number of failed transactions: ");
    ensure!(failed.is_none_or(|failed| failed == 0.0), "{text}");
    let work = number("number of transactions actually processed: ");
    let rate = number("tps = ");
    work.zip(rate)
        .filter(|(work, _)| *work > 0.0)
        .map(|(work, rate)| Done::rate(rate, work))
        .with_context(|| format!("pgbench says {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::measure::Measure;

    const TEXT: &str = "transaction type: <builtin: select only>\nnumber of transactions actually processed: 3000\nnumber of failed transactions: 0 (0.000%)\nlatency average = 0.2 ms\ninitial connection time = 9.1 ms\ntps = 1000.25 (without initial connection time)\n";

    #[test]
    fn transactions_are_counted_without_the_time_to_connect() {
        let done = told(TEXT).expect("understood");
        assert_eq!((done.figures[&Measure::Rate], done.work), (1000.25, 3000.0));
    }

    #[test]
    fn failed_transactions_are_no_figure() {
        let failed = TEXT.replace(": 0 (0.000%)", ": 7 (0.2%)");
        assert!(told(&failed).is_err());
        assert!(told("").is_err());
    }
}
