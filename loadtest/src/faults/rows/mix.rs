//! Rows 4 and 5: processes that stand still, and everything in turn by chance.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use underpass_proto::{Rule, Which};

use crate::faults::apart::Apart;
use crate::faults::scene::{
    Client, NAME, Probes, Scene, Shape, wait_for_listeners, wait_until_idle, with,
};
use crate::faults::trial::{Bar, Trial};
use crate::impair::{Link, Profile};
use crate::stand::deadline::{MOMENT, pause, wait_for};
use crate::stand::process::{Process, Signal};
use crate::stand::usage::{self, Taken};

/// Silence after which a session is given up.
const IDLE_LIMIT_S: u64 = 15;

/// What is promised of a process that stood still for longer than that.
const BACK: Duration = Duration::from_secs(2);

/// A flow through a process that stands still for half a minute has not hung yet.
const PATIENT: Duration = Duration::from_secs(60);

/// Loads before a process is weighed: its buffers have grown to what they will be.
const WARM_UPS: u32 = 4;

/// What a process may have grown by beside 2 %, MB: a young one has a few of them in all.
const GROWN_MB: f64 = 1.0;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Part {
    Relay,
    Agent,
    Control,
}

/// Row 5.
pub(in crate::faults) fn standstill(trial: &mut Trial<'_>) -> Result<()> {
    use Part::{Agent, Control, Relay};
    let scene = Scene::open(trial, 1)?;
    let (mut short, mut long) = (Vec::new(), Vec::new());
    let times: &[(Part, u64)] = trial.pick(
        &[(Relay, 1), (Agent, 1), (Control, 1)],
        &[
            (Relay, 2),
            (Agent, 2),
            (Control, 5),
            (Relay, 17),
            (Agent, 17),
        ],
        &[
            (Relay, 1),
            (Agent, 1),
            (Control, 1),
            (Relay, 5),
            (Agent, 5),
            (Control, 5),
            (Relay, 14),
            (Agent, 14),
            (Relay, 17),
            (Agent, 17),
            (Control, 30),
            (Relay, 30),
            (Agent, 30),
        ],
    );
    for &(part, seconds) in times {
        let shape = Shape {
            deadline: PATIENT,
            ..Shape::COMING_AND_GOING
        };
        let client = Client::start(trial, scene.binding, shape)?;
        let mut probes = Probes::of(trial, scene.binding);
        probes.until_usable(Instant::now(), MOMENT)?;
        trial.fault(format!("SIGSTOP {part:?} for {seconds} s"));
        signal(&scene, part, Signal::STOP)?;
        pause(Duration::from_secs(seconds));
        signal(&scene, part, Signal::CONT)?;
        let usable = probes.until_usable(Instant::now(), MOMENT)?;
        let cut = client.stop(trial)?.flows.error;
        probes.end(trial)?;
        trial.count(
            format!("{part:?} for {seconds} s: flows cut"),
            cut,
            (part == Control).then_some(Bar::Exactly(0.0)),
        );
        match part {
            Control => {}
            _ if seconds > IDLE_LIMIT_S => long.push(usable),
            _ => short.push(usable),
        }
        scene.check_alive()?;
    }
    trial.recovered("woken within the idle limit: usable", &short, None);
    if !long.is_empty() {
        trial.recovered("woken past the idle limit: usable", &long, Some(BACK));
    }
    Ok(())
}

fn signal(scene: &Scene, part: Part, signal: Signal) -> Result<()> {
    let send = |process: &mut Process| process.signal(signal);
    match part {
        Part::Relay => with(&mut scene.installation.relay(), send),
        Part::Control => with(&mut scene.installation.control(), send),
        Part::Agent => with(&mut scene.agents[0].process(), send),
    }
}

/// Row 4: first with kills, then without, so that what a process that was not killed keeps can be
/// told from what it should.
pub(in crate::faults) fn mix(trial: &mut Trial<'_>) -> Result<()> {
    let mut state = State::open(trial)?;
    let rounds = trial.pick(10, 30, 250);
    // The second half is like what follows the weighing: what such harm makes a process keep, it
    // has by then.
    for round in 0..rounds {
        let kinds = if round < rounds / 2 {
            KINDS
        } else {
            KINDS_WITHOUT_KILLS
        };
        state.harm(trial, round, kinds)?;
    }
    state.settle(trial)?;
    let before = state.usage()?;
    for round in rounds..2 * rounds {
        state.harm(trial, round, KINDS_WITHOUT_KILLS)?;
    }
    state.settle(trial)?;
    let after = state.usage()?;
    for (name, (before, after)) in ["relay", "agent", "other agent"]
        .into_iter()
        .zip(before.into_iter().zip(after))
    {
        trial.count(
            format!("open files of the {name}"),
            after.files,
            Some(Bar::AtMost(before.files as f64 * 1.02)),
        );
        let bound = Bar::AtMost(before.memory as f64 * 1.02 / 1e6 + GROWN_MB);
        trial.figure(
            format!("memory of the {name}"),
            after.memory as f64 / 1e6,
            "MB",
            Some(bound),
        );
    }
    state.apart.scene.check_alive()
}

/// Kinds of harm.
const KINDS: u64 = 9;

/// Those of them that leave every process alive, which come first.
pub(in crate::faults) const KINDS_WITHOUT_KILLS: u64 = 5;

/// What should be, so that it can be compared with what is.
pub(in crate::faults) struct State {
    pub(in crate::faults) apart: Apart,
    definitions: BTreeSet<String>,
    made: u32,
}

impl State {
    /// A relay and two agents, a bad network between them.
    pub(in crate::faults) fn open(trial: &mut Trial<'_>) -> Result<State> {
        Ok(State {
            apart: Apart::open(trial, 2)?,
            definitions: BTreeSet::new(),
            made: 0,
        })
    }

    /// One of the first `kinds` kinds of harm.
    pub(in crate::faults) fn harm(
        &mut self,
        trial: &mut Trial<'_>,
        round: u64,
        kinds: u64,
    ) -> Result<()> {
        let client = Client::start(trial, self.apart.scene.binding, Shape::COMING_AND_GOING)?;
        trial.flow_for(50, 300);
        let nth = usize::from(trial.chance(2) == 1);
        let time = trial.time_between(Duration::from_millis(100), Duration::from_millis(1_500));
        let scene = &self.apart.scene;
        match trial.chance(kinds) {
            0 => {
                trial.fault(format!("round {round}: black hole of {time:.1?}"));
                self.apart.proxy.black_hole(true);
                pause(time);
                self.apart.proxy.black_hole(false);
            }
            1 => {
                trial.fault(format!(
                    "round {round}: busy-wifi for {time:.1?}, and a new address"
                ));
                let link = Profile::named("busy-wifi")
                    .context("a profile of ours")?
                    .link;
                self.apart.proxy.set(link);
                self.apart.proxy.rebind();
                pause(time);
                self.apart.proxy.set(Link::CLEAN);
            }
            2 => {
                let part = [Part::Relay, Part::Agent][nth];
                trial.fault(format!("round {round}: SIGSTOP {part:?} for {time:.1?}"));
                signal(scene, part, Signal::STOP)?;
                pause(time);
                signal(scene, part, Signal::CONT)?;
            }
            3 => self.change_definitions(trial, round)?,
            4 => {
                trial.fault(format!(
                    "round {round}: the key that nobody stands on is made anew"
                ));
                scene
                    .installation
                    .regenerate(NAME, Rule::Listen, Which::Secondary)?;
            }
            5 => {
                trial.fault(format!("round {round}: kill -9 relay"));
                scene.kill_relay()?;
                scene.installation.start_relay()?;
            }
            6 => {
                trial.fault(format!("round {round}: kill -9 control"));
                scene.kill_control()?;
                scene.installation.start_control()?;
            }
            _ => {
                trial.fault(format!("round {round}: kill -9 agent {nth}"));
                scene.kill_agent(nth)?;
                scene.agents[nth].start()?;
            }
        }
        client.stop(trial)?;
        Ok(())
    }

    fn change_definitions(&mut self, trial: &mut Trial<'_>, round: u64) -> Result<()> {
        let installation = &self.apart.scene.installation;
        if self.definitions.len() > 4 {
            let name = self.definitions.pop_first().context("there are some")?;
            trial.fault(format!("round {round}: {name} is removed"));
            return installation.remove(&name);
        }
        let name = format!("made-by-chance-{}", self.made);
        self.made += 1;
        trial.fault(format!("round {round}: {name} is made"));
        installation.define(&name, "db01.corp:1433")?;
        self.definitions.insert(name);
        Ok(())
    }

    /// Removes what was made, waits until all is as it should be, exactly, and lets the same load
    /// run each time before anything is weighed.
    pub(in crate::faults) fn settle(&mut self, trial: &mut Trial<'_>) -> Result<()> {
        self.is_exact()?;
        for name in std::mem::take(&mut self.definitions) {
            self.apart.scene.installation.remove(&name)?;
        }
        self.is_exact()?;
        let scene = &self.apart.scene;
        let mut probes = Probes::of(trial, scene.binding);
        probes.until_usable(Instant::now(), MOMENT)?;
        probes.end(trial)?;
        wait_for_listeners(scene, 2)?;
        for _ in 0..WARM_UPS {
            let client = Client::start(trial, scene.binding, Shape::COMING_AND_GOING)?;
            pause(Duration::from_millis(700));
            client.stop(trial)?;
        }
        wait_until_idle(scene)?;
        // Sessions that were opened beside suspect ones, and files of ended flows, go within a
        // moment.
        pause(Duration::from_secs(2));
        Ok(())
    }

    /// The definitions that the relay works by are those that were made and not removed.
    fn is_exact(&self) -> Result<()> {
        let scene = &self.apart.scene;
        let expected: BTreeSet<String> = self
            .definitions
            .iter()
            .cloned()
            .chain([NAME.to_owned()])
            .collect();
        let is = || {
            let report = scene.installation.status().ok()?.relay?;
            Some(
                report
                    .hycos
                    .iter()
                    .map(|hyco| hyco.name.to_string())
                    .collect::<BTreeSet<_>>(),
            )
        };
        wait_for(
            "the definitions to be those that were made and not removed",
            MOMENT,
            || (is()? == expected).then_some(()),
        )
        .with_context(|| format!("there are {:?}, not {expected:?}", is()))?;
        ensure!(
            scene.installation.status()?.faults.is_empty(),
            "a definition is at fault"
        );
        Ok(())
    }

    /// What the relay and both agents take.
    pub(in crate::faults) fn usage(&self) -> Result<Vec<Taken>> {
        let scene = &self.apart.scene;
        let mut processes = vec![scene.relay_id()?];
        for agent in &scene.agents {
            processes.push(with(&mut agent.process(), |agent| Ok(agent.id()))?);
        }
        processes.into_iter().map(usage::taken).collect()
    }
}
