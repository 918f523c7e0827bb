//! Names of hybrid connections, hosts and endpoints.

use std::collections::HashSet;

use underpass_proto::endpoint::{EndpointError, HostError};
use underpass_proto::name::NameError;
use underpass_proto::*;

use crate::endpoint;

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
    let absolute = "DB.corp.example.:1433"
        .parse::<Endpoint>()
        .expect("an endpoint");
    assert_eq!(absolute.to_string(), "DB.corp.example:1433");
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
