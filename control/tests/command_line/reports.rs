//! `underpass status` and `underpass probe`, asked of a control process that says what each test
//! wants.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use underpass_proto::key::{Key, Which};
use underpass_proto::limits::SNAPSHOT_MAX;
use underpass_proto::snapshot::{
    DialReport, Health, HealthState, HycoReport, KeyUse, ListenerReport, ProbeReport, ProbedDial,
    ProbedListener, RegistrationReport, SessionReport, SessionState,
};
use underpass_proto::{
    AgentId, FeedMessage, FeedReader, Instance, KeyId, Report, Role, Rule, Status, feed,
};

use super::Place;

const HOUR_MS: u64 = 3_600_000;

#[test]
fn the_overview_says_what_state_each_is_in_and_why() {
    let place = Place::empty();
    serve(&place, status(), None);
    let output = place.run(&["status", "--dir", "DIR"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        place.shown(&output.stdout),
        "relay: works by the newest snapshot\n\
         io: poll (asked for), 2 workers\n\
         \n\
         HYBRID CONNECTION  STATE        SINCE        BINDING          AGENTS  SENDERS  FLOWS  TOTAL  FAILED  TO ENDPOINT  TO APPLICATION  LAST FAILURE\n\
         payroll-sql        degraded     2 hours ago  127.0.0.1:14330  2       1        3      120    2       1.5 MB       3.0 GB          endpoint: refused\n\
         archive-sql        no listener  3 days ago   -                0       0        0      0      0       0 B          0 B             -\n\
         payroll-sql is degraded: 1 of 2 agents does not reach sql01.corp:1433; `underpass status payroll-sql` shows more\n\
         \n\
         SESSION   ROLE    FROM              STATE  ROUND TRIP  MTU   REGISTERED\n\
         01010101  agent   192.0.2.1:40001   ready  0.412 ms    1452  payroll-sql (secondary key)\n\
         02020202  agent   192.0.2.2:40002   ready  0.412 ms    1452  payroll-sql (primary key)\n\
         09090909  sender  198.51.100.9:409  ready  0.412 ms    1452  payroll-sql (primary key)\n"
    );
}

#[test]
fn the_detail_says_who_proved_which_key_and_when_the_other_was_last_used() {
    let place = Place::empty();
    write_keys(&place);
    serve(&place, status(), None);
    let output = place.run(&["status", "PAYROLL-SQL", "--dir", "DIR"]);
    assert_eq!(
        place.shown(&output.stdout),
        "payroll-sql: degraded, since 2 hours ago\n  1 of 2 agents does not reach sql01.corp:1433\n\
         \n\
         binding       127.0.0.1:14330\n\
         flows         3 now, 120 since the relay started, 2 of them failed\n\
         bytes         1.5 MB to the endpoint, 3.0 GB to applications\n\
         last failure  endpoint: refused\n\
         \n\
         AGENT     FROM             STATE  SESSIONS  KEY        ENDPOINT\n\
         01010101  192.0.2.1:40001  ready  1         secondary  reached in 0.812 ms, by a flow 1 hour ago\n\
         02020202  192.0.2.2:40002  ready  1         primary    endpoint refused the connection, by a probe 1 hour ago\n\
         hint: nothing accepts connections at that host and port: start the service, or mend the definition's port\n\
         \n\
         SENDER    FROM              STATE  ROUND TRIP  KEY      SINCE\n\
         09090909  198.51.100.9:409  ready  0.412 ms    primary  2 hours ago\n\
         \n\
         listen key, primary                     in use by 1 session\n\
         listen key, secondary                   in use by 1 session\n\
         send key, primary                       in use by 1 session\n\
         send key, secondary                     last used 3 days ago\n\
         listen key, earlier (0707070707070707)  last used 2 days ago\n"
    );
    let json: serde_json::Value = serde_json::from_slice(
        &place
            .run(&["status", "payroll-sql", "--json", "--dir", "DIR"])
            .stdout,
    )
    .unwrap();
    assert_eq!(json["health"]["state"], "degraded");
    assert_eq!(json["key_uses"][1]["key"], "secondary");
    assert_eq!(json["key_uses"][1]["sessions"], 1);
    assert_eq!(json["sessions"][0]["key"], "secondary");
    assert_eq!(json["sessions"][2]["role"], "sender");
}

#[test]
fn a_name_typed_differently_does_not_fail_silently() {
    let place = Place::empty();
    serve(&place, status(), None);
    for command in [&["status", "payrol-sql"][..], &["probe", "payrol-sql"]] {
        let output = place.run(&[command, &["--dir", "DIR"]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            place.shown(&output.stderr),
            "error: the relay knows no hybrid connection \"payrol-sql\"\n\
             hint: did you mean `payroll-sql`? `underpass status` shows all\n"
        );
    }
}

#[test]
fn a_probe_is_told_hop_by_hop_and_fails_when_one_agent_does() {
    let place = Place::empty();
    let reached = probed(1, None);
    let refused = probed(2, Some("refused"));
    let silent = ProbedListener {
        dial: None,
        ..probed(3, None)
    };
    let all_reached = report(vec![reached.clone()]);
    serve(&place, status(), Some(all_reached));
    let output = place.run(&["probe", "payroll-sql", "--dir", "DIR"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        place.shown(&output.stdout),
        "control   DIR/run/control.sock: answers\n\
         relay     answers, and works by the newest snapshot\n\
         agent     01010101 from 192.0.2.1:40001: round trip 0.412 ms\n\
         endpoint  sql01.corp:1433 is 10.0.0.5:1433 (resolved in 1.200 ms): connected in 0.800 ms\n"
    );

    let place = Place::empty();
    serve(
        &place,
        status(),
        Some(report(vec![reached, refused, silent])),
    );
    let output = place.run(&["probe", "payroll-sql", "--dir", "DIR"]);
    assert_eq!(output.status.code(), Some(1));
    let told = place.shown(&output.stdout);
    assert!(told.contains("sql01.corp:1433 is 10.0.0.5:1433 (resolved in 1.200 ms): not connected after 2.000 ms: endpoint refused the connection\n"), "{told}");
    assert!(
        told.ends_with("endpoint  unknown: the agent did not answer in time\n"),
        "{told}"
    );
    assert_eq!(
        place.shown(&output.stderr),
        "error: 1 of 3 agents reached the endpoint of payroll-sql\n\
         hint: nothing accepts connections at that host and port: start the service, or mend the definition's port\n"
    );
    let output = place.run(&["probe", "payroll-sql", "--json", "--dir", "DIR"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &json["reached"]),
        (Some(1), &serde_json::json!(false))
    );
    assert_eq!(json["agents"][1]["dial"]["failed"], "refused");
}

#[test]
fn a_probe_says_when_nobody_listens_or_no_relay_is_there() {
    let place = Place::empty();
    serve(&place, status(), Some(report(Vec::new())));
    let output = place.run(&["probe", "archive-sql", "--dir", "DIR"]);
    let told = place.shown(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.starts_with("error: no agent listens on archive-sql\nhint: start an agent"),
        "{told}"
    );

    let place = Place::empty();
    serve(&place, Status::default(), None);
    for command in [&["status", "payroll-sql"][..], &["probe", "payroll-sql"]] {
        let output = place.run(&[command, &["--dir", "DIR"]].concat());
        let told = place.shown(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{told}");
        assert!(
            told.starts_with("error: no relay is connected to control\nhint: "),
            "{told}"
        );
    }
}

fn status() -> Status {
    Status {
        relay: Some(Report {
            io: "poll".into(),
            io_why: "asked for".into(),
            workers: 2,
            sessions: vec![
                session(Role::Agent, 1, "192.0.2.1:40001", Which::Secondary),
                session(Role::Agent, 2, "192.0.2.2:40002", Which::Primary),
                session(Role::Sender, 9, "198.51.100.9:409", Which::Primary),
            ],
            hycos: vec![payroll(), archive()],
            unix_ms: now_ms(),
            ..Report::default()
        }),
        applied: Some(Status::default().generation),
        ..Status::default()
    }
}

fn payroll() -> HycoReport {
    let dial = |failed: Option<&str>, by_flow| DialReport {
        failed: failed.map(str::to_owned),
        latency_us: 812,
        by_flow,
        unix_ms: now_ms() - HOUR_MS,
    };
    let used = |rule, key_id, registrations, hours| KeyUse {
        rule,
        key_id,
        registrations,
        last_used_unix_ms: now_ms() - hours * HOUR_MS,
    };
    HycoReport {
        name: "payroll-sql".parse().unwrap(),
        bound: Some("127.0.0.1:14330".parse().unwrap()),
        listeners: 2,
        flows_live: 3,
        flows_total: 120,
        flows_failed: 2,
        bytes_to_endpoint: 1_500_000,
        bytes_to_application: 3_000_000_000,
        last_ending: Some("endpoint: refused".into()),
        health: Health {
            state: HealthState::Degraded,
            since_unix_ms: now_ms() - 2 * HOUR_MS,
            why: Some("1 of 2 agents does not reach sql01.corp:1433".into()),
        },
        agents: vec![
            listener(1, "192.0.2.1:40001", dial(None, true)),
            listener(2, "192.0.2.2:40002", dial(Some("refused"), false)),
        ],
        keys: vec![
            used(Rule::Listen, key_id(Rule::Listen, Which::Primary), 1, 0),
            used(Rule::Listen, key_id(Rule::Listen, Which::Secondary), 1, 0),
            used(Rule::Send, key_id(Rule::Send, Which::Primary), 1, 0),
            used(Rule::Send, key_id(Rule::Send, Which::Secondary), 0, 72),
            used(Rule::Listen, KeyId([7; 8]), 0, 48),
        ],
    }
}

fn archive() -> HycoReport {
    HycoReport {
        health: Health {
            state: HealthState::NoListener,
            since_unix_ms: now_ms() - 73 * HOUR_MS,
            why: None,
        },
        ..HycoReport::new("archive-sql".parse().unwrap())
    }
}

fn listener(number: u8, remote: &str, dial: DialReport) -> ListenerReport {
    ListenerReport {
        agent_id: AgentId([number; 16]),
        instance: instance(number),
        remote: remote.parse().unwrap(),
        state: SessionState::Ready,
        dial: Some(dial),
    }
}

fn session(role: Role, number: u8, remote: &str, key: Which) -> SessionReport {
    let rule = match role {
        Role::Agent => Rule::Listen,
        Role::Sender => Rule::Send,
    };
    SessionReport {
        role,
        agent_id: AgentId([number; 16]),
        instance: instance(number),
        remote: remote.parse().unwrap(),
        worker: 0,
        rtt_us: 412,
        mtu: 1452,
        state: SessionState::Ready,
        since_unix_ms: now_ms() - 2 * HOUR_MS,
        hycos: vec![RegistrationReport {
            name: "payroll-sql".parse().unwrap(),
            rule,
            key_id: key_id(rule, key),
            key,
        }],
    }
}

fn probed(number: u8, failed: Option<&str>) -> ProbedListener {
    ProbedListener {
        agent_id: AgentId([number; 16]),
        instance: instance(number),
        remote: "192.0.2.1:40001".parse().unwrap(),
        rtt_us: 412,
        dial: Some(ProbedDial {
            endpoint: "sql01.corp:1433".parse().unwrap(),
            address: Some("10.0.0.5:1433".parse().unwrap()),
            resolve_us: 1_200,
            dial_us: 800,
            failed: failed.map(str::to_owned),
            why: None,
        }),
    }
}

fn report(agents: Vec<ProbedListener>) -> ProbeReport {
    ProbeReport {
        known: true,
        agents,
    }
}

fn instance(number: u8) -> Instance {
    let mut instance = Instance::default();
    instance.0.fill(number);
    instance
}

fn key(rule: Rule, which: Which) -> Key {
    Key::from_random([rule as u8 * 2 + which as u8; 32])
}

fn key_id(rule: Rule, which: Which) -> KeyId {
    KeyId::of(rule, &key(rule, which))
}

fn write_keys(place: &Place) {
    let mut text = String::new();
    for rule in [Rule::Listen, Rule::Send] {
        text += &format!(
            "[{}]\nprimary = \"{}\"\nsecondary = \"{}\"\n",
            rule.right(),
            key(rule, Which::Primary).expose(),
            key(rule, Which::Secondary).expose()
        );
    }
    place.write("keys/payroll-sql.toml", 0o600, &text);
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// A control process that answers every question so. Ends with the test.
fn serve(place: &Place, status: Status, probed: Option<ProbeReport>) {
    std::fs::create_dir(place.folder.path().join("run")).unwrap();
    let listener = UnixListener::bind(place.folder.path().join("run/control.sock")).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = FeedReader::new(SNAPSHOT_MAX);
            let mut chunk = [0; 4096];
            loop {
                let answer = match reader.next().unwrap() {
                    Some(FeedMessage::Dial { .. }) => continue,
                    Some(FeedMessage::StatusRequest) => {
                        FeedMessage::Status(Box::new(status.clone()))
                    }
                    Some(FeedMessage::Probe { id, .. }) => FeedMessage::Probed {
                        id,
                        report: probed.clone().map(Box::new),
                    },
                    Some(_) => break,
                    None => match stream.read(&mut chunk) {
                        Ok(len @ 1..) => {
                            reader.push(&chunk[..len]);
                            continue;
                        }
                        _ => break,
                    },
                };
                stream.write_all(&feed::encode(&answer).unwrap()).unwrap();
            }
        }
    });
}
