//! The side-by-side run gives figures of all that it was asked for, and says so when it cannot.

use std::process::{Command, Output};

use serde_json::Value;
use underpass_tests::{installation, turn};

#[test]
fn a_short_run_measures_every_row_over_every_way() {
    let _turn = turn::alone();
    let underpass = installation::binary().expect("built");
    let output = bench(&[
        "speed",
        "--json",
        "--rounds=2",
        "--seconds=1",
        "--rows=bulk,http-64",
        "--ways=direct,stock-1452,poll-1452,ring-path",
        &format!("--underpass={}", underpass.display()),
    ]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    let lines = report["lines"].as_array().expect("lines");
    assert_eq!(lines.len(), 8);
    for line in lines {
        let rates = line["rates"].as_array().expect("rates");
        assert_eq!(rates.len(), 2, "{line}");
        assert!(rates.iter().all(|rate| rate.as_f64() > Some(0.0)), "{line}");
        let direct = line["way"] == "direct";
        assert_eq!(line["cost"].as_f64() > Some(0.0), !direct, "{line}");
        let beside = ["stock-1452", "poll-1452"].map(Value::from);
        assert_eq!(
            line["to_stock"].is_number(),
            beside.contains(&line["way"]),
            "{line}"
        );
        assert!(line["to_direct"].as_f64() > Some(0.0), "{line}");
    }
}

#[test]
fn a_binary_that_is_not_there_is_named() {
    let output = bench(&["speed", "--underpass=/nowhere/underpass"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        told.contains("no binary at /nowhere/underpass: build it"),
        "{told}"
    );
}

#[test]
fn a_way_that_does_not_open_is_an_error_with_its_log() {
    // Any program that ends at once in place of the product.
    let output = bench(&["speed", "--ways=poll-path", "--underpass=/bin/false"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("cannot open poll-path"), "{told}");
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_underpass-bench"))
        .args(arguments)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("starts")
}
