//! How registrations come and go while a session lives: given back, one too many, out of order, and
//! what an agent's file no longer names.

use std::fs;
use std::net::TcpListener;
use std::time::Instant;

use quinn::{ConnectionError, TransportConfig, VarInt};
use tokio::io::AsyncWriteExt;
use underpass_proto::snapshot::{HycoReport, ListenerReport, SessionState};
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Setup, write_secret};
use underpass_tests::promise::NOT_NOTICED;
use underpass_tests::service::{Service, Talk};
use underpass_tests::{on_every_backend, turn};

use crate::bounds::OVERLOADED;
use crate::stranger::Session;
use crate::wire::{self, Register};
use crate::{NAME, Relay, StrangeRelay, runtime, soon, with_relay};

const OTHER: &str = "orders-sql";

/// Code of a session whose peer broke the protocol.
const PROTOCOL: u64 = 1;

/// Code of a Register beyond `listeners_max`.
const TOO_MANY_LISTENERS: u8 = 2;

on_every_backend! {
    fn a_registration_that_is_given_back_leaves_its_flows_alone_and_can_be_had_again(io) {
        with_relay(io, async |relay: Relay| {
            let mut session = relay.register(&relay.secret.key).await;
            let mut flow = relay.flow(&session.connection).await;
            flow.say_opened().await;
            // Of a name that it never had: nothing happens.
            session.say(&wire::frame(wire::DEREGISTER, &wire::text("no-such-name"))).await;
            session.say(&wire::frame(wire::DEREGISTER, &wire::text(NAME))).await;
            relay.listeners(0);
            relay.resets_applications().await;
            session.has_no_flow().await;
            flow.socket.write_all(b"still here").await.unwrap();
            flow.hear(b"still here").await;
            relay.register_on(&mut session, &relay.secret.key).await;
            assert_eq!(relay.flow(&session.connection).await.name, NAME);
        });
    }

    fn a_listener_beyond_what_the_definition_allows_is_refused_until_there_is_room(io) {
        with_relay(io, async |relay: Relay| {
            let mut first = relay.register(&relay.secret.key).await;
            let text = fs::read_to_string(relay.installation.definition(NAME)).unwrap();
            let text = format!("{text}\n[limits]\nlisteners_max = 1\n");
            relay.installation.write_definition(NAME, &text).unwrap();
            // The limit applies in a moment; who came before that goes again.
            let end = Instant::now() + MOMENT;
            let mut second = loop {
                let mut second = Session::greet(relay.listen, &relay.secret.pin).await;
                second.say(&listener(&relay, &second)).await;
                let (kind, mut answer) = second.hear_any().await;
                assert_eq!(answer.text(), NAME);
                if kind == wire::REFUSED {
                    assert_eq!(answer.u8(), TOO_MANY_LISTENERS);
                    break second;
                }
                assert!(Instant::now() < end, "two listeners where one may be");
            };
            // The first is not disturbed, and when it goes the second may come.
            relay.listeners(1);
            assert_eq!(relay.flow(&first.connection).await.name, NAME);
            first.say(&wire::frame(wire::DEREGISTER, &wire::text(NAME))).await;
            relay.listeners(0);
            relay.register_on(&mut second, &relay.secret.key).await;
            assert_eq!(relay.flow(&second.connection).await.name, NAME);
        });
    }

    fn an_answer_to_no_question_is_ignored_and_who_drains_gets_no_flow_that_another_can_have(io) {
        with_relay(io, async |relay: Relay| {
            let mut session = relay.register(&relay.secret.key).await;
            let probed = [wire::text(NAME), 77_u64.to_be_bytes().to_vec(), vec![0], vec![0; 8], vec![0]];
            session.say(&wire::frame(wire::PROBED, &probed.concat())).await;
            let mut flow = relay.flow(&session.connection).await;
            flow.say_opened().await;
            let mut other = Session::greet(relay.listen, &relay.secret.pin).await;
            relay.register_on(&mut other, &relay.secret.key).await;
            session.say(&wire::frame(wire::DRAINING, &[])).await;
            relay.draining();
            for _ in 0..4 {
                assert_eq!(relay.flow(&other.connection).await.name, NAME);
            }
            session.has_no_flow().await;
            flow.socket.write_all(b"to its end").await.unwrap();
            flow.hear(b"to its end").await;
        });
    }

    fn who_asks_in_vain_without_end_fills_no_log_and_is_sent_away(io) {
        with_relay(io, async |relay: Relay| {
            let honest = relay.register(&relay.secret.key).await;
            let mut session = Session::greet(relay.listen, &relay.secret.pin).await;
            let exporter = session.exporter();
            let register = Register::listen("no-such-name").frame(&relay.secret.key, &exporter);
            let hundred = register.repeat(100);
            while session.to_relay.write_all(&hundred).await.is_ok() {}
            session.assert_flood_closed(OVERLOADED).await;
            relay.pressure(|pressure| pressure.sessions_sent_away == 1);
            assert_eq!(relay.flow(&honest.connection).await.name, NAME);
            let log = relay.installation.relay().as_ref().unwrap().stderr();
            let told = log.matches("registration refused").count();
            // A burst, and one in two seconds.
            assert!((20..100).contains(&told), "{told} lines");
        });
    }

    fn a_session_that_registers_without_end_fills_no_log_and_is_sent_away(io) {
        with_relay(io, async |relay: Relay| {
            let honest = relay.register(&relay.secret.key).await;
            let mut flow = relay.flow(&honest.connection).await;
            flow.say_opened().await;
            let mut session = Session::greet(relay.listen, &relay.secret.pin).await;
            let exporter = session.exporter();
            let register = Register::listen(NAME).frame(&relay.secret.key, &exporter);
            let hundred = register.repeat(100);
            // On a thread of its own.
            let flood = tokio::spawn(async move {
                while session.to_relay.write_all(&hundred).await.is_ok() {}
                session.assert_flood_closed(OVERLOADED).await;
            });
            // Flows and newcomers have their turn meanwhile.
            let (mut of_flow, mut of_newcomer) = (Vec::new(), Vec::new());
            while of_flow.is_empty() || !flood.is_finished() {
                let began = Instant::now();
                flow.socket.write_all(b"beside").await.unwrap();
                flow.hear(b"beside").await;
                of_flow.push(began.elapsed());
                let began = Instant::now();
                drop(Session::greet(relay.listen, &relay.secret.pin).await);
                of_newcomer.push(began.elapsed());
            }
            flood.await.unwrap();
            relay.pressure(|pressure| pressure.sessions_sent_away == 1);
            for waited in [of_flow, of_newcomer] {
                let longest = waited.iter().max().unwrap();
                assert!(*longest < NOT_NOTICED / 2, "waited {longest:?}");
            }
            let log = relay.installation.relay().as_ref().unwrap().stderr();
            let lines = log.lines().filter(|line| line.contains("registered")).count();
            assert!((2..100).contains(&lines), "{lines} lines");
        });
    }

    fn who_does_not_hear_what_it_is_told_is_sent_away(io) {
        with_relay(io, async |relay: Relay| {
            let mut transport = TransportConfig::default();
            transport.stream_receive_window(VarInt::from_u32(1_024));
            let mut session = Session::dial_with(relay.listen, &relay.secret.pin, transport).await.unwrap();
            session.say(&wire::hello(1, 1, rand::random(), rand::random())).await;
            let exporter = session.exporter();
            let register = Register::listen("no-such-name").frame(&relay.secret.key, &exporter);
            let hundred = register.repeat(100);
            while session.to_relay.write_all(&hundred).await.is_ok() {}
            session.assert_flood_closed(PROTOCOL).await;
        });
    }

    fn a_relay_that_breaks_the_protocol_is_left(io) {
        let _turn = turn::shared();
        runtime().block_on(async {
            for (what, said) in [
                ("an Open on the control stream", wire::frame(wire::OPEN, &[])),
                ("a Welcome cut short", wire::frame(wire::WELCOME, &[])),
                ("a frame that is too long", vec![wire::REGISTERED, 0xff, 0xff]),
            ] {
                let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
                let mut relay = StrangeRelay::meet(io, endpoint.local_addr().unwrap()).await;
                let key = relay.key.clone();
                relay.prove(&key).await;
                relay.to_agent.write_all(&said).await.unwrap();
                match soon("the agent to leave", relay.connection.closed()).await {
                    ConnectionError::ApplicationClosed(close) => {
                        assert_eq!(close.error_code.into_inner(), PROTOCOL, "{what}");
                    }
                    other => panic!("{what}: the session ended otherwise: {other}"),
                }
            }
        });
    }

    fn an_agent_gives_back_what_its_file_no_longer_names(io) {
        let _turn = turn::shared();
        let services = [b'p', b'o'].map(|letter| Service::start(letter).unwrap());
        let endpoints = services.each_ref().map(|service| service.address.to_string());
        let definitions = [(NAME, &*endpoints[0]), (OTHER, &*endpoints[1])];
        let installation = Installation::start(Setup::new(io), &definitions).unwrap();
        let agent = installation.start_agent(&[NAME, OTHER], &[]).unwrap();
        let [payroll, orders] = [NAME, OTHER].map(|name| installation.binding(name).unwrap());
        let mut before = Talk::start(orders).unwrap();
        let both = fs::read_to_string(agent.config()).unwrap();
        let (one, _) = both.rsplit_once("[[connect]]").unwrap();
        fs::write(agent.config(), one).unwrap();
        installation.wait_for_hyco(OTHER, "no listener", |hyco| hyco.listeners == 0).unwrap();
        // The flow that is there goes on, a new one finds nobody, and the other hybrid connection
        // notices nothing.
        before.exchange().unwrap();
        assert!(Talk::start(orders).is_err(), "served by nobody");
        assert_eq!(Talk::start(payroll).unwrap().letter, b'p');
        fs::write(agent.config(), both).unwrap();
        installation.wait_for_hyco(OTHER, "its listener", |hyco| hyco.listeners == 1).unwrap();
        assert_eq!(Talk::start(orders).unwrap().letter, b'o');
        before.exchange().unwrap();
    }

    fn an_agent_goes_to_a_relay_that_its_file_names_anew_and_leaves_it_when_it_is_named_no_more(io) {
        let _turn = turn::shared();
        let services = [b'p', b'o'].map(|letter| Service::start(letter).unwrap());
        let start = |name: &str, service: &Service| {
            Installation::start(Setup::new(io), &[(name, &*service.address.to_string())]).unwrap()
        };
        let (here, there) = (start(NAME, &services[0]), start(OTHER, &services[1]));
        let agent = here.start_agent(&[NAME], &[]).unwrap();
        let one = fs::read_to_string(agent.config()).unwrap();
        write_secret(&agent.string_file(OTHER), &there.connection_string(OTHER).unwrap()).unwrap();
        let both = format!("{one}[[connect]]\nstring_file = \"{OTHER}.connection\"\n");
        fs::write(agent.config(), both).unwrap();
        there.wait_for_hyco(OTHER, "its listener", |hyco| hyco.listeners == 1).unwrap();
        let mut before = Talk::start(there.binding(OTHER).unwrap()).unwrap();
        fs::write(agent.config(), one).unwrap();
        there.wait_for_hyco(OTHER, "no listener", |hyco| hyco.listeners == 0).unwrap();
        // The session stays for as long as the flow does.
        before.exchange().unwrap();
        before.finish().unwrap();
        let sessions = || there.status().ok()?.relay?.sessions.is_empty().then_some(());
        wait_for("the session to end", MOMENT, sessions).unwrap();
        assert_eq!(Talk::start(here.binding(NAME).unwrap()).unwrap().letter, b'p');
    }
}

/// A listener's Register for this session, with the right key.
fn listener(relay: &Relay, session: &Session) -> Vec<u8> {
    Register::listen(NAME).frame(&relay.secret.key, &session.exporter())
}

impl Relay {
    /// Waits until it has so many listeners.
    fn listeners(&self, count: u32) {
        let what = format!("{count} listeners");
        let has = |hyco: &HycoReport| hyco.listeners == count;
        self.installation.wait_for_hyco(NAME, &what, has).unwrap();
    }

    /// Waits until it knows that its listener drains.
    fn draining(&self) {
        let drains = |agent: &ListenerReport| agent.state == SessionState::Draining;
        let has = |hyco: &HycoReport| hyco.agents.iter().any(drains);
        let found = self
            .installation
            .wait_for_hyco(NAME, "one that drains", has);
        found.unwrap();
    }
}
