//! Commands that change something: on the files, and through control where that runs. Both do the
//! same and say the same.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use underpass_tests::deadline::{MOMENT, wait_for};

use crate::Place;

const NAMESPACE_OF_FREE: &str = "edition = \"free\"\nhybrid_connections = 2\npublic_address = \"relay.example.com\"\n[control]\nlisten = \"127.0.0.1:0\"\n";

/// One command, how it ends, and the beginning of what it says.
type Step = (&'static [&'static str], i32, &'static str);

const STEPS: &[Step] = &[
    (
        &[
            "connection",
            "create",
            "payroll-sql",
            "--host",
            "sql01.corp",
            "--port",
            "1433",
            "--bind",
            "127.0.0.1:14330",
        ],
        0,
        "made payroll-sql → sql01.corp:1433 in DIR\n",
    ),
    (
        &[
            "connection",
            "create",
            "PAYROLL-sql",
            "--host",
            "a",
            "--port",
            "1",
        ],
        3,
        "error: PAYROLL-sql exists already in DIR\nhint: edit connections/payroll-sql.toml, or choose another name\n",
    ),
    (
        &[
            "connection",
            "create",
            "archive-sql",
            "--host",
            "a",
            "--port",
            "1",
            "--bind",
            "127.0.0.1:14330",
        ],
        3,
        "error: the binding 127.0.0.1:14330 is taken by payroll-sql\nhint: choose another address or port for `--bind`\n",
    ),
    (
        &[
            "connection",
            "create",
            "archive-sql",
            "--host",
            "a",
            "--port",
            "1",
            "--bind",
            "0.0.0.0:5000",
        ],
        2,
        "error: bind = \"0.0.0.0:5000\" is open to other machines; add `allow_from = [\"10.0.0.0/8\"]` with the networks that may connect, or bind to 127.0.0.1\nhint: `--allow-from CIDR` says who may connect\n",
    ),
    (
        &[
            "connection",
            "create",
            "archive-sql",
            "--host",
            "a",
            "--port",
            "1",
        ],
        0,
        "made archive-sql → a:1 in DIR\n",
    ),
    (
        &[
            "connection",
            "create",
            "third-sql",
            "--host",
            "a",
            "--port",
            "1",
        ],
        1,
        "error: the limit of 2 hybrid connections (edition free) is reached: there are 2\nhint: delete one, or set `edition` or `hybrid_connections` in DIR/namespace.toml\n",
    ),
    (
        &[
            "connection",
            "set",
            "payroll-sql",
            "--host",
            "sql02.corp",
            "--flows-max",
            "7",
            "--probe",
            "off",
        ],
        0,
        "changed payroll-sql → sql02.corp:1433\nhint: agents dial sql02.corp:1433, and senders take its name and port, only if",
    ),
    (
        &[
            "connection",
            "set",
            "payroll-sql",
            "--bind",
            "0.0.0.0:5000",
            "--allow-from",
            "10.0.0.0/8",
        ],
        0,
        "changed payroll-sql → sql02.corp:1433\n",
    ),
    (&["connection", "show", "payroll-sql"], 0, ""),
    (&["connection", "show", "payroll-sql", "--json"], 0, ""),
    (
        &["connection", "set", "payroll-sql", "--no-bind"],
        0,
        "changed payroll-sql → sql02.corp:1433\n",
    ),
    (&["connection", "list", "--json"], 0, ""),
    (
        &["connection", "set", "payrol-sql", "--port", "1"],
        3,
        "error: there is no hybrid connection payrol-sql in DIR/connections\nhint: did you mean `payroll-sql`? `underpass connection list` shows all\n",
    ),
    (
        &[
            "key",
            "regenerate",
            "payroll-sql",
            "--rule",
            "listen",
            "--key",
            "secondary",
        ],
        0,
        "regenerated the secondary listen key of payroll-sql; sessions that use the old key are closed within one second\nnext:\n  underpass connection string payroll-sql --role on-premises --secondary --dir DIR --out payroll-sql.connection\n",
    ),
    (
        &[
            "key",
            "regenerate",
            "nothing-here",
            "--rule",
            "send",
            "--key",
            "primary",
        ],
        3,
        "error: there is no hybrid connection nothing-here in DIR/connections\nhint: `underpass connection list` shows all; `--dir DIR` names another directory\n",
    ),
    (
        &[
            "connection",
            "string",
            "payroll-sql",
            "--role",
            "on-premises",
            "--out",
            "DIR/a.connection",
        ],
        0,
        "",
    ),
    (
        &["connection", "delete", "archive-sql"],
        0,
        "deleted archive-sql and its keys\n",
    ),
    (
        &["connection", "delete", "archive-sql"],
        3,
        "error: there is no hybrid connection archive-sql in DIR/connections\n",
    ),
    (
        &["connection", "show", "broken-one"],
        3,
        "error: connections/broken-one.toml:1: host is a number; write a text, like `host = \"sql01.corp.example\"`\nerror: connections/broken-one.toml:1: port is missing; write port = 1433\n",
    ),
    (
        &["connection", "set", "broken-one", "--port", "1"],
        3,
        "error: connections/broken-one.toml:1: host is a number",
    ),
];

#[test]
fn commands_do_and_say_the_same_through_control_and_on_the_files() {
    let on_files = run_all(false);
    let through_control = run_all(true);
    for ((step, on_files), through_control) in STEPS.iter().zip(&on_files).zip(&through_control) {
        assert_eq!(on_files, through_control, "{:?}", step.0);
    }
    assert_eq!(
        on_files.last(),
        through_control.last(),
        "the files that are left"
    );
}

#[test]
fn a_change_of_nothing_is_a_usage_error() {
    let place = Place::empty();
    let output = place.run(&["connection", "set", "payroll-sql", "--dir", "DIR"]);
    assert_eq!(output.status.code(), Some(2));
    let told = place.shown(&output.stderr);
    assert!(
        told.starts_with("error: the following required arguments were not provided:")
            && told.contains("--host"),
        "{told}"
    );
}

/// Whoever may open it must still show a key: it is a folder's mode that keeps others away, and
/// modes are changed.
#[test]
fn the_local_socket_wants_a_token_as_the_network_does() {
    let place = Place::empty();
    fs::write(
        place.folder.path().join("namespace.toml"),
        NAMESPACE_OF_FREE,
    )
    .unwrap();
    let _control = Control::start(&place);
    let mut socket = UnixStream::connect(place.folder.path().join("run/api.sock")).unwrap();
    socket.set_read_timeout(Some(MOMENT)).unwrap();
    socket
        .write_all(
            b"GET /v1/hybridconnections HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(answer.contains("there is no token"), "{answer}");
}

/// What each step printed, and in the end the definition.
fn run_all(with_control: bool) -> Vec<(String, String)> {
    let place = Place::empty();
    fs::write(
        place.folder.path().join("namespace.toml"),
        NAMESPACE_OF_FREE,
    )
    .unwrap();
    let _control = with_control.then(|| Control::start(&place));
    let mut printed = Vec::new();
    for (arguments, exit, told) in STEPS {
        if arguments.contains(&"broken-one") {
            fs::write(
                place.folder.path().join("connections/broken-one.toml"),
                "host = 1\n",
            )
            .unwrap();
        }
        let output = place.run(&[*arguments, &["--dir", "DIR"]].concat());
        let said = place.shown(&output.stderr);
        assert_eq!(output.status.code(), Some(*exit), "{arguments:?}: {said}");
        assert!(said.starts_with(told), "{arguments:?}: {said}");
        printed.push((place.shown(&output.stdout), said));
    }
    let audit = fs::read_to_string(place.folder.path().join("run/audit.log")).unwrap();
    let told = if with_control {
        "\"rule\":\"manage\",\"remote\":\"run/api.sock, uid "
    } else {
        "\"rule\":\"files\",\"remote\":\"command line, uid "
    };
    assert_eq!(
        (audit.lines().count(), audit.matches(told).count()),
        (2, 2),
        "{audit}"
    );
    let definition =
        fs::read_to_string(place.folder.path().join("connections/payroll-sql.toml")).unwrap();
    assert_eq!(
        definition,
        "host = \"sql02.corp\"\nport = 1433\nprobe = \"off\"\n\n[limits]\nflows_max = 7\n"
    );
    printed.push((definition, String::new()));
    printed
}

/// A control process, killed at the end.
struct Control(Child);

impl Control {
    fn start(place: &Place) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_underpass"))
            .args(["control", "--log", "error", "--dir"])
            .arg(place.folder.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let socket = place.folder.path().join("run/api.sock");
        wait_for("control", MOMENT, || UnixStream::connect(&socket).ok()).unwrap();
        Self(child)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
