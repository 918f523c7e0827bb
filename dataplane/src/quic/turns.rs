//! Whose turn it is to write. A session keeps a bounded number of bytes until they are acknowledged, and where more flows write than that holds, each
//! acknowledgement makes room for a few of them.
//!
//! The protocol core wakes all who wait, last come first: a few flows that write much then have all the room, again and again, and each acknowledgement
//! costs as much as there are flows. Here they wait in a line, those with little to say in one of their own, and as many are called as may find room.

use std::collections::VecDeque;

use quinn_proto::{Dir, Side, StreamId};
use rustc_hash::FxHashSet;

/// The control stream: the first that the dialler opens.
pub(super) const CONTROL: u64 = 0;

/// Streams called at a time. One that finds no room keeps its place.
const CALLED_MAX: usize = 8;

/// What counts as little to say: a query and most answers, bytes.
const LITTLE_MAX: usize = 16 * 1024;

/// Of so many called, one is from the line of those with much to say, whoever else waits.
const MUCH_EACH: usize = 4;

/// The lines of one session.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// There is no room: nobody is called until there is.
    full: bool,
    /// Who was called and found no room, first come first.
    again: VecDeque<StreamId>,
    little: VecDeque<StreamId>,
    much: VecDeque<StreamId>,
    /// All who are in one of the three.
    waiting: FxHashSet<StreamId>,
    /// Who was called last and has not written since.
    called: Vec<StreamId>,
}

impl Turns {
    /// Whether a stream may write now; if not, it has to [`wait`](Self::wait).
    pub(super) fn may_write(&self, stream: StreamId) -> bool {
        !self.full && (self.waiting.is_empty() || self.called.contains(&stream))
    }

    /// A stream has written: who writes on waits behind the others.
    pub(super) fn has_written(&mut self, stream: StreamId) {
        self.called.retain(|called| *called != stream);
    }

    /// A stream that wanted to write this many bytes found no room.
    pub(super) fn found_no_room(&mut self, stream: StreamId, bytes: usize) {
        self.full = true;
        self.wait(stream, bytes);
    }

    /// A stream waits for its turn, with this many bytes to write.
    pub(super) fn wait(&mut self, stream: StreamId, bytes: usize) {
        if !self.waiting.insert(stream) {
            return;
        }
        let line = if self.called.contains(&stream) {
            &mut self.again
        } else if bytes <= LITTLE_MAX {
            &mut self.little
        } else {
            &mut self.much
        };
        line.push_back(stream);
    }

    /// The core says that a stream may write. Whether that was all: who waits here is called in its turn.
    pub(super) fn take_notice(&mut self, stream: StreamId) -> bool {
        self.full = false;
        self.waiting.contains(&stream)
    }

    /// Whether a stream waits.
    #[cfg(test)]
    pub(super) fn is_waiting(&self, stream: StreamId) -> bool {
        self.waiting.contains(&stream)
    }

    /// Calls the next, as many as may find room.
    pub(super) fn call(&mut self) -> Vec<StreamId> {
        self.called.clear();
        if self.full {
            return Vec::new();
        }
        while self.called.len() < CALLED_MAX
            && let Some(next) = self.next()
        {
            self.waiting.remove(&next);
            self.called.push(next);
        }
        self.called.clone()
    }

    fn next(&mut self) -> Option<StreamId> {
        let much_first = self.called.len() % MUCH_EACH == MUCH_EACH - 1;
        let (first, second) = if much_first {
            (&mut self.much, &mut self.little)
        } else {
            (&mut self.little, &mut self.much)
        };
        self.again
            .pop_front()
            .or_else(|| first.pop_front())
            .or_else(|| second.pop_front())
    }
}

/// The control stream's number, as the core has it.
pub(super) fn control() -> StreamId {
    StreamId::new(Side::Client, Dir::Bi, CONTROL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LITTLE: usize = 100;
    const MUCH: usize = 64 * 1024;

    fn stream(n: u64) -> StreamId {
        StreamId::new(Side::Server, Dir::Bi, n)
    }

    /// Wants to write, and has to wait.
    fn waits(turns: &mut Turns, stream: StreamId, bytes: usize) -> bool {
        let waits = !turns.may_write(stream);
        if waits {
            turns.wait(stream, bytes);
        }
        waits
    }

    fn numbers(streams: &[StreamId]) -> Vec<u64> {
        streams.iter().map(|stream| stream.index()).collect()
    }

    #[test]
    fn where_there_is_room_nobody_waits() {
        let mut turns = Turns::default();
        for n in 0..3 {
            assert!(turns.may_write(stream(n)));
            turns.has_written(stream(n));
        }
        assert!(turns.call().is_empty());
    }

    #[test]
    fn who_waits_is_called_first_come_first_and_waits_again_behind_the_others() {
        let mut turns = Turns::default();
        assert!(turns.may_write(stream(0)));
        turns.found_no_room(stream(0), MUCH);
        for n in 1..20 {
            assert!(waits(&mut turns, stream(n), MUCH));
        }
        assert!(turns.call().is_empty(), "there is no room");
        assert!(turns.take_notice(stream(0)));
        assert_eq!(numbers(&turns.call()), [0, 1, 2, 3, 4, 5, 6, 7]);
        // Two find room. The first writes on, and finds the others before it.
        for n in 0..2 {
            assert!(turns.may_write(stream(n)));
            turns.has_written(stream(n));
        }
        assert!(waits(&mut turns, stream(0), MUCH));
        // The third finds none, and those behind it do not try.
        assert!(turns.may_write(stream(2)));
        turns.found_no_room(stream(2), MUCH);
        for n in 3..8 {
            assert!(waits(&mut turns, stream(n), MUCH));
        }
        assert!(turns.call().is_empty());
        assert!(turns.take_notice(stream(2)));
        // They kept their places.
        assert_eq!(numbers(&turns.call()), [2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(numbers(&turns.call())[0], 10);
        assert_eq!(numbers(&turns.call()), [18, 19, 0]);
        assert!(turns.call().is_empty());
    }

    #[test]
    fn little_goes_before_much_and_much_is_not_forgotten() {
        let mut turns = Turns::default();
        turns.found_no_room(stream(0), MUCH);
        for n in 1..10 {
            assert!(waits(&mut turns, stream(n), MUCH));
            assert!(waits(&mut turns, stream(100 + n), LITTLE));
        }
        assert!(turns.take_notice(stream(0)));
        let called = numbers(&turns.call());
        assert_eq!(called, [101, 102, 103, 0, 104, 105, 106, 1]);
    }

    #[test]
    fn who_waits_twice_is_called_once() {
        let mut turns = Turns::default();
        turns.found_no_room(stream(0), MUCH);
        assert!(waits(&mut turns, stream(0), MUCH));
        assert!(waits(&mut turns, stream(0), LITTLE));
        assert!(turns.take_notice(stream(0)));
        assert_eq!(numbers(&turns.call()), [0]);
        assert!(turns.call().is_empty());
        assert!(!turns.take_notice(stream(0)), "it waits no more");
    }
}
