//! Peers built on the unmodified `quinn` crate from the wire's description alone, against the real
//! relay and the real agent.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod bounds;
mod logs;
mod registrations;
mod stranger;
mod wire;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use underpass_tests::agent::Agent;
use underpass_tests::installation::{Installation, Io, Setup};
use underpass_tests::{on_every_backend, turn};

use stranger::{Secret, Session, exporter, false_relay, read_frame, soon};
use wire::Register;

const NAME: &str = "payroll-sql";
const HOST: &str = "db01.corp";
const PORT: u16 = 1433;

/// Code of a flow whose TCP peer reset it.
const RESET: u32 = 1;
/// Code of a flow whose endpoint refused the connection.
const ENDPOINT_REFUSED: u32 = 16;

/// Code with which a session is closed whose other side could not prove itself.
const NOT_AUTHORISED: u64 = 2;

on_every_backend! {
    fn a_strange_agent_registers_and_carries_flows(io) {
        with_relay(io, async |relay: Relay| {
            let session = relay.register(&relay.secret.key).await;
            requests_and_answers_with_half_closes(&relay, &session).await;
            a_reset_of_the_application_arrives(&relay, &session).await;
            a_reset_of_the_endpoint_arrives(&relay, &session).await;
            a_refusal_resets_the_application(&relay, &session).await;
        });
    }

    fn wrong_keys_and_unknown_names_are_refused_alike_and_served_nothing(io) {
        with_relay(io, async |relay: Relay| {
            let wrong_key = relay.secret.key.replace(|_: char| true, "A");
            let sender = Register { rule: wire::SEND, ..Register::listen(NAME) };
            for (register, key) in [
                (Register::listen(NAME), &wrong_key),
                (Register::listen("no-such-name"), &relay.secret.key),
                // A key that may listen may not send.
                (sender, &relay.secret.key),
            ] {
                let mut session = Session::greet(relay.listen, &relay.secret.pin).await;
                session.say(&register.frame(key, &session.exporter())).await;
                assert_refused(&mut session, &register.name).await;
                relay.resets_applications().await;
                session.has_no_flow().await;
            }
        });
    }

    fn a_register_from_another_session_is_refused(io) {
        with_relay(io, async |relay: Relay| {
            let mut first = Session::greet(relay.listen, &relay.secret.pin).await;
            let stolen = Register::listen(NAME).frame(&relay.secret.key, &first.exporter());
            first.say(&stolen).await;
            first.hear(wire::REGISTERED).await;
            // Nobody is registered any more, so whatever were served now would be on the word of
            // the thief.
            first.connection.close(VarInt::from_u32(0), b"");
            let mut thief = Session::greet(relay.listen, &relay.secret.pin).await;
            thief.say(&stolen).await;
            assert_refused(&mut thief, NAME).await;
            relay.resets_applications().await;
            thief.has_no_flow().await;
        });
    }

    fn a_relay_serves_nothing_before_the_agents_proof(io) {
        with_relay(io, async |relay: Relay| {
            let mut session = Session::greet(relay.listen, &relay.secret.pin).await;
            relay.resets_applications().await;
            session.has_no_flow().await;
            let mut false_proof = Register::listen(NAME).frame(&relay.secret.key, &session.exporter());
            *false_proof.last_mut().unwrap() ^= 1;
            session.say(&false_proof).await;
            assert_refused(&mut session, NAME).await;
            relay.resets_applications().await;
            session.has_no_flow().await;
            // The same session may still prove itself.
            relay.register_on(&mut session, &relay.secret.key).await;
            let flow = relay.flow(&session.connection).await;
            assert_eq!(flow.name, NAME);
        });
    }

    fn an_agent_serves_nothing_before_the_relays_proof(io) {
        let _turn = turn::shared();
        runtime().block_on(a_false_relay_gets_nothing(io));
    }

    fn an_agent_serves_a_strange_relay_that_proves_itself(io) {
        let _turn = turn::shared();
        runtime().block_on(a_proven_relay_is_served(io));
    }

    fn a_peer_that_breaks_the_protocol_is_sent_away(io) {
        with_relay(io, async |relay: Relay| {
            let hello = |version| wire::hello(version, 1, rand::random(), rand::random());
            let registered_first = Register::listen(NAME).frame(&relay.secret.key, &[0; 32]);
            let cut_short = [wire::HELLO, 0, 3, 0, 1, 1].to_vec();
            for (what, said, code) in [
                ("a version that nobody speaks", hello(2), 6),
                ("a Register before Hello", registered_first, 1),
                ("a second Hello", [hello(1), hello(1)].concat(), 1),
                ("a Hello that lacks fields", cut_short, 1),
                ("a frame that is too long", vec![wire::HELLO, 0xff, 0xff], 1),
                ("an Open on the control stream", [hello(1), wire::frame(wire::OPEN, &[])].concat(), 1),
            ] {
                let mut session = Session::dial(relay.listen, &relay.secret.pin).await.unwrap();
                session.say(&said).await;
                assert_eq!(session.close_code().await, code, "{what}");
            }
            let session = Session::greet(relay.listen, &relay.secret.pin).await;
            let (mut second, _) = session.connection.open_bi().await.unwrap();
            second.write_all(b"x").await.unwrap();
            assert_eq!(session.close_code().await, 1, "a second stream of an agent");
            // All that harmed nobody else.
            let session = relay.register(&relay.secret.key).await;
            assert_eq!(relay.flow(&session.connection).await.name, NAME);
        });
    }

    fn a_stranger_who_says_nothing_is_sent_away_in_seconds(io) {
        with_relay(io, async |relay: Relay| {
            let began = Instant::now();
            let silent = Session::dial(relay.listen, &relay.secret.pin).await.unwrap();
            let idle = Session::greet(relay.listen, &relay.secret.pin).await;
            assert_eq!(silent.close_code().await, 4);
            assert!(began.elapsed() >= Duration::from_secs(4), "after {:?}", began.elapsed());
            assert_eq!(idle.close_code().await, 7);
            assert!(began.elapsed() < Duration::from_secs(20), "after {:?}", began.elapsed());
        });
    }
}

/// A flow as an agent sees it, and the application's end of it.
struct Flow {
    to_relay: SendStream,
    from_relay: RecvStream,
    name: String,
    endpoint: (String, u16),
    application: SocketAddr,
    socket: TcpStream,
}

/// What the tests know of the real relay.
struct Relay {
    listen: SocketAddr,
    binding: SocketAddr,
    secret: Secret,
    installation: Installation,
}

fn with_relay(io: Io, test: impl AsyncFnOnce(Relay)) {
    with_relay_of(Setup::new(io), test);
}

fn with_relay_of(setup: Setup, test: impl AsyncFnOnce(Relay)) {
    let _turn = turn::shared();
    let installation = Installation::start(setup, &[(NAME, &format!("{HOST}:{PORT}"))]).unwrap();
    let relay = Relay {
        listen: installation.listen(),
        binding: installation.binding(NAME).unwrap(),
        secret: Secret::parse(&installation.connection_string(NAME).unwrap()),
        installation,
    };
    runtime().block_on(test(relay));
}

/// With a thread for the peers beside the test's own, which may wait for processes meanwhile.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

impl Relay {
    async fn register(&self, key: &str) -> Session {
        let session = Session::dial(self.listen, &self.secret.pin).await.unwrap();
        self.greet_and_register(session, key).await
    }

    async fn greet_and_register(&self, mut session: Session, key: &str) -> Session {
        session
            .say(&wire::hello(1, 1, [7; 16], rand::random()))
            .await;
        let mut welcome = session.hear(wire::WELCOME).await;
        assert_eq!((welcome.u8(), welcome.u8()), (1, 0), "workers, and which");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let told = Duration::from_millis(welcome.u64());
        assert!(told.abs_diff(now) < Duration::from_secs(60), "{told:?}");
        assert_eq!(welcome.u8(), 1, "relays");
        assert_eq!(
            (welcome.text(), welcome.u16()),
            (self.listen.ip().to_string(), self.listen.port())
        );
        welcome.end();
        self.register_on(&mut session, key).await;
        session
    }

    /// Registers, and holds the relay's proof against the description.
    async fn register_on(&self, session: &mut Session, key: &str) {
        let register = Register::listen(NAME);
        session.say(&register.frame(key, &session.exporter())).await;
        let mut answer = session.hear(wire::REGISTERED).await;
        assert_eq!(answer.text(), NAME);
        assert_eq!((answer.text().as_str(), answer.u16()), (HOST, PORT));
        let proof = register.relay_proof(key, HOST, PORT, &session.exporter());
        assert_eq!(answer.bytes::<32>(), proof);
        answer.end();
    }

    async fn application(&self) -> TcpStream {
        soon("the binding to accept", TcpStream::connect(self.binding))
            .await
            .unwrap()
    }

    /// An application that connects and says `early` at once, and the stream that the relay opens
    /// for it.
    async fn flow(&self, session: &Connection) -> Flow {
        let socket = self.application().await;
        let (to_relay, mut from_relay) = soon("a flow", session.accept_bi()).await.unwrap();
        let mut open = soon("Open", read_frame(&mut from_relay, wire::OPEN)).await;
        let name = open.text();
        open.u64();
        let endpoint = (open.text(), open.u16());
        let application = open.address();
        open.end();
        Flow {
            to_relay,
            from_relay,
            name,
            endpoint,
            application,
            socket,
        }
    }

    /// Without a listener an application is told by a reset, after connect or already then.
    async fn resets_applications(&self) {
        let seen = async {
            let mut socket = TcpStream::connect(self.binding).await?;
            socket.read(&mut [0; 16]).await
        };
        let error = soon("the reset", seen).await.expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

impl Flow {
    async fn say_opened(&mut self) {
        let opened = wire::frame(wire::OPENED, &wire::address(([10, 0, 0, 5], PORT).into()));
        self.to_relay.write_all(&opened).await.unwrap();
    }

    async fn hear(&mut self, wanted: &[u8]) {
        let mut got = vec![0; wanted.len()];
        soon(
            "the application's bytes",
            self.from_relay.read_exact(&mut got),
        )
        .await
        .unwrap();
        assert_eq!(got, wanted);
    }

    async fn application_hears(&mut self, wanted: &[u8]) {
        let mut got = vec![0; wanted.len()];
        soon("the endpoint's bytes", self.socket.read_exact(&mut got))
            .await
            .unwrap();
        assert_eq!(got, wanted);
    }
}

async fn assert_refused(session: &mut Session, name: &str) {
    let mut refused = session.hear(wire::REFUSED).await;
    assert_eq!((refused.text().as_str(), refused.u8()), (name, 1));
    refused.end();
}

async fn requests_and_answers_with_half_closes(relay: &Relay, session: &Session) {
    let mut flow = relay.flow(&session.connection).await;
    assert_eq!(flow.name, NAME);
    assert_eq!(flow.endpoint, (HOST.to_owned(), PORT));
    assert_eq!(flow.application, flow.socket.local_addr().unwrap());
    // What the application says at once comes before Opened was said.
    flow.socket.write_all(b"early").await.unwrap();
    flow.hear(b"early").await;
    flow.say_opened().await;
    flow.to_relay.write_all(b"greeting").await.unwrap();
    flow.application_hears(b"greeting").await;
    // One direction ends, the other goes on.
    flow.socket.write_all(b"request").await.unwrap();
    flow.socket.shutdown().await.unwrap();
    flow.hear(b"request").await;
    assert_eq!(
        soon("the end", flow.from_relay.read(&mut [0]))
            .await
            .unwrap(),
        None
    );
    let answer = vec![b'a'; 300_000];
    let (sent, ()) = tokio::join!(flow.to_relay.write_all(&answer), async {
        let mut got = Vec::new();
        soon(
            "the whole answer",
            (&mut flow.socket).take(300_000).read_to_end(&mut got),
        )
        .await
        .unwrap();
        assert_eq!(got, answer);
    });
    sent.unwrap();
    flow.to_relay.finish().unwrap();
    assert_eq!(
        soon("the end", flow.socket.read(&mut [0])).await.unwrap(),
        0
    );
}

async fn a_reset_of_the_application_arrives(relay: &Relay, session: &Session) {
    let mut flow = relay.flow(&session.connection).await;
    flow.say_opened().await;
    flow.socket.write_all(b"more").await.unwrap();
    flow.hear(b"more").await;
    flow.socket.set_zero_linger().unwrap();
    drop(flow.socket);
    let read = soon("the reset", flow.from_relay.read(&mut [0])).await;
    assert_eq!(read, Err(ReadError::Reset(VarInt::from_u32(RESET))));
    let stopped = soon("the stop", flow.to_relay.stopped()).await.unwrap();
    assert_eq!(stopped, Some(VarInt::from_u32(RESET)));
}

async fn a_reset_of_the_endpoint_arrives(relay: &Relay, session: &Session) {
    let mut flow = relay.flow(&session.connection).await;
    flow.say_opened().await;
    flow.to_relay.write_all(b"half an ans").await.unwrap();
    flow.application_hears(b"half an ans").await;
    flow.to_relay.reset(VarInt::from_u32(RESET)).unwrap();
    flow.from_relay.stop(VarInt::from_u32(RESET)).unwrap();
    let error = soon("the reset", flow.socket.read(&mut [0]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

async fn a_refusal_resets_the_application(relay: &Relay, session: &Session) {
    let mut flow = relay.flow(&session.connection).await;
    flow.to_relay
        .reset(VarInt::from_u32(ENDPOINT_REFUSED))
        .unwrap();
    flow.from_relay
        .stop(VarInt::from_u32(ENDPOINT_REFUSED))
        .unwrap();
    let error = soon("the reset", flow.socket.read(&mut [0]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A strange relay with the certificate of an installation, up to an agent's Register.
struct StrangeRelay {
    connection: Connection,
    to_agent: SendStream,
    register: Register,
    target: SocketAddr,
    key: String,
    _installation: Installation,
    _agent: Agent,
    _relay: quinn::Endpoint,
}

impl StrangeRelay {
    async fn meet(io: Io, target: SocketAddr) -> Self {
        // Nothing runs in this directory: its relay's place is taken.
        let installation = Installation::new(Setup::new(io)).unwrap();
        installation.define(NAME, &target.to_string()).unwrap();
        // Makes the certificate, too.
        let secret = Secret::parse(&installation.connection_string(NAME).unwrap());
        let relay = false_relay(&installation, installation.listen());
        let agent = installation.start_agent_unregistered(&[NAME], &[]).unwrap();
        let incoming = soon("the agent to dial", relay.accept()).await.unwrap();
        let connection = soon("the handshake", incoming.into_future()).await.unwrap();
        let control = soon("the control stream", connection.accept_bi()).await;
        let (mut to_agent, mut from_agent) = control.unwrap();
        let mut hello = soon("Hello", read_frame(&mut from_agent, wire::HELLO)).await;
        assert_eq!((hello.u16(), hello.u8()), (1, 1), "version and role");
        let welcome = [&[1, 0], 0_u64.to_be_bytes().as_slice(), &[0]].concat();
        let welcome = wire::frame(wire::WELCOME, &welcome);
        to_agent.write_all(&welcome).await.unwrap();
        let mut said = soon("Register", read_frame(&mut from_agent, wire::REGISTER)).await;
        let (name, rule, _key_id) = (said.text(), said.u8(), said.bytes::<8>());
        let register = Register {
            name,
            rule,
            nonce: said.bytes(),
        };
        Self {
            connection,
            to_agent,
            register,
            target,
            key: secret.key,
            _installation: installation,
            _agent: agent,
            _relay: relay,
        }
    }

    /// Says Registered, proven with this key.
    async fn prove(&mut self, key: &str) {
        let (host, port) = (self.target.ip().to_string(), self.target.port());
        let exporter = exporter(&self.connection);
        let proof = self.register.relay_proof(key, &host, port, &exporter);
        let body = [
            wire::text(NAME),
            wire::text(&host),
            port.to_be_bytes().to_vec(),
            proof.to_vec(),
        ];
        let registered = wire::frame(wire::REGISTERED, &body.concat());
        self.to_agent.write_all(&registered).await.unwrap();
    }

    async fn open(&self) -> (SendStream, RecvStream) {
        let (mut to_agent, from_agent) = self.connection.open_bi().await.unwrap();
        let body = [
            wire::text(NAME),
            7_u64.to_be_bytes().to_vec(),
            wire::text(&self.target.ip().to_string()),
            self.target.port().to_be_bytes().to_vec(),
            wire::address(([10, 0, 0, 9], 50_000).into()),
        ];
        // The agent may be gone by now.
        let open = wire::frame(wire::OPEN, &body.concat());
        let _ = to_agent.write_all(&open).await;
        (to_agent, from_agent)
    }
}

/// A relay with the right certificate that does not know the key: the agent dials nothing for it
/// and leaves.
async fn a_false_relay_gets_nothing(io: Io) {
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    endpoint.set_nonblocking(true).unwrap();
    let mut relay = StrangeRelay::meet(io, endpoint.local_addr().unwrap()).await;
    let (_keep, mut flow) = relay.open().await;
    relay.prove("another key").await;
    let _flow = relay.open().await;
    let unserved = soon("the flow to end", flow.read(&mut [0])).await;
    assert!(
        matches!(unserved, Err(ReadError::ConnectionLost(_))),
        "{unserved:?}"
    );
    match soon("the agent to leave", relay.connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), NOT_AUTHORISED);
        }
        other => panic!("the session ended otherwise: {other}"),
    }
    let nobody = endpoint.accept().unwrap_err();
    assert_eq!(nobody.kind(), ErrorKind::WouldBlock, "it was dialled");
}

/// A relay that proves itself: what it opens reaches the endpoint, and both directions are whole.
async fn a_proven_relay_is_served(io: Io) {
    let endpoint = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = endpoint.local_addr().unwrap();
    let mut relay = StrangeRelay::meet(io, target).await;
    let key = relay.key.clone();
    // Streams have no order among each other: what is opened ahead of Registered waits for it.
    let (mut to_agent, mut from_agent) = relay.open().await;
    to_agent.write_all(b"early").await.unwrap();
    relay.prove(&key).await;
    let mut opened = soon("Opened", read_frame(&mut from_agent, wire::OPENED)).await;
    let (mut socket, _) = soon("the agent's connection", endpoint.accept())
        .await
        .unwrap();
    assert_eq!(opened.address(), target);
    opened.end();
    let mut got = [0; 5];
    soon("what was said early", socket.read_exact(&mut got))
        .await
        .unwrap();
    assert_eq!(&got, b"early");
    to_agent.finish().unwrap();
    assert_eq!(soon("the end", socket.read(&mut got)).await.unwrap(), 0);
    socket.write_all(b"answer").await.unwrap();
    socket.shutdown().await.unwrap();
    let answer = soon("the answer", from_agent.read_to_end(100))
        .await
        .unwrap();
    assert_eq!(answer, b"answer");
}
