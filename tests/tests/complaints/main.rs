//! What users of Azure Hybrid Connections complain about, one test each, in the order of the list:
//! none of it may happen here.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod scene;
mod sockets;

use std::collections::HashSet;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::{LazyLock, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use underpass_proto::snapshot::HealthState;
use underpass_proto::{ConnectionString, Rule, Which};
use underpass_tests::deadline::{MOMENT, pause, wait_for};
use underpass_tests::installation::{Io, run_role, underpass, write_secret};
use underpass_tests::load::Load;
use underpass_tests::process::{Signal, free_tcp_address, run_ok};
use underpass_tests::promise::{LOST, SUSPECT, assert_within};
use underpass_tests::sender::Sender;
use underpass_tests::service::{Service, Talk};

use scene::{AWAY, BACK, NAME, Scene, allow, setup, status};

/// The relay reports each second; the test looks by starting a process, and shares two cores with
/// other tests.
const TOLD: Duration = Duration::from_millis(2_500);

#[test]
fn c01_not_connected_until_somebody_restarts_the_service() {
    Long::C01.join();
}

fn c01() {
    let scene = Scene::open(Io::Poll);
    let agent = scene.agent.process().as_ref().unwrap().id();
    scene.kill_relay();
    let gone = Instant::now();
    // Longer than a session may be silent, and longer than what a backoff that doubles would have
    // grown to.
    while gone.elapsed() < LOST + Duration::from_secs(2) {
        TcpStream::connect(scene.binding).unwrap_err();
        pause(Duration::from_millis(200));
    }
    scene.assert_back_in_time();
    assert_eq!(scene.agent.process().as_ref().unwrap().id(), agent);
    assert_eq!(scene.agent.process().as_mut().unwrap().ended(), None);
}

#[test]
fn c02_connected_but_dead() {
    let scene = Scene::open(Io::Ring);
    let ready = scene.wait_for_health(HealthState::Ready, "");
    assert_eq!(ready, None);
    // An agent that is connected and does nothing.
    let other = scene.installation.start_agent(&[NAME], &[]).unwrap();
    let sender = Sender::start(&scene.installation, setup(Io::Ring), &[NAME]).unwrap();
    scene.wait_until("both to listen", |hyco| hyco.listeners == 2);
    scene.signal_agent(Signal::STOP);
    let stopped = Instant::now();
    // Nobody knows yet that it is dead: who asks it waits for no longer than it takes to be found
    // out.
    let at_once = [scene.binding, sender.address(NAME).unwrap()].map(|address| {
        [(); 10].map(|()| thread::spawn(move || (Talk::start(address), Instant::now())))
    });
    for flow in at_once.into_iter().flatten() {
        let (talk, heard) = flow.join().unwrap();
        assert_eq!(talk.unwrap().letter, b'a');
        let waited = heard - stopped;
        assert!(waited < SUSPECT + TOLD, "waited {waited:?}");
    }
    let why = scene.wait_for_health(HealthState::Degraded, "does not answer");
    assert_within(stopped, SUSPECT + TOLD);
    assert!(why.is_some());
    for _ in 0..30 {
        Talk::start(scene.binding).unwrap().finish().unwrap();
    }
    scene.signal_agent(Signal::CONT);
    scene.wait_for_health(HealthState::Ready, "");

    // Agents that are connected, and an endpoint that is not there.
    let nobody = free_tcp_address();
    allow(&scene.agent, nobody);
    allow(&other, nobody);
    scene
        .installation
        .define(NAME, &nobody.to_string())
        .unwrap();
    let why = scene
        .wait_for_health(HealthState::Degraded, "refused")
        .unwrap();
    assert!(why.contains(&nobody.to_string()), "{why}");
    assert_eq!(
        Talk::start(scene.binding).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[test]
fn c03_a_listener_that_stops_reconnecting() {
    let scene = Scene::open(Io::Ring);
    for _ in 0..4 {
        scene.kill_relay();
        scene.assert_back_in_time();
    }
    // The agent's own death is no different to the relay.
    for _ in 0..2 {
        scene.agent.process().as_mut().unwrap().kill().unwrap();
        scene.agent.start().unwrap();
        let started = Instant::now();
        wait_for("a flow", MOMENT, || Talk::start(scene.binding).ok()).unwrap();
        assert_within(started, BACK);
    }
}

#[test]
fn c04_minutes_until_a_loss_is_noticed() {
    Long::C04.join();
}

fn c04() {
    let scene = Scene::open(Io::Poll);
    let mut live = Talk::start(scene.binding).unwrap();
    // Nothing tells the relay: the agent's sockets stay as they are.
    scene.signal_agent(Signal::STOP);
    let stopped = Instant::now();
    scene.wait_for_health(HealthState::Degraded, "does not answer");
    assert_within(stopped, SUSPECT + TOLD);
    assert_eq!(
        live.wait_for_end().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_within(stopped, LOST + TOLD);
    scene.wait_for_health(HealthState::NoListener, "session lost");
    assert_within(stopped, LOST + TOLD * 2);
    scene.signal_agent(Signal::CONT);
    let goes_on = Instant::now();
    wait_for("a flow", MOMENT, || Talk::start(scene.binding).ok()).unwrap();
    assert_within(goes_on, BACK);
}

#[test]
fn c05_key_rotation_that_cuts_traffic() {
    let scene = Scene::open(Io::Poll);
    let load = Load::start(scene.binding, 4, 5).unwrap();
    let secondary = scene
        .installation
        .string_of(NAME, Rule::Listen, &["--secondary"])
        .unwrap();
    write_secret(&scene.agent.string_file(NAME), &secondary).unwrap();
    wait_for(
        "the status to say that the primary key can go",
        MOMENT,
        || {
            let sessions = scene.sessions();
            let registrations = sessions.iter().flat_map(|session| &session.hycos);
            let mut proven = registrations.filter(|hyco| hyco.name.to_string() == NAME);
            (!sessions.is_empty() && proven.all(|hyco| hyco.key == Which::Secondary)).then_some(())
        },
    )
    .unwrap();
    scene
        .installation
        .regenerate(NAME, Rule::Listen, Which::Primary)
        .unwrap();
    // A listener with the new primary key shows that the old one is gone.
    let _second = scene.installation.start_agent(&[NAME], &[]).unwrap();
    assert!(load.stop().unwrap().flows > 4);
    assert_eq!(scene.flows_failed(), 0);
}

#[test]
fn c06_hundreds_of_firewall_names_to_open() {
    let scene = Scene::open(Io::Ring);
    let sender = Sender::start(&scene.installation, setup(Io::Ring), &[NAME]).unwrap();
    Talk::start(scene.binding).unwrap().finish().unwrap();
    let relay = sockets::of(scene.installation.relay().as_ref().unwrap());
    assert_eq!(
        relay.udp,
        HashSet::from([scene.installation.listen().port()])
    );
    let bindings = [scene.binding.port(), scene.away.port()];
    assert_eq!(relay.listening, HashSet::from(bindings));
    let agent = sockets::of(scene.agent.process().as_ref().unwrap());
    assert_eq!(
        agent.listening,
        HashSet::new(),
        "an agent listens on nothing"
    );
    assert!(!agent.udp.is_empty());
    let bound = sender.address(NAME).unwrap().port();
    let sender = sockets::of(sender.process().as_ref().unwrap());
    assert_eq!(sender.listening, HashSet::from([bound]));
}

#[test]
fn c07_a_name_typed_differently_fails_silently() {
    let scene = Scene::open(Io::Poll);
    scene.agent.process().as_mut().unwrap().kill().unwrap();
    let string = scene.installation.connection_string(NAME).unwrap();
    write_secret(
        &scene.agent.string_file(NAME),
        &string.replace(NAME, "PayRoll-SQL"),
    )
    .unwrap();
    scene.agent.start().unwrap();
    wait_for("a flow by a name in other letters", MOMENT, || {
        Talk::start(scene.binding).ok()
    })
    .unwrap();
    assert_eq!(status(&scene, "PAYROLL-sql").0, Some(0));

    let wrong = string.replace(NAME, "payrol-sql");
    let ran = run_role(Rule::Listen, &wrong, &[]).unwrap();
    assert_eq!(ran.status.code(), Some(4), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("payrol-sql") && ran.stderr.contains("hint: "),
        "{}",
        ran.stderr
    );
    let log = scene.installation.relay().as_ref().unwrap().stderr();
    let named = log.lines().any(|line| {
        ["WARN", "registration refused", "payrol-sql", "unknown name"]
            .iter()
            .all(|part| line.contains(part))
    });
    assert!(named, "{log}");

    let (exit, told) = status(&scene, "payrol-sql");
    assert_eq!(exit, Some(1), "{told}");
    assert!(told.contains("did you mean `payroll-sql`"), "{told}");
}

#[test]
fn c08_throughput_and_latency_that_nobody_states() {
    let scene = Scene::open(Io::Ring);
    let load = Load::start(scene.binding, 2, 8).unwrap();
    let dialled = wait_for("the figures", MOMENT, || {
        let hyco = scene.installation.hyco(NAME).unwrap()?;
        let dial = hyco.agents.first()?.dial.clone()?;
        (hyco.flows_live > 0 && hyco.bytes_to_endpoint > 0).then_some(dial)
    })
    .unwrap();
    assert_eq!(dialled.failed, None);
    assert!((1..5_000_000).contains(&dialled.latency_us), "{dialled:?}");
    let carried = load.stop().unwrap();
    // Each flow hears one letter before what comes back.
    scene.wait_until("all bytes to be stated", |hyco| {
        let stated = (
            hyco.bytes_to_endpoint,
            hyco.bytes_to_application,
            hyco.flows_total,
        );
        stated == (carried.bytes, carried.bytes + carried.flows, carried.flows)
    });
    for session in scene.sessions() {
        assert!((1..5_000_000).contains(&session.rtt_us), "{session:?}");
        assert!(session.mtu >= 1200, "{session:?}");
    }
    let (exit, told) = status(&scene, NAME);
    assert_eq!(exit, Some(0), "{told}");
}

#[test]
fn c09_dead_agents_are_picked_at_random() {
    let scene = Scene::open(Io::Poll);
    let other = scene.installation.start_agent(&[NAME], &[]).unwrap();
    scene.wait_until("both to listen", |hyco| hyco.listeners == 2);
    scene.agent.process().as_mut().unwrap().kill().unwrap();
    let killed = Instant::now();
    wait_for("the bound of liveness", MOMENT, || {
        (killed.elapsed() > SUSPECT).then_some(())
    })
    .unwrap();
    for _ in 0..100 {
        let mut talk = Talk::start(scene.binding).unwrap();
        talk.exchange().unwrap();
        talk.finish().unwrap();
    }
    assert_eq!(other.process().as_mut().unwrap().ended(), None);
}

#[test]
fn c10_changing_an_endpoint_means_delete_and_recreate() {
    let scene = Scene::open(Io::Ring);
    let new = Service::start(b'b').unwrap();
    allow(&scene.agent, new.address);
    let string = scene.installation.connection_string(NAME).unwrap();
    let mut old = Talk::start(scene.binding).unwrap();
    let (host, port) = (new.address.ip().to_string(), new.address.port().to_string());
    let mut command = underpass().unwrap();
    command
        .args([
            "connection",
            "set",
            NAME,
            "--host",
            &host,
            "--port",
            &port,
            "--dir",
        ])
        .arg(scene.installation.directory());
    run_ok(&mut command, MOMENT).unwrap();
    wait_for("new flows to reach the new endpoint", MOMENT, || {
        Talk::start(scene.binding)
            .ok()
            .filter(|talk| talk.letter == b'b')
    })
    .unwrap();
    old.exchange().unwrap();
    assert_eq!(old.letter, b'a');
    old.finish().unwrap();
    // Names and keys are what they were; only the target that an administrator is shown is another.
    let key = |string: &str| string.parse::<ConnectionString>().unwrap().key;
    let after = scene.installation.connection_string(NAME).unwrap();
    assert!(key(&after) == key(&string));
}

#[test]
fn c11_no_log_per_flow_and_no_reason_for_a_close() {
    let scene = Scene::open(Io::Poll);
    let application = |talk: &Talk| talk.local().unwrap().to_string();
    let clean = Talk::start(scene.binding).unwrap();
    let clean_from = application(&clean);
    clean.finish().unwrap();
    let reset = Talk::start(scene.binding).unwrap();
    let reset_from = application(&reset);
    reset.reset();
    let mut refused = TcpStream::connect(scene.away).unwrap();
    let refused_from = refused.local_addr().unwrap().to_string();
    let _ = refused.write_all(b"anybody?");
    for (from, level, parts) in [
        (clean_from, "DEBUG", &["flow ended", "clean"][..]),
        (reset_from, "INFO", &["flow failed", "application", "reset"]),
        (
            refused_from,
            "INFO",
            &["flow failed", "endpoint", "refused", AWAY],
        ),
    ] {
        let line = wait_for(&format!("the line of {from}"), MOMENT, || {
            let log = scene.installation.relay().as_ref()?.stderr();
            let ends = |line: &&str| {
                line.contains(&from)
                    && (line.contains("flow ended") || line.contains("flow failed"))
            };
            log.lines().find(ends).map(str::to_owned)
        })
        .unwrap();
        for part in parts {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(line.contains(level), "{level} in {line}");
    }
    scene
        .installation
        .wait_for_hyco(AWAY, "how it ended", |hyco| {
            hyco.last_ending.as_deref() == Some("endpoint: refused")
        })
        .unwrap();
}

#[test]
fn c12_a_forced_reconnect_every_so_often() {
    Long::C12.join();
}

fn c12() {
    let scene = Scene::open(Io::Ring);
    let sessions = |scene: &Scene| {
        let mut sessions: Vec<_> = scene
            .sessions()
            .iter()
            .map(|session| {
                (
                    session.instance,
                    session.remote,
                    session.worker,
                    session.since_unix_ms,
                )
            })
            .collect();
        sessions.sort_by_key(|(_, remote, ..)| *remote);
        sessions
    };
    let mut idle = Talk::start(scene.binding).unwrap();
    let before = sessions(&scene);
    assert!(!before.is_empty());
    // Over every limit that there is on silence: no timer may end a session, or a flow on which
    // nothing is said.
    pause(LOST * 2 + Duration::from_secs(1));
    idle.exchange().unwrap();
    assert_eq!(sessions(&scene), before);
    idle.finish().unwrap();
    assert_eq!(scene.flows_failed(), 0);
}

/// Tests that wait for a quarter of a minute and more. All begin with the first, so that the file
/// takes no longer than the longest.
#[derive(Clone, Copy)]
enum Long {
    C01,
    C04,
    C12,
}

impl Long {
    fn join(self) {
        static ALL: LazyLock<[Mutex<Option<JoinHandle<()>>>; 3]> =
            LazyLock::new(|| [c01, c04, c12].map(|test| Mutex::new(Some(thread::spawn(test)))));
        let thread = ALL[self as usize].lock().unwrap().take();
        if let Err(panic) = thread.expect("each is run once").join() {
            std::panic::resume_unwind(panic);
        }
    }
}
