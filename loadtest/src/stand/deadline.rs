//! Waiting for a condition, under a deadline. The only place that lets time pass.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long between two looks at a condition: short beside all that is measured here, long enough
/// to cost nothing.
pub const LOOK_EACH: Duration = Duration::from_millis(5);

/// A deadline for what should take a moment, on a machine that is busy with other tests.
pub const MOMENT: Duration = Duration::from_secs(30);

/// Looks until `look` finds something.
///
/// # Errors
/// When `within` has passed; the message names `what`.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("waited {within:?} in vain for {what}");
        }
        pause(LOOK_EACH);
    }
}

/// Lets time pass, for a peer that is slow on purpose. Never a stand-in for [`wait_for`].
pub fn pause(length: Duration) {
    let end = Instant::now() + length;
    // Parking may end early by itself, so what is left is asked for again.
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        thread::park_timeout(left);
    }
}
