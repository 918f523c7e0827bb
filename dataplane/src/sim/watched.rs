//! A worker as a simulation sees it: turned by hand, its role heard through a wrapper that counts
//! endings, and asked what it still holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use quinn_proto::{ConnectionError, StreamId, TransportErrorCode};
use underpass_proto::{HycoName, Instance, SessionCode};

use crate::core::Core;
use crate::flow::{End, Flow, FlowKey};
use crate::io::sim::Sim;
use crate::io::{Datagrams, Io, SocketId};
use crate::join::{Join, JoinEnd, JoinKey};
use crate::quic::SessionId;
use crate::worker::{Role, Worker};

/// What a worker still holds of one kind.
pub(crate) type Left = (&'static str, usize);

/// A role that can be asked.
pub(crate) trait Watchable: Role {
    /// Names a flow among all that this worker ever had; `None` where the same may come again.
    fn number(flow: &Self::Flow) -> Option<u64>;

    /// What it holds of flows, sockets and streams.
    fn left(&self) -> Vec<Left>;

    /// Who is registered for what: a relay's roster, or what an agent believes.
    fn registered(&self) -> BTreeSet<(HycoName, Instance)>;
}

/// What was seen of a worker.
#[derive(Default)]
pub(crate) struct Seen {
    /// Endings, by flow.
    endings: BTreeMap<u64, String>,
    /// Endings that were not told to the world yet.
    pub(crate) news: Vec<String>,
    /// What must not be.
    pub(crate) wrong: Vec<String>,
}

/// A role, watched.
pub(crate) struct Watched<R> {
    role: R,
    seen: Seen,
}

impl<R> Watched<R> {
    /// Watches a role.
    pub(crate) fn new(role: R) -> Self {
        Self {
            role,
            seen: Seen::default(),
        }
    }
}

/// A worker that a simulation turns.
pub(crate) trait Turn {
    /// One turn.
    fn turn(&mut self) -> std::io::Result<()>;
    /// The last of all turns.
    fn finish(&mut self) -> std::io::Result<()>;
    /// When it has something to do, whatever comes.
    fn deadline(&mut self) -> Instant;
    /// Whether it wants no more turns.
    fn is_done(&self) -> bool;
    /// Its machine.
    fn sim(&mut self) -> &mut Sim;
    /// What was seen of it since the last call.
    fn seen(&mut self) -> &mut Seen;
    /// What it still holds.
    fn left(&self) -> Vec<Left>;
    /// How far its flows are.
    fn flows(&self) -> Vec<String>;
    /// Who is registered for what.
    fn registered(&self) -> BTreeSet<(HycoName, Instance)>;
    /// Sessions that exist.
    fn sessions(&self) -> usize;
}

impl<R: Watchable> Turn for Worker<Sim, Watched<R>> {
    fn turn(&mut self) -> std::io::Result<()> {
        let now = self.core.now; // The world knows when; a machine that does not exist never waits.
        Worker::turn(self, now)?;
        unhurt(&self.core)
    }

    fn finish(&mut self) -> std::io::Result<()> {
        Worker::finish(self)?;
        unhurt(&self.core)
    }

    fn deadline(&mut self) -> Instant {
        Worker::deadline(self)
    }

    fn is_done(&self) -> bool {
        self.role.is_done()
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.core.io
    }

    fn seen(&mut self) -> &mut Seen {
        &mut self.role.seen
    }

    fn left(&self) -> Vec<Left> {
        let core = &self.core;
        let mut left = self.role.role.left();
        left.extend([
            ("flows", core.flows.iter().count()),
            ("joins", core.joins.iter().count()),
            (
                "endings that nobody was told",
                core.ended.len() + core.ended_joins.len(),
            ),
            ("sockets", core.io.streams()),
        ]);
        left.retain(|(_, count)| *count > 0);
        left
    }

    fn flows(&self) -> Vec<String> {
        let flows = self.core.flows.iter();
        flows.map(|(_, flow)| flow.state()).collect()
    }

    fn registered(&self) -> BTreeSet<(HycoName, Instance)> {
        self.role.role.registered()
    }

    fn sessions(&self) -> usize {
        self.core.quic.sessions_live()
    }
}

/// What is asserted inside panics, and a guard must not hide that here.
fn unhurt<D>(core: &Core<Sim, D>) -> std::io::Result<()> {
    if core.panics + core.quic.panics() > 0 {
        return Err(std::io::Error::other("a guard caught a panic"));
    }
    Ok(())
}

impl<R: Watchable> Role for Watched<R> {
    type Flow = R::Flow;
    type Message = R::Message;

    fn message<I: Io>(&mut self, core: &mut Core<I, R::Flow>, message: R::Message) {
        self.role.message(core, message);
    }

    fn accepted<I: Io>(
        &mut self,
        core: &mut Core<I, R::Flow>,
        listener: u64,
        socket: std::io::Result<(SocketId, SocketAddr)>,
    ) {
        self.role.accepted(core, listener, socket);
    }

    fn connected<I: Io>(
        &mut self,
        core: &mut Core<I, R::Flow>,
        dial: u64,
        socket: SocketId,
        result: std::io::Result<()>,
    ) {
        self.role.connected(core, dial, socket, result);
    }

    fn session_up<I: Io>(&mut self, core: &mut Core<I, R::Flow>, session: SessionId) {
        self.role.session_up(core, session);
    }

    fn session_lost<I: Io>(
        &mut self,
        core: &mut Core<I, R::Flow>,
        session: SessionId,
        why: &ConnectionError,
    ) {
        let news = format!("session lost: {why}");
        // Each end keeps to the protocol: no credit is overdrawn, no frame is wrong, whatever the
        // network does. (A process that closes during a handshake says APPLICATION_ERROR: it may
        // not say more yet.)
        let broken = match why {
            ConnectionError::TransportError(error) => {
                error.code != TransportErrorCode::APPLICATION_ERROR
            }
            ConnectionError::ConnectionClosed(close) => {
                close.error_code != TransportErrorCode::APPLICATION_ERROR
            }
            ConnectionError::ApplicationClosed(close) => matches!(
                SessionCode::from_u64(close.error_code.into_inner()),
                Some(SessionCode::Protocol | SessionCode::Version)
            ),
            _ => false,
        };
        if broken {
            self.seen.wrong.push(news.clone());
        }
        self.seen.news.push(news);
        self.role.session_lost(core, session, why);
    }

    fn stream_opened<I: Io>(
        &mut self,
        core: &mut Core<I, R::Flow>,
        session: SessionId,
        stream: StreamId,
    ) {
        self.role.stream_opened(core, session, stream);
    }

    fn stream_readable<I: Io>(
        &mut self,
        core: &mut Core<I, R::Flow>,
        session: SessionId,
        stream: StreamId,
    ) {
        self.role.stream_readable(core, session, stream);
    }

    fn stream_writable<I: Io>(
        &mut self,
        core: &mut Core<I, R::Flow>,
        session: SessionId,
        stream: StreamId,
    ) {
        self.role.stream_writable(core, session, stream);
    }

    fn streams_available<I: Io>(&mut self, core: &mut Core<I, R::Flow>) {
        self.role.streams_available(core);
    }

    fn session_answered<I: Io>(&mut self, core: &mut Core<I, R::Flow>, session: SessionId) {
        self.role.session_answered(core, session);
    }

    fn unopened_readable<I: Io>(&mut self, core: &mut Core<I, R::Flow>, key: FlowKey) {
        self.role.unopened_readable(core, key);
    }

    fn join_answered<I: Io>(&mut self, core: &mut Core<I, R::Flow>, key: JoinKey) {
        self.role.join_answered(core, key);
    }

    fn join_ended<I: Io>(
        &mut self,
        core: &mut Core<I, R::Flow>,
        join: Join<R::Flow>,
        end: JoinEnd,
    ) {
        self.seen.news.push(format!("join ended: {end:?}"));
        self.role.join_ended(core, join, end);
    }

    fn flow_ended<I: Io>(&mut self, core: &mut Core<I, R::Flow>, flow: Flow<R::Flow>, end: End) {
        self.seen.news.push(format!("flow ended: {end:?}"));
        if let Some(number) = R::number(&flow.data)
            && let Some(before) = self.seen.endings.insert(number, format!("{end:?}"))
        {
            let wrong = format!("flow {number} ended twice: {before}, then {end:?}");
            self.seen.wrong.push(wrong);
        }
        self.role.flow_ended(core, flow, end);
    }

    fn tick<I: Io>(&mut self, core: &mut Core<I, R::Flow>) {
        self.role.tick(core);
    }

    fn misdirected(&mut self, worker: u8, datagrams: Datagrams) {
        self.role.misdirected(worker, datagrams);
    }

    fn is_done(&self) -> bool {
        self.role.is_done()
    }
}
