//! A sender beside an [`Installation`]: its folder of files, its process, and the addresses that it
//! gives to applications.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result};
use tempfile::TempDir;
use underpass_proto::{Role, Rule};

use crate::deadline::{MOMENT, wait_for};
use crate::installation::{Installation, Setup, underpass, write_secret};
use crate::process::{Process, free_tcp_address, lock};

/// A sender. Dropped, it is killed and its folder goes.
#[derive(Debug)]
pub struct Sender {
    folder: TempDir,
    setup: Setup,
    binds: Vec<(String, SocketAddr)>,
    process: Mutex<Option<Process>>,
}

impl Sender {
    /// Starts a sender for some hybrid connections, and waits until the relay has registered it for
    /// each.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn start(installation: &Installation, setup: Setup, names: &[&str]) -> Result<Self> {
        let sender = Self::start_unregistered(installation, setup, names)?;
        for name in names {
            sender.wait_until_registered(installation, name)?;
        }
        Ok(sender)
    }

    /// As [`Self::start`], and waits for nothing.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_unregistered(
        installation: &Installation,
        setup: Setup,
        names: &[&str],
    ) -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-sender-")?;
        let mut config = String::new();
        let mut binds = Vec::new();
        for name in names {
            let string = installation.string_of(name, Rule::Send, &[])?;
            write_secret(&folder.path().join(format!("{name}.connection")), &string)?;
            let bind = free_tcp_address();
            config +=
                &format!("[[connect]]\nstring_file = \"{name}.connection\"\nbind = \"{bind}\"\n");
            binds.push(((*name).to_owned(), bind));
        }
        fs::write(folder.path().join("sender.toml"), config)?;
        let sender = Self {
            folder,
            setup,
            binds,
            process: Mutex::default(),
        };
        sender.start_again()?;
        Ok(sender)
    }

    /// Starts its process, again where it was killed. Does not wait until it is registered.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(&self) -> Result<()> {
        let mut command = underpass()?;
        command
            .args(["sender", "run", "--config"])
            .arg(self.folder.path().join("sender.toml"))
            .args(self.setup.arguments())
            .envs(self.setup.environment.iter().cloned());
        *self.process() = Some(Process::start("sender", &mut command)?);
        Ok(())
    }

    /// Waits until the relay says that a sender is registered for this hybrid connection, and its
    /// address is open.
    ///
    /// # Errors
    /// When that does not come about; the sender's log is in the message.
    pub fn wait_until_registered(&self, installation: &Installation, name: &str) -> Result<()> {
        let registered = || {
            let report = installation.status().ok()?.relay?;
            let senders = report
                .sessions
                .iter()
                .filter(|session| session.role == Role::Sender);
            senders
                .flat_map(|session| &session.hycos)
                .find(|registration| registration.name.to_string() == name)
                .map(drop)
        };
        wait_for(&format!("a sender of {name}"), MOMENT, registered).with_context(|| self.log())
    }

    /// Where applications find a hybrid connection.
    ///
    /// # Errors
    /// When this sender has none of this name.
    pub fn address(&self, name: &str) -> Result<SocketAddr> {
        let bind = self.binds.iter().find(|(known, _)| known == name);
        Ok(bind.with_context(|| format!("the sender has no {name}"))?.1)
    }

    /// The file of one connection string: writing another into it rotates the key.
    #[must_use]
    pub fn string_file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.connection"))
    }

    /// Its process.
    pub fn process(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.process)
    }

    fn log(&self) -> String {
        self.process()
            .as_ref()
            .map_or_else(String::new, Process::log_end)
    }
}
