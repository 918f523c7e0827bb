//! The works that are measured: a server, a client that tells a rate, and what a unit of the work is.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Deserialize;
use underpass_tests::deadline::MOMENT;
use underpass_tests::process::{Process, free_tcp_address, run_ok};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::program;

/// Flows of the rows with several.
const FLOWS: u64 = 8;

/// Kept connections of the HTTP row.
const CONNECTIONS: u64 = 64;

/// A work.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Row {
    /// iperf3, one flow, application to endpoint.
    Bulk,
    /// iperf3, one flow, endpoint to application.
    BulkReverse,
    /// iperf3, 8 flows, application to endpoint.
    #[value(name = "bulk-8")]
    Bulk8,
    /// wrk, 64 kept connections, small replies of nginx.
    #[value(name = "http-64")]
    Http64,
}

/// What a load came to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Done {
    /// In the row's unit.
    pub rate: f64,
    /// Bytes or requests.
    pub work: f64,
    /// Jain's index, where there are several flows.
    pub fairness: Option<f64>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    _process: Running,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held for as long as it shall run")]
enum Running {
    Iperf(Process),
    Nginx(Nginx),
}

impl Row {
    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Row::Bulk => "bulk",
            Row::BulkReverse => "bulk-reverse",
            Row::Bulk8 => "bulk-8",
            Row::Http64 => "http-64",
        }
    }

    /// In words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Row::Bulk => "bulk, 1 flow",
            Row::BulkReverse => "bulk, 1 flow, reverse",
            Row::Bulk8 => "bulk, 8 flows",
            Row::Http64 => "HTTP, 64 kept connections",
        }
    }

    /// Of the rate.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Row::Http64 => "requests/s",
            _ => "Gbit/s",
        }
    }

    /// Of the cost, which is processor time of relay and agent.
    #[must_use]
    pub fn cost_unit(self) -> &'static str {
        match self {
            Row::Http64 => "µs/request",
            _ => "s/GB",
        }
    }

    /// A rate with as many digits as mean something.
    #[must_use]
    pub fn number(self, rate: f64) -> String {
        match self {
            Row::Http64 => format!("{rate:.0}"),
            _ => format!("{rate:.2}"),
        }
    }

    /// Processor time for each gigabyte (10^9), seconds, or for each request, microseconds.
    #[must_use]
    pub fn cost(self, cpu: Duration, work: f64) -> f64 {
        match self {
            Row::Http64 => cpu.as_secs_f64() * 1e6 / work,
            _ => cpu.as_secs_f64() * 1e9 / work,
        }
    }

    /// The program that makes the load.
    ///
    /// # Errors
    /// It is not installed.
    pub fn client(self) -> Result<PathBuf> {
        match self {
            Row::Http64 => program("wrk", "wrk"),
            _ => program("iperf3", "iperf3"),
        }
    }

    /// Starts the server.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub fn serve(self) -> Result<Server> {
        if self == Row::Http64 {
            let nginx = Nginx::start()?;
            return Ok(Server {
                address: nginx.address,
                _process: Running::Nginx(nginx),
            });
        }
        let address = free_tcp_address();
        let mut command = Command::new(self.client()?);
        command.args(["--server", "--forceflush", "--bind", "127.0.0.1"]);
        command.args(["--port", &address.port().to_string()]);
        let mut process = Process::start("iperf3", &mut command)?;
        process.wait_for_line("Server listening", MOMENT)?;
        Ok(Server {
            address,
            _process: Running::Iperf(process),
        })
    }

    /// Makes the load.
    ///
    /// # Errors
    /// The client fails, or tells of a request or a flow that did.
    pub fn load(self, address: SocketAddr, length: Duration) -> Result<Done> {
        let mut command = Command::new(self.client()?);
        let seconds = length.as_secs().max(1).to_string();
        if self == Row::Http64 {
            let connections = CONNECTIONS.to_string();
            command.args(["--threads", "1", "--connections", &connections]);
            command.args(["--duration", &format!("{seconds}s")]);
            command.arg(format!("http://{address}/small"));
            return told_by_wrk(&run_ok(&mut command, length + MOMENT)?);
        }
        command.args(["--client", &address.ip().to_string(), "--json"]);
        command.args(["--port", &address.port().to_string(), "--time", &seconds]);
        match self {
            Row::BulkReverse => command.arg("--reverse"),
            Row::Bulk8 => command.args(["--parallel", &FLOWS.to_string()]),
            _ => &mut command,
        };
        told_by_iperf(&run_ok(&mut command, length + MOMENT)?)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The part of iperf3's JSON that is read: what the receiving side counted.
#[derive(Deserialize)]
struct Iperf {
    end: IperfEnd,
}

#[derive(Deserialize)]
struct IperfEnd {
    streams: Vec<IperfStream>,
    sum_received: IperfSum,
}

#[derive(Deserialize)]
struct IperfStream {
    receiver: IperfSum,
}

#[derive(Deserialize)]
struct IperfSum {
    bytes: f64,
    bits_per_second: f64,
}

fn told_by_iperf(json: &str) -> Result<Done> {
    let told: Iperf = serde_json::from_str(json).with_context(|| format!("iperf3 says {json}"))?;
    let all = told.end.sum_received;
    ensure!(all.bytes > 0.0, "iperf3 moved nothing");
    let each: Vec<f64> = told
        .end
        .streams
        .iter()
        .map(|stream| stream.receiver.bits_per_second)
        .collect();
    Ok(Done {
        rate: all.bits_per_second / 1e9,
        work: all.bytes,
        fairness: (each.len() > 1).then(|| jain(&each)),
    })
}

/// Jain's index of fairness (DEC-TR-301): (Σx)² / (n Σx²).
fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    sum * sum / (rates.len() as f64 * squares)
}

fn told_by_wrk(text: &str) -> Result<Done> {
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
        .map(|(work, rate)| Done {
            rate,
            work,
            fairness: None,
        })
        .with_context(|| format!("wrk says {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiving_side_of_iperf3_is_what_counts() {
        let json = r#"{"end": {"streams": [
            {"sender": {"bytes": 900, "bits_per_second": 9e9}, "receiver": {"bytes": 300, "bits_per_second": 1e9}},
            {"sender": {"bytes": 900, "bits_per_second": 9e9}, "receiver": {"bytes": 900, "bits_per_second": 3e9}}],
            "sum_sent": {"bytes": 1800, "bits_per_second": 18e9}, "sum_received": {"bytes": 1200, "bits_per_second": 4e9}}}"#;
        let done = told_by_iperf(json).expect("understood");
        assert_eq!(
            (done.rate, done.work, done.fairness),
            (4.0, 1200.0, Some(0.8))
        );
    }

    #[test]
    fn wrk_is_believed_only_without_errors() {
        let text = "  1 threads and 64 connections\n  50000 requests in 2.00s, 12.5MB read\nRequests/sec:  25000.50\nTransfer/sec:      6.25MB\n";
        let done = told_by_wrk(text).expect("understood");
        assert_eq!(
            (done.rate, done.work, done.fairness),
            (25000.5, 50000.0, None)
        );
        for trouble in [
            "  Socket errors: connect 0, read 1, write 0, timeout 0\n",
            "  Non-2xx or 3xx responses: 3\n",
        ] {
            assert!(told_by_wrk(&format!("{text}{trouble}")).is_err());
        }
        assert!(told_by_wrk("").is_err());
    }

    #[test]
    fn cost_is_told_in_the_units_of_the_table() {
        let cpu = Duration::from_secs(3);
        assert_eq!(Row::Bulk.cost(cpu, 2e9), 1.5);
        assert_eq!(Row::Http64.cost(cpu, 100_000.0), 30.0);
    }
}
