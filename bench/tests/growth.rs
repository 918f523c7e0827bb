//! Growth is measured along every axis, and told as table, JSON and picture.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use underpass_tests::{installation, turn};

const PROGRAM: &str = env!("CARGO_BIN_EXE_underpass-bench");

#[test]
fn every_axis_gives_all_its_figures() {
    let _turn = turn::alone();
    let underpass = installation::binary().expect("built");
    let folder = TempDir::new().expect("made");
    let json = folder.path().join("growth.json");
    let output = Command::new(PROGRAM)
        // A quarter of the usual load: a machine that is busy with other things keeps up.
        .args(["growth", "--rounds=1", "--seconds=1", "--most=10"])
        .arg("--share=0.25")
        .arg(format!("--json={}", json.display()))
        .arg(format!("--svg={}", folder.path().display()))
        .arg(format!("--underpass={}", underpass.display()))
        .output()
        .expect("starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let table = String::from_utf8_lossy(&output.stdout);
    let report = fs::read_to_string(json).expect("written");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    for (axis, title, figures) in [
        ("flows", "flows", 14),
        ("hycos", "hybrid connections", 11),
        ("agents", "agents", 6),
    ] {
        let lines = report["lines"].as_array().expect("lines");
        let of_axis = lines.iter().filter(|line| line["axis"] == axis);
        let of_axis: Vec<&Value> = of_axis.collect();
        assert_eq!(of_axis.len(), figures, "{axis}: {of_axis:?}");
        for line in of_axis {
            let points = line["points"].as_array().expect("points");
            let counts: Vec<u64> = points
                .iter()
                .filter_map(|point| point["count"].as_u64())
                .collect();
            assert_eq!(counts, [1, 10], "{line}");
            // Memory of a few flows may be none that is new; all else takes something.
            let memory = line["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("memory"));
            let least = points.iter().filter_map(|point| point["min"].as_f64());
            assert!(
                memory || least.into_iter().all(|least| least > 0.0),
                "{line}"
            );
        }
        assert!(
            table.contains(&format!("| {title} | of | unit | 1 | 10 | |")),
            "{table}"
        );
        let picture = folder.path().join(format!("growth-{axis}.svg"));
        let picture = fs::read_to_string(picture).expect("drawn");
        assert!(picture.starts_with("<svg ") && picture.contains("class=\"relay\""));
    }
}
