//! Sets the scene: a temporary directory with definitions and keys, a service, and control, relay
//! and agent as processes of their own.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use tempfile::TempDir;
use underpass_proto::Status;
use underpass_proto::snapshot::HycoReport;

use super::processes::{self, PROGRAM, Plan, Process};
use super::{Args, Interrupted, service, spoiler};
use crate::files::{Directory, disk};
use crate::publish;

/// Name of the demo's hybrid connection.
pub(super) const NAME: &str = "demo-web";

/// From the start of the processes to a registered listener. Usually a fraction of a second.
const READY_DEADLINE: Duration = Duration::from_secs(15);
/// Starts of one process after which another one will not help. One may fail for a passing reason.
const STARTS_MAX: u32 = 3;
/// Between two looks at the status.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long live flows may go on when the demo ends.
const GRACE: &str = "1s";

/// Everything that runs, and where.
pub(super) struct Scene {
    /// The endpoint.
    pub(super) service: SocketAddr,
    /// Where an application connects.
    pub(super) binding: SocketAddr,
    /// Control's directory.
    pub(super) directory: PathBuf,
    /// Where the logs are.
    pub(super) logs: PathBuf,
    /// The agent, to be killed.
    pub(super) agent: Arc<Process>,
    /// All of them, in the order in which they are ended.
    processes: Vec<Arc<Process>>,
    root: Mutex<Option<TempDir>>,
}

impl Scene {
    /// Writes the files, starts the processes, and waits until the listener is registered.
    /// A signal ends that, with [`Interrupted`].
    pub(super) fn set(args: &Args, signals: &Receiver<()>) -> Result<Self> {
        let root = tempfile::Builder::new()
            .prefix("underpass-demo-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let (directory, logs) = (root.path().join("site"), root.path().join("logs"));
        disk::folder(&directory, disk::FOLDER)?;
        disk::folder(&logs, disk::FOLDER)?;
        let mut cast = Cast {
            args,
            signals,
            logs: &logs,
            processes: Vec::new(),
        };
        match cast.play(&directory, root.path()) {
            Ok((service, binding)) => {
                let mut processes = cast.processes;
                processes.reverse();
                let agent = Arc::clone(&processes[0]);
                Ok(Self {
                    service,
                    binding,
                    directory,
                    logs,
                    agent,
                    processes,
                    root: Mutex::new(Some(root)),
                })
            }
            Err(error) => {
                let tails: String = cast
                    .processes
                    .iter()
                    .map(|process| process.tail())
                    .collect();
                processes::end(&cast.processes);
                if error.is::<Interrupted>() {
                    return Err(error);
                }
                Err(anyhow!("{error:#}{tails}"))
            }
        }
    }

    /// The status, as control tells it.
    pub(super) fn status(&self) -> Result<Status> {
        status_of(&self.directory)
    }

    /// Fails if a process was started another number of times than it should have been.
    pub(super) fn check_starts(&self, agent_starts: u32) -> Result<()> {
        for process in &self.processes {
            let expected = if Arc::ptr_eq(process, &self.agent) {
                agent_starts
            } else {
                1
            };
            ensure!(
                process.starts() == expected,
                "a process ended by itself:{}",
                process.tail()
            );
        }
        Ok(())
    }

    /// Ends every process and removes the directory.
    pub(super) fn end(&self) {
        processes::end(&self.processes);
        self.root
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.end();
    }
}

/// The processes while they are being started.
struct Cast<'a> {
    args: &'a Args,
    signals: &'a Receiver<()>,
    logs: &'a Path,
    processes: Vec<Arc<Process>>,
}

impl Cast<'_> {
    /// Service, control, relay, agent, in this order; the addresses of the service and of the
    /// binding.
    fn play(&mut self, directory: &Path, root: &Path) -> Result<(SocketAddr, SocketAddr)> {
        let output = self.start("service", false, ["demo-service".into()].into())?;
        let service = service_address(output.context("the service has no output")?)?;
        write_namespace(directory)?;
        let endpoint = match self.args.spoil {
            Some(way) => spoiler::start(service, way)?,
            None => service,
        };
        create_connection(directory, endpoint)?;
        let string_file = write_string(directory, root)?;

        let dir = || [OsString::from("--dir"), directory.into()];
        self.start("control", true, [&["control".into()][..], &dir()].concat())?;
        self.start(
            "relay",
            true,
            [&["relay".into()][..], &dir(), &self.options()].concat(),
        )?;
        let agent = ["agent", "run", "--connection-string-file"].map(OsString::from);
        self.start(
            "agent",
            true,
            [&agent[..], &[string_file.into()], &self.options()].concat(),
        )?;
        Ok((service, self.wait_until_ready(directory)?))
    }

    fn start(
        &mut self,
        name: &'static str,
        restart: bool,
        arguments: Vec<OsString>,
    ) -> Result<Option<ChildStdout>> {
        let plan = Plan {
            name,
            arguments,
            logs: self.logs.to_owned(),
            restart,
            output: !restart,
        };
        let (process, output) = Process::start(plan)?;
        self.processes.push(process);
        Ok(output)
    }

    /// Until the binding is open and a listener is there; not longer than there is hope.
    fn wait_until_ready(&self, directory: &Path) -> Result<SocketAddr> {
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            let status = status_of(directory);
            if let Ok(Some(hyco)) = status.as_ref().map(hyco_of)
                && let (Some(bound), 1..) = (hyco.bound, hyco.listeners)
            {
                return Ok(bound);
            }
            if let Some(process) = self
                .processes
                .iter()
                .find(|process| process.starts() > STARTS_MAX)
            {
                bail!("{} ends as soon as it starts", process.name());
            }
            if Instant::now() > deadline {
                let faults = faults_of(&status?);
                bail!("no listener is registered after {READY_DEADLINE:?}{faults}");
            }
            if self.signals.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
                bail!(Interrupted);
            }
        }
    }

    /// What relay and agent are told alike.
    fn options(&self) -> Vec<OsString> {
        let mut options = vec!["--grace".into(), GRACE.into()];
        if let Some(io) = &self.args.io {
            options.extend(["--io".into(), io.into()]);
        }
        options
    }
}

fn status_of(directory: &Path) -> Result<Status> {
    publish::status(&Directory::new(directory)).context("control does not answer")
}

fn service_address(output: ChildStdout) -> Result<SocketAddr> {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let address = line
        .trim()
        .strip_prefix(service::LISTENING)
        .context("the service did not start")?;
    Ok(address.parse()?)
}

/// A UDP port that is free just now, for both the relay and what the connection string says of it.
fn write_namespace(directory: &Path) -> Result<()> {
    let relay = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let text = format!(
        "name = \"demo\"\nlisten = \"{relay}\"\npublic_address = \"{relay}\"\n[control]\nlisten = \"127.0.0.1:0\"\n"
    );
    Ok(fs::write(directory.join("namespace.toml"), text)?)
}

/// By the command that users have.
fn create_connection(directory: &Path, endpoint: SocketAddr) -> Result<()> {
    let (host, port) = (endpoint.ip().to_string(), endpoint.port().to_string());
    run(
        directory,
        &[
            "connection",
            "create",
            NAME,
            "--host",
            &host,
            "--port",
            &port,
            "--bind",
            "127.0.0.1:0",
        ],
    )
}

/// The on-premises connection string, in a file that nobody else can read.
fn write_string(directory: &Path, root: &Path) -> Result<PathBuf> {
    let path = root.join(format!("{NAME}.connection"));
    let out = path
        .to_str()
        .context("the temporary directory has a name that is no text")?;
    run(
        directory,
        &[
            "connection",
            "string",
            NAME,
            "--role",
            "on-premises",
            "--out",
            out,
        ],
    )?;
    Ok(path)
}

/// Runs this program once, to its end.
fn run(directory: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .arg("--dir")
        .arg(directory)
        .stdin(Stdio::null())
        // Ctrl-C is for the demo alone; this command is done in a moment.
        .process_group(0);
    let output = command.output()?;
    let words = arguments[..2].join(" ");
    ensure!(
        output.status.success(),
        "`underpass {words}` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// What the relay says about the demo's hybrid connection.
pub(super) fn hyco_of(status: &Status) -> Option<&HycoReport> {
    status
        .relay
        .as_ref()?
        .hycos
        .iter()
        .find(|hyco| hyco.name.as_str() == NAME)
}

fn faults_of(status: &Status) -> String {
    let relay = status.relay.iter().flat_map(|report| &report.faults);
    status
        .faults
        .iter()
        .chain(relay)
        .map(|fault| format!("\n  {fault}"))
        .collect()
}
