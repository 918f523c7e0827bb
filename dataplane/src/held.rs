//! What a worker holds of flows: bytes in hand (read from one side, not yet taken by the other),
//! and flows that hold bytes while nothing of theirs moves on. Knows no hybrid connections.

use std::time::{Duration, Instant};

use crate::core::Core;
use crate::flow::{Flow, FlowKey};
use crate::io::{Io, READ_SIZE, SocketId};
use crate::join::{Join, JoinKey};
use crate::quic::SessionId;
use crate::quic::config::STREAM_WINDOW;

/// Nothing moved into a socket for so long: the flow is held up, unless the kernel has sent
/// something meanwhile ([`Io::has_stalled`]), which takes more only in pieces of some 256 KiB.
const HELD_UP_AFTER: Duration = Duration::from_millis(100);

/// The same towards a stream, whose peer gives credit in pieces of that size: an application that
/// reads 256 KiB a second moves on.
const STREAM_HELD_UP_AFTER: Duration = Duration::from_secs(1);

/// The smallest piece that is moved at a time while there is room.
const PIECE_MIN: u64 = 8 * 1024;

/// The smallest piece where little room is left: 10,000 flows that do not move on fill no more.
const PIECE_LEAST: u64 = 2 * 1024;

/// A piece takes at most this share of what is left of half the room, so that many flows at once
/// find some, and the other half is left to applications.
const PIECE_SHARE: u64 = 16;

/// Bytes in hand of one worker.
#[derive(Debug)]
pub(crate) struct InHand {
    bytes: u64,
    max: u64,
}

impl Default for InHand {
    fn default() -> Self {
        Self {
            bytes: 0,
            max: u64::MAX,
        }
    }
}

impl InHand {
    pub(crate) fn set_max(&mut self, max: u64) {
        self.max = max;
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    pub(crate) fn remove(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }

    /// How many bytes may be read at once, of `most`.
    pub(crate) fn piece(&self, most: usize) -> usize {
        let least = if self.bytes < self.max / 4 * 3 {
            PIECE_MIN
        } else {
            PIECE_LEAST
        };
        let room = (self.max / 2).saturating_sub(self.bytes) / PIECE_SHARE;
        usize::try_from(room.max(least)).map_or(most, |room| room.min(most))
    }

    /// How many receives may be armed at once.
    pub(crate) fn receives(&self) -> usize {
        let room = self.max.saturating_sub(self.bytes);
        usize::try_from(room / READ_SIZE as u64).unwrap_or(usize::MAX)
    }

    /// Whether nothing more should be read from applications.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.max
    }

    /// How many bytes are too many: from three quarters on, what is beyond a half.
    pub(crate) fn excess(&self) -> Option<u64> {
        (self.bytes >= self.max / 4 * 3).then(|| self.bytes - self.max / 2)
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What waits unread in one stream while the other side does not take what was read before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unread {
    /// STREAM frames that came and were not read, about.
    frames: u32,
    /// When something moved last.
    moved: Instant,
}

impl Unread {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            frames: 0,
            moved: now,
        }
    }

    /// A frame came that cannot be read yet.
    pub(crate) fn note_frame(&mut self) {
        self.frames = self.frames.saturating_add(1);
    }

    /// So many frames were read; whether more are there.
    pub(crate) fn note_read(&mut self, frames: usize, more: bool) {
        self.frames = if more {
            let read = u32::try_from(frames).unwrap_or(u32::MAX);
            self.frames.saturating_sub(read).max(1)
        } else {
            0
        };
    }

    /// The other side took something.
    pub(crate) fn note_moved(&mut self, now: Instant) {
        self.moved = now;
    }

    /// When that was last.
    pub(crate) fn moved(&self) -> Instant {
        self.moved
    }

    /// At most so many bytes, where frames bring at most `frame_max` each.
    fn bytes(&self, frame_max: usize) -> u64 {
        let frames = u64::from(self.frames);
        frames
            .saturating_mul(frame_max as u64)
            .min(u64::from(STREAM_WINDOW))
    }
}

/// A flow of an application that is here, or of one that is beside a sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    Flow(FlowKey),
    Join(JoinKey),
}

/// A flow that holds bytes and is held up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldUp {
    pub(crate) key: Key,
    /// Whose credit the bytes are.
    pub(crate) session: SessionId,
    /// Where they wait to go, if that is a socket.
    pub(crate) socket: Option<SocketId>,
    /// At most so many.
    pub(crate) bytes: u64,
    /// Since when nothing moved.
    pub(crate) since: Instant,
}

impl<I: Io, D> Core<I, D> {
    /// The flows that hold unread bytes of this session.
    pub(crate) fn held_up_in(&self, session: SessionId) -> Vec<HeldUp> {
        let frame_max = self.quic.datagram_max(session);
        let flows = self.flows.of_session(session).into_iter();
        let flows = flows.filter_map(|key| Some((key, self.flows.get(key)?)));
        let mut found: Vec<HeldUp> = flows
            .filter_map(|(key, flow)| self.unread_of_flow(key, flow, frame_max))
            .collect();
        for key in self.joins.of_session(session) {
            if let Some(join) = self.joins.get(key) {
                found.extend(self.unread_of_join(key, join, session, frame_max));
            }
        }
        found
    }

    /// The flows that hold unread bytes of any session.
    pub(crate) fn held_up_anywhere(&self) -> Vec<HeldUp> {
        let frame_max = |session| self.quic.datagram_max(session);
        let mut found: Vec<HeldUp> = self
            .flows
            .iter()
            .filter_map(|(key, flow)| self.unread_of_flow(key, flow, frame_max(flow.session)))
            .collect();
        for (key, join) in self.joins.iter() {
            for session in [join.sender.0, join.agent.0] {
                found.extend(self.unread_of_join(key, join, session, frame_max(session)));
            }
        }
        found
    }

    fn unread_of_flow(&self, key: FlowKey, flow: &Flow<D>, frame_max: usize) -> Option<HeldUp> {
        let (unread, to) = (flow.unread, (flow.session, flow.socket));
        self.judge(Key::Flow(key), to, unread.bytes(frame_max), unread.moved())
    }

    fn unread_of_join(
        &self,
        key: JoinKey,
        join: &Join<D>,
        session: SessionId,
        frame_max: usize,
    ) -> Option<HeldUp> {
        let (unread, to) = (join.unread_of(session)?, (session, None));
        self.judge(Key::Join(key), to, unread.bytes(frame_max), unread.moved())
    }

    /// The flows that have bytes in hand.
    pub(crate) fn held_up_in_hand(&self) -> Vec<HeldUp> {
        let flows = self.flows.iter();
        let flows = flows.filter_map(|(key, flow)| self.in_hand_of_flow(Key::Flow(key), flow));
        let joins = self.joins.iter().filter_map(|(key, join)| {
            let (bytes, to) = (join.in_hand() as u64, (join.sender.0, None));
            self.judge(Key::Join(key), to, bytes, join.moved())
        });
        flows.chain(joins).collect()
    }

    fn in_hand_of_flow(&self, key: Key, flow: &Flow<D>) -> Option<HeldUp> {
        let all = flow.in_hand() as u64;
        let writing = if flow.writing_bytes() > 0 { all } else { 0 };
        let to_socket = (flow.session, flow.socket);
        let to_stream = (flow.session, None);
        let pending = flow.pending_bytes() as u64;
        self.judge(key, to_socket, writing, flow.unread.moved())
            .or_else(|| self.judge(key, to_stream, pending, flow.pending_moved()))
    }

    /// A flow whose bytes, which are a session's credit and wait to go into a socket or a stream,
    /// have not moved since.
    fn judge(
        &self,
        key: Key,
        (session, socket): (SessionId, Option<SocketId>),
        bytes: u64,
        since: Instant,
    ) -> Option<HeldUp> {
        let after = match socket {
            Some(_) => HELD_UP_AFTER,
            None => STREAM_HELD_UP_AFTER,
        };
        let is_held_up = self.now.saturating_duration_since(since) >= after;
        (bytes > 0 && is_held_up).then_some(HeldUp {
            key,
            session,
            socket,
            bytes,
            since,
        })
    }

    /// Whether a flow that is held up here is so beyond this process, too. One that is not counts
    /// as one that moved.
    pub(crate) fn has_stalled(&mut self, held: &HeldUp) -> bool {
        let Some(socket) = held.socket else {
            return true;
        };
        let stalled = self.io.has_stalled(socket, HELD_UP_AFTER);
        if !stalled
            && let Key::Flow(key) = held.key
            && let Some(flow) = self.flows.get_mut(key)
        {
            flow.unread.note_moved(self.now);
        }
        stalled
    }

    /// Reads on from applications that were kept waiting for room, from as many as there is room
    /// for.
    pub(crate) fn resume_hungry(&mut self) {
        for _ in 0..self.hungry.len().min(self.in_hand.receives()) {
            if let Some(key) = self.hungry.pop_front() {
                self.stream_writable(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_smaller_as_the_room_is_used_up_and_never_nothing() {
        let mut in_hand = InHand::default();
        assert_eq!(in_hand.piece(256 << 10), 256 << 10);
        in_hand.set_max(16 << 20);
        assert_eq!(in_hand.piece(256 << 10), 256 << 10);
        in_hand.add(6 << 20);
        assert_eq!(in_hand.piece(256 << 10), 128 << 10);
        in_hand.add(4 << 20);
        assert_eq!(in_hand.piece(256 << 10), 8 << 10);
        assert_eq!(in_hand.excess(), None);
        in_hand.add(4 << 20);
        assert_eq!(in_hand.piece(256 << 10), 2 << 10);
        assert_eq!(in_hand.excess(), Some(6 << 20));
        in_hand.add(2 << 20);
        assert!(in_hand.is_full());
        assert_eq!(in_hand.receives(), 0);
        in_hand.remove(9 << 20);
        assert_eq!(in_hand.excess(), None);
        assert_eq!(in_hand.bytes(), 7 << 20);
    }

    #[test]
    fn a_stream_holds_at_most_what_its_frames_brought_and_at_most_its_window() {
        let now = Instant::now();
        let mut unread = Unread::new(now);
        assert_eq!(unread.bytes(1_452), 0);
        for _ in 0..10 {
            unread.note_frame();
        }
        assert_eq!(unread.bytes(1_452), 14_520);
        unread.note_read(4, true);
        assert_eq!(unread.bytes(1_452), 6 * 1_452);
        unread.note_read(40, true);
        assert_eq!(unread.bytes(1_452), 1_452, "there is more");
        unread.note_read(1, false);
        assert_eq!(unread.bytes(1_452), 0);
        for _ in 0..100 {
            unread.note_frame();
        }
        assert_eq!(unread.bytes(65_000), u64::from(STREAM_WINDOW));
    }
}
