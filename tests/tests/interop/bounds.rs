//! What a relay bears of peers that ask for much: each bound is reached from outside, and others
//! notice nothing.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use quinn::{ConnectionError, Endpoint, TransportConfig, VarInt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use underpass_proto::Rule;
use underpass_proto::snapshot::Pressure;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::on_every_backend;

use crate::stranger::{Secret, Session, client, soon};
use crate::wire::{self, Register};
use crate::{NAME, Relay, with_relay};

/// Code of a session or a flow that was at a limit.
pub(crate) const OVERLOADED: u64 = 8;

/// Newcomers at once: more than may begin without a proof of their address, and more than may be
/// under way for one address.
const CROWD: usize = 300;

/// How long a crowd may take. The handshakes of both sides are done by two cores, unoptimised.
const CROWD_WITHIN: Duration = Duration::from_secs(10);

/// How long one newcomer may take beside strangers: one more packet each way.
const PROMPT: Duration = Duration::from_secs(2);

/// How long a refusal may take.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Descriptors of a relay that has few.
const FILES: u64 = 100;

/// What a server may send to an address that it does not know (RFC 9000, section 8).
const AMPLIFICATION_MAX: usize = 3;

on_every_backend! {
    fn a_flow_waits_for_room_on_its_listeners_session(io) {
        with_relay(io, async |relay: Relay| {
            let mut transport = TransportConfig::default();
            transport.max_concurrent_bidi_streams(VarInt::from_u32(2));
            let session = Session::dial_with(relay.listen, &relay.secret.pin, transport).await.unwrap();
            let session = relay.greet_and_register(session, &relay.secret.key).await;
            let mut first = relay.flow(&session.connection).await;
            let _second = relay.flow(&session.connection).await;
            let began = Instant::now();
            let third = relay.application().await;
            let mut fourth = relay.application().await;
            session.has_no_flow().await;
            // The first one ends, and its place goes to whoever came first.
            first.to_relay.reset(VarInt::from_u32(1)).unwrap();
            first.from_relay.stop(VarInt::from_u32(1)).unwrap();
            let (_to_relay, mut from_relay) = soon("the third flow", session.connection.accept_bi()).await.unwrap();
            let mut open = crate::read_frame(&mut from_relay, wire::OPEN).await;
            assert_eq!(open.text(), NAME);
            open.u64();
            open.text();
            open.u16();
            assert_eq!(open.address(), third.local_addr().unwrap());
            // For the fourth there is no place, and it is told so.
            let error = soon("the reset", fourth.read(&mut [0])).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            assert!(began.elapsed() > Duration::from_secs(2), "after {:?}", began.elapsed());
        });
    }

    fn a_crowd_of_newcomers_is_let_in_once_it_proved_its_addresses(io) {
        with_relay(io, async |relay: Relay| {
            let began = Instant::now();
            // Few to a socket, whose buffer would not hold the answers to all.
            let endpoint = |_| {
                let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
                endpoint.set_default_client_config(client(&relay.secret.pin));
                endpoint
            };
            let endpoints: Vec<_> = (0..CROWD / 10).map(endpoint).collect();
            let dial = |n: usize| endpoints[n / 10].connect(relay.listen, "localhost").unwrap();
            let dials: Vec<_> = (0..CROWD).map(dial).collect();
            let mut sessions = Vec::new();
            for dial in dials {
                sessions.push(soon("a handshake", dial).await.unwrap());
            }
            let took = began.elapsed();
            assert!(took < CROWD_WITHIN, "{CROWD} handshakes took {took:?}");
            let pressure = relay.pressure(|pressure| pressure.handshakes_begun >= CROWD as u64);
            assert!(pressure.handshakes_asked > 0, "{pressure:?}");
            assert_eq!(pressure.handshakes_unfinished, 0, "{pressure:?}");
            drop(sessions);
        });
    }

    fn strangers_that_never_answer_are_sent_little_and_hold_up_nobody(io) {
        with_relay(io, async |relay: Relay| {
            let said = first_words(&relay.secret.pin, CROWD).await;
            let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut sent = 0;
            for datagram in &said {
                sent += mute.send_to(datagram, relay.listen).unwrap();
            }
            let began = Instant::now();
            let session = relay.register(&relay.secret.key).await;
            let took = began.elapsed();
            assert!(took < PROMPT, "an honest agent took {took:?}");
            assert_eq!(relay.flow(&session.connection).await.name, NAME);
            // They are given up in time, and until then were not sent more than they may be.
            let pressure = relay.pressure(|pressure| pressure.handshakes_unfinished > 0);
            assert!(pressure.handshakes_begun < CROWD as u64 / 2, "{pressure:?}");
            assert!(pressure.handshakes_asked > 0, "{pressure:?}");
            let received = drain(&mute);
            assert!(received > 0);
            assert!(
                received <= AMPLIFICATION_MAX * sent,
                "{received} bytes came back for {sent}"
            );
        });
    }

    fn what_an_agent_said_is_of_no_use_to_who_says_it_again(io) {
        with_relay(io, async |relay: Relay| {
            let tap = UdpSocket::bind("127.0.0.1:0").unwrap();
            let through = tap.local_addr().unwrap();
            let heard = std::thread::spawn({
                let relay = relay.listen;
                move || listen_between(&tap, relay)
            });
            let session = Session::dial(through, &relay.secret.pin).await.unwrap();
            let session = relay.greet_and_register(session, &relay.secret.key).await;
            session.connection.close(VarInt::from_u32(0), b"");
            soon("the close to leave", session.into_endpoint().wait_idle()).await;
            let heard = heard.join().unwrap();
            assert!(heard.len() > 4, "{} datagrams", heard.len());
            let thief = UdpSocket::bind("127.0.0.1:0").unwrap();
            for datagram in heard {
                thief.send_to(&datagram, relay.listen).unwrap();
            }
            relay.resets_applications().await;
            relay.pressure(|pressure| pressure.handshakes_unfinished > 0);
            relay.resets_applications().await;
        });
    }

    fn a_relay_short_of_memory_serves_those_that_are_there_and_nobody_new(io) {
        with_relay(io, async |relay: Relay| {
            let agent = relay.register(&relay.secret.key).await;
            let mut before = relay.flow(&agent.connection).await;
            before.say_opened().await;
            let file = relay.installation.directory().join("namespace.toml");
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, format!("{text}[relay]\nmemory_mib_max = 1\n")).unwrap();
            relay.until("a newcomer is refused", async || {
                // It may hear so before it has opened a stream.
                match Session::dial(relay.listen, &relay.secret.pin).await {
                    Ok(session) => tokio::time::timeout(Duration::from_millis(300), session.close_code()).await == Ok(OVERLOADED),
                    Err(ConnectionError::ApplicationClosed(close)) => close.error_code.into_inner() == OVERLOADED,
                    Err(why) => panic!("refused otherwise: {why}"),
                }
            })
            .await;
            relay.resets_applications().await;
            before.socket.write_all(b"still here").await.unwrap();
            before.hear(b"still here").await;
            std::fs::write(&file, text).unwrap();
            relay.until("an application is served", async || {
                relay.served_application().await.is_some()
            })
            .await;
        });
    }

    fn a_relay_short_of_descriptors_refuses_in_words_and_recovers(io) {
        with_relay(io, async |relay: Relay| {
            let agent = relay.register(&relay.secret.key).await;
            let process = relay.installation.relay().as_ref().unwrap().id();
            let process = rustix::process::Pid::from_raw(process.try_into().unwrap());
            let limit = |files| {
                let limit = rustix::process::Rlimit { current: Some(files), maximum: Some(20_000) };
                rustix::process::prlimit(process, rustix::process::Resource::Nofile, limit).unwrap()
            };
            let before = limit(FILES);
            // One worker and one binding.
            let room = FILES - 64 - 1;
            let mut flows = Vec::new();
            relay.until("there is no room for one more application", async || {
                let served = relay.served_application().await;
                let refused = served.is_none();
                flows.extend(served);
                refused
            })
            .await;
            // One source leaves a fifth to others.
            assert!(flows.len() as u64 >= room / 5 * 4, "{} flows", flows.len());
            relay.resets_applications().await;
            let pressure = relay.pressure(|pressure| pressure.accepts_failed > 0);
            assert_eq!(pressure.panics, 0, "{pressure:?}");
            // One that ends makes room at once.
            drop(flows);
            relay.until("an application is served", async || {
                relay.served_application().await.is_some()
            })
            .await;
            drop(agent);
            let _ = before;
        });
    }

    fn a_sender_that_opens_and_resets_is_sent_away_and_others_are_served(io) {
        with_relay(io, async |relay: Relay| {
            let agent = relay.register(&relay.secret.key).await;
            let string = relay.installation.string_of(NAME, Rule::Send, &[]).unwrap();
            let secret = Secret::parse(&string);
            let mut session = Session::dial(relay.listen, &secret.pin).await.unwrap();
            session.say(&wire::hello(1, 2, rand::random(), rand::random())).await;
            session.hear(wire::WELCOME).await;
            let register = Register { rule: wire::SEND, ..Register::listen(NAME) };
            session.say(&register.frame(&secret.key, &session.exporter())).await;
            session.hear(wire::REGISTERED).await;
            let flood = async {
                loop {
                    let Ok((mut to_relay, _)) = session.connection.open_bi().await else {
                        return;
                    };
                    let _ = to_relay.reset(VarInt::from_u32(1));
                }
            };
            tokio::join!(session.assert_flood_closed(OVERLOADED), flood);
            assert_eq!(relay.flow(&agent.connection).await.name, NAME);
            let pressure = relay.pressure(|pressure| pressure.sessions_sent_away > 0);
            assert_eq!(pressure.sessions_sent_away, 1);
        });
    }
}

impl Relay {
    /// Tries until it is so.
    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let end = Instant::now() + MOMENT;
        while !is_so().await {
            assert!(Instant::now() < end, "waited in vain until {what}");
        }
    }

    /// An application that is not reset, which it would be at once.
    async fn served_application(&self) -> Option<TcpStream> {
        let mut socket = TcpStream::connect(self.binding).await.ok()?;
        let mut byte = [0];
        let read = tokio::time::timeout(AT_ONCE, socket.read(&mut byte)).await;
        read.is_err().then_some(socket)
    }

    /// What the relay turned away, once this holds of it.
    pub(super) fn pressure(&self, holds: impl Fn(&Pressure) -> bool) -> Pressure {
        let found = || {
            let report = self.installation.status().unwrap().relay?;
            Some(report.pressure).filter(&holds)
        };
        wait_for("the relay to report what it turned away", MOMENT, found).unwrap()
    }
}

/// The first datagrams of this many handshakes, each with connection IDs of its own.
async fn first_words(pin: &str, count: usize) -> Vec<Vec<u8>> {
    let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
    ear.set_nonblocking(true).unwrap();
    let to = ear.local_addr().unwrap();
    let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    endpoint.set_default_client_config(client(pin));
    let mut said = Vec::new();
    let mut buffer = [0; 2048];
    let mut dials = Vec::new();
    let end = Instant::now() + MOMENT;
    // One by one, so that none is lost in the socket's buffer.
    while dials.len() < count {
        assert!(
            Instant::now() < end,
            "{} of {count} have spoken",
            dials.len()
        );
        dials.push(tokio::spawn(endpoint.connect(to, "localhost").unwrap()));
        let before = said.len();
        while said.len() == before {
            tokio::task::yield_now().await;
            while let Ok((len, _)) = ear.recv_from(&mut buffer) {
                said.push(buffer[..len].to_vec());
            }
        }
    }
    said
}

/// All bytes that have come to a socket.
fn drain(socket: &UdpSocket) -> usize {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 65_536];
    std::iter::from_fn(|| socket.recv_from(&mut buffer).ok())
        .map(|(len, _)| len)
        .sum()
}

/// Carries datagrams between one client and the relay until the client has been silent for a while;
/// answers what the client said.
fn listen_between(tap: &UdpSocket, relay: SocketAddr) -> Vec<Vec<u8>> {
    let mut heard = Vec::new();
    let mut buffer = [0; 65_536];
    let mut client = None;
    tap.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    while let Ok((len, from)) = tap.recv_from(&mut buffer) {
        let datagram = &buffer[..len];
        if from == relay {
            let Some(client) = client else { continue };
            tap.send_to(datagram, client).unwrap();
        } else {
            client = Some(from);
            heard.push(datagram.to_vec());
            tap.send_to(datagram, relay).unwrap();
        }
    }
    heard
}
