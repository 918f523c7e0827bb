//! Rows 12 to 15: more than is comfortable. Slow readers, a burst of opens, agents that all come
//! back at once, too few files.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use underpass_proto::Rule;

use crate::faults::calls::Calls;
use crate::faults::scene::{FarEnd, NAME, Probes, Scene, wait_for_flows, wait_until_idle, with};
use crate::faults::trial::{Bar, Trial};
use crate::scenario::Outcome;
use crate::stand::deadline::{MOMENT, pause, wait_for};
use crate::stand::installation::{Installation, Setup, write_secret};
use crate::stand::process::Process;
use crate::stand::usage;

/// What one flow pins at its far end while its reader does not read, bytes: the data plane's window
/// of a stream, and one write to its socket.
const STREAM_WINDOW: u64 = 2 << 20;
const WRITE: u64 = 256 << 10;

/// What a byte of that takes: a datagram of nearly 64 KiB lies in a block of 80 KiB, six of which
/// the allocator has in 512 KiB.
const BLOCKS: f64 = 512.0 / (6.0 * 64.0);

/// What a worker keeps to receive into and to send from, bytes: 64 blocks and 16.
const WORKER: u64 = 80 * (80 << 10);

/// What all flows of a session pin: the data plane's window of a session.
const SESSION_WINDOW: u64 = 1_152 * STREAM_WINDOW;

/// What a session that sends keeps until it is acknowledged.
const SEND_WINDOW: u64 = 4 << 20;

/// What a flow costs beside its window, bytes: one read of its socket, and its own state.
const FLOW: u64 = (64 << 10) + (3 << 10);

/// Memory stands still that changes by no more than this in such a time.
const CALM: Duration = Duration::from_secs(2);
const CALM_BYTES: u64 = 1 << 20;

/// Longest wait for that.
const CALM_WITHIN: Duration = Duration::from_secs(60);

/// Other flows go to an endpoint of their own, through the same session: one endpoint that fills
/// 1,000 flows serves nobody else in time, with or without a tunnel.
const OTHERS: &str = "other-way";

/// Row 12.
pub(in crate::faults) fn slow_readers(trial: &mut Trial<'_>) -> Result<()> {
    let mut scene = Scene::prepare(trial, trial.setup())?;
    let far_end = FarEnd::start(trial)?;
    let installation = &scene.installation;
    installation.define(OTHERS, &far_end.address.to_string())?;
    let other_way = installation.binding(OTHERS)?;
    scene
        .agents
        .push(installation.start_agent(&[NAME, OTHERS], &[])?);
    let flows = trial.pick(200, 1_000, 1_000);
    let length = Duration::from_secs(trial.pick(4, 12, 60));
    let others =
        "[[group]]\nname = \"others\"\nflows = 8\nrate = 200\nrequest = 100\nresponse = 1000\n";
    let alone = Calls::start(trial, other_way, others, length)?.end(trial)?;
    let processes = [
        scene.relay_id()?,
        with(&mut scene.agents[0].process(), |agent| Ok(agent.id()))?,
    ];
    let before = processes.map(usage::memory);
    trial.fault(format!(
        "{flows} slow readers: half read nothing to speak of, half 10 kB/s"
    ));
    let slow = format!(
        "[[group]]\nname = \"none\"\nflows = {half}\nrequest = 1\nresponse = \"64MiB\"\nread_rate = 1\nramp = \"1s\"\n\
         [[group]]\nname = \"slow\"\nflows = {half}\nrequest = 1\nresponse = \"64MiB\"\nread_rate = 10000\nramp = \"1s\"\n",
        half = flows / 2
    );
    let slow = Calls::start(trial, scene.binding, &slow, length * 2 + 2 * CALM_WITHIN)?;
    wait_for_flows(&scene, flows)?;
    let filling = Calls::start(trial, other_way, others, length)?.end(trial)?;
    wait_for_calm(processes[0])?;
    let beside = Calls::start(trial, other_way, others, length)?.end(trial)?;
    let after = processes.map(usage::memory);
    let relay = scene.installation.status()?.relay;
    let ended = relay.map_or(u64::MAX, |relay| relay.pressure.flows_ended);
    trial.count(
        "slow readers that the relay ended",
        ended,
        Some(Bar::Exactly(0.0)),
    );
    slow.stop(trial)?;
    wait_until_idle(&scene)?;
    // What was freed goes back to the system with the next work.
    let first_after = Calls::start(trial, other_way, others, Duration::from_secs(1))?;
    let first_after = first_after.end(trial)?;
    wait_for_calm(processes[0])?;
    let again = Calls::start(trial, other_way, others, length)?.end(trial)?;
    let p99 = |outcome: &Outcome| p99(outcome, "others");
    trial.figure(
        "others in the second after the slow readers left: p99",
        p99(&first_after)?,
        "ms",
        None,
    );
    let (alone, again, beside) = (p99(&alone)?, p99(&again)?, p99(&beside)?);
    trial.figure("others alone, before: p99", alone, "ms", None);
    trial.figure("others alone, afterwards: p99", again, "ms", None);
    // Until then they are as much bulk as there is.
    trial.figure(
        "others while the slow readers fill what they may: p99",
        p99(&filling)?,
        "ms",
        None,
    );
    trial.figure("others beside slow readers: p99", beside, "ms", None);
    trial.figure(
        "p99 beside slow readers, times p99 alone",
        beside / alone,
        "×",
        Some(Bar::Under(2.0)),
    );
    let data = (flows * STREAM_WINDOW).min(SESSION_WINDOW) + flows * WRITE;
    let pinned = data as f64 * BLOCKS + (SEND_WINDOW + flows * FLOW + WORKER) as f64;
    for (name, (before, after)) in ["relay", "agent"]
        .into_iter()
        .zip(before.into_iter().zip(after))
    {
        let grown = after?.saturating_sub(before?) as f64 / 1e6;
        let bound = Bar::AtMost(pinned / 1e6);
        trial.figure(
            format!("memory of the {name} by {flows} slow readers"),
            grown,
            "MB",
            Some(bound),
        );
    }
    scene.check_alive()
}

/// Until the memory of a process stands still.
fn wait_for_calm(process: u32) -> Result<()> {
    let mut before = usage::memory(process)?;
    wait_for("memory to stand still", CALM_WITHIN, || {
        pause(CALM);
        let now = usage::memory(process).ok()?;
        let changed = now.abs_diff(std::mem::replace(&mut before, now));
        (changed <= CALM_BYTES).then_some(())
    })
}

fn p99(outcome: &Outcome, group: &str) -> Result<f64> {
    let group = outcome.group(group).context("the group was run")?;
    let p99 = group.latency.at(0.99).context("nothing was measured")?;
    Ok(p99.as_secs_f64() * 1e3)
}

/// Row 13.
pub(in crate::faults) fn burst(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 1)?;
    let (idle, opens) = trial.pick((1_000, 1_000), (8_000, 4_000), (8_000, 4_000));
    let resting = format!(
        "[[group]]\nname = \"idle\"\nflows = {idle}\nthink = \"1h\"\nramp = \"{idle}ms\"\n"
    );
    // Longer than the pause: a flow whose next call would be due after the end is closed at once.
    let long = Duration::from_secs(7_200);
    let resting = Calls::start(trial, scene.binding, &resting, long)?;
    pause(Duration::from_millis(idle));
    wait_for_flows(&scene, idle)?;
    let mut worst = f64::NAN;
    let mut refused = 0;
    for round in 0..trial.pick(1, 2, 10) {
        trial.fault(format!(
            "{opens} opens in a second beside {idle} idle flows, round {round}"
        ));
        // A flow connects just before its first call is due, and anew for each other: every call is
        // an open.
        let burst = format!(
            "[[group]]\nname = \"opens\"\nflows = {}\nramp = \"240ms\"\nrate = {opens}\nchurn = 1\nrequest = 1\nresponse = 1\n",
            opens / 4
        );
        let outcome =
            Calls::start(trial, scene.binding, &burst, Duration::from_secs(1))?.end(trial)?;
        let group = outcome.group("opens").context("the group was run")?;
        refused += group.counts.failed + group.counts.cut + group.counts.unsent;
        worst = p99(&outcome, "opens")?.max(worst);
        trial.count(
            format!("round {round}: opens answered"),
            group.counts.right,
            Some(Bar::AtLeast(opens as f64)),
        );
        pause(Duration::from_secs(1));
    }
    trial.count(
        "opens refused, cut or not begun",
        refused,
        Some(Bar::Exactly(0.0)),
    );
    trial.figure(
        "an open, its first answer included, since it was due: p99",
        worst,
        "ms",
        Some(Bar::Under(300.0)),
    );
    // An idle flow does not notice that it was reset.
    let live = scene.installation.hyco(NAME)?;
    trial.count(
        "idle flows live at the end",
        live.map_or(0, |hyco| hyco.flows_live),
        Some(Bar::AtLeast(idle as f64)),
    );
    let outcome = resting.stop(trial)?;
    let failed: u64 = outcome.groups.iter().map(|group| group.counts.failed).sum();
    trial.count("idle flows cut", failed, Some(Bar::Exactly(0.0)));
    scene.check_alive()
}

/// Agents of one hybrid connection: under the 25 that one may have.
const AGENTS_EACH: usize = 20;

/// What is promised of agents that all come back at once.
const ALL_BACK: Duration = Duration::from_secs(10);

/// Row 14.
pub(in crate::faults) fn all_agents(trial: &mut Trial<'_>) -> Result<()> {
    let bench = trial.own().with_file_name("underpass-bench");
    if !bench.is_file() {
        trial.skip(format!(
            "{} is not built: it hosts the agents (cargo build --release -p underpass-bench)",
            bench.display()
        ));
        return Ok(());
    }
    let agents: usize = trial.pick(100, 500, 500);
    let end = FarEnd::start(trial)?;
    let installation = Installation::new(Setup {
        probe: false,
        ..trial.setup()
    })?;
    let names: Vec<String> = (0..agents.div_ceil(AGENTS_EACH))
        .map(|n| format!("crowd-{n}"))
        .collect();
    for name in &names {
        installation.define(name, &end.address.to_string())?;
    }
    installation.start_control()?;
    installation.start_relay()?;
    let mut strings = String::new();
    for name in &names {
        strings += installation.string_of(name, Rule::Listen, &[])?.trim();
        strings.push('\n');
    }
    let file = installation
        .directory()
        .join("run")
        .join("crowd.connections");
    write_secret(&file, &strings)?;
    let mut host = host(&bench, &file, agents);
    let mut host = Process::start("agents", &mut host)?;
    wait_for_registered(&installation, &mut host, agents)?;
    let mut times = Vec::new();
    for round in 0..trial.pick(1, 3, 20) {
        trial.flow_for(500, 1_500);
        trial.fault(format!(
            "kill -9 relay under {agents} agents, round {round}"
        ));
        with(&mut installation.relay(), Process::kill)?;
        installation.start_relay()?;
        with(&mut installation.relay(), |relay| {
            relay.wait_for_line("relay listens (udp)", MOMENT)
        })?;
        let since = Instant::now();
        wait_for_registered(&installation, &mut host, agents)?;
        times.push(since.elapsed());
    }
    trial.recovered(
        &format!("relay listens again: all {agents} agents are back"),
        &times,
        Some(ALL_BACK),
    );
    Ok(())
}

fn host(bench: &PathBuf, strings: &PathBuf, count: usize) -> Command {
    let mut command = Command::new(bench);
    command.arg("agents").arg("--strings").arg(strings);
    command.args(["--count", &count.to_string(), "--mtu-max=1452"]);
    // Huge pages would give each of a thousand threads megabytes that it has no use for.
    command.env("MIMALLOC_ALLOW_THP", "0").env("NO_COLOR", "1");
    command
}

/// Until the relay that runs now has registered so many.
fn wait_for_registered(
    installation: &Installation,
    host: &mut Process,
    agents: usize,
) -> Result<()> {
    let within = Duration::from_secs(90);
    wait_for("all agents to be registered", within, || {
        let log = installation.relay().as_ref()?.stderr();
        let registered = log
            .lines()
            .filter(|line| line.contains(" registered "))
            .count();
        pause(Duration::from_millis(20));
        (registered >= agents).then_some(())
    })
    .with_context(|| host.log_end())
}

/// Files that relay and agent may have.
const FILES: u64 = 256;

/// Row 15.
pub(in crate::faults) fn few_files(trial: &mut Trial<'_>) -> Result<()> {
    let setup = Setup {
        through: ["prlimit", &format!("--nofile={FILES}:{FILES}")]
            .map(Into::into)
            .into(),
        ..trial.setup()
    };
    let scene = Scene::open_with(trial, setup, 1)?;
    let mut probes = Probes::of(trial, scene.binding);
    let processes = [
        scene.relay_id()?,
        with(&mut scene.agents[0].process(), |agent| Ok(agent.id()))?,
    ];
    let look = Duration::from_secs(3);
    let mut times = Vec::new();
    for round in 0..trial.pick(2, 4, 20) {
        trial.fault(format!(
            "more connections than {FILES} files hold, round {round}"
        ));
        let connect = |_| TcpStream::connect_timeout(&scene.binding, Duration::from_secs(2));
        // What does not fit waits in the kernel, or is refused: either may be.
        let held: Vec<_> = (0..2 * FILES).map(connect).collect();
        pause(Duration::from_secs(1));
        let before = processes.map(usage::cpu_time);
        pause(look);
        for (name, (process, before)) in ["relay", "agent"]
            .into_iter()
            .zip(processes.into_iter().zip(before))
        {
            let share = (usage::cpu_time(process)? - before?).as_secs_f64() / look.as_secs_f64();
            trial.figure(
                format!("round {round}: processor time of the {name}"),
                share * 100.0,
                "%",
                Some(Bar::Under(5.0)),
            );
            let files = usage::open_files(process)?;
            let limit = Some(Bar::AtMost(FILES as f64)); // More would mean that there is no limit.
            trial.count(format!("round {round}: files of the {name}"), files, limit);
        }
        drop(held);
        times.push(probes.until_usable(Instant::now(), MOMENT)?);
        scene.check_alive()?;
    }
    trial.recovered(
        "connections gone: usable",
        &times,
        Some(Duration::from_secs(1)),
    );
    probes.end(trial)
}
