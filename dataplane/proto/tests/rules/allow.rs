//! The allow-list.

use std::net::IpAddr;

use underpass_proto::allow::AllowError;
use underpass_proto::endpoint::HostError;
use underpass_proto::*;

use crate::endpoint;

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
        ("10.1.2.3:443", "anything.example:443", false),  // Not even resolved.
        ("10.1.2.3/32:443", "anything.example:443", false),
        ("[2001:db8::1]:443", "anything.example:443", false),
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
        ("[::1]:80", "[::1]", "::1", false, true),
        ("[::1]:80", "db01", "::1", false, false),
        ("10.0.0.5:80", "db01", "10.0.0.5", false, false),
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
        ("https://sql01:443", AllowError::Url),
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
fn an_entry_of_addresses_that_are_always_refused_is_in_vain() {
    for (text, in_vain) in [
        ("169.254.169.254:80", true),
        ("169.254.0.0/16:*", true),
        ("[fe80::1]:443", true),
        ("0.0.0.0:80", true),
        ("168.63.129.16:80", true),
        ("0.0.0.0/0:443", false),
        ("168.63.0.0/16:80", false),
        ("10.0.0.7:80", false),
        ("localhost:80", false),
        ("[::]:80", true),
    ] {
        let entry = text.parse::<AllowEntry>().expect(text);
        assert_eq!(entry.is_in_vain(), in_vain, "{text}");
    }
}

fn list(entries: &[&str]) -> AllowList {
    entries
        .iter()
        .map(|entry| entry.parse::<AllowEntry>().expect("an entry"))
        .collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
