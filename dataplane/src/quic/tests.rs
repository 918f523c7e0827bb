//! Two drivers, and datagrams carried between them by hand: many streams write more than their session holds.

use std::net::Ipv4Addr;

use quinn_proto::StreamId;
use underpass_proto::FlowCode;

use super::config::{EndpointKeys, Server, Trust};
use super::*;
use crate::io::pipe::Pipe;

const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
const THERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 2);

/// What a stream in bulk has to say at a time, as one read of a socket.
const CHUNK: usize = 64 * 1024;

/// A turn takes this long.
const TURN: Duration = Duration::from_micros(200);

/// Turns after which something that does not come is waited for in vain.
const TURNS_MAX: usize = 20_000;

struct End {
    quic: Driver,
    io: Pipe,
    events: VecDeque<(SessionId, Event)>,
}

/// A dialler and its relay.
struct Pair {
    here: End,
    there: End,
    session: SessionId,
}

impl End {
    fn new(server: Option<Server>, now: Instant) -> Self {
        let keys = EndpointKeys::ephemeral();
        Self {
            quic: Driver::new(0, &keys, server.map(Arc::new), Some(config::MTU_MIN)),
            io: Pipe::new(now),
            events: VecDeque::new(),
        }
    }

    /// Says what it has to say to the other.
    fn say(&mut self, own: SocketAddr, other: &mut End) {
        self.quic.flush(self.io.now, &mut self.io);
        for (_, datagrams) in self.io.take() {
            other.io.put(own, &datagrams);
        }
        for batch in other.io.heard() {
            other.quic.receive(other.io.now, batch, &mut other.io);
        }
    }
}

impl Pair {
    fn new() -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let certificate = certified.cert.der().to_vec();
        let key = certified.signing_key.serialize_der();
        let server = Server::new(vec![certificate.clone()], key, [7; 32]).expect("a server");
        let now = Instant::now();
        let mut here = End::new(None, now);
        let trust = Trust::Authorities(vec![certificate]);
        let client = config::client(&trust, cid::towards(0, &mut rand::rng()), config::MTU_MIN);
        let client = client.expect("a client");
        let session = here.quic.connect(now, client, THERE, "localhost");
        let mut pair = Self {
            session: session.expect("dialled"),
            there: End::new(Some(server), now),
            here,
        };
        pair.until(|pair| {
            let events = &mut pair.here.events;
            events
                .drain(..)
                .any(|(_, event)| matches!(event, Event::Connected))
        });
        let control = pair.here.quic.open(pair.session);
        assert_eq!(control, Some(turns::control()));
        pair
    }

    /// The far end reads all that it hears; the near end's events are left to the test.
    fn turn(&mut self) {
        let Self { here, there, .. } = self;
        here.io.now += TURN;
        there.io.now = here.io.now;
        here.quic.fire_timers(here.io.now);
        there.quic.fire_timers(here.io.now);
        here.say(HERE, there);
        there.quic.poll(&mut there.events);
        for (session, event) in std::mem::take(&mut there.events) {
            if let Event::Readable(stream) | Event::Opened(stream) = event {
                let mut chunks = Vec::new();
                let _ = there
                    .quic
                    .read(session, stream, usize::MAX, usize::MAX, &mut chunks);
            }
        }
        there.say(THERE, here);
        here.quic.poll(&mut here.events);
    }

    fn until(&mut self, mut is_so: impl FnMut(&mut Self) -> bool) {
        for _ in 0..TURNS_MAX {
            if is_so(self) {
                return;
            }
            self.turn();
        }
        panic!("waited in vain");
    }

    fn open(&mut self) -> StreamId {
        self.here.quic.open(self.session).expect("a stream")
    }

    /// Writes until the session has no room, and tells a stream that waits for it.
    fn fill(&mut self) -> StreamId {
        loop {
            let stream = self.open();
            while self.write(stream, CHUNK) > 0 {}
            if self.here.quic.is_waiting(self.session, stream) {
                return stream;
            }
        }
    }

    fn write(&mut self, stream: StreamId, bytes: usize) -> usize {
        let mut chunks = [Bytes::from(vec![7; bytes])];
        let written = self.here.quic.write(self.session, stream, &mut chunks);
        written.unwrap_or(0)
    }
}

#[test]
fn streams_in_bulk_get_alike_and_a_small_one_does_not_wait_for_all_of_them() {
    const STREAMS: usize = 60;
    let mut pair = Pair::new();
    let streams: Vec<StreamId> = (0..STREAMS).map(|_| pair.open()).collect();
    let mut written = vec![0; STREAMS];
    let mut ready: VecDeque<usize> = (0..STREAMS).collect();
    let most = 40 * CHUNK;
    pair.until(|pair| {
        for (_, event) in pair.here.events.drain(..) {
            if let Event::Writable(stream) = event
                && let Some(nth) = streams.iter().position(|own| *own == stream)
            {
                ready.push_back(nth);
            }
        }
        // Each writes one chunk whenever it may, as a flow does whose socket always has more; who has written has read again by the next turn.
        for nth in std::mem::take(&mut ready) {
            written[nth] += pair.write(streams[nth], CHUNK);
        }
        let waits = |nth: &usize| pair.here.quic.is_waiting(pair.session, streams[*nth]);
        let others: Vec<usize> = (0..STREAMS).filter(|nth| !waits(nth)).collect();
        for nth in others {
            written[nth] += pair.write(streams[nth], CHUNK);
        }
        written.iter().any(|bytes| *bytes >= most)
    });
    let least = written.iter().min().copied().unwrap_or(0);
    assert!(least * 4 >= most * 3, "{written:?}");

    // All of them wait, or will: one that comes now with little to say is served within a few.
    let small = pair.open();
    let before: usize = written.iter().sum();
    let mut said = pair.write(small, 100);
    pair.until(|pair| {
        for (_, event) in std::mem::take(&mut pair.here.events) {
            let Event::Writable(stream) = event else {
                continue;
            };
            if stream == small {
                said += pair.write(small, 100);
            } else if let Some(nth) = streams.iter().position(|own| *own == stream) {
                written[nth] += pair.write(stream, CHUNK);
            }
        }
        said > 0
    });
    let meanwhile = written.iter().sum::<usize>() - before;
    assert!(meanwhile <= STREAMS / 2 * CHUNK, "{meanwhile}");
}

#[test]
fn last_words_are_said_as_soon_as_there_is_room() {
    let mut pair = Pair::new();
    let bulk = pair.fill();
    let stream = pair.open();
    pair.here
        .quic
        .say_last(pair.session, stream, Bytes::from_static(b"elsewhere"));
    assert!(pair.here.quic.is_waiting(pair.session, stream));
    // Its end is acknowledged once all of it has come.
    pair.until(|pair| {
        let mut events = pair.here.events.drain(..);
        events.any(|(_, event)| matches!(event, Event::Finished(of) if of == stream))
    });
    assert!(pair.write(bulk, CHUNK) > 0, "there is room again");
}

#[test]
fn who_waits_and_is_given_up_keeps_nobody_from_a_turn() {
    let mut pair = Pair::new();
    let bulk = pair.fill();
    let given_up = pair.open();
    assert_eq!(pair.write(given_up, 100), 0);
    pair.here
        .quic
        .abort(pair.session, given_up, FlowCode::Aborted);
    pair.until(|pair| {
        let mut events = pair.here.events.drain(..);
        events.any(|(_, event)| matches!(event, Event::Writable(of) if of == bulk))
    });
    assert!(pair.write(bulk, CHUNK) > 0);
}

#[test]
fn why_a_peer_ended_a_session_is_not_lost_to_a_stateless_reset_behind_it() {
    let mut pair = Pair::new();
    // A session whose handshake the peer has not confirmed is ended without a reason (RFC 9000, section 10.2.3).
    for _ in 0..20 {
        pair.turn();
    }
    let far = SessionId {
        index: 0,
        generation: 1,
    };
    let there = &mut pair.there;
    there.quic.close(there.io.now, far, SessionCode::Replaced);
    there.quic.flush(there.io.now, &mut there.io);
    let mut said = there.io.take();
    assert_eq!(said.len(), 1);
    // So late that nothing is left of it there.
    there.io.now += Duration::from_secs(5);
    there.quic.fire_timers(there.io.now);
    there.quic.poll(&mut there.events);
    assert_eq!(there.quic.sessions_live(), 0);
    let stream = pair.open();
    assert_eq!(pair.write(stream, 1_000), 1_000);
    let Pair { here, there, .. } = &mut pair;
    here.say(HERE, there);
    said.extend(there.io.take());
    assert!(said.len() > 1, "a stateless reset is the answer");
    for (_, datagram) in said {
        here.io.put(THERE, &datagram);
    }
    for batch in here.io.heard() {
        here.quic.receive(here.io.now, batch, &mut here.io);
    }
    here.quic.poll(&mut here.events);
    let replaced = VarInt::from_u32(SessionCode::Replaced.to_u32());
    let lost = here.events.iter().find_map(|(_, event)| match event {
        Event::Lost(why) => Some(why),
        _ => None,
    });
    assert!(
        matches!(lost, Some(ConnectionError::ApplicationClosed(close)) if close.error_code == replaced),
        "{lost:?}"
    );
}

#[test]
fn a_session_that_is_over_is_forgotten_though_its_peer_stood_still_for_long() {
    let mut pair = Pair::new();
    for _ in 0..20 {
        pair.turn();
    }
    // The answer takes 12 s, which the core takes for the path's round trip.
    let stream = pair.open();
    assert_eq!(pair.write(stream, 1_000), 1_000);
    let Pair {
        here,
        there,
        session,
    } = &mut pair;
    here.say(HERE, there);
    here.io.now += Duration::from_secs(12);
    there.io.now = here.io.now;
    there.quic.fire_timers(there.io.now);
    there.say(THERE, here);
    here.quic.poll(&mut here.events);
    here.quic.close(here.io.now, *session, SessionCode::Done);
    here.quic.flush(here.io.now, &mut here.io);
    here.io.now += CLOSING_MAX - Duration::from_secs(1);
    here.quic.fire_timers(here.io.now);
    here.quic.poll(&mut here.events);
    assert_eq!(here.quic.sessions_live(), 1, "what is on its way may come");
    here.io.now += Duration::from_secs(1);
    here.quic.fire_timers(here.io.now);
    assert_eq!(here.quic.sessions_live(), 0);
}
