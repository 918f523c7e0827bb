//! What a process is for: relay, agent and sender are each a role of a worker, which tells them
//! what it does not decide itself.

use std::net::SocketAddr;
use std::time::Instant;

use quinn_proto::{ConnectionError, StreamId};

use crate::core::Core;
use crate::flow::{End, Flow, FlowKey};
use crate::io::{Io, SocketId};
use crate::join::{Join, JoinEnd, JoinKey};
use crate::quic::SessionId;

/// What a process does with its sessions, sockets and flows.
pub(crate) trait Role: Sized {
    /// What it keeps with each flow.
    type Flow;
    /// What other threads tell it.
    type Message: Send + 'static;

    /// Another thread says something.
    fn message<I: Io>(&mut self, core: &mut Core<I, Self::Flow>, message: Self::Message);

    /// A listener of the role took a connection. `listener` is the number it was owned by.
    fn accepted<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        listener: u64,
        socket: std::io::Result<(SocketId, SocketAddr)>,
    );

    /// A connection attempt of the role ended. `dial` is the number it was owned by.
    fn connected<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        dial: u64,
        socket: SocketId,
        result: std::io::Result<()>,
    );

    /// The handshake of a session is done.
    fn session_up<I: Io>(&mut self, core: &mut Core<I, Self::Flow>, session: SessionId);

    /// A session is over; its flows have ended.
    fn session_lost<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        session: SessionId,
        why: &ConnectionError,
    );

    /// The peer opened a stream.
    fn stream_opened<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        session: SessionId,
        stream: StreamId,
    );

    /// A stream that is no opened flow's may be read, or was reset or stopped.
    fn stream_readable<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        session: SessionId,
        stream: StreamId,
    );

    /// A stream that is no flow's may be written again.
    fn stream_writable<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        session: SessionId,
        stream: StreamId,
    );

    /// Bytes of a socket that the role owns, or its end, where it asked for them.
    fn received<I: Io>(
        &mut self,
        _: &mut Core<I, Self::Flow>,
        _number: u64,
        _: std::io::Result<bytes::Bytes>,
    ) {
    }

    /// What the role sent on a socket of its own is sent.
    fn sent<I: Io>(
        &mut self,
        _: &mut Core<I, Self::Flow>,
        _number: u64,
        _: &std::io::Result<usize>,
    ) {
    }

    /// A peer allows more streams than before.
    fn streams_available<I: Io>(&mut self, _: &mut Core<I, Self::Flow>) {}

    /// The peer of a session owed an answer, and sent something.
    fn session_answered<I: Io>(&mut self, _: &mut Core<I, Self::Flow>, _: SessionId) {}

    /// An unopened flow's stream may be read, or was reset.
    fn unopened_readable<I: Io>(&mut self, core: &mut Core<I, Self::Flow>, key: FlowKey);

    /// A join's agent may have answered, or was reset.
    fn join_answered<I: Io>(&mut self, core: &mut Core<I, Self::Flow>, key: JoinKey);

    /// A join ended.
    fn join_ended<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        join: Join<Self::Flow>,
        end: JoinEnd,
    );

    /// A flow ended.
    fn flow_ended<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        flow: Flow<Self::Flow>,
        end: End,
    );

    /// Time for deadlines: each [`TICK`].
    fn tick<I: Io>(&mut self, core: &mut Core<I, Self::Flow>);

    /// When [`recheck`](Self::recheck) is due before the next tick.
    fn next_recheck(&self) -> Option<Instant> {
        None
    }

    /// What cannot wait for the next tick.
    fn recheck<I: Io>(&mut self, _core: &mut Core<I, Self::Flow>) {}

    /// Datagrams of another worker's session, where the kernel does not steer.
    fn misdirected(&mut self, worker: u8, datagrams: crate::io::Datagrams);

    /// Whether all is done and the worker may end.
    fn is_done(&self) -> bool;
}
