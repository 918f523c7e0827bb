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

    /// Those for whom there is a place now, with it. The others go on waiting.
    pub(crate) fn served<P>(
        &mut self,
        mut place: impl FnMut(&HycoName) -> Option<P>,
    ) -> Vec<(Application, P)> {
        let mut served = Vec::new();
        for (until, application) in std::mem::take(&mut self.0) {
            match place(&application.hyco) {
                Some(place) => served.push((application, place)),
                None => self.0.push_back((until, application)),
            }
        }
        served
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_served_keeps_turn_and_deadline() {
        let start = Instant::now();
        let later = start + WAIT_MAX / 2;
        let mut waiting = Waiting::default();
        for (n, name) in ["payroll-sql", "other-thing", "payroll-sql"]
            .iter()
            .enumerate()
        {
            let application = Application {
                hyco: name.parse().unwrap(),
                socket: SocketId {
                    index: u32::try_from(n).unwrap(),
                    generation: 1,
                },
                address: "127.0.0.1:50000".parse().unwrap(),
            };
            waiting.push(if n < 2 { start } else { later }, application);
        }
        let mut places = 1;
        let mut place = |hyco: &HycoName| {
            let free = hyco.as_str() == "payroll-sql" && places > 0;
            places -= i32::from(free);
            free.then_some(())
        };
        let socket = |application: &Application| application.socket.index;
        let served = waiting.served(&mut place);
        assert_eq!(
            served
                .iter()
                .map(|(application, ())| socket(application))
                .collect::<Vec<_>>(),
            [0]
        );
        let expired = waiting.expired(start + WAIT_MAX);
        assert_eq!(expired.iter().map(socket).collect::<Vec<_>>(), [1]);
        assert!(waiting.expired(start + WAIT_MAX).is_empty());
        assert_eq!(
            waiting.take_all().iter().map(socket).collect::<Vec<_>>(),
            [2]
        );
    }
}
