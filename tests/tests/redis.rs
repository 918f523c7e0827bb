//! Redis's own clients, pipelining, through relay and agent.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use underpass_tests::installation::Setup;
use underpass_tests::on_every_backend;
use underpass_tests::process::run_ok;
use underpass_tests::servers::redis::{Redis, client};
use underpass_tests::tunnel::Tunnel;
use underpass_tests::turn;

/// Commands in one pipeline.
const COMMANDS: u32 = 200_000;

on_every_backend! {
    fn one_pipeline_of_200_000_commands_is_answered_whole(io) {
        let _turn = turn::shared();
        let server = Redis::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        pipe(server.address, tunnel.address);
    }

    fn redis_benchmark_pipelines_on_50_connections(io) {
        let _turn = turn::alone();
        let server = Redis::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        benchmark(server.address, tunnel.address);
    }
}

/// Every key gets a value of its own, and every seventh is counted, so what the server holds at the
/// end is known.
fn pipe(server: SocketAddr, through: SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("commands");
    let mut commands = String::new();
    for n in 0..COMMANDS {
        match n % 7 {
            0 => commands.push_str("INCRBY sum 7\r\n"),
            _ => writeln!(commands, "SET key:{n} value-of-{n}\r").unwrap(),
        }
    }
    fs::write(&file, commands).unwrap();
    let cli = client("redis-cli", through).unwrap();
    let mut command = Command::new("sh");
    command
        .args([
            "-eu",
            "-c",
            "file=$1; shift; exec \"$@\" --pipe <\"$file\"",
            "sh",
        ])
        .arg(&file)
        .arg(cli.get_program())
        .args(cli.get_args());
    let told = run_ok(&mut command, Duration::from_secs(60)).unwrap();
    assert!(
        told.contains(&format!("errors: 0, replies: {COMMANDS}")),
        "{told}"
    );

    let counted = COMMANDS.div_ceil(7);
    assert_eq!(ask(server, &["GET", "sum"]), (counted * 7).to_string());
    assert_eq!(
        ask(server, &["DBSIZE"]),
        (COMMANDS - counted + 1).to_string()
    );
    for n in [1, 99_999, COMMANDS - 1] {
        assert_eq!(
            ask(through, &["GET", &format!("key:{n}")]),
            format!("value-of-{n}")
        );
    }
}

fn benchmark(server: SocketAddr, through: SocketAddr) {
    const REQUESTS: &str = "300000";
    let mut command = client("redis-benchmark", through).unwrap();
    command.args([
        "-c",
        "50",
        "-P",
        "16",
        "-n",
        REQUESTS,
        "-d",
        "100",
        "-q",
        "--csv",
        "-t",
        "set,get,incr",
    ]);
    let told = run_ok(&mut command, Duration::from_secs(120)).unwrap();
    assert!(
        told.contains("\"SET\"") && told.contains("\"GET\"") && told.contains("\"INCR\""),
        "{told}"
    );
    assert_eq!(ask(server, &["GET", "counter:__rand_int__"]), REQUESTS);
    assert_eq!(ask(through, &["STRLEN", "key:__rand_int__"]), "100");
}

fn ask(address: SocketAddr, words: &[&str]) -> String {
    run_ok(
        client("redis-cli", address).unwrap().args(words),
        Duration::from_secs(20),
    )
    .unwrap()
    .trim()
    .to_owned()
}
