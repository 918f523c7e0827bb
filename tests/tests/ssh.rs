//! OpenSSH through relay and agent.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use underpass_tests::installation::Setup;
use underpass_tests::on_every_backend;
use underpass_tests::process::{run_ok, shell, spawn};
use underpass_tests::servers::nginx::write_pattern;
use underpass_tests::servers::ssh::Sshd;
use underpass_tests::tunnel::Tunnel;
use underpass_tests::{deadline, turn};

/// Length of the file that is copied, bytes.
const FILE: u64 = 200 << 20;

on_every_backend! {
    fn scp_copies_200_mib_there_and_back_with_the_same_hash(io) {
        let _turn = turn::alone();
        let server = Sshd::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        copy(&server, tunnel.address);
    }

    fn an_interactive_session_has_a_terminal_and_answers(io) {
        let _turn = turn::shared();
        let server = Sshd::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        session(&server, tunnel.address);
    }
}

fn copy(server: &Sshd, through: SocketAddr) {
    let [original, there, back] =
        ["original", "there", "back"].map(|name| server.folder().join(name));
    write_pattern(&original, FILE).unwrap();
    let remote = format!("{}:{}", server.destination(through), there.display());
    run_ok(
        server
            .client("scp", through)
            .unwrap()
            .arg("-q")
            .arg(&original)
            .arg(&remote),
        Duration::from_secs(120),
    )
    .unwrap();
    run_ok(
        server
            .client("scp", through)
            .unwrap()
            .arg("-q")
            .arg(&remote)
            .arg(&back),
        Duration::from_secs(120),
    )
    .unwrap();
    let hash = |path| shell("sha256sum <\"$1\"", &[path], deadline::MOMENT).unwrap();
    assert_eq!(fs::metadata(&there).unwrap().len(), FILE);
    assert_eq!(hash(&there), hash(&original));
    assert_eq!(hash(&back), hash(&original));
}

/// Each line is typed only when the answer to the one before it was read, as a person does.
fn session(server: &Sshd, through: SocketAddr) {
    let mut command = server.client("ssh", through).unwrap();
    // Twice: a terminal at the far end although there is none here.
    command.args(["-tt", &server.destination(through), "PS1= PS2= exec sh -i"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut ssh = spawn(&mut command).unwrap();
    let mut keyboard = ssh.stdin.take().unwrap();
    let (told, screen) = mpsc::channel();
    let output = ssh.stdout.take().unwrap();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = told.send(line.trim_end().to_owned());
        }
    });
    let mut ask = |typed: &str, answer: &dyn Fn(&str) -> bool| {
        keyboard.write_all(typed.as_bytes()).unwrap();
        loop {
            let line = screen
                .recv_timeout(deadline::MOMENT)
                .unwrap_or_else(|_| panic!("no answer to {typed:?}"));
            if answer(&line) {
                return;
            }
        }
    };
    // What is typed is echoed, so no answer looks like its question.
    ask("tty\n", &|line| line.starts_with("/dev/pts/"));
    ask("stty rows 31 columns 97; stty size\n", &|line| {
        line == "31 97"
    });
    for n in 1..20 {
        ask(&format!("echo answer-$(({n} * 1000))\n"), &|line| {
            line == format!("answer-{}", n * 1000)
        });
    }
    // One job says so and sleeps: between two of them Ctrl-C would reach the shell alone, and the
    // second would sleep on.
    ask(
        "sh -c 'echo asleep-$((1 + 1)); exec sleep 1000'\n",
        &|line| line == "asleep-2",
    );
    // Ctrl-C is a byte like any other until it reaches the far terminal.
    ask("\u{3}", &|line| line.contains("^C"));
    ask("echo awake-$((6 * 7))\n", &|line| line == "awake-42");
    keyboard.write_all(b"exit 7\n").unwrap();
    let status =
        deadline::wait_for("ssh to end", deadline::MOMENT, || ssh.try_wait().unwrap()).unwrap();
    assert_eq!(status.code(), Some(7));
    reader.join().unwrap();
}
