//! The data plane of Underpass: how bytes travel between an application and an endpoint.
//!
//! [`relay`] and [`agent`] are the two processes' brains; neither knows the other. Both are roles
//! of a `worker`, a loop over `io`, the only part that talks to the operating system, and `quic`,
//! the sessions.

mod addresses;
pub mod agent;
mod bindings;
mod budget;
mod control_stream;
mod core;
pub mod drain;
mod flow;
mod guard;
mod held;
pub mod io;
mod join;
mod linger;
mod link;
mod listening;
mod locality;
mod log_limit;
mod network;
mod opening;
#[doc(hidden)]
pub mod parts;
pub mod quic;
pub mod relay;
mod resolve;
pub mod sender;
#[cfg(test)]
mod sim;
mod waiting;
mod worker;

/// Settings that every data plane process has.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which backend to take.
    pub io: io::Choice,
    /// Number of workers; `None` leaves it to the process (relay: the snapshot's figure, else one
    /// for every two cores; agent: as many as the relay has, at most as many).
    pub workers: Option<u16>,
    /// The most that one UDP datagram may carry, bytes; `None` climbs to what the path's interface
    /// allows.
    pub mtu_max: Option<u16>,
    /// How long live flows may go on after the first request to drain.
    pub grace: std::time::Duration,
    /// How often an agent or sender gives its relay a sign of life; a relay goes by what its peers
    /// want.
    pub keep_alive: std::time::Duration,
}
