//! `underpass up`: control and relay as two child processes, for one machine. Restarts what
//! crashes, ends with both.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use rustix::process::{Pid, Signal, kill_process};
use tracing::{info, warn};
use underpass_proto::Status;

use super::table::table;
use super::{DataPlaneArgs, DirArgs, Exit, Failure, installation};
use crate::files::namespace::Namespace;
use crate::files::{Caller, Directory, Lock};
use crate::lifeline::{self, Lifeline};
use crate::{output, publish, shell, signals};

/// How often children are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The first pause before a crashed child is started again; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A child that ran this long starts again with the first pause.
const STEADY_AFTER: Duration = Duration::from_secs(10);

/// After this long a child has read its files once, and takes signals.
const READS_WITHIN: Duration = Duration::from_secs(1);

/// Options of `underpass up`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    dir: DirArgs,
    #[command(flatten)]
    data_plane: DataPlaneArgs,
}

pub(super) fn run(args: &Args, log: &str) -> Result<(), Failure> {
    args.data_plane.settle();
    let directory = args.dir.directory();
    check_proc()?;
    // What is wrong with the files is said once, here, and not by a child.
    let (namespace, identity) = installation::open(&directory, Caller::Process)?;
    let _lock = be_alone(&directory)?;
    let (signals, reload) = signals()?;
    let dir = format!("--dir={}", args.dir.dir.display());
    let common = [format!("--log={log}"), dir];
    let mut relay_arguments = vec!["relay".to_owned()];
    relay_arguments.extend(common.iter().cloned());
    relay_arguments.extend(args.data_plane.arguments());
    let mut control_arguments = vec!["control".to_owned()];
    control_arguments.extend(common);
    control_arguments.extend(args.data_plane.dumps.arguments());
    let supervisor = Supervisor {
        control: Process::start("control", control_arguments)?,
        relay: Process::start("relay", relay_arguments)?,
        directory,
        ready: false,
        stopping: false,
        reload,
    };
    supervisor.run(&signals, |directory, status| {
        output::write(format_args!(
            "{}",
            welcome(
                args,
                directory,
                &namespace,
                &identity.pin.to_string(),
                status
            )
        ));
    })
}

/// The file that this program started from, however it is called by now.
const OWN_PROGRAM: &str = "/proc/self/exe";

fn check_proc() -> Result<(), Failure> {
    std::fs::read_link(OWN_PROGRAM).map(drop).map_err(|error| {
        Failure::configuration(format!(
            "/proc is not there, by which `up` finds this program to start control and relay ({OWN_PROGRAM}: {error})"
        ))
        .hint("mount it (`mount -t proc proc /proc`), or run `underpass control` and `underpass relay` as two processes")
    })
}

/// What runs already is said before anything starts: the status of another's control looks like
/// that of one's own.
fn be_alone(directory: &Directory) -> Result<Lock, Failure> {
    let up = installation::lock(directory, "up")?;
    drop(publish::lock(directory)?);
    drop(installation::lock(directory, "relay")?);
    Ok(up)
}

/// The signals to end, and whether SIGHUP came.
fn signals() -> Result<(Receiver<u32>, Arc<AtomicBool>), Failure> {
    // Two signals are told apart; a third ends the process.
    let (tell, told) = bounded(2);
    let forward = move |nth| {
        let _ = tell.try_send(nth);
    };
    let reload = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&reload);
    signals::on_each_and_reload(forward, move || asked.store(true, Ordering::Relaxed))
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot take signals: {error}")))?;
    Ok((told, reload))
}

struct Supervisor {
    control: Process,
    relay: Process,
    directory: Directory,
    ready: bool,
    stopping: bool,
    reload: Arc<AtomicBool>,
}

impl Supervisor {
    fn run(
        mut self,
        signals: &Receiver<u32>,
        on_ready: impl Fn(&Directory, &Status),
    ) -> Result<(), Failure> {
        loop {
            match signals.recv_timeout(LOOK_EVERY) {
                Ok(nth) => self.forward(nth),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new(Exit::Failed, "signals are not heard any more"));
                }
            }
            if self.reload.swap(false, Ordering::Relaxed) {
                info!("SIGHUP: passed on to control and relay");
                self.control.reload();
                self.relay.reload();
            }
            if let Some(ended) = self.look() {
                return ended;
            }
            if !self.ready
                && let Some(status) = self.is_ready()
            {
                self.ready = true;
                on_ready(&self.directory, &status);
            }
        }
    }

    /// The relay drains at the first signal and stops at the second; control stays until the relay
    /// is done.
    fn forward(&mut self, nth: u32) {
        self.stopping = true;
        info!(nth, "signal forwarded");
        self.relay.signal();
        if nth > 1 {
            self.control.signal();
        }
    }

    /// What became of the children; the end, if it is that.
    fn look(&mut self) -> Option<Result<(), Failure>> {
        if self.stopping {
            if !self.relay.has_ended() {
                return None;
            }
            self.control.signal_once();
            return self.control.has_ended().then(|| self.relay.verdict());
        }
        for process in [&mut self.control, &mut self.relay] {
            let Some(status) = process.ended() else {
                continue;
            };
            if !self.ready
                && let Some(exit) = told(status)
            {
                // It has said itself what is wrong; starting it again would not mend that.
                return Some(Err(Failure {
                    exit,
                    errors: vec![format!("{} could not start", process.name)],
                    hint: None,
                }));
            }
            process.start_again(status);
        }
        None
    }

    fn is_ready(&self) -> Option<Status> {
        publish::status(&self.directory)
            .ok()
            .filter(|status| status.applied == Some(status.generation) && status.relay.is_some())
    }
}

/// An exit code that says that a person must do something first.
fn told(status: ExitStatus) -> Option<Exit> {
    match status.code() {
        Some(2) => Some(Exit::Usage),
        Some(3) => Some(Exit::Configuration),
        _ => None,
    }
}

/// A child process, and the next one after it.
struct Process {
    name: &'static str,
    arguments: Vec<String>,
    state: State,
    pause: Duration,
}

enum State {
    Running {
        child: Child,
        _lifeline: Lifeline,
        since: Instant,
        signalled: bool,
    },
    Waiting {
        until: Instant,
    },
    Ended(Option<ExitStatus>),
}

impl Process {
    fn start(name: &'static str, arguments: Vec<String>) -> Result<Self, Failure> {
        let state = spawn(&arguments)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot start {name}: {error}")))?;
        Ok(Self {
            name,
            arguments,
            state,
            pause: PAUSE_MIN,
        })
    }

    /// How it ended, once; starts the next one when its time has come.
    fn ended(&mut self) -> Option<ExitStatus> {
        match &mut self.state {
            State::Running { child, since, .. } => {
                let status = child.try_wait().ok().flatten()?;
                if since.elapsed() > STEADY_AFTER {
                    self.pause = PAUSE_MIN;
                }
                self.state = State::Ended(Some(status));
                Some(status)
            }
            State::Waiting { until } if *until <= Instant::now() => {
                match spawn(&self.arguments) {
                    Ok(running) => self.state = running,
                    Err(error) => {
                        warn!(process = self.name, %error, "cannot start");
                        self.wait();
                    }
                }
                None
            }
            State::Waiting { .. } | State::Ended(_) => None,
        }
    }

    fn start_again(&mut self, status: ExitStatus) {
        warn!(process = self.name, %status, pause_ms = self.pause.as_millis(), "ended by itself and is started again");
        self.wait();
    }

    fn wait(&mut self) {
        self.state = State::Waiting {
            until: Instant::now() + self.pause,
        };
        self.pause = (2 * self.pause).min(PAUSE_MAX);
    }

    fn has_ended(&mut self) -> bool {
        match &mut self.state {
            State::Running { child, .. } => {
                let Some(status) = child.try_wait().ok().flatten() else {
                    return false;
                };
                self.state = State::Ended(Some(status));
                true
            }
            State::Waiting { .. } | State::Ended(_) => true,
        }
    }

    fn verdict(&self) -> Result<(), Failure> {
        match &self.state {
            State::Ended(Some(status)) if !status.success() => Err(Failure::new(
                Exit::Failed,
                format!("{} ended with {status}", self.name),
            )),
            _ => Ok(()),
        }
    }

    fn signal(&mut self) {
        if let State::Running {
            child, signalled, ..
        } = &mut self.state
        {
            *signalled = send(child, Signal::TERM);
        }
    }

    /// Passes SIGHUP on. A child that has just been started reads everything anyway, and may not
    /// have its handler yet.
    fn reload(&self) {
        if let State::Running { child, since, .. } = &self.state
            && since.elapsed() > READS_WITHIN
        {
            send(child, Signal::HUP);
        }
    }

    fn signal_once(&mut self) {
        if matches!(
            self.state,
            State::Running {
                signalled: false,
                ..
            }
        ) {
            self.signal();
        }
    }
}

/// The child is not waited for yet, so its number is nobody else's.
fn send(child: &Child, signal: Signal) -> bool {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// In a process group of its own: a terminal's Ctrl-C reaches `up` alone, which passes it on.
fn spawn(arguments: &[String]) -> std::io::Result<State> {
    let mut command = Command::new(OWN_PROGRAM);
    command.arg0("underpass").args(arguments).process_group(0);
    let lifeline = lifeline::hold(&mut command)?;
    let child = command.spawn()?;
    Ok(State::Running {
        child,
        _lifeline: lifeline,
        since: Instant::now(),
        signalled: false,
    })
}

fn welcome(
    args: &Args,
    directory: &Directory,
    namespace: &Namespace,
    pin: &str,
    status: &Status,
) -> String {
    let dir = shell::word(&args.dir.dir);
    let row = |name: &str, value: String| [format!("  {name}"), value];
    let mut rows = vec![
        row(
            "relay",
            format!(
                "{} (udp), known to agents as {}",
                namespace.listen, namespace.public_address
            ),
        ),
        row("pin", pin.to_owned()),
        row("directory", directory.root().display().to_string()),
    ];
    for hyco in status.relay.iter().flat_map(|report| &report.hycos) {
        let bound = hyco.bound.map_or_else(
            || "not bound here".to_owned(),
            |bound| format!("applications connect to {bound}"),
        );
        rows.push(row(hyco.name.as_str(), bound));
    }
    let note = namespace.port_note();
    let note = note.map_or_else(String::new, |note| format!("  {note}\n"));
    let next = if rows.len() > 3 {
        format!(
            "  underpass connection string NAME --role on-premises --dir {dir} --out NAME.connection\n"
        )
    } else {
        format!(
            "  underpass connection create my-service --host HOST --port PORT --bind 127.0.0.1:8000 --dir {dir}\n"
        )
    };
    format!(
        "\nUnderpass is ready.\n{}{note}next:\n{next}  underpass status --dir {dir}\n\n",
        table(&rows)
    )
}
