//! The side-by-side run gives figures of all that it was asked for, and says so when it cannot.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use underpass_tests::process::copy_program;
use underpass_tests::{installation, turn};

const PROGRAM: &str = env!("CARGO_BIN_EXE_underpass-bench");

#[test]
fn a_short_run_measures_a_row_over_every_way() {
    let _turn = turn::alone();
    let underpass = installation::binary().expect("built");
    let folder = TempDir::new().expect("made");
    let json = folder.path().join("report.json");
    let output = bench(&[
        "peers",
        "--rounds=1",
        "--seconds=1",
        "--rows=bulk",
        "--ways=direct,stock-path,ring-path",
        &format!("--json={}", json.display()),
        &format!("--underpass={}", underpass.display()),
    ]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let table = String::from_utf8_lossy(&output.stdout);
    let report = fs::read_to_string(&json).expect("written");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    let lines = report["lines"].as_array().expect("lines");
    assert_eq!(lines.len(), 3);
    for line in lines {
        let way = line["way"].as_str().expect("a name");
        assert!(
            table.contains(&format!("| bulk, 1 flow | {way} |")),
            "{table}"
        );
        let figures = &line["figures"];
        let rounds = figures["rate"]["rounds"].as_array().expect("rounds");
        assert_eq!(rounds.len(), 1, "{line}");
        assert!(rounds[0].as_f64() > Some(0.0), "{line}");
        assert!(line["to_direct"].as_f64() > Some(0.0), "{line}");
        let direct = way == "direct";
        assert_eq!(line["to_stock"].is_number(), !direct, "{line}");
        for measure in ["cost", "peak_rss", "switches"] {
            let median = figures[measure]["median"].as_f64();
            assert_eq!(median > Some(0.0), !direct, "{measure} of {line}");
        }
    }
    let (reader, writer) = std::io::pipe().expect("made");
    drop(reader);
    let output = Command::new(PROGRAM)
        .args(["peers", "--join"])
        .arg(&json)
        .stdout(writer)
        .output()
        .expect("started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), told.as_ref()), (Some(0), ""));
}

#[test]
fn a_binary_that_is_not_there_is_named() {
    let output = bench(&["peers", "--underpass=/nowhere/underpass"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        told.contains("no binary at /nowhere/underpass: build it"),
        "{told}"
    );
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_the_run() {
    let output = bench(&["peers", "--underpass=/bin/false", "--json=/nowhere/a.json"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("cannot write /nowhere/a.json"), "{told}");
    assert!(!told.contains("checked"), "{told}");
}

#[test]
fn a_way_that_does_not_open_is_a_failure_with_its_log() {
    // Any program that ends at once in place of the product.
    let output = bench(&["peers", "--ways=poll-path", "--underpass=/bin/false"]);
    let told = String::from_utf8_lossy(&output.stderr);
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("cannot open poll-path"), "{told}");
    assert!(table.contains("Failed: poll-path"), "{table}");
}

#[test]
fn a_peer_that_is_missing_is_left_out_by_name() {
    // Nowhere to be found: not in the path, not among Cargo's programs, and not in the target
    // folder, which is another for a copy.
    let folder = TempDir::new().expect("made");
    let profile = folder.path().join("debug");
    fs::create_dir(&profile).expect("made");
    let copy = profile.join("underpass-bench");
    copy_program(PROGRAM, &copy).expect("copied");
    let output = Command::new(copy)
        .args(["peers", "--ways=rathole", "--underpass=/bin/false"])
        .env("PATH", "")
        .env("CARGO_HOME", "/nowhere")
        .output()
        .expect("starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("skipped: rathole: rathole is not installed: `cargo install"),
        "{told}"
    );
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("starts")
}
