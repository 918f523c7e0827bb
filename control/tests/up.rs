//! `underpass up` and the processes below it: ready, alone on its directory, and ended by signals.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use underpass_tests::deadline::wait_for;

/// For what takes a moment on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long a line is waited for before the signal is sent again.
const AGAIN: Duration = Duration::from_millis(200);

#[test]
fn a_second_one_on_a_directory_is_refused_and_harms_nothing() {
    let place = place();
    let mut first = Running::start(&place, &["up"], "Underpass is ready.");
    for (arguments, error) in [
        (&["up"][..], "error: another `underpass up` runs on DIR\n"),
        (&["relay"], "error: another `underpass relay` runs on DIR\n"),
        (&["control"], "error: another control process runs on DIR\n"),
    ] {
        let output = run(&place, arguments);
        let said = shown(&place, &output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
        assert!(said.starts_with(error), "{arguments:?}: {said}");
        assert!(said.contains("\nhint: one "), "{arguments:?}: {said}");
    }
    let status = run(&place, &["status"]);
    assert!(
        shown(&place, &status.stdout).starts_with("relay: works by the newest snapshot\n"),
        "{status:?}"
    );
    assert_eq!(first.end(Signal::INT), Some(0));
}

#[test]
fn what_a_part_holds_alone_is_told_by_up_before_anything_starts() {
    let place = place();
    let mut control = Running::start(&place, &["control"], "control started");
    let output = run(&place, &["up"]);
    let said = shown(&place, &output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.starts_with("error: another control process runs on DIR\n"),
        "{said}"
    );
    assert_eq!(control.end(Signal::TERM), Some(0));
}

#[test]
fn a_port_in_use_is_named_and_ends_it() {
    let place = place();
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = taken.local_addr().expect("an address");
    write_namespace(&place, &address.to_string());
    let output = run(&place, &["up", "--log", "error"]);
    let said = shown(&place, &output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(&address.to_string()), "{said}");
    assert!(
        said.contains("another is chosen by `listen` in namespace.toml"),
        "{said}"
    );
}

#[test]
fn either_signal_ends_all_of_it_and_nothing_is_left() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = place();
        let mut up = Running::start(&place, &["up"], "Underpass is ready.");
        let children = up.children();
        assert_eq!(children.len(), 2, "control and relay");
        assert_eq!(up.end(signal), Some(0));
        assert!(until(|| children.iter().all(|&child| is_gone(child))));
        assert!(!place.path().join("run/control.sock").exists());
    }
}

#[test]
fn a_killed_one_leaves_no_process_and_the_next_one_starts() {
    let place = place();
    let mut up = Running::start(&place, &["up"], "Underpass is ready.");
    let children = up.children();
    assert_eq!(up.end(Signal::KILL), None);
    assert!(until(|| children.iter().all(|&child| is_gone(child))));
    let mut next = Running::start(&place, &["up"], "Underpass is ready.");
    assert_eq!(next.end(Signal::TERM), Some(0));
}

#[test]
fn sighup_reads_files_again_and_ends_nothing() {
    let place = place();
    let mut up = Running::start(&place, &["up"], "Underpass is ready.");
    let children = up.children();
    let mut awaited = vec![
        "SIGHUP: passed on to control and relay",
        "SIGHUP: files are read again",
        "SIGHUP: no files to reload",
    ];
    // Children that have just been started are not sent it.
    let all_said = until(|| {
        kill_process(Pid::from_child(&up.0), Signal::HUP).expect("sent");
        let line = up.1.recv_timeout(AGAIN).unwrap_or_default();
        awaited.retain(|awaited| !line.contains(awaited));
        awaited.is_empty()
    });
    assert!(all_said, "not said: {awaited:?}");
    assert_eq!(up.children(), children, "the same processes");
    assert_eq!(up.end(Signal::TERM), Some(0));
}

#[test]
fn without_proc_up_says_what_it_lacks() {
    let place = place();
    let program = env!("CARGO_BIN_EXE_underpass");
    let namespaces = ["--user", "--map-root-user", "--mount"];
    let mut permitted = Command::new("unshare");
    let permitted = permitted.args(namespaces).arg("true").output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        eprintln!("not tried: user namespaces are forbidden here, or there is no unshare");
        return;
    }
    let script = format!("mount -t tmpfs none /proc && exec {program} up --dir DIR");
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c"])
        .arg(script.replace("DIR", place.path().to_str().expect("text")))
        .output()
        .expect("util-linux");
    let said = shown(&place, &output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.starts_with("error: /proc is not there, "), "{said}");
    assert!(said.contains("mount -t proc proc /proc"), "{said}");
}

/// A process that has said that it is ready, and the lines that it says then.
struct Running(Child, Receiver<String>);

impl Running {
    fn start(place: &TempDir, arguments: &[&str], ready: &str) -> Self {
        let mut child = command(place, arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("asked for")).lines();
        let (tell, said) = mpsc::channel();
        let running = Self(child, said);
        let is_ready = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains(ready));
        assert!(is_ready, "it ended before it said {ready:?}");
        // What else it says is read, so that it can go on saying it.
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        running
    }

    /// Its children, as the kernel knows them.
    fn children(&self) -> Vec<u32> {
        let id = self.0.id();
        let path = format!("/proc/{id}/task/{id}/children");
        let children = fs::read_to_string(path).expect("Linux");
        children
            .split_whitespace()
            .map(|child| child.parse().expect("a number"))
            .collect()
    }

    /// Sends the signal; the exit code, if there is one.
    fn end(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), signal).expect("sent");
        self.0.wait().expect("ended").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a failed assertion it still runs; its children end with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory whose relay has a free port of loopback.
fn place() -> TempDir {
    let place = TempDir::new().expect("a directory");
    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    write_namespace(&place, &free.local_addr().expect("an address").to_string());
    place
}

fn write_namespace(place: &TempDir, listen: &str) {
    let text = format!("listen = \"{listen}\"\n[control]\nlisten = \"127.0.0.1:0\"\n");
    fs::write(place.path().join("namespace.toml"), text).expect("written");
}

fn command(place: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underpass"));
    command
        .args(arguments)
        .arg("--dir")
        .arg(place.path())
        .env_remove("UNDERPASS_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn run(place: &TempDir, arguments: &[&str]) -> Output {
    command(place, arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .expect("it ran")
}

fn shown(place: &TempDir, text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace(&place.path().display().to_string(), "DIR")
}

/// Gone, or dead and waiting for whoever inherits it to notice.
fn is_gone(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).map_or(true, |stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
    })
}

/// Whether it becomes true within the deadline.
fn until(mut condition: impl FnMut() -> bool) -> bool {
    wait_for("it", DEADLINE, || condition().then_some(())).is_ok()
}
