//! Definitions that are added, changed, removed and spoilt while flows are live, on the processes
//! as they are.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup, write_secret};
use underpass_tests::process::free_tcp_address;
use underpass_tests::promise::{SECOND, assert_within};
use underpass_tests::service::{Noticed, Service, Steady, Talk};
use underpass_tests::{on_every_backend, turn};

/// Its definition is touched.
const TOUCHED: &str = "payroll-sql";
/// Its definition is left alone.
const ALONE: &str = "left-alone";

/// The longest that a conversation on another hybrid connection may wait for one answer: usually
/// well under 1 ms, more where the machine has something else to do.
const NOT_NOTICED: Duration = Duration::from_millis(500);

on_every_backend! {
    fn a_changed_endpoint_takes_new_flows_within_a_second_and_leaves_old_ones(io) {
        let scene = Scene::open(io);
        let mut old = Talk::start(scene.binding).unwrap();
        assert_eq!(old.letter, b'a');
        let changed = Instant::now();
        scene.installation.define(TOUCHED, &scene.b.address.to_string()).unwrap();
        scene.wait_for_letter(b'b');
        assert_within(changed, SECOND);
        old.exchange().unwrap();
        old.finish().unwrap();
        scene.assert_others_noticed_nothing();
    }

    fn an_endpoint_that_the_agent_may_not_dial_is_refused_and_old_flows_go_on(io) {
        let scene = Scene::open(io);
        let forbidden = Service::start(b'x').unwrap();
        let mut old = Talk::start(scene.binding).unwrap();
        scene.installation.define(TOUCHED, &forbidden.address.to_string()).unwrap();
        wait_for("new flows to be refused", MOMENT, || Talk::start(scene.binding).err())
            .map(|error| assert_eq!(error.kind(), ErrorKind::ConnectionReset))
            .unwrap();
        scene.wait_for_ending("agent: not_allowed");
        old.exchange().unwrap();
        old.finish().unwrap();
        assert_eq!(forbidden.accepted(), 0);
        scene.assert_others_noticed_nothing();
    }

    fn a_removed_definition_ends_its_flows_within_a_second_and_an_added_one_works(io) {
        let scene = Scene::open(io);
        let mut cut = Talk::start(scene.binding).unwrap();
        let text = std::fs::read_to_string(scene.installation.definition(TOUCHED)).unwrap();
        let removed = Instant::now();
        scene.installation.remove(TOUCHED).unwrap();
        assert_eq!(cut.wait_for_end().unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_within(removed, SECOND);
        wait_for("the binding to close", MOMENT, || TcpStream::connect(scene.binding).err()).unwrap();
        assert_within(removed, SECOND);

        let added = Instant::now();
        scene.installation.write_definition(TOUCHED, &text).unwrap();
        wait_for("the binding to open", MOMENT, || TcpStream::connect(scene.binding).ok()).unwrap();
        assert_within(added, SECOND);
        // The agent, once told that the name is gone, asks again with pauses.
        scene.wait_for_letter(b'a');
        scene.assert_others_noticed_nothing();
    }

    fn a_changed_binding_opens_and_the_old_one_closes_within_a_second(io) {
        let scene = Scene::open(io);
        let mut old = Talk::start(scene.binding).unwrap();
        let endpoint = scene.a.address;
        let new = free_tcp_address();
        let text = format!("host = \"{}\"\nport = {}\nbind = \"{new}\"\n", endpoint.ip(), endpoint.port());
        let changed = Instant::now();
        scene.installation.write_definition(TOUCHED, &text).unwrap();
        wait_for("the new binding", MOMENT, || Talk::start(new).ok()).unwrap();
        wait_for("the old binding to close", MOMENT, || TcpStream::connect(scene.binding).err()).unwrap();
        assert_within(changed, SECOND);
        old.exchange().unwrap();
        old.finish().unwrap();
        scene.assert_others_noticed_nothing();
    }

    fn a_bad_file_keeps_its_own_content_and_stops_no_other_change(io) {
        let scene = Scene::open(io);
        let steady = Steady::start(scene.binding).unwrap();
        scene.installation.write_definition(TOUCHED, "host = \"db01.corp\"\nport = \"many\"\n").unwrap();
        let fault = wait_for("the fault", MOMENT, || {
            let status = scene.installation.status().unwrap();
            status.faults.into_iter().next()
        })
        .unwrap();
        assert_eq!(fault.hyco.map(|name| name.to_string()).as_deref(), Some(TOUCHED));
        let named = "payroll-sql.toml:2: ";
        assert!(fault.what.contains(named), "{}", fault.what);
        // Another change goes through while this one stands in the way of nothing.
        let changed = Instant::now();
        scene.installation.define(ALONE, &scene.b.address.to_string()).unwrap();
        wait_for("the other change", MOMENT, || {
            Talk::start(scene.alone).ok().filter(|talk| talk.letter == b'b')
        })
        .unwrap();
        assert_within(changed, SECOND);
        assert_eq!(Talk::start(scene.binding).unwrap().letter, b'a');
        let log = scene.installation.control().as_ref().unwrap().stderr();
        assert!(log.lines().any(|line| line.contains(named) && line.contains("WARN")), "{log}");

        let mended = Instant::now();
        scene.installation.define(TOUCHED, &scene.b.address.to_string()).unwrap();
        // The spoilt text had no binding; the file names one again.
        let binding = scene.installation.wanted_binding(TOUCHED).unwrap();
        wait_for("the mended definition", MOMENT, || {
            Talk::start(binding).ok().filter(|talk| talk.letter == b'b')
        })
        .unwrap();
        assert_within(mended, SECOND);
        assert_eq!(scene.installation.status().unwrap().faults, []);
        assert_unnoticed(steady.stop().unwrap());
        scene.assert_others_noticed_nothing();
    }

    fn a_dead_key_ends_its_flows_within_a_second_and_a_key_that_moved_does_not(io) {
        let scene = Scene::open(io);
        let mut old = Talk::start(scene.binding).unwrap();
        let keys = scene.installation.directory().join("keys").join(format!("{TOUCHED}.toml"));
        let text = std::fs::read_to_string(&keys).unwrap();
        let listen = |primary: &str, secondary: &str| {
            let send = &text[text.find("[send]").unwrap()..];
            format!("[listen]\nprimary = \"{primary}\"\nsecondary = \"{secondary}\"\n{send}")
        };
        let first = text.split('"').nth(1).unwrap();
        // The key in use becomes the secondary one: whoever stands on it stays.
        write_secret(&keys, &listen(KEYS[0], first)).unwrap();
        let second = scene.installation.start_agent(&[TOUCHED], &[]).unwrap();
        scene.installation.wait_for_hyco(TOUCHED, "both agents", |hyco| hyco.listeners == 2).unwrap();
        old.exchange().unwrap();

        let removed = Instant::now();
        write_secret(&keys, &listen(KEYS[0], KEYS[1])).unwrap();
        assert_eq!(old.wait_for_end().unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_within(removed, SECOND);
        for _ in 0..20 {
            let mut new = Talk::start(scene.binding).unwrap();
            new.exchange().unwrap();
            new.finish().unwrap();
        }
        let line = scene.agent.process().as_mut().unwrap().wait_for_line("registration ended", MOMENT).unwrap();
        assert!(line.contains("key revoked"), "{line}");
        drop(second);
        scene.assert_others_noticed_nothing();
    }

    fn control_may_die_and_the_next_change_applies_within_a_second_after_it_is_back(io) {
        let scene = Scene::open(io);
        let mut old = Talk::start(scene.binding).unwrap();
        scene.installation.control().as_mut().unwrap().kill().unwrap();
        old.exchange().unwrap();
        assert_eq!(Talk::start(scene.binding).unwrap().letter, b'a');
        scene.installation.define(TOUCHED, &scene.b.address.to_string()).unwrap();
        scene.installation.start_control().unwrap();
        let back = Instant::now();
        scene.wait_for_letter(b'b');
        assert_within(back, SECOND);
        let changed = Instant::now();
        scene.installation.define(TOUCHED, &scene.a.address.to_string()).unwrap();
        scene.wait_for_letter(b'a');
        assert_within(changed, SECOND);
        old.exchange().unwrap();
        old.finish().unwrap();
        scene.assert_others_noticed_nothing();
    }

    fn a_hundred_definitions_at_once_come_and_go_unnoticed(io) {
        let scene = Scene::open(io);
        let names: Vec<String> = (0..100).map(|n| format!("crowd-{n}")).collect();
        let added = Instant::now();
        for name in &names {
            scene.installation.define(name, "db01.corp:1433").unwrap();
        }
        for name in &names {
            let binding = scene.installation.wanted_binding(name).unwrap();
            wait_for(&format!("the binding of {name}"), MOMENT, || TcpStream::connect(binding).ok()).unwrap();
        }
        // All files were written when the last change was made.
        assert_within(added, SECOND);
        let bindings: Vec<SocketAddr> = names.iter().map(|name| scene.installation.wanted_binding(name).unwrap()).collect();
        let removed = Instant::now();
        for name in &names {
            scene.installation.remove(name).unwrap();
        }
        for binding in bindings {
            wait_for("a binding to close", MOMENT, || TcpStream::connect(binding).err()).unwrap();
        }
        assert_within(removed, SECOND);
        scene.assert_others_noticed_nothing();
    }
}

/// Two hybrid connections with one agent, a second service to change to, and a conversation that
/// must not notice anything.
struct Scene {
    a: Service,
    b: Service,
    installation: Installation,
    agent: Agent,
    binding: SocketAddr,
    alone: SocketAddr,
    steady: Option<Steady>,
    _turn: turn::Turn,
}

impl Scene {
    fn open(io: Io) -> Self {
        // Times are measured.
        let turn = turn::alone();
        let (a, b) = (Service::start(b'a').unwrap(), Service::start(b'b').unwrap());
        let endpoint = a.address.to_string();
        // Both must do what either is told.
        let setup = Setup {
            workers: 2,
            ..Setup::new(io)
        };
        let installation =
            Installation::start(setup, &[(TOUCHED, &endpoint), (ALONE, &endpoint)]).unwrap();
        let allow = [endpoint, b.address.to_string()];
        let agent = installation
            .start_agent(&[TOUCHED, ALONE], &allow.each_ref().map(String::as_str))
            .unwrap();
        let (binding, alone) = (
            installation.binding(TOUCHED).unwrap(),
            installation.binding(ALONE).unwrap(),
        );
        Self {
            a,
            b,
            installation,
            agent,
            binding,
            alone,
            steady: Some(Steady::start(alone).unwrap()),
            _turn: turn,
        }
    }

    fn wait_for_letter(&self, letter: u8) {
        let what = format!("a new flow to reach {:?}", char::from(letter));
        wait_for(&what, MOMENT, || {
            Talk::start(self.binding)
                .ok()
                .filter(|talk| talk.letter == letter)
        })
        .unwrap();
    }

    fn wait_for_ending(&self, words: &str) {
        wait_for(&format!("an ending with {words:?}"), MOMENT, || {
            let hyco = self.installation.hyco(TOUCHED).unwrap()?;
            hyco.last_ending.filter(|ending| ending.contains(words))
        })
        .unwrap();
    }

    fn assert_others_noticed_nothing(mut self) {
        assert_unnoticed(self.steady.take().unwrap().stop().unwrap());
    }
}

/// Two keys that no file has yet.
const KEYS: [&str; 2] = [
    "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=",
];

fn assert_unnoticed(noticed: Noticed) {
    assert!(
        noticed.exchanges > 0 && noticed.longest < NOT_NOTICED,
        "{noticed:?}"
    );
}
