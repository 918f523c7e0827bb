//! Snapshots and reports, and the feed that carries them.

use underpass_proto::key::KeyPair;
use underpass_proto::snapshot::{
    HycoLimits, RegistrationReport, RelayKeys, RelayLimits, SessionReport, SessionState,
    SnapshotError, Tls,
};
use underpass_proto::*;

use crate::{KEY, endpoint};

fn snapshot() -> Snapshot {
    let secret = || Secret32::new([7; 32]);
    Snapshot {
        generation: Generation {
            start: 5,
            number: 1,
        },
        namespace: "contoso".into(),
        listen: "0.0.0.0:4433".parse().expect("an address"),
        public_address: endpoint("relay.example.com:4433"),
        workers: None,
        tls: Tls {
            certificates: vec![vec![1, 2, 3]],
            key: Secret::new(vec![4, 5, 6]),
        },
        relay_keys: RelayKeys {
            reset: secret(),
            token: secret(),
            connection_id: secret(),
        },
        limits: RelayLimits::default(),
        hycos: vec![HybridConnection {
            name: "payroll-sql".parse().expect("a name"),
            endpoint: endpoint("db01:1433"),
            bind: Some("127.0.0.1:0".parse().expect("an address")),
            allow_from: Vec::new(),
            keys: HycoKeys {
                listen: Some(KeyPair {
                    primary: KEY.parse().expect("a key"),
                    secondary: None,
                }),
                send: None,
            },
            limits: HycoLimits::default(),
            probe: true,
            probe_always: false,
            over_quota: false,
        }],
    }
}

#[test]
fn a_snapshot_survives_the_feed_and_shows_no_key_in_debug() {
    let message = FeedMessage::Snapshot(Box::new(snapshot()));
    let bytes = feed::encode(&message).expect("small");
    let mut reader = FeedReader::new(limits::SNAPSHOT_MAX);
    reader.push(&bytes);
    assert_eq!(reader.next(), Ok(Some(message.clone())));
    assert!(!format!("{message:?}").contains(KEY));
}

#[test]
fn fields_of_a_later_version_are_ignored_and_missing_ones_have_defaults() {
    let mut json = serde_json::to_value(snapshot()).expect("json");
    json["colour"] = "red".into();
    json.as_object_mut().expect("an object").remove("limits");
    let hyco = json["hycos"][0].as_object_mut().expect("an object");
    for field in ["bind", "allow_from", "limits", "probe"] {
        hyco.remove(field);
    }
    let read: Snapshot = serde_json::from_value(json).expect("a snapshot");
    assert_eq!(read.limits, RelayLimits::default());
    assert_eq!(
        (
            read.hycos[0].probe,
            read.hycos[0].limits.listeners_max,
            read.hycos[0].limits.flows_max
        ),
        (true, 25, 10_000)
    );
}

#[test]
fn a_snapshot_with_a_name_twice_is_refused_whole_and_an_open_door_alone() {
    let mut twice = snapshot();
    let mut same = twice.hycos[0].clone();
    same.name = "PAYROLL-SQL".parse().expect("a name");
    twice.hycos.push(same);
    assert!(matches!(twice.check(), Err(SnapshotError::NameTwice(_))));

    let mut open = snapshot();
    open.hycos[0].bind = Some("0.0.0.0:1433".parse().expect("an address"));
    assert_eq!(open.check(), Ok(()));
    let fault = open.hycos[0].fault().expect("refused");
    assert!(fault.what.contains("allow_from"), "{fault}");
    open.hycos[0].allow_from = vec!["10.0.0.0/8".parse().expect("a network")];
    assert_eq!(open.hycos[0].fault(), None);
    assert!(open.hycos[0].admits("[::ffff:10.1.2.3]:5".parse().expect("an address")));
    assert!(!open.hycos[0].admits("127.0.0.1:5".parse().expect("an address")));
}

#[test]
fn a_message_over_the_readers_limit_is_refused_by_its_length_alone() {
    let mut reader = FeedReader::new(100);
    reader.push(&101_u32.to_be_bytes());
    assert_eq!(
        reader.next(),
        Err(feed::FeedError::TooLong {
            len: 101,
            limit: 100
        })
    );
}

#[test]
fn a_report_that_is_too_long_is_cut_and_says_so() {
    let fault = Fault {
        hyco: None,
        what: "x".repeat(1_000),
    };
    let registration = RegistrationReport {
        name: "payroll-sql".parse().expect("a name"),
        rule: Rule::Listen,
        key_id: KeyId([3; 8]),
        key: Which::Primary,
    };
    let session = SessionReport {
        role: Role::Agent,
        agent_id: AgentId([1; 16]),
        instance: Instance([2; 16]),
        remote: "192.0.2.1:443".parse().expect("an address"),
        worker: 0,
        rtt_us: 1,
        mtu: 1_452,
        state: SessionState::Ready,
        since_unix_ms: 1,
        hycos: vec![registration; 9],
    };
    let report = Report {
        io: "ring".into(),
        faults: vec![fault; 5_000],
        sessions: vec![session; 9],
        ..Report::default()
    };
    let bytes = feed::encode(&FeedMessage::Report(Box::new(report))).expect("cut");
    let mut reader = FeedReader::new(limits::REPORT_MAX);
    reader.push(&bytes);
    let Ok(Some(FeedMessage::Report(got))) = reader.next() else {
        panic!("no report")
    };
    assert_eq!(
        (got.truncated, got.faults.len(), got.io.as_str()),
        (true, 625, "ring")
    );
    let sessions: Vec<usize> = got
        .sessions
        .iter()
        .map(|session| session.hycos.len())
        .collect();
    assert_eq!(sessions, [2], "halved as often as the faults were");
}

#[test]
fn a_later_start_of_control_is_a_later_generation() {
    assert!(
        Generation {
            start: 2,
            number: 1
        } > Generation {
            start: 1,
            number: 900
        }
    );
}
