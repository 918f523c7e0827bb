//! The benchmarks' command line. Data on stdout, talk on stderr.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use underpass_bench::speed::{self, Row, Way, machine};
use underpass_bench::stock;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Underpass beside its baseline.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure Underpass beside its baseline and beside no relay, in turns. Needs iperf3, wrk, nginx and a quiet machine.
    Speed(SpeedArgs),
    /// Be the baseline's relay. Takes any agent: for one machine only.
    StockRelay {
        /// UDP address for the agent; port 0 picks a free one.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// TCP address for applications; port 0 picks a free one. Both are printed on stdout as one line of JSON.
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
struct SpeedArgs {
    /// Measurements of each work over each way.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Length of a measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
    /// Works, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Ways, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Workers of relay and agent, threads of the baseline's [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    workers: Option<u8>,
    /// The product's binary [default: the one beside this].
    #[arg(long)]
    underpass: Option<PathBuf>,
    /// Print JSON in place of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    raise_file_limit();
    let done = match Cli::parse().command {
        Command::Speed(args) => measure(args),
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
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Exits with 1 when a measurement failed.
fn measure(args: SpeedArgs) -> anyhow::Result<ExitCode> {
    let bench = std::env::current_exe()?;
    let underpass = args
        .underpass
        .unwrap_or_else(|| bench.with_file_name("underpass"));
    ensure!(
        underpass.is_file(),
        "no binary at {}: build it (`cargo build --release -p underpass`), or name one by --underpass",
        underpass.display()
    );
    for binary in [&bench, &underpass] {
        let profile = machine::profile(binary);
        if profile != "release" {
            eprintln!(
                "warning: {} is a build of profile {profile}: figures that are published come from --release",
                binary.display()
            );
        }
    }
    let settings = speed::Settings {
        rows: or_all(args.rows),
        ways: or_all(args.ways),
        rounds: args.rounds.into(),
        length: Duration::from_secs(args.seconds.into()),
        workers: args.workers.map_or_else(machine::cores, usize::from),
        underpass,
        bench,
    };
    let report = speed::run(&settings, |step| eprintln!("{step}"))?;
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&report).context("cannot write JSON")?
        );
    } else {
        print!("{report}");
    }
    Ok(ExitCode::from(u8::from(!report.failures.is_empty())))
}

fn or_all<T: ValueEnum + Clone>(picked: Vec<T>) -> Vec<T> {
    if picked.is_empty() {
        T::value_variants().to_vec()
    } else {
        picked
    }
}

fn say(event: &stock::relay::Event) {
    if let Ok(line) = serde_json::to_string(event) {
        println!("{line}");
    }
}

/// Many flows need more files than the usual soft limit of 1,024. What cannot be raised shows as refused flows.
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
