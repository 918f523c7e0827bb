//! A whole installation from the built binary: a directory of files, control, relay and agents as
//! processes of their own.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use underpass_proto::snapshot::HycoReport;
use underpass_proto::{Rule, Status, Which};

use super::agent::Agent;
use super::deadline::{MOMENT, wait_for};
use super::process::{Process, Ran, Signal, free_tcp_address, free_udp_port, lock, run, run_ok};
pub use super::setup::{Io, Setup, binary, underpass};

/// A directory with control and relay running on it. Dropped, all ends and the directory goes.
#[derive(Debug)]
pub struct Installation {
    folder: TempDir,
    setup: Setup,
    listen: SocketAddr,
    control: Mutex<Option<Process>>,
    relay: Mutex<Option<Process>>,
}

impl Installation {
    /// Makes a directory in which nothing runs yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(setup: Setup) -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-test-")?;
        let listen = SocketAddr::new(setup.ip, free_udp_port());
        let public = setup.public.unwrap_or(listen);
        let directory = folder.path().join("dir");
        fs::create_dir_all(directory.join("connections"))?;
        fs::write(
            directory.join("namespace.toml"),
            format!(
                "name = \"tests\"\nlisten = \"{listen}\"\npublic_address = \"{public}\"\n[control]\nlisten = \"127.0.0.1:0\"\n"
            ),
        )?;
        Ok(Self {
            folder,
            setup,
            listen,
            control: Mutex::default(),
            relay: Mutex::default(),
        })
    }

    /// Makes a directory with some definitions, starts control and relay, and waits until the relay
    /// has applied them.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn start(setup: Setup, definitions: &[(&str, &str)]) -> Result<Self> {
        let installation = Self::new(setup)?;
        for (name, endpoint) in definitions {
            installation.define(name, endpoint)?;
        }
        installation.start_control()?;
        installation.start_relay()?;
        for (name, _) in definitions {
            installation.binding(name)?;
        }
        Ok(installation)
    }

    /// The directory of `--dir`.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.folder.path().join("dir")
    }

    /// Where the relay listens for agents (UDP).
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The file of one definition.
    #[must_use]
    pub fn definition(&self, name: &str) -> PathBuf {
        self.directory()
            .join("connections")
            .join(format!("{name}.toml"))
    }

    /// Writes a definition, with a free port as its binding; an old one is replaced at once and
    /// keeps its binding.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn define(&self, name: &str, endpoint: &str) -> Result<()> {
        let (host, port) = endpoint
            .rsplit_once(':')
            .with_context(|| format!("{endpoint} is not host:port"))?;
        let old = fs::read_to_string(self.definition(name)).unwrap_or_default();
        let bind = old
            .lines()
            .find(|line| line.starts_with("bind = "))
            .map(str::to_owned);
        let free = SocketAddr::new(self.setup.ip, free_tcp_address().port());
        let bind = bind.unwrap_or_else(|| format!("bind = \"{free}\""));
        let probe = if self.setup.probe {
            ""
        } else {
            "probe = \"off\"\n"
        };
        self.write_definition(
            name,
            &format!("host = \"{host}\"\nport = {port}\n{bind}\n{probe}"),
        )
    }

    /// The binding that a definition's file names: known before the relay has opened it.
    ///
    /// # Errors
    /// When the file has none.
    pub fn wanted_binding(&self, name: &str) -> Result<SocketAddr> {
        let text = fs::read_to_string(self.definition(name))?;
        let bind = text
            .lines()
            .find_map(|line| line.strip_prefix("bind = \"")?.strip_suffix('"'));
        Ok(bind
            .with_context(|| format!("no bind in {text}"))?
            .parse()?)
    }

    /// Writes any text as a definition, by a rename, so that no reader sees half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_definition(&self, name: &str, text: &str) -> Result<()> {
        let path = self.definition(name);
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, path)?)
    }

    /// Removes a definition.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.definition(name))?)
    }

    /// Starts control, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_control(&self) -> Result<()> {
        let process = Process::start(
            "control",
            self.setup
                .underpass()?
                .arg("control")
                .arg("--dir")
                .arg(self.directory()),
        )?;
        *lock(&self.control) = Some(process);
        wait_for("control to answer", MOMENT, || self.status().ok())
            .with_context(|| self.log_of(&self.control))?;
        Ok(())
    }

    /// Starts the relay. Does not wait for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_relay(&self) -> Result<()> {
        self.start_relay_on(&self.directory())
    }

    /// Starts the relay on another directory, where another process serves the feed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_relay_on(&self, directory: &Path) -> Result<()> {
        let mut command = self.setup.data_plane()?;
        command
            .arg("relay")
            .arg("--dir")
            .arg(directory)
            .args(self.setup.arguments())
            .envs(self.setup.environment.iter().cloned());
        *lock(&self.relay) = Some(Process::start("relay", &mut command)?);
        Ok(())
    }

    /// Starts control and relay as children of one process, and waits until it says that it is
    /// ready.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_up(&self) -> Result<Process> {
        let mut command = self.setup.data_plane()?;
        command
            .arg("up")
            .arg("--dir")
            .arg(self.directory())
            .args(self.setup.arguments());
        let mut process = Process::start("up", &mut command)?;
        process
            .wait_for_line("Underpass is ready", MOMENT)
            .with_context(|| process.log_end())?;
        Ok(process)
    }

    /// Control's process.
    pub fn control(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.control)
    }

    /// The relay's process.
    pub fn relay(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.relay)
    }

    /// Starts an agent for some hybrid connections, with allow-list entries beyond their targets,
    /// and waits until all are registered.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn start_agent(&self, names: &[&str], allow: &[&str]) -> Result<Agent> {
        let agent = self.start_agent_unregistered(names, allow)?;
        self.wait_for_listener(&agent, names)?;
        Ok(agent)
    }

    /// Waits until an agent has registered for these, and the relay says so.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn wait_for_listener(&self, agent: &Agent, names: &[&str]) -> Result<()> {
        for name in names {
            agent.wait_until_registered(name)?;
            self.wait_for_hyco(name, "a listener", |hyco| hyco.listeners > 0)?;
        }
        Ok(())
    }

    /// Starts an agent as [`Self::start_agent`] does, and waits for nothing.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_unregistered(&self, names: &[&str], allow: &[&str]) -> Result<Agent> {
        self.start_agent_apart(self.setup.clone(), names, allow)
    }

    /// As [`Self::start_agent_unregistered`], set up otherwise than the relay.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent_apart(&self, setup: Setup, names: &[&str], allow: &[&str]) -> Result<Agent> {
        Agent::install(self, setup, names, allow)
    }

    /// The on-premises connection string of a hybrid connection.
    ///
    /// # Errors
    /// When the command fails.
    pub fn connection_string(&self, name: &str) -> Result<String> {
        self.string_of(name, Rule::Listen, &[])
    }

    /// A connection string of a hybrid connection, with options such as `--secondary`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn string_of(&self, name: &str, rule: Rule, options: &[&str]) -> Result<String> {
        let role = match rule {
            Rule::Listen => "on-premises",
            Rule::Send => "application",
        };
        let mut command = self.setup.underpass()?;
        command
            .args(["connection", "string", name, "--role", role])
            .args(options)
            .arg("--dir")
            .arg(self.directory());
        run_ok(&mut command, MOMENT)
    }

    /// Makes a key anew, by the command.
    ///
    /// # Errors
    /// When the command fails.
    pub fn regenerate(&self, name: &str, rule: Rule, key: Which) -> Result<()> {
        let (rule, key) = (rule.right(), key.to_string());
        let mut command = self.setup.underpass()?;
        command
            .args(["key", "regenerate", name, "--rule", rule, "--key", &key])
            .arg("--dir")
            .arg(self.directory());
        run_ok(&mut command, MOMENT).map(drop)
    }

    /// What `underpass status --json` says.
    ///
    /// # Errors
    /// When control does not answer.
    pub fn status(&self) -> Result<Status> {
        let text = run_ok(
            self.setup
                .underpass()?
                .args(["status", "--json"])
                .arg("--dir")
                .arg(self.directory()),
            MOMENT,
        )?;
        serde_json::from_str(&text).with_context(|| format!("status --json says {text}"))
    }

    /// What the relay last reported of one hybrid connection.
    ///
    /// # Errors
    /// When control does not answer.
    pub fn hyco(&self, name: &str) -> Result<Option<HycoReport>> {
        let report = self.status()?.relay;
        Ok(report.and_then(|report| {
            report
                .hycos
                .into_iter()
                .find(|hyco| hyco.name.to_string() == name)
        }))
    }

    /// Waits until the relay reports of a hybrid connection what is wanted, and answers that
    /// report.
    ///
    /// # Errors
    /// When it does not; what it reported last is in the message.
    pub fn wait_for_hyco(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&HycoReport) -> bool,
    ) -> Result<HycoReport> {
        let mut last = None;
        let reported = wait_for(&format!("{name}: {what}"), MOMENT, || {
            last = self.hyco(name).ok().flatten();
            last.clone().filter(&is_so)
        });
        reported.with_context(|| format!("the last report: {last:?}"))
    }

    /// Where applications connect for a hybrid connection; waits until the relay says so.
    ///
    /// # Errors
    /// When it does not.
    pub fn binding(&self, name: &str) -> Result<SocketAddr> {
        wait_for(&format!("the binding of {name}"), MOMENT, || {
            self.hyco(name).ok().flatten()?.bound
        })
        .with_context(|| {
            format!(
                "{}\n{}\nstatus: {:?}",
                self.log_of(&self.control),
                self.log_of(&self.relay),
                self.status()
            )
        })
    }

    fn log_of(&self, process: &Mutex<Option<Process>>) -> String {
        lock(process)
            .as_ref()
            .map_or_else(String::new, Process::log_end)
    }
}

/// Runs the binary with some arguments to its end, however it ends.
///
/// # Errors
/// When it does not end.
pub fn run_underpass<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Result<Ran> {
    run(
        underpass()?.env("UNDERPASS_LOG", "info").args(arguments),
        MOMENT,
    )
}

/// Runs the role that proves this right, with a connection string in a file of its own, to its end.
///
/// # Errors
/// When it does not end.
pub fn run_role(rule: Rule, string: &str, options: &[&str]) -> Result<Ran> {
    let folder = TempDir::new()?;
    let file = folder.path().join("a.connection");
    write_secret(&file, string)?;
    let role = match rule {
        Rule::Listen => "agent",
        Rule::Send => "sender",
    };
    let file = file.to_str().context("a path that is not UTF-8")?;
    let from = [role, "run", "--connection-string-file", file];
    run_underpass(&[&from, options].concat())
}

/// Asks a process to end as an init system does, and returns its exit code.
///
/// # Errors
/// When it does not end within `within`, or not by itself.
pub fn terminate(process: &mut Process, within: Duration) -> Result<i32> {
    process.signal(Signal::TERM)?;
    let status = process.wait(within)?;
    status
        .code()
        .with_context(|| format!("ended with {status}"))
}

/// Writes a file that only we can read, by a rename, so that no reader sees half of it.
///
/// # Errors
/// When it cannot be written.
pub fn write_secret(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    Ok(fs::rename(new, path)?)
}
