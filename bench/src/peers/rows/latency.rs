//! The time of a small message there and back: at rest, and beside flows in bulk on the same
//! session.
//!
//! Open loop: a message is sent when it is due, whether the one before was answered or not, and its
//! time counts from when it was due.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use underpass_loadtest::scenario::{self, Group, GroupOutcome, Outcome, Pace, Scenario, Sizes};
use underpass_loadtest::{Endpoint, endpoint};

use super::{Done, Running, Server};
use crate::peers::measure::{Figures, Measure};

/// Messages a second at rest. A flow carries one at a time, so this is far below saturation as long
/// as one takes less than a millisecond.
const RATE: f64 = 500.0;

/// The same beside bulk, where one may take some milliseconds.
const RATE_BESIDE_BULK: f64 = 100.0;

/// Length of the bulk flow's requests: long beside the pause between two of them, which is a round
/// trip.
const BULK: u64 = 64 << 20;

pub(super) fn serve() -> Result<Server> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let endpoint = Endpoint::start(endpoint::Settings {
        // One flow must not wait for the other in the server.
        threads: 2,
        ..endpoint::Settings::new(listen)
    })?;
    Ok(Server {
        address: endpoint.address(),
        running: Running::Endpoint(endpoint),
    })
}

/// One flow, one byte there and one back.
pub(super) fn at_rest(address: SocketAddr, length: Duration) -> Result<Done> {
    let outcome = run(vec![ping(RATE)], address, length)?;
    let ping = group(&outcome, 0)?;
    Ok(Done {
        figures: times(ping)?,
        work: ping.counts.right as f64,
    })
}

/// The same beside one flow that sends as fast as it can; its rate is told too.
pub(super) fn beside_bulk(address: SocketAddr, length: Duration) -> Result<Done> {
    let outcome = run(vec![ping(RATE_BESIDE_BULK), bulk(1)], address, length)?;
    told_with_bulk(&outcome)
}

/// One connection to a database, its statements and results, beside so many flows that send as fast
/// as they can.
pub(super) fn statements(address: SocketAddr, beside: u32, length: Duration) -> Result<Done> {
    if beside == 0 {
        let outcome = run(vec![sql()], address, length)?;
        let sql = group(&outcome, 0)?;
        return Ok(Done {
            figures: times(sql)?,
            work: sql.counts.right as f64,
        });
    }
    let outcome = run(vec![sql(), bulk(beside)], address, length)?;
    told_with_bulk(&outcome)
}

fn told_with_bulk(outcome: &Outcome) -> Result<Done> {
    let mut figures = times(group(outcome, 0)?)?;
    let bulk = group(outcome, 1)?;
    ensure!(bulk.bytes_up > 0, "the flows in bulk moved nothing");
    figures.insert(Measure::Rate, bulk.gbit_per_second_up());
    Ok(Done {
        figures,
        work: bulk.bytes_up as f64,
    })
}

fn bulk(flows: u32) -> Group {
    Group {
        flows: flows.into(),
        request: Sizes::fixed(BULK),
        verify: false,
        ..Group::new("bulk")
    }
}

/// Short statements, mostly small results; the sizes of `underpass-loadtest`'s own scenario, less
/// its few large results.
fn sql() -> Group {
    Group {
        pace: Pace::Rate(RATE_BESIDE_BULK),
        request: Sizes::between(60, 800),
        response: Sizes::between(100, 4096),
        ..Group::new("sql")
    }
}

fn ping(rate: f64) -> Group {
    Group {
        pace: Pace::Rate(rate),
        ..Group::new("ping")
    }
}

fn run(groups: Vec<Group>, address: SocketAddr, length: Duration) -> Result<Outcome> {
    let scenario = Scenario {
        duration: length,
        ..Scenario::new("latency", groups)
    };
    Ok(scenario::run(&scenario, &[address])?)
}

/// One whose calls were all answered, and right.
fn group(outcome: &Outcome, at: usize) -> Result<&GroupOutcome> {
    let group = &outcome.groups[at];
    ensure!(
        group.counts.bad() == 0,
        "{} of the calls of {} went wrong: {:?}",
        group.counts.bad(),
        group.name,
        group.faults
    );
    Ok(group)
}

fn times(group: &GroupOutcome) -> Result<Figures> {
    let at = |quantile| {
        let time = group.latency.at(quantile).context("no call was answered")?;
        Ok::<_, anyhow::Error>(time.as_secs_f64() * 1e6)
    };
    Ok([(Measure::P50, at(0.5)?), (Measure::P99, at(0.99)?)].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(300);

    #[test]
    fn messages_are_timed_at_rest_and_beside_bulk() {
        let server = serve().expect("serves");
        let rest = at_rest(server.address, SHORT).expect("done");
        assert!(rest.work >= RATE * 0.2, "{rest:?}");
        assert!(rest.figures[&Measure::P50] > 0.0);
        assert!(rest.figures[&Measure::P50] <= rest.figures[&Measure::P99]);
        let beside = beside_bulk(server.address, SHORT).expect("done");
        assert!(beside.figures[&Measure::Rate] > 0.0, "{beside:?}");
        let alone = statements(server.address, 0, SHORT).expect("done");
        assert!(!alone.figures.contains_key(&Measure::Rate), "{alone:?}");
        let beside = statements(server.address, 8, SHORT).expect("done");
        assert!(beside.figures[&Measure::Rate] > 0.0, "{beside:?}");
    }

    #[test]
    fn nobody_there_is_no_figure() {
        let address = underpass_tests::process::free_tcp_address();
        assert!(at_rest(address, SHORT).is_err());
    }
}
