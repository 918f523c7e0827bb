//! Loads whose cost is measured: flows that are opened and rest, and calls at a fixed rate over
//! many flows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use underpass_loadtest::scenario::{self, Group, Pace, Scenario, Second, Sizes};
use underpass_loadtest::{Endpoint, endpoint};

use super::Settings;
use super::cost::processor_times;
use crate::flows::{self, SOURCES};

/// Requests of a second, over all flows: so few that even one flow, which carries one at a time,
/// keeps up.
const REQUESTS: f64 = 2_000.0;

/// Lengths of a request and a response, bytes: a small query and its row.
const REQUEST: u64 = 100;
const RESPONSE: u64 = 400;

/// Uploads of a second over all flows, and their length, bytes: together 1 Gbit/s.
const UPLOADS: f64 = 2_000.0;
const UPLOAD: u64 = 64 << 10;

/// Flows that begin in a second before the load is measured.
const BEGIN_EACH_SECOND: f64 = 2_000.0;

/// After that the load runs for this long before it is measured.
const SETTLE: Duration = Duration::from_secs(1);

/// Calls that may be due and not begun at the end, of all. A moment's stall leaves some of them; a
/// load that is too much leaves far more.
const UNSENT_MAX: f64 = 0.2;

/// What a load cost.
#[derive(Clone, Debug)]
pub(super) struct Cost {
    /// Of each process, in the order asked for.
    pub(super) cpu: Vec<Duration>,
    /// Calls answered meanwhile.
    pub(super) calls: f64,
    /// Bytes sent meanwhile.
    pub(super) bytes: f64,
    /// 99th percentile of the calls answered in a second: that of the slowest second of those that
    /// were measured.
    pub(super) p99: Duration,
}

/// A server for calls, in this process.
pub(super) fn serve_calls() -> Result<Endpoint> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Endpoint::start(endpoint::Settings::new(any))?)
}

/// A server that gives back what it gets, in this process.
pub(super) fn serve_echo() -> Result<Endpoint> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Endpoint::start(endpoint::Settings {
        serves: endpoint::Serves::PlainEcho,
        ..endpoint::Settings::new(any)
    })?)
}

/// Small requests, every byte of them checked, over this many flows, as long and at the share of
/// the usual rate that the settings say.
pub(super) fn requests(
    to: &[SocketAddr],
    flows: usize,
    processes: &[u32],
    settings: &Settings,
) -> Result<Cost> {
    let group = Group {
        pace: Pace::Rate(REQUESTS * settings.share),
        request: Sizes::fixed(REQUEST),
        response: Sizes::fixed(RESPONSE),
        ..Group::new("requests")
    };
    measured(group, to, flows, processes, settings.length)
}

/// Bulk at a fixed rate over this many flows, as long and at the share of the usual rate that the
/// settings say.
pub(super) fn bulk(
    to: &[SocketAddr],
    flows: usize,
    processes: &[u32],
    settings: &Settings,
) -> Result<Cost> {
    let group = Group {
        pace: Pace::Rate(UPLOADS * settings.share),
        request: Sizes::fixed(UPLOAD),
        verify: false,
        ..Group::new("bulk")
    };
    measured(group, to, flows, processes, settings.length)
}

/// Runs a load, and measures once all flows are there.
fn measured(
    group: Group,
    to: &[SocketAddr],
    flows: usize,
    processes: &[u32],
    length: Duration,
) -> Result<Cost> {
    let ramp = Duration::from_secs_f64(flows as f64 / BEGIN_EACH_SECOND);
    let from = ramp + SETTLE;
    let group = Group {
        flows: flows as u64,
        ramp,
        ..group
    };
    let scenario = Scenario {
        duration: from + length,
        ..Scenario::new("growth", vec![group])
    };
    let sources = (0..SOURCES).map(|n| IpAddr::from([127, 0, 0, 2 + n]));
    let settings = scenario::Settings {
        sources: sources.collect(),
        // The server's side of each flow.
        sockets_beside: flows as u64,
        ..scenario::Settings::default()
    };
    let (mut first, mut last) = (None, None);
    let outcome = scenario::run_with(&scenario, to, &settings, |progress| {
        if (from.as_secs_f64()..scenario.duration.as_secs_f64()).contains(&progress.seconds)
            && let Ok(cpu) = processor_times(processes)
        {
            let group = progress.groups[0];
            let seen = (cpu, group.right as f64, group.up as f64);
            first.get_or_insert_with(|| seen.clone());
            last = Some(seen);
        }
    })?;
    let group = &outcome.groups[0];
    ensure!(
        group.counts.bad() == 0,
        "{} calls went wrong: {:?}",
        group.counts.bad(),
        group.faults
    );
    let (all, unsent) = (group.counts.right as f64, group.counts.unsent as f64);
    ensure!(
        unsent <= all * UNSENT_MAX,
        "{unsent} calls were due and not begun, beside {all} that were answered: this machine is too slow or too busy for this load"
    );
    let (first, last) = first.zip(last).context("a relay or an agent has ended")?;
    let (calls, bytes) = (last.1 - first.1, last.2 - first.2);
    ensure!(calls > 0.0, "no call was answered while it was measured");
    let cpu = last.0.iter().zip(first.0);
    Ok(Cost {
        cpu: cpu
            .map(|(last, first)| last.saturating_sub(first))
            .collect(),
        calls,
        bytes,
        p99: slowest_p99(&group.series, from, outcome.interval_seconds)
            .context("no call was answered while it was measured")?,
    })
}

/// Of the seconds from the one of `from` on. Well before that flows are still being opened, and the
/// first call of each waits for that.
fn slowest_p99(series: &[Second], from: Duration, interval: f64) -> Option<Duration> {
    let first = (from.as_secs_f64() / interval) as usize;
    let measured = series.get(first..)?;
    measured
        .iter()
        .filter_map(|second| second.latency.at(0.99))
        .max()
}

/// Flows that were opened, have spoken once, and rest. They end when this is dropped.
pub(super) struct Resting {
    _runtime: Runtime,
    /// Each of them.
    _flows: Vec<TcpStream>,
    /// From the first connect to the last answer.
    pub(super) took: Duration,
}

impl Resting {
    /// Opens them, to a server that gives back what it gets.
    pub(super) fn open(to: SocketAddr, flows: usize) -> Result<Resting> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let start = Instant::now();
        let all = runtime.block_on(flows::open(to, flows, true))?;
        let took = start.elapsed();
        ensure!(
            all.len() == flows,
            "{} of {flows} flows were not answered",
            flows - all.len()
        );
        Ok(Resting {
            _runtime: runtime,
            _flows: all,
            took,
        })
    }
}

#[cfg(test)]
mod tests {
    use underpass_tests::deadline::MOMENT;

    use super::super::report::tests::settings;
    use super::*;

    const SHORT: Duration = Duration::from_millis(500);

    #[test]
    fn calls_are_counted_beside_what_a_process_takes_for_them() {
        let server = serve_calls().expect("serves");
        let own = [std::process::id()];
        let short = Settings {
            length: SHORT,
            ..settings()
        };
        // The kernel counts processor time in ticks of 10 ms: a short load may fall between two.
        let deadline = Instant::now() + MOMENT;
        let cost = loop {
            let cost = requests(&[server.address()], 10, &own, &short).expect("done");
            if cost.cpu[0] > Duration::ZERO {
                break cost;
            }
            assert!(Instant::now() < deadline, "{cost:?}");
        };
        assert!(cost.calls > REQUESTS * 0.2, "{cost:?}");
        assert!(cost.p99 > Duration::ZERO, "{cost:?}");
        let cost = bulk(&[server.address()], 2, &own, &short).expect("done");
        assert!(cost.bytes > UPLOADS * UPLOAD as f64 * 0.1, "{cost:?}");
    }

    #[test]
    fn what_flows_wait_for_while_they_are_opened_is_not_measured() {
        let server = serve_calls().expect("serves");
        let ping = Group {
            pace: Pace::Rate(100.0),
            ..Group::new("ping")
        };
        let scenario = Scenario {
            duration: Duration::from_millis(1_500),
            ..Scenario::new("seconds", vec![ping])
        };
        let mut outcome = scenario::run(&scenario, &[server.address()]).expect("run");
        let series = &mut outcome.groups[0].series;
        let whole = outcome.interval_seconds;
        let second = series[1].latency.at(0.99);
        assert_eq!(slowest_p99(&series[..2], SETTLE, whole), second);
        // A slow one counts from its second on, and not from the next.
        series[1].latency = series[0].latency.clone();
        let first = series[0].latency.at(0.99);
        assert_eq!(slowest_p99(&series[..2], SETTLE, whole), first);
        assert_eq!(slowest_p99(&series[..2], 2 * SETTLE, whole), None);
        assert!(first.is_some() && second.is_some());
    }

    #[test]
    fn flows_that_rest_have_all_been_answered() {
        let server = serve_echo().expect("serves");
        let resting = Resting::open(server.address(), 100).expect("opened");
        assert!(resting.took > Duration::ZERO);
        let nobody = underpass_tests::process::free_tcp_address();
        assert!(Resting::open(nobody, 1).is_err());
    }
}
