//! How often a byte is copied in user space on its way: once where it goes into a datagram, to be
//! encrypted there, and nowhere else.
//!
//! Counted from outside: a library that stands before libc's memcpy and memmove is loaded into the
//! release code of relay and agent.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use underpass_loadtest::pattern::Pattern;
use underpass_tests::conversation::Conversation;
use underpass_tests::installation::{Installation, Setup};
use underpass_tests::process::{Process, Signal, run_ok};
use underpass_tests::{on_every_backend, turn};

/// Bytes that travel, one way.
const BULK: u64 = 256 << 20;

const PATIENCE: Duration = Duration::from_secs(60);

/// Copies of a byte in the process that sends it through QUIC: into the datagram. Some bytes more,
/// for small chunks are copied out of large buffers.
const SENDER_MOST: f64 = 1.05;

/// Copies of a byte in the process that receives it: none but of small chunks.
const RECEIVER_MOST: f64 = 0.05;

on_every_backend! {
    fn a_byte_is_copied_once_on_its_way(io) {
        let _turn = turn::alone();
        let folder = TempDir::new().unwrap();
        let setup = Setup {
            environment: vec![
                ("LD_PRELOAD", build_counter(folder.path()).into()),
                ("COPIES_FOLDER", folder.path().into()),
            ],
            probe: false,
            ..Setup::new(io)
        };
        let (relay, agent) = carry(setup);
        let copies = |process| {
            let text = fs::read_to_string(folder.path().join(format!("{process}"))).unwrap();
            text.trim().parse::<f64>().unwrap() / BULK as f64
        };
        let (sender, receiver) = (copies(relay), copies(agent));
        underpass_loadtest::note!("copies of a byte: relay {sender:.3}, agent {receiver:.3}");
        assert!(sender >= 1.0, "the counter counts: {sender}");
        assert!(sender <= SENDER_MOST, "the relay, which sends: {sender}");
        assert!(receiver <= RECEIVER_MOST, "the agent, which receives: {receiver}");
    }
}

/// Sends the bulk from an application to an endpoint, ends relay and agent, and returns their
/// process ids.
fn carry(setup: Setup) -> (u32, u32) {
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    let installation = Installation::start(setup, &[("copies-counted", &address)]).unwrap();
    let agent = installation.start_agent(&["copies-counted"], &[]).unwrap();
    send_bulk(installation.binding("copies-counted").unwrap(), &endpoint);
    let agent = end(agent.process().take().unwrap());
    let relay = end(installation.relay().take().unwrap());
    (relay, agent)
}

fn send_bulk(binding: SocketAddr, endpoint: &TcpListener) {
    let until = Instant::now() + PATIENCE;
    let pattern = Pattern::new(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut application = Conversation::connect(binding, "application", until).unwrap();
            application.send(&pattern, 0..BULK).unwrap();
            application.finish().unwrap();
            application.receive_end().unwrap();
        });
        let (stream, _) = endpoint.accept().unwrap();
        let mut endpoint = Conversation::new(stream, "endpoint", until).unwrap();
        endpoint.receive(&pattern, 0..BULK).unwrap();
        endpoint.receive_end().unwrap();
        endpoint.finish().unwrap();
    });
}

fn end(mut process: Process) -> u32 {
    let id = process.id();
    process.signal(Signal::TERM).unwrap();
    assert!(process.wait(PATIENCE).unwrap().success());
    id
}

fn build_counter(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("preload/copies.c");
    let library = folder.join("copies.so");
    let mut compile = Command::new("cc");
    compile.args(["-O2", "-fno-builtin", "-shared", "-fPIC", "-o"]);
    run_ok(compile.arg(&library).arg(source), PATIENCE).unwrap();
    library
}
