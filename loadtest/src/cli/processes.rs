//! A run in several processes, each with its own part of the flows and its own source addresses:
//! where one process may not have enough files, or one core does not make enough load.
//!
//! The parent starts itself again for each part. It writes the scenario to the child's stdin as one
//! line; the child answers with a line when it can begin, begins at an empty line, and from then on
//! tells its progress, and its outcome at the end. The end of stdin stops it: so does the end of
//! the parent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use underpass_loadtest::io::Choice;
use underpass_loadtest::scenario::{self, GroupProgress, Outcome, Progress, Scenario, Settings};

/// Most processes: more than cores of any machine, and all last bytes of a loopback network.
pub(crate) const PROCESSES_MAX: u64 = 128;

/// Name of the hidden subcommand.
pub(crate) const COMMAND: &str = "part";

/// How often a child tells how far it is.
const TELL: Duration = Duration::from_millis(250);

/// Longest line that is read, bytes: an outcome with long series.
const LINE_MAX: u64 = 1 << 30;

/// What a child is told.
#[derive(Serialize, Deserialize)]
struct Order {
    scenario: Scenario,
    targets: Vec<SocketAddr>,
    sources: Vec<IpAddr>,
    seed: u64,
    threads: usize,
    io: Choice,
    part: (u64, u64),
}

/// What a child tells.
#[derive(Serialize, Deserialize)]
enum Word {
    Ready,
    Progress(Progress),
    Outcome(Box<Outcome>),
    Error(String),
}

/// Runs the scenario in so many processes.
pub(crate) fn run(
    scenario: &Scenario,
    targets: &[SocketAddr],
    settings: &Settings,
    processes: u64,
    mut tick: impl FnMut(&Progress),
) -> anyhow::Result<Outcome> {
    let (sender, words) = mpsc::channel();
    let mut parts = Vec::new();
    for n in 0..processes {
        let order = Order {
            scenario: scenario.clone(),
            targets: targets.to_vec(),
            sources: sources(&settings.sources, targets, n, processes),
            seed: settings.seed,
            threads: settings.threads,
            io: settings.io,
            part: (n, processes),
        };
        parts.push(Part::start(&order, sender.clone())?);
    }
    drop(sender);
    let mut ready = 0;
    let mut outcome: Option<Outcome> = None;
    let mut stopped = false;
    loop {
        match words.recv_timeout(TELL) {
            Ok((_, Word::Ready)) => {
                ready += 1;
                // All at once, so that their seconds are the same seconds.
                if ready == processes {
                    parts.iter_mut().for_each(Part::go);
                }
            }
            Ok((n, Word::Progress(progress))) => {
                parts[n].progress = progress;
                tick(&sum(&parts));
            }
            Ok((_, Word::Outcome(part))) => match &mut outcome {
                None => outcome = Some(*part),
                Some(whole) => whole.add(&part),
            },
            Ok((n, Word::Error(error))) => bail!("process {} of {processes}: {error}", n + 1),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if !stopped && settings.stop.is_stopped() {
            stopped = true;
            parts.iter_mut().for_each(Part::stop);
        }
    }
    for part in &mut parts {
        part.end()?;
    }
    outcome.context("no process has told its outcome")
}

/// The addresses of one part. Where none are given and all targets are on loopback, each part has
/// one of its own: a pair of addresses has no more ports than 28,000 or so.
fn sources(all: &[IpAddr], targets: &[SocketAddr], n: u64, processes: u64) -> Vec<IpAddr> {
    if all.is_empty() {
        let loopback = |target: &SocketAddr| target.is_ipv4() && target.ip().is_loopback();
        if !targets.iter().all(loopback) {
            return Vec::new();
        }
        let last = u8::try_from(n + 2).expect("processes are fewer than addresses");
        return vec![Ipv4Addr::new(127, 0, 0, last).into()];
    }
    let own = |at: usize| at as u64 % processes == n % (all.len() as u64).min(processes);
    let mine = all.iter().enumerate().filter(|(at, _)| own(*at));
    mine.map(|(_, address)| *address).collect()
}

fn sum(parts: &[Part]) -> Progress {
    let mut whole = Progress::default();
    for Progress { seconds, groups } in parts.iter().map(|part| &part.progress) {
        whole.seconds = whole.seconds.max(*seconds);
        if whole.groups.len() < groups.len() {
            whole
                .groups
                .resize_with(groups.len(), GroupProgress::default);
        }
        for (sum, group) in whole.groups.iter_mut().zip(groups) {
            sum.live += group.live;
            sum.right += group.right;
            sum.bad += group.bad;
            sum.up += group.up;
            sum.down += group.down;
        }
    }
    whole
}

/// A child, seen from its parent. Dropping it ends it.
struct Part {
    child: Child,
    stdin: Option<ChildStdin>,
    progress: Progress,
}

impl Part {
    fn start(order: &Order, words: mpsc::Sender<(usize, Word)>) -> anyhow::Result<Part> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut child = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process")?;
        let stdout = child.stdout.take().context("no pipe from the process")?;
        let mut part = Part {
            stdin: child.stdin.take(),
            child,
            progress: Progress::default(),
        };
        part.write(&serde_json::to_string(order)?);
        let n = usize::try_from(order.part.0)?;
        std::thread::Builder::new()
            .name(format!("part-{n}"))
            .spawn(move || {
                for word in read(stdout) {
                    let last = matches!(word, Word::Outcome(_) | Word::Error(_));
                    if words.send((n, word)).is_err() || last {
                        return; // Sending fails where the run was given up.
                    }
                }
                // Nobody may wait for it.
                let _ = words.send((n, Word::Error("it ended without an outcome".into())));
            })?;
        Ok(part)
    }

    fn go(&mut self) {
        self.write("");
    }

    fn write(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin {
            // A child that is gone shows by what it does not tell.
            let _ = stdin
                .write_all(line.as_bytes())
                .and_then(|()| stdin.write_all(b"\n"));
        }
    }

    fn stop(&mut self) {
        self.stdin = None;
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.stop();
        let status = self.child.wait()?;
        if !status.success() {
            bail!("a process of the run ended with {status}: its part is missing");
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stop();
        let _ = self.child.kill(); // Fails where it has ended by itself.
        let _ = self.child.wait();
    }
}

/// What a child tells, line by line.
fn read(stdout: ChildStdout) -> impl Iterator<Item = Word> {
    let lines = BufReader::new(stdout.take(LINE_MAX)).lines();
    lines.map(|line| {
        let word = line.map_err(|error| error.to_string());
        let word =
            word.and_then(|line| serde_json::from_str(&line).map_err(|error| error.to_string()));
        word.unwrap_or_else(Word::Error)
    })
}

/// The child's side.
pub(crate) fn part() -> anyhow::Result<ExitCode> {
    let mut stdin = BufReader::new(std::io::stdin().take(LINE_MAX));
    let mut line = String::new();
    stdin.read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)
        .context("this is started by `underpass-loadtest run --processes`, not by hand")?;
    let settings = Settings {
        seed: order.seed,
        io: order.io,
        threads: order.threads,
        sources: order.sources,
        part: order.part,
        ..Settings::default()
    };
    // A terminal's Ctrl-C reaches every process; the parent decides what it means.
    let _signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT])?;
    tell(&Word::Ready)?;
    line.clear();
    if stdin.read_line(&mut line)? == 0 {
        return Ok(ExitCode::SUCCESS); // The parent has gone, or given up.
    }
    let stop = settings.stop.clone();
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            let mut rest = Vec::new();
            let _ = stdin.read_to_end(&mut rest); // An error is an end as well.
            stop.stop();
        })?;
    let mut told = Instant::now();
    let outcome = scenario::run_with(&order.scenario, &order.targets, &settings, |progress| {
        if told.elapsed() >= TELL {
            told = Instant::now();
            let _ = tell(&Word::Progress(progress.clone())); // The outcome will fail as well.
        }
    });
    match outcome {
        Ok(outcome) => tell(&Word::Outcome(Box::new(outcome)))?,
        Err(error) => tell(&Word::Error(error.to_string()))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(word: &Word) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(word)?)?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_the_sources_and_have_one_of_their_own_on_loopback() {
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts
                .iter()
                .map(|text| text.parse().expect("an address"))
                .collect()
        };
        let near = ["127.0.0.1:80".parse().expect("an address")];
        let far = ["192.0.2.1:80".parse().expect("an address")];
        assert_eq!(sources(&[], &near, 0, 2), addresses(&["127.0.0.2"]));
        assert_eq!(sources(&[], &near, 1, 2), addresses(&["127.0.0.3"]));
        assert_eq!(sources(&[], &far, 1, 2), addresses(&[]));
        let three = addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(
            sources(&three, &far, 0, 2),
            addresses(&["10.0.0.1", "10.0.0.3"])
        );
        assert_eq!(sources(&three, &far, 1, 2), addresses(&["10.0.0.2"]));
        let one = addresses(&["10.0.0.1"]);
        assert_eq!(sources(&one, &far, 1, 2), one);
    }
}
