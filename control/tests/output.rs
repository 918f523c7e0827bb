//! What becomes of a process whose output cannot be written: a long-running one loses its log and
//! nothing else, a command fails or ends quietly.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, PipeWriter, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use underpass_tests::deadline::wait_for;

/// For what takes a moment on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn up_serves_on_while_its_log_cannot_be_written() {
    thread::scope(|scope| {
        scope.spawn(|| serves_and_ends_well("a full disk", full_disk()));
        scope.spawn(|| serves_and_ends_well("a dead reader", dead_reader().into()));
        scope.spawn(|| {
            let (_reader, stopped) = stopped_reader();
            serves_and_ends_well("a reader that stopped", stopped.into());
        });
    });
}

#[test]
fn what_waits_for_a_reader_that_stopped_is_written_when_it_comes_back() {
    let place = place();
    let (mut reader, stopped) = stopped_reader();
    // Descriptors of one pipe share its state: what is non-blocking here is so in the child.
    rustix::io::ioctl_fionbio(&stopped, true).expect("non-blocking");
    let mut control = Running(spawn(&place, "control", stopped.into()));
    assert!(until(|| status(&place).status.success()), "no status");
    // A read that waited would outlast the deadline.
    rustix::io::ioctl_fionbio(&reader, true).expect("non-blocking");
    let mut read = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    let is_written = until(|| {
        match reader.read(&mut chunk) {
            Ok(count) => read.extend_from_slice(&chunk[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        contains(&read, b"control started")
    });
    assert!(is_written, "what waited is written");
    assert_eq!(control.end(), Some(0));
}

#[test]
fn a_command_whose_answer_cannot_be_written_fails_and_one_whose_reader_left_does_not() {
    let place = place();
    let arguments: [&[&str]; 3] = [&["--help"], &["--version"], &["completions", "bash"]];
    for arguments in arguments {
        let run = |stdout: Stdio| -> Output {
            Command::new(env!("CARGO_BIN_EXE_underpass"))
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(Stdio::piped())
                .current_dir(place.path())
                .output()
                .expect("it ran")
        };
        let full = run(full_disk());
        let stderr = String::from_utf8_lossy(&full.stderr).into_owned();
        assert_eq!(full.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(
            stderr.starts_with("error: cannot write to stdout: No space left"),
            "{arguments:?}: {stderr}"
        );
        let left = run(dead_reader().into());
        assert_eq!(left.status.code(), Some(0), "{arguments:?}");
        assert_eq!(left.stderr, b"", "{arguments:?}");
    }
}

fn serves_and_ends_well(what: &str, stderr: Stdio) {
    let place = place();
    let mut up = Running(spawn(&place, "up", stderr));
    let works = || {
        let status = status(&place);
        String::from_utf8_lossy(&status.stdout).starts_with("relay: works by the newest snapshot\n")
    };
    assert!(until(works), "{what}: {:?}", status(&place));
    assert_eq!(up.0.try_wait().expect("a child"), None, "{what}");
    assert_eq!(up.end(), Some(0), "{what}");
}

fn full_disk() -> Stdio {
    OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux")
        .into()
}

fn dead_reader() -> PipeWriter {
    io::pipe().expect("a pipe").1
}

/// A pipe that is full, and that nobody reads.
fn stopped_reader() -> (io::PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().expect("a pipe");
    // Opened again, so that only this descriptor is non-blocking.
    let mut filler: File = OpenOptions::new()
        .write(true)
        .custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("a flag"))
        .open(format!("/proc/self/fd/{}", writer.as_raw_fd()))
        .expect("Linux");
    for size in [4096, 1] {
        let full = loop {
            if let Err(error) = filler.write(&vec![b'\n'; size]) {
                break error.kind();
            }
        };
        assert_eq!(full, ErrorKind::WouldBlock);
    }
    (reader, writer)
}

struct Running(Child);

impl Running {
    /// Asks it to end; the exit code, if there is one.
    fn end(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("sent");
        self.0.wait().expect("ended").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory whose relay has a free port of loopback.
fn place() -> TempDir {
    let place = TempDir::new().expect("a directory");
    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let listen = free.local_addr().expect("an address");
    let text = format!("listen = \"{listen}\"\n[control]\nlisten = \"127.0.0.1:0\"\n");
    fs::write(place.path().join("namespace.toml"), text).expect("written");
    place
}

fn command(place: &TempDir, name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underpass"));
    command
        .args([name, "--dir"])
        .arg(place.path())
        .env_remove("UNDERPASS_LOG")
        .stdin(Stdio::null());
    command
}

fn spawn(place: &TempDir, name: &str, stderr: Stdio) -> Child {
    command(place, name)
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("started")
}

fn status(place: &TempDir) -> Output {
    command(place, "status").output().expect("it ran")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Whether it becomes true within the deadline.
fn until(mut condition: impl FnMut() -> bool) -> bool {
    wait_for("it", DEADLINE, || condition().then_some(())).is_ok()
}
