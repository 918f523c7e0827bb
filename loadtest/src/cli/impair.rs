//! `impair`: a bad network between two UDP addresses, until a signal.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use underpass_loadtest::impair::{Counts, Link, PROFILES, Profile, Proxy, Seen};
use underpass_loadtest::scenario::Stop;
use underpass_loadtest::units::{bit_rate, chance, duration, size};

use super::signals::stop_on_signals;

/// How often the proxy's timers are looked at, and a wish to stop is noticed.
const TICK: Duration = Duration::from_millis(20);

/// What the chances and times beside a profile are added to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where clients send to; port 0 picks a free one. It is printed on stdout as one line of JSON.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The server.
    #[arg(long, required_unless_present = "profiles")]
    to: Option<SocketAddr>,
    /// A network by name; --profiles lists them. The options below change single figures of it.
    #[arg(long, default_value = "clean", value_parser = profile)]
    profile: Profile,
    /// List the networks that have names.
    #[arg(long)]
    profiles: bool,
    /// One-way delay: 30ms.
    #[arg(long, value_parser = duration)]
    delay: Option<Duration>,
    /// Added to the delay, evenly between none and this; order is kept.
    #[arg(long, value_parser = duration)]
    jitter: Option<Duration>,
    /// Lost, of all datagrams: 2% or 0.02.
    #[arg(long, value_parser = chance)]
    loss: Option<f64>,
    /// Mean length of a run of lost ones (Gilbert-Elliott); 1: each by itself.
    #[arg(long)]
    burst: Option<f64>,
    /// Held back so that others pass: 1% or 0.01.
    #[arg(long, value_parser = chance)]
    reorder: Option<f64>,
    /// Sent twice.
    #[arg(long, value_parser = chance)]
    duplicate: Option<f64>,
    /// One bit changed.
    #[arg(long, value_parser = chance)]
    flip: Option<f64>,
    /// Bits per second in each direction: 500k, 20m, 1g (powers of 1,000).
    #[arg(long, value_parser = bit_rate)]
    rate: Option<u64>,
    /// Bytes that wait for the rate: 256k.
    #[arg(long, value_parser = size)]
    queue: Option<u64>,
    /// Largest datagram that passes, bytes of UDP payload (the packet less 28).
    #[arg(long)]
    mtu: Option<usize>,
    /// New addresses towards the server, as of a NAT that forgets.
    #[arg(long, value_parser = duration)]
    rebind_every: Option<Duration>,
    /// Swallow all from AT on, FOR so long: 10s,5s.
    #[arg(long, value_name = "AT,FOR", value_parser = window)]
    black_hole: Vec<Window>,
    /// Seed of all chances; without it a random one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the counts as JSON.
    #[arg(long)]
    json: bool,
}

/// Carries until a signal, and says what was done to the datagrams.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut stdout = std::io::stdout();
    if args.profiles {
        for profile in PROFILES {
            writeln!(stdout, "{:<12} {}", profile.name, profile.about)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let to = args.to.context("no server: give --to ADDR")?;
    let link = args.link()?;
    if let Some(fault) = link.fault() {
        anyhow::bail!("{fault}\nhint: `underpass-loadtest impair --help` says what each takes");
    }
    let stop = Stop::default();
    stop_on_signals(stop.clone())?;
    let seed = args.seed.unwrap_or_else(rand::random);
    let proxy = Proxy::start(args.listen, to, link, seed)
        .with_context(|| format!("cannot listen on {} (udp)", args.listen))?;
    let listens = serde_json::json!({ "listen": proxy.address(), "to": to, "seed": seed });
    writeln!(stdout, "{listens}")?;
    stdout.flush()?;
    carry(args, &proxy, &stop);
    let seen = proxy.seen();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string(&seen)?)?;
    } else {
        write!(stdout, "{}", table(&seen))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The timers of the command line.
fn carry(args: &Args, proxy: &Proxy, stop: &Stop) {
    let start = Instant::now();
    let mut rebinds = 0;
    while !stop.is_stopped() {
        let passed = start.elapsed();
        let inside = |window: &Window| (window.at..window.at + window.length).contains(&passed);
        proxy.black_hole(args.black_hole.iter().any(inside));
        if let Some(every) = args.rebind_every.filter(|every| !every.is_zero())
            && passed.as_nanos() / every.as_nanos() > rebinds
        {
            rebinds = passed.as_nanos() / every.as_nanos();
            proxy.rebind();
        }
        std::thread::sleep(TICK);
    }
}

impl Args {
    fn link(&self) -> anyhow::Result<Link> {
        let from = self.profile.link;
        Ok(Link {
            delay: self.delay.unwrap_or(from.delay),
            jitter: self.jitter.unwrap_or(from.jitter),
            loss: self.loss.unwrap_or(from.loss),
            burst: self.burst.unwrap_or(from.burst),
            reorder: self.reorder.unwrap_or(from.reorder),
            duplicate: self.duplicate.unwrap_or(from.duplicate),
            flip: self.flip.unwrap_or(from.flip),
            rate: self.rate.or(from.rate),
            queue: self.queue.map_or(Ok(from.queue), usize::try_from)?,
            mtu: self.mtu.or(from.mtu),
        })
    }
}

/// When all is swallowed, since the start.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Window {
    at: Duration,
    length: Duration,
}

fn window(text: &str) -> Result<Window, String> {
    let (at, length) = text
        .split_once(',')
        .ok_or_else(|| format!("{text:?} is no window: write AT,FOR like 10s,5s"))?;
    Ok(Window {
        at: duration(at)?,
        length: duration(length)?,
    })
}

fn profile(text: &str) -> Result<Profile, String> {
    let names = || PROFILES.map(|profile| profile.name).join(", ");
    Profile::named(text).ok_or_else(|| format!("no network has this name: there are {}", names()))
}

fn table(seen: &Seen) -> String {
    let mut out = format!(
        "{:<14} {:>12} {:>12}\n",
        format!("{} clients", seen.clients),
        "up",
        "down"
    );
    let mut row = |name: &str, of: fn(&Counts) -> u64| {
        let (up, down) = (of(&seen.up), of(&seen.down));
        out += &format!("{name:<14} {up:>12} {down:>12}\n");
    };
    row("received", |counts| counts.received);
    row("bytes", |counts| counts.bytes);
    row("forwarded", |counts| counts.forwarded);
    row("lost", |counts| counts.lost);
    row("queue full", |counts| counts.queue_full);
    row("too large", |counts| counts.too_large);
    row("black hole", |counts| counts.swallowed);
    row("reordered", |counts| counts.reordered);
    row("duplicated", |counts| counts.duplicated);
    row("flipped", |counts| counts.flipped);
    if seen.rebinds > 0 {
        out += &format!("{} new addresses towards the server\n", seen.rebinds);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_two_times() {
        let expected = Window {
            at: Duration::from_secs(10),
            length: Duration::from_millis(500),
        };
        assert_eq!(window("10s,500ms"), Ok(expected));
        assert!(window("10s").is_err() && window("x,1s").is_err());
        assert!(profile("nowhere").is_err_and(|told| told.contains("weak-4g")));
    }
}
