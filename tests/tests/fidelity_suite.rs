//! The test of the test: the fidelity suite passes where TCP is kept, and fails, by exactly the
//! rows concerned, where it is not.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use underpass_tests::fidelity::{self, Options, Part, Processes, Report, Tunnel};
use underpass_tests::forwarder::{Forwarder, Manner};
use underpass_tests::turn;

#[test]
fn direct_tcp_passes_every_row() {
    let _turn = turn::alone();
    let address = free_address();
    let tunnel = Tunnel {
        listen: address,
        endpoint: address,
        unknown_name: None,
        processes: None,
    };
    let report = fidelity::run(&tunnel, &Options::default()).expect("the suite runs");
    assert!(report.passed(), "{report}");
}

#[test]
fn an_honest_forwarder_passes_every_row() {
    let report = through(Manner::Honest);
    assert!(report.passed(), "{report}");
}

#[test]
fn resets_turned_into_clean_ends_fail_the_rows_about_resets() {
    let report = through(Manner::EndsResetsCleanly);
    let expected = [
        "application_closes_with_unread",
        "endpoint_closes_with_unread",
        "reset_at_once_by_application",
        "reset_at_once_by_endpoint",
        "reset_at_rest_by_application",
        "reset_at_rest_by_endpoint",
        "reset_sending_by_application",
        "reset_sending_by_endpoint",
        "reset_after_own_finish_by_application",
        "reset_after_own_finish_by_endpoint",
        "reset_after_others_finish_by_application",
        "reset_after_others_finish_by_endpoint",
        "kill_relay",
        "kill_agent",
    ];
    assert_eq!(report.failed_names(), expected, "{report}");
}

#[test]
fn a_lost_tail_fails_the_rows_that_end_with_bytes() {
    let report = through(Manner::DropsTheTail);
    let expected = [
        "half_close_by_application",
        "half_close_by_endpoint",
        "size_1",
        "size_65535",
        "size_65536",
        "size_65537",
        "many_flows",
    ];
    for name in expected {
        assert!(
            report.failed_names().contains(&name),
            "{name} passed\n{report}"
        );
    }
    for name in [
        "size_0",
        "server_speaks_first",
        "reset_at_rest_by_application",
        "endpoint_refuses",
        "slow_writer_at_endpoint",
    ] {
        assert!(
            !report.failed_names().contains(&name),
            "{name} failed\n{report}"
        );
    }
}

#[test]
fn cut_half_closed_flows_fail_the_rows_about_half_closing() {
    let report = through(Manner::CutsHalfClosed);
    for name in ["half_close_by_application", "half_close_by_endpoint"] {
        assert!(
            report.failed_names().contains(&name),
            "{name} passed\n{report}"
        );
    }
    for name in [
        "size_65537",
        "many_flows",
        "slow_reader_at_endpoint",
        "reset_sending_by_endpoint",
    ] {
        assert!(
            !report.failed_names().contains(&name),
            "{name} failed\n{report}"
        );
    }
}

#[test]
fn one_flipped_bit_fails_every_row_that_moves_as_much() {
    let report = through(Manner::FlipsABit);
    for name in [
        "half_close_by_application",
        "size_65535",
        "bulk_both_ways",
        "many_flows",
        "slow_reader_at_application",
        "slow_reader_at_endpoint",
    ] {
        let row = report
            .rows
            .iter()
            .find(|row| row.name == name)
            .expect("the row ran");
        assert!(
            matches!(
                row.verdict,
                fidelity::Verdict::Failed(fidelity::Fault::Corrupt(_))
            ),
            "{name}\n{report}"
        );
    }
    for name in [
        "size_1",
        "server_speaks_first",
        "slow_writer_at_application",
        "reset_at_rest_by_endpoint",
    ] {
        assert!(
            !report.failed_names().contains(&name),
            "{name} failed\n{report}"
        );
    }
}

#[test]
fn a_hoard_without_limit_fails_the_rows_about_slow_readers() {
    let report = through(Manner::Hoards);
    assert_eq!(
        report.failed_names(),
        ["slow_reader_at_application", "slow_reader_at_endpoint"],
        "{report}"
    );
}

#[test]
fn a_stall_is_seen_as_hung() {
    let address = free_address();
    let forwarder = Forwarder::start(address, Manner::Stalls).expect("a port is free");
    let options = Options {
        deadline: Duration::from_secs(2),
        only: vec!["size_65535".into()],
        ..Options::short()
    };
    let tunnel = Tunnel {
        listen: forwarder.address(),
        endpoint: address,
        unknown_name: None,
        processes: None,
    };
    let report = fidelity::run(&tunnel, &options).expect("the suite runs");
    assert!(
        matches!(
            report.rows[0].verdict,
            fidelity::Verdict::Failed(fidelity::Fault::Hung(_))
        ),
        "{report}"
    );
}

#[test]
fn hidden_refusals_fail_the_row_about_refusing() {
    let report = through(Manner::HidesRefusals);
    assert_eq!(report.failed_names(), ["endpoint_refuses"], "{report}");
}

/// Runs the short suite through a forwarder.
fn through(manner: Manner) -> Report {
    let _turn = turn::alone();
    let endpoint = free_address();
    let forwarder = Forwarder::start(endpoint, manner).expect("a port is free");
    let flows = Flows(&forwarder);
    let tunnel = Tunnel {
        listen: forwarder.address(),
        endpoint,
        unknown_name: None,
        processes: Some(&flows),
    };
    let options = Options {
        deadline: Duration::from_secs(5),
        ..Options::short()
    };
    fidelity::run(&tunnel, &options).expect("the suite runs")
}

/// The death of a forwarder is the end of its flows.
struct Flows<'a>(&'a Forwarder);

impl Processes for Flows<'_> {
    fn kill(&self, part: Part) -> anyhow::Result<()> {
        if part != Part::Control {
            self.0.cut();
        }
        Ok(())
    }

    fn restore(&self, _: Part) -> anyhow::Result<()> {
        Ok(())
    }
}

/// An address of the kernel's choice; the suite takes it over.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener
        .local_addr()
        .expect("a bound listener has an address")
}
