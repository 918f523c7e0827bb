//! Applications that cannot be carried yet: there is no session, or none with room for one more
//! flow. A relay that restarts is back within a second or two, and room comes as flows end: a
//! connection that waits so long is worth more than one that fails at once. Bounded in number and
//! time; touches no byte.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long an application waits: longer than a relay's restart, shorter than anybody's patience.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(3);

/// Applications that may wait on one worker.
pub(crate) const WAITING_MAX: usize = 1024;

/// Those of one worker, in the order in which they came.
pub(crate) struct Waiting<A>(VecDeque<(Instant, A)>);

impl<A> Default for Waiting<A> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<A> Waiting<A> {
    /// Whether no more may wait.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= WAITING_MAX
    }

    /// Whether nobody waits.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many wait.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// One more.
    pub(crate) fn push(&mut self, now: Instant, application: A) {
        self.0.push_back((now + WAIT_MAX, application));
    }

    /// Takes out the applications that get a place now, each with its place. The others go on
    /// waiting.
    pub(crate) fn served<P>(&mut self, mut place: impl FnMut(&A) -> Option<P>) -> Vec<(A, P)> {
        let mut served = Vec::new();
        for (until, application) in std::mem::take(&mut self.0) {
            match place(&application) {
                Some(place) => served.push((application, place)),
                None => self.0.push_back((until, application)),
            }
        }
        served
    }

    /// Those that waited for too long.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<A> {
        let mut expired = Vec::new();
        while let Some((_, application)) = self.0.pop_front_if(|(until, _)| *until <= now) {
            expired.push(application);
        }
        expired
    }

    /// Removes the applications for which `is_gone` holds. Whether there were any.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(&A) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|(_, application)| !is_gone(application));
        self.0.len() < before
    }

    /// All of them.
    pub(crate) fn take_all(&mut self) -> Vec<A> {
        std::mem::take(&mut self.0)
            .into_iter()
            .map(|(_, application)| application)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_served_keeps_turn_and_deadline() {
        let start = Instant::now();
        let later = start + WAIT_MAX / 2;
        let mut waiting = Waiting::default();
        for (number, name) in ["payroll-sql", "other-thing", "payroll-sql"]
            .into_iter()
            .enumerate()
        {
            waiting.push(if number < 2 { start } else { later }, (name, number));
        }
        let mut places = 1;
        let served = waiting.served(|(name, _)| {
            let free = *name == "payroll-sql" && places > 0;
            places -= i32::from(free);
            free.then_some(())
        });
        assert_eq!(served, [(("payroll-sql", 0), ())]);
        assert_eq!(waiting.expired(start + WAIT_MAX), [("other-thing", 1)]);
        assert_eq!(waiting.expired(start + WAIT_MAX), []);
        assert!(!waiting.forget(|(_, number)| *number == 3));
        assert_eq!(waiting.take_all(), [("payroll-sql", 2)]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn only_so_many_wait() {
        let mut waiting = Waiting::default();
        while !waiting.is_full() {
            waiting.push(Instant::now(), ());
        }
        assert_eq!(waiting.take_all().len(), WAITING_MAX);
    }
}
