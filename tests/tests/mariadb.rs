//! MariaDB through relay and agent: it locks a host out after 100 connections in a row that say
//! nothing, as probes do.

use std::io::Read;
use std::net::TcpStream;

use underpass_proto::snapshot::HealthState;
use underpass_tests::deadline::MOMENT;
use underpass_tests::feed_between::FeedBetween;
use underpass_tests::installation::{Installation, Io, Setup};
use underpass_tests::servers::mariadb::MariaDb;
use underpass_tests::turn;

const NAME: &str = "payroll-sql";

/// `max_connect_errors` is 100.
const PROBES: u64 = 150;

#[test]
fn probes_without_end_do_not_lock_the_agents_host_out() {
    let _turn = turn::shared();
    let server = MariaDb::start().unwrap();
    let installation = Installation::new(Setup::new(Io::Ring)).unwrap();
    installation
        .define(NAME, &server.address.to_string())
        .unwrap();
    installation.start_control().unwrap();
    let socket = installation.directory().join("run").join("control.sock");
    let feed = FeedBetween::start(&socket).unwrap();
    installation.start_relay_on(&feed.directory()).unwrap();
    let binding = installation.binding(NAME).unwrap();
    let _agent = installation.start_agent(&[NAME], &[]).unwrap();
    let is_ready =
        |hyco: &underpass_proto::snapshot::HycoReport| hyco.health.state == HealthState::Ready;
    installation
        .wait_for_hyco(NAME, "the first probe", is_ready)
        .unwrap();

    let failed = |id| {
        let report = feed.probe(id, NAME).unwrap();
        report.agents[0].dial.as_ref().unwrap().failed.clone()
    };
    let answers: Vec<Option<String>> = (0..PROBES).map(failed).collect();
    let reached = answers.iter().filter(|failed| failed.is_none()).count();
    assert!(
        (20..50).contains(&reached),
        "{reached} connections were made"
    );
    assert_eq!(answers.last().unwrap().as_deref(), Some("not_probed"));
    let errors = server.query("SELECT MAX(sum_connect_errors) FROM performance_schema.host_cache");
    let errors: u64 = errors.unwrap().parse().unwrap();
    assert!((1..=50).contains(&errors), "{errors} connection errors");

    // An application is greeted, not turned away.
    let mut application = TcpStream::connect(binding).unwrap();
    application.set_read_timeout(Some(MOMENT)).unwrap();
    let mut greeting = [0; 5];
    application.read_exact(&mut greeting).unwrap();
    assert_eq!(
        greeting[3..],
        [0, 10],
        "the greeting of protocol 10, and no error"
    );
    // Its flow was a real connection: who asks is answered again.
    assert_eq!(failed(PROBES), None);
}
