//! Keys that are rotated and made anew under load: by the secondary key no flow is cut and no byte
//! is wrong; a dead key's own flows end within a second, and nobody else's.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use underpass_proto::{Role, Rule, Which};
use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup, run_role, write_secret};
use underpass_tests::load::{Carried, Load};
use underpass_tests::promise::{NOT_NOTICED, SECOND};
use underpass_tests::sender::Sender;
use underpass_tests::service::{Service, Talk};
use underpass_tests::{on_every_backend, turn};

/// Its keys are made anew.
const TOUCHED: &str = "payroll-sql";
/// Stands on the same sessions, with keys of its own.
const OTHER: &str = "other-thing";

/// Lasting flows of a load.
const FLOWS: u64 = 4;

/// Rounds for each rule and backend: 20 in all.
const ROUNDS: u64 = 5;

on_every_backend! {
    fn a_rotation_by_the_secondary_key_and_back_cuts_no_flow_and_spoils_no_byte(io) {
        let scene = Scene::open(io);
        let loads = [scene.binding(), scene.sender.address(TOUCHED).unwrap()]
            .map(|address| Load::start(address, FLOWS, 22).unwrap());
        scene.wait_for_key(Which::Primary);
        // Each rotation ends with the death of the key that everybody stood on.
        for (new, old) in [(Which::Secondary, Which::Primary), (Which::Primary, Which::Secondary)] {
            scene.hand_out(Rule::Listen, new);
            scene.hand_out(Rule::Send, new);
            scene.wait_for_key(new);
            for rule in [Rule::Listen, Rule::Send] {
                scene.make_anew(rule, old);
            }
        }
        for load in loads {
            let Carried { flows, bytes, .. } = load.stop().unwrap();
            assert!(flows > FLOWS && bytes > 0, "{flows} flows, {bytes} bytes");
        }
        let hyco = scene.installation.hyco(TOUCHED).unwrap().unwrap();
        assert_eq!((hyco.flows_failed, hyco.last_ending), (0, None));
    }

    fn a_key_in_use_dies_within_a_second_and_touches_nothing_else(io) {
        let scene = Scene::open(io);
        let others = [scene.installation.binding(OTHER).unwrap(), scene.sender.address(OTHER).unwrap()]
            .map(|address| Load::start(address, FLOWS, 22).unwrap());
        for round in 0..ROUNDS {
            for rule in [Rule::Listen, Rule::Send] {
                scene.kill_the_key(rule, round);
            }
        }
        for load in others {
            let carried = load.stop().unwrap();
            assert!(carried.longest < NOT_NOTICED, "{carried:?}");
        }
    }
}

/// Two hybrid connections on the sessions of one agent and of one sender.
struct Scene {
    installation: Installation,
    agent: Agent,
    sender: Sender,
    _service: Service,
    _turn: turn::Turn,
}

impl Scene {
    fn open(io: Io) -> Self {
        // Times are measured.
        let turn = turn::alone();
        let service = Service::start(b'a').unwrap();
        let endpoint = service.address.to_string();
        let setup = Setup {
            workers: 2,
            ..Setup::new(io)
        };
        let definitions = [(TOUCHED, &*endpoint), (OTHER, &*endpoint)];
        let installation = Installation::start(setup.clone(), &definitions).unwrap();
        let agent = installation.start_agent(&[TOUCHED, OTHER], &[]).unwrap();
        let sender = Sender::start(&installation, setup, &[TOUCHED, OTHER]).unwrap();
        Self {
            installation,
            agent,
            sender,
            _service: service,
            _turn: turn,
        }
    }

    fn binding(&self) -> SocketAddr {
        self.installation.binding(TOUCHED).unwrap()
    }

    fn string_file(&self, rule: Rule) -> PathBuf {
        match rule {
            Rule::Listen => self.agent.string_file(TOUCHED),
            Rule::Send => self.sender.string_file(TOUCHED),
        }
    }

    /// Writes a connection string into the file of the process that goes by it.
    fn hand_out(&self, rule: Rule, key: Which) {
        write_secret(&self.string_file(rule), &self.string(rule, key)).unwrap();
    }

    /// Waits until every session that is registered has proven this key, of both roles.
    fn wait_for_key(&self, key: Which) {
        let proven = || {
            let report = self.installation.status().unwrap().relay?;
            let registrations = report.sessions.iter().flat_map(|session| {
                let of_it = session
                    .hycos
                    .iter()
                    .filter(|hyco| hyco.name.to_string() == TOUCHED);
                of_it.map(|hyco| (session.role, hyco.key))
            });
            let found: Vec<_> = registrations.collect();
            let both = [Role::Agent, Role::Sender]
                .iter()
                .all(|role| found.iter().any(|(of, _)| of == role));
            (both && found.iter().all(|(_, of)| *of == key)).then_some(())
        };
        wait_for(
            &format!("every session to prove the {key} key"),
            MOMENT,
            proven,
        )
        .unwrap();
    }

    /// Makes a key anew, and waits until the relay refuses what it was.
    fn make_anew(&self, rule: Rule, key: Which) {
        let old = self.string(rule, key);
        self.installation.regenerate(TOUCHED, rule, key).unwrap();
        let refused = || {
            let ran = run_role(rule, &old, &["--check"]).unwrap();
            (ran.status.code() == Some(4)).then_some(())
        };
        wait_for(
            &format!("the old {key} {} key to be refused", rule.right()),
            MOMENT,
            refused,
        )
        .unwrap();
    }

    fn string(&self, rule: Rule, key: Which) -> String {
        let options: &[&str] = match key {
            Which::Primary => &[],
            Which::Secondary => &["--secondary"],
        };
        self.installation.string_of(TOUCHED, rule, options).unwrap()
    }

    /// One round: the key that nobody stands on dies and nobody notices; the other one dies, and
    /// with it what stands on it; a new string brings all back.
    fn kill_the_key(&self, rule: Rule, round: u64) {
        let what = format!("round {round}, {} key", rule.right());
        let address = match rule {
            Rule::Listen => self.binding(),
            Rule::Send => self.sender.address(TOUCHED).unwrap(),
        };
        let mut live = wait_for(&format!("{what}: a flow"), MOMENT, || {
            Talk::start(address).ok()
        })
        .unwrap();
        self.installation
            .regenerate(TOUCHED, rule, Which::Secondary)
            .unwrap();
        live.exchange()
            .unwrap_or_else(|error| panic!("{what}: the other key cut a flow: {error}"));

        let asked = Instant::now();
        self.installation
            .regenerate(TOUCHED, rule, Which::Primary)
            .unwrap();
        // The command returns when the files are written; a second counts from there.
        let made = Instant::now();
        let end = live.wait_for_end().unwrap_err();
        let took = made.elapsed();
        assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{what}");
        assert!(
            took < SECOND,
            "{what}: dead after {took:?}, {:?} from the command",
            asked.elapsed()
        );
        // A sender lets applications wait for a while: once is enough.
        if round == 0 {
            let refused = Talk::start(address).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{what}");
        }
        self.hand_out(rule, Which::Primary);
    }
}
