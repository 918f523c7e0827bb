//! The TCP fidelity suite: does a tunnel keep the exact meaning of TCP?
//!
//! Runs against any pair of addresses: the suite connects to `listen` as the application, and owns
//! the listener at `endpoint`, to which the tunnel must forward. Direct TCP (`listen == endpoint`)
//! passes every row. Every byte is checked against a pattern, every end is either clean (FIN) or a
//! reset (RST), and everything has a deadline, so a fault is *corrupt*, *silently truncated*,
//! *hung* or a wrong kind of end, each named apart.

mod ends;
mod failures;
mod resets;
mod stage;
mod volume;

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use crate::conversation::Fault;
use stage::Stage;

/// What is tested.
#[derive(Clone, Copy)]
pub struct Tunnel<'a> {
    /// Where applications connect.
    pub listen: SocketAddr,
    /// Where the tunnel connects for each application. Must be free: the suite listens there.
    pub endpoint: SocketAddr,
    /// A second address where applications connect, whose endpoint is a name that does not exist.
    pub unknown_name: Option<SocketAddr>,
    /// How to kill the tunnel's processes, where that is possible.
    pub processes: Option<&'a dyn Processes>,
}

/// A process of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Where applications connect.
    Relay,
    /// Beside the endpoint.
    Agent,
    /// Not on the way of a byte: its death must not be noticed.
    Control,
    /// Where applications connect that are not beside the relay; not every tunnel has one.
    Sender,
}

/// Kills and restores the processes of a tunnel.
pub trait Processes: Sync {
    /// Whether the tunnel has such a process.
    fn has(&self, part: Part) -> bool {
        part != Part::Sender
    }

    /// Kills (SIGKILL) a process.
    ///
    /// # Errors
    /// When it was not running.
    fn kill(&self, part: Part) -> anyhow::Result<()>;

    /// Starts the process again. Need not wait until the tunnel is usable.
    ///
    /// # Errors
    /// When it cannot be started.
    fn restore(&self, part: Part) -> anyhow::Result<()>;
}

/// How much is done, and how long it may take.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long each row's steps may take, bulk rows aside, which have four times as long.
    pub deadline: Duration,
    /// What the bulk row moves each way, bytes.
    pub bulk_bytes: u64,
    /// How many flows live at once in the row of that name.
    pub flows: usize,
    /// Makes the patterns.
    pub seed: u64,
    /// Only rows whose name contains one of these; empty means all.
    pub only: Vec<String>,
}

impl Default for Options {
    /// The full lengths.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            bulk_bytes: 100 << 20,
            flows: 1000,
            seed: 1,
            only: Vec::new(),
        }
    }
}

impl Options {
    /// The same rows with less of everything.
    #[must_use]
    pub fn short() -> Self {
        Self {
            bulk_bytes: 8 << 20,
            flows: 100,
            ..Self::default()
        }
    }
}

/// Result of the suite. Displays as a table.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed that made the patterns.
    pub seed: u64,
    /// In the order they ran.
    pub rows: Vec<Row>,
}

/// Result of one row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Short and stable.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// What came of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As direct TCP does it.
    Passed,
    /// Not as direct TCP does it.
    Failed(Fault),
    /// Not tried, with the reason.
    Skipped(&'static str),
}

/// Runs every row, one after the other.
///
/// # Errors
/// When the suite itself cannot work: the endpoint's address is taken, or not even one byte gets
/// through at the start.
pub fn run(tunnel: &Tunnel<'_>, options: &Options) -> anyhow::Result<Report> {
    let mut stage = Stage::new(tunnel, options)?;
    stage.settle()?;
    let mut report = Report {
        seed: options.seed,
        rows: Vec::new(),
    };
    for row in ROWS.iter().filter(|row| {
        options.only.is_empty() || options.only.iter().any(|part| row.name.contains(part))
    }) {
        let began = Instant::now();
        let verdict = match row.skipped(tunnel) {
            Some(why) => Verdict::Skipped(why),
            None => stage.play(row.play),
        };
        report.rows.push(Row {
            name: row.name,
            shows: row.shows,
            verdict,
            took: began.elapsed(),
        });
    }
    Ok(report)
}

impl Report {
    /// The rows that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Row> {
        self.rows
            .iter()
            .filter(|row| matches!(row.verdict, Verdict::Failed(_)))
    }

    /// Names of the rows that failed.
    #[must_use]
    pub fn failed_names(&self) -> Vec<&'static str> {
        self.failed().map(|row| row.name).collect()
    }

    /// Whether at least one row ran and none failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failed().next().is_none() && self.rows.iter().any(|row| row.verdict == Verdict::Passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        for row in &self.rows {
            let ms = row.took.as_millis();
            match &row.verdict {
                Verdict::Passed => writeln!(f, "ok    {:<36} {ms:>6} ms  {}", row.name, row.shows)?,
                Verdict::Failed(fault) => writeln!(
                    f,
                    "FAIL  {:<36} {ms:>6} ms  {}: {fault}",
                    row.name, row.shows
                )?,
                Verdict::Skipped(why) => writeln!(f, "skip  {:<36}            {why}", row.name)?,
            }
        }
        let failed = self.failed().count();
        let skipped = self
            .rows
            .iter()
            .filter(|row| matches!(row.verdict, Verdict::Skipped(_)))
            .count();
        write!(
            f,
            "{} rows passed, {failed} failed, {skipped} skipped",
            self.rows.len() - failed - skipped
        )
    }
}

/// One row before it is run.
struct Play {
    name: &'static str,
    shows: &'static str,
    needs: Needs,
    play: fn(&mut Stage<'_>) -> Result<(), Fault>,
}

/// What a row cannot do without.
enum Needs {
    Nothing,
    Processes,
    Sender,
    UnknownName,
}

impl Play {
    const fn new(
        name: &'static str,
        shows: &'static str,
        play: fn(&mut Stage<'_>) -> Result<(), Fault>,
    ) -> Self {
        Self {
            name,
            shows,
            needs: Needs::Nothing,
            play,
        }
    }

    const fn needing(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    fn skipped(&self, tunnel: &Tunnel<'_>) -> Option<&'static str> {
        match self.needs {
            Needs::Processes if tunnel.processes.is_none() => {
                Some("needs a way to kill the tunnel's processes")
            }
            Needs::Sender if !tunnel.processes.is_some_and(|has| has.has(Part::Sender)) => {
                Some("needs a tunnel with a sender, and a way to kill it")
            }
            Needs::UnknownName if tunnel.unknown_name.is_none() => {
                Some("needs an address whose endpoint has an unknown name")
            }
            _ => None,
        }
    }
}

/// All rows.
const ROWS: &[Play] = &[
    Play::new(
        "server_speaks_first",
        "a banner comes before the application wrote anything",
        ends::server_speaks_first,
    ),
    Play::new(
        "half_close_by_application",
        "the reply is whole after the application finished",
        ends::half_close_by_application,
    ),
    Play::new(
        "half_close_by_endpoint",
        "the upload is whole after the endpoint finished",
        ends::half_close_by_endpoint,
    ),
    Play::new(
        "application_closes_at_once",
        "the endpoint sees a clean end after nothing",
        ends::application_closes_at_once,
    ),
    Play::new(
        "endpoint_closes_at_once",
        "the application sees a clean end after nothing",
        ends::endpoint_closes_at_once,
    ),
    Play::new(
        "application_closes_while_sent_to",
        "the endpoint, still writing, is reset",
        ends::application_closes_while_sent_to,
    ),
    Play::new(
        "endpoint_closes_while_sent_to",
        "the application, still writing, is reset",
        ends::endpoint_closes_while_sent_to,
    ),
    Play::new(
        "application_closes_with_unread",
        "closing with unread bytes is a reset",
        ends::application_closes_with_unread,
    ),
    Play::new(
        "endpoint_closes_with_unread",
        "closing with unread bytes is a reset",
        ends::endpoint_closes_with_unread,
    ),
    Play::new(
        "reset_at_once_by_application",
        "never a clean end at the endpoint",
        resets::at_once_by_application,
    ),
    Play::new(
        "reset_at_once_by_endpoint",
        "a reset at the application",
        resets::at_once_by_endpoint,
    ),
    Play::new(
        "reset_at_rest_by_application",
        "a reset at the endpoint, nothing under way",
        resets::at_rest_by_application,
    ),
    Play::new(
        "reset_at_rest_by_endpoint",
        "a reset at the application, nothing under way",
        resets::at_rest_by_endpoint,
    ),
    Play::new(
        "reset_sending_by_application",
        "the endpoint gets a true part, then a reset",
        resets::sending_by_application,
    ),
    Play::new(
        "reset_sending_by_endpoint",
        "the application gets a true part, then a reset",
        resets::sending_by_endpoint,
    ),
    Play::new(
        "reset_receiving_by_application",
        "the endpoint's writing fails",
        resets::receiving_by_application,
    ),
    Play::new(
        "reset_receiving_by_endpoint",
        "the application's writing fails",
        resets::receiving_by_endpoint,
    ),
    Play::new(
        "reset_after_own_finish_by_application",
        "the endpoint hears of it with nothing under way",
        resets::after_own_finish_by_application,
    ),
    Play::new(
        "reset_after_own_finish_by_endpoint",
        "the application hears of it with nothing under way",
        resets::after_own_finish_by_endpoint,
    ),
    Play::new(
        "reset_after_others_finish_by_application",
        "the endpoint, which has finished, is reset",
        resets::after_others_finish_by_application,
    ),
    Play::new(
        "reset_after_others_finish_by_endpoint",
        "the application, which has finished, is reset",
        resets::after_others_finish_by_endpoint,
    ),
    Play::new(
        "size_0",
        "0 bytes each way and clean ends",
        volume::size::<0>,
    ),
    Play::new(
        "size_1",
        "1 byte each way and clean ends",
        volume::size::<1>,
    ),
    Play::new("size_65535", "64 KiB - 1 each way", volume::size::<65_535>),
    Play::new("size_65536", "64 KiB each way", volume::size::<65_536>),
    Play::new("size_65537", "64 KiB + 1 each way", volume::size::<65_537>),
    Play::new(
        "bulk_both_ways",
        "100 MiB each way at once",
        volume::bulk_both_ways,
    ),
    Play::new(
        "many_flows",
        "1,000 flows at once, 64 KiB each way",
        volume::many_flows,
    ),
    Play::new(
        "slow_reader_at_application",
        "the endpoint has to wait, nothing is lost",
        volume::slow_reader_at_application,
    ),
    Play::new(
        "slow_reader_at_endpoint",
        "the application has to wait, nothing is lost",
        volume::slow_reader_at_endpoint,
    ),
    Play::new(
        "slow_writer_at_application",
        "single bytes travel at once",
        volume::slow_writer_at_application,
    ),
    Play::new(
        "slow_writer_at_endpoint",
        "single bytes travel at once",
        volume::slow_writer_at_endpoint,
    ),
    Play::new(
        "endpoint_stays_silent",
        "the application waits, and gets the late reply",
        failures::endpoint_stays_silent,
    ),
    Play::new(
        "endpoint_refuses",
        "the application is refused or reset",
        failures::endpoint_refuses,
    ),
    Play::new(
        "endpoint_name_unknown",
        "the application is refused or reset",
        failures::endpoint_name_unknown,
    )
    .needing(Needs::UnknownName),
    Play::new(
        "kill_control",
        "live flows and new ones notice nothing",
        failures::kill_control,
    )
    .needing(Needs::Processes),
    Play::new(
        "kill_relay",
        "no clean end after missing bytes",
        failures::kill_relay,
    )
    .needing(Needs::Processes),
    Play::new(
        "kill_agent",
        "no clean end after missing bytes",
        failures::kill_agent,
    )
    .needing(Needs::Processes),
    Play::new(
        "kill_sender",
        "no clean end after missing bytes",
        failures::kill_sender,
    )
    .needing(Needs::Sender),
];
