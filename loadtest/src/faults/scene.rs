//! What a row plays on: control, relay, agents, an endpoint and a client, each a process of its
//! own; and probes that tell when a way is usable again.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::trial::Trial;
use crate::io::Choice;
use crate::pattern::derive;
use crate::report::Report;
use crate::run::{self, Mode, Outcome, Plan};
use crate::stand::agent::Agent;
use crate::stand::deadline::{MOMENT, pause, wait_for};
use crate::stand::installation::{Installation, Setup};
use crate::stand::process::Process;

/// The hybrid connection that every row has.
pub(crate) const NAME: &str = "fault-way";

/// The deadline of flows: above the 15 s after which a silent session is given up, and what follows
/// from that.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Between two probes: what a recovery's time is exact to.
const PROBE_EACH: Duration = Duration::from_millis(10);

/// Probes that have not ended yet; while there are so many, no other begins.
const PROBES_MAX: usize = 64;

/// Bytes of a probe, there and back.
const PROBE_BYTES: u64 = 4_096;

/// Longest wait for a client that was asked to end, beyond the deadline of its flows.
const CLIENT_ENDS_WITHIN: Duration = Duration::from_secs(30);

/// An installation with agents and an endpoint.
pub(crate) struct Scene {
    /// Directory, control and relay.
    pub(crate) installation: Installation,
    /// All registered for [`NAME`].
    pub(crate) agents: Vec<Agent>,
    /// The far end.
    pub(crate) endpoint: FarEnd,
    /// Where applications connect.
    pub(crate) binding: SocketAddr,
}

impl Scene {
    /// Starts all of it, with so many agents, and waits until a flow would get through.
    pub(crate) fn open(trial: &Trial<'_>, agents: usize) -> Result<Scene> {
        Scene::open_with(trial, trial.setup(), agents)
    }

    /// As [`Scene::open`], set up otherwise.
    pub(crate) fn open_with(trial: &Trial<'_>, setup: Setup, agents: usize) -> Result<Scene> {
        Scene::prepare(trial, setup)?.with_agents(agents)
    }

    /// All but the agents.
    pub(crate) fn prepare(trial: &Trial<'_>, setup: Setup) -> Result<Scene> {
        let endpoint = FarEnd::start(trial)?;
        let installation = Installation::new(Setup {
            probe: false,
            ..setup
        })?;
        installation.define(NAME, &endpoint.address.to_string())?;
        installation.start_control()?;
        installation.start_relay()?;
        let binding = installation.binding(NAME)?;
        Ok(Scene {
            installation,
            agents: Vec::new(),
            endpoint,
            binding,
        })
    }

    /// Starts so many agents, and waits until all have registered.
    pub(crate) fn with_agents(mut self, agents: usize) -> Result<Scene> {
        for _ in 0..agents {
            let agent = self.installation.start_agent(&[NAME], &[])?;
            self.agents.push(agent);
        }
        Ok(self)
    }

    /// kill -9 of the relay.
    pub(crate) fn kill_relay(&self) -> Result<()> {
        with(&mut self.installation.relay(), Process::kill)
    }

    /// kill -9 of control.
    pub(crate) fn kill_control(&self) -> Result<()> {
        with(&mut self.installation.control(), Process::kill)
    }

    /// kill -9 of an agent.
    pub(crate) fn kill_agent(&self, nth: usize) -> Result<()> {
        with(&mut self.agents[nth].process(), Process::kill)
    }

    /// Process id of the relay.
    pub(crate) fn relay_id(&self) -> Result<u32> {
        with(&mut self.installation.relay(), |process| Ok(process.id()))
    }

    /// Whatever has ended though nobody ended it.
    pub(crate) fn check_alive(&self) -> Result<()> {
        let alive = |name: &str, process: &mut Option<Process>| match process.as_mut() {
            Some(process) => match process.ended() {
                Some(status) => bail!(
                    "{name} has ended by itself with {status}\n{}",
                    process.log_end()
                ),
                None => Ok(()),
            },
            None => bail!("{name} does not run"),
        };
        alive("control", &mut self.installation.control())?;
        alive("the relay", &mut self.installation.relay())?;
        for agent in &self.agents {
            alive("an agent", &mut agent.process())?;
        }
        Ok(())
    }

    /// What the relay has logged since it began.
    pub(crate) fn relay_log(&self) -> String {
        let relay = self.installation.relay();
        relay.as_ref().map_or_else(String::new, Process::stderr)
    }

    /// How many lines with `text` the relay has logged since it began.
    pub(crate) fn relay_lines(&self, text: &str) -> usize {
        let log = self.relay_log();
        log.lines().filter(|line| line.contains(text)).count()
    }
}

/// Does something with a process that must be there.
pub(crate) fn with<T>(
    process: &mut Option<Process>,
    act: impl FnOnce(&mut Process) -> Result<T>,
) -> Result<T> {
    act(process.as_mut().context("this process was never started")?)
}

/// An endpoint, a process of its own.
pub(crate) struct FarEnd {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    process: Process,
}

impl FarEnd {
    /// Starts one for verified flows on a free port.
    pub(crate) fn start(trial: &Trial<'_>) -> Result<FarEnd> {
        let mut command = Command::new(trial.own());
        command.arg("endpoint");
        FarEnd::of("endpoint", &mut command)
    }

    /// Starts a command that tells where it listens as one line of JSON.
    pub(crate) fn of(name: &str, command: &mut Command) -> Result<FarEnd> {
        let mut process = Process::start(name, command)?;
        let line = process.wait_for_line("\"listen\"", MOMENT)?;
        let told: Value =
            serde_json::from_str(&line).with_context(|| format!("{name} told {line}"))?;
        let address = told["listen"].as_str().context("no address")?.parse()?;
        Ok(FarEnd { address, process })
    }

    /// Its process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// What the flows of a client do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Which way the bytes go.
    pub(crate) mode: Mode,
    /// Flows at once.
    pub(crate) flows: u64,
    /// Bytes each way in one flow; `None`: as many as fit until the client is stopped.
    pub(crate) bytes: Option<u64>,
    /// Length of a message of ping-pong.
    pub(crate) message: u64,
    /// A flow in which no byte moves for so long hangs.
    pub(crate) deadline: Duration,
    /// Whether the client ends when its first flows have ended.
    pub(crate) once: bool,
}

impl Shape {
    /// Flows that come and go, and move some bytes there and back.
    pub(crate) const COMING_AND_GOING: Shape = Shape {
        mode: Mode::PingPong,
        flows: 8,
        bytes: Some(512 * 1024),
        message: 16 * 1024,
        deadline: DEADLINE,
        once: false,
    };
}

/// Verified flows of a process of their own, until they are stopped.
pub(crate) struct Client {
    process: Process,
    deadline: Duration,
}

impl Client {
    /// Starts it.
    pub(crate) fn start(trial: &mut Trial<'_>, target: SocketAddr, shape: Shape) -> Result<Client> {
        let mut command = Command::new(trial.own());
        let seed = trial.chance(u64::MAX);
        command.args(["flows", "--json"]);
        if !shape.once {
            command.args(["--duration", "24h"]);
        }
        command.args([
            "--target",
            &target.to_string(),
            "--mode",
            mode_name(shape.mode),
        ]);
        command.args([
            "--flows",
            &shape.flows.to_string(),
            "--seed",
            &seed.to_string(),
        ]);
        command.args(["--message", &shape.message.to_string()]);
        command.args(["--deadline", &format!("{}ms", shape.deadline.as_millis())]);
        if let Some(bytes) = shape.bytes {
            command.args(["--bytes", &bytes.to_string()]);
        }
        Ok(Client {
            process: Process::start("client", &mut command)?,
            deadline: shape.deadline,
        })
    }

    /// Whether its flows are still under way.
    pub(crate) fn is_live(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Lets its flows end, and gives their endings to the trial.
    pub(crate) fn stop(mut self, trial: &mut Trial<'_>) -> Result<Report> {
        self.process.ask_to_end()?;
        self.end(trial)
    }

    /// Waits for its end, and gives the endings of its flows to the trial.
    pub(crate) fn end(mut self, trial: &mut Trial<'_>) -> Result<Report> {
        self.process.wait(self.deadline + CLIENT_ENDS_WITHIN)?;
        let report: Report = serde_json::from_str(&self.process.stdout())
            .with_context(|| format!("the client told no report\n{}", self.process.log_end()))?;
        trial.take(&report);
        Ok(report)
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Echo => "echo",
        Mode::Upload => "upload",
        Mode::Download => "download",
        Mode::Both => "both",
        Mode::PingPong => "ping-pong",
    }
}

/// Small flows, one after another and beside each other, each on a thread of its own: a probe that
/// finds nobody must not delay the next.
pub(crate) struct Probes {
    target: SocketAddr,
    seed: u64,
    begun: u64,
    live: usize,
    sender: mpsc::Sender<Probed>,
    ended: mpsc::Receiver<Probed>,
    /// Not yet given to the trial.
    done: Vec<Outcome>,
}

struct Probed {
    begun: Instant,
    at: Instant,
    outcome: std::io::Result<Outcome>,
}

impl Probes {
    /// None yet.
    pub(crate) fn of(trial: &mut Trial<'_>, target: SocketAddr) -> Probes {
        let (sender, ended) = mpsc::channel();
        Probes {
            target,
            seed: trial.chance(u64::MAX),
            begun: 0,
            live: 0,
            sender,
            ended,
            done: Vec::new(),
        }
    }

    /// Begins probes until one that began after `since` gets through. Gives the time from `since`
    /// to its end.
    pub(crate) fn until_usable(&mut self, since: Instant, within: Duration) -> Result<Duration> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if self.live < PROBES_MAX {
                self.begin();
            }
            let next = Instant::now() + PROBE_EACH;
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                let Ok(probed) = self.ended.recv_timeout(left) else {
                    break; // Time for the next one.
                };
                let (begun, at) = (probed.begun, probed.at);
                if self.take(probed)? && begun >= since {
                    return Ok(at - since);
                }
            }
        }
        bail!("no flow has got through within {within:?}")
    }

    /// One flow from begin to end. Says whether it got through.
    pub(crate) fn one(&mut self) -> Result<bool> {
        let begun = Instant::now();
        self.begin();
        loop {
            let probed = self
                .ended
                .recv_timeout(DEADLINE * 2)
                .context("a probe does not end")?;
            let mine = probed.begun >= begun;
            let right = self.take(probed)?;
            if mine {
                return Ok(right);
            }
        }
    }

    fn begin(&mut self) {
        let plan = Plan {
            bytes: Some(PROBE_BYTES),
            stall: DEADLINE,
            seed: derive(self.seed, self.begun),
            io: Choice::Tokio,
            ..Plan::new(self.target, Mode::Echo)
        };
        let sender = self.sender.clone();
        self.begun += 1;
        self.live += 1;
        std::thread::spawn(move || {
            let begun = Instant::now();
            let outcome = run::run(&plan, |_| ());
            let at = Instant::now();
            let _ = sender.send(Probed { begun, at, outcome }); // Fails where the row was given up.
        });
    }

    fn take(&mut self, probed: Probed) -> Result<bool> {
        self.live -= 1;
        let outcome = probed.outcome?;
        let right = outcome.tally.right > 0;
        self.done.push(outcome);
        Ok(right)
    }

    /// Waits for all that are under way, and gives their endings to the trial.
    pub(crate) fn end(mut self, trial: &mut Trial<'_>) -> Result<()> {
        while self.live > 0 {
            let probed = self
                .ended
                .recv_timeout(DEADLINE * 2)
                .context("a probe does not end")?;
            self.take(probed)?;
        }
        for outcome in &self.done {
            trial.take_tally(&outcome.tally, outcome.bytes_up + outcome.bytes_down);
        }
        Ok(())
    }
}

/// Waits until the relay reports so many listeners of [`NAME`].
pub(crate) fn wait_for_listeners(scene: &Scene, listeners: u32) -> Result<()> {
    scene
        .installation
        .wait_for_hyco(NAME, "its listeners", |hyco| hyco.listeners == listeners)
        .map(drop)
}

/// Waits until the relay reports so many live flows of [`NAME`], or more.
pub(crate) fn wait_for_flows(scene: &Scene, flows: u64) -> Result<()> {
    scene
        .installation
        .wait_for_hyco(NAME, "its flows", |hyco| hyco.flows_live >= flows)
        .map(drop)
}

/// Waits until the relay reports no live flow of [`NAME`].
pub(crate) fn wait_until_idle(scene: &Scene) -> Result<()> {
    let within = DEADLINE + MOMENT;
    wait_for("all flows to end in the relay", within, || {
        let report = scene.installation.hyco(NAME).ok().flatten()?;
        if report.flows_live == 0 {
            return Some(());
        }
        pause(Duration::from_millis(50));
        None
    })
}
