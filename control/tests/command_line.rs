//! The built program, as a person meets it: what it prints, where, and how it ends when something is wrong.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";

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

/// One mistake. In arguments, files and texts `DIR` stands for a fresh directory.
struct Case {
    arguments: &'static [&'static str],
    /// Path, mode, text.
    files: Vec<(&'static str, u32, String)>,
    exit: i32,
    told: &'static str,
}

fn cases() -> Vec<Case> {
    let case = |arguments, exit, told| Case {
        arguments,
        files: Vec::new(),
        exit,
        told,
    };
    let with = |case: Case, path, mode, text: &str| Case {
        files: vec![(path, mode, text.to_owned())],
        ..case
    };
    let string = format!(
        "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey={KEY}"
    );
    let agent = &[
        "agent",
        "run",
        "--connection-string-file",
        "DIR/a.connection",
    ];
    let config = &["agent", "run", "--config", "DIR/agent.toml"];
    let control = &["control", "--dir", "DIR", "--log", "error"];
    vec![
        case(
            &[
                "agent",
                "run",
                "--connection-string-file",
                "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKey=c2Vj",
            ],
            2,
            "error: an argument holds a connection string; everybody on this machine could read its key, so it is not accepted\n\
             hint: put the string into a file that only you can read, and name that: `--connection-string-file FILE`; if others use this machine, replace the key\n",
        ),
        case(
            &["control", "--dir", "DIR", "--log", "=="],
            2,
            "error: --log cannot be \"==\": invalid filter directive\n\
             hint: write a level, like --log debug, or a module and a level, like --log underpass_dataplane=debug\n",
        ),
        case(
            &[
                "connection",
                "create",
                "open-door",
                "--host",
                "a",
                "--port",
                "1",
                "--bind",
                "0.0.0.0:5000",
                "--dir",
                "DIR",
            ],
            2,
            "error: bind = \"0.0.0.0:5000\" is open to other machines; add `allow_from = [\"10.0.0.0/8\"]` with the networks that may connect, or bind to 127.0.0.1\n\
             hint: `--allow-from CIDR` says who may connect\n",
        ),
        with(
            case(
                &[
                    "connection",
                    "create",
                    "PAYROLL-sql",
                    "--host",
                    "a",
                    "--port",
                    "1",
                    "--dir",
                    "DIR",
                ],
                3,
                "error: PAYROLL-sql exists already in DIR\nhint: edit connections/payroll-sql.toml, or choose another name\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "",
        ),
        with(
            case(
                &[
                    "connection",
                    "create",
                    "archive-sql",
                    "--host",
                    "a",
                    "--port",
                    "1",
                    "--bind",
                    "127.0.0.1:5000",
                    "--dir",
                    "DIR",
                ],
                3,
                "error: the binding 127.0.0.1:5000 is taken by payroll-sql\nhint: choose another address or port for `--bind`\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "host = \"a\"\nport = 1\nbind = \"127.0.0.1:5000\"",
        ),
        with(
            case(
                &[
                    "connection",
                    "string",
                    "payrol-sql",
                    "--role",
                    "on-premises",
                    "--dir",
                    "DIR",
                ],
                3,
                "error: there is no hybrid connection payrol-sql in DIR/connections\n\
                 hint: did you mean `payroll-sql`? `underpass connection list` shows all\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "host = \"a\"\nport = 1",
        ),
        with(
            case(
                &["connection", "show", "payroll-sql", "--dir", "DIR"],
                3,
                "error: connections/payroll-sql.toml:2: port must be a whole number from 1 to 65535; write, for example, `port = 1433`\n",
            ),
            "connections/payroll-sql.toml",
            0o644,
            "host = \"a\"\nport = 0",
        ),
        with(
            case(
                control,
                3,
                "error: namespace.toml:1: unknown field \"nmae\"; did you mean `name`?\n",
            ),
            "namespace.toml",
            0o644,
            "nmae = \"contoso\"",
        ),
        with(
            case(
                control,
                3,
                "error: tls/certificate.pem: cannot be used: there is no `BEGIN CERTIFICATE` in it; put the right certificate (PEM) there, or delete it, and one is made for tls/key.pem\n",
            ),
            "tls/certificate.pem",
            0o644,
            "garbage",
        ),
        case(
            &["status", "--dir", "DIR"],
            5,
            "error: cannot ask control at DIR/run/control.sock: No such file or directory (os error 2)\n\
             hint: start it with `underpass up --dir DIR` or `underpass control --dir DIR`\n",
        ),
        case(
            agent,
            3,
            "error: DIR/a.connection: is not there; make it on the relay's machine with `underpass connection string NAME --role on-premises --out FILE`\n",
        ),
        with(
            case(
                agent,
                3,
                "error: DIR/a.connection: others can read it (mode 644), and it holds a key; run `chmod 600 DIR/a.connection`\n",
            ),
            "a.connection",
            0o644,
            &string,
        ),
        with(
            case(
                agent,
                3,
                "error: DIR/a.connection: is not a connection string: Endpoint is not of the form hc://host/name or sb://host/; put there what `underpass connection string NAME --role on-premises` printed\n",
            ),
            "a.connection",
            0o600,
            &string.replace("hc://", "https://"),
        ),
        with(
            case(
                agent,
                3,
                "error: DIR/a.connection: is an application's string (defaultSender); an agent needs the one that `underpass connection string payroll-sql --role on-premises` prints\n",
            ),
            "a.connection",
            0o600,
            &string.replace("defaultListener", "defaultSender"),
        ),
        with(
            case(
                agent,
                3,
                "error: this agent may dial nothing: the connection string names no Target, and there is no allow-list\n\
                 hint: write `allow = [\"host:port\"]` into agent.toml and start with `--config agent.toml`, or take a string with Target\n",
            ),
            "a.connection",
            0o600,
            &string,
        ),
        with(
            case(
                config,
                3,
                "error: DIR/agent.toml:1: allow cannot be \"sql01\": a port is missing: write host:port, host:low-high or host:*; write, for example, `allow = [\"sql01.corp.example:1433\"]`\n\
                 error: DIR/agent.toml:3: unknown field \"wieght\" in [[connect]]; did you mean `weight`?\n",
            ),
            "agent.toml",
            0o644,
            "allow = [\"sql01\"]\n[[connect]]\nwieght = 5\nstring_file = \"a.connection\"\n",
        ),
    ]
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    let place = Place::empty();
    for wrong in [
        &["agent", "run"][..],
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
    assert_eq!((send.target.as_ref(), listen.pins.len()), (None, 1));
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
            let path = place.folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
            if path.ends_with("tls/certificate.pem") {
                fs::write(path.with_file_name("key.pem"), "garbage").unwrap();
            }
        }
        place
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let here = self.folder.path().to_str().unwrap();
        Command::new(env!("CARGO_BIN_EXE_underpass"))
            .args(
                arguments
                    .iter()
                    .map(|argument| argument.replace("DIR", here)),
            )
            .env_remove("UNDERPASS_DIR")
            .env_remove("UNDERPASS_LOG")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn shown(&self, output: &[u8]) -> String {
        String::from_utf8_lossy(output).replace(self.folder.path().to_str().unwrap(), "DIR")
    }
}
