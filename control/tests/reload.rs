//! SIGHUP at an agent and at a sender: what their files say now takes effect at once.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// For what takes a moment on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

const RELOADED: &str = "SIGHUP: files are read again";

#[test]
fn sighup_makes_a_changed_agent_file_take_effect() {
    let place = Place::new();
    place.write_string("a.connection", "on-premises", |string| string.into());
    place.write(
        "agent.toml",
        "[[connect]]\nstring_file = \"a.connection\"\n",
    );
    let agent = place.start("agent", "agent.toml");
    agent.wait_for("retrying");
    place.write(
        "agent.toml",
        "[[connect]]\nstring_file = \"a.connection\"\nweight = 7\n",
    );
    agent.hangs_up();
    agent.wait_for_all(&[RELOADED, "the configuration changed, and is taken up"]);
}

#[test]
fn a_sender_that_waits_for_its_first_endpoint_reads_its_files_at_sighup() {
    let place = Place::new();
    let without_target = |string: &str| {
        let parts = string.trim_end().split(';');
        let parts: Vec<_> = parts.filter(|part| !part.starts_with("Target=")).collect();
        assert!(parts.len() < string.split(';').count(), "{string}");
        parts.join(";")
    };
    place.write_string("a.connection", "application", without_target);
    place.write(
        "sender.toml",
        "[[connect]]\nstring_file = \"a.connection\"\n",
    );
    let sender = place.start("sender", "sender.toml");
    sender.wait_for("trying on");
    sender.hangs_up();
    sender.wait_for(RELOADED);
    // With a binding it needs no endpoint to run.
    place.write(
        "sender.toml",
        "[[connect]]\nstring_file = \"a.connection\"\nbind = \"127.0.0.1:0\"\n",
    );
    sender.hangs_up();
    sender.wait_for_all(&[RELOADED, "cannot connect to relay; retrying"]);
}

/// A directory whose relay does not run.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().expect("a directory"));
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = free.local_addr().expect("an address");
        place.write(
            "namespace.toml",
            &format!("public_address = \"{address}\"\n"),
        );
        place.output(&[
            "connection",
            "create",
            "payroll-sql",
            "--host",
            "sql01",
            "--port",
            "1433",
        ]);
        place
    }

    /// Replaced whole, as editors do, and its owner's alone.
    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        let new = path.with_extension("new");
        fs::write(&new, text).expect("written");
        fs::set_permissions(&new, Permissions::from_mode(0o600)).expect("private");
        fs::rename(new, path).expect("renamed");
    }

    fn write_string(&self, name: &str, role: &str, change: impl Fn(&str) -> String) {
        let string = self.output(&["connection", "string", "payroll-sql", "--role", role]);
        self.write(name, &change(&string));
    }

    fn output(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_underpass"))
            .args(arguments)
            .arg("--dir")
            .arg(self.0.path())
            .output()
            .expect("it ran");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn start(&self, role: &str, config: &str) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_underpass"))
            .args([role, "run", "--config"])
            .arg(self.0.path().join(config))
            .env_remove("UNDERPASS_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in log.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Running { child, lines }
    }
}

struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn hangs_up(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).expect("sent");
    }

    fn wait_for(&self, part: &str) {
        self.wait_for_all(&[part]);
    }

    /// Lines with these parts, in any order.
    fn wait_for_all(&self, parts: &[&str]) {
        let deadline = Instant::now() + DEADLINE;
        let mut awaited = parts.to_vec();
        let mut seen = Vec::new();
        while !awaited.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no line with {awaited:?} in {seen:#?}");
            };
            assert!(!line.contains("no files to reload"), "{line}");
            awaited.retain(|part| !line.contains(part));
            seen.push(line);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
