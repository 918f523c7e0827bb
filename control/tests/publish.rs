//! Control on a real directory, with a relay and a command line on its socket.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "other tests need more of it")]
mod running;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use running::{PATIENCE, Relay, wait_for};
use tokio::sync::oneshot;
use underpass::files::Directory;
use underpass::publish::{self, Error};
use underpass_proto::limits::REPORT_MAX;
use underpass_proto::{FeedMessage, HybridConnection, Report, Snapshot, Status};

/// What users are promised for a change of a file.
const EFFECT: Duration = Duration::from_secs(1);

#[test]
fn a_relay_gets_everything_at_once_and_again_within_a_second_of_a_change() {
    let control = Control::start(&[(
        "payroll-sql",
        "host = \"sql01\"\nport = 1433\nbind = \"127.0.0.1:0\"",
    )]);
    let mut relay = control.relay();
    let first = relay.snapshot();
    assert_eq!(first.hycos.len(), 1);
    let payroll = &first.hycos[0];
    assert_eq!(
        (payroll.name.as_str(), payroll.endpoint.to_string().as_str()),
        ("payroll-sql", "sql01:1433")
    );
    assert!(
        payroll.keys.listen.is_some() && payroll.keys.send.is_some(),
        "keys are made where they are missing"
    );
    first.check().unwrap();

    let changed = Instant::now();
    control.define("archive-sql", "host = \"sql02\"\nport = 1433");
    let second = relay.snapshot();
    let took = changed.elapsed();
    assert!(took < EFFECT, "{took:?}");
    assert!(second.generation > first.generation);
    assert_eq!(names(&second), ["archive-sql", "payroll-sql"]);
    assert_eq!(
        find(&second, "payroll-sql"),
        payroll,
        "the other one is as it was"
    );

    fs::remove_file(
        control
            .directory
            .definition(&"payroll-sql".parse().unwrap()),
    )
    .unwrap();
    let removed = Instant::now();
    assert_eq!(names(&relay.snapshot()), ["archive-sql"]);
    let took = removed.elapsed();
    assert!(took < EFFECT, "{took:?}");
}

#[test]
fn a_bad_file_keeps_its_own_last_good_content_and_stops_no_other() {
    let control = Control::start(&[
        ("payroll-sql", "host = \"sql01\"\nport = 1433"),
        ("archive-sql", "host = \"sql02\"\nport = 1433"),
    ]);
    let mut relay = control.relay();
    let first = relay.snapshot();
    control.define("payroll-sql", "host = \"sql09\"\nprot = 1433");
    let status = control.status_when(|status| !status.faults.is_empty());
    let told: Vec<&str> = status
        .faults
        .iter()
        .map(|fault| fault.what.as_str())
        .collect();
    assert_eq!(
        told,
        [
            "connections/payroll-sql.toml:1: port is missing; write port = 1433",
            "connections/payroll-sql.toml:2: unknown field \"prot\"; did you mean `port`?"
        ]
    );
    assert_eq!(status.faults[0].hyco, Some("payroll-sql".parse().unwrap()));

    control.define("archive-sql", "host = \"sql03\"\nport = 1433");
    let second = relay.snapshot();
    assert_eq!(
        find(&second, "archive-sql").endpoint.to_string(),
        "sql03:1433"
    );
    assert_eq!(find(&second, "payroll-sql"), find(&first, "payroll-sql"));

    control.define("payroll-sql", "host = \"sql09\"\nport = 1433");
    assert_eq!(
        find(&relay.snapshot(), "payroll-sql").endpoint.to_string(),
        "sql09:1433"
    );
    control.status_when(|status| status.faults.is_empty());
}

#[test]
fn a_binding_that_another_has_leaves_its_hybrid_connection_where_it_was() {
    let at = |port: u16| format!("host = \"sql01\"\nport = 1433\nbind = \"127.0.0.1:{port}\"");
    let control = Control::start(&[("payroll-sql", &at(14330)), ("archive-sql", &at(14331))]);
    let mut relay = control.relay();
    let before = find(&relay.snapshot(), "archive-sql").bind;

    control.define("archive-sql", &at(14330));
    let status = control.status_when(|status| !status.faults.is_empty());
    assert_eq!(
        status.faults[0].what,
        "connections/archive-sql.toml:3: bind = \"127.0.0.1:14330\" is taken by payroll-sql (\"127.0.0.1:14330\" in connections/payroll-sql.toml); write another address or port"
    );
    control.define("third-sql", "host = \"sql03\"\nport = 1433");
    let after = relay.snapshot_when(|snapshot| snapshot.hycos.len() == 3);
    assert_eq!(find(&after, "archive-sql").bind, before);

    control.define("payroll-sql", &at(14332));
    let moved = relay.snapshot_when(|snapshot| find(snapshot, "archive-sql").bind != before);
    assert_eq!(
        find(&moved, "archive-sql").bind,
        "127.0.0.1:14330".parse().ok(),
        "a binding that is free again is taken as the file says"
    );
}

#[test]
fn a_cold_start_runs_what_is_good() {
    let control = Control::start(&[
        ("payroll-sql", "host = "),
        ("archive-sql", "host = \"sql02\"\nport = 1433"),
        ("x", "host = \"a\"\nport = 1"),
    ]);
    assert_eq!(names(&control.relay().snapshot()), ["archive-sql"]);
    let told: Vec<String> = control
        .status()
        .faults
        .iter()
        .map(|fault| fault.what.clone())
        .collect();
    assert!(
        told[0].starts_with("connections/payroll-sql.toml:1: this is not TOML"),
        "{told:?}"
    );
    assert!(told[1].starts_with("connections/x.toml: the file's name is the name of the hybrid connection, and a name has 6 to 50"), "{told:?}");
}

#[test]
fn a_bad_namespace_ends_a_cold_start_but_not_a_running_control() {
    let folder = tempfile::tempdir().unwrap();
    let directory = Directory::new(folder.path());
    directory.prepare().unwrap();
    fs::write(directory.namespace(), "name = 3").unwrap();
    let (_tell, stop) = oneshot::channel();
    let Err(Error::Faults(faults)) = publish::run(&directory, stop) else {
        panic!("it must not run")
    };
    assert_eq!(
        faults[0].to_string(),
        "namespace.toml:1: name is a number; write a text, like `name = \"contoso\"`"
    );

    let control = Control::start(&[]);
    let mut relay = control.relay();
    let first = relay.snapshot();
    fs::write(control.directory.namespace(), "listen = \"nowhere\"").unwrap();
    control.status_when(|status| !status.faults.is_empty());
    control.define("payroll-sql", "host = \"sql01\"\nport = 1433");
    let second = relay.snapshot();
    assert_eq!(
        (second.listen, second.namespace),
        (first.listen, first.namespace)
    );
    assert_eq!(second.hycos.len(), 1);
}

#[test]
fn a_key_file_that_is_bad_or_open_takes_no_new_registration_until_it_is_mended() {
    let control = Control::start(&[
        ("payroll-sql", "host = \"sql01\"\nport = 1433"),
        ("archive-sql", "host = \"sql02\"\nport = 1433"),
    ]);
    let mut relay = control.relay();
    let first = relay.snapshot();
    let path = control.directory.key_file(&"payroll-sql".parse().unwrap());
    for spoil in [spoil_mode as fn(&PathBuf), spoil_text] {
        let good = fs::read(&path).unwrap();
        spoil(&path);
        let spoiled = relay.snapshot();
        let keys = &find(&spoiled, "payroll-sql").keys;
        assert!(keys.listen.is_none() && keys.send.is_none());
        assert_eq!(find(&spoiled, "archive-sql"), find(&first, "archive-sql"));
        let status = control.status_when(|status| !status.faults.is_empty());
        assert!(
            status.faults[0].what.starts_with("keys/payroll-sql.toml"),
            "{status:?}"
        );
        fs::write(&path, good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let mended =
            relay.snapshot_when(|snapshot| find(snapshot, "payroll-sql").keys.listen.is_some());
        assert_eq!(
            find(&mended, "payroll-sql").keys,
            find(&first, "payroll-sql").keys
        );
    }
}

#[test]
fn deleted_keys_are_made_anew_and_a_deleted_certificate_stays_in_use() {
    let control = Control::start(&[("payroll-sql", "host = \"sql01\"\nport = 1433")]);
    let mut relay = control.relay();
    let first = relay.snapshot();
    fs::remove_file(control.directory.key_file(&"payroll-sql".parse().unwrap())).unwrap();
    let second = relay.snapshot();
    assert_ne!(second.hycos[0].keys, first.hycos[0].keys);
    assert!(second.hycos[0].keys.listen.is_some());

    fs::remove_file(control.directory.tls().join("certificate.pem")).unwrap();
    let status = control.status_when(|status| !status.faults.is_empty());
    assert!(
        status.faults[0]
            .what
            .starts_with("tls/: the certificate or its key is gone"),
        "{status:?}"
    );
    assert_eq!(control.relay().snapshot().tls, first.tls);
}

#[test]
fn a_later_start_is_a_later_generation_whatever_the_clock_says() {
    let control = Control::start(&[]);
    let first = control.relay().snapshot();
    let folder = control.stop();
    let directory = Directory::new(folder.path());
    // As if the clock had been an hour ahead.
    let ahead = first.generation.start + 3_600_000_000_000;
    fs::write(directory.run().join("start"), ahead.to_string()).unwrap();
    let control = Control::start_in(folder);
    let second = control.relay().snapshot();
    assert!(second.generation.start > ahead);
    assert_eq!(
        (second.tls, second.relay_keys),
        (first.tls, first.relay_keys),
        "what must persist did"
    );
}

#[test]
fn the_status_says_what_the_relay_said() {
    let control = Control::start(&[]);
    let mut relay = control.relay();
    let generation = relay.snapshot().generation;
    let report = Report {
        generation,
        io: "poll".into(),
        workers: 2,
        ..Report::default()
    };
    relay.send(&FeedMessage::Applied {
        generation,
        faults: Vec::new(),
    });
    relay.send(&FeedMessage::Report(Box::new(report.clone())));
    let status = control.status_when(|status| status.relay.is_some());
    assert_eq!(
        (status.applied, status.relay),
        (Some(generation), Some(report))
    );

    control.define("payroll-sql", "host = \"sql01\"\nport = 1433");
    let newer = relay.snapshot().generation;
    relay.send(&FeedMessage::Rejected {
        generation: newer,
        why: "it is Tuesday".into(),
    });
    let status = control.status_when(|status| status.rejected.is_some());
    assert_eq!(
        (
            status.generation,
            status.applied,
            status.rejected.as_deref()
        ),
        (newer, Some(generation), Some("it is Tuesday"))
    );

    drop(relay);
    control.status_when(|status| status.relay.is_none() && status.applied.is_none());
}

#[test]
fn a_peer_that_talks_nonsense_harms_only_itself() {
    let control = Control::start(&[]);
    let mut relay = control.relay();
    relay.snapshot();
    let oversized = u32::try_from(REPORT_MAX + 1).unwrap().to_be_bytes();
    for nonsense in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &oversized,
        &[0, 0, 0, 2, b'{', b'}'],
    ] {
        let mut stream = control.connect();
        stream.write_all(nonsense).unwrap();
        let mut rest = Vec::new();
        // Closed, with or without an error: nothing is answered.
        let _ = stream.read_to_end(&mut rest);
        assert_eq!(rest, b"");
    }
    control.define("payroll-sql", "host = \"sql01\"\nport = 1433");
    assert_eq!(relay.snapshot().hycos.len(), 1);
}

#[test]
fn a_second_control_on_one_directory_is_refused() {
    let control = Control::start(&[]);
    let (_tell, stop) = oneshot::channel();
    assert!(matches!(
        publish::run(&control.directory, stop),
        Err(Error::Running(_))
    ));
    control.status();
}

#[test]
fn the_socket_is_its_owners_alone() {
    let control = Control::start(&[]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (
            mode(control.directory.control_socket()),
            mode(control.directory.run())
        ),
        (0o600, 0o700)
    );
}

fn spoil_mode(path: &PathBuf) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

fn spoil_text(path: &PathBuf) {
    fs::write(path, "[listen]\nprimary = \"short\"").unwrap();
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot
        .hycos
        .iter()
        .map(|hyco| hyco.name.as_str())
        .collect()
}

fn find<'a>(snapshot: &'a Snapshot, name: &str) -> &'a HybridConnection {
    snapshot
        .hycos
        .iter()
        .find(|hyco| hyco.name.as_str() == name)
        .unwrap()
}

/// A control process and its folder.
struct Control {
    /// Ended before the folder goes.
    running: running::Control,
    directory: Directory,
    folder: tempfile::TempDir,
}

impl Control {
    fn start(definitions: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("connections")).unwrap();
        for (name, text) in definitions {
            fs::write(folder.path().join(format!("connections/{name}.toml")), text).unwrap();
        }
        Self::start_in(folder)
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let directory = Directory::new(folder.path());
        if !directory.namespace().exists() {
            fs::write(
                directory.namespace(),
                "[control]\nlisten = \"127.0.0.1:0\"\n",
            )
            .unwrap();
        }
        Self {
            running: running::Control::start(&folder),
            directory,
            folder,
        }
    }

    fn stop(self) -> tempfile::TempDir {
        self.folder
    }

    /// Written in one step, as editors and tools should.
    fn define(&self, name: &str, text: &str) {
        let temporary = self.directory.root().join("new");
        fs::write(&temporary, text).unwrap();
        fs::rename(
            temporary,
            self.directory.connections().join(format!("{name}.toml")),
        )
        .unwrap();
    }

    fn status(&self) -> Status {
        publish::status(&self.directory).unwrap()
    }

    fn status_when(&self, holds: impl Fn(&Status) -> bool) -> Status {
        wait_for("the status", || Some(self.status()).filter(&holds))
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.control_socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn relay(&self) -> Relay {
        self.running.relay()
    }
}
