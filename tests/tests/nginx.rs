//! nginx by curl and wrk, through relay and agent.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use underpass_tests::installation::Setup;
use underpass_tests::on_every_backend;
use underpass_tests::process::{run_ok, shell};
use underpass_tests::servers::nginx::{Nginx, SMALL};
use underpass_tests::servers::program;
use underpass_tests::tunnel::Tunnel;
use underpass_tests::turn;

/// Length of the big file, bytes.
const BIG: u64 = 1 << 30;

on_every_backend! {
    fn a_file_of_1_gib_arrives_with_the_same_hash(io) {
        let _turn = turn::alone();
        let server = Nginx::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        download(&server, tunnel.address);
    }

    fn wrk_with_64_kept_connections_sees_no_error(io) {
        let _turn = turn::alone();
        let server = Nginx::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        many_requests(tunnel.address);
    }
}

fn download(server: &Nginx, through: SocketAddr) {
    program("curl", "curl").unwrap();
    let file = server.make_big(BIG).unwrap();
    let within = Duration::from_secs(180);
    let original = shell("sha256sum <\"$1\"", &[&file], within).unwrap();
    let script = "curl --silent --show-error --fail --max-time 150 \"$1\" | sha256sum";
    let arrived = shell(script, &[format!("http://{through}/big")], within).unwrap();
    assert_eq!(arrived, original);
}

fn many_requests(through: SocketAddr) {
    let page = run_ok(
        Command::new("curl").args([
            "--silent",
            "--fail",
            "--max-time",
            "20",
            &format!("http://{through}/small"),
        ]),
        Duration::from_secs(30),
    )
    .unwrap();
    assert_eq!(page, SMALL);
    let mut wrk = Command::new(program("wrk", "wrk").unwrap());
    let told = run_ok(
        wrk.args([
            "--threads",
            "2",
            "--connections",
            "64",
            "--duration",
            "10s",
            &format!("http://{through}/small"),
        ]),
        Duration::from_secs(60),
    )
    .unwrap();
    // wrk speaks of errors only when there were some.
    assert!(
        !told.contains("Socket errors") && !told.contains("Non-2xx"),
        "{told}"
    );
    let requests = told
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_suffix(" read")?
                .split_once(" requests in ")
        })
        .unwrap_or_else(|| panic!("{told}"))
        .0;
    assert!(requests.parse::<u64>().unwrap() > 1000, "{told}");
}
