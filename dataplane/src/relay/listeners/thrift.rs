//! How many probes are sent without a real connection between, and how far apart. MySQL locks a
//! host out after 100 connections in a row that say nothing (`max_connect_errors`), sshd and mail
//! servers log each: a probe is rarer the longer nothing changes, and there is an end to them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rand::{Rng, RngExt};
use underpass_proto::{AgentId, HybridConnection};

/// Probes of an endpoint that is well, in a row: at 0, 1, 3, 7, 15, 31 and 63 minutes, and each
/// hour after.
pub(super) const PROBES_IDLE_MAX: u32 = 10;

/// Beyond so many a new registration is not probed: a session that comes and goes would send one
/// each time.
pub(super) const PROBES_JOINED_MAX: u32 = 20;

/// Beyond so many nobody probes, not after a failure and not on request: half of what MySQL takes,
/// as two definitions may lead to one server.
pub(crate) const PROBES_ASKED_MAX: u32 = 40;

/// An endpoint that nothing dialled for so long is probed; doubled with each probe that no flow
/// confirmed.
const IDLE: Duration = Duration::from_secs(60);
/// The most that this grows to.
const IDLE_MAX: Duration = Duration::from_secs(3_600);
/// Up to so much later, as a share, so that thousands that registered together are not probed
/// together for ever.
const IDLE_SPREAD: f64 = 0.1;

/// Agents that left, whose probes are remembered, for each hybrid connection: above the usual
/// number of its listeners.
const LEFT_MAX: usize = 64;

const _: () = assert!(PROBES_IDLE_MAX < PROBES_JOINED_MAX && PROBES_JOINED_MAX < PROBES_ASKED_MAX);
const _: () = assert!(2 * PROBES_ASKED_MAX < 100);

/// Whether an endpoint may be probed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Probing {
    /// Never.
    Off,
    /// Where no flow says more, and not without end.
    Auto,
    /// Each minute, without end: for services that do not mind.
    Always,
}

impl Probing {
    /// What a definition says.
    pub(crate) fn of(hyco: &HybridConnection) -> Self {
        match (hyco.probe, hyco.probe_always) {
            (false, _) => Self::Off,
            (true, false) => Self::Auto,
            (true, true) => Self::Always,
        }
    }

    /// Whether a listener that sent so many `probes` may send one more, of `most`.
    pub(crate) fn may(self, probes: u32, most: u32) -> bool {
        match self {
            Self::Off => false,
            Self::Auto => probes < most,
            Self::Always => true,
        }
    }

    /// Whether a listener that sent so many `probes` may send one more because a person asks. The
    /// definition's "off" is for the relay's own.
    pub(crate) fn may_ask(self, probes: u32) -> bool {
        self == Self::Always || probes < PROBES_ASKED_MAX
    }

    /// From a dial that reached the endpoint to the next probe; `None`: nothing more until
    /// something changes.
    pub(super) fn next_idle(self, probes: u32, rng: &mut impl Rng) -> Option<Duration> {
        let doublings = match self {
            Self::Always => 0,
            _ => probes.saturating_sub(1).min(16),
        };
        let wait = IDLE.saturating_mul(1 << doublings).min(IDLE_MAX);
        let spread = 1.0 + IDLE_SPREAD * rng.random_range(0.0..=1.0);
        self.may(probes, PROBES_IDLE_MAX)
            .then(|| wait.mul_f64(spread))
    }

    /// The same after a dial that did not, where `wait` would be the pause.
    pub(super) fn next_retry(self, probes: u32, wait: Duration) -> Option<Duration> {
        self.may(probes, PROBES_ASKED_MAX).then_some(wait)
    }
}

/// How many probes agents sent that left since. One that comes again goes on from there.
#[derive(Debug, Default)]
pub(super) struct Spent(VecDeque<(AgentId, u32)>);

impl Spent {
    pub(super) fn keep(&mut self, agent: AgentId, probes: u32) {
        if probes == 0 {
            return;
        }
        if self.0.len() >= LEFT_MAX {
            self.0.pop_front();
        }
        self.0.push_back((agent, probes));
    }

    pub(super) fn take(&mut self, agent: AgentId) -> u32 {
        let at = self.0.iter().position(|(left, _)| *left == agent);
        let found = at.and_then(|at| self.0.remove(at));
        found.map_or(0, |(_, probes)| probes)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A flow that reached the endpoint and lives: kept with the flow, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Live(Arc<AtomicU32>);

impl Live {
    pub(super) fn new(live: &Arc<AtomicU32>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(live))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
