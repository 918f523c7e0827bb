//! The built program, as a person meets it: what it prints, where, and how it ends when something
//! is wrong.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod allow;
mod cases;
mod desk;
mod reports;
mod secrets;
mod typed;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cases::{Case, cases};

#[test]
fn what_is_wrong_is_told_once_with_a_hint_and_an_exit_code() {
    for case in cases() {
        let place = Place::new(&case);
        let output = place.run(case.arguments);
        let told = place.shown(&output.stderr);
        assert_eq!(told, case.told, "{:?}", case.arguments);
        assert_eq!(
            output.status.code(),
            Some(case.exit),
            "{:?}: {told}",
            case.arguments
        );
        assert_eq!(place.shown(&output.stdout), "", "{:?}", case.arguments);
    }
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    let place = Place::empty();
    for wrong in [
        &["agent", "run"][..],
        &["agent", "run", "--connection-string", "x"],
        &["relay", "--io", "uring"],
        &["relay", "--mtu-max", "100"],
        &["relay", "--grace", "5d"],
        &[
            "agent",
            "run",
            "--config",
            "a",
            "--connection-string-file",
            "b",
        ],
        &["agent", "allow", "--config", "a"],
        &["sender", "run", "--config", "a", "--bind", "127.0.0.1:1"],
        &[
            "sender",
            "run",
            "--connection-string-file",
            "a",
            "--hosts-file",
            "b",
        ],
        &["agent", "allow", "sql01", "--config", "a"],
        &["nonsense"],
    ] {
        let output = place.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(
            place.shown(&output.stderr).starts_with("error: "),
            "{wrong:?}"
        );
    }
    for right in [&["--help"][..], &["--version"], &["agent", "run", "--help"]] {
        assert_eq!(place.run(right).status.code(), Some(0), "{right:?}");
    }
}

#[test]
fn create_and_string_work_without_control_and_strings_carry_what_they_should() {
    let place = Place::empty();
    fs::write(
        place.folder.path().join("namespace.toml"),
        "public_address = \"relay.example.com\"",
    )
    .unwrap();
    let created = place.run(&[
        "connection",
        "create",
        "payroll-sql",
        "--host",
        "sql01.corp",
        "--port",
        "1433",
        "--bind",
        "127.0.0.1:14330",
        "--dir",
        "DIR",
    ]);
    assert_eq!(
        created.status.code(),
        Some(0),
        "{}",
        place.shown(&created.stderr)
    );
    assert!(
        place
            .shown(&created.stderr)
            .starts_with("made payroll-sql → sql01.corp:1433 in DIR\n"),
        "{}",
        place.shown(&created.stderr)
    );
    let string = |arguments: &[&str]| {
        let output = place.run(
            &[
                &["connection", "string", "PAYROLL-SQL", "--dir", "DIR"],
                arguments,
            ]
            .concat(),
        );
        assert_eq!(
            (output.status.code(), place.shown(&output.stderr).as_str()),
            (Some(0), "")
        );
        let line = place.shown(&output.stdout);
        assert_eq!(line.lines().count(), 1);
        line.trim()
            .parse::<underpass_proto::ConnectionString>()
            .unwrap()
    };
    let listen = string(&["--role", "on-premises"]);
    let second = string(&["--role", "on-premises", "--secondary"]);
    let send = string(&["--role", "application"]);
    assert_eq!(
        (listen.relay().as_str(), listen.name.as_str()),
        ("relay.example.com:4433", "payroll-sql")
    );
    assert_eq!(
        listen.target.as_ref().unwrap().to_string(),
        "sql01.corp:1433"
    );
    assert_eq!((&send.target, listen.pins.len()), (&listen.target, 1));
    assert!(
        listen.pins == second.pins && listen.pins == send.pins,
        "one relay, one pin"
    );
    assert!(
        listen.key != second.key && listen.key != send.key && second.key != send.key,
        "each its own key"
    );
    assert!(
        listen == string(&["--role", "on-premises"]),
        "the same each time"
    );
}

#[test]
fn out_writes_a_file_that_only_its_owner_can_read() {
    let place = Place::empty();
    place.run(&[
        "connection",
        "create",
        "payroll-sql",
        "--host",
        "sql01.corp",
        "--port",
        "1433",
        "--dir",
        "DIR",
    ]);
    let output = place.run(&[
        "connection",
        "string",
        "payroll-sql",
        "--role",
        "on-premises",
        "--dir",
        "DIR",
        "--out",
        "DIR/a.connection",
    ]);
    assert_eq!(
        (output.status.code(), place.shown(&output.stdout).as_str()),
        (Some(0), "")
    );
    let path = place.folder.path().join("a.connection");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    fs::read_to_string(path)
        .unwrap()
        .trim()
        .parse::<underpass_proto::ConnectionString>()
        .unwrap();
}

#[test]
fn list_and_show_tell_the_same_as_json() {
    let place = Place::empty();
    place.run(&[
        "connection",
        "create",
        "payroll-sql",
        "--host",
        "sql01.corp",
        "--port",
        "1433",
        "--bind",
        "0.0.0.0:14330",
        "--allow-from",
        "10.0.0.0/8",
        "--dir",
        "DIR",
    ]);
    fs::write(
        place.folder.path().join("connections/broken-one.toml"),
        "host = 1",
    )
    .unwrap();
    let table = place.run(&["connection", "list", "--dir", "DIR"]);
    assert_eq!(
        place.shown(&table.stdout),
        "NAME         ENDPOINT         BINDING\nbroken-one   -                -\npayroll-sql  sql01.corp:1433  0.0.0.0:14330\n"
    );
    assert!(
        place
            .shown(&table.stderr)
            .starts_with("warning: connections/broken-one.toml:1: host is a number")
    );
    let list: serde_json::Value = serde_json::from_slice(
        &place
            .run(&["connection", "list", "--json", "--dir", "DIR"])
            .stdout,
    )
    .unwrap();
    let one: serde_json::Value = serde_json::from_slice(
        &place
            .run(&[
                "connection",
                "show",
                "payroll-sql",
                "--json",
                "--dir",
                "DIR",
            ])
            .stdout,
    )
    .unwrap();
    assert_eq!(list[1], one);
    assert_eq!(
        (one["endpoint"].as_str(), one["allow_from"][0].as_str()),
        (Some("sql01.corp:1433"), Some("10.0.0.0/8"))
    );
    assert_eq!(list[0]["faults"].as_array().unwrap().len(), 2);
}

#[test]
fn completions_and_pages_know_every_command() {
    let place = Place::empty();
    for shell in ["bash", "zsh", "fish"] {
        let output = place.run(&["completions", shell]);
        let script = place.shown(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(
            script.contains("connection-string-file") && script.contains("probe"),
            "{shell}"
        );
    }
    // What bash itself says of the script: it parses, and completes a command.
    let script = place.run(&["completions", "bash"]).stdout;
    fs::write(place.folder.path().join("completions"), script).unwrap();
    let bash = Command::new("bash")
        .args(["-c", ". ./completions && COMP_WORDS=(underpass age) COMP_CWORD=1 && _underpass underpass age underpass && echo \"${COMPREPLY[*]}\""])
        .current_dir(place.folder.path())
        .output()
        .unwrap();
    assert_eq!(place.shown(&bash.stdout), "agent\n", "{bash:?}");

    let output = place.run(&["man", "--out", "DIR/man1"]);
    assert_eq!(output.status.code(), Some(0));
    for page in ["underpass", "underpass-agent-run", "underpass-probe"] {
        let text = place.read(&format!("man1/{page}.1"));
        assert!(text.starts_with(".ie") || text.starts_with(".TH"), "{page}");
    }
    place.write("file", 0o644, "");
    let output = place.run(&["man", "--out", "DIR/file"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        place
            .shown(&output.stderr)
            .starts_with("error: cannot write the pages to DIR/file: "),
        "{output:?}"
    );
}

/// A fresh directory, and the program run on it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn new(case: &Case) -> Self {
        let place = Self::empty();
        for (path, mode, text) in &case.files {
            place.write(path, *mode, text);
            if *path == "tls/certificate.pem" {
                place.write("tls/key.pem", 0o644, "garbage");
            }
        }
        place
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let here = self.folder.path().to_str().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_underpass"));
        command
            .args(
                arguments
                    .iter()
                    .map(|argument| argument.replace("DIR", here)),
            )
            .env_remove("UNDERPASS_DIR")
            .env_remove("UNDERPASS_LOG")
            .env_remove("UNDERPASS_CONNECTION_STRING")
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdin(Stdio::null());
        command
    }

    fn write(&self, path: &str, mode: u32, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.folder.path().join(path)).unwrap()
    }

    fn shown(&self, output: &[u8]) -> String {
        String::from_utf8_lossy(output).replace(self.folder.path().to_str().unwrap(), "DIR")
    }
}
