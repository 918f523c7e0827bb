//! What the word of one party may change on the machine of another: a relay names endpoints, and
//! agents and senders go by their own lists.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use underpass_proto::Rule;
use underpass_proto::snapshot::{HealthState, HycoReport};
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{
    Installation, Io, Setup, run_underpass, underpass, write_secret,
};
use underpass_tests::process::{Process, free_tcp_address};
use underpass_tests::service::{Service, Talk};
use underpass_tests::turn;

const SQL: &str = "payroll-sql";
const WEB: &str = "payroll-web";

const HOSTS: &str = "127.0.0.1 localhost\n";

#[test]
fn a_target_belongs_to_its_relay_and_hybrid_connection_alone() {
    let _turn = turn::shared();
    let (sql, web, archive) = (service(), service(), service());
    let own = Installation::start(
        Setup::new(Io::Poll),
        &[(SQL, &endpoint(&sql)), (WEB, &endpoint(&web))],
    )
    .unwrap();
    let other = Installation::start(Setup::new(Io::Poll), &[(SQL, &endpoint(&archive))]).unwrap();
    let folder = TempDir::new().unwrap();
    let config = agent_of(folder.path(), &[(&own, SQL), (&own, WEB), (&other, SQL)]);
    let mut command = underpass().unwrap();
    command.args(["agent", "run", "--io", "poll", "--config"]);
    let _agent = Process::start("agent", command.arg(&config)).unwrap();
    for (relay, name) in [(&own, SQL), (&own, WEB), (&other, SQL)] {
        let is_ready =
            |hyco: &HycoReport| hyco.listeners > 0 && hyco.health.state == HealthState::Ready;
        relay.wait_for_hyco(name, "ready", is_ready).unwrap();
    }

    // Each names a target of the other: another relay's, and another hybrid connection's.
    let before = sql.accepted();
    other.define(SQL, &endpoint(&sql)).unwrap();
    own.define(WEB, &endpoint(&sql)).unwrap();
    for (relay, name) in [(&other, SQL), (&own, WEB)] {
        let refuses = |hyco: &HycoReport| {
            let why = hyco.health.why.as_deref().unwrap_or_default();
            why.contains("endpoint is not on the agent's allow-list")
        };
        relay
            .wait_for_hyco(name, "refused by the agent", refuses)
            .unwrap();
        assert!(Talk::start(relay.binding(name).unwrap()).is_err());
    }
    assert_eq!(sql.accepted(), before);
    Talk::start(own.binding(SQL).unwrap())
        .unwrap()
        .finish()
        .unwrap();
}

#[test]
fn a_hostile_relay_gets_no_name_and_no_port_of_a_senders_machine() {
    let _turn = turn::shared();
    let scene = Scene::open();
    let port = scene.service.address.port();
    let lie = format!("security.debian.org:{port}");
    scene.installation.define(SQL, &lie).unwrap();
    scene.wait_until_defined(&lie);
    let mut sender = scene.start_sender(&[]);
    let told = format!(
        "{SQL}: the relay names {lie} as the endpoint, and neither the string's target nor the allow-list names it; it is not bound"
    );
    let line = sender.wait_for_line(&told, MOMENT).unwrap();
    assert!(
        line.contains("--role application") && line.ends_with(&format!("`--allow {lie}`")),
        "{line}"
    );
    let checked = scene.check(&[]);
    assert_eq!(checked.0, Some(3), "{}", checked.1);
    assert!(checked.1.contains(&told), "{}", checked.1);
    assert_eq!(fs::read_to_string(scene.hosts()).unwrap(), HOSTS);
    assert_eq!(scene.check(&["--allow", &lie]).0, Some(0));

    // The operator's word: a new string names the new target.
    scene.write_string(|string| string);
    let entry = wait_for("the hosts entry", MOMENT, || {
        let text = fs::read_to_string(scene.hosts()).ok()?;
        let line = text
            .lines()
            .find(|line| line.contains("security.debian.org"))?;
        line.split_whitespace().next()?.parse::<Ipv4Addr>().ok()
    })
    .unwrap();
    assert!(TcpListener::bind(SocketAddr::from((entry, port))).is_err());
}

#[test]
fn a_string_without_a_target_waits_and_takes_what_the_command_line_allows() {
    let _turn = turn::shared();
    let scene = Scene::open();
    scene.write_string(|string| string.split(";Target=").next().unwrap().to_owned());
    let endpoint = endpoint(&scene.service);
    let mut waits = scene.start_sender(&[]);
    let told = format!("the relay names {endpoint} as the endpoint");
    waits.wait_for_line(&told, MOMENT).unwrap();
    drop(waits);
    let mut sender = scene.start_sender(&["--allow", &endpoint]);
    let told = format!("applications reach {endpoint} at ");
    let line = sender.wait_for_line(&told, MOMENT).unwrap();
    let place: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
    Talk::start(place).unwrap().finish().unwrap();
}

#[test]
fn a_loop_is_broken_after_a_handful_of_flows_and_a_chain_goes_on() {
    let _turn = turn::shared();
    let service = service();
    let all = [
        "own-binding",
        "ring-one",
        "ring-two",
        "chain-one",
        "chain-two",
        "by-a-sender",
    ];
    let nowhere = all.map(|name| (name, "127.0.0.1:1"));
    let installation = Installation::start(Setup::new(Io::Poll), &nowhere).unwrap();
    let at = |name| installation.wanted_binding(name).unwrap().to_string();
    let at_sender = free_tcp_address().to_string();
    for (name, leads_to) in [
        ("own-binding", at("own-binding")),
        ("ring-one", at("ring-two")),
        ("ring-two", at("ring-one")),
        ("chain-one", at("chain-two")),
        ("chain-two", endpoint(&service)),
        ("by-a-sender", at_sender.clone()),
    ] {
        installation.define(name, &leads_to).unwrap();
    }
    let string = installation
        .string_of("by-a-sender", Rule::Send, &[])
        .unwrap();
    let folder = TempDir::new().unwrap();
    let string_file = folder.path().join("s.connection");
    write_secret(&string_file, &string).unwrap();
    let mut command = underpass().unwrap();
    command.args(["sender", "run", "--io", "poll", "--bind", &at_sender]);
    command.arg("--connection-string-file").arg(&string_file);
    let mut sender = Process::start("sender", &mut command).unwrap();
    sender.wait_for_line("sender registered", MOMENT).unwrap();
    let allow = ["127.0.0.1:*", "localhost:*"];
    let _agent = installation.start_agent(&all, &allow).unwrap();

    let loops = ["own-binding", "ring-one", "ring-two", "by-a-sender"];
    for name in loops {
        let is_found = |hyco: &HycoReport| {
            let why = hyco.health.why.as_deref().unwrap_or_default();
            hyco.health.state == HealthState::Degraded
                && why.contains("endpoint leads back to its own binding")
        };
        let what = "found to be a loop";
        installation.wait_for_hyco(name, what, is_found).unwrap();
    }
    let binding = |name| installation.binding(name).unwrap();
    let mut talk = Talk::start(binding("own-binding"));
    assert!(talk.as_mut().map(Talk::exchange).is_err());
    Talk::start(binding("chain-one")).unwrap().finish().unwrap();
    for name in loops {
        let is_over = |hyco: &HycoReport| hyco.flows_live == 0;
        let hyco = installation.wait_for_hyco(name, "no flow left", is_over);
        let total = hyco.unwrap().flows_total;
        assert!(total < 40, "{name}: {total} flows");
    }
}

/// A service, an agent beside it, and what a sender needs.
struct Scene {
    service: Service,
    installation: Installation,
    folder: TempDir,
    _agent: underpass_tests::agent::Agent,
}

impl Scene {
    fn open() -> Self {
        let service = service();
        let installation =
            Installation::start(Setup::new(Io::Poll), &[(SQL, &endpoint(&service))]).unwrap();
        let scene = Self {
            _agent: installation.start_agent(&[SQL], &[]).unwrap(),
            service,
            installation,
            folder: TempDir::new().unwrap(),
        };
        fs::write(scene.hosts(), HOSTS).unwrap();
        scene.write_string(|string| string);
        scene
    }

    fn hosts(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    fn string_file(&self) -> PathBuf {
        self.folder.path().join("sender.connection")
    }

    fn write_string(&self, change: impl Fn(String) -> String) {
        let string = self.installation.string_of(SQL, Rule::Send, &[]).unwrap();
        write_secret(&self.string_file(), &change(string)).unwrap();
    }

    fn wait_until_defined(&self, endpoint: &str) {
        let is_so = |hyco: &HycoReport| {
            let why = hyco.health.why.as_deref().unwrap_or_default();
            why.contains(endpoint)
        };
        let installation = &self.installation;
        installation.wait_for_hyco(SQL, endpoint, is_so).unwrap();
    }

    fn start_sender(&self, options: &[&str]) -> Process {
        let mut command = underpass().unwrap();
        command
            .args(["sender", "run", "--io", "poll", "--connection-string-file"])
            .arg(self.string_file())
            .args(["--hosts", "write", "--hosts-file"])
            .arg(self.hosts())
            .args(options);
        Process::start("sender", &mut command).unwrap()
    }

    /// The exit code and stderr of `--check`.
    fn check(&self, options: &[&str]) -> (Option<i32>, String) {
        let string_file = self.string_file().display().to_string();
        let run = [
            "sender",
            "run",
            "--check",
            "--connection-string-file",
            &string_file,
        ];
        let ran = run_underpass(&[&run[..], options].concat()).unwrap();
        (ran.status.code(), ran.stderr)
    }
}

fn service() -> Service {
    Service::start(b's').unwrap()
}

fn endpoint(service: &Service) -> String {
    format!("localhost:{}", service.address.port())
}

/// An `agent.toml` of hybrid connections of several relays.
fn agent_of(folder: &Path, strings: &[(&Installation, &str)]) -> PathBuf {
    let mut config = String::new();
    for (number, (installation, name)) in strings.iter().enumerate() {
        let string = installation.connection_string(name).unwrap();
        write_secret(&folder.join(format!("{number}.connection")), &string).unwrap();
        config += &format!("[[connect]]\nstring_file = \"{number}.connection\"\n");
    }
    let path = folder.join("agent.toml");
    fs::write(&path, config).unwrap();
    path
}
