//! When a session has something to do though nothing came: the timers of the protocol core, in one
//! heap for all sessions.
//!
//! A session is in it with one time that counts. Timers are put off with almost every datagram, so
//! a later time is only looked up when the one in the heap is next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use super::session::Session;
use super::{Driver, SessionId, lookup};
use crate::guard::guarded;

impl Driver {
    pub(super) fn schedule(
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
    pub fn next_deadline(&mut self) -> Option<Instant> {
        self.next_timer().map(|(deadline, _)| deadline)
    }

    /// The next timer. Those before it that were put off since they were scheduled are so here:
    /// most are put off more than once, and a turn for one that is not due costs as much as one
    /// with work.
    fn next_timer(&mut self) -> Option<(Instant, SessionId)> {
        while let Some(&Reverse((deadline, id))) = self.timers.peek() {
            let mut session = lookup(&mut self.sessions, id)
                .filter(|session| session.scheduled == Some(deadline));
            let due = session
                .as_mut()
                .and_then(|session| session.connection.poll_timeout());
            if due.is_some_and(|due| due <= deadline) {
                return Some((deadline, id));
            }
            self.timers.pop();
            if let Some(session) = session {
                session.scheduled = None;
                Self::schedule(&mut self.timers, session, id);
            }
        }
        None
    }

    /// Fires every timer that is due.
    pub fn fire_timers(&mut self, now: Instant) {
        self.end_unfinished(now);
        self.end_closing(now);
        // The first look is cheap, and mostly the last.
        while self.has_timer(now)
            && let Some((deadline, id)) = self.next_timer()
            && deadline <= now
        {
            self.timers.pop();
            let Some(session) = lookup(&mut self.sessions, id) else {
                continue;
            };
            session.scheduled = None;
            match guarded(|| session.connection.handle_timeout(now)) {
                Some(()) => self.mark(id),
                None => self.break_off(id),
            }
        }
    }

    /// Whether one is due, unless it was put off since.
    fn has_timer(&self, now: Instant) -> bool {
        let next = self.timers.peek();
        next.is_some_and(|Reverse((deadline, _))| *deadline <= now)
    }
}
