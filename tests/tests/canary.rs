//! Known keys in a whole installation that does all it can: they are looked for in everything that
//! its processes say, and found nowhere.
//!
//! The doors by which a key comes in, and core files, are in control's own tests of the command
//! line.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;
use underpass_proto::Rule;
use underpass_tests::agent::Agent;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::installation::{Installation, Io, Setup, underpass, write_secret};
use underpass_tests::process::{Process, run};
use underpass_tests::service::{Service, Talk};
use underpass_tests::turn;

const NAME: &str = "payroll-sql";

/// Base64 of 32 bytes each, as keys are.
const KEYS: [&str; 4] = [
    "Q0FOQVJZLWxpc3Rlbi1wcmltYXJ5LTAxMjM0NTY3ODk=",
    "Q0FOQVJZLWxpc3Rlbi1zZWNvbmRhcnktMDEyMzQ1Njc=",
    "Q0FOQVJZLXNlbmQtcHJpbWFyeS0wMTIzNDU2Nzg5MDE=",
    "Q0FOQVJZLXNlbmQtc2Vjb25kYXJ5LTAxMjM0NTY3ODk=",
];

#[test]
fn keys_are_in_nothing_that_is_said() {
    let _turn = turn::shared();
    let service = Service::start(b's').unwrap();
    let installation = installation(&service);
    let agent = installation.start_agent(&[NAME], &[]).unwrap();
    let (mut sender, folder) = start_sender(&installation);
    let told = format!(
        "applications reach localhost:{} at ",
        service.address.port()
    );
    let line = sender.wait_for_line(&told, MOMENT);
    let line = line.unwrap_or_else(|error| panic!("{error}: {}", sender.log_end()));
    let bound: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
    for place in [installation.binding(NAME).unwrap(), bound] {
        Talk::start(place).unwrap().finish().unwrap();
    }

    rotate(&installation, &agent);
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["status", NAME],
        &["status", NAME, "--json"],
        &["probe", NAME],
        &["connection", "list"],
        &["connection", "show", NAME, "--json"],
    ] {
        let mut asked = underpass().unwrap();
        asked
            .env("UNDERPASS_LOG", "trace")
            .args(command)
            .arg("--dir")
            .arg(installation.directory());
        let ran = run(&mut asked, MOMENT).unwrap();
        silent(&format!("{command:?}"), ran.stdout.as_bytes());
        silent(&format!("{command:?}"), ran.stderr.as_bytes());
    }
    damage(&installation);
    for process in [
        installation.control(),
        installation.relay(),
        agent.process(),
    ] {
        heard(process.as_ref().unwrap());
    }
    heard(&sender);
    drop(folder);
    for folder in ["connections", "run"] {
        files(&installation.directory().join(folder));
    }
}

/// Definitions, and keys that are known.
fn installation(service: &Service) -> Installation {
    let mut setup = Setup::new(Io::Poll);
    setup.environment.push(("UNDERPASS_LOG", "trace".into()));
    let installation = Installation::new(setup).unwrap();
    installation
        .define(NAME, &format!("localhost:{}", service.address.port()))
        .unwrap();
    let keys = installation.directory().join("keys");
    fs::create_dir_all(&keys).unwrap();
    let [listen, listen_second, send, send_second] = KEYS;
    let text = format!(
        "[listen]\nprimary = \"{listen}\"\nsecondary = \"{listen_second}\"\n[send]\nprimary = \"{send}\"\nsecondary = \"{send_second}\"\n"
    );
    write_secret(&keys.join(format!("{NAME}.toml")), &text).unwrap();
    installation.start_control().unwrap();
    installation.start_relay().unwrap();
    installation.binding(NAME).unwrap();
    let string = installation.connection_string(NAME).unwrap();
    assert!(string.contains(listen), "these are the keys in use");
    installation
}

/// A sender, as loud as can be, with the folder of its file. It prints its hosts entry.
fn start_sender(installation: &Installation) -> (Process, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sender.connection");
    let string = installation.string_of(NAME, Rule::Send, &[]).unwrap();
    assert!(string.contains(KEYS[2]), "these are the keys in use");
    write_secret(&file, &string).unwrap();
    let mut command = underpass().unwrap();
    command
        .env("UNDERPASS_LOG", "trace")
        .args(["sender", "run", "--io", "poll", "--hosts", "print"])
        .arg("--connection-string-file")
        .arg(file);
    (Process::start("sender", &mut command).unwrap(), folder)
}

/// A new key in the file of a running agent.
fn rotate(installation: &Installation, agent: &Agent) {
    let string = installation.connection_string(NAME).unwrap();
    write_secret(&agent.string_file(NAME), &string.replace(KEYS[0], KEYS[1])).unwrap();
}

/// Mistakes that a message could repeat: in the key file, and in the file of a definition.
fn damage(installation: &Installation) {
    let directory = installation.directory();
    let file = directory.join("keys").join(format!("{NAME}.toml"));
    let text = fs::read_to_string(&file).unwrap();
    write_secret(&file, &text.replacen("primary = \"", "primary = \";", 1)).unwrap();
    let wrong = format!("host = \"{}\"\nport = 1433\n", KEYS[0]);
    installation.write_definition("wrong-one", &wrong).unwrap();
    let told = || {
        let status = installation.status().ok()?;
        (status.faults.len() >= 2).then_some(status)
    };
    let status = wait_for("both mistakes to be told", MOMENT, told).unwrap();
    silent("faults", format!("{:?}", status.faults).as_bytes());
    fs::remove_file(installation.definition("wrong-one")).unwrap();
}

/// All that a running process says, and what the kernel says of it.
fn heard(process: &Process) {
    silent("stdout", process.stdout().as_bytes());
    silent("stderr", process.stderr().as_bytes());
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{}/{file}", process.id())).unwrap();
        silent(file, &text);
    }
}

fn files(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            silent(&path.display().to_string(), &fs::read(&path).unwrap());
        }
    }
}

/// Neither a key nor half of one, as it is written or percent-encoded.
fn silent(what: &str, text: &[u8]) {
    for key in KEYS {
        // The first ten characters are the same in all, and say nothing.
        for part in [&key[10..26], &key[26..42]] {
            let found = text
                .windows(part.len())
                .any(|bytes| bytes == part.as_bytes());
            assert!(
                !found,
                "{what} has a key: {}",
                String::from_utf8_lossy(text)
            );
        }
    }
}
