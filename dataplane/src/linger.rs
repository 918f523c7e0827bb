//! Staying awake for a moment after something happened: the answer to what a worker just sent is often on its way, and to be woken from another
//! core costs more than to wait for it.
//!
//! Only while much happens, and nobody else wants the core: signs of life of a thousand idle sessions are not worth a core that never sleeps.

use std::time::{Duration, Instant};

/// How long a worker stays awake after the last thing that happened.
const LINGER: Duration = Duration::from_micros(50);

/// A core that was given away for longer than this is wanted by somebody else.
const WANTED: Duration = Duration::from_micros(4);

/// What happens further apart than this, in the mean, is slept through.
const BUSY: Duration = Duration::from_micros(200);

/// A longer silence says no more than this one.
const SILENCE: Duration = Duration::from_millis(1);

/// Weight of the past in the mean against what just happened.
const MEMORY: u32 = 32;

/// Whether a worker stays awake.
#[derive(Debug)]
pub(crate) struct Linger {
    last: Instant,
    /// Time between things that happened, mean.
    apart: Duration,
    wanted: bool,
}

impl Linger {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last: now,
            apart: SILENCE,
            wanted: false,
        }
    }

    /// Something happened.
    pub(crate) fn happened(&mut self, now: Instant) {
        let apart = now.saturating_duration_since(self.last).min(SILENCE);
        self.apart = (self.apart * (MEMORY - 1) + apart) / MEMORY;
        self.last = now;
        self.wanted = false;
    }

    /// Whether to look again in place of sleeping.
    pub(crate) fn goes_on(&self, now: Instant) -> bool {
        !self.wanted && self.apart < BUSY && now < self.last + LINGER
    }

    /// Nothing happened: lets others have the core. Ends where somebody took it, for then there is better use for it than waiting.
    pub(crate) fn give_way(&mut self, clock: impl Fn() -> Instant) {
        let gave = clock();
        std::thread::yield_now();
        self.wanted = clock().saturating_duration_since(gave) > WANTED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Things happen `times` times, `apart` from each other; the time of the last.
    fn happen(linger: &mut Linger, from: Instant, times: usize, apart: Duration) -> Instant {
        (0..times).fold(from, |now, _| {
            linger.happened(now + apart);
            now + apart
        })
    }

    fn busy() -> (Linger, Instant) {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        let now = happen(&mut linger, start, 100, BUSY / 4);
        (linger, now)
    }

    #[test]
    fn a_busy_worker_stays_awake_for_a_moment() {
        let (linger, now) = busy();
        assert!(linger.goes_on(now));
        assert!(linger.goes_on(now + LINGER - Duration::from_nanos(1)));
        assert!(!linger.goes_on(now + LINGER));
    }

    #[test]
    fn a_worker_with_little_to_do_sleeps_at_once() {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        assert!(!linger.goes_on(start));
        let now = happen(&mut linger, start, 100, 2 * BUSY);
        assert!(!linger.goes_on(now));
        let (mut linger, now) = busy();
        let now = happen(&mut linger, now, 100, 2 * BUSY);
        assert!(!linger.goes_on(now), "it was busy, and is no more");
    }

    #[test]
    fn an_hour_of_silence_is_forgotten_as_soon_as_a_millisecond() {
        let (mut linger, now) = busy();
        linger.happened(now + Duration::from_secs(3600));
        let now = happen(&mut linger, now + Duration::from_secs(3600), 10, BUSY / 4);
        assert!(linger.goes_on(now));
    }

    #[test]
    fn a_core_that_is_wanted_is_left_until_something_happens() {
        let (mut linger, now) = busy();
        linger.give_way(|| now);
        assert!(linger.goes_on(now));
        let clock = std::cell::Cell::new(now);
        linger.give_way(|| clock.replace(clock.get() + 2 * WANTED));
        assert!(!linger.goes_on(now));
        linger.happened(now + WANTED);
        assert!(linger.goes_on(now + WANTED));
    }
}
