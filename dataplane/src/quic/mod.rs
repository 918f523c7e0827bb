//! The QUIC driver: quinn's protocol core, driven directly by a worker's loop.
//!
//! Datagrams go in, [`Event`]s come out, and [`Driver::flush`] sends all that became ready in one go. No task, no lock, no channel.
//! Knows sessions (QUIC connections) and streams; what travels in them is the business of the relay and the agent.

pub mod cid;
pub mod config;
pub mod verify;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, ConnectError, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir,
    Endpoint, Incoming, RecvStream, SendStream, StreamEvent, StreamId, VarInt,
};
use underpass_proto::proof::EXPORTER_LABEL;
use underpass_proto::{Exporter, FlowCode, SessionCode};

use crate::io::{self, DATAGRAMS_SIZE, Io};

/// GSO sends that one session may make before the next one has its turn.
const SENDS_PER_TURN: usize = 8;

/// Session slots beyond which a newcomer is refused unheard: about 100 KiB of state each.
const SESSIONS_MAX: usize = 16_384;

/// A session on this worker. Never reused for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SessionId {
    index: u32,
    generation: u32,
}

/// What happened to a session or to one of its streams.
#[derive(Debug)]
pub enum Event {
    /// The TLS handshake is done; nobody is authorised yet.
    Connected,
    /// The session is over; its streams are gone.
    Lost(ConnectionError),
    /// The peer opened this stream.
    Opened(StreamId),
    /// A stream may have data, its end or a reset.
    Readable(StreamId),
    /// A stream that was blocked may be written.
    Writable(StreamId),
    /// All of a finished stream was acknowledged.
    Finished(StreamId),
    /// The peer wants no more of this stream.
    Stopped(StreamId, FlowCode),
    /// The peer allows more streams.
    Available,
}

impl Event {
    /// The stream that it is about.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Opened(stream)
            | Self::Readable(stream)
            | Self::Writable(stream)
            | Self::Finished(stream)
            | Self::Stopped(stream, _) => Some(*stream),
            Self::Connected | Self::Lost(_) | Self::Available => None,
        }
    }
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
    server: Option<Arc<config::Server>>,
    refused: u64,
}

struct Session {
    connection: Connection,
    generation: u32,
    dirty: bool,
    /// The earliest timer in the heap; a later deadline of the connection is found when it fires.
    scheduled: Option<Instant>,
    last_heard: Instant,
    since: Instant,
    lost: bool,
}

#[cfg(test)]
impl SessionId {
    /// Any session, for tests of what is said about sessions.
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
    /// A driver that dials and, where `server` is given, also takes sessions. `worker` marks the connection IDs that it makes.
    #[must_use]
    pub fn new(
        worker: u8,
        keys: &config::EndpointKeys,
        server: Option<Arc<config::Server>>,
        mtu_max: Option<u16>,
    ) -> Self {
        let quic_server = server.as_ref().map(|server| server.quic(None));
        let endpoint = Endpoint::new(
            Arc::new(config::endpoint(worker, keys)),
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
            server,
            refused: 0,
        }
    }

    /// Replaces what newcomers are served with; live sessions keep what they have.
    pub fn set_server(&mut self, server: Arc<config::Server>) {
        self.endpoint.set_server_config(Some(server.quic(None)));
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
        Ok(self.insert(now, handle, connection))
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
        self.scratch.clear();
        let event = self.endpoint.handle(
            now,
            batch.remote,
            batch.local_ip,
            batch.ecn,
            datagram,
            &mut self.scratch,
        );
        match event {
            None => {}
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(Some(session)) = self.sessions.get_mut(handle.0) else {
                    return;
                };
                session.last_heard = now;
                session.connection.handle_event(event);
                let id = SessionId {
                    index: index_of(handle),
                    generation: session.generation,
                };
                self.mark(id);
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.incoming(now, incoming, io),
            Some(DatagramEvent::Response(transmit)) => self.respond(transmit, io),
        }
    }

    fn incoming(&mut self, now: Instant, incoming: Incoming, io: &mut impl Io) {
        let Some(server) = self.server.clone() else {
            return self.endpoint.ignore(incoming);
        };
        self.scratch.clear();
        if self.live >= SESSIONS_MAX {
            self.refused += 1;
            let transmit = self.endpoint.refuse(incoming, &mut self.scratch);
            return self.respond(transmit, io);
        }
        let mtu = io::udp::path_mtu(incoming.remote_address());
        let mtu = self.mtu_max.map_or(mtu, |most| most.min(mtu));
        match self.endpoint.accept(
            incoming,
            now,
            &mut self.scratch,
            Some(server.quic(Some(mtu))),
        ) {
            Ok((handle, connection)) => {
                self.insert(now, handle, connection);
            }
            Err(error) => {
                self.refused += 1;
                if let Some(transmit) = error.response {
                    self.respond(transmit, io);
                }
            }
        }
    }

    /// Sends what the endpoint wrote to the scratch buffer; lost when no buffer is free, as datagrams are.
    fn respond(&mut self, transmit: quinn_proto::Transmit, io: &mut impl Io) {
        let Some(mut buffer) = io.datagram_buffer() else {
            return;
        };
        buffer
            .data
            .extend_from_slice(&self.scratch[..transmit.size]);
        io.send_datagrams(buffer, &outgoing(&transmit));
    }

    fn insert(
        &mut self,
        now: Instant,
        handle: ConnectionHandle,
        connection: Connection,
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
        self.sessions[handle.0] = Some(Session {
            connection,
            generation: self.generation,
            dirty: false,
            scheduled: None,
            last_heard: now,
            since: now,
            lost: false,
        });
        self.mark(id);
        id
    }

    /// Lets every session that something happened to say what it means. Call until it adds nothing.
    pub fn poll(&mut self, events: &mut VecDeque<(SessionId, Event)>) {
        for at in 0..self.dirty.len() {
            let id = self.dirty[at];
            self.poll_session(id, events);
        }
    }

    fn poll_session(&mut self, id: SessionId, events: &mut VecDeque<(SessionId, Event)>) {
        let Some(Some(session)) = self.sessions.get_mut(id.index as usize) else {
            return;
        };
        if session.generation != id.generation {
            return;
        }
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
        if drained {
            self.sessions[id.index as usize] = None;
            self.live -= 1;
        }
    }

    /// Sends what became ready, session by session, each a bounded share at a time. Sessions that could not send all stay ready.
    /// True when there is more to send that waits for nothing but its turn.
    pub fn flush(&mut self, now: Instant, io: &mut impl Io) -> bool {
        let segments_max = io.max_segments();
        let mut again = VecDeque::new();
        let mut starved = false;
        while let Some(id) = self.dirty.pop_front() {
            let Some(session) = lookup(&mut self.sessions, id) else {
                continue;
            };
            match if starved {
                Flushed::Starved
            } else {
                session.flush(now, segments_max, io)
            } {
                Flushed::All => {
                    session.dirty = false;
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
        !starved && !self.dirty.is_empty()
    }

    fn schedule(
        timers: &mut BinaryHeap<Reverse<(Instant, SessionId)>>,
        session: &mut Session,
        id: SessionId,
    ) {
        let Some(deadline) = session.connection.poll_timeout() else {
            return;
        };
        if session
            .scheduled
            .is_none_or(|scheduled| deadline < scheduled)
        {
            session.scheduled = Some(deadline);
            timers.push(Reverse((deadline, id)));
        }
    }

    /// When [`fire_timers`](Self::fire_timers) has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Fires every timer that is due.
    pub fn fire_timers(&mut self, now: Instant) {
        while let Some(&Reverse((deadline, id))) = self.timers.peek() {
            if deadline > now {
                return;
            }
            self.timers.pop();
            let Some(session) = lookup(&mut self.sessions, id) else {
                continue;
            };
            if session.scheduled != Some(deadline) {
                continue; // An earlier one took its place.
            }
            session.scheduled = None;
            if session
                .connection
                .poll_timeout()
                .is_some_and(|due| due <= now)
            {
                session.connection.handle_timeout(now);
                self.mark(id);
            } else {
                Self::schedule(&mut self.timers, session, id);
            }
        }
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

    /// Lets the peer have this many streams open at once. Each costs memory from now on, whether it is used or not.
    pub fn allow_streams(&mut self, id: SessionId, count: u32) {
        self.mark(id);
        if let Some(session) = self.session(id) {
            let count = VarInt::from_u32(count);
            session
                .connection
                .set_max_concurrent_streams(Dir::Bi, count);
        }
    }

    /// Opens a stream to the peer, or `None` while it allows no more or the session is gone.
    pub fn open(&mut self, id: SessionId) -> Option<StreamId> {
        let session = self.session(id)?;
        if session.lost {
            return None;
        }
        session.connection.streams().open(Dir::Bi)
    }

    /// Writes chunks without a copy; returns the bytes that were taken. What was not taken stays in `chunks`, advanced.
    /// Taken in part means: call again; only `Blocked` is followed by [`Event::Writable`].
    ///
    /// # Errors
    /// [`WriteError`]
    pub fn write(
        &mut self,
        id: SessionId,
        stream: StreamId,
        chunks: &mut [Bytes],
    ) -> Result<usize, WriteError> {
        self.mark(id);
        let Some(mut sending) = self.send_stream(id, stream) else {
            return Err(WriteError::Closed);
        };
        match sending.write_chunks(chunks) {
            Ok(written) => Ok(written.bytes),
            Err(quinn_proto::WriteError::Blocked) => Err(WriteError::Blocked),
            Err(quinn_proto::WriteError::Stopped(_) | quinn_proto::WriteError::ClosedStream) => {
                Err(WriteError::Closed)
            }
        }
    }

    /// Reads at most `chunks_max` chunks and `bytes_max` bytes, in order, as slices of the received datagrams.
    ///
    /// # Errors
    /// The peer's reset code; [`FlowCode::SessionLost`] where there is no such stream any more.
    pub fn read(
        &mut self,
        id: SessionId,
        stream: StreamId,
        chunks_max: usize,
        bytes_max: usize,
        into: &mut Vec<Bytes>,
    ) -> Result<Read, FlowCode> {
        let Some(mut receiving) = self.recv_stream(id, stream) else {
            return Err(FlowCode::SessionLost);
        };
        let Ok(mut chunks) = receiving.read(true) else {
            return Err(FlowCode::SessionLost);
        };
        let mut bytes = 0;
        let read = loop {
            if into.len() >= chunks_max || bytes >= bytes_max {
                break Ok(Read::More);
            }
            match chunks.next(bytes_max - bytes) {
                Ok(Some(chunk)) => {
                    bytes += chunk.bytes.len();
                    into.push(chunk.bytes);
                }
                Ok(None) => break Ok(Read::End),
                Err(quinn_proto::ReadError::Blocked) => break Ok(Read::Empty),
                Err(quinn_proto::ReadError::Reset(code)) => break Err(flow_code(code)),
            }
        };
        let credit = chunks.finalize();
        if credit.should_transmit() || read.is_err() || matches!(read, Ok(Read::End)) {
            self.mark(id);
        }
        read
    }

    /// Ends this direction: the peer reads all that was written, then the end.
    pub fn finish(&mut self, id: SessionId, stream: StreamId) {
        self.mark(id);
        if let Some(mut sending) = self.send_stream(id, stream) {
            // Fails only where the peer stopped the stream, which its event tells.
            let _ = sending.finish();
        }
    }

    /// Ends both directions with a code: what is not delivered yet is discarded.
    pub fn abort(&mut self, id: SessionId, stream: StreamId, code: FlowCode) {
        self.mark(id);
        let code = VarInt::from_u32(code.to_u32());
        if let Some(mut sending) = self.send_stream(id, stream) {
            let _ = sending.reset(code);
        }
        if let Some(mut receiving) = self.recv_stream(id, stream) {
            let _ = receiving.stop(code);
        }
    }

    /// Wants no more of a stream.
    pub fn stop(&mut self, id: SessionId, stream: StreamId, code: FlowCode) {
        self.mark(id);
        if let Some(mut receiving) = self.recv_stream(id, stream) {
            let _ = receiving.stop(VarInt::from_u32(code.to_u32()));
        }
    }

    /// The code by which the peer reset a stream that is not being read, if it did.
    #[must_use]
    pub fn reset_of(&mut self, id: SessionId, stream: StreamId) -> Option<FlowCode> {
        let mut receiving = self.recv_stream(id, stream)?;
        match receiving.received_reset() {
            Ok(code) => code.map(flow_code),
            Err(_) => Some(FlowCode::Aborted),
        }
    }

    /// Sends this stream's bytes before those of streams with a lower priority.
    pub fn prioritise(&mut self, id: SessionId, stream: StreamId, priority: i32) {
        if let Some(mut sending) = self.send_stream(id, stream) {
            let _ = sending.set_priority(priority);
        }
    }

    fn send_stream(&mut self, id: SessionId, stream: StreamId) -> Option<SendStream<'_>> {
        self.session(id)
            .map(|session| session.connection.send_stream(stream))
    }

    fn recv_stream(&mut self, id: SessionId, stream: StreamId) -> Option<RecvStream<'_>> {
        self.session(id)
            .map(|session| session.connection.recv_stream(stream))
    }

    /// Ends a session. [`Event::Lost`] does not follow.
    pub fn close(&mut self, now: Instant, id: SessionId, code: SessionCode) {
        let Some(session) = self.session(id) else {
            return;
        };
        session.lost = true;
        session.connection.close(
            now,
            VarInt::from_u32(code.to_u32()),
            Bytes::from(code.to_string()),
        );
        self.mark(id);
    }

    /// Asks the peer for a sign of life.
    pub fn ping(&mut self, id: SessionId) {
        if let Some(session) = self.session(id) {
            session.connection.ping();
            self.mark(id);
        }
    }

    /// The secret that both ends of this session share and nobody else knows (RFC 8446, section 7.5).
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

    /// How long nothing was heard.
    #[must_use]
    pub fn silence(&self, now: Instant, id: SessionId) -> Option<Duration> {
        let session = self
            .sessions
            .get(id.index as usize)?
            .as_ref()
            .filter(|s| s.generation == id.generation)?;
        Some(now.saturating_duration_since(session.last_heard))
    }

    /// What a report says of a session.
    #[must_use]
    pub fn path(&self, id: SessionId) -> Option<Path> {
        let session = self
            .sessions
            .get(id.index as usize)?
            .as_ref()
            .filter(|s| s.generation == id.generation)?;
        Some(Path {
            remote: session.connection.remote_address(),
            rtt: session.connection.rtt(),
            mtu: session.connection.current_mtu(),
            since: session.since,
        })
    }

    /// Sessions that exist, also those that are closing.
    #[must_use]
    pub fn sessions_live(&self) -> usize {
        self.live
    }

    /// The widest datagram to try towards `remote`.
    #[must_use]
    pub fn mtu_to(&self, remote: SocketAddr) -> u16 {
        let mtu = io::udp::path_mtu(remote);
        self.mtu_max.map_or(mtu, |most| most.min(mtu))
    }
}

/// What a session's path looks like.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// The peer's address, as it is now.
    pub remote: SocketAddr,
    /// Smoothed round-trip time (RFC 9002, section 5.3).
    pub rtt: Duration,
    /// Bytes of one datagram.
    pub mtu: u16,
    /// When the session began.
    pub since: Instant,
}

/// How a read ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// The caller's measure was full.
    More,
    /// Nothing more for now; [`Event::Readable`] follows.
    Empty,
    /// The peer finished; all was read.
    End,
}

/// Why nothing was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteError {
    /// No credit; [`Event::Writable`] follows.
    Blocked,
    /// The stream or its session is gone, which an event tells too.
    Closed,
}

enum Flushed {
    All,
    Part,
    Starved,
}

impl Session {
    fn flush(&mut self, now: Instant, segments_max: usize, io: &mut impl Io) -> Flushed {
        for _ in 0..SENDS_PER_TURN {
            let Some(mut buffer) = io.datagram_buffer() else {
                return Flushed::Starved;
            };
            // More than the kernel takes in one send would be lost without a word (EMSGSIZE).
            let fit = DATAGRAMS_SIZE / usize::from(self.connection.current_mtu());
            let segments = segments_max.min(fit).max(1);
            let Some(transmit) = self
                .connection
                .poll_transmit(now, segments, &mut buffer.data)
            else {
                io.return_buffer(buffer);
                return Flushed::All;
            };
            io.send_datagrams(buffer, &outgoing(&transmit));
        }
        Flushed::Part
    }
}

fn lookup(sessions: &mut [Option<Session>], id: SessionId) -> Option<&mut Session> {
    sessions
        .get_mut(id.index as usize)?
        .as_mut()
        .filter(|session| session.generation == id.generation)
}

fn translate(
    session: &mut Session,
    id: SessionId,
    event: quinn_proto::Event,
    events: &mut VecDeque<(SessionId, Event)>,
) {
    use quinn_proto::Event as Core;
    match event {
        Core::Connected => events.push_back((id, Event::Connected)),
        Core::ConnectionLost { reason } => {
            if !std::mem::replace(&mut session.lost, true) {
                events.push_back((id, Event::Lost(reason)));
            }
        }
        Core::Stream(StreamEvent::Opened { dir }) => {
            while let Some(stream) = session.connection.streams().accept(dir) {
                events.push_back((id, Event::Opened(stream)));
            }
        }
        Core::Stream(StreamEvent::Readable { id: stream }) => {
            events.push_back((id, Event::Readable(stream)));
        }
        Core::Stream(StreamEvent::Writable { id: stream }) => {
            events.push_back((id, Event::Writable(stream)));
        }
        Core::Stream(StreamEvent::Finished { id: stream }) => {
            events.push_back((id, Event::Finished(stream)));
        }
        Core::Stream(StreamEvent::Stopped {
            id: stream,
            error_code,
        }) => {
            events.push_back((id, Event::Stopped(stream, flow_code(error_code))));
        }
        Core::Stream(StreamEvent::Available { .. }) => events.push_back((id, Event::Available)),
        Core::HandshakeDataReady | Core::DatagramReceived | Core::DatagramsUnblocked => {}
    }
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

/// A code that this version does not know still ends the flow.
fn flow_code(code: VarInt) -> FlowCode {
    FlowCode::from_u64(code.into_inner()).unwrap_or(FlowCode::Aborted)
}
