//! Rows 1 to 3: processes that are killed, again and again, under load.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::faults::scene::{
    Client, NAME, Probes, Scene, Shape, wait_for_listeners, wait_until_idle, with,
};
use crate::faults::trial::{Bar, Trial};
use crate::stand::deadline::{MOMENT, pause, wait_for};

/// What is promised of a restarted agent or relay.
const BACK: Duration = Duration::from_secs(2);

/// From the kill of one of two agents on, all new flows work after this.
const OTHER_TAKES_OVER: Duration = Duration::from_secs(2);

/// Flows opened then, in each round.
const FLOWS_AFTER: usize = 20;

/// From control's return on.
const CHANGE_APPLIES: Duration = Duration::from_secs(1);

/// Row 1: one agent, killed and started again; then one of two.
pub(in crate::faults) fn agent(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 1)?;
    let client = Client::start(trial, scene.binding, Shape::COMING_AND_GOING)?;
    let mut probes = Probes::of(trial, scene.binding);
    probes.until_usable(Instant::now(), MOMENT)?;
    let mut times = Vec::new();
    for round in 0..trial.pick(20, 40, 200) {
        trial.flow_for(50, 400);
        trial.fault(format!("kill -9 agent, round {round}"));
        scene.kill_agent(0)?;
        let since = Instant::now();
        scene.agents[0].start()?;
        times.push(probes.until_usable(since, MOMENT)?);
    }
    trial.recovered("agent started again: usable", &times, Some(BACK));
    client.stop(trial)?;
    probes.end(trial)?;
    wait_until_idle(&scene)?;
    scene.check_alive()?;
    drop(scene);
    one_of_two_agents(trial)
}

fn one_of_two_agents(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 2)?;
    wait_for_listeners(&scene, 2)?;
    let client = Client::start(trial, scene.binding, Shape::COMING_AND_GOING)?;
    let mut probes = Probes::of(trial, scene.binding);
    let (mut opened, mut failed) = (0, 0);
    for round in 0..trial.pick(3, 5, 50) {
        trial.flow_for(50, 400);
        let nth = usize::from(trial.chance(2) == 1);
        trial.fault(format!("kill -9 agent {nth} of two, round {round}"));
        scene.kill_agent(nth)?;
        pause(OTHER_TAKES_OVER);
        for _ in 0..FLOWS_AFTER {
            opened += 1;
            failed += u64::from(!probes.one()?);
        }
        scene.agents[nth].start()?;
        scene.agents[nth].wait_until_registered(NAME)?;
    }
    trial.count(
        "two agents: flows opened 2 s after a kill",
        opened,
        Some(Bar::AtLeast(1.0)),
    );
    trial.count(
        "two agents: of them failed",
        failed,
        Some(Bar::Exactly(0.0)),
    );
    client.stop(trial)?;
    probes.end(trial)?;
    wait_until_idle(&scene)?;
    scene.check_alive()
}

/// Row 2: the relay.
pub(in crate::faults) fn relay(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 2)?;
    let client = Client::start(trial, scene.binding, Shape::COMING_AND_GOING)?;
    let mut probes = Probes::of(trial, scene.binding);
    probes.until_usable(Instant::now(), MOMENT)?;
    let (mut since_listens, mut since_start, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..trial.pick(20, 40, 200) {
        trial.flow_for(50, 400);
        trial.fault(format!("kill -9 relay, round {round}"));
        scene.kill_relay()?;
        let started = Instant::now();
        scene.installation.start_relay()?;
        with(&mut scene.installation.relay(), |relay| {
            relay.wait_for_line("relay listens (udp)", MOMENT)
        })?;
        let listens = Instant::now();
        since_listens.push(probes.until_usable(listens, MOMENT)?);
        since_start.push(started.elapsed());
        wait_for("both agents to be back", MOMENT, || {
            (scene.relay_lines(" registered ") >= 2).then_some(())
        })?;
        both.push(listens.elapsed());
    }
    trial.recovered("relay listens again: usable", &since_listens, Some(BACK));
    let name = "relay listens again: both agents are back";
    trial.recovered(name, &both, Some(BACK));
    trial.recovered("relay started again: usable", &since_start, None);
    client.stop(trial)?;
    probes.end(trial)?;
    wait_for_listeners(&scene, 2)?;
    wait_until_idle(&scene)?;
    scene.check_alive()
}

/// Row 3: control, for a moment and for long.
pub(in crate::faults) fn control(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 1)?;
    let client = Client::start(trial, scene.binding, Shape::COMING_AND_GOING)?;
    let mut times = Vec::new();
    for round in 0..trial.pick(20, 30, 200) {
        trial.flow_for(50, 200);
        trial.fault(format!("kill -9 control, round {round}"));
        scene.kill_control()?;
        // Written while nobody is there to read it.
        let name = format!("made-while-away-{round}");
        scene
            .installation
            .define(&name, &scene.endpoint.address.to_string())?;
        let binding = scene.installation.wanted_binding(&name)?;
        scene.installation.start_control()?;
        let back = Instant::now();
        wait_for("the new binding", MOMENT, || {
            TcpStream::connect(binding).ok()
        })?;
        times.push(back.elapsed());
        scene.installation.remove(&name)?;
    }
    trial.recovered(
        "control answers again: change applied",
        &times,
        Some(CHANGE_APPLIES),
    );
    let long = trial.pick(3, 17, 300);
    trial.fault(format!("kill -9 control, down for {long} s"));
    scene.kill_control()?;
    pause(Duration::from_secs(long));
    scene.installation.start_control()?;
    let report = client.stop(trial)?;
    trial.count(
        "flows that control's deaths cut",
        report.flows.error,
        Some(Bar::Exactly(0.0)),
    );
    scene.check_alive()
}
