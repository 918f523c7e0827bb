//! Runs a scenario: each group on threads of its own, so that a busy group does not disturb the
//! clock of another.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::alarm::Alarm;
use super::client::{self, Context, Phase};
use super::recorder::{self, Counters, Recorder};
use super::{Group, GroupOutcome, Outcome, Pace, Scenario, check};
use crate::io::{self as way, Choice, Job, Socket};
use crate::limits;
use crate::pattern::derive;

/// Calls that are under way when the run ends have this long to end as well.
pub const GRACE: Duration = Duration::from_secs(2);

/// How often the caller of [`run_with`] is told how far it is, and a wish to stop is noticed.
const TICK: Duration = Duration::from_millis(100);

/// How a scenario is run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of the bytes and of all chances: the same seed gives the same calls.
    pub seed: u64,
    /// How to talk to sockets.
    pub io: Choice,
    /// Threads of each group.
    pub threads: usize,
    /// Flows come from these addresses in turn; none: the kernel picks.
    pub sources: Vec<IpAddr>,
    /// Which part of all flows to run: (n, of). The others run elsewhere.
    pub part: (u64, u64),
    /// Sockets that this process has beside the flows, for an endpoint of its own.
    pub sockets_beside: u64,
    /// Ends the run early.
    pub stop: Stop,
}

/// Ends a run early, from any thread: no call begins any more, and the outcome tells what was done
/// until then.
#[derive(Clone, Default, Debug)]
pub struct Stop(Arc<AtomicBool>);

/// How far a run is.
#[derive(Clone, PartialEq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Since its start, seconds.
    pub seconds: f64,
    /// In the order of the scenario.
    pub groups: Vec<GroupProgress>,
}

/// How far a group is, in sums since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct GroupProgress {
    /// Connections that are open.
    pub live: u64,
    /// Calls that were answered, and right.
    pub right: u64,
    /// Calls that were not.
    pub bad: u64,
    /// Bytes of requests.
    pub up: u64,
    /// Bytes of responses.
    pub down: u64,
}

/// Why a scenario could not be run. What happens to calls is in the outcome.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The scenario makes no sense.
    #[error(transparent)]
    Scenario(#[from] check::Invalid),
    /// No target was given.
    #[error("no target to connect to")]
    NoTarget,
    /// The machine does not permit it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Runs it, flow `n` to target `n` modulo their number.
///
/// # Errors
/// It cannot be run at all. What happens to calls is in the outcome.
pub fn run(scenario: &Scenario, targets: &[SocketAddr]) -> Result<Outcome, Error> {
    run_with(scenario, targets, &Settings::default(), |_| ())
}

/// Runs it. `tick` is called about ten times a second.
///
/// # Errors
/// It cannot be run at all. What happens to calls is in the outcome.
pub fn run_with(
    scenario: &Scenario,
    targets: &[SocketAddr],
    settings: &Settings,
    mut tick: impl FnMut(&Progress),
) -> Result<Outcome, Error> {
    scenario.check()?;
    if targets.is_empty() {
        return Err(Error::NoTarget);
    }
    let flows: u64 = (scenario.groups.iter())
        .map(|group| settings.flows(group, 0, 1).count() as u64)
        .sum();
    limits::permit_sockets(flows + settings.sockets_beside)?;
    let running = Running::start(scenario, targets, settings)?;
    let mut outcome = Outcome {
        scenario: scenario.name.clone(),
        targets: targets.iter().map(SocketAddr::to_string).collect(),
        machine: machine(),
        io: running.kind.into(),
        seed: settings.seed,
        seconds: 0.0,
        stopped_early: false,
        interval_seconds: running.interval.as_secs_f64(),
        groups: scenario.groups.iter().map(GroupOutcome::new).collect(),
    };
    loop {
        match running.parts.recv_timeout(TICK) {
            Ok((group, part)) => {
                let (whole, part) = (&mut outcome.groups[group], part?);
                whole.seconds = part.seconds;
                whole.add(&part);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        running.advance(scenario.duration, &settings.stop);
        tick(&running.progress());
    }
    let stopped = running.phase.borrow().stopped;
    outcome.stopped_early = stopped.is_some();
    outcome.seconds = stopped.unwrap_or(scenario.duration).as_secs_f64();
    Ok(outcome)
}

/// What a figure depends on beside the scenario.
fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = (about.lines())
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("processor", |(_, model)| model.trim());
    let kernel = rustix::system::uname();
    format!(
        "{processors} × {model}, {} {}",
        kernel.sysname().to_string_lossy(),
        kernel.release().to_string_lossy()
    )
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            seed: 1,
            io: Choice::Auto,
            threads: 1,
            sources: Vec::new(),
            part: (0, 1),
            sockets_beside: 0,
            stop: Stop::default(),
        }
    }
}

impl Settings {
    /// The flows of a group that thread `n` of `of` runs.
    fn flows(&self, group: &Group, n: u64, of: u64) -> impl Iterator<Item = u64> + use<> {
        let (part, parts) = self.part;
        (part + n * parts..group.flows).step_by(usize::try_from(parts * of).unwrap_or(usize::MAX))
    }

    /// This part's share of the calls that may be under way at once.
    fn permits(&self, group: &Group) -> Option<Arc<Semaphore>> {
        let Pace::Closed {
            concurrency: Some(all),
            ..
        } = group.pace
        else {
            return None;
        };
        let (part, parts) = self.part;
        let share = all / parts + u64::from(part < all % parts);
        let share = usize::try_from(share).unwrap_or(usize::MAX);
        Some(Arc::new(Semaphore::new(
            share.clamp(1, Semaphore::MAX_PERMITS),
        )))
    }
}

impl Stop {
    /// Ends the run.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A run under way, seen from the thread that began it.
struct Running {
    kind: &'static str,
    start: Instant,
    interval: Duration,
    phase: watch::Sender<Phase>,
    counters: Vec<Arc<Counters>>,
    parts: mpsc::Receiver<(usize, io::Result<GroupOutcome>)>,
}

impl Running {
    fn start(
        scenario: &Scenario,
        targets: &[SocketAddr],
        settings: &Settings,
    ) -> Result<Running, Error> {
        let kind = settings.io.resolve()?;
        let (sender, parts) = mpsc::channel();
        let mut running = Running {
            kind: kind.name(),
            start: Instant::now(),
            interval: recorder::interval(scenario.duration),
            phase: watch::Sender::default(),
            counters: Vec::new(),
            parts,
        };
        for (n, group) in scenario.groups.iter().enumerate() {
            let counters = Arc::new(Counters::default());
            let permits = settings.permits(group);
            running.counters.push(Arc::clone(&counters));
            let threads = settings.threads.max(1) as u64;
            for thread in 0..threads {
                let flows: Vec<u64> = settings.flows(group, thread, threads).collect();
                if flows.is_empty() {
                    continue;
                }
                let worker = Worker {
                    group: group.clone(),
                    flows,
                    targets: targets.to_vec(),
                    sources: settings.sources.clone(),
                    parts: settings.part.1,
                    seed: derive(settings.seed, n as u64),
                    deadline: scenario.deadline,
                    start: running.start,
                    until: group.duration.unwrap_or(scenario.duration),
                    interval: running.interval,
                    phase: running.phase.subscribe(),
                    permits: permits.clone(),
                    counters: Arc::clone(&counters),
                };
                let sender = sender.clone();
                std::thread::Builder::new()
                    .name(format!("load-{n}"))
                    .spawn(move || {
                        let part = way::drive(kind, worker).and_then(|part| part);
                        let _ = sender.send((n, part)); // Fails only when the run was given up.
                    })?;
            }
        }
        Ok(running)
    }

    /// Moves the phase on with time and wish.
    fn advance(&self, duration: Duration, stop: &Stop) {
        let now = self.start.elapsed();
        let Phase { stopped, cut } = *self.phase.borrow();
        if stopped.is_none() && now < duration && stop.is_stopped() {
            self.phase.send_modify(|phase| phase.stopped = Some(now));
        }
        if !cut && now >= stopped.unwrap_or(duration) + GRACE {
            self.phase.send_modify(|phase| phase.cut = true);
        }
    }

    fn progress(&self) -> Progress {
        let read = |counters: &Arc<Counters>| GroupProgress {
            live: counters.live.load(Ordering::Relaxed),
            right: counters.right.load(Ordering::Relaxed),
            bad: counters.bad.load(Ordering::Relaxed),
            up: counters.up.load(Ordering::Relaxed),
            down: counters.down.load(Ordering::Relaxed),
        };
        Progress {
            seconds: self.start.elapsed().as_secs_f64(),
            groups: self.counters.iter().map(read).collect(),
        }
    }
}

/// One thread's share of a group.
struct Worker {
    group: Group,
    flows: Vec<u64>,
    targets: Vec<SocketAddr>,
    sources: Vec<IpAddr>,
    parts: u64,
    seed: u64,
    deadline: Duration,
    start: Instant,
    until: Duration,
    interval: Duration,
    phase: watch::Receiver<Phase>,
    permits: Option<Arc<Semaphore>>,
    counters: Arc<Counters>,
}

impl Job for Worker {
    type Output = io::Result<GroupOutcome>;

    async fn run<S: Socket>(self) -> io::Result<GroupOutcome> {
        let alarm = Rc::new(Alarm::new()?);
        let mut phase = self.phase.clone();
        let (ringing, ending) = (Rc::clone(&alarm), Rc::clone(&alarm));
        let mut beside = JoinSet::new();
        beside.spawn_local(async move { ringing.ring().await });
        beside.spawn_local(async move {
            let ended = |phase: &Phase| phase.stopped.is_some() || phase.cut;
            let _ = phase.wait_for(ended).await; // An error means that nobody runs us: end as well.
            ending.end();
        });
        let recorder = Recorder::new(&self.group, self.until, self.interval, self.counters);
        let context = Rc::new(Context {
            group: self.group,
            targets: self.targets,
            sources: self.sources,
            parts: self.parts,
            seed: self.seed,
            deadline: self.deadline,
            start: self.start,
            until: self.until,
            alarm,
            phase: self.phase,
            permits: self.permits,
            recorder: RefCell::new(recorder),
        });
        let mut flows = JoinSet::new();
        for index in self.flows {
            let context = Rc::clone(&context);
            flows.spawn_local(async move { client::run::<S>(&context, index).await });
        }
        while let Some(ended) = flows.join_next().await {
            ended.expect("a flow is never cancelled, and does not panic");
        }
        let stopped = context.phase.borrow().stopped;
        let Ok(context) = Rc::try_unwrap(context) else {
            return Err(io::Error::other("a flow outlives its end"));
        };
        Ok(context.recorder.into_inner().finish(stopped))
    }
}
