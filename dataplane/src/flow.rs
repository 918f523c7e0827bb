//! One relayed TCP conversation: a socket, a stream, and what is under way between them.
//!
//! Each direction is a small state machine: bytes that came from the socket wait for the stream's
//! credit before more are read; what came in the stream is gathered into one write at a time. FIN
//! becomes finish and finish FIN, one direction at a time; RST becomes reset and reset RST; a lost
//! session is an RST. Knows nothing of hybrid connections: what a process keeps with a flow is its
//! own (`D`).

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::StreamId;
use underpass_proto::limits::REPLAY_MAX;
use underpass_proto::{FlowCode, FrameReader};

use crate::core::{Core, Owner};
use crate::held::Unread;
use crate::io::{Close, GATHER_MAX, Io, SocketId};
use crate::opening::{Head, read_head};
use crate::quic::{Amount, Read, SessionId, WriteError};

/// Bytes that one flow moves towards its socket at a time, so that many flows share a turn fairly.
const WRITE_MAX: usize = 256 * 1024;

/// Flows that get what lasting ones need in one turn: some 2 ms of calls.
const SETTLE_MAX: usize = 1024;

/// A flow of this worker. Never reused for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FlowKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A live flow.
#[derive(Debug)]
pub(crate) struct Flow<D> {
    /// What the process keeps with it.
    pub(crate) data: D,
    /// Bytes read from the socket.
    pub(crate) bytes_from_socket: u64,
    /// Bytes that the kernel took for the socket.
    pub(crate) bytes_to_socket: u64,
    pub(crate) socket: Option<SocketId>,
    pub(crate) session: SessionId,
    pub(crate) stream: StreamId,
    from_socket: FromSocket,
    /// Read from the socket, not yet taken by the stream.
    pending: VecDeque<Bytes>,
    pending_moved: Instant,
    /// How much data the socket had at the last read.
    amount: Amount,
    to_socket: ToSocket,
    /// What was read before the far end said Opened, and its answer; `None` once it said so. Boxed,
    /// for most of a flow's life is without.
    replay: Option<Box<Replay>>,
    socket_closed_first: Option<bool>,
    /// Bytes of the write to the socket that is under way.
    writing: usize,
    /// What waits in the stream meanwhile.
    pub(crate) unread: Unread,
    /// It waits until there is room to read from its socket.
    hungry: bool,
    /// A receive is armed.
    receiving: bool,
    /// The socket waits to be watched, because nothing is being read from it.
    paused: bool,
    /// Nothing is read from the socket before the far end's process gave a sign of life: what it
    /// says may yet go to another.
    held: bool,
}

/// How a flow ended, seen from this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// FIN passed in both directions and all was acknowledged.
    Clean {
        /// Whether the socket's side sent its FIN first.
        socket_first: bool,
    },
    /// The socket, or this process, ended it.
    Here(FlowCode),
    /// The peer of the session ended it.
    There(FlowCode),
    /// The session was lost.
    Lost,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FromSocket {
    /// More may come.
    Open,
    /// FIN came; it is passed on behind what is pending.
    Finished,
    /// All, FIN included, was acknowledged by the far end.
    Delivered,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ToSocket {
    /// Not opened yet; the process reads the stream itself.
    Unopened,
    /// Nothing to write; the stream's readable event resumes.
    Idle,
    /// A write is under way.
    Sending,
    /// The same, of all that there was: nobody waits for its end.
    SendingAll,
    /// The last write is under way; FIN follows.
    SendingLast,
    /// FIN was passed on.
    Finished,
}

/// What a flow without Opened needs beside the rest.
#[derive(Debug, Default)]
struct Replay {
    /// The far end's answer, as far as it came.
    answer: FrameReader,
    /// Sent already, to be sent again to another listener after a refusal.
    sent: Vec<Bytes>,
    bytes: usize,
    /// Read beyond [`REPLAY_MAX`]: sent after Opened.
    excess: Bytes,
}

impl<D> Flow<D> {
    /// Whether the far end has not said Opened yet.
    #[must_use]
    pub(crate) fn is_unopened(&self) -> bool {
        self.to_socket == ToSocket::Unopened
    }

    /// Bytes that were read from one side and not yet taken by the other, or are kept to be sent
    /// again.
    #[must_use]
    pub(crate) fn in_hand(&self) -> usize {
        self.pending_bytes() + self.writing_bytes()
    }

    /// Of these, what came from the socket.
    #[must_use]
    pub(crate) fn pending_bytes(&self) -> usize {
        match &self.replay {
            // What is pending is a part of it.
            Some(replay) => replay.bytes + replay.excess.len(),
            None => self.pending.iter().map(Bytes::len).sum(),
        }
    }

    /// Of these, what goes to the socket.
    #[must_use]
    pub(crate) fn writing_bytes(&self) -> usize {
        self.writing
    }

    /// When the stream last took something.
    #[must_use]
    pub(crate) fn pending_moved(&self) -> Instant {
        self.pending_moved
    }

    /// How far it is, to find the cause of a stall.
    #[cfg(test)]
    pub(crate) fn state(&self) -> String {
        format!(
            "{:?} {:?}: from the socket {:?} ({} bytes, {} chunks pending, receiving: {}), to the socket {:?} ({} bytes)",
            self.session,
            self.stream,
            self.from_socket,
            self.bytes_from_socket,
            self.pending.len(),
            self.receiving,
            self.to_socket,
            self.bytes_to_socket,
        )
    }

    fn is_done(&self) -> bool {
        self.to_socket == ToSocket::Finished
            && matches!(
                self.from_socket,
                FromSocket::Finished | FromSocket::Delivered
            )
    }
}

impl<I: Io, D> Core<I, D> {
    /// Joins a connected endpoint and the stream that asked for it. `opened` is the frame that says
    /// so, and leaves before anything is written to the socket; `first` came in the stream ahead of
    /// everything else.
    pub(crate) fn start_opened(
        &mut self,
        data: D,
        socket: SocketId,
        session: SessionId,
        stream: StreamId,
        opened: Bytes,
        first: Bytes,
    ) -> FlowKey {
        let key = self.add_flow(data, socket, session, stream, ToSocket::Idle, None);
        if let Some(flow) = self.flows.get_mut(key) {
            self.in_hand.add(opened.len());
            flow.pending.push_back(opened);
        }
        self.young.push_back(key);
        self.write_stream(key);
        self.deliver_first(key, first);
        key
    }

    /// Joins a socket and a stream whose far end has yet to say Opened. `open` is the frame that
    /// asks for it; where the flow is `held`, it goes alone until [`Self::release`].
    pub(crate) fn start_unopened(
        &mut self,
        data: D,
        socket: SocketId,
        session: SessionId,
        stream: StreamId,
        open: Bytes,
        held: bool,
    ) -> FlowKey {
        let key = self.add_flow(
            data,
            socket,
            session,
            stream,
            ToSocket::Unopened,
            Some(Box::default()),
        );
        if let Some(flow) = self.flows.get_mut(key) {
            flow.pending.push_back(open);
            flow.held = held;
        }
        self.write_stream(key);
        key
    }

    /// A flow is held no longer.
    pub(crate) fn release(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(key)
            && std::mem::take(&mut flow.held)
        {
            self.write_stream(key);
        }
    }

    /// What the far end answered to Open, while it has not said Opened.
    pub(crate) fn read_answer(&mut self, key: FlowKey) -> Head {
        let Some(flow) = self.flows.get_mut(key) else {
            return Head::Partial;
        };
        match &mut flow.replay {
            Some(replay) => read_head(
                &mut self.quic,
                flow.session,
                flow.stream,
                &mut replay.answer,
            ),
            None => Head::Partial,
        }
    }

    /// The far end said Opened; `first` followed it in the stream.
    pub(crate) fn opened(&mut self, key: FlowKey, first: Bytes) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.to_socket = ToSocket::Idle;
        flow.held = false;
        flow.unread.note_moved(self.now);
        self.in_hand.remove(flow.in_hand());
        if let Some(replay) = flow.replay.take()
            && !replay.excess.is_empty()
        {
            flow.pending.push_back(replay.excess);
        }
        self.in_hand.add(flow.in_hand());
        self.write_stream(key);
        self.deliver_first(key, first);
    }

    /// Takes an unopened flow from its stream, which is of no more use. What the socket says is
    /// kept until [`Self::reroute`], within the bound of a replay.
    pub(crate) fn detach(&mut self, key: FlowKey) {
        let Some(flow) = self.flows.get(key) else {
            return;
        };
        let (session, stream) = (flow.session, flow.stream);
        self.quic.abort(session, stream, FlowCode::Aborted);
        self.flows.unlink(session, stream);
    }

    /// After a refusal: asks another listener, with all that was sent to the first.
    pub(crate) fn reroute(
        &mut self,
        key: FlowKey,
        session: SessionId,
        stream: StreamId,
        open: Bytes,
    ) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let (old_session, old_stream) = (flow.session, flow.stream);
        flow.session = session;
        flow.stream = stream;
        flow.held = false;
        flow.pending.clear();
        flow.pending.push_back(open);
        if let Some(replay) = &mut flow.replay {
            replay.answer = FrameReader::new();
            flow.pending.extend(replay.sent.iter().cloned());
        }
        if flow.from_socket == FromSocket::Delivered {
            // The first one had the end already; this one has not.
            flow.from_socket = FromSocket::Finished;
        }
        self.quic.abort(old_session, old_stream, FlowCode::Aborted);
        self.flows.unlink(old_session, old_stream);
        self.flows.link(session, stream, key);
        self.write_stream(key);
    }

    fn add_flow(
        &mut self,
        data: D,
        socket: SocketId,
        session: SessionId,
        stream: StreamId,
        to_socket: ToSocket,
        replay: Option<Box<Replay>>,
    ) -> FlowKey {
        let key = self.flows.insert(Flow {
            data,
            bytes_from_socket: 0,
            bytes_to_socket: 0,
            socket: Some(socket),
            session,
            stream,
            from_socket: FromSocket::Open,
            pending: VecDeque::new(),
            pending_moved: self.now,
            amount: Amount::default(),
            to_socket,
            replay,
            socket_closed_first: None,
            writing: 0,
            unread: Unread::new(self.now),
            hungry: false,
            receiving: false,
            paused: false,
            held: false,
        });
        self.own(socket, Owner::Flow(key));
        key
    }

    fn deliver_first(&mut self, key: FlowKey, first: Bytes) {
        let chunks = if first.is_empty() {
            Vec::new()
        } else {
            vec![first]
        };
        self.read_stream_behind(key, chunks);
    }

    /// A receive on the flow's socket ended.
    pub(crate) fn socket_received(&mut self, key: FlowKey, result: std::io::Result<Bytes>) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.receiving = false;
        match result {
            Ok(chunk) if chunk.is_empty() => self.socket_finished(key),
            Ok(chunk) => {
                flow.bytes_from_socket += chunk.len() as u64;
                self.in_hand.add(chunk.len());
                flow.amount = Amount::of(chunk.len(), false);
                flow.keep(chunk);
                self.write_stream(key);
            }
            Err(error) => self.fail(key, End::Here(code_of(&error))),
        }
    }

    fn socket_finished(&mut self, key: FlowKey) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.from_socket = FromSocket::Finished;
        flow.socket_closed_first.get_or_insert(true);
        let done = flow.is_done();
        self.write_stream(key);
        if done {
            self.close_clean(key);
        } else {
            self.pause(key);
        }
    }

    /// Gives the stream all that is pending; reads on once all was taken.
    fn write_stream(&mut self, key: FlowKey) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        while !flow.pending.is_empty() {
            match self.quic.write(
                flow.session,
                flow.stream,
                flow.pending.make_contiguous(),
                flow.amount,
            ) {
                Ok(bytes) => {
                    flow.pending.retain(|chunk| !chunk.is_empty());
                    flow.pending_moved = self.now;
                    if flow.replay.is_none() {
                        self.in_hand.remove(bytes);
                    }
                }
                // Closed is told by an event of its own.
                Err(WriteError::Blocked | WriteError::Closed) => return self.pause(key),
            }
        }
        match flow.from_socket {
            FromSocket::Open => self.read_on(key),
            FromSocket::Finished => self.quic.finish(flow.session, flow.stream),
            FromSocket::Delivered => {}
        }
    }

    fn read_on(&mut self, key: FlowKey) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let is_full = |replay: &Replay| replay.bytes >= REPLAY_MAX;
        if flow.held || flow.replay.as_deref().is_some_and(is_full) {
            return self.pause(key); // Opened resumes, or a release.
        }
        if self.in_hand.is_full() {
            if !std::mem::replace(&mut flow.hungry, true) {
                self.hungry.push_back(key);
            }
            return self.pause(key);
        }
        if let Some(socket) = flow.socket
            && !flow.receiving
        {
            flow.receiving = true;
            self.io.receive(socket);
        }
    }

    /// The stream may be written again.
    pub(crate) fn stream_writable(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.hungry = false;
        }
        self.write_stream(key);
    }

    /// The stream may have data, its end or a reset.
    pub(crate) fn stream_readable(&mut self, key: FlowKey) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        match flow.to_socket {
            ToSocket::Idle => return self.read_stream(key),
            ToSocket::SendingAll => {
                // Now somebody does wait for its end.
                flow.to_socket = ToSocket::Sending;
                self.hurried = true;
            }
            _ => {}
        }
        flow.unread.note_frame();
    }

    fn read_stream(&mut self, key: FlowKey) {
        self.read_stream_behind(key, Vec::new());
    }

    /// Writes what the stream has to the socket, behind these chunks (one at most).
    fn read_stream_behind(&mut self, key: FlowKey, mut chunks: Vec<Bytes>) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let read = self.quic.read(
            flow.session,
            flow.stream,
            GATHER_MAX - chunks.len(),
            self.in_hand.piece(WRITE_MAX),
            &mut chunks,
        );
        flow.unread.note_read(chunks.len(), read == Ok(Read::More));
        let Some(socket) = flow.socket else { return };
        match read {
            Err(code) => self.fail(key, End::There(code)),
            Ok(read) if !chunks.is_empty() => {
                flow.writing = chunks.iter().map(Bytes::len).sum();
                flow.unread.note_moved(self.now);
                self.in_hand.add(flow.writing);
                flow.to_socket = match read {
                    Read::End => ToSocket::SendingLast,
                    Read::More => ToSocket::Sending,
                    Read::Empty => ToSocket::SendingAll,
                };
                match read {
                    Read::End => self.io.send_last(socket, chunks),
                    Read::More => self.io.send(socket, chunks),
                    Read::Empty => self.io.send_quietly(socket, chunks),
                }
            }
            Ok(Read::End) => self.finish_socket(key),
            Ok(Read::Empty | Read::More) => flow.to_socket = ToSocket::Idle,
        }
    }

    /// A write to the flow's socket ended.
    pub(crate) fn socket_sent(&mut self, key: FlowKey, result: std::io::Result<usize>) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        match result {
            Ok(bytes) => {
                flow.bytes_to_socket += bytes as u64;
                flow.unread.note_moved(self.now);
                self.in_hand.remove(std::mem::take(&mut flow.writing));
                if flow.to_socket == ToSocket::SendingLast {
                    self.finish_socket(key);
                } else {
                    self.read_stream(key);
                }
            }
            Err(error) => self.fail(key, End::Here(code_of(&error))),
        }
    }

    fn finish_socket(&mut self, key: FlowKey) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.to_socket = ToSocket::Finished;
        flow.socket_closed_first.get_or_insert(false);
        if flow.is_done() {
            self.close_clean(key); // Which sends FIN.
        } else if let Some(socket) = flow.socket {
            self.io.shutdown(socket);
        }
    }

    /// FIN has passed in both directions. The record stays until the far end has everything.
    fn close_clean(&mut self, key: FlowKey) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let delivered = flow.from_socket == FromSocket::Delivered;
        if let Some(socket) = flow.socket.take() {
            self.disown(socket);
            self.io.close(socket, Close::Clean);
        }
        if delivered {
            self.end_clean(key);
        }
    }

    fn end_clean(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.remove(key) {
            self.in_hand.remove(flow.in_hand());
            let socket_first = flow.socket_closed_first.unwrap_or(true);
            self.ended.push((flow, End::Clean { socket_first }));
        }
    }

    /// All of the stream, its end included, was acknowledged.
    pub(crate) fn stream_delivered(&mut self, key: FlowKey) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        flow.from_socket = FromSocket::Delivered;
        if flow.is_done() && flow.socket.is_none() {
            self.end_clean(key);
        }
    }

    /// The far end wants no more.
    pub(crate) fn stream_stopped(&mut self, key: FlowKey, code: FlowCode) {
        self.fail(key, End::There(code));
    }

    /// The socket failed while nothing was being read.
    pub(crate) fn socket_hung_up(&mut self, key: FlowKey, error: &std::io::Error) {
        self.fail(key, End::Here(code_of(error)));
    }

    /// Ends a flow that did not end by itself: reset towards the stream, RST towards the socket.
    pub(crate) fn fail(&mut self, key: FlowKey, end: End) {
        let Some(mut flow) = self.flows.remove(key) else {
            return;
        };
        self.in_hand.remove(flow.in_hand());
        let code = match end {
            End::Here(code) | End::There(code) => code,
            End::Lost | End::Clean { .. } => FlowCode::Aborted,
        };
        self.quic.abort(flow.session, flow.stream, code);
        if let Some(socket) = flow.socket.take() {
            self.disown(socket);
            self.io.close(socket, Close::Reset);
        }
        self.ended.push((flow, end));
    }

    /// A socket that is not read for longer than a moment is watched for RST instead.
    fn pause(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(key)
            && !std::mem::replace(&mut flow.paused, true)
        {
            self.paused.push(key);
        }
    }

    /// Gives the sockets of flows that lived until this call what they need from now on; of a
    /// bounded number of flows, the others have their turn next.
    pub(crate) fn settle_young(&mut self) {
        let mut settled = 0;
        while settled < SETTLE_MAX
            && let Some(key) = self.young.pop_front()
        {
            if let Some(socket) = self.flows.get(key).and_then(|flow| flow.socket) {
                self.io.settle(socket);
                settled += 1;
            }
        }
    }

    /// Watches every socket that was paused before the last call and still is.
    pub(crate) fn watch_paused(&mut self) {
        let mut paused = std::mem::take(&mut self.paused);
        for key in paused.drain(..) {
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            flow.paused = false;
            if let Some(socket) = flow.socket
                && !flow.receiving
            {
                self.io.watch(socket);
            }
        }
        self.paused = paused;
    }
}

impl<D> Flow<D> {
    /// Queues a chunk for the stream; while the far end may still refuse, keeps a share of it to
    /// send again.
    fn keep(&mut self, mut chunk: Bytes) {
        if let Some(replay) = &mut self.replay {
            let head = chunk.split_to(chunk.len().min(REPLAY_MAX - replay.bytes));
            replay.excess = chunk;
            replay.bytes += head.len();
            replay.sent.push(head.clone());
            chunk = head;
        }
        self.pending.push_back(chunk);
    }
}

/// What a socket's error means to the far end.
fn code_of(error: &std::io::Error) -> FlowCode {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted | Kind::NotConnected => {
            FlowCode::Reset
        }
        Kind::TimedOut | Kind::HostUnreachable | Kind::NetworkUnreachable => FlowCode::Timeout,
        _ => FlowCode::Aborted,
    }
}
