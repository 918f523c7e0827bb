//! Small replies of nginx, asked for by wrk.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use underpass_tests::deadline::MOMENT;
use underpass_tests::process::run_ok;
use underpass_tests::servers::nginx::Nginx;

use super::{Done, Running, Server};
use crate::peers::tools::{self, Missing};

/// How wrk asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Requests under way at once.
    connections: u16,
    /// Whether a connection serves one request only.
    new_each: bool,
}

impl Shape {
    pub(super) const KEPT: Shape = Shape {
        connections: 64,
        new_each: false,
    };
    pub(super) const NEW: Shape = Shape {
        connections: 16,
        new_each: true,
    };
}

pub(super) fn check_installed() -> Result<(), Missing> {
    tools::packaged("nginx", "nginx")?;
    tools::packaged("wrk", "wrk").map(drop)
}

pub(super) fn serve() -> Result<Server> {
    let nginx = Nginx::start()?;
    Ok(Server {
        address: nginx.address,
        running: Running::Nginx(nginx),
    })
}

pub(super) fn load(shape: Shape, address: SocketAddr, length: Duration) -> Result<Done> {
    let mut command = Command::new("wrk");
    command.args(["--threads", "1"]);
    command.args(["--connections", &shape.connections.to_string()]);
    command.args(["--duration", &format!("{}s", length.as_secs().max(1))]);
    if shape.new_each {
        command.args(["--header", "Connection: close"]);
    }
    command.arg(format!("http://{address}/small"));
    told(&run_ok(&mut command, length + MOMENT)?)
}

fn told(text: &str) -> Result<Done> {
    // It speaks of errors only when there were some.
    let erred = ["Socket errors", "Non-2xx"];
    ensure!(!erred.iter().any(|words| text.contains(words)), "{text}");
    let number = |line_with: &str, at: usize| {
        text.lines()
            .find(|line| line.contains(line_with))?
            .split_whitespace()
            .nth(at)?
            .parse::<f64>()
            .ok()
    };
    let work = number(" requests in ", 0);
    let rate = number("Requests/sec:", 1);
    work.zip(rate)
        .filter(|(work, _)| *work > 0.0)
        .map(|(work, rate)| Done::rate(rate, work))
        .with_context(|| format!("wrk says {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::measure::Measure;

    #[test]
    fn wrk_is_believed_only_without_errors() {
        let text = "  1 threads and 64 connections\n  50000 requests in 2.00s, 12.5MB read\nRequests/sec:  25000.50\nTransfer/sec:      6.25MB\n";
        let done = told(text).expect("understood");
        assert_eq!(
            (done.figures[&Measure::Rate], done.work),
            (25000.5, 50000.0)
        );
        for trouble in [
            "  Socket errors: connect 0, read 1, write 0, timeout 0\n",
            "  Non-2xx or 3xx responses: 3\n",
        ] {
            assert!(told(&format!("{text}{trouble}")).is_err());
        }
        assert!(told("").is_err());
    }
}
