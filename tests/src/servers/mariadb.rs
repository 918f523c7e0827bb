//! MariaDB.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{program, text};
use crate::deadline::MOMENT;
use crate::process::{Process, free_tcp_address, quick, run_ok};

/// A running server, with the defaults of Debian's package for connections that fail.
#[derive(Debug)]
pub struct MariaDb {
    _process: Process,
    folder: TempDir,
    /// Where it listens: not loopback, whose connections it does not count.
    pub address: SocketAddr,
}

impl MariaDb {
    /// Makes a fresh server that admits `app` from everywhere.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start() -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-mariadb-")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        // Root must not run the server, so then its own user does.
        let user = match quick("id", &["-u"])?.as_str() {
            "0" => {
                let id = |what| -> Result<u32> { Ok(quick("id", &[what, "mysql"])?.parse()?) };
                chown(folder.path(), Some(id("-u")?), Some(id("-g")?))?;
                "mysql".to_owned()
            }
            _ => quick("id", &["-un"])?,
        };
        let data = folder.path().join("data");
        let common = [
            "--no-defaults".to_owned(),
            format!("--user={user}"),
            format!("--datadir={}", text(&data)?),
        ];
        let mut install = Command::new(program("mariadb-install-db", "mariadb-server")?);
        install
            .args(&common)
            .args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
        run_ok(&mut install, Duration::from_secs(60))?;
        let address = SocketAddr::new(own_address()?.ip(), free_tcp_address().port());
        let mut command = Command::new(program("mariadbd", "mariadb-server")?);
        command
            .args(&common)
            .arg(format!("--bind-address={}", address.ip()))
            .arg(format!("--port={}", address.port()))
            .arg(format!("--socket={}", text(&folder.path().join("socket"))?))
            .arg(format!("--pid-file={}", text(&folder.path().join("pid"))?))
            .args(["--performance-schema=ON", "--skip-innodb-doublewrite"]);
        let mut process = Process::start("mariadbd", &mut command)?;
        process.wait_for_line("ready for connections", MOMENT)?;
        let server = Self {
            _process: process,
            folder,
            address,
        };
        server.query("CREATE USER app@'%' IDENTIFIED BY 'secret'")?;
        Ok(server)
    }

    /// Runs statements as root, beside the server, and returns what they printed, bare.
    ///
    /// # Errors
    /// When any failed.
    pub fn query(&self, statements: &str) -> Result<String> {
        let socket: PathBuf = self.folder.path().join("socket");
        let mut client = Command::new(program("mariadb", "mariadb-client")?);
        client
            .args([
                "--no-defaults",
                "--user=root",
                "--batch",
                "--skip-column-names",
            ])
            .arg(format!("--socket={}", text(&socket)?))
            .args(["--execute", statements]);
        Ok(run_ok(&mut client, MOMENT)?.trim().to_owned())
    }
}

/// An address of this machine that others would reach it by. Nothing is sent.
fn own_address() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket
        .connect("198.51.100.1:9")
        .context("this machine has no address but loopback, which MariaDB does not count")?;
    Ok(socket.local_addr()?)
}
