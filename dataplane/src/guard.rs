//! A defect of this program costs whom it concerns, a session or a flow, and nobody else anything:
//! what is done for each of them is done behind a guard that catches a panic. The panic itself is
//! told by the process's hook; whoever guards ends what may be left in an unknown state.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does it, unless it panics. What it changed may be in any state then, and is to be thrown away.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
