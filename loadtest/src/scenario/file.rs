//! Scenario files: TOML, read strictly. A mistake is told with file, line and what to write
//! instead.

use std::path::Path;

use serde::Deserialize;

use super::values::{Size, Time, Times};
use super::{Group, Invalid, Pace, Protocol, Scenario, Sizes, Think};

/// Largest file that is read, bytes: thousands of times what a scenario needs.
const FILE_MAX: u64 = 1 << 20;

/// What is wrong with a file, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}{}: {what}\nhint: {hint}", line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct Fault {
    /// The file as it was named.
    pub file: String,
    /// Counted from 1; `None` where it is no matter of one line.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do next.
    pub hint: String,
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no scenario that makes sense.
    pub fn read(path: &Path) -> Result<Scenario, Fault> {
        let file = path.display().to_string();
        let fault = |what: String| Fault {
            file: file.clone(),
            line: None,
            what,
            hint: "give a scenario file, or a name from `underpass-loadtest scenarios`".into(),
        };
        let len = std::fs::metadata(path)
            .map_err(|error| fault(error.to_string()))?
            .len();
        if len > FILE_MAX {
            return Err(fault(format!(
                "{len} bytes are no scenario (at most {FILE_MAX})"
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        Scenario::parse(&text, &file, stem.unwrap_or("scenario"))
    }

    /// Reads the text of a file. `file` is how it is called in faults, `name` what the scenario is
    /// called where it says nothing.
    ///
    /// # Errors
    /// It is no scenario that makes sense.
    pub fn parse(text: &str, file: &str, name: &str) -> Result<Scenario, Fault> {
        let read: File = toml::from_str(text).map_err(|error| Fault {
            file: file.into(),
            line: error.span().map(|span| line(text, span.start)),
            what: error.message().trim().replace('\n', ", "),
            hint: HINT.into(),
        })?;
        let fault = |invalid: Invalid| Fault {
            file: file.into(),
            line: find(text, &invalid),
            what: invalid.to_string(),
            hint: HINT.into(),
        };
        let scenario = read.scenario(name).map_err(fault)?;
        scenario.check().map_err(fault)?;
        Ok(scenario)
    }
}

const HINT: &str =
    "docs/loadtest.md has every field; `underpass-loadtest scenarios show mix` prints an example";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    #[serde(default)]
    about: String,
    duration: Option<Time>,
    deadline: Option<Time>,
    #[serde(default)]
    group: Vec<GroupTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupTable {
    name: Option<String>,
    flows: Option<u64>,
    concurrency: Option<u64>,
    rate: Option<f64>,
    idle: Option<Time>,
    burst: Option<u64>,
    think: Option<Times>,
    protocol: Option<Protocol>,
    request: Option<Sizes>,
    response: Option<Sizes>,
    ramp: Option<Time>,
    duration: Option<Time>,
    churn: Option<u64>,
    read_rate: Option<Size>,
    verify: Option<bool>,
}

impl File {
    fn scenario(self, name: &str) -> Result<Scenario, Invalid> {
        let groups = (self.group.into_iter().enumerate())
            .map(|(n, table)| table.group(n))
            .collect::<Result<_, _>>()?;
        let default = Scenario::new(self.name.as_deref().unwrap_or(name), groups);
        Ok(Scenario {
            about: self.about,
            duration: self.duration.map_or(default.duration, |time| time.0),
            deadline: self.deadline.map_or(default.deadline, |time| time.0),
            ..default
        })
    }
}

impl GroupTable {
    fn group(self, n: usize) -> Result<Group, Invalid> {
        let name = self
            .name
            .clone()
            .unwrap_or_else(|| format!("group-{}", n + 1));
        let pace = self.pace().map_err(|(field, what)| Invalid {
            group: Some((n, name.clone())),
            field,
            what: what.into(),
        })?;
        let default = Group::new(&name);
        Ok(Group {
            name,
            flows: self.flows.unwrap_or(default.flows),
            pace,
            protocol: self.protocol.unwrap_or_default(),
            request: self.request.unwrap_or(default.request),
            response: self.response.unwrap_or(default.response),
            ramp: self.ramp.map_or(default.ramp, |time| time.0),
            duration: self.duration.map(|time| time.0),
            churn: self.churn,
            read_rate: self.read_rate.map(|size| size.0),
            verify: self.verify.unwrap_or(default.verify),
        })
    }

    fn pace(&self) -> Result<Pace, (&'static str, &'static str)> {
        if self.rate.is_some() {
            if self.concurrency.is_some() {
                let what =
                    "a group has a rate (open loop) or a concurrency (closed loop): leave one out";
                return Err(("concurrency", what));
            }
            if self.think.is_some() {
                return Err((
                    "think",
                    "with a rate the clock says when calls begin: leave one out",
                ));
            }
            if self.idle.is_some() {
                return Err(("idle", "a group has a rate or bursts: leave one out"));
            }
        }
        if self.burst.is_some() && self.idle.is_none() {
            return Err((
                "burst",
                "needs the silence before it: write idle = \"5s\" as well",
            ));
        }
        match (self.rate, &self.idle) {
            (Some(rate), _) => Ok(Pace::Rate(rate)),
            (None, Some(_)) if self.think.is_some() || self.concurrency.is_some() => Err((
                "idle",
                "a burst is of all flows at once: leave out think and concurrency",
            )),
            (None, Some(idle)) => Ok(Pace::Burst {
                idle: idle.0,
                calls: self.burst.unwrap_or(1),
            }),
            (None, None) => Ok(Pace::Closed {
                concurrency: self.concurrency,
                think: self.think.map_or(Think::default(), |times| times.0),
            }),
        }
    }
}

/// The line of a byte, counted from 1.
fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
}

/// The line of the field, of its group where it has none, or of nothing.
fn find(text: &str, invalid: &Invalid) -> Option<usize> {
    let is_header = |line: &str| line.trim_start().starts_with("[[group]]");
    let lines = || text.lines().enumerate();
    let (begin, end) = match &invalid.group {
        None => (0, lines().find(|(_, line)| is_header(line)).map(|(n, _)| n)),
        Some((group, _)) => {
            let mut headers = lines().filter(|(_, line)| is_header(line)).map(|(n, _)| n);
            (headers.nth(*group)?, headers.next())
        }
    };
    let field = lines()
        .take(end.unwrap_or(usize::MAX))
        .skip(begin)
        .find(|(_, line)| {
            let rest = line.trim_start().strip_prefix(invalid.field);
            rest.is_some_and(|rest| rest.trim_start().starts_with('='))
        })
        .map(|(n, _)| n + 1);
    field.or(invalid.group.is_some().then_some(begin + 1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::scenario::Weighted;

    #[test]
    fn every_field_is_read() {
        let text = r#"
            name = "all"
            about = "everything"
            duration = "1m"
            deadline = 5

            [[group]]
            name = "open"
            flows = 100
            rate = 2_000
            request = 100
            response = [{ size = "1k", weight = 9 }, { from = "1k", to = "1MiB" }, "5"]
            ramp = "2.5s"
            duration = "30s"
            churn = 10
            read_rate = "1MiB"
            verify = false

            [[group]]
            flows = 4
            concurrency = 2
            think = { from = "5ms", to = "20ms" }
            request = { from = 1, to = 9 }
            protocol = "echo"

            [[group]]
            idle = "5s"
            burst = 3
        "#;
        let scenario = Scenario::parse(text, "all.toml", "all").expect("is right");
        let weighted = |from, to, weight| Weighted { from, to, weight };
        let expected = Scenario {
            about: "everything".into(),
            duration: Duration::from_secs(60),
            deadline: Duration::from_secs(5),
            ..Scenario::new(
                "all",
                vec![
                    Group {
                        flows: 100,
                        pace: Pace::Rate(2_000.0),
                        request: Sizes::fixed(100),
                        response: Sizes(vec![
                            weighted(1_024, 1_024, 9.0),
                            weighted(1_024, 1 << 20, 1.0),
                            weighted(5, 5, 1.0),
                        ]),
                        ramp: Duration::from_millis(2_500),
                        duration: Some(Duration::from_secs(30)),
                        churn: Some(10),
                        read_rate: Some(1 << 20),
                        verify: false,
                        ..Group::new("open")
                    },
                    Group {
                        flows: 4,
                        pace: Pace::Closed {
                            concurrency: Some(2),
                            think: Think {
                                from: Duration::from_millis(5),
                                to: Duration::from_millis(20),
                            },
                        },
                        request: Sizes::between(1, 9),
                        protocol: Protocol::Echo,
                        ..Group::new("group-2")
                    },
                    Group {
                        pace: Pace::Burst {
                            idle: Duration::from_secs(5),
                            calls: 3,
                        },
                        ..Group::new("group-3")
                    },
                ],
            )
        };
        assert_eq!(scenario, expected);
    }

    #[test]
    fn a_mistake_is_told_with_file_and_line_and_what_to_write() {
        let cases = [
            ("[[group]]\nflow = 3", 2, "flows"),
            ("duration = \"10 parsecs\"\n[[group]]", 1, "parsecs"),
            ("[[group]]\nrequest = \"many\"", 2, "64k"),
            ("[[group]]\n\nresponse = { form = 1, to = 2 }", 3, "form"),
            ("[[group]]\nresponse = [1, { from = 1 }]", 2, "`to`"),
            ("[[group]]\nrate = 5\nthink = 1", 3, "leave one out"),
            ("[[group]]\nrate = 5\nconcurrency = 1", 3, "leave one out"),
            ("[[group]]\n[[group]]\nburst = 2", 3, "idle"),
            (
                "[[group]]\nname = \"a\"\n[[group]]\nname = \"a\"",
                4,
                "its own",
            ),
            ("[[group]]\nprotocol = \"http\"", 2, "discard"),
            ("[[group]]\nflows = 0", 2, "1 to"),
            ("[[group]]\nflows = -4", 2, "-4"),
            ("[[group]]\nrate = 0", 2, "above 0"),
            ("[[group]\n", 1, ""),
        ];
        for (text, line, word) in cases {
            let fault = Scenario::parse(text, "bad.toml", "bad").expect_err(text);
            assert_eq!(fault.line, Some(line), "{text:?}: {fault}");
            let told = fault.to_string();
            assert!(told.starts_with(&format!("bad.toml:{line}: ")), "{told}");
            assert!(told.contains(word) && told.contains("\nhint: "), "{told}");
        }
        let none = Scenario::parse("", "empty.toml", "empty").expect_err("no group");
        assert!(none.what.contains("[[group]]"), "{none}");
    }
}
