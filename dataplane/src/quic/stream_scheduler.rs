//! Whose turn it is to write. A session keeps a bounded number of bytes until they are
//! acknowledged, and where more flows write than that holds, each acknowledgement makes room for a
//! few of them.
//!
//! The protocol core wakes all who wait, last come first: a few flows that write much then have all
//! the room, again and again, and each acknowledgement costs as much as there are flows. Here they
//! wait in a line, those with little to say in one of their own, and as many are called as may find
//! room.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use quinn_proto::{Dir, Side, StreamId};
use rustc_hash::FxHashSet;

/// The control stream: the first that the dialler opens.
pub(super) const CONTROL: u64 = 0;

/// Streams called at a time. One that finds no room keeps its place.
const CALLED_MAX: usize = 8;

/// What counts as little to say: a query and most answers, bytes.
const LITTLE_MAX: usize = 16 * 1024;

/// Of so many streams that write, one is from the line of bulk, even if others wait.
const MUCH_EACH: usize = 4;

/// For how long it counts how many waited.
const CROWD_FOR: Duration = Duration::from_millis(100);

/// How much data a stream has to send, which decides in which line it waits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Amount {
    /// A message.
    #[default]
    Little,
    /// A part of what is there, or of what comes as fast as it is taken.
    Much,
}

impl Amount {
    /// From the size of one read, and whether more data was there to be read. When memory is short
    /// reads are small, even of bulk.
    pub(crate) fn of(bytes: usize, more: bool) -> Self {
        if more || bytes > LITTLE_MAX {
            Self::Much
        } else {
            Self::Little
        }
    }
}

/// The lines of one session.
#[derive(Debug, Default)]
pub(super) struct StreamScheduler {
    /// There is no room: nobody is called until there is.
    full: bool,
    little: Line,
    much: Line,
    /// All who are in one of the two.
    waiting: FxHashSet<StreamId>,
    /// Who was called last and has not written since.
    called: Vec<(StreamId, Amount)>,
    /// How many with little to say have written since the last one with much. What counts is who
    /// wrote, not who was called: there may be room for one at a time.
    little_written: usize,
    crowd: Crowd,
}

/// How many with much to say waited at once, at most.
#[derive(Debug, Default)]
struct Crowd {
    now: usize,
    before: usize,
    since: Option<Instant>,
}

/// One line.
#[derive(Debug, Default)]
struct Line {
    streams: VecDeque<StreamId>,
    /// So many at its head were called last and found no room.
    again: usize,
}

impl Line {
    /// Behind all; who was called and found no room, where it was.
    fn wait(&mut self, stream: StreamId, was_called: bool) {
        if was_called {
            self.streams.insert(self.again, stream);
            self.again += 1;
        } else {
            self.streams.push_back(stream);
        }
    }
}

impl StreamScheduler {
    /// Whether a stream may write now; if not, it has to [`wait`](Self::wait).
    pub(super) fn may_write(&self, stream: StreamId) -> bool {
        !self.full && (self.waiting.is_empty() || self.was_called(stream))
    }

    /// A stream has written: who writes on waits behind the others.
    pub(super) fn has_written(&mut self, stream: StreamId) {
        let Some(nth) = self.called.iter().position(|(called, _)| *called == stream) else {
            return;
        };
        self.little_written = match self.called.remove(nth).1 {
            Amount::Little => self.little_written + 1,
            Amount::Much => 0,
        };
    }

    /// A stream that wanted to write this many bytes found no room.
    pub(super) fn found_no_room(&mut self, stream: StreamId, amount: Amount) {
        self.full = true;
        self.wait(stream, amount);
    }

    /// A stream waits for its turn, with this much to write.
    pub(super) fn wait(&mut self, stream: StreamId, amount: Amount) {
        if !self.waiting.insert(stream) {
            return;
        }
        let was_called = self.was_called(stream);
        let line = match amount {
            Amount::Little => &mut self.little,
            Amount::Much => &mut self.much,
        };
        line.wait(stream, was_called);
        self.crowd.now = self.crowd.now.max(self.much.streams.len());
    }

    /// How many with much to say waited at once, at most, lately.
    pub(super) fn crowd(&mut self, now: Instant) -> usize {
        let crowd = &mut self.crowd;
        let since = crowd.since.get_or_insert(now);
        if now.saturating_duration_since(*since) >= CROWD_FOR {
            *since = now;
            crowd.before = std::mem::replace(&mut crowd.now, self.much.streams.len());
        }
        crowd.now.max(crowd.before)
    }

    fn was_called(&self, stream: StreamId) -> bool {
        self.called.iter().any(|(called, _)| *called == stream)
    }

    /// The core says that a stream may write. Whether that was all: who waits here is called in its
    /// turn.
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
        (self.little.again, self.much.again) = (0, 0);
        let mut little_written = self.little_written;
        while self.called.len() < CALLED_MAX
            && let Some((next, has)) = self.next(little_written + 1 >= MUCH_EACH)
        {
            little_written = match has {
                Amount::Little => little_written + 1,
                Amount::Much => 0,
            };
            self.waiting.remove(&next);
            self.called.push((next, has));
        }
        self.called.iter().map(|(stream, _)| *stream).collect()
    }

    fn next(&mut self, much_first: bool) -> Option<(StreamId, Amount)> {
        let (little, much) = (&mut self.little.streams, &mut self.much.streams);
        let mut of_little = || Some((little.pop_front()?, Amount::Little));
        let mut of_much = || Some((much.pop_front()?, Amount::Much));
        if much_first {
            of_much().or_else(of_little)
        } else {
            of_little().or_else(of_much)
        }
    }
}

/// The control stream's number, as the core has it.
pub(super) fn control() -> StreamId {
    StreamId::new(Side::Client, Dir::Bi, CONTROL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LITTLE: Amount = Amount::Little;
    const MUCH: Amount = Amount::Much;

    fn stream(n: u64) -> StreamId {
        StreamId::new(Side::Server, Dir::Bi, n)
    }

    /// Wants to write, and has to wait.
    fn waits(scheduler: &mut StreamScheduler, stream: StreamId, amount: Amount) -> bool {
        let waits = !scheduler.may_write(stream);
        if waits {
            scheduler.wait(stream, amount);
        }
        waits
    }

    fn numbers(streams: &[StreamId]) -> Vec<u64> {
        streams.iter().map(|stream| stream.index()).collect()
    }

    #[test]
    fn a_small_piece_of_much_is_much() {
        assert_eq!(Amount::of(LITTLE_MAX, false), Amount::Little);
        assert_eq!(Amount::of(2 * 1024, true), Amount::Much);
        assert_eq!(Amount::of(LITTLE_MAX + 1, false), Amount::Much);
    }

    #[test]
    fn where_there_is_room_nobody_waits() {
        let mut scheduler = StreamScheduler::default();
        for n in 0..3 {
            assert!(scheduler.may_write(stream(n)));
            scheduler.has_written(stream(n));
        }
        assert!(scheduler.call().is_empty());
    }

    #[test]
    fn who_waits_is_called_first_come_first_and_waits_again_behind_the_others() {
        let mut scheduler = StreamScheduler::default();
        assert!(scheduler.may_write(stream(0)));
        scheduler.found_no_room(stream(0), MUCH);
        for n in 1..20 {
            assert!(waits(&mut scheduler, stream(n), MUCH));
        }
        assert!(scheduler.call().is_empty(), "there is no room");
        assert!(scheduler.take_notice(stream(0)));
        assert_eq!(numbers(&scheduler.call()), [0, 1, 2, 3, 4, 5, 6, 7]);
        // Two find room. The first writes on, and finds the others before it.
        for n in 0..2 {
            assert!(scheduler.may_write(stream(n)));
            scheduler.has_written(stream(n));
        }
        assert!(waits(&mut scheduler, stream(0), MUCH));
        // The third finds none, and those behind it do not try.
        assert!(scheduler.may_write(stream(2)));
        scheduler.found_no_room(stream(2), MUCH);
        for n in 3..8 {
            assert!(waits(&mut scheduler, stream(n), MUCH));
        }
        assert!(scheduler.call().is_empty());
        assert!(scheduler.take_notice(stream(2)));
        // They kept their places.
        assert_eq!(numbers(&scheduler.call()), [2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(numbers(&scheduler.call())[0], 10);
        assert_eq!(numbers(&scheduler.call()), [18, 19, 0]);
        assert!(scheduler.call().is_empty());
    }

    #[test]
    fn those_with_much_to_say_are_counted_for_a_while() {
        let mut scheduler = StreamScheduler::default();
        let start = Instant::now();
        assert_eq!(scheduler.crowd(start), 0);
        scheduler.found_no_room(stream(0), MUCH);
        for n in 1..5 {
            assert!(waits(&mut scheduler, stream(n), MUCH));
            assert!(waits(&mut scheduler, stream(100 + n), LITTLE));
        }
        assert!(scheduler.take_notice(stream(0)));
        while !scheduler.call().is_empty() {}
        assert_eq!(
            scheduler.crowd(start),
            5,
            "though none of them waits any more"
        );
        assert_eq!(scheduler.crowd(start + CROWD_FOR), 5);
        assert_eq!(scheduler.crowd(start + 2 * CROWD_FOR), 0);
    }

    #[test]
    fn little_goes_before_much_and_much_is_not_forgotten() {
        let mut scheduler = StreamScheduler::default();
        scheduler.found_no_room(stream(0), MUCH);
        for n in 1..10 {
            assert!(waits(&mut scheduler, stream(n), MUCH));
            assert!(waits(&mut scheduler, stream(100 + n), LITTLE));
        }
        assert!(scheduler.take_notice(stream(0)));
        let called = numbers(&scheduler.call());
        assert_eq!(called, [101, 102, 103, 0, 104, 105, 106, 1]);
    }

    #[test]
    fn who_comes_with_little_is_called_next_whoever_found_no_room_before() {
        for found_none in 1..=CALLED_MAX as u64 {
            let mut scheduler = StreamScheduler::default();
            scheduler.found_no_room(stream(0), MUCH);
            for n in 1..20 {
                assert!(waits(&mut scheduler, stream(n), MUCH));
            }
            assert!(scheduler.take_notice(stream(0)));
            let called = scheduler.call();
            let writes = CALLED_MAX - found_none as usize;
            for &stream in &called[..writes] {
                assert!(scheduler.may_write(stream));
                scheduler.has_written(stream);
            }
            scheduler.found_no_room(called[writes], MUCH);
            for &stream in &called[writes + 1..] {
                assert!(waits(&mut scheduler, stream, MUCH));
            }
            assert!(waits(&mut scheduler, stream(100), LITTLE));
            assert!(scheduler.take_notice(called[writes]));
            // Behind it all keep their places.
            let again = numbers(&scheduler.call());
            let first = writes as u64;
            let expected = [100].into_iter().chain(first..first + 7);
            assert_eq!(again, expected.collect::<Vec<_>>(), "{found_none}");
        }
    }

    #[test]
    fn where_one_at_a_time_finds_room_one_of_four_that_write_has_much() {
        let mut scheduler = StreamScheduler::default();
        scheduler.found_no_room(stream(0), MUCH);
        for n in 1..4 {
            assert!(waits(&mut scheduler, stream(n), MUCH));
        }
        for n in 100..120 {
            assert!(waits(&mut scheduler, stream(n), LITTLE));
        }
        let mut wrote = Vec::new();
        let mut full = stream(0);
        for _ in 0..12 {
            assert!(scheduler.take_notice(full));
            let called = scheduler.call();
            let amount = |stream: StreamId| match stream.index() {
                100.. => LITTLE,
                _ => MUCH,
            };
            assert!(scheduler.may_write(called[0]));
            scheduler.has_written(called[0]);
            wrote.push(called[0].index());
            full = called[1];
            scheduler.found_no_room(full, amount(full));
            for &stream in &called[2..] {
                assert!(waits(&mut scheduler, stream, amount(stream)));
            }
        }
        assert_eq!(
            wrote,
            [100, 101, 102, 0, 103, 104, 105, 1, 106, 107, 108, 2]
        );
    }

    #[test]
    fn who_waits_twice_is_called_once() {
        let mut scheduler = StreamScheduler::default();
        scheduler.found_no_room(stream(0), MUCH);
        assert!(waits(&mut scheduler, stream(0), MUCH));
        assert!(waits(&mut scheduler, stream(0), LITTLE));
        assert!(scheduler.take_notice(stream(0)));
        assert_eq!(numbers(&scheduler.call()), [0]);
        assert!(scheduler.call().is_empty());
        assert!(!scheduler.take_notice(stream(0)), "it waits no more");
    }
}
