//! What a defect in one session costs the others.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::Sender;
use quinn_proto::{StreamId, VarInt};

use super::*;
use crate::flow::FlowKey;
use crate::io::{Kind, Poll, udp};
use crate::quic::Amount;
use crate::quic::config::{self, EndpointKeys, Server, Trust};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Panics at what one session says, and tells what it sees of others.
struct Touchy(Sender<String>);

impl Touchy {
    fn tell(&self, what: impl Into<String>) {
        let _ = self.0.try_send(what.into());
    }
}

impl Role for Touchy {
    type Flow = ();
    type Message = ();

    fn message<I: Io>(&mut self, _: &mut Core<I, ()>, (): ()) {
        self.tell("woken");
    }

    fn accepted<I: Io>(
        &mut self,
        _: &mut Core<I, ()>,
        _: u64,
        _: std::io::Result<(SocketId, SocketAddr)>,
    ) {
    }

    fn connected<I: Io>(
        &mut self,
        _: &mut Core<I, ()>,
        _: u64,
        _: SocketId,
        _: std::io::Result<()>,
    ) {
    }

    fn session_up<I: Io>(&mut self, _: &mut Core<I, ()>, _: SessionId) {}

    fn session_lost<I: Io>(&mut self, core: &mut Core<I, ()>, _: SessionId, _: &ConnectionError) {
        self.tell(format!("lost one after {} panics", core.panics));
    }

    fn stream_opened<I: Io>(
        &mut self,
        core: &mut Core<I, ()>,
        session: SessionId,
        stream: StreamId,
    ) {
        self.stream_readable(core, session, stream);
    }

    fn stream_readable<I: Io>(
        &mut self,
        core: &mut Core<I, ()>,
        session: SessionId,
        stream: StreamId,
    ) {
        let mut chunks = Vec::new();
        let _ = core.quic.read(session, stream, 1, 100, &mut chunks);
        for chunk in chunks {
            assert_ne!(&chunk[..], b"a defect", "the defect that is wanted here");
            self.tell(String::from_utf8_lossy(&chunk));
        }
    }

    fn stream_writable<I: Io>(&mut self, _: &mut Core<I, ()>, _: SessionId, _: StreamId) {}

    fn unopened_readable<I: Io>(&mut self, _: &mut Core<I, ()>, _: FlowKey) {}

    fn join_answered<I: Io>(&mut self, _: &mut Core<I, ()>, _: JoinKey) {}

    fn join_ended<I: Io>(&mut self, _: &mut Core<I, ()>, _: Join<()>, _: JoinEnd) {}

    fn flow_ended<I: Io>(&mut self, _: &mut Core<I, ()>, _: Flow<()>, _: End) {}

    fn tick<I: Io>(&mut self, _: &mut Core<I, ()>) {}

    fn misdirected(&mut self, _: u8, _: crate::io::Datagrams) {}

    fn is_done(&self) -> bool {
        false
    }
}

/// The other end, driven by the test's own thread.
struct Peer {
    io: Poll,
    quic: Driver,
    events: VecDeque<(SessionId, Event)>,
    /// All that happened, for the message of a failure.
    seen: Vec<String>,
}

impl Peer {
    /// Waits for an event of a session.
    fn until(&mut self, session: SessionId, is_it: impl Fn(&Event) -> bool) {
        self.drive(|events| {
            let found = |(of, event): (SessionId, Event)| of == session && is_it(&event);
            events.drain(..).any(found)
        });
    }

    /// Goes on until it is so.
    fn drive(&mut self, mut is_so: impl FnMut(&mut VecDeque<(SessionId, Event)>) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(&mut self.events) {
            let now = self.io.now();
            assert!(now < end, "waited in vain, and saw {:?}", self.seen);
            let mut completions = Vec::new();
            let soon = now + Duration::from_millis(10);
            self.io.wait(Some(soon), &mut completions).expect("waits");
            for completion in completions {
                if let Completion::Datagrams(batch) = completion {
                    self.quic.receive(now, batch, &mut self.io);
                }
            }
            self.quic.fire_timers(now);
            let before = self.events.len();
            self.quic.poll(&mut self.events);
            let new = self.events.iter().skip(before);
            self.seen.extend(new.map(|event| format!("{event:?}")));
            self.quic.flush(now, &mut self.io);
        }
    }

    fn say(&mut self, session: SessionId, what: &'static str) {
        let stream = self.quic.open(session).expect("a stream");
        let mut chunks = [Bytes::from_static(what.as_bytes())];
        self.quic
            .write(session, stream, &mut chunks, Amount::Little)
            .expect("written");
    }
}

#[test]
fn a_defect_that_one_session_lays_bare_costs_that_session_alone() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let certificate = certified.cert.der().to_vec();
    let key = certified.signing_key.serialize_der();
    let server = Server::new(vec![certificate.clone()], key, [7; 32]).expect("a server");
    let udp = udp::bind(([127, 0, 0, 1], 0).into(), false).expect("bound");
    let address = udp.address();
    let (tell, told) = bounded(100);
    let parts = Parts {
        worker: 0,
        workers: 1,
        udp,
        kind: Kind::Poll,
        quic: Driver::new(0, &EndpointKeys::ephemeral(), Some(Arc::new(server)), None),
    };
    let running = spawn(parts, move |_: Start<()>| Touchy(tell)).expect("started");
    let mut peer = Peer {
        io: Poll::new(udp::bind(([127, 0, 0, 1], 0).into(), false).expect("bound")).expect("polls"),
        quic: Driver::new(0, &EndpointKeys::ephemeral(), None, None),
        events: VecDeque::new(),
        seen: Vec::new(),
    };
    let trust = Trust::Authorities(vec![certificate]);
    let dial = |peer: &mut Peer| {
        let client = config::client(&trust, cid::towards(0, &mut rand::rng()), config::MTU_MIN)
            .expect("a client");
        let session = peer
            .quic
            .connect(Instant::now(), client, address, "localhost");
        let session = session.expect("dialled");
        peer.until(session, |event| matches!(event, Event::Connected));
        session
    };
    let (struck, other) = (dial(&mut peer), dial(&mut peer));
    peer.say(struck, "a defect");
    peer.until(struck, |event| {
        let overloaded = VarInt::from_u32(SessionCode::Overloaded.to_u32());
        matches!(event, Event::Lost(ConnectionError::ApplicationClosed(close)) if close.error_code == overloaded)
    });
    peer.say(other, "all is well");
    peer.drive(|_| told.len() == 2);
    assert_eq!(told.recv().as_deref(), Ok("lost one after 1 panics"));
    assert_eq!(told.recv().as_deref(), Ok("all is well"));
    assert!(running.handle.send(()));
    assert_eq!(told.recv_timeout(PATIENCE).as_deref(), Ok("woken"));
}
