//! What is said of a hybrid connection, for each way that it can be.

use std::time::Instant;

use underpass_proto::snapshot::RegistrationReport;
use underpass_proto::{FlowCode, Which};

use super::*;

#[test]
fn nobody_is_told_as_nobody_and_since_when() {
    let mut scene = Scene::new();
    let health = scene.look(&[]);
    assert_eq!(health.state, HealthState::NoListener);
    assert_eq!(
        health.why.as_deref(),
        Some("no agent has registered since the relay started")
    );
    assert_eq!(health.since_unix_ms, 1_000);

    scene.view.listeners = vec![seen(1, reached())];
    scene.pass(5);
    assert_eq!(scene.look(&[(1, SessionState::Ready)]).since_unix_ms, 6_000);

    let left = scene.moment();
    scene.view.left = Some((left, "session lost: timed out".to_owned()));
    scene.view.listeners.clear();
    scene.pass(12);
    let health = scene.look(&[]);
    assert_eq!(
        health.why.as_deref(),
        Some("the last agent left 12 s ago: session lost: timed out")
    );
    assert_eq!(
        health.since_unix_ms, 6_000,
        "since it left, not since it was noticed"
    );
    scene.pass(200);
    let health = scene.look(&[]);
    assert_eq!(health.since_unix_ms, 6_000);
    assert!(health.why.expect("told").contains("left 3 min ago"));
}

#[test]
fn ready_is_said_only_where_every_agent_reached_the_endpoint() {
    let mut scene = Scene::new();
    scene.view.listeners = vec![seen(1, reached()), seen(2, reached())];
    let both = [(1, SessionState::Ready), (2, SessionState::Ready)];
    let health = scene.look(&both);
    assert_eq!((health.state, health.why), (HealthState::Ready, None));

    scene.view.listeners[1].last = failed(FlowCode::EndpointRefused);
    scene.pass(3);
    let health = scene.look(&both);
    assert_eq!(health.state, HealthState::Degraded);
    assert_eq!(health.since_unix_ms, 4_000);
    assert_eq!(
        health.why.as_deref(),
        Some("agent 02020202 (192.0.2.7:40112) to db01.corp:1433: endpoint refused the connection")
    );
    scene.pass(3);
    scene.view.listeners[1].last = failed(FlowCode::NameNotFound);
    let health = scene.look(&both);
    assert_eq!(
        health.since_unix_ms, 4_000,
        "another reason is no other state"
    );
    assert!(
        health
            .why
            .expect("told")
            .ends_with("endpoint's name is not found")
    );

    scene.view.listeners[1].last = reached();
    assert_eq!(scene.look(&both).state, HealthState::Ready);
}

#[test]
fn an_endpoint_that_was_never_dialled_is_not_ready_unless_probes_are_off() {
    let mut scene = Scene::new();
    scene.view.listeners = vec![seen(1, None)];
    let one = [(1, SessionState::Ready)];
    let health = scene.look(&one);
    assert_eq!(health.state, HealthState::Degraded);
    assert!(
        health
            .why
            .expect("told")
            .ends_with("endpoint not dialled yet")
    );
    assert_eq!(
        scene.told(),
        HealthState::NoListener,
        "the log waits for the dial"
    );

    scene.view.probing = Probing::Off;
    let health = scene.look(&one);
    assert_eq!(health.state, HealthState::Ready);
    assert_eq!(health.why.as_deref(), Some("not probed: probe is off"));

    scene.view.listeners[0].last = failed(FlowCode::EndpointTimedOut);
    assert_eq!(scene.look(&one).state, HealthState::Degraded);
    assert_eq!(scene.told(), HealthState::Degraded);
    scene.view.listeners[0].last = reached();
    assert_eq!(scene.look(&one).why, None);
}

#[test]
fn ready_says_what_it_rests_on_where_no_probe_follows() {
    let mut scene = Scene::new();
    scene.view.listeners = vec![seen(1, reached())];
    scene.view.listeners[0].rests = true;
    scene.view.listeners[0].probes = 10;
    scene.pass(7_200);
    let health = scene.look(&[(1, SessionState::Ready)]);
    assert_eq!(health.state, HealthState::Ready);
    assert_eq!(
        health.why.as_deref(),
        Some(
            "the endpoint was last reached 2 h ago; it is not probed again after 10 probes without a flow between, until one reaches it"
        )
    );
}

#[test]
fn an_agent_that_does_not_answer_degrades_though_another_session_of_it_does() {
    let mut scene = Scene::new();
    scene.view.listeners = vec![seen(1, reached())];
    let mut sessions = [(1, SessionState::Ready), (1, SessionState::Suspect)];
    for _ in 0..sessions.len() {
        let health = scene.look(&sessions);
        assert_eq!(health.state, HealthState::Degraded);
        assert_eq!(
            health.why.as_deref(),
            Some("agent 01010101 (192.0.2.7:40112) does not answer")
        );
        let listeners = listeners(&scene.view, &of(&sessions));
        assert_eq!(listeners[0].state, SessionState::Ready, "the best of them");
        sessions.reverse();
    }
    let draining = scene.look(&[(1, SessionState::Draining)]);
    assert!(draining.why.expect("told").ends_with("is draining"));
}

#[test]
fn of_many_causes_some_are_named_and_the_others_counted() {
    let mut scene = Scene::new();
    let refused = failed(FlowCode::EndpointRefused);
    scene.view.listeners = (1..=5).map(|number| seen(number, refused)).collect();
    let sessions: Vec<_> = (1..=5)
        .map(|number| (number, SessionState::Ready))
        .collect();
    let why = scene.look(&sessions).why.expect("told");
    assert_eq!(why.matches("agent ").count(), NAMED_MAX, "{why}");
    assert!(why.ends_with("; and 2 more"), "{why}");
}

#[test]
fn what_is_no_longer_defined_is_forgotten() {
    let mut scene = Scene::new();
    scene.look(&[]);
    assert_eq!(scene.states.0.len(), 1);
    let defined = [("payroll-sql", "db02.corp:1433", true)];
    scene.states.define(&Plan::of_test(&defined));
    assert_eq!(scene.states.0.len(), 1);
    scene.states.define(&Plan::of_test(&[]));
    assert_eq!(scene.states.last(&name()), Health::default());
}

struct Scene {
    states: States,
    view: View,
    start: Instant,
    seconds: u64,
}

impl Scene {
    fn new() -> Self {
        Self {
            states: States::default(),
            view: View {
                endpoint: "db01.corp:1433".parse().expect("an endpoint"),
                probing: Probing::Auto,
                listeners: Vec::new(),
                left: None,
            },
            start: Instant::now(),
            seconds: 1,
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.seconds += seconds;
    }

    fn moment(&self) -> Moment {
        Moment {
            now: self.start + Duration::from_secs(self.seconds),
            unix_ms: self.seconds * 1_000,
        }
    }

    fn look(&mut self, sessions: &[(u8, SessionState)]) -> Health {
        let moment = self.moment();
        self.states.look(moment, &name(), &self.view, &of(sessions))
    }

    fn told(&self) -> HealthState {
        self.states.0[&name()].told
    }
}

fn name() -> HycoName {
    "payroll-sql".parse().expect("a name")
}

fn remote() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 40_112))
}

fn seen(number: u8, last: Option<(Dial, Moment)>) -> Seen {
    Seen {
        who: Who {
            agent_id: AgentId([number; 16]),
            instance: Instance([number; 16]),
            remote: remote(),
        },
        worker: 0,
        last,
        probes: 1,
        rests: false,
    }
}

fn reached() -> Option<(Dial, Moment)> {
    dialled(None)
}

fn failed(code: FlowCode) -> Option<(Dial, Moment)> {
    dialled(Some(code))
}

fn dialled(failed: Option<FlowCode>) -> Option<(Dial, Moment)> {
    let dial = Dial {
        failed,
        latency: Duration::from_millis(2),
        by_flow: false,
    };
    let moment = Moment {
        now: Instant::now(),
        unix_ms: 5,
    };
    Some((dial, moment))
}

fn of(sessions: &[(u8, SessionState)]) -> Sessions {
    let report = |&(number, state): &(u8, SessionState)| SessionReport {
        role: Role::Agent,
        agent_id: AgentId([number; 16]),
        instance: Instance([number; 16]),
        remote: remote(),
        worker: 0,
        rtt_us: 100,
        mtu: 1_200,
        state,
        since_unix_ms: 1,
        hycos: vec![RegistrationReport {
            name: name(),
            rule: Rule::Listen,
            key_id: KeyId([1; 8]),
            key: Which::Primary,
        }],
    };
    let reports: Vec<_> = sessions.iter().map(report).collect();
    Sessions::by_hyco(&reports)
        .remove(&name())
        .unwrap_or_default()
}

#[test]
fn times_are_told_as_people_say_them() {
    let told =
        [0, 119, 120, 7_199, 7_200, 200_000].map(|seconds| ago(Duration::from_secs(seconds)));
    assert_eq!(told, ["0 s", "119 s", "2 min", "119 min", "2 h", "55 h"]);
}
