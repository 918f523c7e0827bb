//! Text that a peer may choose freely reaches logs and terminals as one line without effects.

use quinn::VarInt;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::run_underpass;
use underpass_tests::on_every_backend;

use crate::{NAME, Relay, with_relay};

/// A second line, a cleared screen by C0 and by C1, and a changed direction of writing.
const NASTY: &str =
    "bye\n2026-01-01T00:00:00Z  INFO registered hyco=payroll-sql\x1b[2J\u{9b}2J\u{202e}\u{2028}";

on_every_backend! {
    fn the_reason_of_a_peer_that_leaves_forges_no_line_and_moves_no_cursor(io) {
        with_relay(io, async |relay: Relay| {
            let session = relay.register(&relay.secret.key).await;
            // A code that no version has, so that the reason is all there is to show.
            session.connection.close(VarInt::from_u32(4_000), NASTY.as_bytes());
            let lost = || {
                let log = relay.installation.relay().as_ref()?.stderr();
                log.contains("session lost").then_some(log)
            };
            let log = wait_for("the relay to notice", MOMENT, lost).unwrap();
            let line = log.lines().find(|line| line.contains("session lost")).unwrap();
            assert!(line.contains(r"bye\u{a}2026-01-01"), "{line}");
            let shown = |text: &str| !text.contains(|c: char| c != '\n' && underpass_proto::printable::is_control(c));
            assert!(shown(&log), "{log:?}");
            let directory = relay.installation.directory();
            let dir = directory.to_str().unwrap();
            for arguments in [&["status", NAME, "--dir", dir][..], &["status", "--dir", dir, "--json"]] {
                let status = || Some(run_underpass(arguments).ok()?.stdout).filter(|status| status.contains("bye"));
                let status = wait_for("the status to have the reason", MOMENT, status).unwrap();
                assert!(shown(&status), "{arguments:?}: {status:?}");
                let forged = |line: &str| line.starts_with("2026-01-01");
                assert!(!status.lines().any(forged), "{arguments:?}: {status}");
            }
        });
    }
}
