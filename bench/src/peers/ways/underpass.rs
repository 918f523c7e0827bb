//! The product: what `underpass up` starts, each by itself so that what it takes is known, and an
//! agent.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::process::{Process, free_tcp_address, free_udp_port, run_ok};

use super::{Open, Tunnel, write_private};
use crate::peers::machine;

/// The hybrid connection of each run.
const NAME: &str = "bench-run";

/// Opens it on a backend of the data plane, with datagrams held at `mtu` or as large as the path
/// carries.
pub(super) fn open(tunnel: &Tunnel<'_>, io: &str, mtu: Option<u16>) -> Result<Open> {
    let folder = TempDir::with_prefix("underpass-bench-")?;
    let dir = folder.path().join("dir");
    let listen = SocketAddr::from((tunnel.site.relay_ip(), free_udp_port()));
    let (binding, string) = define(tunnel, &dir, listen)?;
    let string_file = folder.path().join("agent.connection");
    write_private(&string_file, &string)?;

    let binary = &tunnel.settings.underpass;
    let data_plane = |command: Command, part: &[&str]| {
        let mut command = clean(command);
        command.args(part).arg(format!("--io={io}"));
        command.arg(format!("--workers={}", tunnel.workers));
        command.args(mtu.map(|mtu| format!("--mtu-max={mtu}")));
        command
    };
    let mut control = clean(tunnel.site.near(binary));
    let control = Process::start("control", control.arg("control").arg("--dir").arg(&dir))?;
    let mut relay = data_plane(tunnel.site.near(binary), &["relay"]);
    let mut relay = Process::start("relay", relay.arg("--dir").arg(&dir))?;
    let mut agent = data_plane(tunnel.site.far(binary), &["agent", "run"]);
    agent.arg("--connection-string-file").arg(&string_file);
    let mut agent = Process::start("agent", &mut agent)?;
    wait_until_ready(tunnel, &mut relay, &mut agent)
        .with_context(|| [&control, &relay, &agent].map(Process::log_end).concat())?;
    let open = Open::tunnel(binding, relay, agent);
    Ok(open.with_folder(folder).beside(control))
}

/// Waits until the agent has a session with each worker, and the binding is open.
fn wait_until_ready(tunnel: &Tunnel<'_>, relay: &mut Process, agent: &mut Process) -> Result<()> {
    let sessions = tunnel.workers.min(machine::cores());
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

/// Makes the files of an installation with one hybrid connection. Gives the binding and the agent's
/// connection string.
fn define(tunnel: &Tunnel<'_>, dir: &Path, listen: SocketAddr) -> Result<(SocketAddr, String)> {
    fs::create_dir(dir)?;
    fs::write(
        dir.join("namespace.toml"),
        format!(
            "name = \"bench\"\nlisten = \"{listen}\"\npublic_address = \"{listen}\"\n[control]\nlisten = \"127.0.0.1:0\"\n"
        ),
    )?;
    let binding = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_address().port()));
    let connection = |verb: &str| {
        let mut command = clean(Command::new(&tunnel.settings.underpass));
        command.args(["connection", verb, NAME, "--dir"]).arg(dir);
        command
    };
    let mut create = connection("create");
    create.args(["--host", &tunnel.server.ip().to_string()]);
    create.args(["--port", &tunnel.server.port().to_string()]);
    create.args(["--bind", &binding.to_string()]);
    run_ok(&mut create, MOMENT)?;
    let mut string = connection("string");
    string.args(["--role", "on-premises"]);
    Ok((binding, run_ok(&mut string, MOMENT)?))
}

/// Nothing of the caller's environment tells the product how to behave.
fn clean(mut command: Command) -> Command {
    for variable in std::env::vars_os().map(|(name, _)| name) {
        if variable.to_string_lossy().starts_with("UNDERPASS_") {
            command.env_remove(variable);
        }
    }
    command.env("NO_COLOR", "1");
    command
}
