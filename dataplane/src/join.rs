//! A flow without a socket here: the stream of a sender's session joined to the stream of an
//! agent's. Bytes pass as they came, in slices of the datagrams that brought them, and are copied
//! only into the next datagram.
//!
//! Each direction reads only what the other stream takes, so back-pressure passes through. Finish
//! becomes finish and reset becomes reset; a lost session resets the other side, never finishes it.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::StreamId;
use rustc_hash::{FxHashMap, FxHashSet};
use underpass_proto::limits::REPLAY_MAX;
use underpass_proto::{FlowCode, FrameReader};

use crate::core::Core;
use crate::held::Unread;
use crate::io::{GATHER_MAX, Io};
use crate::opening::{Head, read_head};
use crate::quic::{Amount, Read, SessionId, WriteError};

/// Bytes that one direction takes from its stream at a time: what a stream without credit leaves
/// waiting here.
const READ_MAX: usize = 64 * 1024;

/// A join of this worker. Never reused for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct JoinKey(u64);

/// Which of its two streams.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Toward {
    /// The sender's.
    Sender,
    /// The agent's.
    Agent,
}

/// A live join.
#[derive(Debug)]
pub(crate) struct Join<D> {
    /// What the process keeps with it.
    pub(crate) data: D,
    /// The sender's session and stream.
    pub(crate) sender: (SessionId, StreamId),
    /// The agent's session and stream.
    pub(crate) agent: (SessionId, StreamId),
    to_agent: Way,
    to_sender: Way,
    /// `None` once the agent said Opened.
    unopened: Option<Unopened>,
    finished_first: Option<Toward>,
}

/// What a join without Opened needs beside the rest.
#[derive(Debug, Default)]
struct Unopened {
    /// The agent's answer, as far as it came.
    answer: FrameReader,
    /// What the sender said so far, to be said again to another agent.
    sent: Vec<Bytes>,
    /// None of that is sent before the agent's process gave a sign of life: it may yet go to
    /// another.
    held: bool,
}

/// One direction.
#[derive(Debug)]
struct Way {
    /// Read, and not yet taken by the other stream.
    pending: VecDeque<Bytes>,
    /// Of the conversation, frames not counted.
    bytes: u64,
    stage: Stage,
    /// How much data its stream had at the last read.
    amount: Amount,
    /// What waits in the stream that it reads from.
    unread: Unread,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// More may come.
    #[default]
    Open,
    /// The end was read; it is passed on behind what is pending.
    Ending,
    /// The end was passed on.
    Finished,
    /// All, the end included, was acknowledged.
    Delivered,
}

/// How a join ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum JoinEnd {
    /// Finished in both directions, and all was acknowledged. Who finished first.
    Clean(Toward),
    /// The side said this.
    Said(Toward, FlowCode),
    /// This process said this.
    Here(FlowCode),
    /// The session of this side was lost.
    Lost(Toward),
}

/// The live joins of a worker, by key and by stream.
#[derive(Debug)]
pub(crate) struct Joins<D> {
    by_key: FxHashMap<JoinKey, Join<D>>,
    by_stream: FxHashMap<(SessionId, StreamId), (JoinKey, Toward)>,
    by_session: FxHashMap<SessionId, FxHashSet<JoinKey>>,
    next: u64,
}

impl<D> Default for Joins<D> {
    fn default() -> Self {
        Self {
            by_key: FxHashMap::default(),
            by_stream: FxHashMap::default(),
            by_session: FxHashMap::default(),
            next: 0,
        }
    }
}

impl Way {
    fn new(now: Instant) -> Self {
        Self {
            pending: VecDeque::new(),
            bytes: 0,
            stage: Stage::Open,
            amount: Amount::default(),
            unread: Unread::new(now),
        }
    }

    fn pending_bytes(&self) -> usize {
        self.pending.iter().map(Bytes::len).sum()
    }
}

impl<D> Join<D> {
    /// Bytes that were read from one side and not yet taken by the other, or are kept to be sent
    /// again.
    #[must_use]
    pub(crate) fn in_hand(&self) -> usize {
        let to_agent = match &self.unopened {
            // What is pending is a part of it.
            Some(unopened) => unopened.sent.iter().map(Bytes::len).sum(),
            None => self.to_agent.pending_bytes(),
        };
        to_agent + self.to_sender.pending_bytes()
    }

    /// When something of it moved last, of the direction that has more in hand.
    #[must_use]
    pub(crate) fn moved(&self) -> Instant {
        if self.to_sender.pending_bytes() > self.to_agent.pending_bytes() {
            self.to_sender.unread.moved()
        } else {
            self.to_agent.unread.moved()
        }
    }

    /// What waits unread in its stream of this session.
    #[must_use]
    pub(crate) fn unread_of(&self, session: SessionId) -> Option<Unread> {
        if self.sender.0 == session {
            Some(self.to_agent.unread)
        } else if self.agent.0 == session {
            Some(self.to_sender.unread)
        } else {
            None
        }
    }

    /// Whether the agent has not said Opened yet.
    #[must_use]
    pub(crate) fn is_unopened(&self) -> bool {
        self.unopened.is_some()
    }

    /// Whether the agent was sent the Open alone, or nothing more was there.
    #[must_use]
    pub(crate) fn is_untouched(&self) -> bool {
        let held = |unopened: &Unopened| unopened.held || self.to_agent.bytes == 0;
        self.unopened.as_ref().is_some_and(held)
    }

    /// Bytes of the conversation that came from the sender.
    #[must_use]
    pub(crate) fn bytes_to_agent(&self) -> u64 {
        self.to_agent.bytes
    }

    /// Bytes of the conversation that came from the agent.
    #[must_use]
    pub(crate) fn bytes_to_sender(&self) -> u64 {
        self.to_sender.bytes
    }

    fn way(&mut self, toward: Toward) -> &mut Way {
        match toward {
            Toward::Sender => &mut self.to_sender,
            Toward::Agent => &mut self.to_agent,
        }
    }

    fn stream(&self, of: Toward) -> (SessionId, StreamId) {
        match of {
            Toward::Sender => self.sender,
            Toward::Agent => self.agent,
        }
    }

    fn is_delivered(&self) -> bool {
        self.to_agent.stage == Stage::Delivered && self.to_sender.stage == Stage::Delivered
    }
}

impl Toward {
    fn other(self) -> Self {
        match self {
            Self::Sender => Self::Agent,
            Self::Agent => Self::Sender,
        }
    }
}

impl<D> Joins<D> {
    /// Whether there is none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The join of `key`, if it lives.
    #[must_use]
    pub(crate) fn get(&self, key: JoinKey) -> Option<&Join<D>> {
        self.by_key.get(&key)
    }

    /// The join of `key`, if it lives.
    #[must_use]
    pub(crate) fn get_mut(&mut self, key: JoinKey) -> Option<&mut Join<D>> {
        self.by_key.get_mut(&key)
    }

    /// The join whose stream this is, and which of its two.
    #[must_use]
    pub(crate) fn of_stream(
        &self,
        session: SessionId,
        stream: StreamId,
    ) -> Option<(JoinKey, Toward)> {
        if self.by_stream.is_empty() {
            return None;
        }
        self.by_stream.get(&(session, stream)).copied()
    }

    /// The joins of a session, whichever side it is.
    #[must_use]
    pub(crate) fn of_session(&self, session: SessionId) -> Vec<JoinKey> {
        let joins = self.by_session.get(&session);
        joins
            .map(|joins| joins.iter().copied().collect())
            .unwrap_or_default()
    }

    /// How many joins a session carries.
    #[must_use]
    pub(crate) fn count_of_session(&self, session: SessionId) -> usize {
        self.by_session.get(&session).map_or(0, FxHashSet::len)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (JoinKey, &Join<D>)> {
        self.by_key.iter().map(|(&key, join)| (key, join))
    }

    fn link(&mut self, (session, stream): (SessionId, StreamId), key: JoinKey, of: Toward) {
        self.by_stream.insert((session, stream), (key, of));
        self.by_session.entry(session).or_default().insert(key);
    }

    fn unlink(&mut self, (session, stream): (SessionId, StreamId), key: JoinKey) {
        self.by_stream.remove(&(session, stream));
        if let Some(joins) = self.by_session.get_mut(&session) {
            joins.remove(&key);
            if joins.is_empty() {
                self.by_session.remove(&session);
            }
        }
    }

    fn remove(&mut self, key: JoinKey) -> Option<Join<D>> {
        let join = self.by_key.remove(&key)?;
        self.unlink(join.sender, key);
        self.unlink(join.agent, key);
        Some(join)
    }
}

impl<I: Io, D> Core<I, D> {
    /// Joins a sender's stream, whose Open was read, to an agent's new stream. `open` asks the
    /// agent, and goes alone until [`Self::release_join`] where the join is `held`; `first` came
    /// behind the sender's Open.
    pub(crate) fn join(
        &mut self,
        data: D,
        sender: (SessionId, StreamId),
        agent: (SessionId, StreamId),
        open: Bytes,
        (first, held): (Bytes, bool),
    ) -> JoinKey {
        self.joins.next += 1;
        let key = JoinKey(self.joins.next);
        let mut join = Join {
            data,
            sender,
            agent,
            to_agent: Way::new(self.now),
            to_sender: Way::new(self.now),
            unopened: Some(Unopened {
                held,
                ..Unopened::default()
            }),
            finished_first: None,
        };
        join.to_agent.pending.push_back(open);
        if !first.is_empty() {
            join.take(Toward::Agent, vec![first]);
        }
        self.in_hand.add(join.in_hand());
        self.joins.by_key.insert(key, join);
        self.joins.link(sender, key, Toward::Sender);
        self.joins.link(agent, key, Toward::Agent);
        self.carry(key, Toward::Agent);
        key
    }

    /// A join is held no longer.
    pub(crate) fn release_join(&mut self, key: JoinKey) {
        if let Some(join) = self.joins.by_key.get_mut(&key) {
            join.release();
            self.carry(key, Toward::Agent);
        }
    }

    /// After a refusal: asks another agent, with all that was said to the first.
    pub(crate) fn rejoin(&mut self, key: JoinKey, agent: (SessionId, StreamId), open: Bytes) {
        let Some(join) = self.joins.by_key.get_mut(&key) else {
            return;
        };
        let old = std::mem::replace(&mut join.agent, agent);
        let Some(unopened) = &mut join.unopened else {
            return;
        };
        unopened.answer = FrameReader::new();
        unopened.held = false;
        let way = &mut join.to_agent;
        way.pending.clear();
        way.pending.push_back(open);
        way.pending.extend(unopened.sent.iter().cloned());
        if way.stage != Stage::Open {
            way.stage = Stage::Ending;
        }
        self.quic.abort(old.0, old.1, FlowCode::Aborted);
        self.joins.unlink(old, key);
        self.joins.link(agent, key, Toward::Agent);
        self.carry(key, Toward::Agent);
    }

    /// What the agent answered to Open, while it has not said Opened.
    pub(crate) fn read_join_answer(&mut self, key: JoinKey) -> Head {
        let Some(join) = self.joins.by_key.get_mut(&key) else {
            return Head::Partial;
        };
        let (session, stream) = join.agent;
        match &mut join.unopened {
            Some(unopened) => read_head(&mut self.quic, session, stream, &mut unopened.answer),
            None => Head::Partial,
        }
    }

    /// The agent said Opened: `opened` goes to the sender ahead of `first` and of all that follows.
    pub(crate) fn joined(&mut self, key: JoinKey, opened: Bytes, first: Bytes) {
        let Some(join) = self.joins.by_key.get_mut(&key) else {
            return;
        };
        self.in_hand.remove(join.in_hand());
        join.release();
        join.unopened = None;
        join.to_sender.pending.push_back(opened);
        if !first.is_empty() {
            join.take(Toward::Sender, vec![first]);
        }
        self.in_hand.add(join.in_hand());
        self.carry(key, Toward::Sender);
        self.carry(key, Toward::Agent);
    }

    /// One of its streams may be read.
    pub(crate) fn join_readable(&mut self, key: JoinKey, of: Toward) {
        if let Some(join) = self.joins.by_key.get_mut(&key) {
            // Read at once, or it waits.
            join.way(of.other()).unread.note_frame();
        }
        self.carry(key, of.other());
    }

    /// One of its streams may be written.
    pub(crate) fn join_writable(&mut self, key: JoinKey, of: Toward) {
        self.carry(key, of);
    }

    /// Moves what came from one stream into the other, until there is no more or no credit.
    fn carry(&mut self, key: JoinKey, toward: Toward) {
        loop {
            let Some(join) = self.joins.by_key.get_mut(&key) else {
                return;
            };
            let (from, to) = (join.stream(toward.other()), join.stream(toward));
            let room = join.room(toward).min(self.in_hand.piece(READ_MAX));
            // Kept until Opened, whatever of it was sent.
            let kept = join.is_unopened() && toward == Toward::Agent;
            let way = join.way(toward);
            while !way.pending.is_empty() {
                match self
                    .quic
                    .write(to.0, to.1, way.pending.make_contiguous(), way.amount)
                {
                    Ok(bytes) => {
                        way.pending.retain(|chunk| !chunk.is_empty());
                        way.unread.note_moved(self.now);
                        if !kept {
                            self.in_hand.remove(bytes);
                        }
                    }
                    // Closed is told by an event of its own.
                    Err(WriteError::Blocked | WriteError::Closed) => return,
                }
            }
            match way.stage {
                Stage::Open => {}
                Stage::Ending => {
                    way.stage = Stage::Finished;
                    self.quic.finish(to.0, to.1);
                    return;
                }
                Stage::Finished | Stage::Delivered => return,
            }
            if room == 0 {
                // Opened resumes; until then only a reset of what is not read is looked for.
                if toward == Toward::Agent
                    && let Some(code) = self.quic.reset_of(from.0, from.1)
                {
                    self.fail_join(key, JoinEnd::Said(toward.other(), code));
                }
                return;
            }
            let mut chunks = Vec::new();
            let read = self
                .quic
                .read(from.0, from.1, GATHER_MAX, room, &mut chunks);
            let Some(join) = self.joins.by_key.get_mut(&key) else {
                return;
            };
            let nothing = chunks.is_empty();
            let way = join.way(toward);
            let (bytes, more) = (chunks.iter().map(Bytes::len).sum(), read == Ok(Read::More));
            way.amount = Amount::of(bytes, more);
            way.unread.note_read(chunks.len(), more);
            self.in_hand.add(bytes);
            join.take(toward, chunks);
            match read {
                Err(code) => return self.fail_join(key, JoinEnd::Said(toward.other(), code)),
                Ok(Read::End) => {
                    join.finished_first.get_or_insert(toward.other());
                    join.way(toward).stage = Stage::Ending;
                }
                Ok(Read::Empty) if nothing => return,
                Ok(Read::Empty | Read::More) => {}
            }
        }
    }

    /// All of one of its streams, its end included, was acknowledged.
    pub(crate) fn join_delivered(&mut self, key: JoinKey, of: Toward) {
        let Some(join) = self.joins.by_key.get_mut(&key) else {
            return;
        };
        join.way(of).stage = Stage::Delivered;
        if join.is_delivered() {
            let first = join.finished_first.unwrap_or(Toward::Sender);
            self.end_join(key, JoinEnd::Clean(first));
        }
    }

    /// Ends a join that did not end by itself: a reset towards both sides.
    pub(crate) fn fail_join(&mut self, key: JoinKey, end: JoinEnd) {
        let Some(join) = self.joins.by_key.get(&key) else {
            return;
        };
        let code = match end {
            JoinEnd::Said(_, code) | JoinEnd::Here(code) => code,
            JoinEnd::Lost(_) | JoinEnd::Clean(_) => FlowCode::Aborted,
        };
        for (session, stream) in [join.sender, join.agent] {
            self.quic.abort(session, stream, code);
        }
        self.end_join(key, end);
    }

    /// Ends all joins of a session that is gone.
    pub(crate) fn join_session_gone(&mut self, session: SessionId) {
        for key in self.joins.of_session(session) {
            let Some(join) = self.joins.get(key) else {
                continue;
            };
            let lost = if join.sender.0 == session {
                Toward::Sender
            } else {
                Toward::Agent
            };
            self.fail_join(key, JoinEnd::Lost(lost));
        }
    }

    fn end_join(&mut self, key: JoinKey, end: JoinEnd) {
        if let Some(join) = self.joins.remove(key) {
            self.in_hand.remove(join.in_hand());
            self.ended_joins.push((join, end));
        }
    }
}

impl<D> Join<D> {
    /// Bytes that may be read now. Before Opened the agent's stream holds its answer, and what the
    /// sender says must be kept for another agent.
    fn room(&self, toward: Toward) -> usize {
        match (&self.unopened, toward) {
            (None, _) => READ_MAX,
            (Some(_), Toward::Sender) => 0,
            (Some(unopened), Toward::Agent) if unopened.held => 0,
            (Some(unopened), Toward::Agent) => {
                let kept: usize = unopened.sent.iter().map(Bytes::len).sum();
                REPLAY_MAX.saturating_sub(kept).min(READ_MAX)
            }
        }
    }

    fn take(&mut self, toward: Toward, chunks: Vec<Bytes>) {
        let mut held = false;
        if let Some(unopened) = &mut self.unopened {
            unopened.sent.extend(chunks.iter().cloned());
            held = unopened.held;
        }
        let way = self.way(toward);
        way.bytes += chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        if !held {
            way.pending.extend(chunks);
        }
    }

    /// What was held back is sent behind the Open.
    fn release(&mut self) {
        if let Some(unopened) = &mut self.unopened
            && std::mem::take(&mut unopened.held)
        {
            self.to_agent.pending.extend(unopened.sent.iter().cloned());
        }
    }
}
