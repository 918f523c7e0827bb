//! What the end-to-end tests share: real processes, real sockets and real servers, each with a
//! deadline and an end.
//!
//! The tests themselves are in `tests/`. Nothing here sleeps: whatever must come about is waited
//! for with [`deadline::wait_for`].

pub mod conversation;
pub mod feed_between;
pub mod fidelity;
pub mod forwarder;
pub mod load;
pub mod name_server;
pub mod promise;
pub mod rest;
pub mod sender;
pub mod servers;
pub mod service;
pub mod tunnel;
pub mod turn;

pub use underpass_loadtest::stand::{agent, deadline, installation, network, process};

/// Defines a test for each backend of the data plane: `a_sentence::poll` and `a_sentence::ring`.
#[macro_export]
macro_rules! on_every_backend {
    ($($(#[$attribute:meta])* fn $name:ident($io:ident) $body:block)*) => {
        $(
            $(#[$attribute])*
            mod $name {
                use super::*;
                fn scenario($io: $crate::installation::Io) $body
                #[test]
                fn poll() {
                    scenario($crate::installation::Io::Poll);
                }
                #[test]
                fn ring() {
                    scenario($crate::installation::Io::Ring);
                }
            }
        )*
    };
}
