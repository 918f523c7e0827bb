//! `underpass agent allow`, on the file of an agent.

use std::fs;
use std::os::unix::fs::symlink;

use super::Place;

const AGENT: &str = "# of the payroll\nallow = [\"sql01.corp:1433\"] # 2024\n\n[[connect]]\nstring_file = \"a.connection\" # ours\n";

#[test]
fn entries_come_and_go_and_the_rest_of_the_file_stays() {
    let place = Place::empty();
    place.write("agent.toml", 0o640, AGENT);
    let added = place.run(&[
        "agent",
        "allow",
        "*.corp:443",
        "sql01.corp:1433",
        "--config",
        "DIR/agent.toml",
    ]);
    assert_eq!(added.status.code(), Some(0));
    assert_eq!(
        place.shown(&added.stderr),
        "*.corp:443 may be dialled\n\
         sql01.corp:1433 was in DIR/agent.toml already\n\
         a running agent with `--config DIR/agent.toml` goes by it within a second\n"
    );
    assert_eq!(
        place.read("agent.toml"),
        AGENT.replace(
            "[\"sql01.corp:1433\"]",
            "[\"sql01.corp:1433\", \"*.corp:443\"]"
        )
    );
    let removed = place.run(&[
        "agent",
        "allow",
        "--remove",
        "*.corp:443",
        "--config",
        "DIR/agent.toml",
    ]);
    assert_eq!(
        place.shown(&removed.stderr),
        "*.corp:443 may not be dialled any more\na running agent with `--config DIR/agent.toml` goes by it within a second\n"
    );
    assert_eq!(place.read("agent.toml"), AGENT);
}

#[test]
fn the_first_entry_does_not_take_the_targets_of_the_strings_away() {
    let place = Place::empty();
    place.write(
        "agent.toml",
        0o644,
        "[[connect]]\nstring_file = \"a.connection\"\n[[connect]]\nstring_file = \"gone.connection\"\n",
    );
    place.write(
        "a.connection",
        0o600,
        "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey=c2Vj;Target=sql01.corp:1433",
    );
    let added = place.run(&[
        "agent",
        "allow",
        "web.corp:443",
        "--config",
        "DIR/agent.toml",
    ]);
    let told = place.shown(&added.stderr);
    assert!(
        told.contains("sql01.corp:1433 stays allowed for its connection string"),
        "{told}"
    );
    assert!(
        told.starts_with("warning: DIR/gone.connection: is not there"),
        "{told}"
    );
    // In the list of its own string: another relay or hybrid connection has no right to it.
    assert_eq!(
        place.read("agent.toml"),
        "allow = [\"web.corp:443\"]\n[[connect]]\nstring_file = \"a.connection\"\nallow = [\"sql01.corp:1433\"]\n[[connect]]\nstring_file = \"gone.connection\"\n"
    );
    let one = place.run(&[
        "agent",
        "allow",
        "db.corp:1",
        "--connection",
        "payroll-sql",
        "--config",
        "DIR/agent.toml",
    ]);
    assert!(
        place
            .shown(&one.stderr)
            .contains("db.corp:1 may be dialled for payroll-sql\n")
    );
    assert!(
        place
            .read("agent.toml")
            .contains("allow = [\"sql01.corp:1433\", \"db.corp:1\"]")
    );
}

#[test]
fn a_linked_file_is_read_as_run_reads_it_and_stays_a_link() {
    let place = Place::empty();
    place.write(
        "real/agent.toml",
        0o644,
        "[[connect]]\nstring_file = \"a.connection\"\n",
    );
    let string = |target: &str| {
        format!(
            "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey=c2Vj;Target={target}"
        )
    };
    place.write("a.connection", 0o600, &string("sql01.corp:1433"));
    place.write("real/a.connection", 0o600, &string("other.corp:1"));
    let link = place.folder.path().join("agent.toml");
    symlink("real/agent.toml", &link).unwrap();
    let added = place.run(&[
        "agent",
        "allow",
        "web.corp:443",
        "--config",
        "DIR/agent.toml",
    ]);
    assert_eq!(added.status.code(), Some(0), "{added:?}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(
        place.read("real/agent.toml"),
        "allow = [\"web.corp:443\"]\n[[connect]]\nstring_file = \"a.connection\"\nallow = [\"sql01.corp:1433\"]\n"
    );
}

#[test]
fn a_string_file_that_cannot_be_read_is_named_where_a_name_is_not_found() {
    let place = Place::empty();
    place.write(
        "agent.toml",
        0o644,
        "[[connect]]\nstring_file = \"gone.connection\"\n",
    );
    let refused = place.run(&[
        "agent",
        "allow",
        "db.corp:1",
        "--connection",
        "payroll-sql",
        "--config",
        "DIR/agent.toml",
    ]);
    let told = place.shown(&refused.stderr);
    assert_eq!(refused.status.code(), Some(3), "{told}");
    assert!(
        told.starts_with(
            "error: no connection string in DIR/agent.toml is of payroll-sql\n\
             error: DIR/gone.connection: is not there; "
        ),
        "{told}"
    );
    assert!(!told.contains("hint:"), "{told}");
}
