//! Two drivers, and datagrams carried between them by hand: what tests of sessions stand on.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{self, EndpointKeys, Server, Trust};
use super::{Driver, Event, SessionId, cid};
use crate::io::pipe::Pipe;

pub(crate) const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
pub(crate) const THERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2);

/// A turn takes this long.
pub(crate) const TURN: Duration = Duration::from_micros(200);

/// Turns after which something that does not come is waited for in vain.
const TURNS_MAX: usize = 20_000;

/// One of the two.
pub(crate) struct End {
    pub(crate) quic: Driver,
    pub(crate) io: Pipe,
    pub(crate) events: VecDeque<(SessionId, Event)>,
}

/// A dialler and its relay, and their session.
pub(crate) struct Pair {
    pub(crate) here: End,
    pub(crate) there: End,
    /// How the dialler names it.
    pub(crate) session: SessionId,
    /// How the relay names it.
    pub(crate) far: SessionId,
    /// What the dialler trusts.
    pub(crate) trust: Trust,
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
    pub(crate) fn say(&mut self, own: SocketAddr, other: &mut Self) {
        self.quic.flush(self.io.now, &mut self.io);
        for (_, datagrams) in self.io.take() {
            other.io.put(own, &datagrams);
        }
        for batch in other.io.heard() {
            other.quic.receive(other.io.now, batch, &mut other.io);
        }
    }

    /// Dials.
    pub(crate) fn dial(&mut self, trust: &Trust) -> SessionId {
        let first = cid::towards(0, &mut rand::rng());
        let client = config::client(trust, first, config::MTU_MIN).expect("a client");
        let session = self.quic.connect(self.io.now, client, THERE, "localhost");
        session.expect("dialled")
    }
}

impl Pair {
    /// Both have shaken hands, and nothing was said since.
    pub(crate) fn new() -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let certificate = certified.cert.der().to_vec();
        let key = certified.signing_key.serialize_der();
        let server = Server::new(vec![certificate.clone()], key, [7; 32]).expect("a server");
        let now = Instant::now();
        let trust = Trust::Authorities(vec![certificate]);
        let mut here = End::new(None, now);
        let session = here.dial(&trust);
        let mut pair = Self {
            here,
            there: End::new(Some(server), now),
            session,
            far: session,
            trust,
        };
        let (mut near, mut far) = (false, None);
        pair.carry_until(|pair| {
            let connected = |(_, event): &(_, Event)| matches!(event, Event::Connected);
            near |= pair.here.events.drain(..).any(|said| connected(&said));
            far = far.or(pair
                .there
                .events
                .drain(..)
                .find(connected)
                .map(|(id, _)| id));
            near && far.is_some()
        });
        pair.far = far.expect("it is connected");
        pair
    }

    /// The time, for both.
    pub(crate) fn now(&self) -> Instant {
        self.here.io.now
    }

    /// Lets time pass, in which nothing is carried.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.here.io.now += time;
        self.there.io.now = self.here.io.now;
        self.here.quic.fire_timers(self.here.io.now);
        self.there.quic.fire_timers(self.here.io.now);
    }

    /// What the dialler says is carried over, `far` does with it what it wants, and what the relay
    /// says is carried back.
    pub(crate) fn carry(&mut self, far: impl FnOnce(&mut End)) {
        self.pass(TURN);
        let Self { here, there, .. } = self;
        here.say(HERE, there);
        there.quic.poll(&mut there.events);
        far(there);
        there.say(THERE, here);
        here.quic.poll(&mut here.events);
    }

    /// Turns, with all events left to the test, until it is so.
    pub(crate) fn carry_until(&mut self, is_so: impl FnMut(&mut Self) -> bool) {
        self.turn_until(|pair| pair.carry(|_| {}), is_so);
    }

    pub(crate) fn turn_until(
        &mut self,
        mut turn: impl FnMut(&mut Self),
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) {
        for _ in 0..TURNS_MAX {
            if is_so(self) {
                return;
            }
            turn(self);
        }
        panic!("waited in vain");
    }
}
