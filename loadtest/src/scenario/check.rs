//! Whether a scenario makes sense, before anything runs. Says which group and which field it is
//! that does not.

use std::time::Duration;

use super::{FLOWS_MAX, GROUPS_MAX, Group, Pace, Protocol, SIZE_MAX, Scenario, Sizes, TIME_MAX};

/// Longest name, bytes: a column on the screen.
const NAME_MAX: usize = 32;

/// Most calls per second of one group: more than any machine makes, and still exact in nanoseconds.
const RATE_MAX: f64 = 1e8;

/// What makes no sense, where, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}{field}: {what}", self.place())]
pub struct Invalid {
    /// Number and name of the group; `None`: it is the scenario's own.
    pub group: Option<(usize, String)>,
    /// Name of the field.
    pub field: &'static str,
    /// What is wrong, and what to write instead.
    pub what: String,
}

impl Scenario {
    /// Whether it can be run.
    ///
    /// # Errors
    /// The first thing that makes no sense.
    pub fn check(&self) -> Result<(), Invalid> {
        let wrong = |field, what: String| Invalid {
            group: None,
            field,
            what,
        };
        name(&self.name).map_err(|what| wrong("name", what))?;
        time(self.duration, "a second or more").map_err(|what| wrong("duration", what))?;
        time(self.deadline, "as long as silence is bearable")
            .map_err(|what| wrong("deadline", what))?;
        if self.groups.is_empty() || self.groups.len() > GROUPS_MAX {
            let what = format!("1 to {GROUPS_MAX} groups are possible: begin each with [[group]]");
            return Err(wrong("group", what));
        }
        for (n, group) in self.groups.iter().enumerate() {
            let wrong = |(field, what)| Invalid {
                group: Some((n, group.name.clone())),
                field,
                what,
            };
            group.check(self.duration).map_err(wrong)?;
            if self.groups[..n]
                .iter()
                .any(|other| other.name == group.name)
            {
                let what = "another group has this name: give each its own".into();
                return Err(wrong(("name", what)));
            }
        }
        Ok(())
    }
}

type Fault = (&'static str, String);

impl Group {
    fn check(&self, whole: Duration) -> Result<(), Fault> {
        name(&self.name).map_err(|what| ("name", what))?;
        if self.flows == 0 || self.flows > FLOWS_MAX {
            return Err(("flows", format!("1 to {FLOWS_MAX} are possible")));
        }
        self.check_pace()?;
        let smallest = match self.protocol {
            Protocol::Call => 0,
            Protocol::Echo | Protocol::Discard => 1, // Nothing at all would be no call.
        };
        sizes(&self.request, smallest).map_err(|what| ("request", what))?;
        sizes(&self.response, 0).map_err(|what| ("response", what))?;
        if self.ramp >= whole.min(self.duration.unwrap_or(whole)) {
            let what = "the last flows would begin after the end: shorten it, or lengthen duration";
            return Err(("ramp", what.into()));
        }
        if let Some(duration) = self.duration {
            time(duration, "at most as long as the scenario").map_err(|what| ("duration", what))?;
            if duration > whole {
                let what = "longer than the scenario: lengthen that, or leave this out";
                return Err(("duration", what.into()));
            }
        }
        if self.churn == Some(0) {
            return Err(("churn", "1 is a new connection for each call".into()));
        }
        if self.read_rate == Some(0) {
            return Err((
                "read_rate",
                "a reader that never reads hangs: 1 or more".into(),
            ));
        }
        Ok(())
    }

    fn check_pace(&self) -> Result<(), Fault> {
        match self.pace {
            Pace::Rate(rate) => {
                if !(rate > 0.0 && rate <= RATE_MAX) {
                    return Err(("rate", format!("above 0, at most {RATE_MAX} a second")));
                }
            }
            Pace::Closed { concurrency, think } => {
                if concurrency.is_some_and(|all| all == 0 || all > self.flows) {
                    let flows = self.flows;
                    return Err(("concurrency", format!("1 to {flows}, the number of flows")));
                }
                if think.from > think.to {
                    return Err(("think", "from is more than to: exchange them".into()));
                }
                if think.to > TIME_MAX {
                    return Err(("think", "at most a day".into()));
                }
            }
            Pace::Burst { idle, calls } => {
                time(idle, "the silence before each burst").map_err(|what| ("idle", what))?;
                if calls == 0 {
                    return Err(("burst", "1 call or more".into()));
                }
            }
        }
        Ok(())
    }
}

impl Invalid {
    fn place(&self) -> String {
        match &self.group {
            Some((n, name)) if name.is_empty() => format!("group {}: ", n + 1),
            Some((_, name)) => format!("group {name}: "),
            None => String::new(),
        }
    }
}

fn name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
        return Err(format!(
            "1 to {NAME_MAX} letters, digits, hyphens, points or underscores, as in \"ping-pong\""
        ));
    }
    Ok(())
}

fn time(time: Duration, instead: &str) -> Result<(), String> {
    if time.is_zero() || time > TIME_MAX {
        return Err(format!("more than nothing and at most a day: {instead}"));
    }
    Ok(())
}

fn sizes(sizes: &Sizes, smallest: u64) -> Result<(), String> {
    if sizes.0.is_empty() {
        return Err("an empty list: write at least one size".into());
    }
    for part in &sizes.0 {
        if part.from > part.to {
            return Err(format!(
                "from {} is more than to {}: exchange them",
                part.from, part.to
            ));
        }
        if part.from < smallest || part.to > SIZE_MAX {
            return Err(format!("sizes are {smallest} to {SIZE_MAX} bytes here"));
        }
        if !(part.weight > 0.0 && part.weight.is_finite()) {
            return Err("weights are above 0".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_without_sense_is_refused_by_group_and_field() {
        let default = || Group::new("one");
        let cases = [
            (
                Group {
                    flows: 0,
                    ..default()
                },
                "flows",
            ),
            (
                Group {
                    pace: Pace::Rate(f64::NAN),
                    ..default()
                },
                "rate",
            ),
            (
                Group {
                    pace: Pace::Rate(0.0),
                    ..default()
                },
                "rate",
            ),
            (
                Group {
                    request: Sizes::between(3, 2),
                    ..default()
                },
                "request",
            ),
            (
                Group {
                    response: Sizes(vec![]),
                    ..default()
                },
                "response",
            ),
            (
                Group {
                    ramp: Duration::from_secs(10),
                    ..default()
                },
                "ramp",
            ),
            (
                Group {
                    duration: Some(Duration::from_secs(11)),
                    ..default()
                },
                "duration",
            ),
            (
                Group {
                    churn: Some(0),
                    ..default()
                },
                "churn",
            ),
            (
                Group {
                    read_rate: Some(0),
                    ..default()
                },
                "read_rate",
            ),
            (Group::new("a name with spaces"), "name"),
        ];
        for (group, field) in cases {
            let name = group.name.clone();
            let error = Scenario::new("test", vec![group]).check().expect_err(field);
            assert_eq!(
                (error.field, &error.group),
                (field, &Some((0, name))),
                "{error}"
            );
        }
        let twice = Scenario::new("test", vec![default(), default()]).check();
        assert_eq!(twice.map_err(|error| error.field), Err("name"));
        assert_eq!(
            Scenario::new("test", vec![])
                .check()
                .map_err(|error| error.field),
            Err("group")
        );
        assert_eq!(Scenario::new("test", vec![default()]).check(), Ok(()));
    }
}
