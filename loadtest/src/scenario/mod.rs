//! Scenarios: groups of flows that run side by side, each with its own sizes and its own pace, and
//! what came of them.
//!
//! A group in open loop (`rate`) sends when the clock says so, and a call counts from the moment
//! when it was *due*: a way that stands still for a second shows in the latency of every call of
//! that second, not of the one that happened to be under way (no coordinated omission). A group in
//! closed loop sends when the call before was answered; its latency is service time.
//!
//! ```
//! use std::time::Duration;
//! use underpass_loadtest::scenario::{self, Group, Pace, Scenario};
//! use underpass_loadtest::{Endpoint, endpoint};
//!
//! let endpoint = Endpoint::start(endpoint::Settings::new("127.0.0.1:0".parse().unwrap()))?;
//! let ping = Group { pace: Pace::Rate(200.0), ..Group::new("ping") };
//! let mut scenario = Scenario::new("example", vec![ping]);
//! scenario.duration = Duration::from_millis(300);
//! let outcome = scenario::run(&scenario, &[endpoint.address()])?;
//! let ping = &outcome.groups[0];
//! assert_eq!((ping.counts.right, ping.counts.bad()), (60, 0));
//! assert!(ping.latency.at(0.99).unwrap() < Duration::from_secs(1));
//! # Ok::<(), underpass_loadtest::scenario::Error>(())
//! ```

mod alarm;
pub mod builtin;
mod check;
mod client;
mod connection;
mod distribution;
mod file;
mod outcome;
mod recorder;
mod run;
mod schedule;
mod values;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use check::Invalid;
pub use distribution::{Distribution, Sketch};
pub use file::Fault as FileFault;
pub use outcome::{Counts, Fault, GroupOutcome, Outcome, Second};
pub use run::{Error, GRACE, GroupProgress, Progress, Settings, Stop, run, run_with};

/// Largest request or response, bytes: what one call moves in a minute at 100 Gbit/s. More is more
/// calls.
pub const SIZE_MAX: u64 = 1 << 40;

/// Most flows of one group: what all ports of a hundred source addresses could carry.
pub const FLOWS_MAX: u64 = 4_000_000;

/// Most groups of one scenario: each has a line on the screen.
pub const GROUPS_MAX: usize = 32;

/// Longest time of anything in a scenario: a day, so that a series of it stays small.
pub const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// Groups of flows that run side by side.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// Its name in reports.
    pub name: String,
    /// One sentence for people.
    pub about: String,
    /// How long calls are begun, the ramp included; a group may have less.
    pub duration: Duration,
    /// A call in which no byte moves for this long hangs.
    pub deadline: Duration,
    /// What runs.
    pub groups: Vec<Group>,
}

/// Flows that do the same thing. Each carries one call at a time: a request, and its response.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Its name in reports.
    pub name: String,
    /// Connections.
    pub flows: u64,
    /// When calls begin.
    pub pace: Pace,
    /// What the far end speaks.
    pub protocol: Protocol,
    /// Length of a request, bytes.
    pub request: Sizes,
    /// Length of a response, bytes; not used where the protocol gives it.
    pub response: Sizes,
    /// The flows begin one after another, spread over this time.
    pub ramp: Duration,
    /// Ends this group before the scenario.
    pub duration: Option<Duration>,
    /// A new connection after this many calls; `None`: one connection to the end.
    pub churn: Option<u64>,
    /// Each flow reads no faster than this, bytes per second.
    pub read_rate: Option<u64>,
    /// Whether every byte is checked, at both ends.
    pub verify: bool,
}

/// When calls begin.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// Closed loop: after the answer to the call before, and a time to think.
    Closed {
        /// Flows that may have a call under way at once; `None`: all.
        concurrency: Option<u64>,
        /// Between an answer and the next call.
        think: Think,
    },
    /// Open loop: so many calls per second over all flows, evenly spaced, answered or not.
    Rate(f64),
    /// All flows are silent for a time, then all call at once, and so on.
    Burst {
        /// The silence before each burst, counted from the burst before.
        #[serde(with = "seconds")]
        idle: Duration,
        /// Calls of each flow in a burst, one behind the other.
        calls: u64,
    },
}

/// A time between two bounds; every time between them is equally likely.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Think {
    /// Shortest.
    #[serde(with = "seconds")]
    pub from: Duration,
    /// Longest.
    #[serde(with = "seconds")]
    pub to: Duration,
}

/// What the far end speaks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// An endpoint of this program: it reads the request, checks it, and answers with the response
    /// asked for.
    #[default]
    Call,
    /// Any echo server: the response is the request.
    Echo,
    /// Any server that swallows all it gets: a call ends when the kernel has taken its bytes.
    Discard,
}

/// Lengths, each as likely as its weight says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct Sizes(pub Vec<Weighted>);

/// Lengths between two bounds; every length between them is equally likely.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Weighted {
    /// Shortest, bytes.
    pub from: u64,
    /// Longest, bytes.
    pub to: u64,
    /// Share among the others.
    pub weight: f64,
}

impl Scenario {
    /// Ten seconds of these groups.
    pub fn new(name: &str, groups: Vec<Group>) -> Scenario {
        Scenario {
            name: name.into(),
            about: String::new(),
            duration: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            groups,
        }
    }
}

impl Group {
    /// One flow in closed loop, one byte there and one back, every byte checked.
    pub fn new(name: &str) -> Group {
        Group {
            name: name.into(),
            flows: 1,
            pace: Pace::CLOSED,
            protocol: Protocol::Call,
            request: Sizes::fixed(1),
            response: Sizes::fixed(1),
            ramp: Duration::ZERO,
            duration: None,
            churn: None,
            read_rate: None,
            verify: true,
        }
    }
}

impl Pace {
    /// Closed loop, all flows at once, without a pause.
    pub const CLOSED: Pace = Pace::Closed {
        concurrency: None,
        think: Think {
            from: Duration::ZERO,
            to: Duration::ZERO,
        },
    };

    /// Whether calls are due by the clock, so that latency counts from there.
    pub fn is_open(&self) -> bool {
        !matches!(self, Pace::Closed { .. })
    }
}

impl Sizes {
    /// Always the same.
    pub fn fixed(len: u64) -> Sizes {
        Sizes::between(len, len)
    }

    /// All lengths between these are equally likely.
    pub fn between(from: u64, to: u64) -> Sizes {
        Sizes(vec![Weighted {
            from,
            to,
            weight: 1.0,
        }])
    }

    /// The largest that can come.
    pub fn max(&self) -> u64 {
        self.0.iter().map(|part| part.to).max().unwrap_or(0)
    }

    /// One length, by chance.
    fn pick(&self, rng: &mut impl rand::RngExt) -> u64 {
        let [only] = self.0.as_slice() else {
            let all: f64 = self.0.iter().map(|part| part.weight).sum();
            let mut at = rng.random_range(0.0..all);
            for part in &self.0 {
                if at < part.weight {
                    return rng.random_range(part.from..=part.to);
                }
                at -= part.weight;
            }
            return self.max(); // Rounding alone leads here.
        };
        if only.from == only.to {
            return only.from;
        }
        rng.random_range(only.from..=only.to)
    }
}

/// Times as seconds in JSON.
mod seconds {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}
