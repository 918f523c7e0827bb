//! The wall clock as an argument: seconds since 1970, from the system or from a test.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Says the time. It may jump, in either direction.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's. A clock before 1970 stands at 0.
#[must_use]
pub fn system() -> Clock {
    Arc::new(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    })
}
