//! What is known of a peer and for how long: a relay whose certificate was replaced, signs of life
//! and what they cost, a process that stands still.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use underpass_loadtest::impair::{Link, Proxy};
use underpass_proto::Rule;
use underpass_proto::snapshot::{HycoReport, SessionState};
use underpass_tests::deadline::{MOMENT, pause, wait_for};
use underpass_tests::installation::{Installation, Io, Setup, run_role, terminate};
use underpass_tests::process::{Signal, free_udp_port};
use underpass_tests::sender::Sender;
use underpass_tests::service::Service;
use underpass_tests::turn;

const NAME: &str = "payroll-sql";

/// How a certificate that is another one than before is named.
const WRONG_CERTIFICATE: &str = "the relay's certificate is not the pinned or trusted one";

/// Within this time after the relay is back, its certificate must be named: some attempts, on a
/// busy machine.
const SOON: Duration = Duration::from_secs(10);

/// How long a check would wait for a relay that may yet answer.
const CHECK_MAX: Duration = Duration::from_secs(4);

/// Workers of relay and agent, and so sessions between them.
const WORKERS: u16 = 4;

/// For so long an idle agent is watched.
const WATCHED: Duration = Duration::from_secs(3);

/// Datagrams of one session alone in that time, both ways, and as many again where the machine is
/// busy and signs of life are late.
const DATAGRAMS_MAX: u64 = 2 * 2 * 3;

/// Those of an agent that gives a sign of life each minute: one may be due.
const METERED_MAX: u64 = 2;

#[test]
fn four_idle_sessions_cost_what_one_costs_and_those_of_a_metered_agent_next_to_nothing() {
    let _turn = turn::shared();
    let public = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp_port()));
    let setup = Setup {
        workers: WORKERS,
        public: Some(public),
        probe: false,
        ..Setup::new(Io::Poll)
    };
    let installation = Installation::start(setup, &[(NAME, "db01.corp:1433")]).unwrap();
    let proxy = Proxy::start(public, installation.listen(), Link::CLEAN, 1).unwrap();
    let agent = installation.start_agent(&[NAME], &[]).unwrap();
    wait_for_sessions(&installation);
    let idle = quietest(&proxy, DATAGRAMS_MAX);
    assert!(idle <= DATAGRAMS_MAX, "{idle} datagrams in {WATCHED:?}");

    terminate(agent.process().as_mut().unwrap(), MOMENT).unwrap();
    let config = fs::read_to_string(agent.config()).unwrap();
    fs::write(agent.config(), format!("keep_alive = \"60s\"\n{config}")).unwrap();
    agent.start().unwrap();
    wait_for_sessions(&installation);
    let idle = quietest(&proxy, METERED_MAX);
    assert!(idle <= METERED_MAX, "{idle} datagrams in {WATCHED:?}");
    // The relay knows that nothing is wrong with who says nothing.
    let relay = installation.status().unwrap().relay.unwrap();
    let states: Vec<_> = relay.sessions.iter().map(|session| session.state).collect();
    assert_eq!(states, [SessionState::Ready; WORKERS as usize]);
}

/// Waits until one agent has all its sessions, and each is registered.
fn wait_for_sessions(installation: &Installation) {
    wait_for("all sessions to be registered", MOMENT, || {
        let sessions = installation.status().ok()?.relay?.sessions;
        let registered = sessions.iter().filter(|session| !session.hycos.is_empty());
        (registered.count() == usize::from(WORKERS)).then_some(())
    })
    .unwrap();
}

/// Datagrams both ways in some time, the fewest of three tries: a session that has just begun still
/// has its path's size to find.
fn quietest(proxy: &Proxy, enough: u64) -> u64 {
    let datagrams = || {
        let seen = proxy.seen();
        seen.up.received + seen.down.received
    };
    let mut fewest = u64::MAX;
    for _ in 0..3 {
        let before = datagrams();
        pause(WATCHED);
        fewest = fewest.min(datagrams() - before);
        if fewest <= enough {
            break;
        }
    }
    fewest
}

/// Flows that are opened beside a frozen agent; about half of them are given to it at first.
const FLOWS: usize = 8;

/// How long such a flow may take: what makes a silent process suspect, and as much again for a busy
/// machine.
const RESCUED_WITHIN: Duration = Duration::from_secs(4);

/// The relay must have heard nothing from the frozen agent for so long that its last datagram is no
/// sign that it is there now. Shorter than anybody could know that it is frozen.
const JUST_FROZEN: Duration = Duration::from_millis(60);

#[test]
fn a_flow_whose_application_speaks_first_does_not_wait_for_an_agent_that_has_just_frozen() {
    let _turn = turn::shared();
    let service = Service::start(b'a').unwrap();
    let endpoint = service.address.to_string();
    let public = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp_port()));
    let setup = Setup {
        public: Some(public),
        probe: false,
        ..Setup::new(Io::Poll)
    };
    let installation = Installation::start(setup, &[(NAME, &endpoint)]).unwrap();
    let proxy = Proxy::start(public, installation.listen(), Link::CLEAN, 1).unwrap();
    let frozen = installation.start_agent(&[NAME], &[&endpoint]).unwrap();
    let _well = installation.start_agent(&[NAME], &[&endpoint]).unwrap();
    let both = |hyco: &HycoReport| hyco.listeners == 2;
    installation
        .wait_for_hyco(NAME, "two listeners", both)
        .unwrap();
    let binding = installation.binding(NAME).unwrap();

    frozen
        .process()
        .as_mut()
        .unwrap()
        .signal(Signal::STOP)
        .unwrap();
    wait_for_silence(&proxy, JUST_FROZEN);
    let began = Instant::now();
    let mut flows: Vec<TcpStream> = (0..FLOWS)
        .map(|_| {
            let mut flow = TcpStream::connect(binding).unwrap();
            flow.write_all(b"hello").unwrap();
            flow
        })
        .collect();
    for flow in &mut flows {
        flow.set_read_timeout(Some(RESCUED_WITHIN)).unwrap();
        let mut answer = [0; 6];
        flow.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ahello");
    }
    assert!(began.elapsed() < RESCUED_WITHIN, "{:?}", began.elapsed());
    // Some were given to the frozen one first, or this has shown nothing.
    let log = installation.relay().as_ref().unwrap().stderr();
    assert!(log.contains("tried elsewhere"), "{log}");
    frozen
        .process()
        .as_mut()
        .unwrap()
        .signal(Signal::CONT)
        .unwrap();
}

/// Waits until nothing has come from any agent for so long.
fn wait_for_silence(proxy: &Proxy, silence: Duration) {
    let mut last = (proxy.seen().up.received, Instant::now());
    wait_for("silence of the agents", MOMENT, || {
        let received = proxy.seen().up.received;
        if received != last.0 {
            last = (received, Instant::now());
        }
        (last.1.elapsed() >= silence).then_some(())
    })
    .unwrap();
}

#[test]
fn a_replaced_certificate_is_named_at_once_and_not_hidden_behind_the_drain_before_it() {
    let _turn = turn::shared();
    let setup = Setup::new(Io::Poll);
    let installation = Installation::start(setup.clone(), &[(NAME, "db01.corp:1433")]).unwrap();
    let agent = installation.start_agent(&[NAME], &[]).unwrap();
    let sender = Sender::start(&installation, setup, &[NAME]).unwrap();
    let strings = [Rule::Listen, Rule::Send]
        .map(|rule| (rule, installation.string_of(NAME, rule, &[]).unwrap()));

    terminate(installation.relay().as_mut().unwrap(), MOMENT).unwrap();
    installation.control().as_mut().unwrap().kill().unwrap();
    fs::remove_dir_all(installation.directory().join("tls")).unwrap();
    installation.start_control().unwrap();
    installation.start_relay().unwrap();

    for (who, process) in [("agent", agent.process()), ("sender", sender.process())] {
        let named = || {
            let log = process.as_ref()?.stderr();
            log.contains(WRONG_CERTIFICATE).then_some(())
        };
        wait_for(&format!("the {who} to name the certificate"), SOON, named).unwrap();
    }
    for (rule, string) in strings {
        let ran = run_role(rule, &string, &["--check"]).unwrap();
        assert_eq!(ran.status.code(), Some(5), "{}", ran.stderr);
        assert!(ran.stderr.contains(WRONG_CERTIFICATE), "{}", ran.stderr);
        assert!(
            ran.stderr.contains("new connection string"),
            "{}",
            ran.stderr
        );
        assert!(ran.took < CHECK_MAX, "{:?}", ran.took);
    }
}
