//! `run`: a scenario against a target, and what came of it as a table and in files.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use underpass_loadtest::endpoint::{self, Endpoint};
use underpass_loadtest::io::Choice;
use underpass_loadtest::permit_sockets;
use underpass_loadtest::results::{self, Run};
use underpass_loadtest::scenario::{self, Outcome, Pace, Progress, Scenario, Settings, builtin};
use underpass_loadtest::units::duration;

use super::processes::{self, PROCESSES_MAX};
use super::progress::Bars;
use super::report::write_file;
use super::signals::stop_on_signals;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A scenario file, or the name of a built-in scenario.
    scenario: String,
    /// Where the flows go, host:port; several: in turn. Without it, straight to --endpoint.
    #[arg(long, value_parser = resolve, value_delimiter = ',')]
    target: Vec<SocketAddr>,
    /// Start the far end in this process as well, on this address; without one on a free port of
    /// 127.0.0.1.
    #[arg(long, value_name = "ADDR", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:0")]
    endpoint: Option<SocketAddr>,
    /// In place of the scenario's duration: 10, 10s, 500ms, 2m.
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Flows come from this address, or from this and the next ones, 127.0.0.2/4 being four of
    /// them; several: in turn.
    #[arg(long, value_name = "ADDR[/COUNT]", value_parser = sources)]
    source: Vec<Sources>,
    /// Split the flows over so many processes, each with its own share of the sources; on loopback
    /// each has an address of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=PROCESSES_MAX))]
    processes: u64,
    /// Seed of the bytes and of all chances; without it a random one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads of each group.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How to talk to sockets.
    #[arg(long, value_enum, default_value_t)]
    io: Choice,
    /// Write the result as JSON, with every bucket of its histograms; - is stdout, in place of the
    /// table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with charts: one file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let scenario = scenario(args)?;
    let flows: u64 = scenario.groups.iter().map(|group| group.flows).sum();
    let beside = args.endpoint.map_or(0, |_| flows);
    let settings = Settings {
        seed: args.seed.unwrap_or_else(rand::random),
        io: args.io,
        threads: args.threads,
        sources: args.source.iter().flat_map(|all| all.0.clone()).collect(),
        sockets_beside: beside,
        ..Settings::default()
    };
    let endpoint = args.endpoint.map(start_endpoint).transpose()?;
    let targets = match (&endpoint, args.target.is_empty()) {
        (Some(endpoint), true) => vec![endpoint.address()],
        (None, true) => bail!(
            "nowhere to connect to\nhint: give --target HOST:PORT, or --endpoint to start the far end here"
        ),
        (_, false) => args.target.clone(),
    };
    stop_on_signals(settings.stop.clone())?;
    let mut bars = Bars::new(&scenario);
    let show = |progress: &Progress| bars.show(progress);
    let outcome = match args.processes {
        1 => scenario::run_with(&scenario, &targets, &settings, show).map_err(Into::into),
        processes => {
            permit_sockets(beside)?;
            processes::run(&scenario, &targets, &settings, processes, show)
        }
    };
    bars.end();
    let outcome = outcome?;
    deliver(args, &outcome)?;
    Ok(if outcome.bad() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// By file if there is one of this name, else built in.
fn scenario(args: &Args) -> anyhow::Result<Scenario> {
    let path = Path::new(&args.scenario);
    let built_in = (!path.exists()).then(|| builtin::scenario(&args.scenario));
    let mut scenario = match built_in.flatten() {
        Some(scenario) => scenario,
        None => Scenario::read(path)?,
    };
    if let Some(duration) = args.duration {
        scenario.duration = duration;
        for group in &mut scenario.groups {
            group.duration = group.duration.map(|own| own.min(duration));
        }
        scenario.check().map_err(|invalid| {
            anyhow::anyhow!("{invalid}\nhint: give another --duration, or leave it out")
        })?;
    }
    for group in &scenario.groups {
        if let Pace::Closed {
            concurrency: Some(all),
            ..
        } = group.pace
            && all < args.processes
        {
            bail!(
                "group {}: a concurrency of {all} cannot be split over {} processes\nhint: give fewer --processes",
                group.name,
                args.processes
            );
        }
    }
    Ok(scenario)
}

/// On as many threads as there are processors: it must not be what is measured.
fn start_endpoint(listen: SocketAddr) -> anyhow::Result<Endpoint> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let settings = endpoint::Settings {
        threads,
        ..endpoint::Settings::new(listen)
    };
    Endpoint::start(settings).with_context(|| format!("cannot listen on {listen}"))
}

fn deliver(args: &Args, outcome: &Outcome) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    if let Some(path) = &args.html {
        let label = outcome.scenario.clone();
        write_file(path, &results::to_html(&[Run { label, outcome }]))?;
    }
    match &args.json {
        Some(path) if path.as_os_str() == "-" => {
            return Ok(writeln!(stdout, "{}", results::to_json(outcome))?);
        }
        Some(path) => write_file(path, &results::to_json(outcome))?,
        None => {}
    }
    write!(stdout, "{}", results::Table(outcome))?;
    Ok(())
}

fn resolve(text: &str) -> Result<SocketAddr, String> {
    let mut all = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}: write HOST:PORT"))?;
    all.next().ok_or_else(|| format!("{text} has no address"))
}

/// Addresses that follow each other.
#[derive(Clone, PartialEq, Debug)]
struct Sources(Vec<IpAddr>);

/// Most addresses of one range: all of a scenario's flows fit many times.
const SOURCES_MAX: u128 = 65_536;

fn sources(text: &str) -> Result<Sources, String> {
    let wrong = || {
        format!(
            "{text} is no address or range: write 127.0.0.2 or 127.0.0.2/8 for eight from there"
        )
    };
    let (first, count) = text.split_once('/').unwrap_or((text, "1"));
    let first: IpAddr = first.parse().map_err(|_| wrong())?;
    let count: u128 = count.parse().map_err(|_| wrong())?;
    if count == 0 || count > SOURCES_MAX {
        return Err(format!("1 to {SOURCES_MAX} addresses are possible"));
    }
    let nth = |n: u128| match first {
        IpAddr::V4(first) => {
            let n = u32::try_from(n).ok()?;
            Some(IpAddr::V4(u32::from(first).checked_add(n)?.into()))
        }
        IpAddr::V6(first) => Some(IpAddr::V6(u128::from(first).checked_add(n)?.into())),
    };
    let all: Option<Vec<IpAddr>> = (0..count).map(nth).collect();
    all.map(Sources).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_sources_is_so_many_addresses_that_follow_each_other() {
        let addresses =
            |text| sources(text).map(|all| all.0.iter().map(IpAddr::to_string).collect::<Vec<_>>());
        assert_eq!(
            addresses("127.0.0.254/3"),
            Ok(vec![
                "127.0.0.254".into(),
                "127.0.0.255".into(),
                "127.0.1.0".into()
            ])
        );
        assert_eq!(addresses("::2"), Ok(vec!["::2".into()]));
        for wrong in [
            "",
            "127.0.0.1/0",
            "127.0.0.1/x",
            "localhost",
            "255.255.255.255/2",
        ] {
            assert!(sources(wrong).is_err(), "{wrong}");
        }
    }
}
