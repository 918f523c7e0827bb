//! From a name to its addresses, on threads of their own, because the system's resolver blocks: 10
//! to 40 s where name servers are silent. Who may hold how many threads is decided in `line`; the
//! names of relays have a lane to themselves. Decides nothing about addresses.

mod line;
mod system;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;
use underpass_proto::{Endpoint, FlowCode, Host, HostName};

pub(crate) use self::line::Asker;
use self::line::{Bounds, Line, Place};

/// Endpoints' names. The system gives no lifetime of an answer: 3 s join the look-ups of a burst,
/// and a name that moved is noticed at once all the same, for an answer whose addresses cannot be
/// reached is forgotten. A blocked thread costs some 30 kB.
const ENDPOINTS: Bounds = Bounds {
    threads_max: 64,
    found_for: Duration::from_secs(3),
    failed_for: Duration::from_secs(2),
};

/// Relays' names: each is asked for by several workers at once, and seldom.
const RELAYS: Bounds = Bounds {
    threads_max: 16,
    found_for: Duration::from_secs(1),
    failed_for: Duration::from_secs(1),
};

/// A thread that had nothing to do for this long ends.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// One address of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// The address, unmapped.
    pub(crate) ip: IpAddr,
    /// Whether this machine's hosts file makes it of the name.
    pub(crate) from_hosts_file: bool,
}

/// Why a name has no addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The name servers say that there are none.
    NotFound,
    /// No name server answered in time.
    Silent,
    /// This machine's hosts file leads it to a sender, and nowhere else.
    OwnEntry,
    /// This process has no file descriptor, memory or thread left to resolve it with.
    Exhausted,
}

/// What became of a question: at least one address, or why there is none.
pub(crate) type Answer = Result<Arc<[Found]>, Failure>;

/// What becomes of a question to the resolver.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Answered at once, from what is known.
    Known(Answer),
    /// The answer comes later, on another thread.
    Later,
}

/// Resolves names beside the workers. Its threads end with the last clone.
#[derive(Clone)]
pub(crate) struct Resolver {
    endpoints: Arc<Lane>,
    relays: Arc<Lane>,
}

type Waits = Box<dyn FnOnce(Answer) + Send>;
type Lookup = Arc<dyn Fn(&HostName) -> Answer + Send + Sync>;

/// Threads, and the line before them.
struct Lane(Arc<Shared>);

struct Shared {
    threads_name: &'static str,
    threads_max: usize,
    lookup: Lookup,
    state: Mutex<State>,
    /// There is a question, or the lane is closed.
    wake: Condvar,
}

struct State {
    line: Line<Waits>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Resolver {
    /// One that asks the system. Threads begin when there are questions.
    #[must_use]
    pub(crate) fn of_system() -> Self {
        Self::by(Arc::new(system::look_up))
    }

    /// One whose answers are given by `lookup`, on threads of its own. It may block.
    pub(crate) fn by(lookup: Lookup) -> Self {
        Self {
            endpoints: Arc::new(Lane::new("resolve", ENDPOINTS, Arc::clone(&lookup))),
            relays: Arc::new(Lane::new("resolve-relay", RELAYS, lookup)),
        }
    }

    /// One that finds nothing: a simulation has addresses only.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Self {
        Self::by(Arc::new(|_| Err(Failure::NotFound)))
    }

    /// Resolves a name. Where it takes time, `waits` is called on another thread: with the answer,
    /// or after `give_up` with [`Failure::Silent`], as soon as a thread sees it;
    /// with [`Failure::Exhausted`] where no thread can be started, on this thread, too.
    ///
    /// # Errors
    /// The asker's share of the line is used up: [`FlowCode::Overloaded`].
    pub(crate) fn ask(
        &self,
        now: Instant,
        name: &HostName,
        asker: &Asker,
        give_up: Instant,
        waits: impl FnOnce(Answer) + Send + 'static,
    ) -> Result<Asked, FlowCode> {
        let lane = match asker.hyco {
            Some(_) => &self.endpoints,
            None => &self.relays,
        };
        lane.ask(now, name, asker, give_up, waits)
    }

    /// The addresses of an endpoint's name could not be reached: the next question is asked of the
    /// system again.
    pub(crate) fn forget(&self, now: Instant, name: &HostName) {
        self.endpoints.0.open().line.forget(now, name);
    }
}

impl Lane {
    fn new(threads_name: &'static str, bounds: Bounds, lookup: Lookup) -> Self {
        let state = State {
            line: Line::new(bounds),
            threads: 0,
            idle: 0,
            closed: false,
        };
        Self(Arc::new(Shared {
            threads_name,
            threads_max: bounds.threads_max,
            lookup,
            state: Mutex::new(state),
            wake: Condvar::new(),
        }))
    }

    fn ask(
        &self,
        now: Instant,
        name: &HostName,
        asker: &Asker,
        give_up: Instant,
        waits: impl FnOnce(Answer) + Send + 'static,
    ) -> Result<Asked, FlowCode> {
        let mut state = self.0.open();
        let waits = || -> Waits { Box::new(waits) };
        let (asked, needs_thread) = match state.line.ask(now, name, asker, give_up, waits) {
            Place::Known(answer) => (Ok(Asked::Known(answer)), false),
            Place::Refused => (Err(FlowCode::Overloaded), false),
            Place::Joined => (Ok(Asked::Later), false),
            Place::Waits => (Ok(Asked::Later), true),
        };
        // Callbacks may block on a full inbox: a thread makes them, not the worker that asks.
        if needs_thread || state.line.has_expired(now) {
            self.0.have_thread(state);
        }
        asked
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.0.open().closed = true;
        self.0.wake.notify_all();
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes an idle thread; else starts one below the limit; else a busy thread takes the question
    /// when it finishes.
    fn have_thread(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.idle > 0 {
            return self.wake.notify_one();
        }
        if state.threads >= self.threads_max {
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = Arc::clone(self);
        let started = thread::Builder::new()
            .name(self.threads_name.to_owned())
            .spawn(move || shared.run());
        if let Err(error) = started {
            self.not_started(&error);
        }
    }

    /// A thread could not be started. Those that are there take the questions; without any, nobody
    /// would answer them.
    fn not_started(&self, error: &io::Error) {
        warn!(%error, "cannot start a thread to resolve names");
        let mut state = self.open();
        state.threads -= 1;
        let waiting = match state.threads {
            0 => state.line.take_all(),
            _ => Vec::new(),
        };
        drop(state);
        for waits in waiting {
            waits(Err(Failure::Exhausted));
        }
    }

    /// A thread: resolves one name after the other, until there was none for a while.
    fn run(self: Arc<Self>) {
        let mut state = self.open();
        let mut rested = false;
        while !state.closed {
            let now = Instant::now();
            let next = state.line.next(now);
            let expired = state.line.expired(now);
            if expired.is_empty() && next.is_none() {
                if rested {
                    break;
                }
                (state, rested) = self.rest(state);
                continue;
            }
            rested = false;
            // Questions may come faster than threads wake: each that begins to work looks whether
            // another one is needed.
            if next.as_ref().is_some_and(|(_, more)| *more) {
                self.have_thread(state);
            } else {
                drop(state);
            }
            for waits in expired {
                waits(Err(Failure::Silent));
            }
            if let Some((name, _)) = next {
                self.resolve(&name);
            }
            state = self.open();
        }
        state.threads -= 1;
    }

    /// Waits for a question; whether none came for as long as a thread waits.
    fn rest<'a>(&self, mut state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, bool) {
        state.idle += 1;
        let (mut state, waited) = self
            .wake
            .wait_timeout(state, IDLE_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        (state, waited.timed_out())
    }

    fn resolve(&self, name: &HostName) {
        let began = Instant::now();
        let answer = (self.lookup)(name);
        let waiting = self
            .open()
            .line
            .answered(Instant::now(), began, name, &answer);
        for waits in waiting {
            waits(answer.clone());
        }
    }
}

/// The name of an endpoint that needs resolution; else the one address that it leads to.
pub(crate) fn name_or_literal(endpoint: &Endpoint) -> Result<&HostName, Found> {
    let literal = |ip| Found {
        ip,
        from_hosts_file: false,
    };
    match &endpoint.host {
        Host::Name(name) => Ok(name),
        Host::V4(ip) => Err(literal(IpAddr::V4(*ip))),
        Host::V6(ip) => Err(literal(IpAddr::V6(*ip).to_canonical())),
    }
}

#[cfg(test)]
mod tests;
