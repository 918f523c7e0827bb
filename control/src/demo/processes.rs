//! The demo's processes: started from this same program, kept alive, ended in order, and never left
//! behind.
//!
//! Each child is tied to this process by a pipe, so that it ends with it whatever happens. Knows
//! nothing of what they do.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use crate::lifeline::{self, Lifeline};

/// Lines of a child's log that an error shows.
const TAIL_LINES: usize = 8;
/// Pause before a child that ended soon after its start is started again; one that lived longer is
/// started at once.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// Life after which an end is no failure to start.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// From the first request to end to the second, which cuts what is live.
const SECOND_REQUEST_AFTER: Duration = Duration::from_secs(1);
/// From the second request to the end by force.
const KILL_AFTER: Duration = Duration::from_secs(2);

/// This very program, even if its file was replaced or removed since.
pub(super) const PROGRAM: &str = "/proc/self/exe";

/// How to start a child.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// For messages and the log's name.
    pub(super) name: &'static str,
    /// What stands after the program.
    pub(super) arguments: Vec<OsString>,
    /// Folder of its log.
    pub(super) logs: PathBuf,
    /// Whether it is started again when it ends.
    pub(super) restart: bool,
    /// Whether its standard output is wanted.
    pub(super) output: bool,
}

/// A child and what watches it.
pub(super) struct Process {
    plan: Plan,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The child while it lives, with what ties it to this process.
    running: Option<(Child, Lifeline)>,
    starts: u32,
    stopping: bool,
    tail: VecDeque<String>,
}

impl Process {
    /// Starts it, and a thread that keeps it alive.
    pub(super) fn start(plan: Plan) -> Result<(Arc<Self>, Option<ChildStdout>)> {
        let log = File::create(plan.log())
            .with_context(|| format!("cannot write {}", plan.log().display()))?;
        let process = Arc::new(Self {
            plan,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let (errors, output) = process.launch()?;
        let watched = Arc::clone(&process);
        thread::spawn(move || watched.watch(log, errors));
        Ok((process, output))
    }

    /// Ends it as `kill -9` does, and returns when it is gone. If it is to be restarted, it is.
    pub(super) fn kill(&self) -> Result<Instant> {
        let mut state = self.lock();
        let starts = state.starts;
        let (child, _) = state
            .running
            .as_mut()
            .ok_or_else(|| anyhow!("{} is not running", self.plan.name))?;
        let at = Instant::now();
        child.kill()?;
        while state.running.is_some() && state.starts == starts {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(at)
    }

    /// For messages.
    pub(super) fn name(&self) -> &'static str {
        self.plan.name
    }

    /// How often it was started.
    pub(super) fn starts(&self) -> u32 {
        self.lock().starts
    }

    /// The last lines of its log, for an error.
    pub(super) fn tail(&self) -> String {
        self.lock()
            .tail
            .iter()
            .map(|line| format!("\n  {}: {line}", self.plan.name))
            .collect()
    }

    /// Starts the child once.
    fn launch(&self) -> Result<(ChildStderr, Option<ChildStdout>)> {
        let mut command = Command::new(PROGRAM);
        command.args(&self.plan.arguments).stderr(Stdio::piped());
        command.stdout(if self.plan.output {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        // A group of its own: Ctrl-C is for the demo alone, which then ends its children in order.
        command.process_group(0);
        let lifeline = lifeline::hold(&mut command)?;
        let mut state = self.lock();
        if state.stopping {
            return Err(anyhow!("the demo is ending"));
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.plan.name))?;
        let errors = child
            .stderr
            .take()
            .context("standard error was asked for")?;
        let output = child.stdout.take();
        state.running = Some((child, lifeline));
        state.starts += 1;
        self.changed.notify_all();
        Ok((errors, output))
    }

    /// Copies the child's log until it ends, and starts it again, until the demo ends.
    fn watch(&self, mut log: File, mut errors: ChildStderr) {
        loop {
            let started = Instant::now();
            self.copy_log(&mut log, errors);
            self.reap();
            if !self.plan.restart || !self.pause(started.elapsed()) {
                return;
            }
            errors = match self.launch() {
                Ok((errors, _)) => errors,
                Err(_) => return,
            };
        }
    }

    /// Until the child's end closes its standard error, which no other process has.
    fn copy_log(&self, log: &mut File, errors: ChildStderr) {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            // A log that cannot be written does not stop the demo.
            let _ = writeln!(log, "{line}");
            let mut state = self.lock();
            if state.tail.len() == TAIL_LINES {
                state.tail.pop_front();
            }
            state.tail.push_back(line);
        }
    }

    fn reap(&self) {
        let mut state = self.lock();
        if let Some((mut child, lifeline)) = state.running.take() {
            // It has closed its standard error; if it lives on nevertheless, it does not for long.
            let _ = child.kill();
            let _ = child.wait();
            drop(lifeline);
        }
        self.changed.notify_all();
    }

    /// Whether to start the child again, after a pause if it failed at once.
    fn pause(&self, lived: Duration) -> bool {
        let pause = if lived < SETTLED_AFTER {
            RESTART_PAUSE
        } else {
            Duration::ZERO
        };
        let state = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(state, pause, |state| !state.stopping);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }

    /// Asks it to end, and not to be started again.
    fn ask(&self) {
        let mut state = self.lock();
        state.stopping = true;
        if let Some((child, _)) = &state.running {
            // It may have ended since; then there is nothing to ask.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
        self.changed.notify_all();
    }

    /// Waits until it is gone; whether it is.
    fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), left, |state| state.running.is_some());
        waited
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .running
            .is_none()
    }

    fn force(&self) {
        if let Some((child, _)) = self.lock().running.as_mut() {
            let _ = child.kill();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    fn log(&self) -> PathBuf {
        log_of(&self.logs, self.name)
    }
}

/// Where the log of a process stands.
pub(super) fn log_of(logs: &Path, name: &str) -> PathBuf {
    logs.join(format!("{name}.log"))
}

/// Ends all: a request to drain, a second one that cuts, then force. Returns when all are gone.
pub(super) fn end(processes: &[Arc<Process>]) {
    for wait in [SECOND_REQUEST_AFTER, KILL_AFTER] {
        processes.iter().for_each(|process| process.ask());
        let deadline = Instant::now() + wait;
        if processes.iter().all(|process| process.wait(deadline)) {
            return;
        }
    }
    processes.iter().for_each(|process| process.force());
    let deadline = Instant::now() + KILL_AFTER;
    for process in processes {
        // After SIGKILL there is nothing left to do but to take note.
        let _ = process.wait(deadline);
    }
}
