//! The ways from a client to a server, each opened with processes of its own.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use tempfile::TempDir;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::process::{Process, free_tcp_address, free_udp_port, run_ok};

use super::{Settings, machine};
use crate::stock::relay::Event;

/// UDP payload of the ways that are held at it: what the internet's 1,500 bytes leave for QUIC over IPv6.
pub const MTU_HELD: u16 = 1452;

/// The hybrid connection of each run.
const NAME: &str = "speed-run";

/// A way.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    /// No relay at all.
    Direct,
    /// The baseline, datagrams held at 1,452 bytes.
    #[value(name = "stock-1452")]
    Stock1452,
    /// Underpass on readiness, likewise.
    #[value(name = "poll-1452")]
    Poll1452,
    /// Underpass on io_uring, likewise.
    #[value(name = "ring-1452")]
    Ring1452,
    /// The baseline, datagrams as large as the path carries.
    StockPath,
    /// Underpass on readiness, likewise.
    PollPath,
    /// Underpass on io_uring, likewise.
    RingPath,
}

impl Way {
    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Stock1452 => "stock-1452",
            Way::Poll1452 => "poll-1452",
            Way::Ring1452 => "ring-1452",
            Way::StockPath => "stock-path",
            Way::PollPath => "poll-path",
            Way::RingPath => "ring-path",
        }
    }

    /// The baseline's way with datagrams of the same size.
    #[must_use]
    pub fn baseline(self) -> Option<Way> {
        match self {
            Way::Direct => None,
            Way::Stock1452 | Way::Poll1452 | Way::Ring1452 => Some(Way::Stock1452),
            Way::StockPath | Way::PollPath | Way::RingPath => Some(Way::StockPath),
        }
    }

    fn mtu(self) -> Option<u16> {
        (self.baseline() == Some(Way::Stock1452)).then_some(MTU_HELD)
    }

    /// Whether the product's binary is needed.
    #[must_use]
    pub fn is_underpass(self) -> bool {
        self.io().is_some()
    }

    fn io(self) -> Option<&'static str> {
        match self {
            Way::Poll1452 | Way::PollPath => Some("poll"),
            Way::Ring1452 | Way::RingPath => Some("ring"),
            Way::Direct | Way::Stock1452 | Way::StockPath => None,
        }
    }

    /// Starts what the way needs, and waits until a flow would get through.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn open(self, settings: &Settings, server: SocketAddr) -> Result<Open> {
        let open = match (self, self.io()) {
            (Way::Direct, _) => Ok(Open {
                address: server,
                processes: Vec::new(),
                _rest: None,
            }),
            (_, Some(io)) => underpass(settings, io, self.mtu(), server),
            (_, None) => stock(settings, self.mtu(), server),
        };
        open.with_context(|| format!("cannot open {self}"))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An open way. Dropped, its processes end.
#[derive(Debug)]
pub struct Open {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Relay and agent, whose processor time counts.
    pub processes: Vec<Process>,
    /// What must live as long.
    _rest: Option<(Process, TempDir)>,
}

impl Open {
    /// Processor time of relay and agent up to now, user and kernel.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.processes
            .iter()
            .map(|process| machine::cpu_time(process.id()))
            .sum()
    }

    /// What relay and agent said last.
    #[must_use]
    pub fn logs(&self) -> String {
        self.processes.iter().map(Process::log_end).collect()
    }
}

fn stock(settings: &Settings, mtu: Option<u16>, server: SocketAddr) -> Result<Open> {
    let command = |name: &str| {
        let mut command = Command::new(&settings.bench);
        command.arg(name);
        command.args(["--threads", &settings.workers.to_string()]);
        if let Some(mtu) = mtu {
            command.args(["--mtu", &mtu.to_string()]);
        }
        command
    };
    let mut relay = Process::start("stock relay", &mut command("stock-relay"))?;
    let bound = relay.wait_for_line("\"bound\"", MOMENT)?;
    let Event::Bound { udp, tcp } = serde_json::from_str(&bound)? else {
        anyhow::bail!("the stock relay said {bound}");
    };
    let mut agent = command("stock-agent");
    agent.args(["--connect", &udp.to_string()]);
    agent.args(["--endpoint", &server.to_string()]);
    let agent = Process::start("stock agent", &mut agent)?;
    relay.wait_for_line("\"session\"", MOMENT)?;
    Ok(Open {
        address: tcp,
        processes: vec![relay, agent],
        _rest: None,
    })
}

/// What `underpass up` starts, each by itself so that its processor time is known, and an agent.
fn underpass(settings: &Settings, io: &str, mtu: Option<u16>, server: SocketAddr) -> Result<Open> {
    let folder = TempDir::with_prefix("underpass-speed-")?;
    let dir = folder.path().join("dir");
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let (binding, string) = define(settings, &dir, local(free_udp_port()), server)?;
    let string_file = folder.path().join("agent.connection");
    write_secret(&string_file, &string)?;

    let data_plane = |part: &[&str]| {
        let mut command = command(settings);
        command.args(part).arg(format!("--io={io}"));
        command.arg(format!("--workers={}", settings.workers));
        command.args(mtu.map(|mtu| format!("--mtu-max={mtu}")));
        command
    };
    let mut control = command(settings);
    let control = Process::start("control", control.arg("control").arg("--dir").arg(&dir))?;
    let mut relay = data_plane(&["relay"]);
    let mut relay = Process::start("relay", relay.arg("--dir").arg(&dir))?;
    let mut agent = data_plane(&["agent", "run"]);
    agent.arg("--connection-string-file").arg(&string_file);
    let mut agent = Process::start("agent", &mut agent)?;
    wait_until_ready(settings, &mut relay, &mut agent)
        .with_context(|| [&control, &relay, &agent].map(Process::log_end).concat())?;
    Ok(Open {
        address: binding,
        processes: vec![relay, agent],
        _rest: Some((control, folder)),
    })
}

/// Waits until the agent has a session with each worker, and the binding is open.
fn wait_until_ready(settings: &Settings, relay: &mut Process, agent: &mut Process) -> Result<()> {
    let sessions = settings.workers.min(machine::cores());
    let registered = || {
        let log = agent.stderr();
        let lines = log.lines();
        let registered = lines.filter(|line| line.contains("listener registered"));
        let ended = agent.ended().is_some();
        (ended || registered.count() >= sessions).then_some(ended)
    };
    let ended = wait_for("all sessions of the agent", MOMENT, registered)?;
    ensure!(!ended, "the agent has ended");
    // Looked up, not tried: iperf3 would take a connection for a client.
    relay.wait_for_line("binding open", MOMENT).map(drop)
}

/// Makes the files of an installation with one hybrid connection. Gives the binding and the agent's connection string.
fn define(
    settings: &Settings,
    dir: &Path,
    listen: SocketAddr,
    server: SocketAddr,
) -> Result<(SocketAddr, String)> {
    fs::create_dir(dir)?;
    fs::write(
        dir.join("namespace.toml"),
        format!(
            "name = \"speed\"\nlisten = \"{listen}\"\npublic_address = \"{listen}\"\n[control]\nlisten = \"127.0.0.1:0\"\n"
        ),
    )?;
    let binding = free_tcp_address();
    let mut create = command(settings);
    create
        .args(["connection", "create", NAME, "--dir"])
        .arg(dir);
    create.args(["--host", &server.ip().to_string()]);
    create.args(["--port", &server.port().to_string()]);
    create.args(["--bind", &binding.to_string()]);
    run_ok(&mut create, MOMENT)?;
    let mut string = command(settings);
    string.args([
        "connection",
        "string",
        NAME,
        "--role",
        "on-premises",
        "--dir",
    ]);
    Ok((binding, run_ok(string.arg(dir), MOMENT)?))
}

/// The product, with nothing of the caller's environment that would tell it how to behave.
fn command(settings: &Settings) -> Command {
    let mut command = Command::new(&settings.underpass);
    for variable in std::env::vars_os().map(|(name, _)| name) {
        if variable.to_string_lossy().starts_with("UNDERPASS_") {
            command.env_remove(variable);
        }
    }
    command.env("NO_COLOR", "1");
    command
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
