//! What came of a scenario. Written to JSON as it is, read back from there, and merged from threads
//! and processes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Distribution, Group, Pace, Sketch};
use crate::flow::Ending;

/// Faults that are told in words; the others are counted only.
pub(crate) const FAULTS_TOLD: usize = 20;

/// What came of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Name of the scenario.
    pub scenario: String,
    /// Where the flows went.
    pub targets: Vec<String>,
    /// Processors and kernel of the machine that ran it.
    pub machine: String,
    /// How the sockets were talked to.
    pub io: String,
    /// Seed of the bytes and of all chances.
    pub seed: u64,
    /// How long calls were begun, seconds: less than the scenario says where the run was ended
    /// early.
    pub seconds: f64,
    /// Whether somebody ended it early.
    pub stopped_early: bool,
    /// Length of the entries of each series, seconds.
    pub interval_seconds: f64,
    /// In the order of the scenario.
    pub groups: Vec<GroupOutcome>,
}

/// What came of one group.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GroupOutcome {
    /// Its name.
    pub name: String,
    /// Its connections.
    pub flows: u64,
    /// Its pace.
    pub pace: Pace,
    /// How long its calls were begun, seconds. Rates are over this time.
    pub seconds: f64,
    /// Calls by how they ended.
    pub counts: Counts,
    /// Bytes of requests that were sent within `seconds`.
    pub bytes_up: u64,
    /// Bytes of responses that were received within `seconds`.
    pub bytes_down: u64,
    /// Of each call that was right; in open loop from the time when it was due, in closed loop
    /// service time. In open loop a call that had no answer when the run ended counts with the time
    /// it had waited.
    pub latency: Distribution,
    /// In open loop: of each call that was right, from its first byte. What an observer would see
    /// who asks only when it is answered.
    pub service: Distribution,
    /// In open loop: how late this program itself began calls whose flow was free. The machine's
    /// share of the latency.
    pub lateness: Distribution,
    /// Of each connect that succeeded.
    pub connect: Distribution,
    /// Entry by entry, from the start of the run.
    pub series: Vec<Second>,
    /// The first calls and connections that were not right.
    pub faults: Vec<Fault>,
}

/// Calls by how they ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Answered, and every byte as it should be.
    pub right: u64,
    /// Of those, within the group's time.
    pub in_time: u64,
    /// An explicit error: a failed connect, a reset.
    pub failed: u64,
    /// Wrong bytes.
    pub corrupt: u64,
    /// A clean end after missing bytes.
    pub truncated: u64,
    /// No byte moved within the deadline.
    pub hung: u64,
    /// Under way when the run ended, and given up.
    pub cut: u64,
    /// Open loop: due, and not begun before the run ended. More than a few: the rate is more than
    /// this way carries.
    pub unsent: u64,
    /// Connections that were opened.
    pub connections: u64,
}

/// One entry of a series.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Second {
    /// Bytes of requests sent.
    pub up: u64,
    /// Bytes of responses received.
    pub down: u64,
    /// Calls that were answered, and right.
    pub right: u64,
    /// Calls that were not right.
    pub bad: u64,
    /// Of the calls that were answered in this time.
    pub latency: Sketch,
}

/// One call or connection that was not right.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// Number of the flow in its group.
    pub flow: u64,
    /// Since the start, seconds, rounded.
    pub second: u64,
    /// `failed`, `corrupt`, `truncated` or `hung`.
    pub ending: String,
    /// What was seen.
    pub what: String,
}

impl Outcome {
    /// Calls that were not right, in all groups. What the run's end cut off is not among them.
    pub fn bad(&self) -> u64 {
        self.groups.iter().map(|group| group.counts.bad()).sum()
    }

    /// The group with this name.
    pub fn group(&self, name: &str) -> Option<&GroupOutcome> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Takes in what another process did of the same scenario at the same time.
    pub fn add(&mut self, part: &Outcome) {
        self.seconds = self.seconds.max(part.seconds);
        self.stopped_early |= part.stopped_early;
        for (whole, part) in self.groups.iter_mut().zip(&part.groups) {
            whole.seconds = whole.seconds.max(part.seconds);
            whole.add(part);
        }
    }
}

impl GroupOutcome {
    pub(crate) fn new(group: &Group) -> GroupOutcome {
        GroupOutcome {
            name: group.name.clone(),
            flows: group.flows,
            pace: group.pace,
            seconds: 0.0,
            counts: Counts::default(),
            bytes_up: 0,
            bytes_down: 0,
            latency: Distribution::default(),
            service: Distribution::default(),
            lateness: Distribution::default(),
            connect: Distribution::default(),
            series: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Calls answered per second, within the group's time.
    pub fn calls_per_second(&self) -> f64 {
        self.per_second(self.counts.in_time)
    }

    /// Gigabits (10^9) per second upwards, within the group's time.
    pub fn gbit_per_second_up(&self) -> f64 {
        self.per_second(self.bytes_up) * 8e-9
    }

    /// Gigabits (10^9) per second downwards, within the group's time.
    pub fn gbit_per_second_down(&self) -> f64 {
        self.per_second(self.bytes_down) * 8e-9
    }

    fn per_second(&self, amount: u64) -> f64 {
        if self.seconds > 0.0 {
            amount as f64 / self.seconds
        } else {
            0.0
        }
    }

    /// Takes in what another thread or process did of the same group at the same time.
    pub(crate) fn add(&mut self, part: &GroupOutcome) {
        self.counts.add(&part.counts);
        self.bytes_up += part.bytes_up;
        self.bytes_down += part.bytes_down;
        self.latency.add(&part.latency);
        self.service.add(&part.service);
        self.lateness.add(&part.lateness);
        self.connect.add(&part.connect);
        if self.series.len() < part.series.len() {
            self.series.resize_with(part.series.len(), Second::default);
        }
        for (whole, part) in self.series.iter_mut().zip(&part.series) {
            whole.add(part);
        }
        let room = FAULTS_TOLD.saturating_sub(self.faults.len());
        self.faults.extend(part.faults.iter().take(room).cloned());
    }
}

impl Counts {
    /// Calls that were not right.
    pub fn bad(&self) -> u64 {
        self.failed + self.corrupt + self.truncated + self.hung
    }

    fn add(&mut self, part: &Counts) {
        self.right += part.right;
        self.in_time += part.in_time;
        self.failed += part.failed;
        self.corrupt += part.corrupt;
        self.truncated += part.truncated;
        self.hung += part.hung;
        self.cut += part.cut;
        self.unsent += part.unsent;
        self.connections += part.connections;
    }
}

impl Second {
    fn add(&mut self, part: &Second) {
        self.up += part.up;
        self.down += part.down;
        self.right += part.right;
        self.bad += part.bad;
        self.latency.add(&part.latency);
    }
}

impl Fault {
    /// `None` where nothing is wrong.
    pub(crate) fn new(flow: u64, at: Duration, ending: &Ending) -> Option<Fault> {
        let (name, what) = match ending {
            Ending::Right => return None,
            Ending::Failed(what) => ("failed", what),
            Ending::Corrupt(what) => ("corrupt", what),
            Ending::Truncated(what) => ("truncated", what),
            Ending::Hung(what) => ("hung", what),
        };
        Some(Fault {
            flow,
            second: at.as_secs(),
            ending: name.into(),
            what: what.clone(),
        })
    }
}
