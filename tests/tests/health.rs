//! Whether the status tells the truth: endpoints that stop and come back, agents that die, several
//! of them, and nobody at all.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use underpass_proto::snapshot::{HealthState, HycoReport};
use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::feed_between::FeedBetween;
use underpass_tests::installation::{Installation, Io, Setup, run_underpass, terminate};
use underpass_tests::process::free_tcp_address;
use underpass_tests::promise::{LOST, SUSPECT, assert_within};
use underpass_tests::service::{Service, Talk};
use underpass_tests::{on_every_backend, turn};

const NAME: &str = "payroll-sql";
const OTHER: &str = "other-thing";

/// From a failed flow, or a probe, until the status says so: the relay reports each second. The
/// test looks by starting a process, on two shared cores.
const TOLD: Duration = Duration::from_secs(2 + MARGIN);
const MARGIN: u64 = 1;

on_every_backend! {
    fn an_endpoint_that_stops_degrades_and_one_that_is_back_is_ready(io) {
        let mut scene = Scene::open(io);
        let hyco = scene.wait_for_state(HealthState::Ready);
        assert_eq!(hyco.health.why, None);
        let dial = hyco.agents[0].dial.clone().unwrap();
        assert_eq!((dial.failed, dial.by_flow), (None, false), "a probe at registration");
        assert!(dial.latency_us > 0 && now_ms() - dial.unix_ms < 60_000);
        assert_eq!(scene.service().accepted(), 1);
        Talk::start(scene.binding).unwrap().finish().unwrap();
        let hyco = scene.wait_until("a flow to say the same", |hyco| {
            hyco.agents[0].dial.as_ref().is_some_and(|dial| dial.by_flow)
        });
        assert_eq!(hyco.health.state, HealthState::Ready);

        let address = scene.service().address;
        scene.service = None;
        let stopped_ms = now_ms();
        assert_eq!(Talk::start(scene.binding).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let failed = Instant::now();
        let hyco = scene.wait_for_state(HealthState::Degraded);
        assert_within(failed, TOLD);
        let why = hyco.health.why.unwrap();
        let agent = hyco.agents[0].agent_id.to_string();
        for part in [&agent[..8], &address.to_string(), &hyco.agents[0].remote.to_string(), "endpoint refused the connection"] {
            assert!(why.contains(part), "{part} in {why}");
        }
        assert!(hyco.health.since_unix_ms >= stopped_ms);
        let hyco = scene.wait_until("the ending", |hyco| hyco.last_ending.is_some());
        assert_eq!(hyco.last_ending.as_deref(), Some("endpoint: refused"));
        let log = scene.installation.relay().as_ref().unwrap().stderr();
        let failures = log.lines().filter(|line| line.contains("flow failed")).collect::<Vec<_>>();
        assert_eq!(failures.len(), 1, "{log}");
        for part in ["INFO", NAME, "endpoint: refused", "endpoint refused the connection"] {
            assert!(failures[0].contains(part), "{part} in {}", failures[0]);
        }
        assert!(log.lines().any(|line| line.contains("WARN") && line.contains("degraded")), "{log}");

        let back = Service::start_at(address, b'a').unwrap();
        wait_for("a probe of the endpoint", MOMENT, || (back.accepted() > 0).then_some(())).unwrap();
        let probed = Instant::now();
        let hyco = scene.wait_for_state(HealthState::Ready);
        assert_within(probed, TOLD);
        assert!(!hyco.agents[0].dial.as_ref().unwrap().by_flow);
        assert_eq!(Talk::start(scene.binding).unwrap().letter, b'a');
        let log = scene.installation.relay().as_ref().unwrap().stderr();
        assert_eq!(log.lines().filter(|line| line.contains("degraded")).count(), 1, "told once: {log}");
    }

    fn an_endpoint_that_is_not_there_is_seen_at_registration_and_found_again_without_any_flow(io) {
        let _turn = turn::shared();
        let address = free_tcp_address();
        let installation = Installation::start(setup(io), &[(NAME, &address.to_string())]).unwrap();
        let _agent = installation.start_agent(&[NAME], &[]).unwrap();
        let registered = Instant::now();
        let hyco = wait_for_state(&installation, NAME, HealthState::Degraded, |why| why.contains("refused"));
        assert_within(registered, TOLD);
        let dial = hyco.agents[0].dial.clone().unwrap();
        assert_eq!((dial.failed.as_deref(), dial.by_flow), (Some("refused"), false));

        let back = Service::start_at(address, b'a').unwrap();
        wait_for("a probe of the endpoint", MOMENT, || (back.accepted() > 0).then_some(())).unwrap();
        let probed = Instant::now();
        let hyco = wait_for_state(&installation, NAME, HealthState::Ready, |_| true);
        assert_within(probed, TOLD);
        assert_eq!(hyco.flows_total, 0);
    }

    fn a_changed_endpoint_is_probed_at_once(io) {
        let scene = Scene::open(io);
        scene.wait_for_state(HealthState::Ready);
        let gone = free_tcp_address();
        scene.installation.define(NAME, &gone.to_string()).unwrap();
        let changed = Instant::now();
        let hyco = scene.wait_for_state(HealthState::Degraded);
        // A second for the change itself.
        assert_within(changed, TOLD + Duration::from_secs(1));
        assert!(hyco.health.why.unwrap().contains(&gone.to_string()));
        scene.installation.define(NAME, &scene.service().address.to_string()).unwrap();
        let changed = Instant::now();
        let hyco = scene.wait_for_state(HealthState::Ready);
        assert_within(changed, TOLD + Duration::from_secs(1));
        assert_eq!(hyco.flows_total, 0);
    }

    fn without_an_agent_there_is_no_listener_and_the_status_says_since_when(io) {
        let _turn = turn::shared();
        let service = Service::start(b'a').unwrap();
        let begun = now_ms();
        let installation = Installation::start(setup(io), &[(NAME, &service.address.to_string())]).unwrap();
        let none = wait_for_state(&installation, NAME, HealthState::NoListener, |why| {
            why == "no agent has registered since the relay started"
        });
        let since = none.health.since_unix_ms;
        assert!((begun..=now_ms()).contains(&since), "{since}");

        let agent = installation.start_agent(&[NAME], &[]).unwrap();
        let ready = wait_for_state(&installation, NAME, HealthState::Ready, |_| true);
        assert!(ready.health.since_unix_ms > since);
        let asked = now_ms();
        assert_eq!(terminate(agent.process().as_mut().unwrap(), MOMENT).unwrap(), 0);
        let none = wait_for_state(&installation, NAME, HealthState::NoListener, |why| {
            why.starts_with("the last agent left ") && why.contains(" s ago: it ended its session: ")
        });
        let left = none.health.since_unix_ms;
        assert!((asked..=now_ms()).contains(&left), "{left}");
        // Time goes on, the state has not changed since.
        let later = wait_for_state(&installation, NAME, HealthState::NoListener, |why| why.contains("left 2 s ago"));
        assert_eq!(later.health.since_unix_ms, left);
        assert_eq!(Talk::start(installation.binding(NAME).unwrap()).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let refused = installation.wait_for_hyco(NAME, "the refusal", |hyco| hyco.flows_failed == 1);
        assert_eq!(refused.unwrap().last_ending.as_deref(), Some("agent: no_listener"));
    }

    fn a_killed_agent_is_told_within_its_liveness_bound(io) {
        let scene = Scene::open(io);
        scene.wait_for_state(HealthState::Ready);
        scene.agent.process().as_mut().unwrap().kill().unwrap();
        let killed = Instant::now();
        let hyco = scene.wait_for_state(HealthState::Degraded);
        assert_within(killed, SUSPECT + TOLD);
        assert!(hyco.health.why.unwrap().ends_with("does not answer"));
        let hyco = scene.wait_for_state(HealthState::NoListener);
        assert_within(killed, LOST + TOLD);
        let why = hyco.health.why.unwrap();
        assert!(why.contains("session lost"), "{why}");
    }

    fn a_restarted_agent_is_the_same_installation_and_takes_its_own_place(io) {
        let scene = Scene::open(io);
        let before = scene.wait_for_state(HealthState::Ready).agents[0].clone();
        let kept = scene.agent.config().with_file_name("underpass.identity");
        assert_eq!(std::fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o600);
        scene.agent.process().as_mut().unwrap().kill().unwrap();
        scene.agent.start().unwrap();
        let started = Instant::now();
        let hyco = scene.wait_until("the new process alone", |hyco| {
            hyco.agents.len() == 1 && hyco.agents[0].instance != before.instance
        });
        assert_within(started, TOLD + Duration::from_secs(1));
        assert_eq!(hyco.agents[0].agent_id, before.agent_id);
    }

    fn a_restarted_agent_takes_its_own_place_where_there_is_one_place(io) {
        let scene = Scene::open(io);
        let before = scene.wait_for_state(HealthState::Ready).agents[0].clone();
        scene.limit_to_one_listener();
        scene.agent.process().as_mut().unwrap().kill().unwrap();
        let restarted = Instant::now();
        scene.agent.start().unwrap();
        let hyco = scene.wait_until("the new process alone", |hyco| {
            hyco.agents.len() == 1 && hyco.agents[0].instance != before.instance
        });
        // It is refused once, and asks again a second later.
        assert_within(restarted, TOLD + Duration::from_secs(2));
        assert_eq!(hyco.agents[0].agent_id, before.agent_id);
        assert_eq!(Talk::start(scene.binding).unwrap().letter, b'a');
    }

    fn a_check_takes_no_place_causes_no_probe_and_leaves_nothing_behind(io) {
        let scene = Scene::open(io);
        let before = scene.wait_for_state(HealthState::Ready).agents[0].clone();
        scene.limit_to_one_listener();
        let accepted = scene.service().accepted();
        let config = scene.agent.config();
        let check = || {
            let ran = run_underpass(&["agent", "run", "--check", "--config", config.to_str().unwrap()]).unwrap();
            assert_eq!(ran.status.code(), Some(0), "{}", ran.stderr);
            assert!(ran.stdout.contains(NAME), "{}", ran.stdout);
        };
        // The only place is taken, by the agent that is checked.
        check();
        let after = scene.wait_until("the agent alone", |hyco| hyco.listeners == 1);
        assert_eq!(after.agents[0].instance, before.instance);
        assert_eq!(terminate(scene.agent.process().as_mut().unwrap(), MOMENT).unwrap(), 0);
        scene.wait_for_state(HealthState::NoListener);
        assert_eq!(scene.service().accepted(), accepted);
        // And it is free at once for the agent that starts after a check.
        check();
        scene.agent.start().unwrap();
        scene.agent.wait_until_registered(NAME).unwrap();
        let log = scene.agent.process().as_ref().unwrap().stderr();
        assert!(!log.contains("too many listeners"), "{log}");
        let relay = scene.installation.relay().as_ref().unwrap().stderr();
        assert_eq!(relay.lines().filter(|line| line.contains("checked")).count(), 2, "{relay}");
    }

    fn of_two_agents_the_one_that_reaches_the_endpoint_gets_every_flow(io) {
        let scene = Scene::open(io);
        let new = Service::start(b'b').unwrap();
        // The first agent may dial the old endpoint alone, the second one the new.
        scene.installation.define(NAME, &new.address.to_string()).unwrap();
        let second = scene.installation.start_agent(&[NAME], &[]).unwrap();
        let hyco = scene.wait_until("both to have dialled the new one", |hyco| {
            let dialled = hyco.agents.iter().filter(|agent| agent.dial.is_some()).count();
            dialled == 2 && hyco.health.why.as_ref().is_some_and(|why| why.contains("allow-list"))
        });
        assert_eq!(hyco.health.state, HealthState::Degraded);
        let failed: Vec<_> = hyco.agents.iter().filter_map(|agent| agent.dial.clone()?.failed).collect();
        assert_eq!(failed, ["not_allowed"]);
        for _ in 0..100 {
            let talk = Talk::start(scene.binding).unwrap();
            assert_eq!(talk.letter, b'b');
            talk.finish().unwrap();
        }
        let log = scene.installation.relay().as_ref().unwrap().stderr();
        assert!(!log.contains("tried elsewhere"), "the failing one was asked: {log}");

        // Health orders the choice, and does not empty it: the endpoint that the first may dial is
        // back.
        second.process().as_mut().unwrap().kill().unwrap();
        scene.installation.define(NAME, &scene.service().address.to_string()).unwrap();
        wait_for("flows by the first agent", MOMENT, || Talk::start(scene.binding).ok().filter(|talk| talk.letter == b'a')).unwrap();
    }

    fn with_probe_off_nothing_is_dialled_but_flows(io) {
        let _turn = turn::shared();
        let (quiet, probed) = (Service::start(b'q').unwrap(), Service::start(b'p').unwrap());
        let installation = Installation::start(setup(io), &[
            (NAME, &quiet.address.to_string()),
            (OTHER, &probed.address.to_string()),
        ])
        .unwrap();
        append(&installation, NAME, "probe = \"off\"\n");
        wait_for("the definition to be applied", MOMENT, || {
            let status = installation.status().unwrap();
            (status.applied == Some(status.generation) && status.generation.number > 1).then_some(())
        })
        .unwrap();
        let _agent = installation.start_agent(&[NAME, OTHER], &[]).unwrap();
        let off = wait_for_state(&installation, NAME, HealthState::Ready, |why| why == "not probed: probe is off");
        assert!(off.agents[0].dial.is_none());
        // The other one, registered at the same time, was dialled long ago.
        wait_for_state(&installation, OTHER, HealthState::Ready, |_| true);
        assert_eq!((probed.accepted(), quiet.accepted()), (1, 0));
        Talk::start(installation.binding(NAME).unwrap()).unwrap().finish().unwrap();
        installation
            .wait_for_hyco(NAME, "the flow", |hyco| {
                hyco.health.why.is_none() && hyco.agents[0].dial.as_ref().is_some_and(|dial| dial.by_flow)
            })
            .unwrap();
        assert_eq!(quiet.accepted(), 1);
        // A person who asks is answered, and the state stays what flows say.
        let directory = installation.directory();
        let arguments = ["probe", NAME, "--json", "--dir", directory.to_str().unwrap()];
        let ran = run_underpass(&arguments).unwrap();
        let probed: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(probed["reached"], true, "{probed}");
        wait_for("the probe's connection", MOMENT, || (quiet.accepted() == 2).then_some(())).unwrap();
        let hyco = installation.hyco(NAME).unwrap().unwrap();
        assert!(hyco.agents[0].dial.as_ref().is_some_and(|dial| dial.by_flow));
    }

    fn every_key_says_who_stands_on_it_and_when_it_was_last_used(io) {
        let scene = Scene::open(io);
        let hyco = scene.wait_until("a key in use", |hyco| {
            // One session on each of the two workers.
            hyco.keys.iter().any(|key| key.registrations == 2 && now_ms() - key.last_used_unix_ms < 10_000)
        });
        assert_eq!(hyco.keys.len(), 1);
        assert_eq!(terminate(scene.agent.process().as_mut().unwrap(), MOMENT).unwrap(), 0);
        let ended = now_ms();
        let hyco = scene.wait_until("a key out of use", |hyco| hyco.keys[0].registrations == 0);
        assert!(hyco.keys[0].last_used_unix_ms <= ended);
    }

    fn a_lowered_limit_on_listeners_ends_the_newest(io) {
        let scene = Scene::open(io);
        let mut live = Talk::start(scene.binding).unwrap();
        let second = scene.installation.start_agent(&[NAME], &[]).unwrap();
        scene.wait_until("both agents to listen", |hyco| hyco.listeners == 2);
        append(&scene.installation, NAME, "[limits]\nlisteners_max = 1\n");
        let line = second.process().as_mut().unwrap().wait_for_line("registration ended", MOMENT).unwrap();
        assert!(line.contains("too many listeners"), "{line}");
        scene.wait_until("one agent to be left", |hyco| hyco.listeners == 1);
        live.exchange().unwrap();
        live.finish().unwrap();
        Talk::start(scene.binding).unwrap().finish().unwrap();
        assert!(!scene.agent.process().as_ref().unwrap().stderr().contains("registration ended"));
    }

    fn control_asks_and_every_listener_answers_hop_by_hop(io) {
        let scene = Between::open(io);
        let second = scene.installation.start_agent(&[NAME], &[]).unwrap();
        scene.installation.wait_for_hyco(NAME, "both agents", |hyco| hyco.listeners == 2).unwrap();
        let before = scene.service.accepted();
        let report = scene.feed.probe(7, NAME).unwrap();
        assert!(report.known);
        assert_eq!(report.agents.len(), 2);
        for agent in &report.agents {
            let dial = agent.dial.as_ref().unwrap();
            assert_eq!((dial.failed.as_deref(), dial.address), (None, Some(scene.service.address)));
            assert!(agent.rtt_us > 0 && agent.remote.ip().is_loopback());
        }
        wait_for("both dials", MOMENT, || (scene.service.accepted() >= before + 2).then_some(())).unwrap();

        assert!(!scene.feed.probe(8, "nobody-knows").unwrap().known);
        drop(second);
        let address = scene.service.address;
        drop(scene.service);
        let report = scene.feed.probe(9, NAME).unwrap();
        let refused = report.agents.iter().filter_map(|agent| agent.dial.as_ref()).find(|dial| dial.failed.is_some()).unwrap();
        assert_eq!(refused.failed.as_deref(), Some("refused"));
        assert_eq!(refused.why.as_deref(), Some("endpoint refused the connection"));
        assert_eq!(refused.address, Some(address));
    }

    fn a_person_who_asks_is_told_at_once(io) {
        let mut scene = Scene::open(io);
        let directory = scene.installation.directory();
        let probe = || {
            let arguments = ["probe", NAME, "--json", "--dir", directory.to_str().unwrap()];
            let ran = run_underpass(&arguments).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
            (ran.status.code(), answer["agents"][0]["dial"].clone())
        };
        let (code, dial) = probe();
        assert_eq!((code, dial["failed"].as_str()), (Some(0), None), "{dial}");
        assert_eq!(dial["address"], scene.service().address.to_string());
        scene.service = None;
        let asked = Instant::now();
        let (code, dial) = probe();
        assert_eq!((code, dial["failed"].as_str()), (Some(1), Some("refused")), "{dial}");
        scene.wait_for_state(HealthState::Degraded);
        assert_within(asked, TOLD);
    }

    fn over_quota_new_flows_are_refused_and_live_ones_go_on(io) {
        let scene = Between::open(io);
        let mut live = Talk::start(scene.binding).unwrap();
        scene.feed.change(|snapshot| snapshot.hycos[0].over_quota = true).unwrap();
        let error = wait_for("a new flow to be refused", MOMENT, || Talk::start(scene.binding).err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        live.exchange().unwrap();
        scene
            .installation
            .wait_for_hyco(NAME, "the reason", |hyco| {
                hyco.last_ending.as_deref() == Some("relay: over_quota") && hyco.flows_failed > 0
            })
            .unwrap();
        scene.feed.change(|snapshot| snapshot.hycos[0].over_quota = false).unwrap();
        wait_for("a new flow", MOMENT, || Talk::start(scene.binding).ok()).unwrap();
        live.exchange().unwrap();
        live.finish().unwrap();
    }
}

/// One hybrid connection with one agent.
struct Scene {
    service: Option<Service>,
    installation: Installation,
    agent: Agent,
    binding: SocketAddr,
    _turn: turn::Turn,
}

impl Scene {
    fn open(io: Io) -> Self {
        let turn = turn::shared();
        let service = Service::start_at(free_tcp_address(), b'a').unwrap();
        let endpoint = service.address.to_string();
        let installation = Installation::start(setup(io), &[(NAME, &endpoint)]).unwrap();
        let agent = installation.start_agent(&[NAME], &[]).unwrap();
        Self {
            service: Some(service),
            binding: installation.binding(NAME).unwrap(),
            installation,
            agent,
            _turn: turn,
        }
    }

    fn service(&self) -> &Service {
        self.service.as_ref().unwrap()
    }

    /// Waits until the relay goes by it.
    fn limit_to_one_listener(&self) {
        append(&self.installation, NAME, "[limits]\nlisteners_max = 1\n");
        wait_for("the definition to be applied", MOMENT, || {
            let status = self.installation.status().unwrap();
            let is_newest = status.applied == Some(status.generation);
            (is_newest && status.generation.number > 1).then_some(())
        })
        .unwrap();
    }

    fn wait_for_state(&self, state: HealthState) -> HycoReport {
        wait_for_state(&self.installation, NAME, state, |_| true)
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&HycoReport) -> bool) -> HycoReport {
        self.installation.wait_for_hyco(NAME, what, is_so).unwrap()
    }
}

/// The same, with something between control and the relay.
struct Between {
    service: Service,
    feed: FeedBetween,
    installation: Installation,
    _agent: Agent,
    binding: SocketAddr,
    _turn: turn::Turn,
}

impl Between {
    fn open(io: Io) -> Self {
        let turn = turn::shared();
        let service = Service::start_at(free_tcp_address(), b'a').unwrap();
        let installation = Installation::new(setup(io)).unwrap();
        installation
            .define(NAME, &service.address.to_string())
            .unwrap();
        installation.start_control().unwrap();
        let socket = installation.directory().join("run").join("control.sock");
        let feed = FeedBetween::start(&socket).unwrap();
        installation.start_relay_on(&feed.directory()).unwrap();
        let binding = installation.binding(NAME).unwrap();
        let agent = installation.start_agent(&[NAME], &[]).unwrap();
        Self {
            service,
            feed,
            installation,
            _agent: agent,
            binding,
            _turn: turn,
        }
    }
}

/// One session for each agent would hide what two workers must agree on.
fn setup(io: Io) -> Setup {
    Setup {
        workers: 2,
        ..Setup::new(io)
    }
}

/// Waits until the status says so, with this reason ("" where there is none).
fn wait_for_state(
    installation: &Installation,
    name: &str,
    state: HealthState,
    why: impl Fn(&str) -> bool,
) -> HycoReport {
    let is_so = |hyco: &HycoReport| {
        hyco.health.state == state && why(hyco.health.why.as_deref().unwrap_or(""))
    };
    installation
        .wait_for_hyco(name, &format!("{state:?}"), is_so)
        .unwrap()
}

fn append(installation: &Installation, name: &str, text: &str) {
    let old = std::fs::read_to_string(installation.definition(name)).unwrap();
    installation
        .write_definition(name, &format!("{old}{text}"))
        .unwrap();
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
