//! Bytes in bulk, by iperf3.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use underpass_tests::deadline::MOMENT;
use underpass_tests::process::{Process, free_tcp_address, run_ok};

use super::{Done, Running, Server};
use crate::peers::measure::{Measure, jain};
use crate::peers::site::Site;
use crate::peers::tools::{self, Missing};

/// Flows of the rows with several.
const FLOWS: u16 = 8;

/// How the bytes go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Flows at once.
    pub(super) flows: u16,
    /// From the server to the client.
    pub(super) reverse: bool,
}

impl Shape {
    pub(super) const ONE: Shape = Shape {
        flows: 1,
        reverse: false,
    };
    pub(super) const ONE_REVERSE: Shape = Shape {
        flows: 1,
        reverse: true,
    };
    pub(super) const MANY: Shape = Shape {
        flows: FLOWS,
        reverse: false,
    };
    pub(super) const MANY_REVERSE: Shape = Shape {
        flows: FLOWS,
        reverse: true,
    };
}

pub(super) fn check_installed() -> Result<(), Missing> {
    tools::packaged("iperf3", "iperf3").map(drop)
}

pub(super) fn serve(site: &Site) -> Result<Server> {
    let address = SocketAddr::from((site.server_ip(), free_tcp_address().port()));
    let mut command = site.far("iperf3");
    command.args(["--server", "--forceflush"]);
    command.args(["--bind", &address.ip().to_string()]);
    command.args(["--port", &address.port().to_string()]);
    let mut process = Process::start("iperf3", &mut command)?;
    process.wait_for_line("Server listening", MOMENT)?;
    Ok(Server {
        address,
        running: Running::Process(process),
    })
}

pub(super) fn load(
    site: &Site,
    shape: Shape,
    address: SocketAddr,
    length: Duration,
) -> Result<Done> {
    let mut command = site.near("iperf3");
    command.args(["--client", &address.ip().to_string(), "--json"]);
    command.args(["--port", &address.port().to_string()]);
    command.args(["--time", &length.as_secs().max(1).to_string()]);
    command.args(["--parallel", &shape.flows.to_string()]);
    if shape.reverse {
        command.arg("--reverse");
    }
    told(&run_ok(&mut command, length + MOMENT)?)
}

/// The part of iperf3's JSON that is read: what the receiving side counted.
#[derive(Deserialize)]
struct Told {
    end: End,
}

#[derive(Deserialize)]
struct End {
    streams: Vec<Stream>,
    sum_received: Sum,
}

#[derive(Deserialize)]
struct Stream {
    receiver: Sum,
}

#[derive(Deserialize)]
struct Sum {
    bytes: f64,
    bits_per_second: f64,
}

fn told(json: &str) -> Result<Done> {
    let told: Told = serde_json::from_str(json).with_context(|| format!("iperf3 says {json}"))?;
    let all = told.end.sum_received;
    ensure!(all.bytes > 0.0, "iperf3 moved nothing");
    let each: Vec<f64> = told
        .end
        .streams
        .iter()
        .map(|stream| stream.receiver.bits_per_second)
        .collect();
    let mut done = Done::rate(all.bits_per_second / 1e9, all.bytes);
    if each.len() > 1 {
        done.figures.insert(Measure::Fairness, jain(&each));
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiving_side_is_what_counts() {
        let json = r#"{"end": {"streams": [
            {"sender": {"bytes": 900, "bits_per_second": 9e9}, "receiver": {"bytes": 300, "bits_per_second": 1e9}},
            {"sender": {"bytes": 900, "bits_per_second": 9e9}, "receiver": {"bytes": 900, "bits_per_second": 3e9}}],
            "sum_sent": {"bytes": 1800, "bits_per_second": 18e9}, "sum_received": {"bytes": 1200, "bits_per_second": 4e9}}}"#;
        let done = told(json).expect("understood");
        assert_eq!(done.work, 1200.0);
        assert_eq!(
            done.figures,
            [(Measure::Rate, 4.0), (Measure::Fairness, 0.8)].into()
        );
    }

    #[test]
    fn a_run_that_moved_nothing_is_no_figure() {
        let json =
            r#"{"end": {"streams": [], "sum_received": {"bytes": 0, "bits_per_second": 0}}}"#;
        assert!(told(json).is_err());
    }
}
