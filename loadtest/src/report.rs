//! A run's outcome for people (a table) and for programs (JSON, whose fields stay as they are).

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::flow::Ending;
use crate::run::{Outcome, Plan};
use crate::units::show_time;

/// What a run came to. Displays as a table.
#[derive(Serialize, Deserialize, Debug)]
pub struct Report {
    /// Where the flows went.
    pub target: String,
    /// What they did.
    pub mode: String,
    /// How the sockets were talked to.
    pub io: String,
    /// Seed of the run.
    pub seed: u64,
    /// From the first connect to the last close, seconds.
    pub seconds: f64,
    /// Flows by how they ended.
    pub flows: Flows,
    /// Bytes sent, headers aside.
    pub bytes_up: u64,
    /// Bytes received, the endpoint's verdicts included (40 bytes a flow).
    pub bytes_down: u64,
    /// Rate upwards, gigabits (10^9) per second.
    pub gbit_per_second_up: f64,
    /// Rate downwards, gigabits (10^9) per second.
    pub gbit_per_second_down: f64,
    /// Messages there and back per second (ping-pong; else 0).
    pub round_trips_per_second: f64,
    /// Time to connect.
    pub connect: Option<Times>,
    /// From the start of the connect to the first byte from the endpoint.
    pub first_byte: Option<Times>,
    /// Of a message there and back.
    pub round_trip: Option<Times>,
    /// Of whole flows.
    pub flow: Option<Times>,
    /// The longest time of each flow in which no byte moved.
    pub silence: Option<Times>,
    /// The first endings that were not right.
    pub faults: Vec<Fault>,
}

/// Flows counted by how they ended.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flows {
    /// In all.
    pub total: u64,
    /// All bytes came and were right.
    pub ok: u64,
    /// An explicit error.
    pub error: u64,
    /// Wrong bytes.
    pub corrupt: u64,
    /// A clean end after missing bytes.
    pub truncated: u64,
    /// No progress within the deadline.
    pub hung: u64,
}

/// A distribution, microseconds.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct Times {
    /// How many were measured.
    pub count: u64,
    /// The smallest.
    pub min_us: u64,
    /// Median.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// The largest.
    pub max_us: u64,
}

/// One ending that was not right.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Fault {
    /// Number of the flow; with the seed it names its bytes.
    pub flow: u64,
    /// `error`, `corrupt`, `truncated` or `hung`.
    pub ending: String,
    /// What was seen.
    pub what: String,
}

impl Report {
    /// Puts plan and outcome together.
    pub fn new(plan: &Plan, outcome: &Outcome) -> Report {
        let tally = &outcome.tally;
        let seconds = outcome.elapsed.as_secs_f64();
        let rate = |bytes: u64| bytes as f64 * 8.0 / seconds / 1e9;
        Report {
            target: plan.target.to_string(),
            mode: clap::ValueEnum::to_possible_value(&plan.mode)
                .map_or_else(String::new, |value| value.get_name().into()),
            io: outcome.kind.name().into(),
            seed: plan.seed,
            seconds,
            flows: Flows {
                total: tally.flows(),
                ok: tally.right,
                error: tally.failed,
                corrupt: tally.corrupt,
                truncated: tally.truncated,
                hung: tally.hung,
            },
            bytes_up: outcome.bytes_up,
            bytes_down: outcome.bytes_down,
            gbit_per_second_up: rate(outcome.bytes_up),
            gbit_per_second_down: rate(outcome.bytes_down),
            round_trips_per_second: tally.round_trip_us.len() as f64 / seconds,
            connect: Times::of(&tally.connect_us),
            first_byte: Times::of(&tally.first_byte_us),
            round_trip: Times::of(&tally.round_trip_us),
            flow: Times::of(&tally.flow_us),
            silence: Times::of(&tally.silence_us),
            faults: tally
                .faults
                .iter()
                .filter_map(|(flow, ending)| Fault::of(*flow, ending))
                .collect(),
        }
    }
}

impl Times {
    fn of(histogram: &Histogram<u64>) -> Option<Times> {
        (!histogram.is_empty()).then(|| Times {
            count: histogram.len(),
            min_us: histogram.min(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        })
    }
}

impl Fault {
    fn of(flow: u64, ending: &Ending) -> Option<Fault> {
        let what = match ending {
            Ending::Right => return None,
            Ending::Failed(what)
            | Ending::Corrupt(what)
            | Ending::Truncated(what)
            | Ending::Hung(what) => what,
        };
        Some(Fault {
            flow,
            ending: ending.name().into(),
            what: what.clone(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flows {
            total,
            ok,
            error,
            corrupt,
            truncated,
            hung,
        } = self.flows;
        writeln!(
            f,
            "{} {} by {}, seed {}, {:.2} s",
            self.mode, self.target, self.io, self.seed, self.seconds
        )?;
        writeln!(f)?;
        writeln!(
            f,
            "flows   {total:>12}   ok {ok}, error {error}, corrupt {corrupt}, truncated {truncated}, hung {hung}"
        )?;
        writeln!(
            f,
            "up      {:>12}   {:.2} Gbit/s",
            bytes(self.bytes_up),
            self.gbit_per_second_up
        )?;
        writeln!(
            f,
            "down    {:>12}   {:.2} Gbit/s",
            bytes(self.bytes_down),
            self.gbit_per_second_down
        )?;
        if self.round_trip.is_some() {
            writeln!(
                f,
                "rounds  {:>12.0}   per second",
                self.round_trips_per_second
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "time       {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "count", "p50", "p90", "p99", "p99.9", "max"
        )?;
        let rows = [
            ("connect", self.connect),
            ("first byte", self.first_byte),
            ("round trip", self.round_trip),
            ("whole flow", self.flow),
            ("silence", self.silence),
        ];
        for (name, times) in rows {
            let Some(times) = times else { continue };
            write!(f, "{name:<10} {:>9}", times.count)?;
            for us in [
                times.p50_us,
                times.p90_us,
                times.p99_us,
                times.p999_us,
                times.max_us,
            ] {
                write!(f, " {:>9}", duration(us))?;
            }
            writeln!(f)?;
        }
        for fault in &self.faults {
            writeln!(f, "flow {}: {}: {}", fault.flow, fault.ending, fault.what)?;
        }
        Ok(())
    }
}

fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

fn duration(us: u64) -> String {
    show_time(Duration::from_micros(us))
}
