//! `underpass sender run` and the files of agents and senders, in a whole installation: addresses,
//! hosts entries, keys and allow-lists that change while flows live.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use tempfile::TempDir;
use underpass_proto::Rule;
use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{
    Installation, Io, Setup, run_underpass, terminate, underpass, write_secret,
};
use underpass_tests::network::no_own_hosts_file;
use underpass_tests::process::{Process, run_ok};
use underpass_tests::service::{Service, Talk};
use underpass_tests::turn;

const NAME: &str = "payroll-sql";

/// A name that leads to this machine by the agent's hosts file alone.
const HOST: &str = "sql01.corp";

const HOSTS: &str = "127.0.0.1 localhost sql01.corp\n# the last line has no end";

#[test]
fn applications_keep_host_name_and_port() {
    if let Some(why) = no_own_hosts_file() {
        underpass_loadtest::note!("skipped: applications_keep_host_name_and_port: {why}");
        return;
    }
    let _turn = turn::shared();
    let scene = Scene::open(HOST);
    let mut sender = scene.start_sender(&["--hosts", "write"]);
    let (name, ip) = scene.wait_for_entry(&sender);
    assert_eq!(name, HOST);
    assert!(ip.is_loopback() && ip != Ipv4Addr::LOCALHOST);
    // An entry of others counts first.
    let told = "sql01.corp leads to 127.0.0.1 by line 1 of";
    sender.wait_for_line(told, MOMENT).unwrap();
    let place = SocketAddr::from((ip, scene.service.address.port()));
    Talk::start(place).unwrap().finish().unwrap();

    assert_eq!(terminate(&mut sender, MOMENT).unwrap(), 0);
    assert_eq!(fs::read_to_string(scene.hosts()).unwrap(), HOSTS);
}

#[test]
fn a_key_is_rotated_under_live_flows_and_localhost_stays_out_of_the_hosts_file() {
    let _turn = turn::shared();
    let scene = Scene::open("localhost");
    let mut sender = scene.start_sender(&["--hosts", "write"]);
    let place = scene.wait_for_place(&mut sender);
    let told = format!(
        "{NAME}: localhost is this machine itself to everybody here, and no hosts entry leads it here: applications connect to {place}"
    );
    sender.wait_for_line(&told, MOMENT).unwrap();

    let mut live = Talk::start(place).unwrap();
    let secondary = &["--secondary"];
    scene.write_string(Rule::Send, secondary, &scene.string_file());
    scene.write_string(Rule::Listen, secondary, &scene.agent.string_file(NAME));
    wait_for("both to prove the secondary key", MOMENT, || {
        let sessions = scene.detail()["sessions"].as_array()?.clone();
        let secondary = sessions
            .iter()
            .filter(|session| session["key"] == "secondary");
        (secondary.count() == sessions.len() && sessions.len() >= 2).then_some(())
    })
    .unwrap();
    live.exchange().unwrap();
    Talk::start(place).unwrap().finish().unwrap();
    live.finish().unwrap();

    assert_eq!(fs::read_to_string(scene.hosts()).unwrap(), HOSTS);
    assert_eq!(terminate(&mut sender, MOMENT).unwrap(), 0);
    assert_eq!(fs::read_to_string(scene.hosts()).unwrap(), HOSTS);
}

#[test]
fn a_changed_endpoint_moves_the_address_once_agent_and_sender_allow_it() {
    let _turn = turn::shared();
    let scene = Scene::open("localhost");
    let config = scene.folder.path().join("sender.toml");
    fs::write(
        &config,
        "[[connect]]\nstring_file = \"sender.connection\"\n",
    )
    .unwrap();
    let config = config.display().to_string();
    let mut sender = scene.start_sender_by("--config", &config, &["--hosts", "write"]);
    let before = scene.wait_for_place(&mut sender);
    let other = Service::start(b'o').unwrap();
    let endpoint = format!("localhost:{}", other.address.port());
    scene.installation.define(NAME, &endpoint).unwrap();
    let told = format!("{NAME}: the relay names {endpoint} as the endpoint, and neither the");
    let line = sender.wait_for_line(&told, MOMENT).unwrap();
    let command =
        format!("`underpass sender allow {endpoint} --connection {NAME} --config {config}`");
    assert!(line.ends_with(&command), "{line}");
    let after = SocketAddr::new(before.ip(), other.address.port());
    assert!(TcpListener::bind(after).is_ok(), "{after} is not taken");
    // Applications of the old address are not cut off: the relay carries their flows.
    for (role, config) in [
        ("agent", scene.agent.config().display().to_string()),
        ("sender", config),
    ] {
        let mut command = underpass().unwrap();
        command.args([role, "allow", &endpoint, "--config", &config]);
        run_ok(&mut command, MOMENT).unwrap();
    }
    wait_for("the other service to be reached", MOMENT, || {
        let mut talk = Talk::start(after).ok()?;
        talk.exchange().ok()?;
        talk.finish().ok()
    })
    .unwrap();
    assert!(other.accepted() > 0);
}

#[test]
fn a_sender_says_what_is_in_its_way() {
    let _turn = turn::shared();
    let scene = Scene::open("localhost");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let string_file = scene.string_file().display().to_string();
    let run = |options: &[&str]| {
        let arguments = [
            &["sender", "run", "--connection-string-file", &string_file],
            options,
        ]
        .concat();
        let ran = run_underpass(&arguments).unwrap();
        (ran.status.code(), ran.stderr)
    };
    let address = taken.local_addr().unwrap();
    let (exit, told) = run(&["--bind", &address.to_string()]);
    assert_eq!(exit, Some(3), "{told}");
    let hint = format!(
        "hint: `ss -ltnp 'sport = :{}'` shows who has it",
        address.port()
    );
    assert!(
        told.contains(&address.to_string()) && told.contains(&hint),
        "{told}"
    );

    let checked = run_ok(
        underpass()
            .unwrap()
            .args(["sender", "run", "--check", "--connection-string-file"])
            .arg(scene.string_file()),
        MOMENT,
    )
    .unwrap();
    let endpoint = format!("localhost:{}", scene.service.address.port());
    assert!(
        checked.contains(NAME) && checked.contains(&endpoint),
        "{checked}"
    );

    let string = fs::read_to_string(scene.string_file()).unwrap();
    let wrong = string.replace("SharedAccessKey=", "SharedAccessKey=x");
    write_secret(&scene.string_file(), &wrong).unwrap();
    for options in [&["--check"][..], &[]] {
        let (exit, told) = run(options);
        assert_eq!(exit, Some(4), "{told}");
        assert!(told.contains("--role application"), "{told}");
    }
}

/// A service, an agent beside it, and what a sender needs.
struct Scene {
    service: Service,
    installation: Installation,
    agent: Agent,
    folder: TempDir,
}

impl Scene {
    fn open(host: &str) -> Self {
        let service = Service::start(b's').unwrap();
        let endpoint = format!("{host}:{}", service.address.port());
        let folder = tempfile::tempdir().unwrap();
        let mut setup = Setup::new(Io::Poll);
        if host == HOST {
            let of_agent = folder.path().join("hosts-of-agent");
            fs::write(&of_agent, HOSTS).unwrap();
            setup.hosts = Some(of_agent);
        }
        let installation = Installation::start(setup, &[(NAME, &endpoint)]).unwrap();
        let agent = installation.start_agent(&[NAME], &[]).unwrap();
        let scene = Self {
            service,
            installation,
            agent,
            folder,
        };
        fs::write(scene.hosts(), HOSTS).unwrap();
        scene.write_string(Rule::Send, &[], &scene.string_file());
        scene
    }

    fn string_file(&self) -> PathBuf {
        self.folder.path().join("sender.connection")
    }

    fn hosts(&self) -> PathBuf {
        self.folder.path().join("hosts")
    }

    fn write_string(&self, rule: Rule, options: &[&str], path: &std::path::Path) {
        let string = self.installation.string_of(NAME, rule, options).unwrap();
        write_secret(path, &string).unwrap();
    }

    fn start_sender(&self, options: &[&str]) -> Process {
        let string_file = self.string_file().display().to_string();
        self.start_sender_by("--connection-string-file", &string_file, options)
    }

    fn start_sender_by(&self, source: &str, file: &str, options: &[&str]) -> Process {
        let mut command = underpass().unwrap();
        command
            .args(["sender", "run", "--io", "poll", source, file])
            .arg("--hosts-file")
            .arg(self.hosts())
            .args(options);
        Process::start("sender", &mut command).unwrap()
    }

    /// The name of the sender's entry in the hosts file, and where it leads.
    fn wait_for_entry(&self, sender: &Process) -> (String, Ipv4Addr) {
        let entry = wait_for("the hosts entry", MOMENT, || {
            let text = fs::read_to_string(self.hosts()).ok()?;
            let line = text.lines().find(|line| line.ends_with("# by underpass"))?;
            let mut words = line.split_whitespace();
            let ip: Ipv4Addr = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), ip))
        });
        entry.unwrap_or_else(|error| panic!("{error}\n{}", sender.log_end()))
    }

    /// Where applications connect, as the sender says it.
    fn wait_for_place(&self, sender: &mut Process) -> SocketAddr {
        let port = self.service.address.port();
        let told = format!("applications reach localhost:{port} at ");
        let line = sender.wait_for_line(&told, MOMENT);
        let line = line.unwrap_or_else(|error| panic!("{error}\n{}", sender.log_end()));
        let place: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(place.port(), port);
        assert!(place.ip().is_loopback() && place.ip() != Ipv4Addr::LOCALHOST);
        place
    }

    fn detail(&self) -> serde_json::Value {
        let mut command = underpass().unwrap();
        command
            .args(["status", NAME, "--json", "--dir"])
            .arg(self.installation.directory());
        let text = run_ok(&mut command, MOMENT).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}
