//! What people and logs are told: words, and never a secret. And what is refused field by field.

use std::fmt::Debug;

use underpass_proto::feed::FeedError;
use underpass_proto::key::{KeyError, KeyPair};
use underpass_proto::proof::{NotAuthorised, check_register, verify};
use underpass_proto::snapshot::{HycoKeys, HycoReport};
use underpass_proto::wire::{Ended, Hello, Probed, Refused, Welcome};
use underpass_proto::*;

const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";
const OTHER: &str = "b3RoZXItc2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIz";

fn key(text: &str) -> Key {
    text.parse().expect("a key")
}

fn name() -> HycoName {
    "payroll-sql".parse().expect("a name")
}

fn shown(what: impl Debug) -> String {
    format!("{what:?}")
}

#[test]
fn an_allow_list_is_shown_as_it_is_written() {
    let entries = [
        "db01.corp:1433",
        "*.corp:*",
        "10.1.0.0/16:8000-8100",
        "192.0.2.7:22",
        "[2001:db8::1]:443",
        "[2001:db8::/32]:443",
    ];
    let list: AllowList = entries
        .iter()
        .map(|entry| entry.parse::<AllowEntry>().expect("an entry"))
        .collect();
    assert_eq!(list.to_string(), entries.join(", "));
    let none: Vec<AllowEntry> = Vec::new();
    assert_eq!(none.into_iter().collect::<AllowList>().to_string(), "");
}

#[test]
fn every_code_says_who_failed_and_in_which_words() {
    use FlowCode as Code;
    let failed = |code: Code, sent_by| code.side(sent_by).to_string();
    assert_eq!(failed(Code::NotAllowed, Side::Relay), "agent");
    assert_eq!(failed(Code::OverQuota, Side::Relay), "relay");
    assert_eq!(failed(Code::SessionLost, Side::Relay), "network");
    assert_eq!(failed(Code::Protocol, Side::Relay), "agent");
    assert_eq!(failed(Code::Protocol, Side::Sender), "relay");
    assert_eq!(failed(Code::Overloaded, Side::Sender), "sender");
    assert_eq!(failed(Code::Reset, Side::Agent), "endpoint");
    assert_eq!(failed(Code::Reset, Side::Relay), "application");
    let mut words: Vec<String> = Code::ALL.iter().map(ToString::to_string).collect();
    words.sort();
    words.dedup();
    assert_eq!(
        words.len(),
        Code::ALL.len(),
        "two codes have the same words"
    );
    let ending = Ending::said(Code::EndpointRefused, Side::Agent);
    assert_eq!(ending.to_string(), "endpoint: refused");
    assert!(!ending.is_clean());
    let clean = Ending::clean(Side::Application);
    assert_eq!(clean.to_string(), "clean");
    assert!(clean.is_clean());
}

#[test]
fn roles_and_codes_of_registrations_have_words() {
    assert_eq!(Role::Agent.to_string(), "agent");
    assert_eq!(Role::Sender.to_string(), "sender");
    let refused = (0..=u8::MAX).filter_map(wire::RefusedCode::from_u8);
    assert_eq!(
        refused.map(|code| code.to_string()).collect::<Vec<_>>(),
        ["not authorised", "too many listeners", "relay overloaded"]
    );
    let ended = (0..=u8::MAX).filter_map(wire::EndedCode::from_u8);
    let ended: Vec<_> = ended.map(|code| code.to_string()).collect();
    assert!(ended.contains(&"key revoked".to_owned()), "{ended:?}");
    assert!(
        ended.contains(&"hybrid connection removed".to_owned()),
        "{ended:?}"
    );
    assert_eq!(
        shown(AgentId([0x1f; 16])),
        format!("AgentId({})", "1f".repeat(16))
    );
    assert_eq!(FlowId(0xabc).to_string(), "0000000000000abc");
    assert_eq!(
        (Which::Primary.to_string(), Which::Secondary.to_string()),
        ("primary".into(), "secondary".into())
    );
}

#[test]
fn nothing_secret_is_shown_for_debugging() {
    assert_eq!(shown(Exporter([7; 32])), "Exporter(…)");
    assert_eq!(shown(key(KEY)), "Key(…)");
    let id = KeyId::of(Rule::Listen, &key(KEY));
    assert_eq!(shown(id), format!("KeyId({id})"));
    assert_eq!(
        shown(Nonce([0xa5; 16])),
        format!("Nonce({})", "a5".repeat(16))
    );
    assert_eq!(
        shown(Proof([0x5a; 32])),
        format!("Proof({})", "5a".repeat(32))
    );
    let mut reader = FeedReader::new(1_000);
    reader.push(KEY.as_bytes());
    let shown = shown(&reader);
    assert!(
        shown.contains("48 bytes") && !shown.contains("c2Vj"),
        "{shown}"
    );
    // What is exposed on purpose is what was put in.
    assert_eq!(Secret::new(vec![4, 5]).expose(), [4, 5]);
    assert_eq!(Secret32::new([9; 32]).expose(), &[9; 32]);
}

#[test]
fn a_key_has_a_length() {
    assert_eq!("".parse::<Key>().err(), Some(KeyError::Length(0)));
    let long = "x".repeat(10_000);
    assert_eq!(long.parse::<Key>().err(), Some(KeyError::Length(10_000)));
}

/// A Register that `by` made for `rule`.
fn register(by: &Key, rule: Rule, exporter: &Exporter) -> Register {
    Register::new(by, name(), rule, Nonce([1; 16]), 100, 0, exporter)
}

#[test]
fn a_register_holds_with_either_key_of_its_rule_and_no_other() {
    let exporter = Exporter([3; 32]);
    let keys = HycoKeys {
        listen: Some(KeyPair {
            primary: key(KEY),
            secondary: Some(key(OTHER)),
        }),
        send: None,
    };
    let check = |by, rule, of: &Exporter| {
        let register = register(&key(by), rule, of);
        check_register(&register, Some(&keys), &exporter).map(|checked| {
            assert_eq!((checked.key, checked.key_id), (key(by), register.key_id));
            checked.which
        })
    };
    assert_eq!(check(KEY, Rule::Listen, &exporter), Ok(Which::Primary));
    assert_eq!(check(OTHER, Rule::Listen, &exporter), Ok(Which::Secondary));
    let stranger = "c3RyYW5nZXItc2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0w";
    assert_eq!(
        check(stranger, Rule::Listen, &exporter),
        Err(NotAuthorised::WrongKey)
    );
    // Of another session.
    assert_eq!(
        check(KEY, Rule::Listen, &Exporter([4; 32])),
        Err(NotAuthorised::WrongKey)
    );
    assert_eq!(
        check(KEY, Rule::Send, &exporter),
        Err(NotAuthorised::WrongRule)
    );
    assert_eq!(
        check(stranger, Rule::Send, &exporter),
        Err(NotAuthorised::NoKeys)
    );
    let unknown = check_register(
        &register(&key(KEY), Rule::Listen, &exporter),
        None,
        &exporter,
    );
    assert_eq!(unknown.err(), Some(NotAuthorised::UnknownName));
    assert!(verify(&Proof([1; 32]), &Proof([1; 32])));
    assert!(!verify(&Proof([1; 32]), &Proof([2; 32])));
}

/// Refuses a frame in which the byte at `at` of the body is another one, and says which field it
/// is.
#[track_caller]
fn spoiled(frame: &Frame, at: usize, byte: u8, field: &str) {
    let bytes = frame.to_vec();
    let mut body = bytes[3..].to_vec();
    body[at] = byte;
    let why = Frame::decode(bytes[0], &body).expect_err("it is wrong");
    assert!(why.to_string().contains(field), "{why}");
}

#[test]
fn a_wrong_field_of_a_frame_is_named() {
    let hello = Frame::Hello(Hello {
        version: 1,
        role: Role::Agent,
        agent_id: AgentId([1; 16]),
        instance: Instance([2; 16]),
    });
    spoiled(&hello, 2, 9, "role");
    let welcome = Frame::Welcome(Welcome {
        workers: 2,
        worker: 0,
        relay_time_unix_ms: 0,
        relays: Vec::new(),
    });
    spoiled(&welcome, 1, 2, "worker");
    spoiled(&welcome, 10, u8::MAX, "relays");
    let len = name().as_str().len();
    let refused = Frame::Refused(Refused {
        hyco: name(),
        code: wire::RefusedCode::Overloaded,
    });
    spoiled(&refused, 1 + len, 200, "code");
    spoiled(&refused, 1, b'_', "hyco");
    spoiled(&refused, 1, 0xff, "hyco");
    let ended = Frame::Ended(Ended {
        hyco: name(),
        code: wire::EndedCode::Removed,
    });
    spoiled(&ended, 1 + len, 200, "code");
    let probed = Frame::Probed(Probed {
        hyco: name(),
        id: 1,
        failed: Some(FlowCode::EndpointRefused),
        resolve_us: 0,
        dial_us: 0,
        dialled: None,
    });
    spoiled(&probed, 1 + len + 8 + 1 + 8, 5, "dialled");
    let open = Frame::Open(wire::Open {
        hyco: name(),
        flow: FlowId(1),
        endpoint: "db01:1".parse().expect("an endpoint"),
        application: "192.0.2.1:80".parse().expect("an address"),
    });
    spoiled(&open, 1 + len + 8 + 1 + "db01".len() + 1, 0, "endpoint");
    let opened = Frame::Opened(wire::Opened {
        endpoint: "192.0.2.1:80".parse().expect("an address"),
    });
    spoiled(&opened, 0, 0, "endpoint");
}

#[test]
fn no_text_field_of_a_frame_takes_a_control_character() {
    let endpoint: Endpoint = "db01.corp:1433".parse().expect("an endpoint");
    let application = "192.0.2.1:80".parse().expect("an address");
    let code = wire::RefusedCode::Overloaded;
    let frames = [
        Frame::Refused(Refused { hyco: name(), code }),
        Frame::Ended(Ended {
            hyco: name(),
            code: wire::EndedCode::Removed,
        }),
        Frame::Deregister(wire::Deregister { hyco: name() }),
        Frame::Registered(wire::Registered {
            hyco: name(),
            endpoint: endpoint.clone(),
            relay_proof: Proof([1; 32]),
        }),
        Frame::Welcome(Welcome {
            workers: 1,
            worker: 0,
            relay_time_unix_ms: 0,
            relays: vec![endpoint.clone()],
        }),
        Frame::Probe(wire::Probe {
            hyco: name(),
            id: 1,
            endpoint: endpoint.clone(),
        }),
        Frame::Open(wire::Open {
            hyco: name(),
            flow: FlowId(1),
            endpoint,
            application,
        }),
    ];
    let mut tried = 0;
    for frame in frames {
        let bytes = frame.to_vec();
        for text in [name().as_str(), "db01.corp"] {
            let found = bytes
                .windows(text.len())
                .position(|part| part == text.as_bytes());
            let Some(at) = found else { continue };
            for nasty in (0..0x20).chain([0x7f, 0x9b, 0xff]) {
                let mut changed = bytes.clone();
                changed[at + 1] = nasty;
                let decoded = Frame::decode(changed[0], &changed[3..]);
                assert!(decoded.is_err(), "{nasty:#x} in {frame:?}: {decoded:?}");
                tried += 1;
            }
        }
    }
    // Five names and four hosts.
    assert_eq!(tried, 10 * 35);
}

#[test]
fn a_feed_that_ends_within_a_message_was_cut() {
    let mut reader = FeedReader::new(1_000);
    assert_eq!(reader.finish(), Ok(()));
    reader.push(&[0, 0]);
    assert_eq!(reader.next(), Ok(None));
    assert_eq!(reader.finish(), Err(FeedError::Truncated));
}

#[test]
fn a_report_of_which_nothing_is_left_to_cut_is_refused() {
    let hycos = HycoReport::new(name());
    let fits = Report {
        hycos: vec![hycos; 30_000],
        ..Report::default()
    };
    let encoded = feed::encode(&FeedMessage::Report(Box::new(fits))).expect("cut");
    assert!(encoded.len() <= limits::REPORT_MAX + 4);
    for limit in [limits::REPORT_MAX, limits::SNAPSHOT_MAX] {
        let too_long = Report {
            io: "x".repeat(limit + 1),
            ..Report::default()
        };
        let refused = feed::encode(&FeedMessage::Report(Box::new(too_long)));
        assert!(
            matches!(refused, Err(FeedError::TooLong { limit: said, .. }) if said == limit),
            "{refused:?}"
        );
    }
}
