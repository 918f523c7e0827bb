//! What is wrong outside: endpoints that fail, files that are damaged, ports that are taken, keys
//! and certificates that do not fit. Each is told with its place and the next step, in words that
//! are compared whole; nothing is lost and nothing panics.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, pause, wait_for};
use underpass_tests::installation::{Installation, Io, Setup, underpass, write_secret};
use underpass_tests::process::{Process, Ran, free_tcp_address, run};
use underpass_tests::service::{Service, Steady, Talk};
use underpass_tests::{on_every_backend, turn};

const NAME: &str = "payroll-sql";

/// The agent gives an endpoint up after 10 s; twice that where the machine is busy.
const DIAL_GIVEN_UP: Duration = Duration::from_secs(20);

/// How each hint for an address that nobody answers at goes on.
const UNREACHABLE_HINT: &str = "check the address in the connection string, that the relay runs, and that UDP to its port is let through on the way";

on_every_backend! {
    fn each_failure_of_an_endpoint_resets_the_application_and_is_named(io) {
        let _turn = turn::shared();
        let full = Full::start();
        let closed = free_tcp_address();
        let cases = [
            ("to-a-closed-port", closed.to_string(), "endpoint: refused"),
            ("to-a-full-backlog", full.address.to_string(), "endpoint: timed_out"),
            ("to-an-unknown-name", "name.invalid:80".to_owned(), "endpoint: name_not_found"),
            ("to-what-is-not-allowed", "127.0.0.2:80".to_owned(), "agent: not_allowed"),
        ];
        let definitions = cases.each_ref().map(|(name, endpoint, _)| (*name, endpoint.as_str()));
        let installation = Installation::start(Setup::new(io), &definitions).unwrap();
        let names = cases.each_ref().map(|(name, _, _)| *name);
        let allow = [closed.to_string(), full.address.to_string(), "name.invalid:80".into()];
        let _agent = installation.start_agent(&names, &allow.each_ref().map(String::as_str)).unwrap();
        for (name, _, words) in cases {
            let binding = installation.binding(name).unwrap();
            let error = say_early(binding).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}");
            let ending = wait_for("the ending to be told", MOMENT, || installation.hyco(name).unwrap()?.last_ending).unwrap();
            assert_eq!(ending, words, "{name}");
        }
    }

    fn an_endpoint_that_says_one_byte_at_a_time_is_heard_byte_by_byte(io) {
        let _turn = turn::shared();
        let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
        let setup = Setup { probe: false, ..Setup::new(io) };
        let scene = Scene::open_as(setup, endpoint.local_addr().unwrap());
        let mut application = TcpStream::connect(scene.binding).unwrap();
        application.set_read_timeout(Some(MOMENT)).unwrap();
        let (mut slow, _) = endpoint.accept().unwrap();
        for byte in b"slow" {
            pause(Duration::from_millis(200));
            slow.write_all(&[*byte]).unwrap();
            let mut heard = [0; 8];
            assert_eq!(application.read(&mut heard).unwrap(), 1);
            assert_eq!(heard[0], *byte);
        }
    }

    fn damaged_files_change_nothing_until_they_are_mended(io) {
        let _turn = turn::shared();
        let service = Service::start(b'a').unwrap();
        let scene = Scene::open(io, service.address);
        let steady = Steady::start(scene.binding).unwrap();
        let directory = scene.installation.directory();
        for (file, place) in [("connections/payroll-sql.toml", "connections/payroll-sql.toml"), ("keys/payroll-sql.toml", "keys/payroll-sql.toml")] {
            let path = directory.join(file);
            let whole = fs::read(&path).unwrap();
            for (what, text) in damages(&whole) {
                write_over(&path, &text);
                let fault = wait_for(&format!("a fault of {file}, {what}"), MOMENT, || {
                    let faults = scene.installation.status().unwrap().faults;
                    faults.into_iter().find(|fault| fault.what.starts_with(place))
                })
                .unwrap();
                assert_eq!(fault.hyco.map(|name| name.to_string()).as_deref(), Some(NAME), "{what}");
                assert!(fault.what.len() < 1_000, "{what}: {} bytes", fault.what.len());
                assert_eq!(Talk::start(scene.binding).unwrap().letter, b'a', "{what}");
                // Each from the whole file, so that each is told anew.
                write_over(&path, &whole);
                wait_for("the fault to go", MOMENT, || scene.installation.status().unwrap().faults.is_empty().then_some(())).unwrap();
            }
        }
        steady.stop().unwrap();
        scene.assert_no_panic();
    }

    fn no_new_listener_stands_on_a_damaged_key_file_and_those_that_stand_go_on(io) {
        let _turn = turn::shared();
        let service = Service::start(b'a').unwrap();
        let scene = Scene::open(io, service.address);
        let keys = scene.installation.directory().join("keys/payroll-sql.toml");
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o644)).unwrap();
        let told = scene.wait_for_fault();
        let path = keys.display();
        assert_eq!(
            told,
            format!("keys/payroll-sql.toml: others can read it (mode 644), so it is not used; run `chmod 600 {path}`, and replace its keys if somebody may have read them")
        );
        assert_eq!(Talk::start(scene.binding).unwrap().letter, b'a');
        // The string is as it was; the relay takes nobody on it.
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
        let second = scene.installation.start_agent(&[NAME], &[]).unwrap();
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o644)).unwrap();
        scene.wait_for_fault();
        second.process().as_mut().unwrap().kill().unwrap();
        second.start().unwrap();
        let line = |text: &str| second.process().as_mut().unwrap().wait_for_line(text, MOMENT).unwrap();
        assert!(line("registration refused").contains("not authorised"));
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).unwrap();
        scene.assert_no_panic();
    }

    fn a_binding_that_is_taken_is_told_and_opens_when_it_is_free(io) {
        let _turn = turn::shared();
        let service = Service::start(b'a').unwrap();
        let scene = Scene::open(io, service.address);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let text = format!("host = \"127.0.0.1\"\nport = {}\nbind = \"{address}\"\n", service.address.port());
        scene.installation.write_definition("second-one", &text).unwrap();
        let told = wait_for("the fault", MOMENT, || {
            let report = scene.installation.status().unwrap().relay?;
            report.faults.into_iter().next()
        })
        .unwrap();
        assert_eq!(
            told.what,
            format!("cannot open bind = \"{address}\": Address already in use (os error 98); write another address, or end what holds this one")
        );
        // The others go on, and this one comes when it can.
        assert_eq!(Talk::start(scene.binding).unwrap().letter, b'a');
        drop(taken);
        wait_for("the binding", MOMENT, || scene.installation.hyco("second-one").unwrap()?.bound).unwrap();
        let report = scene.installation.status().unwrap().relay.unwrap();
        assert_eq!(report.faults, []);
    }
}

#[test]
fn a_relay_whose_port_is_taken_says_who_can_tell() {
    let _turn = turn::shared();
    for io in Io::ALL {
        let installation = Installation::new(Setup::new(io)).unwrap();
        let _taken = UdpSocket::bind(installation.listen()).unwrap();
        installation.start_control().unwrap();
        let relay = run(
            command(&["relay", "--io", io.name(), "--dir"]).arg(installation.directory()),
            MOMENT,
        )
        .unwrap();
        let (listen, port) = (installation.listen(), installation.listen().port());
        assert_told(
            &relay,
            3,
            &format!("cannot listen on {listen} (udp): Address already in use (os error 98)"),
            &format!(
                "`ss -ulpn 'sport = :{port}'` shows who has the port; another is chosen by `listen` in namespace.toml"
            ),
        );
    }
}

#[test]
fn a_second_process_on_one_directory_is_refused() {
    let _turn = turn::shared();
    let installation =
        Installation::start(Setup::new(Io::Poll), &[(NAME, "db01.corp:1433")]).unwrap();
    let directory = installation.directory();
    let dir = directory.display();
    let second = |role| run(command(&[role, "--dir"]).arg(&directory), MOMENT).unwrap();
    assert_told(
        &second("relay"),
        3,
        &format!("another `underpass relay` runs on {dir}"),
        &format!("one per directory; `underpass status --dir {dir}` shows what it does"),
    );
    assert_told(
        &second("control"),
        3,
        &format!("another control process runs on {dir}"),
        "one control process per directory; `underpass status` asks the one that runs",
    );
}

#[test]
fn an_agent_with_a_wrong_key_or_name_ends_with_4() {
    let _turn = turn::shared();
    let installation =
        Installation::start(Setup::new(Io::Poll), &[(NAME, "db01.corp:1433")]).unwrap();
    let string = installation.connection_string(NAME).unwrap();
    let wrong_key = with_field(
        &string,
        "SharedAccessKey",
        "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    );
    let wrong_name = string.replace(NAME, "payroll-sq2");
    for (string, name) in [(wrong_key, NAME), (wrong_name, "payroll-sq2")] {
        for check in [true, false] {
            assert_told(
                &agent(&string, check),
                4,
                &format!(
                    "the relay refused to register {name}: unknown name, or a key that is not one of its listen keys"
                ),
                "on the relay's machine, `underpass connection string NAME --role on-premises` prints the right string; the relay's log says which part is wrong",
            );
        }
    }
    // The peer is told less than the operator.
    let log = installation.relay().as_ref().unwrap().stderr();
    for words in ["wrong key", "unknown name"] {
        assert!(
            log.lines()
                .any(|line| line.contains("registration refused") && line.contains(words)),
            "{words}: {log}"
        );
    }
}

#[test]
fn a_relay_with_another_certificate_is_not_talked_to() {
    let _turn = turn::shared();
    let installation =
        Installation::start(Setup::new(Io::Poll), &[(NAME, "db01.corp:1433")]).unwrap();
    let string = installation.connection_string(NAME).unwrap();
    let wrong_pin = with_field(&string, "Pin", &format!("sha256:{}", "0".repeat(64)));
    let ran = agent(&wrong_pin, true);
    assert_eq!(ran.status.code(), Some(5), "{}", ran.stderr);
    let error = format!(
        "error: cannot reach {} (udp): the relay's certificate is not the pinned or trusted one",
        installation.listen()
    );
    assert!(ran.stderr.contains(&error), "{}", ran.stderr);
    assert!(
        installation
            .hyco(NAME)
            .unwrap()
            .is_none_or(|hyco| hyco.listeners == 0)
    );
}

#[test]
fn a_check_says_in_seconds_that_nobody_answers_or_that_there_is_no_such_name() {
    let _turn = turn::shared();
    let installation = Installation::new(Setup::new(Io::Poll)).unwrap();
    installation.define(NAME, "db01.corp:1433").unwrap();
    let string = installation.connection_string(NAME).unwrap();
    let listen = installation.listen();
    assert_told(
        &agent(&string, true),
        5,
        &format!("cannot reach {listen} (udp): no answer in 5 s"),
        UNREACHABLE_HINT,
    );
    let nowhere = string.replace(&listen.to_string(), "relay.invalid:4433");
    assert_told(
        &agent(&nowhere, true),
        5,
        "cannot reach relay.invalid:4433 (udp): its name is not found",
        UNREACHABLE_HINT,
    );
}

#[test]
fn a_check_of_what_is_right_says_where_it_leads_and_takes_no_flow() {
    let _turn = turn::shared();
    let service = Service::start(b'a').unwrap();
    let scene = Scene::open(Io::Poll, service.address);
    let string = scene.installation.connection_string(NAME).unwrap();
    for _ in 0..3 {
        let ran = agent(&string, true);
        assert_eq!(ran.status.code(), Some(0), "{}", ran.stderr);
        let row = ran.stdout.lines().nth(1).unwrap_or_default();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            words[..2],
            [NAME, service.address.to_string().as_str()],
            "{}",
            ran.stdout
        );
        assert_eq!(Talk::start(scene.binding).unwrap().letter, b'a');
    }
}

#[test]
fn damaged_certificates_keys_and_agent_files_are_told_with_their_place() {
    let _turn = turn::shared();
    let installation = Installation::new(Setup::new(Io::Poll)).unwrap();
    installation.define(NAME, "db01.corp:1433").unwrap();
    let string = installation.connection_string(NAME).unwrap();
    let directory = installation.directory();
    for file in ["tls/certificate.pem", "tls/key.pem", "namespace.toml"] {
        let path = directory.join(file);
        let whole = fs::read(&path).unwrap();
        for (what, text) in damages(&whole) {
            write_over(&path, &text);
            let ran = run(command(&["up", "--dir"]).arg(&directory), MOMENT).unwrap();
            assert_refused_at(&ran, file, what);
        }
        write_over(&path, &whole);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    write_secret(&folder.path().join("a.connection"), &string).unwrap();
    let whole = "[[connect]]\nstring_file = \"a.connection\"\n";
    for (what, text) in damages(whole.as_bytes()) {
        write_over(&path, &text);
        let ran = run(
            command(&["agent", "run", "--check", "--config"]).arg(&path),
            MOMENT,
        )
        .unwrap();
        assert_refused_at(&ran, &path.display().to_string(), what);
    }
    // Mended, everything is as it was.
    assert_eq!(installation.connection_string(NAME).unwrap(), string);
}

/// A hybrid connection with an agent.
struct Scene {
    installation: Installation,
    agent: Agent,
    binding: SocketAddr,
}

impl Scene {
    fn open(io: Io, endpoint: SocketAddr) -> Self {
        Self::open_as(Setup::new(io), endpoint)
    }

    fn open_as(setup: Setup, endpoint: SocketAddr) -> Self {
        let installation = Installation::start(setup, &[(NAME, &endpoint.to_string())]).unwrap();
        let agent = installation.start_agent(&[NAME], &[]).unwrap();
        let binding = installation.binding(NAME).unwrap();
        Self {
            installation,
            agent,
            binding,
        }
    }

    fn wait_for_fault(&self) -> String {
        wait_for("a fault", MOMENT, || {
            let faults = self.installation.status().unwrap().faults;
            faults.into_iter().next()
        })
        .unwrap()
        .what
    }

    fn assert_no_panic(&self) {
        for process in [
            self.installation.control(),
            self.installation.relay(),
            self.agent.process(),
        ] {
            let log = process.as_ref().map(Process::stderr).unwrap_or_default();
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

/// A listener that drops every SYN: its backlog is full and nobody accepts.
struct Full {
    address: SocketAddr,
    _listener: Socket,
    _waiting: Vec<TcpStream>,
}

impl Full {
    fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let short = Duration::from_millis(300);
        let waiting: Vec<_> =
            std::iter::from_fn(|| TcpStream::connect_timeout(&address, short).ok())
                .take(64)
                .collect();
        assert!(waiting.len() < 64, "the backlog never fills");
        Self {
            address,
            _listener: listener,
            _waiting: waiting,
        }
    }
}

/// Connects, says something at once, and waits for an answer.
fn say_early(binding: SocketAddr) -> std::io::Result<()> {
    let mut application = TcpStream::connect(binding)?;
    application.write_all(b"early")?;
    application.set_read_timeout(Some(DIAL_GIVEN_UP))?;
    application.read_exact(&mut [0])
}

/// What may become of a file: each is certainly wrong, whatever the file is.
fn damages(whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    // Behind an opening quote, or within a PEM's body: elsewhere what is left might be right.
    let cut = whole
        .iter()
        .position(|byte| *byte == b'"')
        .map_or(whole.len() / 2, |quote| quote + 1);
    vec![
        ("cut short", whole[..cut].to_vec()),
        (
            "not UTF-8",
            [whole[..whole.len() / 2].to_vec(), vec![0xff, 0xfe, 0x80]].concat(),
        ),
        ("zeroes, as after a crash", vec![0; whole.len()]),
        ("another file", b"\x7fELF\x02\x01\x01".repeat(40)),
        ("one endless line", b"a".repeat(200_000)),
        (
            "nested without end",
            [b"a = ".as_slice(), &b"[".repeat(100_000)].concat(),
        ),
    ]
}

/// As an editor does that knows no rename; the mode stays.
fn write_over(path: &Path, text: &[u8]) {
    fs::write(path, text).unwrap();
}

fn with_field(string: &str, name: &str, value: &str) -> String {
    let fields = string
        .trim()
        .split(';')
        .map(|field| match field.split_once('=') {
            Some((key, _)) if key == name => format!("{name}={value}"),
            _ => field.to_owned(),
        });
    fields.collect::<Vec<_>>().join(";")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = underpass().unwrap();
    command.env("UNDERPASS_LOG", "warn").args(arguments);
    command
}

/// Runs an agent with this connection string to its end.
fn agent(string: &str, check: bool) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.connection");
    write_secret(&file, string).unwrap();
    let mut command = command(&["agent", "run", "--connection-string-file"]);
    command.arg(&file);
    if check {
        command.arg("--check");
    }
    run(&mut command, MOMENT).unwrap()
}

/// The error and the hint are the last that is said, each once, on stderr.
fn assert_told(ran: &Ran, exit: i32, error: &str, hint: &str) {
    assert_eq!(ran.status.code(), Some(exit), "{}", ran.stderr);
    let end = format!("error: {error}\nhint: {hint}\n");
    assert!(
        ran.stderr.ends_with(&end),
        "{end}\nis not the end of\n{}",
        ran.stderr
    );
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
}

/// A fault of configuration at this file, in a few readable lines.
fn assert_refused_at(ran: &Ran, file: &str, what: &str) {
    assert_eq!(ran.status.code(), Some(3), "{file}, {what}: {}", ran.stderr);
    let first = ran.stderr.lines().next().unwrap_or_default();
    assert!(
        first.starts_with(&format!("error: {file}:")),
        "{file}, {what}: {}",
        ran.stderr
    );
    assert!(
        ran.stderr.len() < 4_000,
        "{file}, {what}: {} bytes",
        ran.stderr.len()
    );
    assert!(
        !ran.stderr.contains("panicked"),
        "{file}, {what}: {}",
        ran.stderr
    );
}
