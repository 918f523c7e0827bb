//! The fidelity suite through relay and agent: every row on every backend, and again where several
//! workers share the flows.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::net::{SocketAddr, TcpListener};

use underpass_tests::fidelity::{self, Options};
use underpass_tests::installation::Setup;
use underpass_tests::tunnel::{Tunnel, UNKNOWN};
use underpass_tests::{on_every_backend, turn};

on_every_backend! {
    fn one_worker_keeps_the_exact_meaning_of_tcp(io) {
        keeps_the_meaning(Setup::new(io), &Options::default());
    }

    fn two_workers_keep_the_exact_meaning_of_tcp(io) {
        keeps_the_meaning(Setup { workers: 2, ..Setup::new(io) }, &Options::short());
    }
}

fn keeps_the_meaning(setup: Setup, options: &Options) {
    let _turn = turn::alone();
    let endpoint = free_address();
    let tunnel = Tunnel::open(setup, endpoint).unwrap();
    let unknown_name = Some(tunnel.installation.binding(UNKNOWN).unwrap());
    let tested = fidelity::Tunnel {
        listen: tunnel.address,
        endpoint,
        unknown_name,
        processes: Some(&tunnel),
    };
    let report = fidelity::run(&tested, options).unwrap();
    underpass_loadtest::note!("{report}");
    assert!(report.passed(), "{report}");
}

/// An address of the kernel's choice; the suite takes it over.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
