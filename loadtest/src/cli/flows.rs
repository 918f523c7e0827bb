//! `flows`: verified flows, each of a size or until a time.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};
use underpass_loadtest::io::Choice;
use underpass_loadtest::run::{self, Counters};
use underpass_loadtest::units::{duration, size};
use underpass_loadtest::{Mode, Plan, Report};

use super::signals::stop_on_signals;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to connect: an endpoint, or a binding that leads to one.
    #[arg(long)]
    target: SocketAddr,
    /// What the flows do.
    #[arg(long, value_enum, default_value = "echo")]
    mode: Mode,
    /// Flows at once.
    #[arg(long, default_value_t = 1)]
    flows: u64,
    /// Flows in all; without it, as many as at once, or, with both --bytes and --duration, as many
    /// as fit.
    #[arg(long)]
    total: Option<u64>,
    /// Bytes each way in one flow, with a unit if you like: 4096, 64k, 10m, 1g. Without it, as many
    /// as fit into --duration.
    #[arg(long, value_parser = size)]
    bytes: Option<u64>,
    /// Length of a message of ping-pong.
    #[arg(long, value_parser = size, default_value = "1")]
    message: u64,
    /// No flow opens after this: 10, 10s, 500ms, 2m. Without it and --bytes, 10 s.
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// A flow in which no byte moves for this long hangs.
    #[arg(long, value_parser = duration, default_value = "30s")]
    deadline: Duration,
    /// Seed of the bytes; without it a random one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How to talk to sockets.
    #[arg(long, value_enum, default_value_t)]
    io: Choice,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs them and prints what came of it.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = plan(args)?;
    stop_on_signals(plan.stop.clone())?;
    let bar = Progress::new(&plan);
    let outcome = run::run(&plan, |counters| bar.show(counters))?;
    bar.end();
    let report = Report::new(&plan, &outcome);
    let mut stdout = std::io::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(stdout, "{report}")?;
    }
    Ok(if outcome.tally.right == outcome.tally.flows() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn plan(args: &Args) -> anyhow::Result<Plan> {
    let duration = match (args.duration, args.bytes) {
        (None, None) => Some(Duration::from_secs(10)),
        (duration, _) => duration,
    };
    Ok(Plan {
        flows: args.flows,
        total: args.total,
        bytes: args.bytes,
        message: usize::try_from(args.message)?,
        duration,
        stall: args.deadline,
        seed: args.seed.unwrap_or_else(rand::random),
        threads: args.threads,
        io: args.io,
        ..Plan::new(args.target, args.mode)
    })
}

/// A bar on a terminal, nothing elsewhere.
struct Progress {
    bar: ProgressBar,
    start: Instant,
    by_time: Option<Duration>,
}

impl Progress {
    fn new(plan: &Plan) -> Progress {
        // Whatever ends the run is what the bar counts: bytes, or time.
        let directions = if matches!(plan.mode, Mode::Upload | Mode::Download) {
            1
        } else {
            2
        };
        let (len, by_time) = match (plan.duration, plan.bytes) {
            (Some(duration), _) => (
                duration.as_millis().try_into().unwrap_or(u64::MAX),
                Some(duration),
            ),
            (None, bytes) => {
                let flows = plan.total.unwrap_or(plan.flows);
                (
                    bytes
                        .unwrap_or(0)
                        .saturating_mul(flows)
                        .saturating_mul(directions),
                    None,
                )
            }
        };
        let style = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}")
            .expect("the template is well-formed");
        let bar = ProgressBar::new(len).with_style(style);
        Progress {
            bar,
            start: Instant::now(),
            by_time,
        }
    }

    fn show(&self, counters: &Counters) {
        let moved = counters.bytes_up() + counters.bytes_down();
        let elapsed = self.start.elapsed();
        self.bar.set_position(match self.by_time {
            Some(duration) => elapsed
                .min(duration)
                .as_millis()
                .try_into()
                .unwrap_or(u64::MAX),
            None => moved,
        });
        let rate = moved as f64 * 8.0 / elapsed.as_secs_f64().max(0.001) / 1e9;
        let (live, ended, bad) = (counters.live(), counters.ended(), counters.bad());
        self.bar.set_message(format!(
            "{}  {rate:.2} Gbit/s  {live} live, {ended} ended, {bad} bad",
            BinaryBytes(moved)
        ));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
