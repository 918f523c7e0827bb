//! Who may not: every way to be no agent, no sender, no relay and no manager of an installation.
//! All are refused, nothing is served, and only the relay's log tells some of them apart.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

#[path = "interop/stranger.rs"]
#[expect(dead_code, reason = "interop needs more of it")]
mod stranger;
#[path = "interop/wire.rs"]
#[expect(dead_code, reason = "interop needs more of it")]
mod wire;

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use quinn::{ConnectionError, VarInt};
use underpass_proto::sas::{self, SasRule};
use underpass_proto::{Rule, Which};
use underpass_tests::installation::{Installation, Io, Setup, run_role};
use underpass_tests::rest::Rest;
use underpass_tests::sender::Sender;
use underpass_tests::service::{Service, Talk};
use underpass_tests::{on_every_backend, turn};

use stranger::{Secret, Session, false_relay, read_frame, soon};
use wire::Register;

const NAME: &str = "payroll-sql";

/// Registers of each kind whose times are compared.
const TIMES: usize = 300;

/// Rounds of one session: the log tells of the first hundred refusals of each.
const ROUNDS: usize = 33;

/// How far medians of the kinds may lie apart: a reply takes some 100 µs, and other tests may have
/// built up the machine's load. Work that one kind alone is spared, such as a hash of the key, is
/// less; what would be seen is a name looked up elsewhere, or a pause.
const APART: Duration = Duration::from_micros(150);

on_every_backend! {
    fn wrong_key_wrong_rule_and_unknown_name_are_one_to_the_peer_and_three_in_the_log(io) {
        let scene = Scene::open(io);
        let listen = scene.secret(Rule::Listen);
        let send = scene.secret(Rule::Send);
        let kinds = [
            (Register::listen(NAME), listen.key.replace(|_: char| true, "A")),
            (Register::listen(NAME), send.key),
            (Register::listen("payroll-xyz"), listen.key),
        ];
        let mut medians = runtime().block_on(async {
            let mut session = Session::greet(scene.installation.listen(), &listen.pin).await;
            let mut took = [(); 3].map(|()| Vec::new());
            for round in 0..TIMES {
                if round % ROUNDS == 0 {
                    session = Session::greet(scene.installation.listen(), &listen.pin).await;
                }
                for (kind, (register, key)) in kinds.iter().enumerate() {
                    let frame = register.frame(key, &session.exporter());
                    let asked = Instant::now();
                    session.say(&frame).await;
                    let mut refused = session.hear(wire::REFUSED).await;
                    took[kind].push(asked.elapsed());
                    assert_eq!((refused.text(), refused.u8()), (register.name.clone(), 1));
                    refused.end();
                }
            }
            session.has_no_flow().await;
            took.map(median)
        });
        underpass_loadtest::note!("medians: wrong key, wrong rule, unknown name {medians:?}");
        medians.sort();
        assert!(medians[2] - medians[0] < APART, "{medians:?}");
        let log = scene.installation.relay().as_ref().unwrap().stderr();
        for (name, why) in [(NAME, "wrong key"), (NAME, "wrong rule"), ("payroll-xyz", "unknown name")] {
            let told = log.lines().filter(|line| {
                line.contains("registration refused") && line.contains(name) && line.contains(why)
            });
            // The first of each cause and source are written, and some later ones with a count.
            let lines = told.count();
            assert!((20..TIMES).contains(&lines), "{why}: {lines} lines");
        }
        scene.assert_nothing_served();
    }

    fn a_relay_with_another_certificate_gets_no_session(io) {
        let scene = Scene::open(io);
        for rule in [Rule::Listen, Rule::Send] {
            let string = scene.installation.string_of(NAME, rule, &[]).unwrap();
            let pin = Secret::parse(&string).pin;
            let other = format!("{:0>64x}", 0xbad);
            let ran = run_role(rule, &string.replace(&pin, &other), &["--check"]).unwrap();
            assert_eq!(ran.status.code(), Some(5), "{}", ran.stderr);
            assert!(ran.stderr.contains("certificate is not"), "{}", ran.stderr);
        }
        let log = scene.installation.relay().as_ref().unwrap().stderr();
        assert!(!log.contains("registered"), "{log}");
        scene.assert_nothing_served();
    }

    fn a_senders_register_from_another_session_is_refused(io) {
        let scene = Scene::open(io);
        let secret = scene.secret(Rule::Send);
        let register = Register { rule: wire::SEND, ..Register::listen(NAME) };
        runtime().block_on(async {
            let mut first = greet_as_sender(&scene.installation, &secret.pin).await;
            let stolen = register.frame(&secret.key, &first.exporter());
            first.say(&stolen).await;
            first.hear(wire::REGISTERED).await;
            let mut thief = greet_as_sender(&scene.installation, &secret.pin).await;
            thief.say(&stolen).await;
            let mut refused = thief.hear(wire::REFUSED).await;
            assert_eq!((refused.text().as_str(), refused.u8()), (NAME, 1));
            first.connection.close(VarInt::from_u32(0), b"");
        });
        scene.assert_nothing_served();
    }

    fn a_sender_says_nothing_to_a_relay_that_does_not_prove_the_key(io) {
        let _turn = turn::shared();
        // Nothing runs in this directory: its relay's place is taken, by one that has even its
        // certificate.
        let installation = Installation::new(Setup::new(io)).unwrap();
        installation.define(NAME, "127.0.0.1:1433").unwrap();
        installation.string_of(NAME, Rule::Send, &[]).unwrap();
        runtime().block_on(async {
            let relay = false_relay(&installation, installation.listen());
            let sender = Sender::start_unregistered(&installation, Setup::new(io), &[NAME]).unwrap();
            let incoming = soon("the sender to dial", relay.accept()).await.unwrap();
            let connection = soon("the handshake", incoming.into_future()).await.unwrap();
            let control = soon("the control stream", connection.accept_bi()).await;
            let (mut to_sender, mut from_sender) = control.unwrap();
            let mut hello = soon("Hello", read_frame(&mut from_sender, wire::HELLO)).await;
            assert_eq!((hello.u16(), hello.u8()), (1, 2), "version and role");
            let welcome = [&[1, 0], 0_u64.to_be_bytes().as_slice(), &[0]].concat();
            to_sender.write_all(&wire::frame(wire::WELCOME, &welcome)).await.unwrap();
            soon("Register", read_frame(&mut from_sender, wire::REGISTER)).await;
            let mut application = TcpStream::connect(sender.address(NAME).unwrap()).unwrap();
            application.write_all(b"secret question").unwrap();
            let body = [wire::text(NAME), wire::text("127.0.0.1"), 1433_u16.to_be_bytes().to_vec(), vec![7; 32]];
            to_sender.write_all(&wire::frame(wire::REGISTERED, &body.concat())).await.unwrap();
            match soon("the sender to leave", connection.closed()).await {
                ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code.into_inner(), 2),
                other => panic!("the session ended otherwise: {other}"),
            }
            let flow = connection.accept_bi().await;
            assert!(flow.is_err(), "the application's flow was opened");
        });
    }
}

#[test]
fn agents_and_senders_that_may_not_end_with_4_and_are_served_nothing() {
    let scene = Scene::open(Io::Ring);
    let foreign = Installation::new(Setup::new(Io::Ring)).unwrap();
    foreign.define(NAME, "127.0.0.1:1433").unwrap();
    for (rule, other) in [(Rule::Listen, Rule::Send), (Rule::Send, Rule::Listen)] {
        let string = scene.installation.string_of(NAME, rule, &[]).unwrap();
        let key = Secret::parse(&string).key;
        // A relay that never knew this key, or knows it no more.
        let foreign_key = Secret::parse(&foreign.string_of(NAME, rule, &[]).unwrap()).key;
        scene
            .installation
            .regenerate(NAME, rule, Which::Secondary)
            .unwrap();
        let was = scene
            .installation
            .string_of(NAME, rule, &["--secondary"])
            .unwrap();
        scene
            .installation
            .regenerate(NAME, rule, Which::Secondary)
            .unwrap();
        for (what, wrong) in [
            (
                "the key of another relay",
                string.replace(&key, &foreign_key),
            ),
            ("a key that was made anew", was),
            (
                "the key of the other rule",
                string.replace(&key, &scene.secret(other).key),
            ),
            ("an unknown name", string.replace(NAME, "payroll-xyz")),
        ] {
            let ran = run_role(rule, &wrong, &[]).unwrap();
            assert_eq!(ran.status.code(), Some(4), "{what}: {}", ran.stderr);
            assert!(
                ran.stderr.contains("hint: ") && !ran.stderr.contains(&key),
                "{what}: {}",
                ran.stderr
            );
        }
    }
    scene.assert_nothing_served();
}

#[test]
fn an_expired_token_and_keys_that_may_not_manage_change_nothing() {
    let scene = Scene::open(Io::Poll);
    let rest = Rest::of(&scene.installation).unwrap();
    let path = "/v1/hybridconnections/added-by-rest";
    let body = r#"{"host": "db01.corp", "port": 1433}"#;
    let put = |token: &str| rest.ask_with(token, "PUT", path, body).unwrap();

    let expired = put(&rest.token(-3600).unwrap());
    assert_eq!(expired.status, 401, "{}", expired.body);
    assert!(
        expired.body.contains("expired") && expired.body.contains("ago"),
        "{}",
        expired.body
    );

    let listener = scene.secret(Rule::Listen).key.parse().unwrap();
    let uri = rest.uri(&format!("/{NAME}"));
    let expires = u64::MAX / 2;
    let token = sas::make(&uri, SasRule::Hyco(Rule::Listen), &listener, expires);
    let without_right = rest
        .ask_with(
            &token,
            "DELETE",
            &format!("/v1/hybridconnections/{NAME}"),
            "",
        )
        .unwrap();
    assert_eq!(without_right.status, 403, "{without_right:?}");

    let forged = sas::make(&rest.uri("/"), SasRule::Manage, &listener, expires);
    assert_eq!(put(&forged).status, 401);
    assert_eq!(put("").status, 401);

    assert!(!scene.installation.definition("added-by-rest").exists());
    assert!(scene.installation.definition(NAME).exists());
    put(&rest.token(60).unwrap()).well().unwrap();
    assert!(scene.installation.definition("added-by-rest").exists());
}

/// One hybrid connection that nobody listens on.
struct Scene {
    installation: Installation,
    service: Service,
    _turn: turn::Turn,
}

impl Scene {
    fn open(io: Io) -> Self {
        // Times are compared.
        let turn = turn::alone();
        let service = Service::start(b'a').unwrap();
        let endpoint = service.address.to_string();
        let installation = Installation::start(Setup::new(io), &[(NAME, &endpoint)]).unwrap();
        Self {
            installation,
            service,
            _turn: turn,
        }
    }

    fn secret(&self, rule: Rule) -> Secret {
        Secret::parse(&self.installation.string_of(NAME, rule, &[]).unwrap())
    }

    /// The application is reset, the endpoint never dialled, and nobody is registered.
    fn assert_nothing_served(&self) {
        let binding = self.installation.binding(NAME).unwrap();
        let refused = Talk::start(binding).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
        assert_eq!(self.service.accepted(), 0);
        let listeners = self.installation.hyco(NAME).unwrap().unwrap().listeners;
        assert_eq!(listeners, 0);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

async fn greet_as_sender(installation: &Installation, pin: &str) -> Session {
    let mut session = Session::dial(installation.listen(), pin).await.unwrap();
    session
        .say(&wire::hello(1, 2, rand::random(), rand::random()))
        .await;
    session.hear(wire::WELCOME).await;
    session
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
