//! The benchmarks' command line. Data on stdout, talk on stderr.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use underpass_bench::growth::{self, Axis};
use underpass_bench::loss;
use underpass_bench::peers::bars::Judged;
use underpass_bench::peers::{self, Row, Way, machine, tools};
use underpass_bench::stock;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Underpass beside its baseline and beside other tunnels.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure Underpass beside its baseline, other tunnels and no tunnel, in turns. Needs a quiet
    /// machine; what is not installed is named and left out.
    Peers(PeersArgs),
    /// Measure what Underpass costs as flows, hybrid connections and agents grow, and judge whether
    /// growth is straight. Needs a quiet machine.
    Growth(GrowthArgs),
    /// Measure goodput over a path that loses packets, beside other tunnels and no tunnel. Needs
    /// root, nftables and a quiet machine.
    Loss(LossArgs),
    /// Be many agents in one process.
    #[command(hide = true)]
    Agents {
        /// File of connection strings, one a line; the agents take them in turn.
        #[arg(long)]
        strings: PathBuf,
        /// Number of agents.
        #[arg(long)]
        count: usize,
        /// Hold datagrams at this UDP payload, bytes.
        #[arg(long)]
        mtu_max: u16,
    },
    /// Be the baseline's relay. Takes any agent: for one machine only.
    StockRelay {
        /// UDP address for the agent; port 0 picks a free one.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// TCP address for applications; port 0 picks a free one. Both are printed on stdout as one
        /// line of JSON.
        #[arg(long, default_value = "127.0.0.1:0")]
        bind: SocketAddr,
        #[command(flatten)]
        stock: StockArgs,
    },
    /// Be the baseline's agent. Takes any certificate: for one machine only.
    StockAgent {
        /// The relay's UDP address.
        #[arg(long)]
        connect: SocketAddr,
        /// The service.
        #[arg(long)]
        endpoint: SocketAddr,
        #[command(flatten)]
        stock: StockArgs,
    },
}

#[derive(Args)]
struct StockArgs {
    /// Hold datagrams at this UDP payload, bytes; without it they climb to what the path carries.
    #[arg(long)]
    mtu: Option<u16>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

impl From<StockArgs> for stock::Settings {
    fn from(args: StockArgs) -> stock::Settings {
        stock::Settings {
            mtu: args.mtu,
            threads: args.threads,
        }
    }
}

#[derive(Args)]
struct PeersArgs {
    /// Measurements of each work over each way [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Length of a measurement [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: Option<u16>,
    /// Works, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Ways, separated by commas [default: all but poll-1452 and poll-path].
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// A choice of all the above that ends within two minutes; what is given beside it holds.
    #[arg(long)]
    short: bool,
    /// Workers of relay and agent, threads of the baseline's
    /// [default: what each takes by itself: one for every two cores, one for each core].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    workers: Option<u8>,
    /// The product's binary [default: the one beside this].
    #[arg(long)]
    underpass: Option<PathBuf>,
    /// Write all figures to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the rates to a file, as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Draw the times of a SQL-like flow beside more and more flows in bulk (rows sql-beside-…) to
    /// a file, as SVG.
    #[arg(long, value_name = "FILE")]
    curve: Option<PathBuf>,
    /// Measure nothing: make one report of these, which earlier runs of other works wrote by
    /// --json.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["rounds", "seconds", "rows", "ways", "short", "workers", "underpass"])]
    join: Vec<PathBuf>,
    /// Exit with 1 for a floor that is missed too, not only for measurements that failed and for
    /// wrong bytes.
    #[arg(long)]
    judge: bool,
    /// Build the peers that are missing, and measure nothing.
    #[arg(long)]
    install: bool,
}

#[derive(Args)]
struct GrowthArgs {
    /// What grows, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    axis: Vec<Axis>,
    /// Measurements of each count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of each load, and of each look at processes that rest.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// Load at this share of the usual rates (2,000 requests a second, 1 Gbit/s): for a machine
    /// that cannot keep up with them.
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    share: f64,
    /// Leave out counts below this one.
    #[arg(
        long,
        default_value_t = 0,
        hide_default_value = true,
        value_name = "COUNT"
    )]
    least: usize,
    /// Leave out counts above this one.
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true, value_name = "COUNT")]
    most: usize,
    /// Workers of relay and agent.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    workers: u8,
    /// Backend of relay and agent.
    #[arg(long, default_value = "auto", value_parser = ["auto", "ring", "poll"])]
    io: String,
    /// Hold datagrams at this UDP payload, bytes: what agents have that come over the internet.
    #[arg(long, default_value_t = 1_452, value_parser = clap::value_parser!(u16).range(1_200..=65_507))]
    mtu_max: u16,
    /// The product's binary [default: the one beside this].
    #[arg(long)]
    underpass: Option<PathBuf>,
    /// Write all figures to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw each axis to a file in this folder, growth-AXIS.svg.
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Exit with 1 for growth that is not straight too, not only for measurements that failed.
    #[arg(long)]
    judge: bool,
}

#[derive(Args)]
struct LossArgs {
    /// Lost in each direction, percent, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "0,0.1,1,2,5,10,20")]
    percent: Vec<f64>,
    /// Ways, separated by commas [default: direct, ssh, rathole, rathole-noise, ring-1452].
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Measurements of each way at each loss.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of a measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// The product's binary [default: the one beside this].
    #[arg(long)]
    underpass: Option<PathBuf>,
    /// Write all figures to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw them to a file, as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    raise_file_limit();
    let done = match Cli::parse().command {
        Command::Peers(args) if args.install => tools::install(|step| {
            underpass_loadtest::note!("{step}");
        })
        .map(|()| ExitCode::SUCCESS),
        Command::Peers(args) => measure(&args),
        Command::Growth(args) => grow(args),
        Command::Loss(args) => lose(args),
        Command::Agents {
            strings,
            count,
            mtu_max,
        } => growth::host_agents(&strings, count, mtu_max).map(|()| ExitCode::SUCCESS),
        Command::StockRelay {
            listen,
            bind,
            stock,
        } => {
            let settings = stock.into();
            stock::block_on(settings, stock::relay::run(listen, bind, settings, say))
                .map(|()| ExitCode::SUCCESS)
        }
        Command::StockAgent {
            connect,
            endpoint,
            stock,
        } => {
            let settings = stock.into();
            stock::block_on(settings, stock::agent::run(connect, endpoint, settings))
                .map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        underpass_loadtest::note!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Exits with 1 when a measurement failed, and when a floor was missed if that is asked for.
fn measure(args: &PeersArgs) -> anyhow::Result<ExitCode> {
    for path in args.json.iter().chain(&args.svg).chain(&args.curve) {
        check_writable(path)?;
    }
    let report = if args.join.is_empty() {
        peers::run(peers_settings(args)?, |step| {
            underpass_loadtest::note!("{step}");
        })?
    } else {
        peers::Report::join(read_reports(&args.join)?)?
    };
    print(&report)?;
    tell_peers(args, &report)
}

fn read_reports(paths: &[PathBuf]) -> anyhow::Result<Vec<peers::Report>> {
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path)?;
        Ok::<_, anyhow::Error>(serde_json::from_str(&text)?)
    };
    let reports = paths
        .iter()
        .map(|path| read(path).with_context(|| format!("cannot read {}", path.display())));
    reports.collect()
}

fn peers_settings(args: &PeersArgs) -> anyhow::Result<peers::Settings> {
    let (bench, underpass) = binaries(args.underpass.clone())?;
    let mut settings = if args.short {
        peers::Settings::short(underpass, bench)
    } else {
        peers::Settings::usual(underpass, bench)
    };
    replace(&mut settings.rows, args.rows.clone());
    replace(&mut settings.ways, args.ways.clone());
    if let Some(rounds) = args.rounds {
        settings.rounds = rounds.into();
    }
    if let Some(seconds) = args.seconds {
        settings.length = Duration::from_secs(seconds.into());
    }
    if let Some(workers) = args.workers {
        settings.workers = workers.into();
        settings.threads = workers.into();
    }
    Ok(settings)
}

/// Writes what was asked for, and judges.
fn tell_peers(args: &PeersArgs, report: &peers::Report) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.json {
        write_json(path, report)?;
    }
    if let Some(path) = &args.svg {
        fs::write(path, report.svg()).with_context(|| cannot_write(path))?;
    }
    if let Some(path) = &args.curve {
        let curve = report
            .curve()
            .context("no curve: add the rows sql-beside-… to --rows")?;
        fs::write(path, curve).with_context(|| cannot_write(path))?;
    }
    let missed = args.judge && report.bars.iter().any(Judged::is_floor_missed);
    let bad = missed || !report.failures.is_empty();
    Ok(ExitCode::from(u8::from(bad)))
}

/// Exits with 1 when a measurement failed, and when growth is not straight if that is asked for.
fn grow(args: GrowthArgs) -> anyhow::Result<ExitCode> {
    let (bench, underpass) = binaries(args.underpass)?;
    let mut axes = vec![Axis::Flows, Axis::Hycos, Axis::Agents];
    replace(&mut axes, args.axis);
    let pictures: Vec<(Axis, PathBuf)> = args.svg.map_or_else(Vec::new, |folder| {
        let picture = |&axis: &Axis| (axis, folder.join(axis.picture()));
        axes.iter().map(picture).collect()
    });
    for path in args
        .json
        .iter()
        .chain(pictures.iter().map(|(_, path)| path))
    {
        check_writable(path)?;
    }
    let settings = growth::Settings {
        axes,
        rounds: args.rounds.into(),
        length: Duration::from_secs(args.seconds.into()),
        share: args.share,
        workers: args.workers.into(),
        io: args.io,
        mtu_max: args.mtu_max,
        least: args.least,
        most: args.most,
        underpass,
        bench,
    };
    let report = growth::run(&settings, |step| {
        underpass_loadtest::note!("{step}");
    })?;
    print(&report)?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    for (axis, path) in &pictures {
        if let Some(svg) = report.svg(*axis) {
            fs::write(path, svg).with_context(|| cannot_write(path))?;
        }
    }
    let steep = args.judge && report.steep().next().is_some();
    let bad = steep || !report.failures.is_empty();
    Ok(ExitCode::from(u8::from(bad)))
}

fn lose(args: LossArgs) -> anyhow::Result<ExitCode> {
    let (bench, underpass) = binaries(args.underpass)?;
    for path in args.json.iter().chain(&args.svg) {
        check_writable(path)?;
    }
    let wrong = args
        .percent
        .iter()
        .find(|percent| !(0.0..100.0).contains(*percent));
    ensure!(wrong.is_none(), "a loss is from 0 to below 100 percent");
    let mut ways = loss::USUAL.to_vec();
    replace(&mut ways, args.ways);
    let settings = loss::Settings {
        per_mille: args
            .percent
            .iter()
            .map(|percent| (percent * 10.0).round() as u32)
            .collect(),
        ways,
        rounds: args.rounds.into(),
        length: Duration::from_secs(args.seconds.into()),
        peers: peers::Settings::usual(underpass, bench),
    };
    let report = loss::measure(&settings, |step| {
        underpass_loadtest::note!("{step}");
    })?;
    print(&report)?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &args.svg {
        fs::write(path, report.svg()).with_context(|| cannot_write(path))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// This binary and the product's; says so where they are no release builds.
fn binaries(underpass: Option<PathBuf>) -> anyhow::Result<(PathBuf, PathBuf)> {
    let bench = std::env::current_exe()?;
    let underpass = underpass.unwrap_or_else(|| bench.with_file_name("underpass"));
    ensure!(
        underpass.is_file(),
        "no binary at {}: build it (`cargo build --release -p underpass`), or name one by --underpass",
        underpass.display()
    );
    for binary in [&bench, &underpass] {
        let profile = machine::profile(binary);
        if profile != "release" {
            underpass_loadtest::note!(
                "warning: {} is a build of profile {profile}: figures that are published come from --release",
                binary.display()
            );
        }
    }
    Ok((bench, underpass))
}

/// A share of something: above 0, at most 1.
fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if share > 0.0 && share <= 1.0 {
        Ok(share)
    } else {
        Err("it must be above 0 and at most 1".to_owned())
    }
}

fn write_json(path: &Path, report: &impl serde::Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report).context("cannot make JSON")?;
    fs::write(path, json + "\n").with_context(|| cannot_write(path))
}

fn replace<T>(usual: &mut Vec<T>, picked: Vec<T>) {
    if !picked.is_empty() {
        *usual = picked;
    }
}

/// Told before the run, not after it.
fn check_writable(path: &Path) -> anyhow::Result<()> {
    let file = fs::File::options().create(true).append(true).open(path);
    file.map(drop).with_context(|| cannot_write(path))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

fn say(event: &stock::relay::Event) {
    if let Ok(line) = serde_json::to_string(event) {
        // Who does not read where it listens does not need it.
        let _ = print(&format_args!("{line}\n"));
    }
}

/// Writes data to stdout. Whoever closed it does not want more.
fn print(data: &impl fmt::Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match write!(out, "{data}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ => Ok(()),
    }
}

/// Many flows need more files than the usual soft limit of 1,024. What cannot be raised shows as
/// refused flows.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}
