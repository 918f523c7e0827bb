//! The streams of sessions: opened, written and read without a copy, finished, reset. What a
//! stream's end means is decided by who reads it.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{Dir, RecvStream, SendStream, StreamId, VarInt};
use underpass_proto::FlowCode;

use super::session::Session;
use super::stream_scheduler::Amount;
use super::{Driver, Event, SessionId, lookup};

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

impl Driver {
    /// Lets the peer have this many streams open at once. Each costs memory from now on, whether it
    /// is used or not.
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

    /// Has the stream reported as readable in the next turn: its reader had its share of this one.
    pub(crate) fn read_later(&mut self, id: SessionId, stream: StreamId) {
        self.later.insert((id, stream));
    }

    /// Whether the next turn has something to read, whatever comes.
    #[must_use]
    pub(crate) fn reads_later(&self) -> bool {
        !self.later.is_empty()
    }

    /// What was put off to this turn.
    pub(crate) fn take_later(&mut self, events: &mut VecDeque<(SessionId, Event)>) {
        if self.later.is_empty() {
            return; // As in nearly each turn.
        }
        let later = std::mem::take(&mut self.later);
        events.extend(
            later
                .into_iter()
                .map(|(id, stream)| (id, Event::Readable(stream))),
        );
    }

    /// Writes chunks without a copy; returns the bytes that were taken. What was not taken stays in
    /// `chunks`, advanced. Taken in part means: call again; only `Blocked` is followed by
    /// [`Event::Writable`]. `amount` is how much data the stream has, and decides in which line
    /// it waits.
    ///
    /// # Errors
    /// [`WriteError`]
    pub fn write(
        &mut self,
        id: SessionId,
        stream: StreamId,
        chunks: &mut [Bytes],
        amount: Amount,
    ) -> Result<usize, WriteError> {
        self.mark(id);
        let session = self.session(id).ok_or(WriteError::Closed)?;
        session.write(stream, chunks, amount)
    }

    /// Says the last of a stream that nobody else knows any more, and ends this direction. Where
    /// there is no room yet it is kept until there is.
    pub fn say_last(&mut self, id: SessionId, stream: StreamId, words: Bytes) {
        self.mark(id);
        if let Some(session) = self.session(id) {
            session.say_last(stream, words);
        }
    }

    /// Whether a stream waits for its turn.
    #[cfg(test)]
    pub(super) fn is_waiting(&self, id: SessionId, stream: StreamId) -> bool {
        let session = self
            .sessions
            .get(id.index as usize)
            .and_then(Option::as_ref);
        session.is_some_and(|session| session.scheduler.is_waiting(stream))
    }

    /// Reads at most `chunks_max` chunks and `bytes_max` bytes, in order, as slices of the received
    /// datagrams.
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
        let Some(session) = self.session(id) else {
            return Err(FlowCode::SessionLost);
        };
        let mut receiving = session.connection.recv_stream(stream);
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
        let should_transmit = chunks.finalize().should_transmit();
        if let Some(credit) = &mut session.credit {
            credit.note_read(bytes);
        }
        if should_transmit || read.is_err() || matches!(read, Ok(Read::End)) {
            self.mark(id);
        }
        read
    }

    /// The session's peer has proven a key.
    pub(crate) fn note_proven(&mut self, now: Instant, id: SessionId) {
        self.mark(id);
        if let Some(Session {
            credit: Some(credit),
            connection,
            ..
        }) = self.session(id)
        {
            credit.begin(now, connection);
        }
    }

    /// Sessions that are short of credit, and how many bytes should be freed for each to go on.
    pub(crate) fn short_of_credit(&mut self) -> Vec<(SessionId, u64)> {
        let mut found = Vec::new();
        let sessions = &mut self.sessions;
        self.short.retain(|&id| {
            let session = lookup(sessions, id).filter(|session| !session.lost);
            let need = session.and_then(Session::shortage);
            found.extend(need.map(|need| (id, need)));
            need.is_some()
        });
        found
    }

    /// Tells the peer at once of what was read or discarded. It is credit again as far as the
    /// session has no more than its share.
    pub(crate) fn announce_credit(&mut self, now: Instant, id: SessionId) {
        self.mark(id);
        if let Some(Session {
            credit: Some(credit),
            connection,
            ..
        }) = self.session(id)
        {
            credit.shrink(now, connection);
            credit.announce(connection);
        }
    }

    /// Takes credit back that sessions do not need, or that others need more. For once a second.
    pub(crate) fn shrink_credit(&mut self, now: Instant) {
        for session in self.sessions.iter_mut().flatten() {
            if let Some(credit) = &mut session.credit
                && !session.lost
            {
                credit.shrink(now, &mut session.connection);
            }
        }
    }

    /// The most that one datagram of this session brings, bytes.
    pub(crate) fn datagram_max(&self, id: SessionId) -> usize {
        let session = self
            .sessions
            .get(id.index as usize)
            .and_then(Option::as_ref);
        session.map_or(0, |session| usize::from(session.connection.current_mtu()))
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
        if let Some(mut sending) = self.send_stream(id, stream) {
            let _ = sending.reset(VarInt::from_u32(code.to_u32()));
        }
        self.stop(id, stream, code);
    }

    /// Wants no more of a stream.
    pub fn stop(&mut self, id: SessionId, stream: StreamId, code: FlowCode) {
        self.mark(id);
        if let Some(session) = self.session(id) {
            session.discard(stream);
        }
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
}

/// A code that this version does not know still ends the flow.
pub(super) fn flow_code(code: VarInt) -> FlowCode {
    FlowCode::from_u64(code.into_inner()).unwrap_or(FlowCode::Aborted)
}
