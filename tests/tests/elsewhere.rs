//! Flows that one listener refuses and another takes: all that the application said goes to the
//! second one, its end included.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use underpass_loadtest::pattern::Pattern;
use underpass_tests::conversation::{Conversation, Fault};
use underpass_tests::deadline::MOMENT;
use underpass_tests::installation::{Installation, Setup};
use underpass_tests::network::no_own_hosts_file;
use underpass_tests::service::Service;
use underpass_tests::{on_every_backend, turn};

const NAME: &str = "payroll-sql";

/// Begun at once, so that half of them find the listener that refuses before it is known to.
const FLOWS: u64 = 16;

/// What each says before its end: less than a datagram.
const SAID: u64 = 500;

on_every_backend! {
    fn what_was_said_and_ended_before_a_refusal_is_said_and_ended_elsewhere(io) {
        if let Some(why) = no_own_hosts_file() {
            return underpass_loadtest::note!("skipped: {why}");
        }
        let _turn = turn::shared();
        let service = Service::start(b'a').unwrap();
        let folder = tempfile::tempdir().unwrap();
        let hosts = |address: &str| {
            let path = folder.path().join(address);
            fs::write(&path, format!("{address} db01.test\n")).unwrap();
            Setup { hosts: Some(path), probe: false, ..Setup::new(io) }
        };
        // Nobody listens there, so this one's dials are refused; they take as long as the name
        // takes to be found.
        let (refuses, serves) = (hosts("127.0.0.2"), hosts("127.0.0.1"));
        let endpoint = format!("db01.test:{}", service.address.port());
        let installation = Installation::start(serves.clone(), &[(NAME, &*endpoint)]).unwrap();
        let allow = ["127.0.0.0/8:1-65535"];
        let agents = [refuses, serves].map(|setup| installation.start_agent_apart(setup, &[NAME], &allow).unwrap());
        for agent in &agents {
            agent.wait_until_registered(NAME).unwrap();
        }
        installation.wait_for_hyco(NAME, "both listeners", |hyco| hyco.listeners == 2).unwrap();
        let binding = installation.binding(NAME).unwrap();
        let flows: Vec<_> = (0..FLOWS).map(|seed| thread::spawn(move || say_and_end(binding, seed))).collect();
        for flow in flows {
            flow.join().unwrap().unwrap();
        }
        let log = agents[0].process().as_ref().unwrap().stderr();
        assert!(log.contains("flow refused"), "no flow found the listener that refuses\n{log}");
    }
}

/// Everything and the end at once, then all of the echo and its end.
fn say_and_end(address: SocketAddr, seed: u64) -> Result<(), Fault> {
    let says = Pattern::new(seed);
    let mut line = Conversation::connect(address, "application", Instant::now() + MOMENT)?;
    line.send(&says, 0..SAID)?;
    line.finish()?;
    line.receive_bytes::<1>()?;
    line.receive(&says, 0..SAID)?;
    line.receive_end()
}
