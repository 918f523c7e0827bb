//! What happens when: virtual time, which goes on from one event to the next. Two events of one
//! moment happen in the order in which they were planned.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Events by their time.
pub(super) struct Queue<E> {
    start: Instant,
    now: Instant,
    planned: u64,
    events: BTreeMap<(Instant, u64), E>,
}

impl<E> Queue<E> {
    /// Nothing happens yet.
    pub(super) fn new() -> Self {
        let start = Instant::now(); // Only differences are ever looked at.
        Self {
            start,
            now: start,
            planned: 0,
            events: BTreeMap::new(),
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Virtual time since the beginning.
    pub(super) fn age(&self) -> Duration {
        self.now - self.start
    }

    /// Plans an event; one in the past happens now.
    pub(super) fn at(&mut self, at: Instant, event: E) {
        self.planned += 1;
        let key = (at.max(self.now), self.planned);
        self.events.insert(key, event);
    }

    /// Plans an event some time from now.
    pub(super) fn after(&mut self, wait: Duration, event: E) {
        self.at(self.now + wait, event);
    }

    /// The next event, whose time it is then.
    pub(super) fn next(&mut self) -> Option<E> {
        let ((at, _), event) = self.events.pop_first()?;
        self.now = at;
        Some(event)
    }
}
