//! OpenSSH: a server for the user who runs the tests, and that user's key.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{program, text};
use crate::deadline::MOMENT;
use crate::process::{Process, free_tcp_address, quick, run_ok};

/// Where sshd wants an empty folder when root starts it.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

/// A running server.
#[derive(Debug)]
pub struct Sshd {
    process: Process,
    folder: TempDir,
    user: String,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Sshd {
    /// Starts a server with keys of its own, which admits one user by one key.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start() -> Result<Self> {
        Self::start_by(free_tcp_address(), Command::new)
    }

    /// The same at another address, started by a command that knows where that is.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_by(address: SocketAddr, by: impl FnOnce(PathBuf) -> Command) -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-ssh-")?;
        let user = quick("id", &["-un"])?;
        for key in ["host", "user"] {
            let mut keygen = Command::new(program("ssh-keygen", "openssh-client")?);
            run_ok(
                keygen
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(folder.path().join(key)),
                MOMENT,
            )?;
        }
        if user == "root" {
            fs::create_dir_all(PRIVILEGE_SEPARATION)?;
        }
        let configuration = folder.path().join("sshd_config");
        fs::write(
            &configuration,
            configuration_for(text(folder.path())?, address),
        )?;
        let mut command = by(program("sshd", "openssh-server")?);
        command.args(["-D", "-e", "-f"]).arg(&configuration);
        let mut process = Process::start("sshd", &mut command)?;
        // Looked up in its log: it may listen where this process cannot reach it.
        process
            .wait_for_line("Server listening", MOMENT)
            .with_context(|| process.log_end())?;
        Ok(Self {
            process,
            folder,
            user,
            address,
        })
    }

    /// A client, `ssh` or `scp`, that will log in at `address` and ask nobody anything. The user's
    /// name at that host is [`Self::destination`].
    ///
    /// # Errors
    /// When it is not installed.
    pub fn client(&self, name: &str, address: SocketAddr) -> Result<Command> {
        self.client_by(name, address, Command::new)
    }

    /// The same client, started by a command that knows where.
    ///
    /// # Errors
    /// As [`Self::client`].
    pub fn client_by(
        &self,
        name: &str,
        address: SocketAddr,
        by: impl FnOnce(PathBuf) -> Command,
    ) -> Result<Command> {
        let mut command = by(program(name, "openssh-client")?);
        let known = format!(
            "UserKnownHostsFile={}",
            text(&self.folder.path().join("known"))?
        );
        // Nothing of the user's own configuration takes part.
        command.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            &known,
        ]);
        command
            .arg("-o")
            .arg(format!("Port={}", address.port()))
            .arg("-i")
            .arg(self.folder.path().join("user"));
        Ok(command)
    }

    /// `user@host`.
    #[must_use]
    pub fn destination(&self, address: SocketAddr) -> String {
        format!("{}@{}", self.user, address.ip())
    }

    /// The server's process and the folder that it needs.
    #[must_use]
    pub fn into_parts(self) -> (Process, TempDir) {
        (self.process, self.folder)
    }

    /// A folder that the user can write.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn configuration_for(folder: &str, address: SocketAddr) -> String {
    format!(
        "ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
PrintMotd no
Subsystem sftp internal-sftp
"
    )
}
