//! The fault table's quick rows against the product's program, and the bad network and the ill
//! endpoints as programs of their own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use underpass_loadtest::faults::{ELSEWHERE, ROWS};

/// Rows that take seconds: the others are for the program itself.
const QUICK: &str = "2,3,7,11";

#[test]
fn the_quick_rows_of_the_fault_table_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (json, svg) = (file("out.json"), file("out.svg"));
    let out = program(&[
        "faults", "--rows", QUICK, "--length", "ci", "--seed", "1", "--json", &json, "--svg", &svg,
    ]);
    let table = String::from_utf8_lossy(&out.stdout);
    let talk = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{table}\n{talk}");
    let told = std::fs::read_to_string(json).expect("is written");
    let told: Value = serde_json::from_str(&told).expect("is JSON");
    assert_eq!((&told["held"], &told["seed"]), (&true.into(), &1.into()));
    let flows = &told["flows"];
    for none in ["corrupt", "truncated", "hung"] {
        assert_eq!(flows[none], 0, "{table}");
    }
    assert!(flows["ok"].as_u64().is_some_and(|ok| ok > 100), "{table}");
    assert!(
        told["faults"].as_u64().is_some_and(|faults| faults > 40),
        "{table}"
    );
    let picture = std::fs::read_to_string(svg).expect("is written");
    assert!(picture.contains("relay listens again") && picture.ends_with("</svg>\n"));
}

#[test]
fn the_table_can_be_listed_and_a_row_that_is_none_is_exit_code_2() {
    let list = program(&["faults", "--list"]);
    let text = String::from_utf8_lossy(&list.stdout);
    let run = ROWS.iter().map(|row| (row.number, row.name));
    let by_tests = ELSEWHERE.iter().map(|row| (row.number, row.name));
    let mut rows: Vec<(u8, &str)> = run.chain(by_tests).collect();
    rows.sort_unstable();
    assert!(rows.len() > 20, "{rows:?}");
    for (nth, (number, name)) in (1..).zip(rows) {
        assert_eq!(
            nth, number,
            "no number is left out, and none is there twice"
        );
        let line = format!("{number:>2}  {name}: ");
        assert!(text.contains(&line), "{line:?} is not in\n{text}");
    }
    for (rows, told) in [("99", "there is no row 99"), ("17", "mutations.rs")] {
        let out = program(&["faults", "--rows", rows]);
        assert_eq!(out.status.code(), Some(2));
        assert!(
            String::from_utf8_lossy(&out.stderr).contains(told),
            "{rows}"
        );
    }
    let out = program(&["faults", "--underpass", "/nowhere/underpass", "--rows", "2"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("hint: "));
}

#[test]
fn a_bad_network_tells_where_it_listens_and_what_it_did() {
    let socket = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let patience = Some(Duration::from_millis(300));
        socket.set_read_timeout(patience).expect("is set");
        socket
    };
    let (server, client) = (socket(), socket());
    let to = server.local_addr().expect("is bound").to_string();
    let arguments = [
        "impair",
        "--to",
        &to,
        "--profile",
        "good-wifi",
        "--loss",
        "100%",
        "--json",
    ];
    let mut network = Running::start(&arguments);
    client.connect(network.listen()).expect("an address");
    for _ in 0..10 {
        client.send(b"lost").expect("is sent");
    }
    assert!(server.recv(&mut [0; 8]).is_err());
    let seen: Value = serde_json::from_str(&network.stop()).expect("is JSON");
    assert_eq!(
        (&seen["up"]["received"], &seen["up"]["lost"]),
        (&10.into(), &10.into())
    );

    let wrong = program(&["impair", "--to", &to, "--loss", "150%"]);
    assert_eq!(wrong.status.code(), Some(2));
    let wrong = program(&["impair", "--to", &to, "--profile", "perfect"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("weak-4g"));
    let all = program(&["impair", "--profiles"]);
    assert!(String::from_utf8_lossy(&all.stdout).contains("geo-600ms"));
}

#[test]
fn an_ill_endpoint_tells_where_it_is_and_what_it_saw() {
    let mut endpoint = Running::start(&["faulty", "resets", "--seed", "3"]);
    let mut stream = std::net::TcpStream::connect(endpoint.listen()).expect("accepts");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect_err("is reset");
    assert_eq!(all.len(), 256 * 1024);
    let seen: Value = serde_json::from_str(&endpoint.stop()).expect("is JSON");
    assert_eq!(seen["accepted"], 1);
}

/// The program beside the test, ended by its id.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut child = command(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let stdout = BufReader::new(child.stdout.take().expect("is piped"));
        Running { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("is text");
        line
    }

    fn listen(&mut self) -> SocketAddr {
        let told: Value = serde_json::from_str(&self.line()).expect("is JSON");
        told["listen"]
            .as_str()
            .expect("is there")
            .parse()
            .expect("is an address")
    }

    fn stop(&mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("runs");
        let line = self.line();
        assert!(self.child.wait().expect("ends").success());
        line
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underpass-loadtest"));
    command.args(arguments);
    command
}

fn program(arguments: &[&str]) -> Output {
    command(arguments).output().expect("runs")
}
