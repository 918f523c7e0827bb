//! Schemathesis makes requests of the served OpenAPI document, right ones and wrong ones, and finds
//! nothing; the document itself is valid. Both tools come by pip, as tests/run.sh installs them
//! below the target directory; where they are not, the test says so and is skipped.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "other tests need more of it")]
mod running;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use running::{Control, Relay, folder, wait_for};
use underpass::files::keys;
use underpass::rest::model::Alive;
use underpass_proto::FeedMessage;
use underpass_proto::sas::{self, SasRule};
use underpass_proto::snapshot::ProbeReport;

/// Examples of each operation: the whole takes about half a minute.
const EXAMPLES: &str = "20";

#[test]
fn schemathesis_finds_nothing_and_the_document_is_valid() {
    let tools = tools();
    if !tools.join("st").exists() {
        eprintln!(
            "skipped: schemathesis is not in {}; tests/run.sh puts it there",
            tools.display()
        );
        return;
    }
    let folder = folder(
        "public_address = \"relay.example.com\"\n[control]\nlisten = \"127.0.0.1:0\"\n",
        &["payroll-sql", "archive-sql"],
    );
    let control = Control::start(&folder);
    let relay = control.relay();
    relay.stream.set_read_timeout(None).unwrap(); // It is asked something now and then.
    let answering = thread::spawn(move || answer(relay));
    let api = wait_for("the address", || control.namespace().api_address);
    wait_for("a relay that works by the newest definitions", || {
        control.client().get::<Alive>("/readyz").ok()
    });

    let url = format!("http://{api}/openapi.json");
    let document = folder.path().join("openapi.json");
    ok(Command::new("curl")
        .args(["--silent", "--fail", "--output"])
        .arg(&document)
        .arg(&url));
    ok(Command::new(tools.join("openapi-spec-validator")).arg(&document));

    let expires = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        + 3_600;
    let key = keys::load_manage(&control.directory).unwrap().primary;
    let token = sas::make(&format!("http://{api}/"), SasRule::Manage, &key, expires);
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis.toml");
    ok(Command::new(tools.join("st"))
        .arg("--config-file")
        .arg(config)
        .args([
            "run",
            "--no-color",
            "--continue-on-failure",
            "--max-examples",
            EXAMPLES,
            &url,
        ])
        .env("UNDERPASS_TEST_TOKEN", token.as_str())
        .current_dir(folder.path()));
    drop(control);
    answering.join().unwrap();
}

/// Below the target directory.
fn tools() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    target.join("schemathesis/bin")
}

/// A relay that applies everything and has no agents, until control is gone.
fn answer(mut relay: Relay) {
    while let Some(message) = relay.next_if_any() {
        let answer = match message {
            FeedMessage::Snapshot(snapshot) => FeedMessage::Applied {
                generation: snapshot.generation,
                faults: Vec::new(),
            },
            FeedMessage::Probe { id, .. } => FeedMessage::Probed {
                id,
                report: Some(Box::new(ProbeReport {
                    known: true,
                    agents: Vec::new(),
                })),
            },
            _ => continue,
        };
        if !relay.try_send(&answer) {
            return;
        }
    }
}

fn ok(command: &mut Command) {
    let output = command.output().unwrap();
    let said = [&output.stdout[..], &output.stderr]
        .map(String::from_utf8_lossy)
        .join("\n");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{said}",
        output.status
    );
}
