//! Two drivers with one session between them, over loopback sockets: what a flush needs that is to
//! be real.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::StreamId;
use underpass_dataplane::io::{Completion, Io, Poll, udp};
use underpass_dataplane::quic::config::{self, EndpointKeys, Server, Trust};
use underpass_dataplane::quic::{Amount, Driver, Event, SessionId, cid};
use underpass_proto::Pin;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The path's MTU has been found when so much has come across.
const WARMING: usize = 64;

/// Bytes of one read.
const READ: usize = 1 << 20;

/// A session whose near side has a stream to the far side.
pub(crate) struct Pair {
    near: Side,
    far: Side,
    session: SessionId,
    stream: StreamId,
    /// The far side's names of both.
    accepted: Option<(SessionId, StreamId)>,
    received: usize,
}

struct Side {
    driver: Driver,
    io: Poll,
    completions: Vec<Completion>,
    events: VecDeque<(SessionId, Event)>,
}

impl Pair {
    /// A session whose datagrams grow to `mtu` bytes of UDP payload.
    pub(crate) fn new(mtu: u16) -> Pair {
        let made = rcgen::generate_simple_self_signed(["relay".to_owned()]).expect("made");
        let server = Server::new(
            vec![made.cert.der().to_vec()],
            made.signing_key.serialize_der(),
            [1; 32],
        );
        let pin = Pin::of_spki(&rcgen::PublicKeyData::subject_public_key_info(
            &made.signing_key,
        ));
        let (mut far, address) = Side::new(Some(Arc::new(server.expect("of use"))), mtu);
        let (mut near, _) = Side::new(None, mtu);
        let first = cid::towards(0, &mut rand::rng());
        let client = config::client(&Trust::Pins(vec![pin]), first, mtu).expect("of use");
        let session = near
            .driver
            .connect(Instant::now(), client, address, "relay")
            .expect("dialled");
        let end = Instant::now() + PATIENCE;
        let stream = loop {
            near.turn();
            far.turn();
            // The far side allows few streams before anything is authorised, and one is all that is
            // wanted.
            if let Some(stream) = near.driver.open(session) {
                break stream;
            }
            assert!(Instant::now() < end, "no session in {PATIENCE:?}");
        };
        let mut pair = Pair {
            near,
            far,
            session,
            stream,
            accepted: None,
            received: 0,
        };
        for _ in 0..WARMING {
            pair.write(&mut [Bytes::from(vec![1; 64 << 10])]);
            pair.flush();
            pair.settle();
        }
        pair
    }

    /// Gives chunks to the stream, all of them.
    pub(crate) fn write(&mut self, mut chunks: &mut [Bytes]) {
        let mut left: usize = chunks.iter().map(Bytes::len).sum();
        self.received += left;
        while left > 0 {
            let written = self
                .near
                .driver
                .write(self.session, self.stream, chunks, Amount::Much);
            left -= written.expect("the window holds one round");
            let done = chunks.iter().take_while(|chunk| chunk.is_empty()).count();
            chunks = &mut chunks[done..];
        }
    }

    /// Sends all that became ready.
    pub(crate) fn flush(&mut self) {
        let now = Instant::now();
        while self.near.driver.flush(now, &mut self.near.io) {}
    }

    /// Lets the far side take all that was written, and the near side hear of it.
    pub(crate) fn settle(&mut self) {
        let end = Instant::now() + PATIENCE;
        let mut chunks = Vec::new();
        while self.received > 0 {
            assert!(Instant::now() < end, "{} bytes are lost", self.received);
            self.far.turn();
            if self.accepted.is_none() {
                let opened = self.far.events.iter();
                self.accepted = opened.rev().find_map(|(session, event)| match event {
                    Event::Opened(stream) | Event::Readable(stream) => Some((*session, *stream)),
                    _ => None,
                });
            }
            self.far.events.clear();
            if let Some((session, stream)) = self.accepted {
                let read = (self.far.driver).read(session, stream, usize::MAX, READ, &mut chunks);
                read.expect("no reset");
                self.received -= chunks.drain(..).map(|chunk| chunk.len()).sum::<usize>();
            }
            self.far.turn();
            self.near.turn();
        }
    }
}

impl Side {
    fn new(server: Option<Arc<Server>>, mtu: u16) -> (Side, SocketAddr) {
        let socket = udp::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).expect("bound");
        let address = socket.address();
        let mut driver = Driver::new(0, &EndpointKeys::ephemeral(), None, Some(mtu));
        if let Some(server) = server {
            driver.set_server(server);
        }
        let side = Side {
            driver,
            io: Poll::new(socket).expect("made"),
            completions: Vec::new(),
            events: VecDeque::new(),
        };
        (side, address)
    }

    /// A worker's turn, without anything of a flow.
    fn turn(&mut self) {
        let now = Instant::now();
        let waited = self.io.wait(Some(now), &mut self.completions);
        waited.expect("the kernel goes on");
        for completion in self.completions.drain(..) {
            if let Completion::Datagrams(batch) = completion {
                self.driver.receive(now, batch, &mut self.io);
            }
        }
        self.driver.fire_timers(now);
        let before = self.events.len();
        self.driver.poll(&mut self.events);
        while self.events.len() > before && self.driver.flush(now, &mut self.io) {}
        self.driver.flush(now, &mut self.io);
    }
}
