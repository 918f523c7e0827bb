//! Confines a defect of this program to the session or flow that it concerns: work for each runs
//! behind a guard that catches a panic. The process's hook reports the panic; the caller of the
//! guard ends what may be left in an unknown state.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does it, unless it panics. What it changed may be in any state then, and is to be thrown away.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
