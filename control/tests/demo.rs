//! The demo as a user sees it: it works, it checks itself, and whatever ends it leaves nothing
//! behind.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

/// For what takes a moment on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// Held by tests that move so much that they would slow each other down.
static HEAVY: Mutex<()> = Mutex::new(());

#[test]
fn once_moves_a_gibibyte_each_way_survives_a_killed_agent_and_says_so_in_json() {
    let _alone = HEAVY.lock();
    let temporary = TempDir::new().expect("a directory");
    let output = demo(&temporary, &["--once", "--json"])
        .output()
        .expect("the demo ran");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let figures = json_of(&output);
    assert_eq!(figures["ok"], true);
    assert_eq!(figures["bytes_each_way"], 1_u64 << 30);
    assert_eq!(figures["flow_under_agent_kill"], "reset");
    for direction in ["to_application", "to_endpoint"] {
        // 32 requests of 32 MiB, once direct and once through the relay.
        assert_eq!(figures[direction]["sha256_right"], 64, "{figures}");
        for speed in ["relay_gbit_s", "direct_gbit_s"] {
            let speed = figures[direction][speed].as_f64();
            assert!(speed > Some(0.1) && speed < Some(1_000.0), "{figures}");
        }
    }
    let small = &figures["small_request"];
    assert!(small["relay_us"].as_u64() > small["direct_us"].as_u64());
    let recovered = figures["new_flow_after_agent_kill_ms"].as_f64();
    assert!(
        recovered > Some(0.0) && recovered < Some(20_000.0),
        "{figures}"
    );
    assert!(figures["seconds"].as_f64() < Some(45.0), "{figures}");
    assert!(is_empty(temporary.path()));
}

#[test]
fn one_wrong_bit_in_a_gibibyte_is_noticed_in_either_direction() {
    let _alone = HEAVY.lock();
    for (way, error) in [
        (
            "to-application",
            "from the endpoint to the application: through the relay: request 0: the SHA-256 of what came is wrong",
        ),
        (
            "to-endpoint",
            "from the application to the endpoint: through the relay: request 0: the service has another SHA-256",
        ),
    ] {
        let temporary = TempDir::new().expect("a directory");
        let output = demo(&temporary, &["--once", "--json", "--spoil", way])
            .output()
            .expect("the demo ran");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(json_of(&output), json!({ "ok": false, "error": error }));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("error: {error}\n")), "{said}");
        assert!(is_empty(temporary.path()));
    }
}

#[test]
fn ctrl_c_at_any_time_leaves_nothing_and_says_so_in_the_exit_code() {
    // From before anything is there to the middle of the first transfer.
    for processes in [0, 1, 2, 3, 4] {
        let temporary = TempDir::new().expect("a directory");
        let mut demo = demo(&temporary, &["--once"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        assert!(until(|| children(&demo).len() >= processes
            && fs::read_dir(temporary.path())
                .is_ok_and(|mut made| made.next().is_some())));
        kill_process(Pid::from_child(&demo), Signal::INT).expect("sent");
        assert_eq!(demo.wait().expect("ended").code(), Some(130), "{processes}");
        assert!(is_empty(temporary.path()), "{processes}");
    }
}

#[test]
fn ctrl_c_ends_everything_cleanly() {
    let temporary = TempDir::new().expect("a directory");
    let mut running = Running::start(&temporary);
    let children = children(&running.demo);
    assert_eq!(children.len(), 4, "control, relay, agent, service");
    let page = fetch(&running.binding);
    assert!(page.contains("You reached it through the relay."), "{page}");

    kill_process(Pid::from_child(&running.demo), Signal::INT).expect("sent");
    assert!(running.demo.wait().expect("ended").success());
    assert!(until(|| children.iter().all(|child| is_gone(*child))));
    assert!(is_empty(temporary.path()));
}

#[test]
fn a_killed_demo_leaves_no_process_behind() {
    let temporary = TempDir::new().expect("a directory");
    let mut running = Running::start(&temporary);
    let children = children(&running.demo);
    assert_eq!(children.len(), 4, "control, relay, agent, service");
    running.demo.kill().expect("killed");
    running.demo.wait().expect("ended");
    assert!(
        until(|| children.iter().all(|child| is_gone(*child))),
        "{children:?}"
    );
}

/// A demo that was started to be looked at, and has said where.
struct Running {
    demo: Child,
    binding: String,
    _output: BufReader<ChildStdout>,
}

impl Running {
    fn start(temporary: &TempDir) -> Self {
        let mut demo = demo(temporary, &[])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let mut output = BufReader::new(demo.stdout.take().expect("asked for"));
        let binding = loop {
            let mut line = String::new();
            assert!(
                output.read_line(&mut line).expect("text") > 0,
                "the demo ended"
            );
            if let Some(rest) = line.trim().strip_prefix("open") {
                let address = rest
                    .trim()
                    .strip_prefix("http://")
                    .and_then(|rest| rest.split('/').next());
                break address.expect("an address").to_owned();
            }
        };
        Self {
            demo,
            binding,
            _output: output,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a failed assertion it still runs; its children end with it.
        let _ = self.demo.kill();
        let _ = self.demo.wait();
    }
}

/// Its children, as the kernel knows them.
fn children(demo: &Child) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| {
        status_field(*id, "PPid:").is_some_and(|parent| parent == demo.id().to_string())
    })
    .collect()
}

fn json_of(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn demo(temporary: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underpass"));
    command
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null());
    command
}

fn fetch(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    write!(stream, "GET / HTTP/1.0\r\nhost: {address}\r\n\r\n").expect("sent");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page");
    page
}

fn status_field(process: u32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1).map(str::to_owned)
}

/// Gone, or dead and not yet reaped.
fn is_gone(process: u32) -> bool {
    status_field(process, "State:").is_none_or(|state| state == "Z" || state == "X")
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("a directory").next().is_none()
}

/// Whether it becomes true within the deadline.
fn until(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::yield_now();
    }
    true
}
