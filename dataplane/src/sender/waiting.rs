//! Applications that connected while there was no session to carry them: a relay that restarts is back within a second or two, and a connection
//! that waits so long is worth more than one that fails at once. Bounded in number and time; touches no byte.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use underpass_proto::HycoName;

use crate::io::SocketId;

/// How long an application waits for a session: longer than a relay's restart, shorter than anybody's patience.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(3);

/// Applications that may wait on one worker.
const WAITING_MAX: usize = 1024;

/// An application without a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Application {
    pub(crate) hyco: HycoName,
    pub(crate) socket: SocketId,
    pub(crate) address: SocketAddr,
}

/// Those of one worker, in the order in which they came.
#[derive(Default)]
pub(crate) struct Waiting(VecDeque<(Instant, Application)>);

impl Waiting {
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

    /// One more.
    pub(crate) fn push(&mut self, now: Instant, application: Application) {
        self.0.push_back((now + WAIT_MAX, application));
    }

    /// Those that waited for this hybrid connection.
    pub(crate) fn take(&mut self, hyco: &HycoName) -> Vec<Application> {
        let (taken, left) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(_, application)| application.hyco == *hyco);
        self.0 = left;
        let taken: VecDeque<(Instant, Application)> = taken;
        taken
            .into_iter()
            .map(|(_, application)| application)
            .collect()
    }

    /// Those that waited for too long.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Application> {
        let mut expired = Vec::new();
        while let Some((_, application)) = self.0.pop_front_if(|(until, _)| *until <= now) {
            expired.push(application);
        }
        expired
    }

    /// All of them.
    pub(crate) fn take_all(&mut self) -> Vec<Application> {
        std::mem::take(&mut self.0)
            .into_iter()
            .map(|(_, application)| application)
            .collect()
    }
}
