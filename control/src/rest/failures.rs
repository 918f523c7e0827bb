//! How many tokens that do not hold one address may show. A token that holds always passes: nobody is locked out by a neighbour.

use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// At once, then one each [`PER_SECOND`]th of a second.
const BURST: NonZeroU32 = NonZeroU32::new(50).unwrap();
const PER_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// Addresses that are remembered; beyond, those that were quiet are forgotten first.
const ADDRESSES_MAX: usize = 4096;

/// An address, or for IPv6 the network that one machine has.
pub(super) type Source = [u8; 8];

pub(super) struct Failures {
    limiter: DefaultKeyedRateLimiter<Source>,
    clock: DefaultClock,
}

impl Default for Failures {
    fn default() -> Self {
        Self {
            limiter: RateLimiter::keyed(Quota::per_second(PER_SECOND).allow_burst(BURST)),
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
        if self.limiter.len() > ADDRESSES_MAX {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        let noted = self.limiter.check_key(&source(from));
        noted.map_err(|until| until.wait_time_from(self.clock.now()).as_secs() + 1)
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
}
