//! How the processes of an installation are started: which program, with what limits and arguments.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, anyhow};

/// A backend of the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring.
    Ring,
    /// Readiness.
    Poll,
    /// What the kernel permits.
    Auto,
}

impl Io {
    /// Those that are not a choice between others.
    pub const ALL: [Self; 2] = [Self::Poll, Self::Ring];

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Poll => "poll",
            Self::Auto => "auto",
        }
    }
}

/// How the data plane's processes are started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Backend of relay and agents.
    pub io: Io,
    /// Workers of relay and agents.
    pub workers: u16,
    /// Grace time of relay and agents, as on the command line.
    pub grace: &'static str,
    /// Variables of relay and agents.
    pub environment: Vec<(&'static str, OsString)>,
    /// Whether the relay may dial endpoints by itself. An endpoint that takes its connections for
    /// flows wants none.
    pub probe: bool,
    /// What agents see as /etc/hosts; `None`: this machine's.
    pub hosts: Option<PathBuf>,
    /// What agents see as /etc/resolv.conf; `None`: this machine's.
    pub resolv_conf: Option<PathBuf>,
    /// The program; `None`: as [`binary`] finds it.
    pub program: Option<PathBuf>,
    /// A command that becomes relay or agent, for instance `prlimit --nofile=256`.
    pub through: Vec<OsString>,
    /// Where agents shall find the relay; `None`: where it listens.
    pub public: Option<SocketAddr>,
    /// Where the relay and its bindings listen.
    pub ip: IpAddr,
    /// How much the processes log.
    pub log: &'static str,
}

impl Setup {
    /// One worker, the usual grace time.
    #[must_use]
    pub fn new(io: Io) -> Self {
        Self {
            io,
            workers: 1,
            grace: "30s",
            environment: Vec::new(),
            probe: true,
            hosts: None,
            resolv_conf: None,
            program: None,
            through: Vec::new(),
            public: None,
            ip: Ipv4Addr::LOCALHOST.into(),
            log: "debug",
        }
    }

    /// The program, for commands and control.
    ///
    /// # Errors
    /// As [`binary`].
    pub fn underpass(&self) -> Result<Command> {
        Ok(self.prepared(Command::new(self.program()?)))
    }

    /// The program, for relay and agents.
    ///
    /// # Errors
    /// As [`binary`].
    pub fn data_plane(&self) -> Result<Command> {
        let Some((through, arguments)) = self.through.split_first() else {
            return self.underpass();
        };
        let mut command = Command::new(through);
        command.args(arguments).arg(self.program()?);
        Ok(self.prepared(command))
    }

    pub(super) fn program(&self) -> Result<PathBuf> {
        self.program.clone().map_or_else(binary, Ok)
    }

    pub(super) fn prepared(&self, command: Command) -> Command {
        let mut command = prepared(command);
        command.env("UNDERPASS_LOG", self.log);
        command
    }

    /// What relay, agents and senders are told on their command lines.
    #[must_use]
    pub fn arguments(&self) -> [String; 3] {
        [
            format!("--io={}", self.io.name()),
            format!("--workers={}", self.workers),
            format!("--grace={}", self.grace),
        ]
    }
}

/// The binary under test: `UNDERPASS_BIN`, or the one built beside this test.
///
/// # Errors
/// When there is none; the message says how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("UNDERPASS_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    // target/PROFILE/deps/TEST-HASH, or target/PROFILE/fidelity.
    let found = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("underpass"))
        .find(|path| path.is_file());
    found.ok_or_else(|| anyhow!("no binary `underpass` beside {}: build it with the same profile (`cargo build -p underpass`), or name one in UNDERPASS_BIN", test.display()))
}

/// The binary, ready to be given arguments. Nothing of the caller's environment tells it where to
/// look.
///
/// # Errors
/// As [`binary`].
pub fn underpass() -> Result<Command> {
    Ok(prepared(Command::new(binary()?)))
}

fn prepared(mut command: Command) -> Command {
    // An identity that another run kept in the user's folder would be found before a new one is
    // made.
    for name in ["UNDERPASS_DIR", "STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"] {
        command.env_remove(name);
    }
    command.env("UNDERPASS_LOG", "debug").env("NO_COLOR", "1");
    command
}
