//! What others can do to a log: their text is one line without effects, and their floods are a few
//! lines and a count.

use std::net::SocketAddr;
use std::time::Instant;

use quinn::{Endpoint, VarInt};
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Setup, run_underpass};
use underpass_tests::on_every_backend;

use crate::stranger::{client, soon};
use crate::{NAME, Relay, with_relay, with_relay_of};

/// A second line, a cleared screen by C0 and by C1, and a changed direction of writing.
const NASTY: &str =
    "bye\n2026-01-01T00:00:00Z  INFO registered hyco=payroll-sql\x1b[2J\u{9b}2J\u{202e}\u{2028}";

/// Lines of one cause and one source: a burst of 20, and one each two seconds.
const FEW: usize = 60;

/// Connections of a flood.
const MANY: usize = 400;

/// Sessions of strangers in a few seconds, and how many of them come at the same time.
const STRANGERS: u32 = 3_000;
const AT_ONCE: u32 = 20;

/// Codes that strangers close with, in turn: some that this protocol knows, and others.
const CODES: u32 = 50;

/// What the log may grow by for all of them: bursts of 20 lines of each kind, and their counts.
const LOG_GROWS_MAX: usize = 16 * 1024;

on_every_backend! {
    fn applications_that_are_turned_away_without_end_fill_no_log(io) {
        with_relay(io, async |relay: Relay| {
            for _ in 0..MANY {
                relay.resets_applications().await;
            }
            let text = std::fs::read_to_string(relay.installation.definition(NAME)).unwrap();
            let text = format!("allow_from = [\"192.0.2.0/24\"]\n{text}");
            relay.installation.write_definition(NAME, &text).unwrap();
            let log = || relay.installation.relay().as_ref().unwrap().stderr();
            let lines = |what: &str| log().lines().filter(|line| line.contains(what)).count();
            // A new cause is written at once, whatever the one before has used up.
            let end = Instant::now() + MOMENT;
            while lines("not in allow_from") == 0 {
                assert!(Instant::now() < end, "{}", log());
                relay.resets_applications().await;
            }
            for _ in 0..MANY {
                relay.resets_applications().await;
            }
            for what in ["flow refused", "not in allow_from"] {
                let lines = lines(what);
                assert!((1..FEW).contains(&lines), "{lines} lines: {what}");
            }
            let told = || log().contains("log lines left out").then_some(());
            wait_for("the count of what was left out", MOMENT, told).unwrap();
            let log = log();
            let line = log.lines().find(|line| line.contains("log lines left out")).unwrap();
            assert!(line.contains("hyco=payroll-sql source=127.0.0.1"), "{line}");
        });
    }

    fn strangers_that_come_and_go_without_end_fill_no_log(io) {
        let setup = Setup { log: "info", ..Setup::new(io) };
        with_relay_of(setup, async |relay: Relay| {
            let log = || relay.installation.relay().as_ref().unwrap().stderr();
            let before = log().len();
            let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
            endpoint.set_default_client_config(client(&relay.secret.pin));
            let crowd = (0..AT_ONCE).map(|nth| {
                let codes = (nth..STRANGERS).step_by(AT_ONCE as usize);
                tokio::spawn(come_and_go(endpoint.clone(), relay.listen, codes))
            });
            for stranger in crowd.collect::<Vec<_>>() {
                stranger.await.unwrap();
            }
            let counted = || log().contains("log lines left out line=\"session lost\"").then_some(());
            wait_for("the count of what was left out", MOMENT, counted).unwrap();
            let log = log();
            let grown = &log[before..];
            assert!(grown.len() < LOG_GROWS_MAX, "{} bytes: {grown}", grown.len());
            let ends: Vec<&str> = grown.lines().filter(|line| is_end_of_session(line)).collect();
            assert!(!ends.is_empty(), "{grown}");
            for line in ends {
                assert!(line.contains("remote=127.0.0.1:") && !line.contains("agent="), "{line}");
            }
        });
    }

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
            // Who it was, and what it has proven to be.
            let agent = format!("agent={}", "07".repeat(16));
            assert!(line.contains("remote=127.0.0.1:") && line.contains(&agent), "{line}");
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

/// Whether a line of the log is about a session that its peer has ended.
fn is_end_of_session(line: &str) -> bool {
    line.contains(" session lost ") || line.contains(" session ended by its peer ")
}

/// One stranger after another shakes hands, and closes with the next of these codes.
async fn come_and_go(
    endpoint: Endpoint,
    relay: SocketAddr,
    codes: impl Iterator<Item = u32> + Send,
) {
    for code in codes {
        let connecting = endpoint.connect(relay, "localhost").unwrap();
        // A relay may turn strangers away while too many are there.
        if let Ok(connection) = soon("the handshake", connecting).await {
            connection.close(VarInt::from_u32(code % CODES), b"gone");
        }
    }
}
