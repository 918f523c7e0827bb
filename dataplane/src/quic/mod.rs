//! The QUIC driver: quinn's protocol core, driven directly by a worker's loop.
//!
//! Datagrams go in, [`Event`]s come out, and [`Driver::flush`] sends all that became ready in one
//! go. No task, no lock, no channel. Knows sessions (QUIC connections) and streams; what travels in
//! them is the business of the relay and the agent.

mod admission;
pub mod cid;
pub mod config;
mod credit;
mod ends;
mod event;
mod health;
mod mtu_blackhole;
mod newcomers;
#[cfg(test)]
pub(crate) mod pair;
mod pulse;
mod reason;
mod session;
mod stream_scheduler;
mod streams;
mod timers;
pub mod verify;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, ConnectError, Connection, ConnectionError, ConnectionHandle, DatagramEvent,
    Endpoint, Incoming, StreamId,
};
use rand::rngs::StdRng;
use underpass_proto::Exporter;
use underpass_proto::proof::EXPORTER_LABEL;

use self::admission::Admission;
pub use self::admission::Handshakes;
use self::credit::Credit;
use self::ends::CLOSING_MAX;
pub use self::event::Event;
use self::event::translate;
pub use self::health::{Path, Side};
pub use self::pulse::Pulse;
pub(crate) use self::reason::{kind, reason};
use self::session::{Flushed, Session};
pub use self::stream_scheduler::Amount;
pub use self::streams::{Read, WriteError};
use crate::budget::Budget;
use crate::guard::guarded;
use crate::io::{self, DATAGRAMS_SIZE, Io};
use crate::network::Network;

/// Session slots beyond which a newcomer is refused unheard: about 100 KiB of state each.
const SESSIONS_MAX: usize = 16_384;

/// Answers to strangers that may wait for a buffer, of some 100 bytes each.
const RESPONSES_MAX: usize = 1_024;

/// A session on this worker. Never reused for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId {
    index: u32,
    generation: u32,
}

/// What a driver stands on beside its sockets.
pub(crate) struct DriverContext {
    /// The widest datagram that the interface towards a peer takes, bytes.
    pub(crate) mtu_of: fn(SocketAddr) -> u16,
    /// Where the chance of its endpoint comes from.
    pub(crate) rng: StdRng,
}

/// All sessions of one worker.
pub struct Driver {
    endpoint: Endpoint,
    sessions: Vec<Option<Session>>,
    live: usize,
    generation: u32,
    dirty: VecDeque<SessionId>,
    timers: BinaryHeap<Reverse<(Instant, SessionId)>>,
    /// Where the protocol core writes a reply that belongs to no session.
    scratch: Vec<u8>,
    mtu_max: Option<u16>,
    mtu_of: fn(SocketAddr) -> u16,
    server: Option<Arc<config::Server>>,
    /// Answers to strangers for which no buffer was free.
    responses: VecDeque<(io::Transmit, Vec<u8>)>,
    /// Sessions that a defect ended, and of which that was not told yet.
    broken: Vec<SessionId>,
    /// Streams of which more is to be read in the next turn, though nothing new comes.
    later: BTreeSet<(SessionId, StreamId)>,
    panics: u64,
    admission: Admission<Incoming>,
    /// Handshakes that were begun, by their deadline.
    unfinished: VecDeque<(Instant, SessionId)>,
    /// Sessions that are over, and when they are forgotten at the latest.
    closing: VecDeque<(Instant, SessionId)>,
    /// What sessions that others dial may hold, all of them.
    budget: Arc<Budget>,
    /// Sessions that got less credit than they could use, until it suffices.
    short: Vec<SessionId>,
}

impl SessionId {
    /// Any session, for tests and benchmarks of what is said about sessions.
    pub(crate) fn of_test(index: u32) -> Self {
        Self {
            index,
            generation: 1,
        }
    }
}

impl Ord for SessionId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.index, self.generation).cmp(&(other.index, other.generation))
    }
}

impl PartialOrd for SessionId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Driver {
    /// A driver that dials and, where `server` is given, also takes sessions. `worker` marks the
    /// connection IDs that it makes.
    #[must_use]
    pub fn new(
        worker: u8,
        keys: &config::EndpointKeys,
        server: Option<Arc<config::Server>>,
        mtu_max: Option<u16>,
    ) -> Self {
        let context = DriverContext {
            mtu_of: io::udp::path_mtu,
            rng: rand::make_rng(),
        };
        Self::on(context, worker, keys, server, mtu_max)
    }

    /// The same on another ground than this machine's.
    #[must_use]
    pub(crate) fn on(
        mut context: DriverContext,
        worker: u8,
        keys: &config::EndpointKeys,
        server: Option<Arc<config::Server>>,
        mtu_max: Option<u16>,
    ) -> Self {
        let quic_server = server
            .as_ref()
            .map(|server| server.quic(None, u64::from(config::SESSION_WINDOW)));
        let endpoint = Endpoint::new(
            Arc::new(config::endpoint(
                worker,
                keys,
                server.is_none(),
                &mut context.rng,
            )),
            quic_server,
            true,
            None,
        );
        Self {
            endpoint,
            sessions: Vec::new(),
            live: 0,
            generation: 0,
            dirty: VecDeque::new(),
            timers: BinaryHeap::new(),
            scratch: Vec::with_capacity(DATAGRAMS_SIZE),
            mtu_max,
            mtu_of: context.mtu_of,
            server,
            responses: VecDeque::new(),
            broken: Vec::new(),
            later: BTreeSet::new(),
            panics: 0,
            admission: Admission::default(),
            unfinished: VecDeque::new(),
            closing: VecDeque::new(),
            budget: Arc::default(),
            short: Vec::new(),
        }
    }

    /// Shares this budget with other workers.
    pub(crate) fn share_budget(&mut self, budget: Arc<Budget>) {
        self.budget = budget;
    }

    /// Replaces what newcomers are served with; live sessions keep what they have.
    pub fn set_server(&mut self, server: Arc<config::Server>) {
        self.endpoint
            .set_server_config(Some(server.quic(None, u64::from(config::SESSION_WINDOW))));
        self.server = Some(server);
    }

    /// Starts a session. [`Event::Connected`] or [`Event::Lost`] follows.
    ///
    /// # Errors
    /// An address or a name that cannot be dialled.
    pub fn connect(
        &mut self,
        now: Instant,
        config: ClientConfig,
        remote: SocketAddr,
        server_name: &str,
    ) -> Result<SessionId, ConnectError> {
        let (handle, connection) = self.endpoint.connect(now, config, remote, server_name)?;
        Ok(self.insert(now, handle, connection, None, None))
    }

    /// Takes one batch of datagrams: each is decrypted in place later, none is copied.
    pub fn receive(&mut self, now: Instant, mut batch: io::Datagrams, io: &mut impl Io) {
        while !batch.data.is_empty() {
            let len = batch.stride.min(batch.data.len());
            let datagram = batch.data.split_to(len);
            self.datagram(now, &batch, datagram, io);
        }
    }

    fn datagram(
        &mut self,
        now: Instant,
        batch: &io::Datagrams,
        datagram: BytesMut,
        io: &mut impl Io,
    ) {
        // A newcomer may wait for its turn, and the buffer that all of its batch share is large.
        let datagram = if is_initial(&datagram) {
            BytesMut::from(&datagram[..])
        } else {
            datagram
        };
        self.scratch.clear();
        let Self {
            endpoint, scratch, ..
        } = self;
        let (remote, local_ip, ecn) = (batch.remote, batch.local_ip, batch.ecn);
        let handled = guarded(|| endpoint.handle(now, remote, local_ip, ecn, datagram, scratch));
        let Some(event) = handled else {
            self.panics += 1;
            return;
        };
        match event {
            None => {}
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(Some(session)) = self.sessions.get_mut(handle.0) else {
                    return;
                };
                if session.connection.is_closed() && !session.lost {
                    // The peer has ended it and said why, which nobody was told yet: a stateless
                    // reset behind that would take the reason's place.
                    return;
                }
                session.vitals.receives(now);
                let id = SessionId {
                    index: index_of(handle),
                    generation: session.generation,
                };
                match guarded(|| session.connection.handle_event(event)) {
                    Some(()) => self.mark(id),
                    None => self.break_off(id),
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.incoming(now, incoming, io),
            Some(DatagramEvent::Response(transmit)) => self.respond(transmit, io),
        }
    }

    /// Sends what the endpoint wrote to the scratch buffer, or keeps it until a buffer is free. A
    /// crowd of newcomers is answered in one turn, and one whose answer is lost would say the same
    /// again, with all others.
    fn respond(&mut self, transmit: quinn_proto::Transmit, io: &mut impl Io) {
        let said = &self.scratch[..transmit.size];
        match io.datagram_buffer() {
            Some(mut buffer) => {
                buffer.data.extend_from_slice(said);
                io.send_datagrams(buffer, &outgoing(&transmit));
            }
            None if self.responses.len() < RESPONSES_MAX => {
                self.responses
                    .push_back((outgoing(&transmit), said.to_vec()));
            }
            None => {} // Lost, as datagrams are.
        }
    }

    /// Sends responses that were kept.
    fn send_responses(&mut self, io: &mut impl Io) {
        while !self.responses.is_empty() {
            let Some(mut buffer) = io.datagram_buffer() else {
                return;
            };
            if let Some((transmit, said)) = self.responses.pop_front() {
                buffer.data.extend_from_slice(&said);
                io.send_datagrams(buffer, &transmit);
            }
        }
    }

    fn insert(
        &mut self,
        now: Instant,
        handle: ConnectionHandle,
        connection: Connection,
        newcomer: Option<Network>,
        credit: Option<Credit>,
    ) -> SessionId {
        if self.sessions.len() <= handle.0 {
            self.sessions.resize_with(handle.0 + 1, || None);
        }
        self.generation = self.generation.wrapping_add(1);
        self.live += 1;
        let id = SessionId {
            index: index_of(handle),
            generation: self.generation,
        };
        let session = Session::new(connection, self.generation, now, newcomer, credit);
        self.sessions[handle.0] = Some(session);
        self.mark(id);
        id
    }

    /// Lets every session that something happened to say what it means. Call until it adds nothing.
    pub fn poll(&mut self, events: &mut VecDeque<(SessionId, Event)>) {
        for at in 0..self.dirty.len() {
            let id = self.dirty[at];
            if guarded(|| self.poll_session(id, events)).is_none() {
                self.break_off(id);
            }
        }
        for id in self.broken.drain(..) {
            events.push_back((id, Event::Lost(ConnectionError::LocallyClosed)));
        }
    }

    fn poll_session(&mut self, id: SessionId, events: &mut VecDeque<(SessionId, Event)>) {
        let Some(Some(session)) = self.sessions.get_mut(id.index as usize) else {
            return;
        };
        if session.generation != id.generation {
            return;
        }
        let was_lost = session.lost;
        let mut drained = false;
        while let Some(event) = session.connection.poll_endpoint_events() {
            drained |= event.is_drained();
            if let Some(event) = self
                .endpoint
                .handle_event(ConnectionHandle(id.index as usize), event)
            {
                session.connection.handle_event(event);
            }
        }
        while let Some(event) = session.connection.poll() {
            translate(session, id, event, events);
        }
        if std::mem::take(&mut session.vitals.answered) {
            events.push_back((id, Event::Answered));
        }
        session.call_next(id, events);
        session.lost |= drained;
        if session.lost && !was_lost {
            self.closing
                .push_back((session.vitals.last_received + CLOSING_MAX, id));
        }
        self.note_handshake(id);
        if drained {
            self.sessions[id.index as usize] = None;
            self.live -= 1;
        }
    }

    /// Sends what became ready, session by session, each a bounded share at a time. Sessions that
    /// could not send all stay ready. True when there is more to send that waits for nothing but
    /// its turn.
    pub fn flush(&mut self, now: Instant, io: &mut impl Io) -> bool {
        self.send_responses(io);
        let segments_max = io.max_segments();
        let mut again = VecDeque::new();
        let mut starved = false;
        while let Some(id) = self.dirty.pop_front() {
            let Some(session) = lookup(&mut self.sessions, id) else {
                continue;
            };
            let flushed = if starved {
                Some(Flushed::Starved)
            } else {
                guarded(|| session.flush(now, segments_max, io))
            };
            let Some(flushed) = flushed else {
                self.break_off(id);
                continue;
            };
            match flushed {
                Flushed::All => {
                    session.dirty = false;
                    if session.is_newly_short() {
                        self.short.push(id);
                    }
                    Self::schedule(&mut self.timers, session, id);
                }
                Flushed::Part => again.push_back(id),
                Flushed::Starved => {
                    starved = true;
                    again.push_back(id);
                    Self::schedule(&mut self.timers, session, id);
                }
            }
        }
        self.dirty = again;
        // They have something to say, and are flushed in the next turn.
        let newcomers = self.admit(now, io);
        !starved && (newcomers || !self.dirty.is_empty())
    }

    fn mark(&mut self, id: SessionId) {
        if let Some(session) = lookup(&mut self.sessions, id)
            && !session.dirty
        {
            session.dirty = true;
            self.dirty.push_back(id);
        }
    }

    fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        lookup(&mut self.sessions, id)
    }

    /// The secret that both ends of this session share and nobody else knows (RFC 8446, section
    /// 7.5).
    #[must_use]
    pub fn exporter(&mut self, id: SessionId) -> Option<Exporter> {
        let session = self.session(id)?;
        let mut secret = [0; 32];
        session
            .connection
            .crypto_session()
            .export_keying_material(&mut secret, EXPORTER_LABEL, &[])
            .ok()?;
        Some(Exporter(secret))
    }

    /// Sessions that exist, also those that are closing.
    #[must_use]
    pub fn sessions_live(&self) -> usize {
        self.live
    }

    /// The widest datagram to try towards `remote`.
    #[must_use]
    pub fn mtu_to(&self, remote: SocketAddr) -> u16 {
        let mtu = (self.mtu_of)(remote);
        self.mtu_max.map_or(mtu, |most| most.min(mtu))
    }
}

fn lookup(sessions: &mut [Option<Session>], id: SessionId) -> Option<&mut Session> {
    sessions
        .get_mut(id.index as usize)?
        .as_mut()
        .filter(|session| session.generation == id.generation)
}

/// Whether a datagram begins with an Initial packet (RFC 9000, section 17.2.2), as a newcomer's
/// does.
fn is_initial(datagram: &[u8]) -> bool {
    matches!(datagram, [first, ..] if first & 0xf0 == 0xc0)
}

fn outgoing(transmit: &quinn_proto::Transmit) -> io::Transmit {
    io::Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn,
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    }
}

fn index_of(handle: ConnectionHandle) -> u32 {
    u32::try_from(handle.0).expect("session slots are bounded")
}

#[cfg(test)]
mod tests;
