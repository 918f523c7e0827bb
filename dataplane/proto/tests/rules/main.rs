//! The rules that users rely on, one sentence each: names, hosts, connection strings, the allow-list, snapshots.

use std::collections::HashSet;
use std::net::IpAddr;

use underpass_proto::allow::AllowError;
use underpass_proto::connection_string::ConnectionStringError as StringError;
use underpass_proto::endpoint::{EndpointError, HostError};
use underpass_proto::key::KeyPair;
use underpass_proto::name::NameError;
use underpass_proto::snapshot::{
    HycoLimits, RegistrationReport, RelayKeys, RelayLimits, SessionReport, SessionState,
    SnapshotError, Standing, Tls,
};
use underpass_proto::wire::{FRAME_MAX, Hello};
use underpass_proto::*;

const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";

fn string(text: &str) -> Result<ConnectionString, StringError> {
    text.parse()
}

fn list(entries: &[&str]) -> AllowList {
    entries
        .iter()
        .map(|entry| entry.parse::<AllowEntry>().expect("an entry"))
        .collect()
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().expect("an endpoint")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_name_has_six_to_fifty_letters_digits_and_hyphens() {
    assert!("payroll-sql".parse::<HycoName>().is_ok());
    assert!("a".repeat(50).parse::<HycoName>().is_ok());
    assert_eq!(
        "short".parse::<HycoName>().err(),
        Some(NameError::Length(5))
    );
    assert_eq!(
        "a".repeat(51).parse::<HycoName>().err(),
        Some(NameError::Length(51))
    );
    assert_eq!("1payroll".parse::<HycoName>().err(), Some(NameError::Start));
    assert_eq!("-payroll".parse::<HycoName>().err(), Some(NameError::Start));
    assert_eq!("payroll-".parse::<HycoName>().err(), Some(NameError::End));
    assert_eq!(
        "pay_roll".parse::<HycoName>().err(),
        Some(NameError::Character)
    );
    assert_eq!(
        "päyroll".parse::<HycoName>().err(),
        Some(NameError::Character)
    );
}

#[test]
fn names_are_compared_without_case_and_keep_their_spelling() {
    let (a, b): (HycoName, HycoName) = (
        "Payroll-SQL".parse().expect("a name"),
        "payroll-sql".parse().expect("a name"),
    );
    assert_eq!(a, b);
    assert_eq!(a.cmp(&b), std::cmp::Ordering::Equal);
    assert!(HashSet::from([a.clone()]).contains(&b));
    assert_eq!(a.to_string(), "Payroll-SQL");
    assert_eq!(serde_json::to_string(&a).expect("json"), "\"Payroll-SQL\"");
}

#[test]
fn hosts_are_names_or_addresses_and_nothing_between() {
    assert_eq!("10.0.0.5".parse(), Ok(Host::V4([10, 0, 0, 5].into())));
    assert_eq!("[::1]".parse(), Ok(Host::V6(std::net::Ipv6Addr::LOCALHOST)));
    assert!(matches!("SQL_01".parse(), Ok(Host::Name(_))));
    assert!(matches!("db.corp.example.".parse(), Ok(Host::Name(_))));
    assert!(matches!("3com.com".parse(), Ok(Host::Name(_))));
    let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    assert!(longest.parse::<Host>().is_ok());
    assert_eq!(
        format!("{longest}c").parse::<Host>(),
        Err(HostError::TooLong(254))
    );
    for (text, error) in [
        ("", HostError::Empty),
        (".", HostError::Empty),
        ("256.1.1.1", HostError::Numeric),
        ("10.1", HostError::Numeric),
        ("127.1", HostError::Numeric),
        ("a..b", HostError::Label),
        ("-a.b", HostError::Hyphen),
        ("a b", HostError::Character),
        ("bücher.example", HostError::Character),
        ("::g", HostError::V6),
        ("[10.0.0.1]", HostError::V6),
        ("fe80::1%eth0", HostError::V6),
    ] {
        assert_eq!(text.parse::<Host>(), Err(error), "{text}");
    }
}

#[test]
fn localhost_and_the_names_below_it_mean_this_machine() {
    for (text, is_localhost) in [
        ("localhost", true),
        ("LocalHost.", true),
        ("web.localhost", true),
        ("localhost.corp.example", false),
        ("mylocalhost", false),
        ("localhost1", false),
    ] {
        let Ok(Host::Name(name)) = text.parse() else {
            panic!("{text} is a name")
        };
        assert_eq!(name.is_localhost(), is_localhost, "{text}");
    }
}

#[test]
fn an_endpoint_needs_a_port_and_ipv6_needs_brackets() {
    assert_eq!(endpoint("[fd00::1]:443").to_string(), "[fd00::1]:443");
    assert_eq!("db".parse::<Endpoint>(), Err(EndpointError::NoPort));
    assert_eq!("[::1]".parse::<Endpoint>(), Err(EndpointError::NoPort));
    assert_eq!(
        "fd00::1:443".parse::<Endpoint>(),
        Err(EndpointError::Brackets)
    );
    for text in ["db:", "db:0", "db:65536", "db:+1", "db: 1", "db:1x"] {
        assert_eq!(text.parse::<Endpoint>(), Err(EndpointError::Port), "{text}");
    }
}

#[test]
fn both_forms_of_a_connection_string_are_read_and_the_first_is_written() {
    let text = format!(
        "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey={KEY};Target=db01:1433"
    );
    let first = string(&text).expect("the first form");
    assert_eq!(
        (first.relay_port, first.rule, first.key.expose()),
        (4433, Rule::Listen, KEY)
    );
    assert_eq!(first.target, Some(endpoint("db01:1433")));
    let written = text.replace("example.com/", "example.com:4433/");
    assert_eq!(first.emit().as_str(), written);

    let text = format!(
        "endpoint=sb://[fd00::1]:5000/;sharedaccesskeyname=DEFAULTSENDER;SHAREDACCESSKEY={KEY};EntityPath=payroll-sql;\n"
    );
    let second = string(&text).expect("the second form");
    assert_eq!(
        (second.relay(), second.rule, second.name.as_str()),
        ("[fd00::1]:5000".to_owned(), Rule::Send, "payroll-sql")
    );
    let written = format!(
        "Endpoint=hc://[fd00::1]:5000/payroll-sql;SharedAccessKeyName=defaultSender;SharedAccessKey={KEY}"
    );
    assert_eq!(second.emit().as_str(), written);
}

#[test]
fn a_wrong_connection_string_says_which_field_and_never_the_key() {
    let with = |change: &dyn Fn(&str) -> String| {
        string(&change(&format!(
            "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey={KEY}"
        )))
    };
    let pin = format!("sha256:{}", "ab".repeat(32));
    let cases: Vec<(Result<ConnectionString, StringError>, StringError)> = vec![
        (
            with(&|text| format!("{text};Colour=red")),
            StringError::Unknown(4),
        ),
        (
            with(&|text| format!("{text};{KEY}")),
            StringError::Unknown(4),
        ),
        (
            with(&|text| format!("{text};nothing")),
            StringError::NoValue(4),
        ),
        (
            with(&|text| format!("{text};sharedaccesskey=x")),
            StringError::Twice("SharedAccessKey"),
        ),
        (
            with(&|text| text.replace("Endpoint=", "Pin=")),
            StringError::Missing("Endpoint"),
        ),
        (
            with(&|text| text.replace("hc://", "https://")),
            StringError::Scheme,
        ),
        (with(&|text| text.replace("hc://", "")), StringError::Scheme),
        (
            with(&|text| text.replace("/payroll-sql", "")),
            StringError::NoName,
        ),
        (
            with(&|text| format!("{text};EntityPath=payroll-sql")),
            StringError::NameTwice,
        ),
        (
            with(&|text| text.replace("payroll-sql", "pay")),
            StringError::Name(NameError::Length(3)),
        ),
        (
            with(&|text| text.replace("payroll-sql", "payroll/sql")),
            StringError::Name(NameError::Character),
        ),
        (
            with(&|text| text.replace("defaultListener", "RootManageSharedAccessKey")),
            StringError::ManageRule,
        ),
        (
            with(&|text| text.replace("defaultListener", "listener")),
            StringError::Rule,
        ),
        (
            with(&|text| text.replace("example.com", "example.com:0")),
            StringError::Relay(EndpointError::Port),
        ),
        (
            with(&|text| format!("{text};Pin=sha256:00")),
            StringError::Pin,
        ),
        (
            with(&|text| format!("{text};Pin={pin},{pin},{pin}")),
            StringError::Pin,
        ),
        (
            with(&|text| format!("{text};Target=db01")),
            StringError::Target(EndpointError::NoPort),
        ),
        (string(&"x".repeat(5_000)), StringError::TooLong),
    ];
    for (got, expected) in cases {
        let error = got.expect_err("wrong");
        assert_eq!(error, expected);
        assert!(!error.to_string().contains(KEY));
    }
    assert_eq!(
        with(&|text| format!("{text};Pin={pin}, {pin}"))
            .expect("two pins")
            .pins
            .len(),
        2
    );
}

#[test]
fn nothing_but_expose_and_emit_shows_a_key() {
    let text = format!(
        "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey={KEY}"
    );
    let string = string(&text).expect("a string");
    let pair = KeyPair {
        primary: string.key.clone(),
        secondary: None,
    };
    for shown in [
        format!("{string}"),
        format!("{string:?}"),
        format!("{pair:?}"),
        format!("{:?}", Secret::new(KEY.into())),
    ] {
        assert!(!shown.contains("c2Vjcm"), "{shown}");
    }
    let error = serde_json::from_str::<Key>("\"two words\"").expect_err("no key");
    assert!(!error.to_string().contains("two"), "{error}");
}

#[test]
fn the_identifier_of_a_key_depends_on_the_rule() {
    let key: Key = KEY.parse().expect("a key");
    let (listen, send) = (KeyId::of(Rule::Listen, &key), KeyId::of(Rule::Send, &key));
    assert_ne!(listen, send);
    assert_eq!(listen.to_string().parse(), Ok(listen));

    let keys = HycoKeys {
        listen: Some(KeyPair {
            primary: Key::from_random([1; 32]),
            secondary: Some(key),
        }),
        send: None,
    };
    assert_eq!(
        keys.standing(Rule::Listen, listen),
        Standing::Alive(Which::Secondary)
    );
    assert_eq!(keys.standing(Rule::Listen, send), Standing::Revoked);
    assert_eq!(keys.standing(Rule::Send, send), Standing::Unknown);
}

#[test]
fn the_allow_list_knows_names_wildcards_networks_and_ports() {
    let cases = [
        ("db01:1433", "DB01:1433", true),
        ("db01:1433", "db01.:1433", true),
        ("db01:1433", "db01:1434", false),
        ("db01:1433", "db01.corp:1433", false),
        ("*.corp:1433", "db01.corp:1433", true),
        ("*.corp:1433", "a.b.CORP:1433", true),
        ("*.corp:1433", "corp:1433", false),
        ("*.corp:1433", "evilcorp:1433", false),
        ("10.0.0.0/8:443", "10.200.3.4:443", true),
        ("10.0.0.0/8:443", "11.0.0.1:443", false),
        ("10.0.0.0/8:443", "anything.example:443", true), // Its address is checked after.
        ("10.0.0.0/8:443", "[::ffff:10.1.2.3]:443", true),
        ("[fd00::/8]:443", "[fd12::1]:443", true),
        ("[2001:db8::1]:443", "[2001:db8::1]:443", true),
        ("[2001:db8::1]:443", "[2001:db8::2]:443", false),
        ("db01:*", "db01:1", true),
        ("db01:1000-2000", "db01:2000", true),
        ("db01:1000-2000", "db01:2001", false),
        ("127.0.0.1:80", "127.0.0.1:80", true),
        ("0.0.0.0/0:*", "127.0.0.1:80", false),
        ("localhost:80", "127.0.0.1:80", false),
        ("169.254.0.0/16:80", "169.254.169.254:80", false),
        ("0.0.0.0/0:80", "169.254.169.254:80", false),
    ];
    for (entry, asked, expected) in cases {
        assert_eq!(
            list(&[entry]).permits(&endpoint(asked)),
            expected,
            "{entry} asked for {asked}"
        );
    }
    assert!(!AllowList::default().permits(&endpoint("db01:1433")));
}

#[test]
fn after_resolution_the_address_itself_must_be_permitted() {
    let cases = [
        // (entry, host, resolved, by the hosts file, permitted)
        ("db01:80", "db01", "10.0.0.5", false, true),
        ("db01:80", "db01", "127.0.0.1", false, false),
        ("db01:80", "db01", "127.0.0.1", true, true),
        ("db01:80", "db01", "::ffff:127.0.0.1", false, false),
        ("db01:80", "db01", "169.254.169.254", true, false),
        ("db01:80", "db01", "fd00:ec2::254", false, false),
        ("db01:80", "db01", "fe80::1", false, false),
        ("db01:80", "db01", "0.0.0.0", true, false),
        ("db01:80", "db01", "0.1.2.3", false, false),
        ("db01:80", "db01", "::", true, false),
        ("db01:80", "db01", "224.0.0.1", false, false),
        ("db01:80", "db01", "255.255.255.255", false, false),
        ("db01:80", "db01", "ff02::1", false, false),
        ("db01:80", "db01", "64:ff9b::a9fe:a9fe", false, false),
        ("db01:80", "db01", "64:ff9b::7f00:1", false, false),
        ("db01:80", "db01", "64:ff9b::a00:5", false, true),
        ("db01:80", "db01", "2002:7f00:1::1", false, false),
        ("db01:80", "db01", "::7f00:1", false, false),
        ("*.corp:80", "db01.corp", "127.0.0.1", false, false),
        ("*.corp:80", "db01.corp", "10.0.0.5", false, true),
        ("10.0.0.0/8:80", "db01", "10.0.0.5", false, true),
        ("10.0.0.0/8:80", "db01", "::ffff:10.0.0.5", false, true),
        ("10.0.0.0/8:80", "db01", "192.168.0.5", false, false),
        ("0.0.0.0/0:80", "db01", "127.0.0.1", true, false),
        ("127.0.0.0/8:80", "db01", "127.0.0.53", false, true),
        ("127.0.0.0/8:80", "db01", "::1", false, false),
        ("[::1]:80", "db01", "::1", false, true),
        ("[::/0]:80", "db01", "::1", false, false),
        ("localhost:80", "localhost", "127.0.0.1", false, true),
        ("localhost:80", "localhost", "::1", false, true),
        ("localhost:80", "localhost", "10.0.0.5", false, false),
        ("localhost:80", "db01", "127.0.0.1", true, false),
    ];
    for (entry, host, resolved, from_hosts_file, expected) in cases {
        let got = list(&[entry]).permits_ip(
            &endpoint(&format!("{host}:80")),
            ip(resolved),
            from_hosts_file,
        );
        assert_eq!(
            got, expected,
            "{entry}: {host} is {resolved}, from the hosts file: {from_hosts_file}"
        );
    }
}

#[test]
fn a_wrong_allow_entry_says_what_to_write() {
    for (text, error) in [
        ("db01", AllowError::NoPort),
        ("db01:", AllowError::Port),
        ("db01:9-1", AllowError::Port),
        ("10.1.2.3/8:443", AllowError::HostBits),
        ("10.0.0.0/33:443", AllowError::Net),
        ("fd00::/8:443", AllowError::Brackets),
        ("[fd00::/8]", AllowError::NoPort),
        ("[fd00::/8:443", AllowError::Brackets),
        ("[::ffff:10.0.0.1]:443", AllowError::Mapped),
        ("*:443", AllowError::Star),
        ("db*.corp:443", AllowError::Star),
        ("[10.0.0.1]:443", AllowError::Host(HostError::V6)),
        ("10.0:443", AllowError::Host(HostError::Numeric)),
    ] {
        assert_eq!(text.parse::<AllowEntry>(), Err(error), "{text}");
    }
}

#[test]
fn codes_keep_their_numbers_and_name_who_failed() {
    for code in FlowCode::ALL {
        assert_eq!(FlowCode::from_u64(u64::from(code.to_u32())), Some(code));
    }
    assert_eq!(FlowCode::from_u64(u64::MAX), None);
    assert_eq!(SessionCode::from_u64(7), Some(SessionCode::NoRegistration));
    assert_eq!(
        Ending::said(FlowCode::Reset, Side::Agent).to_string(),
        "endpoint: reset"
    );
    assert_eq!(
        Ending::said(FlowCode::Reset, Side::Relay).to_string(),
        "application: reset"
    );
    assert_eq!(
        Ending::said(FlowCode::EndpointRefused, Side::Agent).to_string(),
        "endpoint: refused"
    );
    assert_eq!(Ending::clean(Side::Endpoint).to_string(), "clean");
    let refusals: Vec<u32> = FlowCode::ALL
        .into_iter()
        .filter(|code| code.is_refusal())
        .map(FlowCode::to_u32)
        .collect();
    assert_eq!(refusals, [16, 17, 18, 19, 20, 21, 22, 23, 24, 28]);
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_header_alone() {
    let mut reader = FrameReader::new();
    reader.push(bytes::Bytes::from_static(&[0x01, 0x10, 0x01]));
    assert_eq!(
        reader.next(),
        Err(FrameError::TooLong { len: FRAME_MAX + 1 })
    );
}

#[test]
fn payload_behind_a_frame_is_handed_on_without_a_copy() {
    let mut bytes = Frame::Draining.to_vec();
    bytes.extend(b"payload");
    let chunk = bytes::Bytes::from(bytes);
    let place = chunk[3..].as_ptr();
    let mut reader = FrameReader::new();
    reader.push(chunk);
    assert_eq!(reader.next(), Ok(Some(Frame::Draining)));
    let rest = reader.rest();
    assert_eq!((&rest[..], rest.as_ptr()), (&b"payload"[..], place));
}

#[test]
fn the_hello_of_a_later_version_is_understood_as_far_as_ours_goes() {
    let hello = Hello {
        version: 2,
        role: Role::Agent,
        agent_id: AgentId([1; 16]),
        instance: Instance([2; 16]),
    };
    let mut body = Frame::Hello(hello.clone()).to_vec()[3..].to_vec();
    body.extend(b"more");
    assert_eq!(Frame::decode(0x01, &body), Ok(Frame::Hello(hello)));
}

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
