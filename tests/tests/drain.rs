//! SIGTERM to the processes: live flows end in peace or when the grace time is over, new ones go
//! elsewhere or are refused.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup};
use underpass_tests::process::{Process, Signal};
use underpass_tests::service::{Service, Talk};
use underpass_tests::{on_every_backend, turn};

const NAME: &str = "payroll-sql";

/// A grace time that is over within a test.
const SHORT: &str = "1500ms";
const SHORT_FOR: Duration = Duration::from_millis(1_500);

/// A grace time that no test waits for.
const LONG: &str = "10m";

/// What "at once" may take where two cores are shared.
const AT_ONCE: Duration = Duration::from_secs(3);

on_every_backend! {
    fn a_draining_relay_closes_its_bindings_and_ends_with_its_last_flow(io) {
        let scene = Scene::open(io, LONG);
        let mut live = Talk::start(scene.binding).unwrap();
        signal(&mut scene.installation.relay());
        wait_for("the binding to close", MOMENT, || TcpStream::connect(scene.binding).err()).unwrap();
        live.exchange().unwrap();
        assert_runs(&mut scene.installation.relay());
        live.exchange().unwrap();
        live.finish().unwrap();
        assert_ends_with_0(&mut scene.installation.relay(), MOMENT);
    }

    fn an_idle_relay_ends_at_once(io) {
        let scene = Scene::open(io, LONG);
        signal(&mut scene.installation.relay());
        assert_ends_with_0(&mut scene.installation.relay(), AT_ONCE);
    }

    fn a_relays_flows_are_reset_when_the_grace_time_is_over(io) {
        let scene = Scene::open(io, SHORT);
        let mut live = Talk::start(scene.binding).unwrap();
        let asked = Instant::now();
        signal(&mut scene.installation.relay());
        assert_reset_after(&mut live, asked, SHORT_FOR);
        assert_ends_with_0(&mut scene.installation.relay(), MOMENT);
    }

    fn a_second_signal_ends_a_relay_at_once(io) {
        let scene = Scene::open(io, LONG);
        let mut live = Talk::start(scene.binding).unwrap();
        signal(&mut scene.installation.relay());
        wait_for("the binding to close", MOMENT, || TcpStream::connect(scene.binding).err()).unwrap();
        live.exchange().unwrap();
        signal(&mut scene.installation.relay());
        assert_eq!(live.wait_for_end().unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_ends_with_0(&mut scene.installation.relay(), AT_ONCE);
    }

    fn a_draining_agent_leaves_new_flows_to_another_and_ends_with_its_last(io) {
        let scene = Scene::open(io, LONG);
        let other = scene.installation.start_agent(&[NAME], &[]).unwrap();
        scene.installation.wait_for_hyco(NAME, "both agents", |hyco| hyco.listeners == 2).unwrap();
        // Until there are flows on both.
        let mut live = Vec::new();
        while live.len() < 40 {
            live.push(Talk::start(scene.binding).unwrap());
        }
        signal(&mut scene.agent.process());
        for _ in 0..50 {
            let mut new = Talk::start(scene.binding).unwrap();
            new.exchange().unwrap();
            new.finish().unwrap();
        }
        for mut talk in live {
            talk.exchange().unwrap();
            talk.finish().unwrap();
        }
        assert_ends_with_0(&mut scene.agent.process(), MOMENT);
        assert_runs(&mut other.process());
        Talk::start(scene.binding).unwrap().finish().unwrap();
    }

    fn the_only_agent_refuses_new_flows_while_it_drains(io) {
        let scene = Scene::open(io, LONG);
        let mut live = Talk::start(scene.binding).unwrap();
        signal(&mut scene.agent.process());
        let error = wait_for("a new flow to be refused", MOMENT, || Talk::start(scene.binding).err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        live.exchange().unwrap();
        live.finish().unwrap();
        assert_ends_with_0(&mut scene.agent.process(), MOMENT);
    }

    fn an_agents_flows_are_reset_when_the_grace_time_is_over(io) {
        let scene = Scene::open(io, SHORT);
        let mut live = Talk::start(scene.binding).unwrap();
        let asked = Instant::now();
        signal(&mut scene.agent.process());
        assert_reset_after(&mut live, asked, SHORT_FOR);
        assert_ends_with_0(&mut scene.agent.process(), MOMENT);
    }

    fn a_second_signal_ends_an_agent_at_once(io) {
        let scene = Scene::open(io, LONG);
        let mut live = Talk::start(scene.binding).unwrap();
        signal(&mut scene.agent.process());
        wait_for("a new flow to be refused", MOMENT, || Talk::start(scene.binding).err()).unwrap();
        live.exchange().unwrap();
        signal(&mut scene.agent.process());
        assert_eq!(live.wait_for_end().unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_ends_with_0(&mut scene.agent.process(), AT_ONCE);
    }

    fn up_passes_both_signals_on(io) {
        for twice in [false, true] {
            let _turn = turn::shared();
            let service = Service::start(b'a').unwrap();
            let installation = Installation::new(setup(io, LONG)).unwrap();
            installation.define(NAME, &service.address.to_string()).unwrap();
            let mut up = Some(installation.start_up().unwrap());
            let _agent = installation.start_agent(&[NAME], &[]).unwrap();
            let binding = installation.binding(NAME).unwrap();
            let mut live = Talk::start(binding).unwrap();
            signal(&mut up);
            wait_for("the binding to close", MOMENT, || TcpStream::connect(binding).err()).unwrap();
            live.exchange().unwrap();
            assert_runs(&mut up);
            // Control stays until the relay is done.
            installation.status().unwrap();
            if twice {
                signal(&mut up);
                assert_eq!(live.wait_for_end().unwrap_err().kind(), ErrorKind::ConnectionReset);
            } else {
                live.finish().unwrap();
            }
            assert_ends_with_0(&mut up, AT_ONCE);
            installation.status().unwrap_err();
        }
    }

    fn children_of_up_do_not_outlive_it(io) {
        let _turn = turn::shared();
        let installation = Installation::new(setup(io, LONG)).unwrap();
        installation.define(NAME, "db01.corp:1433").unwrap();
        let mut up = installation.start_up().unwrap();
        let binding = installation.binding(NAME).unwrap();
        up.kill().unwrap();
        wait_for("the relay to go", MOMENT, || TcpStream::connect(binding).err()).unwrap();
        wait_for("control to go", MOMENT, || installation.status().err()).unwrap();
        // Nothing holds the directory or the ports any more.
        let _again = installation.start_up().unwrap();
    }
}

/// One hybrid connection to one service.
struct Scene {
    installation: Installation,
    agent: Agent,
    binding: SocketAddr,
    _service: Service,
    _turn: turn::Turn,
}

impl Scene {
    fn open(io: Io, grace: &'static str) -> Self {
        let turn = turn::shared();
        let service = Service::start(b'a').unwrap();
        let installation =
            Installation::start(setup(io, grace), &[(NAME, &service.address.to_string())]).unwrap();
        let agent = installation.start_agent(&[NAME], &[]).unwrap();
        let binding = installation.binding(NAME).unwrap();
        Self {
            installation,
            agent,
            binding,
            _service: service,
            _turn: turn,
        }
    }
}

fn setup(io: Io, grace: &'static str) -> Setup {
    Setup {
        grace,
        workers: 2,
        ..Setup::new(io)
    }
}

fn signal(process: &mut Option<Process>) {
    process.as_mut().unwrap().signal(Signal::TERM).unwrap();
}

fn assert_runs(process: &mut Option<Process>) {
    assert_eq!(process.as_mut().unwrap().ended(), None);
}

fn assert_ends_with_0(process: &mut Option<Process>, within: Duration) {
    let status = process.as_mut().unwrap().wait(within).unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
}

fn assert_reset_after(live: &mut Talk, asked: Instant, grace: Duration) {
    while asked.elapsed() + Duration::from_millis(300) < grace {
        live.exchange().unwrap();
    }
    assert_eq!(
        live.wait_for_end().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    let after = asked.elapsed();
    assert!(
        after >= grace && after < grace + AT_ONCE,
        "reset after {after:?}"
    );
}
