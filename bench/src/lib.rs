//! What Underpass is measured against, and the measuring.
//!
//! [`stock`] is the baseline: the same relay and agent wired from the `quinn` crate and tokio, the way a good engineer would in a day.
//! [`speed`] runs it beside Underpass and beside no relay at all, in turns.

pub mod speed;
pub mod stock;
