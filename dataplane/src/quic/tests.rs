//! Many streams write more than their session holds; newcomers; sessions that end.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use quinn_proto::{StreamId, TransportErrorCode, VarInt};
use underpass_proto::{FlowCode, SessionCode};

use super::pair::{HERE, Pair, THERE};
use super::*;

/// What a stream in bulk has to say at a time, as one read of a socket.
const CHUNK: usize = 64 * 1024;

/// The TLS alert of that name (RFC 7301, section 3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;

impl Pair {
    /// A dialler that has opened its first stream, which is not its to wait with the others.
    fn with_control() -> Self {
        let mut pair = Self::new();
        let control = pair.here.quic.open(pair.session);
        assert_eq!(control, Some(stream_scheduler::control()));
        pair
    }

    /// The far end reads all that it hears; the near end's events are left to the test.
    fn turn(&mut self) {
        self.carry(|there| {
            for (session, event) in std::mem::take(&mut there.events) {
                if let Event::Readable(stream) | Event::Opened(stream) = event {
                    let mut chunks = Vec::new();
                    let _ = there
                        .quic
                        .read(session, stream, usize::MAX, usize::MAX, &mut chunks);
                }
            }
        });
    }

    fn until(&mut self, is_so: impl FnMut(&mut Self) -> bool) {
        self.turn_until(Self::turn, is_so);
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
        let amount = Amount::of(bytes, false);
        let written = self
            .here
            .quic
            .write(self.session, stream, &mut chunks, amount);
        written.unwrap_or(0)
    }
}

#[test]
fn streams_in_bulk_get_alike_and_a_small_one_does_not_wait_for_all_of_them() {
    const STREAMS: usize = 60;
    let mut pair = Pair::with_control();
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
        // Each writes one chunk whenever it may, as a flow does whose socket always has more; who
        // has written has read again by the next turn.
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
    let mut pair = Pair::with_control();
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
    let mut pair = Pair::with_control();
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
    let mut pair = Pair::with_control();
    // A session whose handshake the peer has not confirmed is ended without a reason (RFC 9000,
    // section 10.2.3).
    for _ in 0..20 {
        pair.turn();
    }
    let far = pair.far;
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
    let mut pair = Pair::with_control();
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
        ..
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

#[test]
fn a_relay_that_has_as_many_sessions_as_it_may_says_so_to_a_newcomer() {
    let mut pair = Pair::new();
    pair.there.quic.live = SESSIONS_MAX;
    let trust = pair.trust.clone();
    let refused = pair.here.dial(&trust);
    pair.carry_until(|pair| {
        let mut events = pair.here.events.drain(..);
        events.any(|(session, event)| {
            session == refused
                && matches!(&event, Event::Lost(ConnectionError::ConnectionClosed(close))
                    if close.error_code == TransportErrorCode::CONNECTION_REFUSED)
        })
    });
    assert_eq!(pair.there.quic.handshakes().begun, 1);
}

#[test]
fn who_speaks_another_protocol_is_told_so_and_takes_no_place() {
    let mut pair = Pair::new();
    let stranger = strange_client(&pair.trust);
    let now = pair.now();
    let dialled = pair.here.quic.connect(now, stranger, THERE, "localhost");
    let dialled = dialled.expect("dialled");
    pair.carry_until(|pair| {
        let mut events = pair.here.events.drain(..);
        events.any(|(session, event)| {
            session == dialled
                && matches!(&event, Event::Lost(ConnectionError::ConnectionClosed(close))
                    if close.error_code == TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL))
        })
    });
    assert_eq!(pair.there.quic.sessions_live(), 1, "the pair's own");
}

#[test]
fn newcomers_that_have_proven_their_address_wait_as_many_as_may_and_not_for_ever() {
    let mut pair = Pair::new();
    for n in 0..admission::UNDER_WAY_MAX {
        let from = Ipv4Addr::from(u32::try_from(n).expect("few"));
        let _ = pair.there.quic.admission.begun(from.into());
    }
    let trust = pair.trust.clone();
    let dialled = admission::WAITING_OF_ONE + 20;
    for _ in 0..dialled {
        pair.here.dial(&trust);
    }
    // Some wait, and those beyond are not heard.
    pair.carry_until(|pair| pair.there.quic.handshakes().ignored >= 20);
    let told = pair.there.quic.handshakes();
    assert_eq!(told.begun, 1 + admission::UNDER_WAY_MAX as u64);
    assert!(told.asked >= dialled as u64, "{told:?}");
    assert!(told.ignored < dialled as u64 / 2, "{told:?}");
    pair.pass(Duration::from_secs(4));
    pair.carry(|_| {});
    let told = pair.there.quic.handshakes();
    assert!(told.ignored >= dialled as u64, "{told:?}");
}

/// A client whose first words are one datagram, as those without a post-quantum key are, and ask
/// for a protocol that no relay speaks.
fn strange_client(trust: &config::Trust) -> ClientConfig {
    let config::Trust::Authorities(authorities) = trust else {
        panic!("a pair trusts its certificate");
    };
    let mut roots = rustls::RootCertStore::empty();
    for der in authorities {
        roots.add(der.clone().into()).expect("a certificate");
    }
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![rustls::crypto::aws_lc_rs::kx_group::X25519],
        ..rustls::crypto::aws_lc_rs::default_provider()
    };
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let quic = quinn_proto::crypto::rustls::QuicClientConfig::try_from(tls);
    ClientConfig::new(Arc::new(quic.expect("a client")))
}
