//! PostgreSQL's own clients through relay and agent.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::installation::Setup;
use underpass_tests::on_every_backend;
use underpass_tests::process::{run_ok, shell};
use underpass_tests::servers::postgres::{Listener, Postgres, client, psql};
use underpass_tests::tunnel::Tunnel;
use underpass_tests::{deadline, turn};

/// Rows that are copied.
const ROWS: u32 = 1_000_000;

/// How long nobody speaks on the connection that waits for a notification.
const QUIET: Duration = Duration::from_secs(5);

on_every_backend! {
    fn a_million_rows_copied_out_and_in_are_the_same(io) {
        let _turn = turn::alone();
        let server = Postgres::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        copy_out_and_in(server.address, tunnel.address);
    }

    fn pgbench_with_8_clients_runs_10_seconds_without_an_error(io) {
        let _turn = turn::alone();
        let server = Postgres::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        pgbench(server.address, tunnel.address);
    }

    fn a_notification_arrives_on_a_quiet_connection(io) {
        let _turn = turn::shared();
        let server = Postgres::start().unwrap();
        let tunnel = Tunnel::open(Setup::new(io), server.address).unwrap();
        notify(server.address, tunnel.address);
    }
}

/// Out through the tunnel to a file, in through the tunnel to a second table: the file and both
/// tables hold the same.
fn copy_out_and_in(server: SocketAddr, through: SocketAddr) {
    const SUM: &str = "count(*) || ' ' || sum(hashtextextended(id || name || at, 0))";
    psql(server, &format!("CREATE TABLE original AS SELECT id, md5(id::text) AS name, timestamptz 'epoch' + id * interval '1 second' AS at FROM generate_series(1, {ROWS}) AS id")).unwrap();
    psql(server, "CREATE TABLE copy (LIKE original)").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows");
    copy(
        through,
        "\\copy original TO STDOUT",
        &format!(">'{}'", file.display()),
    );
    copy(
        through,
        "\\copy copy FROM STDIN",
        &format!("<'{}'", file.display()),
    );

    let original = psql(server, &format!("SELECT {SUM} FROM original")).unwrap();
    assert!(original.starts_with(&format!("{ROWS} ")), "{original}");
    assert_eq!(
        psql(server, &format!("SELECT {SUM} FROM copy")).unwrap(),
        original
    );
    let lines = shell("wc -l <\"$1\"", &[&file], deadline::MOMENT).unwrap();
    assert_eq!(lines.trim(), ROWS.to_string());
}

fn copy(address: SocketAddr, statement: &str, redirection: &str) {
    let psql = client("psql", address).unwrap();
    let mut command = std::process::Command::new("sh");
    command.args([
        "-eu",
        "-c",
        &format!(
            "exec \"$1\" --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --command \"$2\" {redirection}"
        ),
        "sh",
    ]);
    command.arg(psql.get_program()).arg(statement).envs(
        psql.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    run_ok(&mut command, Duration::from_secs(120)).unwrap();
}

fn pgbench(server: SocketAddr, through: SocketAddr) {
    run_ok(
        client("pgbench", server)
            .unwrap()
            .args(["--initialize", "--quiet", "--scale=2"]),
        Duration::from_secs(60),
    )
    .unwrap();
    let arguments = [
        "--client=8",
        "--jobs=2",
        "--time=10",
        "--no-vacuum",
        "--protocol=prepared",
    ];
    let told = run_ok(
        client("pgbench", through).unwrap().args(arguments),
        Duration::from_secs(60),
    )
    .unwrap();
    assert!(
        told.contains("number of failed transactions: 0 (0.000%)"),
        "{told}"
    );
    let done: u64 = figure(&told, "number of transactions actually processed: ");
    assert!(done > 100, "{told}");
    // Each transaction left a row, so what the clients count is what the server did.
    assert_eq!(
        psql(server, "SELECT count(*) FROM pgbench_history").unwrap(),
        done.to_string()
    );
}

fn figure(told: &str, before: &str) -> u64 {
    let line = told
        .lines()
        .find_map(|line| line.strip_prefix(before))
        .unwrap_or_else(|| panic!("no {before:?} in {told}"));
    line.split(['/', ' '])
        .next()
        .unwrap_or(line)
        .parse()
        .unwrap()
}

fn notify(server: SocketAddr, through: SocketAddr) {
    let mut listener = Listener::listen(through, "orders").unwrap();
    for payload in ["the first", "the second"] {
        deadline::pause(QUIET);
        psql(server, &format!("NOTIFY orders, '{payload}'")).unwrap();
        assert_eq!(
            listener.notification().unwrap(),
            ("orders".to_owned(), payload.to_owned())
        );
    }
}
