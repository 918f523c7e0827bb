//! How many invalid tokens one address may show, and how many lines of the log they get. A valid
//! token always passes: nobody is locked out by a neighbour.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

/// At once, then one each [`PER_SECOND`]th of a second.
const BURST: NonZeroU32 = NonZeroU32::new(50).unwrap();
const PER_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// Lines of one address at once, then one in each two seconds: as the data plane's.
const LINES_BURST: NonZeroU32 = NonZeroU32::new(20).unwrap();
const LINES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(30).unwrap();

/// Lines of all addresses together.
const ALL_LINES_BURST: NonZeroU32 = NonZeroU32::new(1_000).unwrap();
const ALL_LINES_PER_SECOND: NonZeroU32 = NonZeroU32::new(5).unwrap();

/// Addresses that are remembered; beyond, those that were quiet are forgotten first.
const ADDRESSES_MAX: usize = 4096;

/// An address, or for IPv6 the network that one machine has.
pub(super) type Source = [u8; 8];

pub(super) struct Failures {
    limiter: DefaultKeyedRateLimiter<Source>,
    lines: DefaultKeyedRateLimiter<Source>,
    all_lines: DefaultDirectRateLimiter,
    /// Failures without a line, since the last count was taken.
    left_out: AtomicU64,
    clock: DefaultClock,
}

impl Default for Failures {
    fn default() -> Self {
        let lines = Quota::per_minute(LINES_PER_MINUTE).allow_burst(LINES_BURST);
        let all_lines = Quota::per_second(ALL_LINES_PER_SECOND).allow_burst(ALL_LINES_BURST);
        Self {
            limiter: RateLimiter::keyed(Quota::per_second(PER_SECOND).allow_burst(BURST)),
            lines: RateLimiter::keyed(lines),
            all_lines: RateLimiter::direct(all_lines),
            left_out: AtomicU64::new(0),
            clock: DefaultClock::default(),
        }
    }
}

impl Failures {
    /// Notes one.
    ///
    /// # Errors
    /// There were too many: the seconds until the next may be told what was wrong with it.
    pub(super) fn note(&self, from: Option<IpAddr>) -> Result<(), u64> {
        forget_the_quiet(&self.limiter);
        let noted = self.limiter.check_key(&source(from));
        noted.map_err(|until| {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            until.wait_time_from(self.clock.now()).as_secs() + 1
        })
    }

    /// Whether the log gets a line about one that was noted, with how many had none since the last
    /// line (`None`: the line leaves that out). One without a line is counted.
    pub(super) fn permit_line(&self, from: Option<IpAddr>) -> Option<Option<u64>> {
        forget_the_quiet(&self.lines);
        let permitted =
            self.lines.check_key(&source(from)).is_ok() && self.all_lines.check().is_ok();
        if permitted {
            return Some(self.take_left_out());
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// How many had no line since the last time.
    pub(super) fn take_left_out(&self) -> Option<u64> {
        Some(self.left_out.swap(0, Ordering::Relaxed)).filter(|count| *count > 0)
    }
}

fn forget_the_quiet(limiter: &DefaultKeyedRateLimiter<Source>) {
    if limiter.len() > ADDRESSES_MAX {
        limiter.retain_recent();
        limiter.shrink_to_fit();
    }
}

/// What an address counts as. `None`: this machine, by `run/api.sock`.
pub(super) fn source(from: Option<IpAddr>) -> Source {
    let mut source = [0; 8];
    match from.map(|ip| ip.to_canonical()) {
        None => {}
        Some(IpAddr::V4(ip)) => source[4..].copy_from_slice(&ip.octets()),
        Some(IpAddr::V6(ip)) => source.copy_from_slice(&ip.octets()[..8]),
    }
    source
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_one_address_is_told_to_wait_and_others_are_not() {
        let failures = Failures::default();
        let ip = |text: &str| text.parse().ok();
        assert!((0..BURST.get()).all(|_| failures.note(ip("192.0.2.1")).is_ok()));
        assert_eq!(failures.note(ip("192.0.2.1")), Err(1));
        assert_eq!(failures.note(ip("::ffff:192.0.2.1")), Err(1));
        assert_eq!(failures.note(ip("192.0.2.2")), Ok(()));
        assert_eq!(failures.note(None), Ok(()));
    }

    #[test]
    fn a_flood_leaves_few_lines_and_a_count_of_the_others() {
        let failures = Failures::default();
        let ip = |text: &str| text.parse().ok();
        let begun = std::time::Instant::now();
        let (mut lines, mut left_out) = (0, 0);
        for _ in 0..10_000 {
            if failures.note(ip("192.0.2.1")).is_ok()
                && let Some(before) = failures.permit_line(ip("192.0.2.1"))
            {
                lines += 1;
                left_out += before.unwrap_or(0);
            }
        }
        let later = begun.elapsed().as_secs() / 2 + 1;
        assert!((20..=20 + later).contains(&lines), "{lines} lines");
        left_out += failures.take_left_out().unwrap_or(0);
        assert_eq!(lines + left_out, 10_000);
        assert_eq!(failures.permit_line(ip("192.0.2.2")), Some(None));
    }
}
