//! An agent beside an [`Installation`]: its folder of files, and its process.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::deadline::{MOMENT, wait_for};
use super::installation::{Installation, Setup, write_secret};
use super::network::with_files;
use super::process::{Process, lock};

/// An agent. Dropped, it is killed and its folder goes.
#[derive(Debug)]
pub struct Agent {
    folder: TempDir,
    setup: Setup,
    process: Mutex<Option<Process>>,
}

impl Agent {
    /// Writes the files of an agent for some hybrid connections, with allow-list entries beyond
    /// their targets, and starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn install(
        installation: &Installation,
        setup: Setup,
        names: &[&str],
        allow: &[&str],
    ) -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-agent-")?;
        let mut config = format!("allow = {allow:?}\n");
        for name in names {
            let string = installation.connection_string(name)?;
            write_secret(&folder.path().join(format!("{name}.connection")), &string)?;
            config += &format!("[[connect]]\nstring_file = \"{name}.connection\"\n");
        }
        fs::write(folder.path().join("agent.toml"), config)?;
        let agent = Self {
            folder,
            setup,
            process: Mutex::default(),
        };
        agent.start()?;
        Ok(agent)
    }

    /// Starts it, again where it was killed. Does not wait until it is registered.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<()> {
        let setup = &self.setup;
        let places = [
            ("/etc/hosts", setup.hosts.as_deref()),
            ("/etc/resolv.conf", setup.resolv_conf.as_deref()),
        ];
        let files: Vec<_> = places
            .into_iter()
            .filter_map(|(place, file)| Some((place, file?)))
            .collect();
        let mut command = match files[..] {
            [] => setup.data_plane()?,
            [..] => setup.prepared(with_files(&files, setup.program()?)),
        };
        command
            .args(["agent", "run", "--config"])
            .arg(self.config())
            .args(self.setup.arguments())
            .envs(self.setup.environment.iter().cloned());
        *lock(&self.process) = Some(Process::start("agent", &mut command)?);
        Ok(())
    }

    /// The file of one connection string: writing another into it rotates the key.
    #[must_use]
    pub fn string_file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.connection"))
    }

    /// Its `agent.toml`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("agent.toml")
    }

    /// Its process.
    pub fn process(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.process)
    }

    /// Waits for the line `listener registered` that names this hybrid connection.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_until_registered(&self, name: &str) -> Result<()> {
        let what = format!("the agent to register {name}");
        let registered = || {
            let process = lock(&self.process);
            let log = process.as_ref()?.stderr();
            log.lines()
                .any(|line| line.contains("listener registered") && line.contains(name))
                .then_some(())
        };
        wait_for(&what, MOMENT, registered).with_context(|| {
            lock(&self.process)
                .as_ref()
                .map_or_else(String::new, Process::log_end)
        })
    }
}
