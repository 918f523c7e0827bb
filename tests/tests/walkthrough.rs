//! The walk-through of docs/use/three-networks.md as it is printed there: a real PostgreSQL in one
//! network, `psql` in another, which uses the original host name and port.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{binary, terminate};
use underpass_tests::network::Machine;
use underpass_tests::process::{Process, run, run_ok};
use underpass_tests::servers::postgres::Postgres;
use underpass_tests::turn;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/use/three-networks.md");

/// The relay, as the application and as the endpoint's network see it.
const RELAY_OF_APPLICATION: Ipv4Addr = Ipv4Addr::new(10, 71, 1, 1);
const RELAY_OF_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 71, 2, 1);
const APPLICATION: Ipv4Addr = Ipv4Addr::new(10, 71, 1, 2);
const SQL: Ipv4Addr = Ipv4Addr::new(10, 71, 2, 2);

#[test]
fn the_page_carries_sql_between_three_networks_under_its_own_name() {
    if let Some(why) = Machine::unavailable() {
        underpass_loadtest::note!(
            "skipped: the_page_carries_sql_between_three_networks_under_its_own_name: {why}"
        );
        return;
    }
    let _turn = turn::shared();
    let scene = Scene::open();
    let server = Postgres::start_on(&scene.on_premises, SocketAddr::from((SQL, 5432))).unwrap();
    scene.assert_the_application_reaches_nothing_but_the_relay(server.address);

    let mut cloud = scene.start(&scene.cloud, "cloud");
    cloud.wait_for_line("Underpass is ready", MOMENT).unwrap();
    scene.carry("on-premises.connection", "on-premises");
    scene.carry("application.connection", "application");
    let mut agent = scene.start(&scene.on_premises, "on-premises");
    agent.wait_for_line("listener registered", MOMENT).unwrap();
    let before = fs::read(scene.application.hosts()).unwrap();
    let mut sender = scene.start(&scene.application, "application");
    sender.wait_for_line("sender registered", MOMENT).unwrap();
    let name = wait_for("the entry in the hosts file", MOMENT, || {
        let hosts = fs::read_to_string(scene.application.hosts()).ok()?;
        hosts.contains("sql01.corp").then_some(hosts)
    });
    name.unwrap_or_else(|error| panic!("{error}: {}", sender.log_end()));

    let said = run_ok(
        &mut scene.shell(&scene.application, "application", &block("client")),
        MOMENT,
    );
    assert!(said.unwrap().contains("PostgreSQL"));
    scene.rows_are_the_same_at_both_ends();

    assert_eq!(terminate(&mut sender, MOMENT).unwrap(), 0);
    assert_eq!(fs::read(scene.application.hosts()).unwrap(), before);
    assert_eq!(terminate(&mut agent, MOMENT).unwrap(), 0);
    assert_eq!(terminate(&mut cloud, MOMENT).unwrap(), 0);
}

/// Three machines with a folder each; the outer two reach only the middle one.
struct Scene {
    application: Machine,
    cloud: Machine,
    on_premises: Machine,
    folder: TempDir,
}

impl Scene {
    fn open() -> Self {
        let relay = "relay.example.com";
        let folder = TempDir::with_prefix("underpass-walk-").unwrap();
        let scene = Self {
            application: Machine::new("app", &[(relay, RELAY_OF_APPLICATION)]).unwrap(),
            cloud: Machine::new("cloud", &[]).unwrap(),
            on_premises: Machine::new("prem", &[(relay, RELAY_OF_ENDPOINT), ("sql01.corp", SQL)])
                .unwrap(),
            folder,
        };
        let Self {
            application,
            cloud,
            on_premises,
            ..
        } = &scene;
        application
            .join(APPLICATION, cloud, RELAY_OF_APPLICATION)
            .unwrap();
        on_premises.join(SQL, cloud, RELAY_OF_ENDPOINT).unwrap();
        for place in ["bin", "cloud", "on-premises", "application"] {
            fs::create_dir(scene.folder.path().join(place)).unwrap();
        }
        symlink(
            binary().unwrap(),
            scene.folder.path().join("bin").join("underpass"),
        )
        .unwrap();
        scene
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A script on a machine, in the folder of that place.
    fn shell(&self, machine: &Machine, place: &str, script: &str) -> Command {
        let mut command = machine.command("sh");
        command
            .args(["-eu", "-c", script])
            .current_dir(self.place(place))
            .env("PATH", self.path())
            .env("PGSSLMODE", "disable")
            .env("PGCONNECT_TIMEOUT", "20")
            .env("NO_COLOR", "1")
            .env_remove("UNDERPASS_DIR");
        command
    }

    fn path(&self) -> OsString {
        let mut path = OsString::from(self.place("bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        path
    }

    /// Runs the page's lines for this place. The last one stays, so that it can be told to end.
    fn start(&self, machine: &Machine, place: &str) -> Process {
        let text = block(place);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let last = lines.last_mut().unwrap();
        *last = format!("exec {last}");
        let mut command = self.shell(machine, place, &lines.join("\n"));
        Process::start(place, &mut command).unwrap()
    }

    /// Copies a connection string from the cloud to a machine, as a person would.
    fn carry(&self, file: &str, to: &str) {
        let from: &Path = &self.place("cloud").join(file);
        wait_for(file, MOMENT, || from.exists().then_some(())).unwrap();
        fs::copy(from, self.place(to).join(file)).unwrap();
    }

    fn assert_the_application_reaches_nothing_but_the_relay(&self, server: SocketAddr) {
        let direct = format!(
            "psql -h {} -p {} -U postgres -c 'select 1'",
            server.ip(),
            server.port()
        );
        let ran = run(
            &mut self.shell(&self.application, "application", &direct),
            MOMENT,
        )
        .unwrap();
        assert!(
            !ran.status.success() && ran.stderr.contains("Network is unreachable"),
            "{}",
            ran.stderr
        );
        let here = run_ok(
            &mut self.shell(&self.on_premises, "on-premises", &direct),
            MOMENT,
        );
        here.unwrap();
    }

    /// Writes rows through the way, and reads them there and at the server.
    fn rows_are_the_same_at_both_ends(&self) {
        let sql = "-h sql01.corp -p 5432 -U postgres -qtA -v ON_ERROR_STOP=1 -c";
        let make =
            "create table pay as select n, md5(n::text) as name from generate_series(1, 200000) n";
        let within = Duration::from_secs(60);
        run_ok(
            &mut self.shell(
                &self.application,
                "application",
                &format!("psql {sql} '{make}'"),
            ),
            within,
        )
        .unwrap();
        let sum = |machine: &Machine, place: &str| {
            let script =
                format!("psql {sql} 'copy (select * from pay order by n) to stdout' | sha256sum");
            run_ok(&mut self.shell(machine, place, &script), within).unwrap()
        };
        let through = sum(&self.application, "application");
        assert_eq!(through, sum(&self.on_premises, "on-premises"));
    }
}

/// The commands that stand on the page for this place.
fn block(place: &str) -> String {
    let page = fs::read_to_string(PAGE).unwrap();
    let marker = format!("<!-- walkthrough: {place} -->\n```sh\n");
    let after = page.split(&marker).nth(1);
    let after = after.unwrap_or_else(|| panic!("the page has no commands for {place}"));
    after.split("\n```").next().unwrap().to_owned()
}
