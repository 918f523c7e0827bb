//! What is known of a peer and for how long: a relay whose certificate was replaced, signs of life and what they cost, a process that stands still.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::time::Duration;

use underpass_proto::Rule;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup, run_role, terminate};
use underpass_tests::sender::Sender;
use underpass_tests::turn;

const NAME: &str = "payroll-sql";

/// How a certificate that is another one than before is named.
const WRONG_CERTIFICATE: &str = "the relay's certificate is not the pinned or trusted one";

/// Within this time after the relay is back, its certificate must be named: some attempts, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// How long a check would wait for a relay that may yet answer.
const CHECK_MAX: Duration = Duration::from_secs(4);

#[test]
fn a_replaced_certificate_is_named_at_once_and_not_hidden_behind_the_drain_before_it() {
    let _turn = turn::shared();
    let setup = Setup::new(Io::Poll);
    let installation = Installation::start(setup.clone(), &[(NAME, "db01.corp:1433")]).unwrap();
    let agent = installation.start_agent(&[NAME], &[]).unwrap();
    let sender = Sender::start(&installation, setup, &[NAME]).unwrap();
    let strings = [Rule::Listen, Rule::Send]
        .map(|rule| (rule, installation.string_of(NAME, rule, &[]).unwrap()));

    terminate(installation.relay().as_mut().unwrap(), MOMENT).unwrap();
    installation.control().as_mut().unwrap().kill().unwrap();
    fs::remove_dir_all(installation.directory().join("tls")).unwrap();
    installation.start_control().unwrap();
    installation.start_relay().unwrap();

    for (who, process) in [("agent", agent.process()), ("sender", sender.process())] {
        let named = || {
            let log = process.as_ref()?.stderr();
            log.contains(WRONG_CERTIFICATE).then_some(())
        };
        wait_for(&format!("the {who} to name the certificate"), SOON, named).unwrap();
    }
    for (rule, string) in strings {
        let ran = run_role(rule, &string, &["--check"]).unwrap();
        assert_eq!(ran.status.code(), Some(5), "{}", ran.stderr);
        assert!(ran.stderr.contains(WRONG_CERTIFICATE), "{}", ran.stderr);
        assert!(
            ran.stderr.contains("new connection string"),
            "{}",
            ran.stderr
        );
        assert!(ran.took < CHECK_MAX, "{:?}", ran.took);
    }
}
