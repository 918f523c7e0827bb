//! The product as a user runs it: real processes on real files, each with a deadline and an end.
//! For the fault program, and for the end-to-end tests, which add servers to it.
//!
//! Nothing here sleeps: whatever must come about is waited for with [`deadline::wait_for`].

pub mod agent;
pub mod deadline;
pub mod installation;
pub mod network;
pub mod process;
mod setup;
pub mod usage;
