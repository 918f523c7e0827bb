//! What Underpass is measured against, and the measuring.
//!
//! [`stock`] is the baseline: the same relay and agent wired from the `quinn` crate and tokio, the
//! way a good engineer would in a day. [`peers`] runs it beside Underpass, other tunnels and no
//! tunnel at all, in turns. [`loss`] takes goodput over a path that loses packets, beside tunnels
//! over TCP. [`growth`] takes what Underpass costs as flows, hybrid connections and agents grow.

mod flows;
pub mod growth;
pub mod loss;
pub mod peers;
pub mod stock;
mod svg;
