//! The program as people use it: what it prints, writes and answers with, in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use underpass_loadtest::scenario::{Outcome, Scenario};

const SHORT: &str = r#"
    duration = "300ms"

    [[group]]
    name = "ping"
    rate = 100
    request = 1
    response = 1

    [[group]]
    name = "bulk"
    flows = 2
    request = "1MiB"
    response = { from = 0, to = "64k" }
"#;

#[test]
fn a_run_prints_a_table_and_writes_an_outcome_that_can_be_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("short.toml");
    std::fs::write(&file, SHORT).expect("is written");
    let json = folder.path().join("out.json");
    let out = program(&[
        "run",
        path(&file),
        "--endpoint",
        "--seed",
        "7",
        "--json",
        path(&json),
    ]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let table = text(&out.stdout);
    for word in [
        "short 127.0.0.1:",
        "seed 7",
        "ping",
        "since due",
        "bulk",
        "service",
    ] {
        assert!(table.contains(word), "{word:?} is not in\n{table}");
    }
    let outcome = read(&json);
    assert_eq!((outcome.scenario.as_str(), outcome.seed), ("short", 7));
    let ping = outcome.group("ping").expect("is there");
    assert_eq!((ping.counts.right, ping.latency.count()), (30, 30));
    assert!(outcome.group("bulk").expect("is there").bytes_up > 1 << 20);
    assert!(
        std::fs::read_to_string(&json)
            .expect("is there")
            .contains("\"gbit_per_second_up\"")
    );
}

#[test]
fn pages_show_one_run_or_several_beside_each_other_and_need_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| {
        folder
            .path()
            .join(name)
            .to_str()
            .expect("is text")
            .to_owned()
    };
    std::fs::write(file("short.toml"), SHORT).expect("is written");
    for name in ["before", "after"] {
        let (json, html) = (file(&format!("{name}.json")), file(&format!("{name}.html")));
        let out = program(&[
            "run",
            &file("short.toml"),
            "--endpoint",
            "--json",
            &json,
            "--html",
            &html,
        ]);
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    }
    let (before, after, both) = (file("before.json"), file("after.json"), file("both.html"));
    let out = program(&["report", &before, &after, "--html", &both]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let one = std::fs::read_to_string(file("before.html")).expect("is written");
    let both = std::fs::read_to_string(both).expect("is written");
    for page in [&one, &both] {
        // Throughput, calls, latency and percentiles of both groups.
        let count = |part| page.matches(part).count();
        assert_eq!((count("<svg "), count("</svg>")), (8, 8));
        assert!(count("<polyline ") >= 8, "{} lines", count("<polyline "));
        for word in ["http:", "https:", "<script", "src=", "NaN", "inf"] {
            assert!(!page.contains(word), "{word}");
        }
    }
    assert!(both.contains("before") && both.contains("after") && both.contains("× "));

    let foreign = file("foreign.json");
    std::fs::write(&foreign, "{}").expect("is written");
    let out = program(&["report", &before, &foreign, "--html", &file("none.html")]);
    assert_eq!(out.status.code(), Some(2));
    let error = text(&out.stderr);
    assert!(
        error.contains("foreign.json: no result of a run") && error.contains("hint: "),
        "{error}"
    );
}

#[test]
fn a_call_that_fails_is_exit_code_1_and_a_mistake_is_exit_code_2_with_a_hint() {
    let failing = program(&[
        "run",
        "ping-pong",
        "--target",
        "127.0.0.1:1",
        "--duration",
        "50ms",
    ]);
    assert_eq!(failing.status.code(), Some(1), "{}", text(&failing.stderr));
    assert!(text(&failing.stdout).contains("refused"));

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[[group]]\nflow = 3\n").expect("is written");
    let cases: [(&[&str], &str); 5] = [
        (
            &["run", path(&file), "--endpoint"],
            "bad.toml:2: unknown field `flow`",
        ),
        (&["run", "no-such", "--endpoint"], "no-such: "),
        (&["run", "mix"], "nowhere to connect to"),
        (&["scenarios", "show", "no-such"], "no scenario no-such"),
        (
            &["run", "mix", "--endpoint", "--duration", "0"],
            "duration: ",
        ),
    ];
    for (arguments, told) in cases {
        let out = program(arguments);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(
            error.starts_with("error: ") && error.contains(told),
            "{arguments:?}: {error}"
        );
        assert!(error.contains("\nhint: "), "{arguments:?}: {error}");
    }
}

#[test]
fn an_interrupt_ends_a_run_with_the_report_of_what_was_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("out.json");
    for processes in ["1", "2"] {
        let (endpoint, mut lines) = endpoint(&["endpoint"]);
        let target = listening(&mut lines);
        let run = ["run", "mix", "--target", &target, "--processes", processes];
        let run = start(&[&run[..], &["--json", path(&json)]].concat());
        connected(&target);
        interrupt(&run);
        let out = run.wait_with_output().expect("ends");
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{processes}: {error}");
        assert!(text(&out.stdout).contains("stopped early"), "{processes}");
        let outcome = read(&json);
        assert!(outcome.stopped_early && outcome.seconds < 14.0);
        assert!(
            outcome
                .groups
                .iter()
                .any(|group| group.counts.connections > 0)
        );
        interrupt(&endpoint);
        let ended = endpoint.wait_with_output().expect("ends");
        assert_eq!(ended.status.code(), Some(0));
    }
}

#[test]
fn several_processes_share_the_flows_and_their_outcome_is_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, json) = (
        folder.path().join("split.toml"),
        folder.path().join("out.json"),
    );
    let scenario = "duration = '400ms'\n[[group]]\nflows = 7\nrate = 350\n[[group]]\nflows = 5\nconcurrency = 4\nchurn = 2";
    std::fs::write(&file, scenario).expect("is written");
    let (endpoint, mut lines) = endpoint(&["endpoint"]);
    let target = listening(&mut lines);
    let run = ["run", path(&file), "--target", &target, "--processes", "3"];
    let out = program(&[&run[..], &["--json", path(&json)]].concat());
    assert_eq!(
        out.status.code(),
        Some(0),
        "{}{}",
        text(&out.stdout),
        text(&out.stderr)
    );
    let outcome = read(&json);
    let [open, closed] = outcome.groups.as_slice() else {
        panic!("two groups");
    };
    assert_eq!((open.flows, open.counts.connections), (7, 7));
    assert_eq!(
        (open.counts.right, open.latency.count()),
        (140, 140),
        "350 a second"
    );
    assert!(
        closed.counts.right > 10 && closed.counts.bad() == 0,
        "{:?}",
        closed.counts
    );
    interrupt(&endpoint);
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("is read");
    let seen: serde_json::Value = serde_json::from_str(&rest).expect("is JSON");
    assert_eq!(
        seen["right"],
        open.counts.connections + closed.counts.connections
    );
    endpoint.wait_with_output().expect("ends");

    let out = program(&["run", path(&file), "--target", &target, "--processes", "5"]);
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{error}");
    assert!(
        error.contains("cannot be split over 5") && error.contains("hint: "),
        "{error}"
    );
}

#[test]
fn flows_that_the_file_limit_does_not_permit_are_refused_with_the_next_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("many.toml");
    std::fs::write(&file, "[[group]]\nflows = 300").expect("is written");
    let program = env!("CARGO_BIN_EXE_underpass-loadtest");
    for (processes, told) in [("1", "300 sockets"), ("2", "150 sockets")] {
        let out = Command::new("sh")
            .args(["-c", "ulimit -n 128; exec \"$0\" \"$@\"", program])
            .args([
                "run",
                path(&file),
                "--target",
                "127.0.0.1:1",
                "--processes",
                processes,
            ])
            .output()
            .expect("runs");
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{error}");
        assert!(
            error.contains(told) && error.contains("hint: split the flows with --processes"),
            "{error}"
        );
    }
}

#[test]
fn servers_of_others_are_loaded_as_well() {
    for (protocol, serves) in [("echo", "plain-echo"), ("discard", "plain-discard")] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("foreign.toml");
        let scenario = format!(
            "duration = '200ms'\n[[group]]\nprotocol = '{protocol}'\nrequest = {{ from = 1, to = '200k' }}\nchurn = 3\n"
        );
        std::fs::write(&file, scenario).expect("is written");
        let json = folder.path().join("out.json");
        let (endpoint, mut lines) = endpoint(&["endpoint", serves]);
        let target = listening(&mut lines);
        let out = program(&[
            "run",
            path(&file),
            "--target",
            &target,
            "--json",
            path(&json),
        ]);
        assert_eq!(
            out.status.code(),
            Some(0),
            "{protocol}: {}{}",
            text(&out.stdout),
            text(&out.stderr)
        );
        let group = &read(&json).groups[0];
        assert!(
            group.counts.right > 3 && group.bytes_up > 0,
            "{protocol}: {:?}",
            group.counts
        );
        assert_eq!(group.bytes_down > 0, protocol == "echo");
        interrupt(&endpoint);
        let mut rest = String::new();
        lines.read_to_string(&mut rest).expect("is read");
        let seen: serde_json::Value = serde_json::from_str(&rest).expect("is JSON");
        assert_eq!(seen["right"], group.counts.connections, "{protocol}");
        endpoint.wait_with_output().expect("ends");
    }
}

#[test]
fn every_built_in_scenario_is_listed_and_shown_as_a_file_that_can_be_read() {
    let listed = text(&program(&["scenarios"]).stdout);
    assert!(listed.lines().count() >= 8, "{listed}");
    let folder = tempfile::tempdir().expect("a folder");
    for name in listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        let shown = text(&program(&["scenarios", "show", name]).stdout);
        let file = folder.path().join(format!("{name}.toml"));
        std::fs::write(&file, shown).expect("is written");
        let out = program(&["run", path(&file)]);
        assert!(
            text(&out.stderr).contains("nowhere to connect to"),
            "{name}: {}",
            text(&out.stderr)
        );
    }
}

#[test]
fn the_worked_example_of_the_manual_is_a_scenario() {
    let manual = include_str!("../../docs/loadtest.md");
    let (_, rest) = manual.split_once("```toml\n").expect("has a file");
    let (file, _) = rest.split_once("```").expect("ends");
    let scenario = Scenario::parse(file, "shop.toml", "shop").expect("is right");
    assert_eq!(scenario.groups.len(), 2);
}

fn program(arguments: &[&str]) -> Output {
    start(arguments).wait_with_output().expect("ends")
}

fn start(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_underpass-loadtest"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

fn endpoint(arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut endpoint = start(arguments);
    let stdout = endpoint.stdout.take().expect("is piped");
    (endpoint, BufReader::new(stdout))
}

/// The address in an endpoint's first line.
fn listening(lines: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).expect("is read");
    let value: serde_json::Value = serde_json::from_str(&line).expect("is JSON");
    value["listen"].as_str().expect("an address").into()
}

/// Waits until somebody is connected to this address.
fn connected(address: &str) {
    let port: u16 = address
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a port");
    let wanted = format!(":{port:04X} ");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        // Remote address of an established connection.
        let is_it = |line: &str| {
            let mut fields = line.split_whitespace().skip(2);
            let remote = fields
                .next()
                .is_some_and(|remote| remote.ends_with(wanted.trim_end()));
            remote && fields.next() == Some("01")
        };
        if sockets.lines().any(is_it) {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "nobody connects to {address}"
        );
        std::thread::yield_now();
    }
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().try_into().expect("a pid")).expect("not zero");
    kill_process(pid, Signal::INT).expect("is there");
}

fn read(json: &Path) -> Outcome {
    let written = std::fs::read_to_string(json).expect("is written");
    serde_json::from_str(&written).expect("is an outcome")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("is text")
}
