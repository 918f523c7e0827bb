//! Connection strings, and keys that nothing shows.

use underpass_proto::connection_string::ConnectionStringError as StringError;
use underpass_proto::endpoint::EndpointError;
use underpass_proto::key::KeyPair;
use underpass_proto::name::NameError;
use underpass_proto::snapshot::KeyStatus;
use underpass_proto::*;

use crate::{KEY, endpoint};

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
        keys.status(Rule::Listen, listen),
        KeyStatus::Alive(Which::Secondary)
    );
    assert_eq!(keys.status(Rule::Listen, send), KeyStatus::Revoked);
    assert_eq!(keys.status(Rule::Send, send), KeyStatus::Unknown);
}

fn string(text: &str) -> Result<ConnectionString, StringError> {
    text.parse()
}
