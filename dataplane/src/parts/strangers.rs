//! A live relay that strangers talk to: its worker, turned by hand, and a peer of it that says what
//! it is told, true or not. Time passes as it is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::StreamId;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use underpass_proto::snapshot::{HycoKeys, HycoLimits, RelayKeys, RelayLimits, Tls};
use underpass_proto::{
    Endpoint, Frame, Generation, HybridConnection, HycoName, Key, KeyPair, Nonce, Register, Rule,
    Secret, Secret32, SessionCode, Snapshot,
};

use crate::io::pipe::Pipe;
use crate::quic::config::{self, EndpointKeys, Server, Trust};
use crate::quic::{Amount, Driver, Event, SessionId, cid};
use crate::relay::plan::{Directory, Plan};
use crate::relay::role::Relay;
use crate::worker::{Start, Worker};

/// Where the relay is.
const RELAY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4433);

/// Rounds of datagrams there and back that one step may take.
const ROUNDS_MAX: usize = 64;

/// After so long every session that says nothing is over.
const LONG: Duration = Duration::from_secs(20);

/// A relay, and one peer.
pub struct Strangers {
    worker: Worker<Pipe, Relay>,
    peer: Driver,
    peer_io: Pipe,
    events: VecDeque<(SessionId, Event)>,
    trust: Trust,
    key: Key,
    hyco: HycoName,
    next_port: u16,
    session: Option<SessionId>,
    streams: Vec<StreamId>,
    /// Bytes that went to addresses which were never proven, and bytes that came from there.
    said_to: usize,
    heard_from: usize,
}

impl Strangers {
    /// With one hybrid connection, whose keys are all `key`, and this self-signed certificate of
    /// `localhost` and its PKCS#8 key, both DER.
    ///
    /// # Errors
    /// A certificate or key that TLS cannot use.
    pub fn new(certificate: &[u8], tls_key: &[u8], key: Key) -> Result<Self, String> {
        let now = Instant::now();
        let hyco: HycoName = "payroll-sql".parse().expect("a name");
        let server = Server::new(vec![certificate.to_vec()], tls_key.to_vec(), [7; 32])?;
        let plan = Arc::new(Plan::new(snapshot(&hyco, &key)));
        let directory = Arc::new(Directory::default());
        directory.define(now, &plan);
        let keys = || EndpointKeys {
            reset: [1; 32],
            token: [2; 32],
            connection_id: [3; 32],
        };
        let quic = Driver::new(0, &keys(), Some(Arc::new(server)), Some(config::MTU_MIN));
        let relay = |start: Start<_>| Relay::new((0, 1), plan, directory, start.rng);
        let rng = StdRng::seed_from_u64(0);
        let (worker, _) = Worker::new(Pipe::new(now), quic, (0, 1), rng, relay);
        Ok(Self {
            worker,
            peer: Driver::new(0, &keys(), None, Some(config::MTU_MIN)),
            peer_io: Pipe::new(now),
            events: VecDeque::new(),
            trust: Trust::Authorities(vec![certificate.to_vec()]),
            key,
            hyco,
            next_port: 1024,
            session: None,
            streams: Vec::new(),
            said_to: 0,
            heard_from: 0,
        })
    }

    /// A raw datagram from an address that nobody proved.
    pub fn datagram(&mut self, datagram: &[u8]) {
        let remote = self.stranger();
        self.heard_from += datagram.len();
        self.worker.core.io.put(remote, datagram);
        self.turn();
    }

    /// The datagrams with which a peer begins a handshake, as it would say them.
    pub fn first_words(&mut self) -> Vec<Vec<u8>> {
        self.dial();
        self.peer.flush(self.peer_io.now, &mut self.peer_io);
        let said = self.peer_io.take();
        self.leave();
        said.into_iter().map(|(_, datagram)| datagram).collect()
    }

    /// Begins a session, handshake and control stream.
    pub fn meet(&mut self) {
        self.leave();
        let session = self.dial();
        self.exchange();
        self.session = session;
        self.open();
    }

    fn dial(&mut self) -> Option<SessionId> {
        let client = config::client(
            &self.trust,
            cid::towards(0, &mut rand::rng()),
            config::MTU_MIN,
        )
        .ok()?;
        let now = self.peer_io.now;
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        let session = self.peer.connect(now, client, RELAY, "localhost").ok();
        self.session = session;
        session
    }

    /// Opens a stream more; the first one is the control stream.
    pub fn open(&mut self) {
        let stream = self.session.and_then(|session| self.peer.open(session));
        self.streams.extend(stream);
    }

    /// Says bytes on one of the streams.
    pub fn say(&mut self, nth: usize, bytes: &[u8]) {
        if let Some((session, stream)) = self.stream(nth) {
            let mut chunks = [Bytes::copy_from_slice(bytes)];
            let _ = self.peer.write(session, stream, &mut chunks, Amount::Much);
            self.exchange();
        }
    }

    /// Ends a stream, or resets it.
    pub fn end(&mut self, nth: usize, clean: bool) {
        if let Some((session, stream)) = self.stream(nth) {
            if clean {
                self.peer.finish(session, stream);
            } else {
                let code = underpass_proto::FlowCode::Reset;
                self.peer.abort(session, stream, code);
            }
            self.exchange();
        }
    }

    /// Says a Register on the control stream that is right.
    pub fn register(&mut self, rule: Rule) {
        let exporter = self.session.and_then(|session| self.peer.exporter(session));
        let Some(exporter) = exporter else { return };
        let name = self.hyco.clone();
        let register = Register::new(&self.key, name, rule, Nonce([5; 16]), 100, 0, &exporter);
        self.say(0, &Frame::Register(register).to_vec());
    }

    fn stream(&self, nth: usize) -> Option<(SessionId, StreamId)> {
        let stream = self.streams.get(nth % self.streams.len().max(1))?;
        Some((self.session?, *stream))
    }

    /// Time passes.
    pub fn pass(&mut self, time: Duration) {
        self.worker.core.io.now += time;
        self.peer_io.now = self.worker.core.io.now;
        self.exchange();
    }

    /// Ends the session, and lets so much time pass that nothing is left of it.
    pub fn leave(&mut self) {
        if let Some(session) = self.session.take() {
            self.peer
                .close(self.peer_io.now, session, SessionCode::Done);
        }
        self.streams.clear();
        self.exchange();
        self.pass(LONG);
        self.pass(LONG);
        self.events.clear();
    }

    /// Sessions that the relay still has.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.worker.core.quic.sessions_live()
    }

    /// Panics that a guard of the relay caught.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.worker.core.panics + self.worker.core.quic.panics() + self.peer.panics()
    }

    /// Bytes that addresses which were never proven have said, and been told.
    #[must_use]
    pub fn amplification(&self) -> (usize, usize) {
        (self.heard_from, self.said_to)
    }

    fn stranger(&self) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 4000))
    }

    /// Datagrams go back and forth until there are no more.
    fn exchange(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.peer.fire_timers(self.peer_io.now);
            self.peer.poll(&mut self.events);
            self.events.clear();
            self.peer.flush(self.peer_io.now, &mut self.peer_io);
            let said = self.peer_io.take();
            let from = SocketAddr::from(([127, 0, 0, 1], self.next_port));
            for (_, datagram) in &said {
                self.worker.core.io.put(from, datagram);
            }
            if !self.turn() && said.is_empty() {
                return;
            }
        }
    }

    /// The relay has its turn. Whether the peer heard anything.
    fn turn(&mut self) -> bool {
        let now = self.worker.core.io.now;
        self.worker.turn(now).expect("a pipe does not fail");
        let mut heard = false;
        for (to, datagram) in self.worker.core.io.take() {
            if to == self.stranger() {
                self.said_to += datagram.len();
                continue;
            }
            heard = true;
            self.peer_io.put(RELAY, &datagram);
        }
        for batch in self.peer_io.heard() {
            self.peer.receive(now, batch, &mut self.peer_io);
        }
        heard
    }
}

fn snapshot(hyco: &HycoName, key: &Key) -> Snapshot {
    let endpoint: Endpoint = "db01.corp:1433".parse().expect("an endpoint");
    let pair = || {
        Some(KeyPair {
            primary: key.clone(),
            secondary: None,
        })
    };
    let secret = || Secret32::new([9; 32]);
    Snapshot {
        generation: Generation::default(),
        namespace: "strangers".to_owned(),
        listen: RELAY,
        public_address: "relay.example.com:4433".parse().expect("an endpoint"),
        workers: Some(1),
        tls: Tls {
            certificates: Vec::new(),
            key: Secret::new(Vec::new()),
        },
        relay_keys: RelayKeys {
            reset: secret(),
            token: secret(),
            connection_id: secret(),
        },
        limits: RelayLimits::default(),
        hycos: vec![HybridConnection {
            name: hyco.clone(),
            endpoint,
            bind: None,
            allow_from: Vec::new(),
            keys: HycoKeys {
                listen: pair(),
                send: pair(),
            },
            limits: HycoLimits::default(),
            probe: false,
            probe_always: false,
            over_quota: false,
        }],
    }
}
