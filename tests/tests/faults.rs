//! Rows of the fault plan that are about control and definitions, in short: control dies again and
//! again, and definitions come, change and go, while flows of others live.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, pause, wait_for};
use underpass_tests::installation::{Installation, Io, Setup};
use underpass_tests::load::Load;
use underpass_tests::process::free_tcp_address;
use underpass_tests::promise::{NOT_NOTICED, SECOND};
use underpass_tests::rest::Rest;
use underpass_tests::service::{Service, Talk};
use underpass_tests::{on_every_backend, turn};

/// Its definition is touched.
const TOUCHED: &str = "payroll-sql";
/// Its definition is left alone, and carries the load.
const ALONE: &str = "left-alone";

/// Lasting flows of the load.
const FLOWS: u64 = 4;

/// Deaths of control for each backend: 20 in all.
const ROUNDS: u64 = 10;

/// Definitions that come, change and go for each backend, 100 in all, and the time for each; half
/// by files, half by REST.
const DEFINITIONS: usize = 50;
const EACH: Duration = Duration::from_millis(100);

on_every_backend! {
    // Row 3.
    fn control_dies_again_and_again_and_no_flow_notices(io) {
        let scene = Scene::open(io);
        let mut lasting = Talk::start(scene.binding).unwrap();
        for round in 0..ROUNDS {
            scene.installation.control().as_mut().unwrap().kill().unwrap();
            lasting.exchange().unwrap();
            let (service, letter) = if round % 2 == 0 { (&scene.b, b'b') } else { (&scene.a, b'a') };
            // Written while nobody is there to read it.
            scene.installation.define(TOUCHED, &service.address.to_string()).unwrap();
            scene.installation.start_control().unwrap();
            let back = Instant::now();
            scene.wait_for_letter(letter);
            let took = back.elapsed();
            assert!(took < SECOND, "round {round}: applied {took:?} after control was back");
        }
        lasting.exchange().unwrap();
        lasting.finish().unwrap();
        scene.assert_the_load_noticed_nothing();
    }

    fn control_is_down_for_long_and_no_flow_notices(io) {
        // Beside others: what would be noticed here is a cut.
        let scene = Scene::open_beside(turn::shared(), io);
        let mut lasting = Talk::start(scene.binding).unwrap();
        scene.installation.control().as_mut().unwrap().kill().unwrap();
        let down = Instant::now();
        // Longer than any session may be silent.
        while down.elapsed() < Duration::from_secs(17) {
            lasting.exchange().unwrap();
            Talk::start(scene.binding).unwrap().finish().unwrap();
            pause(Duration::from_millis(50));
        }
        lasting.finish().unwrap();
        assert!(scene.load.stop().unwrap().flows > FLOWS);
    }

    // Row 23.
    fn definitions_come_change_and_go_at_ten_a_second_and_others_notice_nothing(io) {
        let scene = Scene::open(io);
        let rest = Rest::of(&scene.installation).unwrap();
        let names: Vec<String> = (0..DEFINITIONS).map(|n| format!("crowd-{n}")).collect();
        let began = Instant::now();
        for (number, name) in names.iter().enumerate() {
            let old = number.checked_sub(10).map(|old| &names[old]);
            if number % 2 == 0 {
                scene.step_by_files(name, old);
            } else {
                scene.step_by_rest(&rest, name, old);
            }
            let due = EACH * u32::try_from(number + 1).unwrap();
            pause(due.saturating_sub(began.elapsed()));
        }
        let took = began.elapsed();
        let longest = EACH * u32::try_from(DEFINITIONS).unwrap() * 2;
        assert!(took < longest, "{DEFINITIONS} definitions took {took:?}");
        let left: Vec<_> = names[DEFINITIONS - 10..].to_vec();
        wait_for("what is left to be what was not removed", MOMENT, || {
            let report = scene.installation.status().unwrap().relay?;
            let known: Vec<_> = report.hycos.iter().map(|hyco| hyco.name.to_string()).collect();
            let crowd = known.iter().filter(|name| name.starts_with("crowd-"));
            (crowd.count() == left.len() && left.iter().all(|name| known.contains(name))).then_some(())
        })
        .unwrap();
        assert_eq!(scene.installation.status().unwrap().faults, []);
        Talk::start(scene.binding).unwrap().finish().unwrap();
        scene.assert_the_load_noticed_nothing();
    }
}

/// Two hybrid connections with one agent, two services, and a load that must not notice anything.
struct Scene {
    a: Service,
    b: Service,
    installation: Installation,
    binding: SocketAddr,
    load: Load,
    _agent: Agent,
    _turn: turn::Turn,
}

impl Scene {
    fn open(io: Io) -> Self {
        // Times are measured.
        Self::open_beside(turn::alone(), io)
    }

    fn open_beside(turn: turn::Turn, io: Io) -> Self {
        let (a, b) = (Service::start(b'a').unwrap(), Service::start(b'b').unwrap());
        let endpoint = a.address.to_string();
        let setup = Setup {
            workers: 2,
            ..Setup::new(io)
        };
        let definitions = [(TOUCHED, &*endpoint), (ALONE, &*endpoint)];
        let installation = Installation::start(setup, &definitions).unwrap();
        let allow = [endpoint.clone(), b.address.to_string()];
        let allow = allow.each_ref().map(String::as_str);
        let agent = installation.start_agent(&[TOUCHED, ALONE], &allow).unwrap();
        let load = Load::start(installation.binding(ALONE).unwrap(), FLOWS, 3).unwrap();
        Self {
            binding: installation.binding(TOUCHED).unwrap(),
            a,
            b,
            installation,
            load,
            _agent: agent,
            _turn: turn,
        }
    }

    fn wait_for_letter(&self, letter: u8) {
        let what = format!("a new flow to reach {:?}", char::from(letter));
        let reached = || {
            Talk::start(self.binding)
                .ok()
                .filter(|talk| talk.letter == letter)
        };
        wait_for(&what, MOMENT, reached).unwrap();
    }

    /// Adds one, changes one and removes one, by writing files.
    fn step_by_files(&self, name: &str, old: Option<&String>) {
        self.installation.define(name, "db01.corp:1433").unwrap();
        let binding = self.installation.wanted_binding(name).unwrap();
        wait_for_binding(name, binding);
        self.installation.define(name, "db02.corp:1433").unwrap();
        if let Some(old) = old {
            self.installation.remove(old).unwrap();
        }
    }

    /// The same by REST.
    fn step_by_rest(&self, rest: &Rest, name: &str, old: Option<&String>) {
        let path = |name: &str| format!("/v1/hybridconnections/{name}");
        let binding = free_tcp_address();
        for host in ["db01.corp", "db02.corp"] {
            let body = format!(r#"{{"host": "{host}", "port": 1433, "bind": "{binding}"}}"#);
            rest.ask("PUT", &path(name), &body).unwrap().well().unwrap();
            wait_for_binding(name, binding);
        }
        if let Some(old) = old {
            rest.ask("DELETE", &path(old), "").unwrap().well().unwrap();
        }
    }

    fn assert_the_load_noticed_nothing(self) {
        let carried = self.load.stop().unwrap();
        assert!(
            carried.flows > FLOWS && carried.longest < NOT_NOTICED,
            "{carried:?}"
        );
    }
}

fn wait_for_binding(name: &str, binding: SocketAddr) {
    let asked = Instant::now();
    let open = || TcpStream::connect(binding).ok();
    wait_for(&format!("the binding of {name}"), MOMENT, open).unwrap();
    let took = asked.elapsed();
    assert!(took < SECOND, "{name}: applied after {took:?}");
}
