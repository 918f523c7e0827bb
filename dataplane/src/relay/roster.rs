//! Who listens on a hybrid connection, and who gets the next flow. Knows no sockets and no clock.
//!
//! Health orders the choice and never empties it: a suspect listener is picked when there is no better one.

use rand::{Rng, RngExt};
use underpass_proto::Instance;

use crate::quic::SessionId;

/// One session that listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// The session.
    pub(crate) session: SessionId,
    /// Its process: sessions of one instance are one listener.
    pub(crate) instance: Instance,
    /// Its share of new flows relative to others; at least 1 counts.
    pub(crate) weight: u16,
    /// Lower is preferred.
    pub(crate) priority: u8,
}

/// How well a session is, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Health {
    /// Answers.
    Ready,
    /// Was silent for too long, or a newer process of its agent is there.
    Suspect,
    /// Said that it takes no new flows.
    Draining,
}

/// The listeners of one hybrid connection on one worker.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    entries: Vec<Entry>,
}

impl Roster {
    /// Adds a listener, or renews its wishes.
    pub(crate) fn add(&mut self, entry: Entry) {
        self.remove(entry.session);
        self.entries.push(entry);
    }

    /// Removes a listener.
    pub(crate) fn remove(&mut self, session: SessionId) {
        self.entries.retain(|entry| entry.session != session);
    }

    /// Whether nobody listens.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The session for the next flow: of those in best health and preferred, the one with less load for its weight of two picked at random.
    /// `without` was tried already.
    pub(crate) fn pick(
        &self,
        health: impl Fn(SessionId) -> Health,
        load: impl Fn(SessionId) -> usize,
        without: Option<Instance>,
        rng: &mut impl Rng,
    ) -> Option<SessionId> {
        let candidates = || {
            self.entries
                .iter()
                .filter(|entry| Some(entry.instance) != without)
        };
        let rank = |entry: &Entry| (health(entry.session), entry.priority);
        let best = candidates().map(rank).min()?;
        let count = candidates().filter(|entry| rank(entry) == best).count();
        let nth = |n: usize| candidates().filter(|entry| rank(entry) == best).nth(n);
        let first = rng.random_range(0..count);
        // The second is another one, where there is another.
        let second = if count > 1 {
            (first + rng.random_range(1..count)) % count
        } else {
            first
        };
        let (first, second) = (nth(first)?, nth(second)?);
        let burden = |entry: &Entry| {
            (load(entry.session) as u64 + 1) * 1_000_000 / u64::from(entry.weight.max(1))
        };
        Some(if burden(second) < burden(first) {
            second.session
        } else {
            first.session
        })
    }
}
