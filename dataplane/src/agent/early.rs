//! Flows whose Open came before the registration that they stand on was proven, for streams have no
//! order among each other. Dials nothing.

use std::time::Instant;

use quinn_proto::StreamId;
use underpass_proto::HycoName;
use underpass_proto::limits::DIAL_DEADLINE;

use crate::opening::Asked;
use crate::quic::SessionId;

/// Flows that may wait on one worker. They are there for one round trip at most; beyond, they are
/// refused.
const EARLY_MAX: usize = 1024;

/// Those of one worker, in the order in which they came.
#[derive(Default)]
pub(crate) struct Early(Vec<(Instant, Asked)>);

impl Early {
    /// Whether no more may wait.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= EARLY_MAX
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Keeps one until its registration is proven.
    pub(crate) fn wait(&mut self, now: Instant, asked: Asked) {
        self.0.push((now + DIAL_DEADLINE, asked));
    }

    /// Those that waited for this registration.
    pub(crate) fn ready(&mut self, session: SessionId, hyco: &HycoName) -> Vec<Asked> {
        self.take(|_, asked| asked.session == session && asked.open.hyco == *hyco)
    }

    /// Those that waited for too long.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Asked> {
        self.take(|until, _| until <= now)
    }

    /// Whether this stream's flow waits.
    #[must_use]
    pub(crate) fn has(&self, session: SessionId, stream: StreamId) -> bool {
        let is_it = |asked: &Asked| asked.session == session && asked.stream == stream;
        self.0.iter().any(|(_, asked)| is_it(asked))
    }

    /// How many wait on a session.
    #[must_use]
    pub(crate) fn count_of_session(&self, session: SessionId) -> usize {
        let of_session = |(_, asked): &&(Instant, Asked)| asked.session == session;
        self.0.iter().filter(of_session).count()
    }

    /// Forgets a flow that the relay took back.
    pub(crate) fn forget(&mut self, session: SessionId, stream: StreamId) {
        self.0
            .retain(|(_, asked)| asked.session != session || asked.stream != stream);
    }

    /// Forgets all of a session that is gone.
    pub(crate) fn session_gone(&mut self, session: SessionId) {
        self.0.retain(|(_, asked)| asked.session != session);
    }

    fn take(&mut self, wanted: impl Fn(Instant, &Asked) -> bool) -> Vec<Asked> {
        let taken = self
            .0
            .extract_if(.., |(until, asked)| wanted(*until, asked));
        taken.map(|(_, asked)| asked).collect()
    }
}
