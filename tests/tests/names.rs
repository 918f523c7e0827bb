//! Names of endpoints as agents resolve them: a name server that is silent, several addresses of
//! which the first is, and names that nobody allowed.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup, binary, terminate};
use underpass_tests::name_server::{GOOD, NameServer, SILENT};
use underpass_tests::network::{Machine, no_own_hosts_file};
use underpass_tests::process::{Process, run as run_any, run_ok};
use underpass_tests::service::{Service, Talk};
use underpass_tests::{on_every_backend, turn};

const NAME: &str = "payroll-sql";
const OTHER: &str = "dead-name";

/// A flow whose name is answered, or whose first address is silent, is there within this time: the
/// name server's own silence takes 2 s.
const SOON: Duration = Duration::from_millis(1_500);

#[test]
fn a_name_that_is_never_answered_holds_up_no_other_hybrid_connection() {
    let Some(scene) =
        Scene::open("a_name_that_is_never_answered_holds_up_no_other_hybrid_connection")
    else {
        return;
    };
    let _turn = turn::shared();
    let service = Service::start(b'a').unwrap();
    let port = service.address.port();
    let (dead, good) = (format!("db.{SILENT}"), format!("db.{GOOD}"));
    let definitions = [
        (NAME, &*format!("{good}:{port}")),
        (OTHER, &*format!("{dead}:1433")),
    ];
    let installation = Installation::start(scene.setup(), &definitions).unwrap();
    let allow = [&*format!("127.0.0.0/8:{port}"), &*format!("{dead}:1433")];
    let _agent = installation.start_agent(&[NAME, OTHER], &allow).unwrap();
    let binding = installation.binding(OTHER).unwrap();
    let retries: Vec<_> = (0..16)
        .map(|_| TcpStream::connect(binding).unwrap())
        .collect();
    let binding = installation.binding(NAME).unwrap();
    for _ in 0..4 {
        let began = Instant::now();
        let mut talk = Talk::start(binding).unwrap();
        talk.exchange().unwrap();
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
    let ended = installation.wait_for_hyco(OTHER, "an ending", |hyco| hyco.last_ending.is_some());
    let ending = ended.unwrap().last_ending.unwrap();
    assert_eq!(ending, "agent: name_server_silent");
    assert_eq!(scene.server.questions(&dead), 1, "equal questions are one");
    assert!(scene.server.questions(&good) >= 1);
    drop(retries);
}

#[test]
fn a_name_that_no_entry_could_permit_is_not_even_asked_for() {
    let Some(scene) = Scene::open("a_name_that_no_entry_could_permit_is_not_even_asked_for") else {
        return;
    };
    let _turn = turn::shared();
    let service = Service::start(b'a').unwrap();
    let endpoint = service.address.to_string();
    let installation = Installation::start(scene.setup(), &[(NAME, &endpoint)]).unwrap();
    // The default list: the target of its connection string, which is an address.
    let _agent = installation.start_agent(&[NAME], &[]).unwrap();
    let binding = installation.binding(NAME).unwrap();
    Talk::start(binding).unwrap().finish().unwrap();
    let name = format!("is-this-here.{GOOD}");
    let named = format!("{name}:{}", service.address.port());
    installation.define(NAME, &named).unwrap();
    let refused = installation.wait_for_hyco(NAME, "a flow to be refused", |hyco| {
        let talk = Talk::start(binding);
        let reset = talk.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        reset && hyco.last_ending.is_some()
    });
    assert_eq!(
        refused.unwrap().last_ending.as_deref(),
        Some("agent: not_allowed")
    );
    assert_eq!(scene.server.questions(&name), 0);
}

on_every_backend! {
    fn an_address_that_is_silent_before_one_that_answers_costs_a_moment(io) {
        if let Some(why) = no_own_hosts_file() {
            return underpass_loadtest::note!("skipped: an_address_that_is_silent_before_one_that_answers_costs_a_moment: {why}");
        }
        let _turn = turn::shared();
        let service = Service::start(b'a').unwrap();
        let port = service.address.port();
        let Ok(_silent) = silent_at(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) else {
            return underpass_loadtest::note!("skipped: this machine has no IPv6");
        };
        let folder = TempDir::new().unwrap();
        let hosts = folder.path().join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n::1 db.corp\n127.0.0.1 db.corp\n").unwrap();
        let mut setup = Setup::new(io);
        (setup.hosts, setup.probe) = (Some(hosts), false);
        let endpoint = format!("db.corp:{port}");
        let installation = Installation::start(setup, &[(NAME, &endpoint)]).unwrap();
        let _agent = installation.start_agent(&[NAME], &[]).unwrap();
        let binding = installation.binding(NAME).unwrap();
        for _ in 0..3 {
            let began = Instant::now();
            let mut talk = Talk::start(binding).unwrap();
            talk.exchange().unwrap();
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        }
        assert_eq!(service.accepted(), 3);
    }
}

#[test]
fn source_ports_that_are_used_up_are_named_in_log_status_and_probe() {
    if let Some(why) = Machine::unavailable() {
        return underpass_loadtest::note!(
            "skipped: source_ports_that_are_used_up_are_named_in_log_status_and_probe: {why}"
        );
    }
    let _turn = turn::shared();
    let (machine, folder) = (Machine::new("ports", &[]).unwrap(), TempDir::new().unwrap());
    let shell = |script: &str| {
        let mut command = machine.command("bash");
        command
            .args(["-euc", script])
            .current_dir(folder.path())
            .env("UNDERPASS", binary().unwrap())
            .env("NO_COLOR", "1")
            .env_remove("UNDERPASS_DIR");
        command
    };
    // One source port for each address and port that is dialled. The endpoint is the REST API.
    let prepare = r#"
        echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range
        mkdir underpass && echo 'public_address = "127.0.0.1:4433"' > underpass/namespace.toml
        "$UNDERPASS" connection create payroll-sql --host 127.0.0.1 --port 8480 --bind 127.0.0.1:14330
        "$UNDERPASS" connection string payroll-sql --role on-premises --out agent.connection"#;
    run_ok(&mut shell(prepare), MOMENT).unwrap();
    let mut up = Process::start("up", &mut shell(r#"exec "$UNDERPASS" up"#)).unwrap();
    up.wait_for_line("Underpass is ready", MOMENT).unwrap();
    let hold = "exec 3<>/dev/tcp/127.0.0.1/8480; echo held >&2; read <&3; exec sleep 60";
    let mut holder = Process::start("holder", &mut shell(hold)).unwrap();
    holder.wait_for_line("held", MOMENT).unwrap();
    let run = r#"exec "$UNDERPASS" agent run --connection-string-file agent.connection"#;
    let mut agent = Process::start("agent", &mut shell(run)).unwrap();
    agent.wait_for_line("listener registered", MOMENT).unwrap();

    for (command, within) in [("probe", MOMENT), ("status", MOMENT)] {
        let script = format!(r#""$UNDERPASS" {command} payroll-sql"#);
        let ran = wait_for(command, within, || {
            let ran = run_any(&mut shell(&script), MOMENT).ok()?;
            ran.stdout.contains("no source port left").then_some(ran)
        });
        let ran = ran.unwrap();
        let shown = ran.stdout + &ran.stderr;
        assert!(shown.contains("ip_local_port_range"), "{command}: {shown}");
        assert!(!shown.contains("routes"), "{command}: {shown}");
    }
    let flow = "exec 3<>/dev/tcp/127.0.0.1/14330; read <&3 || true";
    run_any(&mut shell(flow), MOMENT).unwrap();
    agent.wait_for_line("no source port left", MOMENT).unwrap();
    assert_eq!(terminate(&mut up, MOMENT).unwrap(), 0);
}

/// A name server, and files that lead an agent to it.
struct Scene {
    server: NameServer,
    folder: TempDir,
}

impl Scene {
    /// `None`: it cannot be had here, which is printed.
    fn open(test: &str) -> Option<Self> {
        let server = NameServer::start();
        let why = match (&server, no_own_hosts_file()) {
            (Err(error), _) => Some(format!("{error:#}")),
            (Ok(_), why) => why,
        };
        if let Some(why) = why {
            underpass_loadtest::note!("skipped: {test}: {why}");
            return None;
        }
        let folder = TempDir::new().unwrap();
        let scene = Self {
            server: server.unwrap(),
            folder,
        };
        fs::write(scene.resolv_conf(), scene.server.resolv_conf()).unwrap();
        Some(scene)
    }

    fn resolv_conf(&self) -> PathBuf {
        self.folder.path().join("resolv.conf")
    }

    fn setup(&self) -> Setup {
        let mut setup = Setup::new(Io::Auto);
        setup.resolv_conf = Some(self.resolv_conf());
        // A probe asks for names, too.
        setup.probe = false;
        setup
    }
}

/// Listens and answers nobody any more: its queue of connections is full.
fn silent_at(address: SocketAddr) -> std::io::Result<(Socket, Vec<TcpStream>)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(0)?;
    let mut queued = Vec::new();
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            Ok(stream) => queued.push(stream),
            Err(error) if error.kind() == ErrorKind::TimedOut => return Ok((socket, queued)),
            Err(error) => return Err(error),
        }
    }
}
