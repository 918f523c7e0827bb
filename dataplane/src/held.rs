//! What a worker holds of flows: bytes in hand (read from one side, not yet taken by the other),
//! and flows that hold bytes while nothing of theirs moves on. Knows no hybrid connections.

use std::time::{Duration, Instant};

use crate::core::Core;
use crate::flow::FlowKey;
use crate::io::Io;
use crate::join::JoinKey;
use crate::quic::SessionId;
use crate::quic::config::STREAM_WINDOW;

/// Nothing of a flow moved for so long: it is held up. A healthy reader takes a piece within a few
/// round trips.
const HELD_UP_AFTER: Duration = Duration::from_millis(100);

/// The smallest piece that is moved at a time, however little room there is.
const PIECE_MIN: u64 = 8 * 1024;

/// A piece takes at most this share of the room that is left, so that many flows at once find some.
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
        let room = self.max.saturating_sub(self.bytes) / PIECE_SHARE;
        usize::try_from(room.max(PIECE_MIN)).map_or(most, |room| room.min(most))
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

    fn is_held_up(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) >= HELD_UP_AFTER
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
    /// At most so many.
    pub(crate) bytes: u64,
    /// Since when nothing moved.
    pub(crate) since: Instant,
}

impl<I: Io, D> Core<I, D> {
    /// The flows that hold unread bytes of this session.
    pub(crate) fn held_up_in(&self, session: SessionId) -> Vec<HeldUp> {
        let frame_max = self.quic.datagram_max(session);
        let mut found = Vec::new();
        for key in self.flows.of_session(session) {
            let unread = self.flows.get(key).map(|flow| flow.unread);
            found.extend(unread.and_then(|unread| self.judge(Key::Flow(key), unread, frame_max)));
        }
        for key in self.joins.of_session(session) {
            let unread = self.joins.get(key).and_then(|join| join.unread_of(session));
            found.extend(unread.and_then(|unread| self.judge(Key::Join(key), unread, frame_max)));
        }
        found
    }

    fn judge(&self, key: Key, unread: Unread, frame_max: usize) -> Option<HeldUp> {
        let bytes = unread.bytes(frame_max);
        (bytes > 0 && unread.is_held_up(self.now)).then_some(HeldUp {
            key,
            bytes,
            since: unread.moved,
        })
    }

    /// The flows that have bytes in hand.
    pub(crate) fn held_up_in_hand(&self) -> Vec<HeldUp> {
        let mut found = Vec::new();
        let mut judge = |key, in_hand: usize, moved: Instant| {
            let held_up = self.now.saturating_duration_since(moved) >= HELD_UP_AFTER;
            if in_hand > 0 && held_up {
                let bytes = in_hand as u64;
                let since = moved;
                found.push(HeldUp { key, bytes, since });
            }
        };
        for (key, flow) in self.flows.iter() {
            judge(Key::Flow(key), flow.in_hand(), flow.moved());
        }
        for (key, join) in self.joins.iter() {
            judge(Key::Join(key), join.in_hand(), join.moved());
        }
        found
    }

    /// Reads on from applications that were kept waiting for room, while there is some.
    pub(crate) fn resume_hungry(&mut self) {
        for _ in 0..self.hungry.len() {
            if self.in_hand.is_full() {
                return;
            }
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
        in_hand.add(14 << 20);
        assert_eq!(in_hand.piece(256 << 10), 128 << 10);
        assert_eq!(in_hand.excess(), Some(6 << 20));
        in_hand.add(2 << 20);
        assert_eq!(in_hand.piece(256 << 10), 8 << 10);
        assert!(in_hand.is_full());
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
        assert!(!unread.is_held_up(now));
        assert!(unread.is_held_up(now + HELD_UP_AFTER));
        unread.note_read(1, false);
        assert_eq!(unread.bytes(1_452), 0);
        for _ in 0..100 {
            unread.note_frame();
        }
        assert_eq!(unread.bytes(65_000), u64::from(STREAM_WINDOW));
    }
}
