//! What the end-to-end tests share: real processes, real sockets and real servers, each with a deadline and an end.
//!
//! The tests themselves are in `tests/`. Nothing here sleeps: whatever must come about is waited for with [`deadline::wait_for`].

pub mod conversation;
pub mod deadline;
pub mod fidelity;
pub mod forwarder;
pub mod process;
pub mod turn;
