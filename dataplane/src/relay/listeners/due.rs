//! Which listener is to be probed when: the queue, and how long the pauses are.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};
use underpass_proto::{HycoName, Instance};

use super::Listener;

/// From a dial that failed to the next probe; doubled with each probe in vain.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The most that this grows to: an endpoint that is back is known to be within it.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// After so many in vain, about ten minutes, the pause grows further.
const RETRY_OFTEN: u32 = 24;
/// The most that it grows to then.
const RETRY_MAX_LATER: Duration = Duration::from_secs(300);

/// Who is to be probed when. Each listener of each hybrid connection is in it once at most, so
/// nothing is looked at before its time.
#[derive(Debug, Default)]
pub(super) struct Due(HashMap<u8, BTreeSet<(Instant, HycoName, Instance)>>);

impl Due {
    /// Moves a listener's next probe, to a worker that has a session of it.
    pub(super) fn set(&mut self, name: &HycoName, listener: &mut Listener, at: Option<Instant>) {
        let entry = |at| (at, name.clone(), listener.who.instance);
        if let Some((worker, was)) = listener.due
            && let Some(queue) = self.0.get_mut(&worker)
        {
            queue.remove(&entry(was));
        }
        let worker = listener.sessions_by_worker.keys().next().copied();
        listener.due = worker.zip(at);
        if let Some((worker, at)) = listener.due {
            self.0.entry(worker).or_default().insert(entry(at));
        }
    }

    /// Takes the first that is due.
    pub(super) fn pop(&mut self, worker: u8, now: Instant) -> Option<(HycoName, Instance)> {
        let queue = self.0.get_mut(&worker)?;
        queue.first().filter(|(at, ..)| *at <= now)?;
        queue
            .pop_first()
            .map(|(_, name, instance)| (name, instance))
    }
}

/// After so many probes in vain: 1 s, 2 s, 4 s, up to 30 s, and after ten minutes up to 5 min; up
/// to a fifth less by chance, so that many are not probed at once.
pub(super) fn retry(in_vain: u32, rng: &mut impl Rng) -> Duration {
    let doubled = RETRY_MIN.saturating_mul(1 << in_vain.saturating_sub(1).min(16));
    let later = RETRY_MAX.saturating_mul(in_vain.saturating_sub(RETRY_OFTEN).max(1));
    let pause = doubled
        .min(RETRY_MAX)
        .max(later.min(RETRY_MAX_LATER).min(doubled));
    pause.mul_f64(rng.random_range(0.8..=1.0))
}
