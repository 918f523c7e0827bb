//! Where a relay is: a name that leads elsewhere, a name with an address in each family, and relays
//! in different families.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use underpass_loadtest::impair::{Link, Proxy};
use underpass_tests::agent::Agent;
use underpass_tests::deadline::wait_for;
use underpass_tests::installation::{Installation, Io, Setup, write_secret};
use underpass_tests::network::no_own_hosts_file;
use underpass_tests::process::free_udp_port;
use underpass_tests::turn;

const NAME: &str = "payroll-sql";
const ENDPOINT: &str = "db01.corp:1433";
const RELAY: &str = "relay.test";

/// Where the relay's name leads at first, and later.
const BEFORE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 21);
const AFTER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 22);

/// From the loss of a session until the new address is dialled: what makes a relay suspect, a
/// resolution, and as much again for a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(12);

#[test]
fn a_relay_whose_name_moved_is_found_within_seconds_of_the_loss_of_its_session() {
    if let Some(why) = no_own_hosts_file() {
        return eprintln!("skipped: no hosts file of its own: {why}");
    }
    let scene = Scene::open(&[BEFORE.into()]);
    let before = scene.proxy(BEFORE);
    let agent = scene.agent();
    agent.wait_until_registered(NAME).unwrap();
    let after = scene.proxy(AFTER);
    scene.leads_to(&[AFTER.into()]);
    before.black_hole(true);
    wait_for("the new address to be dialled", NOTICED_WITHIN, || {
        (after.seen().down.forwarded > 0).then_some(())
    })
    .unwrap();
}

#[test]
fn a_silent_ipv6_address_of_a_relay_does_not_keep_an_agent_from_its_ipv4_address() {
    if let Some(why) = no_own_hosts_file() {
        return eprintln!("skipped: no hosts file of its own: {why}");
    }
    let scene = Scene::open(&[Ipv6Addr::LOCALHOST.into(), BEFORE.into()]);
    let _proxy = scene.proxy(BEFORE);
    scene.agent().wait_until_registered(NAME).unwrap();
}

#[test]
fn one_agent_has_sessions_with_a_relay_in_each_family() {
    if let Err(why) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
        return eprintln!("skipped: this machine has no IPv6: {why}");
    }
    let _turn = turn::shared();
    let [four, six] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(|ip| {
        let setup = Setup {
            ip,
            ..Setup::new(Io::Poll)
        };
        Installation::start(setup, &[(NAME, ENDPOINT)]).unwrap()
    });
    let agent = four.start_agent(&[NAME], &[]).unwrap();
    let other = six.connection_string(NAME).unwrap();
    write_secret(&agent.string_file("other"), &other).unwrap();
    let config = fs::read_to_string(agent.config()).unwrap();
    let both = config + "[[connect]]\nstring_file = \"other.connection\"\n";
    fs::write(agent.config(), both).unwrap();
    six.wait_for_hyco(NAME, "a listener", |hyco| hyco.listeners == 1)
        .unwrap();
    four.wait_for_hyco(NAME, "its listener still", |hyco| hyco.listeners == 1)
        .unwrap();
}

/// A relay that agents know by name, and the hosts file that they see.
struct Scene {
    installation: Installation,
    folder: TempDir,
    port: u16,
    _turn: turn::Turn,
}

impl Scene {
    fn open(addresses: &[IpAddr]) -> Self {
        let turn = turn::shared();
        let folder = TempDir::new().unwrap();
        let setup = Setup {
            hosts: Some(hosts(folder.path())),
            ..Setup::new(Io::Poll)
        };
        let scene = Self {
            installation: Installation::start(setup, &[(NAME, ENDPOINT)]).unwrap(),
            folder,
            port: free_udp_port(),
            _turn: turn,
        };
        scene.leads_to(addresses);
        scene
    }

    /// The relay's name leads there from now on.
    fn leads_to(&self, addresses: &[IpAddr]) {
        let lines = addresses.iter().map(|ip| format!("{ip} {RELAY}\n"));
        // Written in place, for it is mounted.
        fs::write(hosts(self.folder.path()), lines.collect::<String>()).unwrap();
    }

    /// The relay, at one address that its name may lead to.
    fn proxy(&self, ip: Ipv4Addr) -> Proxy {
        let (here, relay) = (
            SocketAddr::from((ip, self.port)),
            self.installation.listen(),
        );
        Proxy::start(here, relay, Link::CLEAN, 1).unwrap()
    }

    /// An agent whose connection string has the relay's name.
    fn agent(&self) -> Agent {
        let agent = self.installation.start_agent_unregistered(&[NAME], &[]);
        let agent = agent.unwrap();
        agent.process().as_mut().unwrap().kill().unwrap();
        let string = self.installation.connection_string(NAME).unwrap();
        let listen = self.installation.listen().to_string();
        assert!(string.contains(&listen), "a string names its relay");
        let named = string.replace(&listen, &format!("{RELAY}:{}", self.port));
        write_secret(&agent.string_file(NAME), &named).unwrap();
        agent.start().unwrap();
        agent
    }
}

fn hosts(folder: &Path) -> PathBuf {
    folder.join("hosts")
}
