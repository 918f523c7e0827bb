//! PostgreSQL.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::{find, program, text};
use crate::deadline::MOMENT;
use crate::network::Machine;
use crate::process::{Process, free_tcp_address, quick, run_ok};

/// A running server, and the user and the folder it needs.
#[derive(Debug)]
pub struct Postgres {
    _process: Process,
    _folder: TempDir,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Postgres {
    /// Makes a fresh cluster and starts a server on it.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start() -> Result<Self> {
        Self::start_at(free_tcp_address(), None)
    }

    /// The same on another machine, open to all who reach that.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(machine: &Machine, address: SocketAddr) -> Result<Self> {
        Self::start_at(address, Some(machine))
    }

    fn start_at(address: SocketAddr, machine: Option<&Machine>) -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-postgres-")?;
        let user = User::fit_to_run_a_server()?;
        chown(folder.path(), Some(user.uid), Some(user.gid))?;
        let data = folder.path().join("data");
        let data = text(&data)?;
        let initdb = [
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--no-locale",
            "--pgdata",
            data,
        ];
        run_ok(
            user.command(server_program("initdb")?, &folder)
                .args(initdb),
            Duration::from_secs(120),
        )?;
        if machine.is_some() {
            let mut hba = fs::OpenOptions::new()
                .append(true)
                .open(folder.path().join("data").join("pg_hba.conf"))?;
            hba.write_all(b"host all all all trust\n")?;
        }
        let program = server_program("postgres")?;
        let mut command = match machine {
            None => user.command(program, &folder),
            Some(machine) => user.command_on(machine, program, &folder),
        };
        command.args([
            "-D",
            data,
            "-p",
            &address.port().to_string(),
            "-k",
            "",
            "-h",
            &address.ip().to_string(),
            "-c",
            "fsync=off",
            "-c",
            "max_wal_size=4GB",
        ]);
        let mut process = Process::start("postgres", &mut command)?;
        process.wait_for_line("ready to accept connections", MOMENT)?;
        Ok(Self {
            _process: process,
            _folder: folder,
            address,
        })
    }
}

/// The superuser must not run the server, so then its own user does.
struct User {
    uid: u32,
    gid: u32,
}

impl User {
    fn fit_to_run_a_server() -> Result<Self> {
        let id = |what: &str, user: &[&str]| -> Result<u32> {
            Ok(quick("id", &[&[what], user].concat())?.parse()?)
        };
        if id("-u", &[])? != 0 {
            return Ok(Self {
                uid: id("-u", &[])?,
                gid: id("-g", &[])?,
            });
        }
        Ok(Self {
            uid: id("-u", &["postgres"])?,
            gid: id("-g", &["postgres"])?,
        })
    }

    fn command(&self, program: PathBuf, folder: &TempDir) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder.path()).env("LC_ALL", "C");
        if rustix::process::getuid().is_root() {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    fn command_on(&self, machine: &Machine, program: PathBuf, folder: &TempDir) -> Command {
        let mut command = Command::new("nsenter");
        let mut network = OsString::from("--net=");
        network.push(machine.network());
        command
            .arg(network)
            .arg(format!("--setuid={}", self.uid))
            .arg(format!("--setgid={}", self.gid))
            .arg("--")
            .arg(program)
            .current_dir(folder.path())
            .env("LC_ALL", "C");
        command
    }
}

/// Debian keeps servers' programs of each version in a folder of its own; the newest is taken.
///
/// # Errors
/// When it is not installed.
pub fn server_program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    match find(name, folders.into_iter().rev()) {
        Some(path) => Ok(path),
        None => program(name, "postgresql"),
    }
}

/// Runs statements by psql at `address`, and returns what it printed, bare.
///
/// # Errors
/// When psql says that anything failed.
pub fn psql(address: SocketAddr, statements: &str) -> Result<String> {
    let mut command = client("psql", address)?;
    command.args([
        "--no-psqlrc",
        "--quiet",
        "--tuples-only",
        "--no-align",
        "--set=ON_ERROR_STOP=1",
        "--command",
        statements,
    ]);
    Ok(run_ok(&mut command, Duration::from_secs(120))?
        .trim()
        .to_owned())
}

/// A client program for the database `postgres` at `address`.
///
/// # Errors
/// When it is not installed.
pub fn client(name: &str, address: SocketAddr) -> Result<Command> {
    let mut command = Command::new(server_program(name)?);
    command
        .env("PGHOST", address.ip().to_string())
        .env("PGPORT", address.port().to_string())
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres");
    command
        .env("PGCONNECT_TIMEOUT", "20")
        .env("PGSSLMODE", "disable");
    Ok(command)
}

/// A connection that speaks just enough of the protocol (PostgreSQL manual, "Frontend/Backend
/// Protocol") to listen: psql shows what it was notified of only when it is given the next command.
#[derive(Debug)]
pub struct Listener {
    stream: TcpStream,
}

impl Listener {
    /// Logs in and listens on a channel.
    ///
    /// # Errors
    /// When the server says no.
    pub fn listen(address: SocketAddr, channel: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(MOMENT))?;
        let mut listener = Self { stream };
        const VERSION: u32 = 3 << 16;
        listener.say(
            None,
            &[
                VERSION.to_be_bytes().as_slice(),
                b"user\0postgres\0database\0postgres\0\0",
            ]
            .concat(),
        )?;
        listener.wait_for(b'Z')?;
        listener.say(Some(b'Q'), format!("LISTEN {channel}\0").as_bytes())?;
        listener.wait_for(b'Z')?;
        Ok(listener)
    }

    /// Waits for the next notification. Returns its channel and payload.
    ///
    /// # Errors
    /// When it does not come.
    pub fn notification(&mut self) -> Result<(String, String)> {
        // After the process id, two strings.
        let body = self.wait_for(b'A')?;
        let mut strings = body
            .get(4..)
            .context("a notification is longer")?
            .split(|&byte| byte == 0);
        let mut string =
            || String::from_utf8_lossy(strings.next().unwrap_or_default()).into_owned();
        Ok((string(), string()))
    }

    fn say(&mut self, kind: Option<u8>, body: &[u8]) -> Result<()> {
        let len = u32::try_from(body.len() + 4)?.to_be_bytes();
        let message = [kind.as_slice(), len.as_slice(), body].concat();
        Ok(self.stream.write_all(&message)?)
    }

    /// Reads messages until one is of this kind.
    fn wait_for(&mut self, wanted: u8) -> Result<Vec<u8>> {
        const MESSAGE_MAX: u32 = 1 << 20;
        loop {
            let mut head = [0; 5];
            self.stream
                .read_exact(&mut head)
                .with_context(|| format!("waiting for a message {:?}", char::from(wanted)))?;
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            ensure!((4..MESSAGE_MAX).contains(&len), "a message of {len} bytes");
            let mut body = vec![0; len as usize - 4];
            self.stream.read_exact(&mut body)?;
            match head[0] {
                kind if kind == wanted => return Ok(body),
                b'E' => bail!("the server says {:?}", String::from_utf8_lossy(&body)),
                _ => {}
            }
        }
    }
}
