//! Rows 22 to 25: keys, definitions and processes that change as they should, under load; and a
//! kernel that forbids io_uring.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use underpass_proto::{Rule, Which};

use crate::faults::scene::{
    Client, FarEnd, NAME, Probes, Scene, Shape, wait_for_flows, wait_for_listeners, with,
};
use crate::faults::trial::{Bar, Trial};
use crate::run::Mode;
use crate::stand::agent::Agent;
use crate::stand::deadline::{MOMENT, pause, wait_for};
use crate::stand::installation::{Installation, Io, Setup, write_secret};
use crate::stand::process::{Process, Signal};

/// A dead key, or a change of a file, within this.
const SECOND: Duration = Duration::from_secs(1);

/// A change of a key is applied by then (some 30 ms are usual): what it cuts is cut.
const APPLIED: Duration = Duration::from_millis(250);

/// The longest that a flow may wait for its echo where nothing is done to it, on two cores that it
/// shares with the harm.
const NOT_NOTICED_MS: f64 = 750.0;

/// Its keys are made anew.
const TOUCHED: &str = "touched-keys";

/// Row 22.
pub(in crate::faults) fn keys(trial: &mut Trial<'_>) -> Result<()> {
    let mut command = Command::new(trial.own());
    let echo = FarEnd::of("echo", command.args(["endpoint", "plain-echo"]))?;
    let mut scene = Scene::prepare(trial, trial.setup())?;
    scene
        .installation
        .define(TOUCHED, &echo.address.to_string())?;
    let touched = scene.installation.binding(TOUCHED)?;
    let agent = scene.installation.start_agent(&[NAME, TOUCHED], &[])?;
    scene.agents.push(agent);
    let client = Client::start(trial, scene.binding, PACED)?;
    let mut times = Vec::new();
    for round in 0..trial.pick(10, 30, 1_000) {
        let mut live = wait_for("a flow", MOMENT, || Echo::open(touched).ok())?;
        trial.fault(format!("the secondary key is made anew, round {round}"));
        scene
            .installation
            .regenerate(TOUCHED, Rule::Listen, Which::Secondary)?;
        pause(APPLIED);
        live.exchange()
            .context("the key that nobody stands on cut a flow")?;
        trial.fault(format!("the primary key is made anew, round {round}"));
        scene
            .installation
            .regenerate(TOUCHED, Rule::Listen, Which::Primary)?;
        let made = Instant::now();
        ensure!(
            live.ends_in_error(MOMENT)?,
            "the flow of a dead key ended clean"
        );
        times.push(made.elapsed());
        let string = scene.installation.connection_string(TOUCHED)?;
        write_secret(&scene.agents[0].string_file(TOUCHED), &string)?;
    }
    trial.recovered("key made anew: the old one is dead", &times, Some(SECOND));
    notices_nothing(trial, client)?;
    scene.check_alive()
}

/// Flows that leave the machine to what is done.
const PACED: Shape = Shape {
    flows: 2,
    bytes: Some(256 * 1024),
    message: 2 * 1024,
    ..Shape::COMING_AND_GOING
};

/// No flow of the client was cut, or waited for long.
fn notices_nothing(trial: &mut Trial<'_>, client: Client) -> Result<()> {
    let report = client.stop(trial)?;
    let silence = report
        .silence
        .map_or(f64::NAN, |silence| silence.max_us as f64 / 1e3);
    trial.count(
        "flows of others: cut",
        report.flows.error,
        Some(Bar::Exactly(0.0)),
    );
    trial.figure(
        "flows of others: longest silence",
        silence,
        "ms",
        Some(Bar::Under(NOT_NOTICED_MS)),
    );
    Ok(())
}

/// One flow to a plain echo, byte by byte.
struct Echo(TcpStream);

impl Echo {
    fn open(address: SocketAddr) -> Result<Echo> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(MOMENT))?;
        let mut echo = Echo(stream);
        echo.exchange()?;
        Ok(echo)
    }

    fn exchange(&mut self) -> Result<()> {
        let mut byte = [7];
        self.0.write_all(&byte)?;
        self.0.read_exact(&mut byte)?;
        ensure!(byte == [7], "a wrong byte");
        Ok(())
    }

    /// Waits for its end: whether that is an explicit error.
    fn ends_in_error(&mut self, within: Duration) -> Result<bool> {
        self.0.set_read_timeout(Some(within))?;
        match self.0.read(&mut [0]) {
            Ok(0) => Ok(false),
            Ok(_) => bail!("a byte that nobody sent"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                bail!("it does not end")
            }
            Err(_) => Ok(true),
        }
    }
}

/// Row 23.
pub(in crate::faults) fn definitions(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 1)?;
    let client = Client::start(trial, scene.binding, PACED)?;
    let installation = &scene.installation;
    let each = Duration::from_millis(100);
    let count: u32 = trial.pick(100, 200, 1_000);
    let name = |n: u32| format!("crowd-{n}");
    let (began, mut times) = (Instant::now(), Vec::new());
    for n in 0..count {
        trial.fault(format!("definition {n} is made and changed"));
        installation.define(&name(n), "db01.corp:1433")?;
        let made = Instant::now();
        let binding = installation.wanted_binding(&name(n))?;
        wait_for("its binding", MOMENT, || TcpStream::connect(binding).ok())?;
        times.push(made.elapsed());
        installation.define(&name(n), "db02.corp:1433")?;
        if n >= 10 {
            installation.remove(&name(n - 10))?;
        }
        pause((each * (n + 1)).saturating_sub(began.elapsed()));
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    trial.figure(
        "definitions made, changed and removed",
        rate,
        "a second",
        Some(Bar::AtLeast(9.0)),
    );
    trial.recovered("definition written: binding open", &times, Some(SECOND));
    let left = || {
        let report = installation.status().ok()?.relay?;
        Some(
            report
                .hycos
                .iter()
                .filter(|hyco| hyco.name.to_string().starts_with("crowd-"))
                .count(),
        )
    };
    wait_for("the last ten definitions alone to be left", MOMENT, || {
        (left()? == 10).then_some(())
    })?;
    notices_nothing(trial, client)?;
    scene.check_alive()
}

/// Row 24.
pub(in crate::faults) fn drain(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 2)?;
    wait_for_listeners(&scene, 2)?;
    let client = Client::start(trial, scene.binding, PACED)?;
    let mut probes = Probes::of(trial, scene.binding);
    let (mut times, mut failed) = (Vec::new(), 0);
    for round in 0..trial.pick(6, 10, 100) {
        trial.flow_for(50, 300);
        let nth = usize::from(trial.chance(2) == 1);
        trial.fault(format!("SIGTERM agent {nth} of two, round {round}"));
        let asked = Instant::now();
        with(&mut scene.agents[nth].process(), |agent| {
            agent.signal(Signal::TERM)
        })?;
        for _ in 0..5 {
            failed += u64::from(!probes.one()?);
        }
        ends_well(&mut scene.agents[nth].process())?;
        times.push(asked.elapsed());
        scene.agents[nth].start()?;
        scene.agents[nth].wait_until_registered(NAME)?;
    }
    let report = client.stop(trial)?;
    trial.count(
        "two agents: flows cut while one drains",
        report.flows.error,
        Some(Bar::Exactly(0.0)),
    );
    trial.count(
        "two agents: new flows that failed meanwhile",
        failed,
        Some(Bar::Exactly(0.0)),
    );
    trial.recovered("agent asked to end: drained", &times, None);
    probes.end(trial)?;
    trial.fault("SIGTERM relay under live flows");
    let once = Shape {
        mode: Mode::Echo,
        bytes: Some(trial.pick(256 << 20, 256 << 20, 1 << 30)),
        once: true,
        ..PACED
    };
    let mut client = Client::start(trial, scene.binding, once)?;
    wait_for_flows(&scene, once.flows)?;
    with(&mut scene.installation.relay(), |relay| {
        relay.signal(Signal::TERM)
    })?;
    ensure!(
        client.is_live(),
        "the flows had ended before the relay was asked to"
    );
    wait_for("the binding to close", MOMENT, || {
        TcpStream::connect(scene.binding).err()
    })?;
    let report = client.end(trial)?;
    trial.count(
        "relay drains: live flows cut",
        report.flows.error,
        Some(Bar::Exactly(0.0)),
    );
    trial.count(
        "relay drains: live flows that ended well",
        report.flows.ok,
        Some(Bar::Exactly(once.flows as f64)),
    );
    ends_well(&mut scene.installation.relay())
}

fn ends_well(process: &mut Option<Process>) -> Result<()> {
    with(process, |process| {
        let status = process.wait(MOMENT * 2)?;
        ensure!(
            status.success(),
            "a process that was asked to end did so with {status}\n{}",
            process.log_end()
        );
        Ok(())
    })
}

/// Row 25.
pub(in crate::faults) fn without_io_uring(trial: &mut Trial<'_>) -> Result<()> {
    let through: Vec<OsString> = vec![trial.own().into(), "without-io-uring".into()];
    let setup = Setup {
        io: Io::Auto,
        through: through.clone(),
        ..trial.setup()
    };
    trial.fault("io_uring_setup is answered with EPERM (seccomp)");
    let scene = Scene::open_with(trial, setup, 1)?;
    let client = Client::start(trial, scene.binding, Shape::COMING_AND_GOING)?;
    pause(Duration::from_secs(trial.pick(2, 5, 60)));
    let report = client.stop(trial)?;
    trial.count("flows cut", report.flows.error, Some(Bar::Exactly(0.0)));
    trial.count("flows right", report.flows.ok, Some(Bar::AtLeast(1.0)));
    let says = |log: &str| {
        log.lines()
            .filter(|line| line.contains("io backend") && line.contains("poll"))
            .count()
    };
    let relay = says(&with(&mut scene.installation.relay(), |relay| {
        Ok(relay.stderr())
    })?);
    let agent = says(&agent_log(&scene.agents[0])?);
    trial.count(
        "times that the relay says it took poll",
        relay as u64,
        Some(Bar::Exactly(1.0)),
    );
    trial.count(
        "times that the agent says it took poll",
        agent as u64,
        Some(Bar::Exactly(1.0)),
    );
    let refused = Installation::new(Setup {
        io: Io::Ring,
        through,
        ..trial.setup()
    })?;
    refused.start_control()?;
    refused.start_relay()?;
    let status = with(&mut refused.relay(), |relay| relay.wait(MOMENT))?;
    trial.count(
        "exit code of a relay that insists on io_uring",
        status.code().unwrap_or_default().unsigned_abs().into(),
        Some(Bar::Exactly(3.0)),
    );
    scene.check_alive()
}

fn agent_log(agent: &Agent) -> Result<String> {
    with(&mut agent.process(), |agent| Ok(agent.stderr()))
}
