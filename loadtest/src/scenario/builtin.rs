//! The scenarios that come with the program. They are files like any other: a start for one's own.

use super::Scenario;

/// Name and text of each.
pub const ALL: [(&str, &str); 8] = [
    ("bulk", include_str!("../../scenarios/bulk.toml")),
    ("ping-pong", include_str!("../../scenarios/ping-pong.toml")),
    ("sql-like", include_str!("../../scenarios/sql-like.toml")),
    ("http-like", include_str!("../../scenarios/http-like.toml")),
    ("churn", include_str!("../../scenarios/churn.toml")),
    (
        "idle-then-burst",
        include_str!("../../scenarios/idle-then-burst.toml"),
    ),
    ("mix", include_str!("../../scenarios/mix.toml")),
    (
        "slow-reader",
        include_str!("../../scenarios/slow-reader.toml"),
    ),
];

/// The text of the one with this name.
pub fn text(name: &str) -> Option<&'static str> {
    let mut all = ALL.iter();
    all.find(|(each, _)| *each == name).map(|(_, text)| *text)
}

/// The one with this name.
pub fn scenario(name: &str) -> Option<Scenario> {
    let scenario = Scenario::parse(text(name)?, name, name);
    Some(scenario.expect("what comes with the program is tested"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_scenario_can_be_run_and_says_what_it_is_about() {
        for (name, _) in ALL {
            let scenario = scenario(name).expect("is there");
            assert_eq!(scenario.name, name);
            assert!(!scenario.about.is_empty(), "{name}");
        }
        assert_eq!(scenario("no-such"), None);
    }
}
