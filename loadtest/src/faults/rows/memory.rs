//! Row 27: applications that do not read what an endpoint pours, and a sender whose endpoint does
//! not read, beside a relay that may take 256 MiB.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::SockRef;
use tempfile::TempDir;
use underpass_proto::Rule;

use crate::faults::calls::Calls;
use crate::faults::scene::{FarEnd, NAME, with};
use crate::faults::trial::{Bar, Trial};
use crate::scenario::Outcome;
use crate::stand::agent::Agent;
use crate::stand::deadline::{MOMENT, pause, wait_for};
use crate::stand::installation::{Installation, Setup, underpass, write_secret};
use crate::stand::process::{Process, free_tcp_address};
use crate::stand::usage;

/// What the relay may take, and what of it counts as held within 10 %.
const LIMIT_MIB: u64 = 256;
const LIMIT_MB: f64 = (LIMIT_MIB << 20) as f64 / 1e6 * 1.1;

/// Honest applications have an endpoint of their own, through the same agent and session.
const OTHERS: &str = "other-way";

/// What they do.
const HONEST: &str =
    "[[group]]\nname = \"honest\"\nflows = 8\nrate = 200\nrequest = 100\nresponse = 1000\n";

/// How long after the attack all must be as before, and what of memory the relay may keep, MB:
/// buffers, and what the allocator keeps for its threads.
const AFTER: Duration = Duration::from_secs(10);
const LEFT_MB: f64 = 32.0;

/// Longest wait until the crowd has filled all that it may.
const FILLS_WITHIN: Duration = Duration::from_secs(20);

/// It has when no flow was ended for so long, and what those held has gone back to the system.
const FILLED_AFTER: Duration = Duration::from_secs(4);

/// Applications that connect beside the crowd, and how long each waits for a byte or an end.
const NEWCOMERS: u64 = 10;
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Between two looks at the relay's memory.
const LOOK_EACH: Duration = Duration::from_millis(20);

/// What the kernel may keep for a connection of the attackers. They would be on machines of their
/// own; with buffers as large as they come, 2,000 of them use up what this machine's TCP may have
/// (`net.ipv4.tcp_mem`), and the kernel then drops segments of all connections, with a relay
/// between or without.
const SOCKET_BUFFER: usize = 64 * 1024;

/// Each of the crowd connects again about this long after it was cut: from half of it to half more,
/// so that they do not come in waves, in which this machine would be busy with its 1,000 threads.
const AGAIN: Duration = Duration::from_millis(500);

/// Both halves of the row.
pub(in crate::faults) fn no_reader(trial: &mut Trial<'_>) -> Result<()> {
    let pour = Hostile::start(true)?;
    beside(
        trial,
        "applications that do not read",
        pour.address,
        |scene| scene.installation.binding(NAME),
        false,
    )?;
    let silent = Hostile::start(false)?;
    beside(
        trial,
        "a sender's endpoint that does not read",
        silent.address,
        Stage::start_sender,
        true,
    )
}

struct Stage {
    installation: Installation,
    _agent: Agent,
    _far_end: FarEnd,
    others: SocketAddr,
    relay: u32,
    /// The sender, and its folder.
    sender: Mutex<Option<(Process, TempDir)>>,
}

impl Stage {
    fn open(trial: &Trial<'_>, hostile: SocketAddr) -> Result<Self> {
        let far_end = FarEnd::start(trial)?;
        let installation = Installation::new(Setup {
            probe: false,
            ..trial.setup()
        })?;
        let file = installation.directory().join("namespace.toml");
        let text = fs::read_to_string(&file)?;
        fs::write(
            &file,
            format!("{text}[relay]\nmemory_mib_max = {LIMIT_MIB}\n"),
        )?;
        installation.define(NAME, &hostile.to_string())?;
        installation.define(OTHERS, &far_end.address.to_string())?;
        installation.start_control()?;
        installation.start_relay()?;
        let agent = installation.start_agent(&[NAME, OTHERS], &[])?;
        let relay = with(&mut installation.relay(), |relay| Ok(relay.id()))?;
        Ok(Self {
            others: installation.binding(OTHERS)?,
            relay,
            installation,
            _agent: agent,
            _far_end: far_end,
            sender: Mutex::default(),
        })
    }

    /// Where applications beside a sender connect.
    fn start_sender(&self) -> Result<SocketAddr> {
        let folder = TempDir::with_prefix("underpass-sender-")?;
        let string = self.installation.string_of(NAME, Rule::Send, &[])?;
        write_secret(&folder.path().join("hostile.connection"), &string)?;
        let bind = free_tcp_address();
        let config =
            format!("[[connect]]\nstring_file = \"hostile.connection\"\nbind = \"{bind}\"\n");
        let file = folder.path().join("sender.toml");
        fs::write(&file, config)?;
        let mut command: Command = underpass()?;
        command.args(["sender", "run", "--config"]).arg(file);
        let process = Process::start("sender", &mut command)?;
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = Some((process, folder));
        wait_for("the sender to listen", MOMENT, || {
            TcpStream::connect(bind).ok().map(drop)
        })?;
        Ok(bind)
    }

    /// Waits until the relay ends no more flows: the crowd has filled what it may. A crowd that
    /// never has is measured after [`FILLS_WITHIN`] all the same.
    fn wait_until_filled(&self) -> Result<()> {
        let began = Instant::now();
        let mut ended = (u64::MAX, began);
        while began.elapsed() < FILLS_WITHIN && ended.1.elapsed() < FILLED_AFTER {
            let relay = self.installation.status()?.relay;
            let now = relay.map_or(0, |relay| relay.pressure.flows_ended);
            if now != ended.0 {
                ended = (now, Instant::now());
            }
            pause(Duration::from_millis(100));
        }
        Ok(())
    }

    fn is_overloaded(&self) -> Result<bool> {
        let relay = self.installation.status()?.relay;
        Ok(relay.is_some_and(|relay| relay.overloaded.is_some()))
    }

    /// The same within [`FILLS_WITHIN`]: what flows hold on their way to the endpoint fills first,
    /// which nobody has to be refused for.
    fn is_overloaded_soon(&self) -> Result<bool> {
        let began = Instant::now();
        while began.elapsed() < FILLS_WITHIN {
            if self.is_overloaded()? {
                return Ok(true);
            }
            pause(Duration::from_millis(50));
        }
        Ok(false)
    }

    /// How long it takes from now until the relay has no more memory than it may keep, and refuses
    /// nobody; `None` if longer than [`AFTER`].
    fn time_until_calm(&self, before: u64) -> Result<Option<Duration>> {
        let left = Instant::now();
        while left.elapsed() < AFTER {
            let kept = mb_above(before, usage::memory(self.relay)?);
            if kept < LEFT_MB && !self.is_overloaded()? {
                return Ok(Some(left.elapsed()));
            }
            pause(Duration::from_millis(100));
        }
        Ok(None)
    }
}

fn beside(
    trial: &mut Trial<'_>,
    what: &str,
    hostile: SocketAddr,
    enter: impl Fn(&Stage) -> Result<SocketAddr>,
    writes: bool,
) -> Result<()> {
    let stage = Stage::open(trial, hostile)?;
    let untouched = Stage::open(trial, hostile)?;
    let entry = enter(&stage)?;
    let honest = HonestCalls {
        attacked: stage.others,
        untouched: untouched.others,
        length: Duration::from_secs(trial.pick(1, 10, 60)),
    };
    let alone = honest.run(trial)?;
    let before = usage::memory(stage.relay)?;
    let flows = trial.pick(300, 1_000, 1_000);
    trial.fault(format!("{flows} flows: {what}"));
    let peak = Peak::start(stage.relay);
    let crowd = Crowd::start(flows, entry, writes);
    let filling = honest.run(trial)?;
    let reported = stage.is_overloaded_soon()?;
    stage.wait_until_filled()?;
    let beside = honest.run(trial)?;
    let answered = newcomers_answered(entry);
    let still_reported = stage.is_overloaded()?;
    crowd.leave();
    let peak = peak.stop();
    let calm = stage.time_until_calm(before)?;
    let again = honest.run(trial)?;
    let kept = mb_above(before, usage::memory(stage.relay)?);
    report_calls(trial, what, [&alone, &filling, &beside, &again])?;
    // The crowd of a short run takes no more than it may have.
    let overloads = trial.pick(false, true, true);
    trial.count(
        format!("{what}: of {NEWCOMERS} newcomers of theirs, answered or refused in time"),
        answered,
        overloads.then_some(Bar::AtLeast(1.0)),
    );
    trial.count(
        format!("{what}: status reports it (1)"),
        u64::from(reported),
        Some(Bar::Exactly(1.0)),
    );
    trial.count(
        format!("{what}: status reports it as long as some are refused (1)"),
        u64::from(still_reported),
        overloads.then_some(Bar::Exactly(1.0)),
    );
    trial.figure(
        format!("{what}: memory of the relay at most"),
        peak as f64 / 1e6,
        "MB",
        Some(Bar::AtMost(LIMIT_MB)),
    );
    trial.figure(
        format!("{what}: memory and state as before, after they left"),
        calm.map_or(f64::INFINITY, |calm| calm.as_secs_f64()),
        "s",
        Some(Bar::AtMost(AFTER.as_secs_f64())),
    );
    trial.figure(
        format!("{what}: memory that the relay keeps"),
        kept,
        "MB",
        Some(Bar::Under(LEFT_MB)),
    );
    Ok(())
}

fn mb_above(before: u64, now: u64) -> f64 {
    (now as f64 - before as f64) / 1e6
}

/// Honest applications of the relay that is attacked, and at the same time of another relay on this
/// machine: the difference is what the attack costs through the relay, and not by the machine's
/// load.
struct HonestCalls {
    attacked: SocketAddr,
    untouched: SocketAddr,
    length: Duration,
}

/// The outcomes of calls through both relays.
struct HonestOutcomes {
    attacked: Outcome,
    untouched: Outcome,
}

impl HonestCalls {
    fn run(&self, trial: &mut Trial<'_>) -> Result<HonestOutcomes> {
        let attacked = Calls::start(trial, self.attacked, HONEST, self.length)?;
        let untouched = Calls::start(trial, self.untouched, HONEST, self.length)?;
        Ok(HonestOutcomes {
            attacked: attacked.end(trial)?,
            untouched: untouched.end(trial)?,
        })
    }
}

fn p99_ms(outcome: &Outcome) -> Result<f64> {
    let group = outcome.group("honest").context("the group was run")?;
    let latency = group.latency.at(0.99).context("nothing was measured")?;
    Ok(latency.as_secs_f64() * 1e3)
}

/// What honest applications noticed: alone, while the crowd fills what it may, beside it,
/// afterwards.
fn report_calls(trial: &mut Trial<'_>, what: &str, outcomes: [&HonestOutcomes; 4]) -> Result<()> {
    let mut attacked = [0.0; 4];
    let mut untouched = [0.0; 4];
    for (nth, name) in ["alone", "in the first seconds", "beside", "afterwards"]
        .into_iter()
        .enumerate()
    {
        attacked[nth] = p99_ms(&outcomes[nth].attacked)?;
        untouched[nth] = p99_ms(&outcomes[nth].untouched)?;
        trial.figure(
            format!("{what}: others' p99 {name}"),
            attacked[nth],
            "ms",
            None,
        );
        trial.figure(
            format!("{what}: p99 {name}, of another relay"),
            untouched[nth],
            "ms",
            None,
        );
        let group = outcomes[nth]
            .attacked
            .group("honest")
            .context("the group was run")?;
        trial.count(
            format!("{what}: others' calls failed {name}"),
            group.counts.failed + group.counts.cut,
            Some(Bar::Exactly(0.0)),
        );
    }
    // A second of each says nothing about a hundredth of the calls.
    let twice = Some(Bar::Under(2.0));
    let bar = trial.pick(None, twice, twice);
    // The crowd is on this machine, too: what it costs an untouched relay's applications is not
    // this relay's doing.
    trial.figure(
        format!("{what}: p99 beside, times p99 alone or of another relay, whichever is more"),
        attacked[2] / attacked[0].max(untouched[2]),
        "×",
        bar,
    );
    Ok(())
}

/// How many applications that connect beside the crowd learn what becomes of them. A few may find a
/// place, where nothing is ever said.
fn newcomers_answered(to: SocketAddr) -> u64 {
    let threads: Vec<_> = (0..NEWCOMERS)
        .map(|_| thread::spawn(move || is_answered(to)))
        .collect();
    let answers = threads.into_iter().map(thread::JoinHandle::join);
    answers.filter(|answer| matches!(answer, Ok(true))).count() as u64
}

fn is_answered(to: SocketAddr) -> bool {
    let ask = || {
        let mut socket = TcpStream::connect_timeout(&to, ANSWER_WITHIN)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        socket.write_all(b"?")?;
        socket.read(&mut [0])
    };
    match ask() {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
    }
}

/// The most memory that a process has until it is no longer looked at.
struct Peak {
    ending: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
}

impl Peak {
    fn start(process: u32) -> Self {
        let peak = Self {
            ending: Arc::default(),
            most: Arc::default(),
        };
        let (ending, most) = (Arc::clone(&peak.ending), Arc::clone(&peak.most));
        thread::spawn(move || {
            while !ending.load(Ordering::Relaxed) {
                let Ok(now) = usage::memory(process) else {
                    return;
                };
                most.fetch_max(now, Ordering::Relaxed);
                pause(LOOK_EACH);
            }
        });
        peak
    }

    fn stop(self) -> u64 {
        self.ending.store(true, Ordering::Relaxed);
        self.most.load(Ordering::Relaxed)
    }
}

/// Applications that read nothing, or write what nobody reads, and connect again when they are cut.
struct Crowd(Arc<AtomicBool>);

impl Crowd {
    fn start(count: u64, to: SocketAddr, writes: bool) -> Self {
        let left = Arc::<AtomicBool>::default();
        for nth in 0..count {
            let left = Arc::clone(&left);
            let again = AGAIN.mul_f64(0.5 + nth as f64 / count as f64);
            thread::spawn(move || {
                while !left.load(Ordering::Relaxed) {
                    // Whatever ended it: it connects again.
                    let _ = live(to, writes, again, &left);
                    pause(again);
                }
            });
        }
        Self(left)
    }

    fn leave(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One connection, until it is cut or the crowd leaves.
fn live(to: SocketAddr, writes: bool, look_each: Duration, left: &AtomicBool) -> io::Result<()> {
    let mut socket = TcpStream::connect_timeout(&to, MOMENT)?;
    keep_buffers_small(SockRef::from(&socket))?;
    socket.set_write_timeout(Some(look_each))?;
    // It leaves by a reset: what is only closed would still have to reach its endpoint.
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    while !left.load(Ordering::Relaxed) {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        match writes.then(|| socket.write(&[0; 64 * 1024])) {
            None => pause(look_each),
            Some(Ok(_)) => {}
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(Err(error)) => return Err(error),
        }
    }
    Ok(())
}

fn keep_buffers_small(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)
}

/// An endpoint that pours without end, or reads nothing.
struct Hostile {
    address: SocketAddr,
}

impl Hostile {
    fn start(pours: bool) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // What it accepts has the same.
        keep_buffers_small(SockRef::from(&listener))?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            let mut silent = Vec::new();
            for mut stream in listener.incoming().map_while(io::Result::ok) {
                if pours {
                    thread::spawn(move || while stream.write_all(&[0; 64 * 1024]).is_ok() {});
                } else {
                    silent.push(stream);
                }
            }
        });
        Ok(Self { address })
    }
}
