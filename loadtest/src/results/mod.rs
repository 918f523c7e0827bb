//! What came of a scenario, for people and for programs.

mod html;
mod svg;
mod table;

use serde_json::{Value, json};

pub use html::{RUNS_MAX, Run, to_html};
pub use svg::escape;
pub use table::Table;

use crate::scenario::Outcome;

/// The outcome as JSON: its own fields, and the rates of each group. It can be read back as an
/// [`Outcome`].
pub fn to_json(outcome: &Outcome) -> String {
    let mut value = serde_json::to_value(outcome).expect("numbers and strings are JSON");
    let groups = value["groups"].as_array_mut().into_iter().flatten();
    for (written, group) in groups.zip(&outcome.groups) {
        if let Value::Object(fields) = written {
            fields.insert("calls_per_second".into(), json!(group.calls_per_second()));
            fields.insert(
                "gbit_per_second_up".into(),
                json!(group.gbit_per_second_up()),
            );
            fields.insert(
                "gbit_per_second_down".into(),
                json!(group.gbit_per_second_down()),
            );
        }
    }
    value.to_string()
}
