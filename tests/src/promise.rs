//! What is promised of time, for tests that hold it against a clock: each with what the test itself
//! adds on two cores that it shares with what it looks at.

use std::time::{Duration, Instant};

/// A change of files takes effect within a second; the test looks each 5 ms.
pub const SECOND: Duration = Duration::from_millis(1_200);

/// The longest that a loaded flow may wait for an answer where nothing happens to it.
pub const NOT_NOTICED: Duration = Duration::from_millis(750);

/// A session whose peer does not answer is suspect after 1.2 s of silence and 0.65 s without an
/// answer.
pub const SUSPECT: Duration = Duration::from_millis(1_850);

/// A session that is silent for so long is given up.
pub const LOST: Duration = Duration::from_secs(15);

/// Asserts that something came about in time.
///
/// # Panics
/// When it did not.
pub fn assert_within(since: Instant, bound: Duration) {
    let took = since.elapsed();
    assert!(took < bound, "took {took:?}, over {bound:?}");
}
