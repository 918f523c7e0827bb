//! What people type and paste, and what they copy out of messages.

use std::path::Path;
use std::process::{Command, Output};

use crate::Place;

#[test]
fn a_printed_command_works_in_a_shell_whatever_the_directory_is_called() {
    let place = Place::empty();
    let created = place.run(&[
        "connection",
        "create",
        "payroll-sql",
        "--host",
        "sql01.corp",
        "--port",
        "1433",
        "--dir",
        "DIR/it's $(touch bad) here",
    ]);
    let printed = place.shown(&created.stderr);
    let line = printed
        .lines()
        .find(|line| line.trim_start().starts_with("underpass connection string"))
        .unwrap_or_else(|| panic!("{printed}"));
    let program = Path::new(env!("CARGO_BIN_EXE_underpass"));
    let here = place.folder.path();
    let shell = Command::new("/bin/sh")
        .args(["-c", &line.replace("DIR", here.to_str().unwrap())])
        .env("PATH", program.parent().unwrap())
        .current_dir(here)
        .output()
        .unwrap();
    assert!(shell.status.success(), "{line}: {shell:?}");
    assert!(place.read("payroll-sql.connection").contains("payroll-sql"));
    assert!(!here.join("bad").exists());
}

#[test]
fn a_host_is_refused_with_the_same_words_by_the_command_and_in_a_file() {
    for (host, told) in [
        (
            "https://db01.corp",
            "it has more than a host in it; write db01.corp alone, and the port as port",
        ),
        (
            "db01.corp:1433",
            "it has more than a host in it; write db01.corp alone, and 1433 as port",
        ),
        ("169.254.169.254", "no agent ever dials 169.254.169.254: "),
        ("0.0.0.0", "no agent ever dials 0.0.0.0: "),
        ("fe80::1", "no agent ever dials fe80::1: "),
    ] {
        let place = Place::empty();
        let output = create(&place, &["--host", host]);
        let by_command = place.shown(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{by_command}");
        assert!(by_command.contains(told), "{by_command}");
        let text = format!("host = \"{host}\"\nport = 1433\n");
        place.write("connections/payroll-sql.toml", 0o644, &text);
        let listed = place.run(&["connection", "list", "--dir", "DIR"]);
        let in_file = place.shown(&listed.stderr);
        assert!(
            in_file.starts_with("warning: connections/payroll-sql.toml:1: host cannot be "),
            "{in_file}"
        );
        assert!(in_file.contains(told), "{in_file}");
    }
}

#[test]
fn a_trailing_dot_a_single_address_and_several_networks_are_taken() {
    let place = Place::empty();
    let options = [
        "--host",
        "SQL01.corp.",
        "--bind",
        "0.0.0.0:14330",
        "--allow-from",
        "10.1.2.3,10.2.0.0/16",
        "--allow-from",
        "[2001:db8::7]",
    ];
    let output = create(&place, &options);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        place.shown(&output.stderr)
    );
    assert_eq!(
        place.read("connections/payroll-sql.toml"),
        "host = \"SQL01.corp\"\nport = 1433\nbind = \"0.0.0.0:14330\"\n\
         allow_from = [\"10.1.2.3/32\", \"10.2.0.0/16\", \"2001:db8::7/128\"]\n"
    );
}

#[test]
fn an_allow_entry_that_would_permit_nothing_is_refused() {
    let place = Place::empty();
    place.write("agent.toml", 0o644, "");
    let arguments = ["agent", "allow", "169.254.169.254:80", "--config"];
    let output = place.run(&[&arguments[..], &["DIR/agent.toml"]].concat());
    let told = place.shown(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.starts_with("error: 169.254.169.254:80 would permit nothing: "),
        "{told}"
    );
}

fn create(place: &Place, options: &[&str]) -> Output {
    let first = ["connection", "create", "payroll-sql", "--port", "1433"];
    place.run(&[&first[..], &["--dir", "DIR"], options].concat())
}
