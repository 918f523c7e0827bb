//! Applications that do not read: what they pin must not be what the others of the same session live on.

use std::thread;
use std::time::{Duration, Instant};

use underpass_loadtest::endpoint::{self, Endpoint};
use underpass_loadtest::io::Choice;
use underpass_loadtest::scenario::{self, Scenario, Settings, Stop};
use underpass_loadtest::{Mode, Plan, run};
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Io, Setup};
use underpass_tests::tunnel::{NAME, Tunnel};
use underpass_tests::turn;

/// More than the 128 that once pinned all of a session's window.
const READERS: u64 = 160;

/// What each of them does not read: more than its own window.
const SLOW: &str = r#"
    duration = "60s"
    [[group]]
    flows = 160
    request = 1
    response = "16MiB"
    read_rate = 1
"#;

#[test]
fn readers_that_stand_still_do_not_stop_others() {
    let _turn = turn::alone();
    let local = "127.0.0.1:0".parse().unwrap();
    let endpoint = Endpoint::start(endpoint::Settings::new(local)).unwrap();
    let tunnel = Tunnel::open(Setup::new(Io::Poll), endpoint.address()).unwrap();
    let (stop, address) = (Stop::default(), tunnel.address);
    let settings = Settings {
        stop: stop.clone(),
        io: Choice::Tokio,
        ..Settings::default()
    };
    let slow: Scenario = Scenario::parse(SLOW, "slow.toml", "slow").unwrap();
    let slow = thread::spawn(move || scenario::run_with(&slow, &[address], &settings, |_| ()));
    let mut seen = (0, Instant::now());
    wait_for("the slow readers to be full", MOMENT, || {
        let report = tunnel.installation.hyco(NAME).ok().flatten()?;
        let bytes = report.bytes_to_application;
        if bytes != seen.0 {
            seen = (bytes, Instant::now());
        }
        (report.flows_live >= READERS && seen.1.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .unwrap();
    let asked = Instant::now();
    let plan = Plan {
        flows: 4,
        bytes: Some(4 << 20),
        stall: MOMENT,
        ..Plan::new(tunnel.address, Mode::Echo)
    };
    let tally = run::run(&plan, |_| ()).unwrap().tally;
    let took = asked.elapsed();
    assert_eq!((tally.right, tally.flows()), (4, 4), "{tally:?}");
    assert!(
        took < Duration::from_secs(5),
        "beside slow readers: {took:?}"
    );
    stop.stop();
    slow.join().unwrap().unwrap();
}
