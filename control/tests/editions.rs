//! Editions: what is written beyond a limit, and data that is counted, kept and enforced, with a
//! relay on control's socket.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "other tests need more of it")]
mod running;

use std::fs;
use std::process::{Command, Stdio};

use running::{Control, folder, wait_for};
use underpass::clock;
use underpass::files::Directory;
use underpass::publish;
use underpass::rest::Client;
use underpass::rest::model::NamespaceTold;
use underpass_proto::snapshot::HycoReport;
use underpass_proto::wire::Instance;
use underpass_proto::{FeedMessage, Report, Snapshot};

const CONTROL: &str = "[control]\nlisten = \"127.0.0.1:0\"\n";
const GB: u64 = 1_000_000_000;

#[test]
fn a_file_beyond_the_limit_is_a_fault_of_its_own_and_those_that_stood_stay() {
    let folder = folder(
        &format!("hybrid_connections = 2\n{CONTROL}"),
        &["payroll-2", "payroll-3"],
    );
    {
        let control = Control::start(&folder);
        let mut relay = control.relay();
        assert_eq!(names(&relay.snapshot()), ["payroll-2", "payroll-3"]);
        fs::write(
            folder.path().join("connections/payroll-1.toml"),
            "host = \"a\"\nport = 1\n",
        )
        .unwrap();
        let fault = wait_for("the fault", || {
            publish::status(&control.directory)
                .unwrap()
                .faults
                .first()
                .cloned()
        });
        assert_eq!(
            fault.what,
            "connections/payroll-1.toml: is one more than the limit of 2 hybrid connections (edition unlimited), so it is not used; delete another, or set `edition` or `hybrid_connections` in namespace.toml"
        );
        assert_eq!(fault.hyco, "payroll-1".parse().ok());
    }
    let control = Control::start(&folder);
    let mut relay = control.relay();
    assert_eq!(
        names(&relay.snapshot()),
        ["payroll-2", "payroll-3"],
        "over a restart too"
    );
    fs::write(
        folder.path().join("namespace.toml"),
        format!("hybrid_connections = 3\n{CONTROL}"),
    )
    .unwrap();
    assert_eq!(
        names(&relay.snapshot()),
        ["payroll-1", "payroll-2", "payroll-3"]
    );
}

#[test]
fn data_is_counted_warned_of_and_enforced() {
    let folder = folder(&format!("data_gb_month = 1\n{CONTROL}"), &["payroll-sql"]);
    let control = Control::start(&folder);
    let mut relay = control.relay();
    assert!(!relay.snapshot().hycos[0].over_quota);
    relay.send(&report(1, GB - 10, 0));
    wait_for("the first figures", || {
        (used(&control.namespace()) == GB - 10).then_some(())
    });
    wait_for("the warning", || told(&control, "80 % of the data of "));
    relay.send(&report(1, GB - 10, 10));
    wait_for("the second warning", || told(&control, "flows go on"));
    assert!(control.namespace().data_used_up);
    let usage = publish::status(&control.directory).unwrap().usage.unwrap();
    assert_eq!(
        (
            usage.bytes_to_endpoint,
            usage.bytes_to_application,
            usage.bytes_max
        ),
        (GB - 10, 10, Some(GB))
    );

    fs::write(
        folder.path().join("namespace.toml"),
        format!("data_gb_month = 1\nenforce_data = true\n{CONTROL}"),
    )
    .unwrap();
    assert!(relay.snapshot().hycos[0].over_quota);
    wait_for("the third warning", || {
        told(&control, "no new flows until the month ends")
    });
    fs::write(
        folder.path().join("namespace.toml"),
        format!("data_gb_month = 2\nenforce_data = true\n{CONTROL}"),
    )
    .unwrap();
    assert!(!relay.snapshot().hycos[0].over_quota);
}

#[test]
fn a_kill_of_control_loses_no_figure_and_counts_none_twice() {
    let folder = folder(CONTROL, &["payroll-sql"]);
    let directory = Directory::new(folder.path());
    for round in 1..=5_u64 {
        let mut process = Command::new(env!("CARGO_BIN_EXE_underpass"))
            .args(["control", "--log", "error", "--dir"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let client = wait_for("control", || {
            Client::find(&directory, clock::system()).ok().flatten()
        });
        let namespace = || client.get::<NamespaceTold>("/v1/namespace").unwrap();
        let mut relay = running::relay(&directory);
        // The relay counts on while control is away.
        relay.send(&report(1, 1_000 * round, round));
        wait_for("the figures", || {
            (used(&namespace()) == 1_001 * round).then_some(())
        });
        // SIGKILL, whether or not the figures were written.
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

fn told(control: &Control, part: &str) -> Option<()> {
    let faults = publish::status(&control.directory).unwrap().faults;
    faults
        .iter()
        .any(|fault| fault.what.contains(part))
        .then_some(())
}

fn used(namespace: &NamespaceTold) -> u64 {
    let month = &namespace.usage[0];
    month.bytes_to_endpoint + month.bytes_to_application
}

fn report(instance: u8, to_endpoint: u64, to_application: u64) -> FeedMessage {
    let hyco = HycoReport {
        bytes_to_endpoint: to_endpoint,
        bytes_to_application: to_application,
        ..HycoReport::new("payroll-sql".parse().unwrap())
    };
    FeedMessage::Report(Box::new(Report {
        instance: Instance([instance; 16]),
        hycos: vec![hyco],
        ..Report::default()
    }))
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot
        .hycos
        .iter()
        .map(|hyco| hyco.name.as_str())
        .collect()
}
