//! `underpass demo`: all of Underpass on this machine, for a look or, with `--once`, for a
//! measurement that checks itself.
//!
//! Control, relay, agent and a small web service run as processes of their own, from files in a
//! temporary directory. Uses only what users have: the command line, the files, the status.

mod http;
mod measure;
mod pattern;
mod processes;
mod scene;
mod service;
mod show;
mod spoiler;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output::note;
use scene::Scene;

pub use spoiler::Way;

/// All of `--once`, from start to end. It promises 45 s on two cores; a far slower machine may
/// still be right.
const ONCE_DEADLINE: Duration = Duration::from_secs(120);
/// Between two updates of the live line.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Exit code of a program that Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;

/// What can be said to the demo.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Move 1 GiB each way, check its SHA-256, kill the agent once, print the figures, and exit
    #[arg(long)]
    pub once: bool,
    /// With --once: print the figures as one JSON object
    #[arg(long, requires = "once")]
    pub json: bool,
    /// With --once: put one wrong bit into what the relay carries, to see that it is noticed (then
    /// the exit code is 1)
    #[arg(long, value_enum, value_name = "WAY", requires = "once")]
    pub spoil: Option<Way>,
    /// Backend of relay and agent
    #[arg(long, value_parser = ["auto", "ring", "poll"])]
    pub io: Option<String>,
}

/// Runs the demo. Prints what it has to say, errors too.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    match play(args) {
        Ok(code) => code,
        Err(error) if error.is::<Interrupted>() => ExitCode::from(INTERRUPTED),
        Err(error) => {
            show::failure(&error, args.json);
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C, or a request to end, before the demo was done.
#[derive(thiserror::Error, Debug)]
#[error("interrupted")]
struct Interrupted;

/// The demo's endpoint, in the child that the demo starts for it.
#[must_use]
pub fn service_main() -> ExitCode {
    match service::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note!("error: the demo's service failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(args: &Args) -> Result<ExitCode> {
    let started = Instant::now();
    let signals = signals()?;
    show::starting(args);
    let scene = Arc::new(Scene::set(args, &signals)?);
    let played = if args.once {
        once(&scene, args, &signals, started)
    } else {
        look(&scene, &signals);
        Ok(())
    };
    scene.end();
    played.map(|()| ExitCode::SUCCESS)
}

/// The first Ctrl-C, or a request to end.
fn signals() -> Result<Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot take signals")?;
    let (sender, receiver) = bounded(1);
    thread::spawn(move || {
        for _ in signals.forever() {
            // One that waits is enough.
            let _ = sender.try_send(());
        }
    });
    Ok(receiver)
}

/// Until Ctrl-C: the address, the commands, and a line that lives.
fn look(scene: &Scene, signals: &Receiver<()>) {
    show::scene(scene);
    let mut line = show::Line::new();
    while let Err(RecvTimeoutError::Timeout) = signals.recv_timeout(LINE_EVERY) {
        line.update(scene.status().ok().as_ref(), Instant::now());
    }
    line.end();
}

/// The measurement, on a thread of its own so that Ctrl-C and the deadline end it at any time.
fn once(scene: &Arc<Scene>, args: &Args, signals: &Receiver<()>, started: Instant) -> Result<()> {
    let step = Arc::new(Mutex::new("starting"));
    let (sender, measured) = bounded(1);
    let (measuring, its_step) = (Arc::clone(scene), Arc::clone(&step));
    thread::spawn(move || {
        // Nobody asks any more after Ctrl-C or the deadline.
        let _ = sender.send(measure::run(&measuring, &its_step, started));
    });
    select! {
        recv(measured) -> figures => {
            let figures = figures.context("the measurement failed")??;
            show::figures(&figures, args.json)
        }
        recv(signals) -> _ => Err(Interrupted.into()),
        default(ONCE_DEADLINE.saturating_sub(started.elapsed())) => {
            let step = *step.lock().unwrap_or_else(PoisonError::into_inner);
            Err(anyhow!("not done after {ONCE_DEADLINE:?}; at that time it was {step}"))
        }
    }
}
