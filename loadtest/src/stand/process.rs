//! Real processes: started with their log kept, ended by the id that started them, and never left
//! behind.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{self, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;

use super::deadline::{MOMENT, wait_for};
use super::usage;

/// How much of a log's end is printed when a test fails, bytes.
const LOG_SHOWN: usize = 16 * 1024;

/// Read-locked while a process is started, write-locked while a port is tried.
///
/// Between fork and exec a child holds copies of all sockets. A copy of the socket that tried a
/// port keeps the port in use after the socket is closed.
static FORKS: RwLock<()> = RwLock::new(());

/// A process that runs beside the test. Dropped, it is killed and reaped; when the test is failing,
/// the end of its log is printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Log,
    ended: Option<ExitStatus>,
}

/// Everything that a process wrote to stdout and stderr, in files of a folder of its own.
#[derive(Debug)]
pub struct Log {
    folder: TempDir,
}

impl Process {
    /// Starts a command with its output kept.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let log = Log {
            folder: TempDir::with_prefix("underpass-log-")?,
        };
        command
            .stdin(Stdio::null())
            .stdout(File::create(log.stdout_path())?)
            .stderr(File::create(log.stderr_path())?);
        let child = spawn(command).with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            ended: None,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr up to now.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.log.stderr()
    }

    /// What it wrote to stdout up to now.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.log.stdout()
    }

    /// The end of its log, for messages.
    #[must_use]
    pub fn log_end(&self) -> String {
        format!("---- {}\n{}----", self.name, self.log.end())
    }

    /// Waits until a line of its output holds `text`.
    ///
    /// # Errors
    /// When `within` has passed or the process ended first.
    pub fn wait_for_line(&mut self, text: &str, within: Duration) -> Result<String> {
        let what = format!("a line with {text:?} from {}", self.name);
        let found = wait_for(&what, within, || {
            let ended = self.ended();
            let line = self.log.line_with(text);
            if line.is_some() || ended.is_some() {
                Some((line, ended))
            } else {
                None
            }
        })?;
        match found {
            (Some(line), _) => Ok(line),
            (None, ended) => bail!(
                "{} ended with {ended:?} before it wrote a line with {text:?}",
                self.name
            ),
        }
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When `within` has passed.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait_for(&what, within, || self.ended())
    }

    /// Sends it a signal. One that stops it has stopped every thread of it then.
    ///
    /// # Errors
    /// When it has ended, or does not stop within [`MOMENT`].
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended() {
            bail!("{} has already ended with {status}", self.name);
        }
        // Not reaped yet, so the id still means this process.
        let id = Pid::from_child(&self.child);
        kill_process(id, signal)
            .with_context(|| format!("cannot send {signal:?} to {}", self.name))?;
        if signal == Signal::STOP {
            let what = format!("{} to stand still", self.name);
            wait_for(&what, MOMENT, || {
                let stopped = usage::is_stopped(self.child.id());
                stopped.is_ok_and(|stopped| stopped).then_some(())
            })?;
        }
        Ok(())
    }

    /// Asks it to end (SIGINT), once it has a handler for that: one that has only just begun would
    /// end without a word.
    ///
    /// # Errors
    /// When it has ended, or has no handler within [`MOMENT`].
    pub fn ask_to_end(&mut self) -> Result<()> {
        let what = format!("{} to handle SIGINT", self.name);
        wait_for(&what, MOMENT, || {
            let handles = usage::handles(self.child.id(), Signal::INT);
            (self.ended().is_some() || handles.unwrap_or(false)).then_some(())
        })?;
        self.signal(Signal::INT)
    }

    /// Ends it at once (SIGKILL) and reaps it.
    ///
    /// # Errors
    /// When it had already ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            crate::note!("{} {:?}", self.log_end(), self.ended);
        }
    }
}

impl Log {
    /// What was written to stdout.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.stdout_path()).unwrap_or_default()).into_owned()
    }

    /// What was written to stderr.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.stderr_path()).unwrap_or_default()).into_owned()
    }

    fn line_with(&self, text: &str) -> Option<String> {
        [self.stderr(), self.stdout()]
            .iter()
            .flat_map(|log| log.lines())
            .find(|line| line.contains(text))
            .map(str::to_owned)
    }

    fn end(&self) -> String {
        let mut shown = String::new();
        for (name, log) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let from = log.len().saturating_sub(LOG_SHOWN);
            let from = (from..=log.len())
                .find(|&index| log.is_char_boundary(index))
                .unwrap_or(0);
            let _ = writeln!(shown, "{name}: {}", &log[from..]);
        }
        shown
    }

    fn stdout_path(&self) -> PathBuf {
        self.folder.path().join("stdout")
    }

    fn stderr_path(&self) -> PathBuf {
        self.folder.path().join("stderr")
    }
}

/// What a command that ran to its end left behind.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

/// Runs a command to its end, however it ends.
///
/// # Errors
/// When it cannot be started, or is not done within `within` (it is killed then).
pub fn run(command: &mut Command, within: Duration) -> Result<Ran> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    let mut process = Process::start(&name, command)?;
    let status = process
        .wait(within)
        .with_context(|| format!("{command:?}\n{}", process.log.end()))?;
    Ok(Ran {
        status,
        stdout: process.stdout(),
        stderr: process.stderr(),
        took: started.elapsed(),
    })
}

/// Runs a command that must succeed, and returns its stdout.
///
/// # Errors
/// As [`run`], and when it exits with anything but 0; both its outputs are in the message.
pub fn run_ok(command: &mut Command, within: Duration) -> Result<String> {
    let ran = run(command, within)?;
    if !ran.status.success() {
        bail!(
            "{command:?} ended with {}\nstdout: {}\nstderr: {}",
            ran.status,
            ran.stdout,
            ran.stderr
        );
    }
    Ok(ran.stdout)
}

/// Runs a script for `sh -eu` that must succeed. Arguments are `$1`, `$2` and so on, so that
/// nothing needs to be quoted.
///
/// # Errors
/// As [`run_ok`].
pub fn shell<S: AsRef<OsStr>>(script: &str, arguments: &[S], within: Duration) -> Result<String> {
    run_ok(
        Command::new("sh")
            .args(["-eu", "-c", script, "sh"])
            .args(arguments),
        within,
    )
}

/// Copies a program by a process of its own.
///
/// A file that this process had open for writing would be open in a child of another thread,
/// between fork and exec, and could not be run until then ("Text file busy").
///
/// # Errors
/// When it cannot be copied.
pub fn copy_program(from: &str, to: &Path) -> Result<()> {
    run_ok(Command::new("cp").arg(from).arg(to), MOMENT).map(drop)
}

/// The command's output when it takes no time to speak of, such as `id -u`.
///
/// # Errors
/// When it cannot be started or fails.
pub fn quick(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let Output { status, stdout, .. } = spawn(&mut command)
        .and_then(Child::wait_with_output)
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} {arguments:?} ended with {status}");
    }
    Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
}

/// An address of this machine where nobody listens, for servers that cannot be asked for a port of
/// the kernel's choice.
///
/// Ports are taken in turn from a range below the one that the kernel gives to clients, starting at
/// a place that depends on the process, so two tests hardly ever want the same.
///
/// # Panics
/// When no port of the range is free.
#[must_use]
pub fn free_tcp_address() -> SocketAddr {
    let port = free_port(|port| net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A UDP port that nobody has, as [`free_tcp_address`].
///
/// # Panics
/// When no port of the range is free.
#[must_use]
pub fn free_udp_port() -> u16 {
    free_port(|port| net::UdpSocket::bind(("127.0.0.1", port)).is_ok())
}

/// Starts a command while no port is being tried.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    let _forks = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Ports handed out: above what services use, below 32768, where Linux begins to give ports to
/// clients.
const PORTS: std::ops::Range<u32> = 15_000..32_000;

fn free_port(free: impl Fn(u16) -> bool) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = PORTS.end - PORTS.start;
    // A prime step spreads processes with neighbouring ids over the range.
    let base = std::process::id().wrapping_mul(997) % span;
    let _no_forks = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    (0..span)
        .map(|_| PORTS.start + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % span)
        .filter_map(|port| u16::try_from(port).ok())
        .find(|&port| free(port))
        .expect("a port is free")
}

/// What other threads of a test share. A test that failed with the lock must not hide its own
/// message behind another.
pub fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound_while_other_threads_start_processes() {
        let (ends, ended) = std::sync::mpsc::channel::<()>();
        let starter = thread::spawn(move || {
            // At most as many as a slow machine starts in the time that the ports take.
            for _ in 0..10_000 {
                if ended.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty) {
                    return;
                }
                quick("true", &[]).unwrap();
            }
        });
        for _ in 0..300 {
            net::TcpListener::bind(free_tcp_address()).expect("a TCP port");
            net::UdpSocket::bind(("127.0.0.1", free_udp_port())).expect("a UDP port");
        }
        drop(ends);
        starter.join().unwrap();
    }
}
