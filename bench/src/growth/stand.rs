//! The product with as many hybrid connections as wanted: files written at once, control, relay and
//! agent as processes of their own.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use underpass_proto::{ConnectionString, Endpoint, HycoName, Key};
use underpass_tests::deadline::{LOOK_EACH, MOMENT, pause};
use underpass_tests::process::{Process, free_tcp_address, free_udp_port, run_ok};

use super::Settings;

/// Longest wait for anything of a stand: 10,000 definitions on a slow disk.
const LONG: Duration = Duration::from_secs(120);

/// Looks at a log that may be long are this far apart.
const LOOK_AT_LONG: Duration = Duration::from_millis(25);

/// Bindings of one last octet.
const BINDINGS_OF_OCTET: usize = 250;

/// A directory, and what runs on it. Dropped, all ends.
#[derive(Debug)]
pub(super) struct Stand {
    folder: TempDir,
    settings: Settings,
    port: u16,
    definitions: usize,
    /// The string of the first definition: others differ in name, key and target.
    template: ConnectionString,
    control: Option<Process>,
    relay: Option<Process>,
    agent: Option<Process>,
}

impl Stand {
    /// Writes the files of this many hybrid connections. `endpoint` says where each of them leads.
    pub(super) fn new(
        settings: &Settings,
        definitions: usize,
        endpoint: impl Fn(usize) -> SocketAddr,
    ) -> Result<Stand> {
        let folder = TempDir::with_prefix("underpass-growth-")?;
        let dir = folder.path().join("dir");
        for part in ["", "connections", "keys"] {
            fs::create_dir(dir.join(part))?;
        }
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp_port()));
        fs::write(
            dir.join("namespace.toml"),
            format!(
                "name = \"growth\"\nlisten = \"{listen}\"\npublic_address = \"{listen}\"\n[control]\nlisten = \"127.0.0.1:0\"\n"
            ),
        )?;
        let port = free_tcp_address().port();
        let write = |nth: usize| {
            write_definition(&dir, nth, binding(nth, port), endpoint(nth))?;
            let keys = dir.join("keys").join(format!("{}.toml", name(nth)));
            write_private(&keys, &keys_of(nth))
        };
        write(0)?;
        let mut string = clean(Command::new(&settings.underpass));
        string.args(["connection", "string", &name(0), "--role", "on-premises"]);
        let string = run_ok(string.arg("--dir").arg(&dir), MOMENT)?;
        (1..definitions).try_for_each(write)?;
        Ok(Stand {
            template: string.trim().parse()?,
            settings: settings.clone(),
            folder,
            port,
            definitions,
            control: None,
            relay: None,
            agent: None,
        })
    }

    /// Starts control and relay, and waits until all bindings are open.
    pub(super) fn start(&mut self) -> Result<()> {
        let mut control = clean(Command::new(&self.settings.underpass));
        control.arg("control").arg("--dir").arg(self.dir());
        self.control = Some(Process::start("control", &mut control)?);
        self.start_relay()
    }

    /// Starts the relay, in the place of the one that runs.
    pub(super) fn start_relay(&mut self) -> Result<()> {
        self.relay = None;
        let mut relay = self.data_plane(&["relay"]);
        relay.arg("--dir").arg(self.dir());
        self.relay = Some(Process::start("relay", &mut relay)?);
        self.wait_for_lines(" binding open ", self.definitions)
    }

    /// Starts an agent for some hybrid connections, and waits until it has registered for them.
    pub(super) fn start_agent(&mut self, served: &[usize]) -> Result<()> {
        let mut config = String::new();
        for &nth in served {
            let file = format!("{}.connection", name(nth));
            let path = self.folder.path().join(&file);
            write_private(&path, &self.string(nth)?.emit())?;
            config += &format!("[[connect]]\nstring_file = \"{file}\"\n");
        }
        let path = self.folder.path().join("agent.toml");
        fs::write(&path, config)?;
        let mut agent = self.data_plane(&["agent", "run"]);
        agent.arg("--config").arg(path);
        self.agent = Some(Process::start("agent", &mut agent)?);
        self.wait_for_registered(served.len() * self.settings.workers)
    }

    /// Starts a process that hosts `count` agents, spread over all hybrid connections, and waits
    /// until all have registered.
    pub(super) fn start_agents(&mut self, count: usize) -> Result<()> {
        let mut strings = String::new();
        for nth in 0..self.definitions {
            strings += &self.string(nth)?.emit();
            strings.push('\n');
        }
        let file = self.folder.path().join("agents.connections");
        write_private(&file, &strings)?;
        let mut host = clean(Command::new(&self.settings.bench));
        host.arg("agents").arg("--strings").arg(file);
        host.args(["--count", &count.to_string()]);
        host.arg(format!("--mtu-max={}", self.settings.mtu_max));
        // Huge pages would give each of thousands of threads megabytes that it has no use for.
        host.env("MIMALLOC_ALLOW_THP", "0");
        self.agent = Some(Process::start("agents", &mut host)?);
        self.wait_for_registered(count)
    }

    /// Waits until the relay that runs now has registered so many listeners.
    pub(super) fn wait_for_registered(&mut self, listeners: usize) -> Result<()> {
        self.wait_for_lines(" registered ", listeners)
    }

    /// Waits until the relay's log has so many lines with `text`.
    fn wait_for_lines(&mut self, text: &str, wanted: usize) -> Result<()> {
        let end = Instant::now() + LONG;
        loop {
            let relay = self.relay.as_mut().context("no relay runs")?;
            let log = relay.stderr();
            let found = log.lines().filter(|line| line.contains(text)).count();
            if found >= wanted {
                return Ok(());
            }
            let ended = [&mut self.control, &mut self.relay, &mut self.agent]
                .into_iter()
                .flatten()
                .find_map(Process::ended);
            ensure!(
                ended.is_none() && Instant::now() < end,
                "the relay's log has {found} of {wanted} lines with {text:?}\n{}",
                self.logs()
            );
            pause(if wanted > 100 {
                LOOK_AT_LONG
            } else {
                LOOK_EACH
            });
        }
    }

    /// Process ids of relay and agent.
    pub(super) fn data_plane_ids(&self) -> Result<[u32; 2]> {
        let id = |process: &Option<Process>| process.as_ref().map(Process::id);
        let ids = id(&self.relay).zip(id(&self.agent));
        ids.map(|(relay, agent)| [relay, agent])
            .context("relay or agent does not run")
    }

    /// Process id of the relay.
    pub(super) fn relay_id(&self) -> Result<u32> {
        self.relay
            .as_ref()
            .map(Process::id)
            .context("no relay runs")
    }

    /// Process id of control.
    pub(super) fn control_id(&self) -> Result<u32> {
        let control = self.control.as_ref().map(Process::id);
        control.context("control does not run")
    }

    /// Where applications connect to a hybrid connection.
    pub(super) fn binding(&self, nth: usize) -> SocketAddr {
        binding(nth, self.port)
    }

    /// Gives a hybrid connection another binding, by its file. Gives that binding.
    pub(super) fn move_binding(&self, nth: usize, endpoint: SocketAddr) -> Result<SocketAddr> {
        let port = free_tcp_address().port();
        let to = binding(nth, port);
        write_definition(&self.dir(), nth, to, endpoint)?;
        Ok(to)
    }

    /// What was measured here, or why not, with the ends of all logs.
    pub(super) fn tell<T>(&self, measured: Result<T>) -> Result<T> {
        measured.with_context(|| self.logs())
    }

    fn logs(&self) -> String {
        [&self.control, &self.relay, &self.agent]
            .into_iter()
            .flatten()
            .map(|process| last_lines(&process.log_end()))
            .collect()
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("dir")
    }

    fn data_plane(&self, part: &[&str]) -> Command {
        let mut command = clean(Command::new(&self.settings.underpass));
        command.args(part);
        command.arg(format!("--io={}", self.settings.io));
        command.arg(format!("--workers={}", self.settings.workers));
        command.arg(format!("--mtu-max={}", self.settings.mtu_max));
        command
    }

    fn string(&self, nth: usize) -> Result<ConnectionString> {
        Ok(ConnectionString {
            name: name(nth).parse::<HycoName>()?,
            key: key(nth, 1),
            target: self.target(nth)?,
            ..self.template.clone()
        })
    }

    /// As the definition's file says it, for the agent's allow-list.
    fn target(&self, nth: usize) -> Result<Option<Endpoint>> {
        let path = definition(&self.dir(), nth);
        let text = fs::read_to_string(path)?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_matches('"').to_owned())
        };
        let target = field("host = ").zip(field("port = "));
        let (host, port) = target.context("a definition without host or port")?;
        Ok(Some(format!("{host}:{port}").parse()?))
    }
}

/// Enough to see what went wrong: a thousand agents say a lot, and thousands of refused flows hide
/// why they were.
fn last_lines(log: &str) -> String {
    const LINES: usize = 12;
    let lines = log.lines().filter(|line| !line.contains("flow refused"));
    let lines: Vec<&str> = lines.collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n") + "\n"
}

fn name(nth: usize) -> String {
    format!("hyco-{nth:05}")
}

/// Each has an address of its own, so that one free port serves all.
fn binding(nth: usize, port: u16) -> SocketAddr {
    let octet = |n: usize| u8::try_from(n % BINDINGS_OF_OCTET).unwrap_or_default();
    let high = octet(nth / BINDINGS_OF_OCTET);
    SocketAddr::from(([127, 77, high, octet(nth) + 1], port))
}

fn definition(dir: &Path, nth: usize) -> PathBuf {
    dir.join("connections").join(format!("{}.toml", name(nth)))
}

/// By a rename, so that no reader sees half of it.
fn write_definition(dir: &Path, nth: usize, bind: SocketAddr, to: SocketAddr) -> Result<()> {
    let path = definition(dir, nth);
    let new = path.with_extension("new");
    let (host, port) = (to.ip(), to.port());
    fs::write(
        &new,
        format!("host = \"{host}\"\nport = {port}\nbind = \"{bind}\"\n"),
    )?;
    Ok(fs::rename(new, path)?)
}

/// Not random: these protect nothing, and live as long as the run.
fn key(nth: usize, which: u8) -> Key {
    let mut bytes = [which; 32];
    for (byte, number) in bytes.iter_mut().zip(nth.to_le_bytes()) {
        *byte = number;
    }
    Key::from_random(bytes)
}

fn keys_of(nth: usize) -> String {
    let pair = |first: u8| {
        let (primary, secondary) = (key(nth, first), key(nth, first + 1));
        format!(
            "primary = \"{}\"\nsecondary = \"{}\"\n",
            primary.expose(),
            secondary.expose()
        )
    };
    format!("[listen]\n{}\n[send]\n{}", pair(1), pair(3))
}

/// Writes a file that its owner alone can read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    Ok(options.open(path)?.write_all(text.as_bytes())?)
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ten_thousand_bindings_names_and_keys_differ() {
        let bindings: HashSet<SocketAddr> = (0..10_000).map(|nth| binding(nth, 9)).collect();
        assert_eq!(bindings.len(), 10_000);
        assert!(bindings.iter().all(|binding| binding.ip().is_loopback()));
        let keys: HashSet<String> = (0..10_000).map(keys_of).collect();
        assert_eq!(keys.len(), 10_000);
        assert!(name(9_999).parse::<HycoName>().is_ok());
    }
}
