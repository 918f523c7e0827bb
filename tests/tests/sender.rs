//! Application → sender → relay → agent → endpoint: the exact meaning of TCP over all of it, who
//! may send and who may listen, and a relay that restarts under a sender.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::thread;
use std::time::{Duration, Instant};

use underpass_proto::{ConnectionString, Key, Rule};
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::fidelity::{self, Options};
use underpass_tests::installation::{Installation, Setup, run_role};
use underpass_tests::process::free_tcp_address;
use underpass_tests::sender::Sender;
use underpass_tests::service::{Service, Talk};
use underpass_tests::tunnel::{LongTunnel, NAME, UNKNOWN};
use underpass_tests::{on_every_backend, turn};

/// From the start of a relay that restarts until a flow works, and the margin of two shared cores.
const BACK: Duration = Duration::from_millis(2_000 + 300);

/// Applications that connect while the relay is away: all are kept waiting and served.
const WAITING: usize = 8;

/// Well below the idle limit: a session that nobody closed is there longer.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

on_every_backend! {
    fn one_worker_keeps_the_exact_meaning_of_tcp_through_a_sender(io) {
        let setup = Setup::new(io);
        keeps_the_meaning(setup.clone(), setup, &Options::default());
    }

    // What is accepted on the worker where the agent is not must go to the other.
    fn two_workers_keep_it_where_the_agent_has_one(io) {
        let two = Setup { workers: 2, ..Setup::new(io) };
        // Slow peers and silence are no different from one worker's.
        let only = ["speaks", "half_close", "closes", "reset", "size", "bulk", "many", "refuses", "unknown", "kill"];
        let only = only.map(str::to_owned).to_vec();
        keeps_the_meaning(two, Setup::new(io), &Options { only, ..Options::short() });
    }

    fn a_relay_that_restarts_serves_those_who_waited_and_the_next_flow_within_two_seconds(io) {
        let _turn = turn::alone();
        let service = Service::start(b'a').unwrap();
        let setup = Setup { workers: 2, ..Setup::new(io) };
        let endpoint = service.address.to_string();
        let installation = Installation::start(setup.clone(), &[(NAME, &endpoint)]).unwrap();
        let _agent = installation.start_agent(&[NAME], &[]).unwrap();
        let sender = Sender::start(&installation, setup, &[NAME]).unwrap();
        let address = sender.address(NAME).unwrap();
        let mut cut = Talk::start(address).unwrap();
        installation.relay().as_mut().unwrap().kill().unwrap();
        let waiting: Vec<_> = (0..WAITING).map(|_| thread::spawn(move || Talk::start(address))).collect();
        installation.start_relay().unwrap();
        let started = Instant::now();
        wait_for("the next flow", MOMENT, || Talk::start(address).ok()).unwrap();
        let back = started.elapsed();
        assert!(back < BACK, "back after {back:?}");
        for waited in waiting {
            let mut talk = waited.join().unwrap().unwrap();
            talk.exchange().unwrap();
            talk.finish().unwrap();
        }
        assert!(cut.wait_for_end().is_err(), "no clean end of what was cut");
        let log = sender.process().as_ref().unwrap().stderr();
        assert!(!log.contains("panicked"), "{log}");
    }

    fn a_listen_key_cannot_send_and_a_send_key_cannot_listen(io) {
        let _turn = turn::shared();
        let installation = Installation::start(Setup::new(io), &[(NAME, "db01.corp:1433")]).unwrap();
        for (own, other, role) in [
            (Rule::Send, Rule::Listen, "application"),
            (Rule::Listen, Rule::Send, "on-premises"),
        ] {
            let [mine, foreign] = [own, other].map(|rule| installation.string_of(NAME, rule, &[]).unwrap());
            let (exit, told) = check(own, &foreign);
            // The string itself says what it is for: a mistake of configuration, told before
            // anything is dialled.
            assert_eq!(exit, Some(3), "{told}");
            assert!(told.contains(&format!("--role {role}")), "{told}");

            // The key of one rule under the name of the other: only the relay can tell.
            let (exit, told) = check(own, &mine.replace(key(&mine).expose(), key(&foreign).expose()));
            assert_eq!(exit, Some(4), "{told}");
            assert!(told.contains(&format!("--role {role}")), "{told}");
        }
        let log = installation.relay().as_ref().unwrap().stderr();
        let refused = log.lines().filter(|line| line.contains("registration refused"));
        assert!(refused.clone().count() >= 2 && refused.clone().all(|line| line.contains(NAME)), "{log}");
        assert!(refused.clone().all(|line| line.contains("rule")), "the log says that it is the key of another rule: {log}");
        let ended = || installation.status().ok()?.relay?.sessions.is_empty().then_some(());
        wait_for("the refused sessions to end", CLOSED_WITHIN, ended).unwrap();
    }
}

fn check(rule: Rule, string: &str) -> (Option<i32>, String) {
    let ran = run_role(rule, string, &["--check"]).unwrap();
    let secret = key(string);
    let secret = secret.expose();
    assert!(!ran.stderr.contains(secret) && !ran.stdout.contains(secret));
    (ran.status.code(), ran.stderr)
}

fn key(string: &str) -> Key {
    string.parse::<ConnectionString>().unwrap().key
}

fn keeps_the_meaning(relay_and_sender: Setup, agent: Setup, options: &Options) {
    let _turn = turn::alone();
    let endpoint = free_tcp_address();
    let tunnel = LongTunnel::open(relay_and_sender, agent, endpoint).unwrap();
    let tested = fidelity::Tunnel {
        listen: tunnel.sender.address(NAME).unwrap(),
        endpoint,
        unknown_name: Some(tunnel.sender.address(UNKNOWN).unwrap()),
        processes: Some(&tunnel),
    };
    let report = fidelity::run(&tested, options).unwrap();
    underpass_loadtest::note!("{report}");
    assert!(report.passed(), "{report}");
    let skipped = report
        .rows
        .iter()
        .filter(|row| matches!(row.verdict, fidelity::Verdict::Skipped(_)));
    assert_eq!(skipped.count(), 0, "{report}");
}
