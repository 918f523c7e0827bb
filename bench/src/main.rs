//! The benchmarks' command line. Data on stdout, talk on stderr.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};
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

fn main() -> anyhow::Result<()> {
    raise_file_limit();
    match Cli::parse().command {
        Command::StockRelay {
            listen,
            bind,
            stock,
        } => {
            let settings = stock.into();
            stock::block_on(settings, stock::relay::run(listen, bind, settings, say))
        }
        Command::StockAgent {
            connect,
            endpoint,
            stock,
        } => {
            let settings = stock.into();
            stock::block_on(settings, stock::agent::run(connect, endpoint, settings))
        }
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
