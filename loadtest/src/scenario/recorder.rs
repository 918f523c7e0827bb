//! Notes what the flows of one group on one thread do, as it happens. Times are counted from the
//! start of the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::outcome::{FAULTS_TOLD, Fault, Second};
use super::{Distribution, Group, GroupOutcome, Sketch};
use crate::flow::Ending;

/// Most entries of a series: an hour of seconds. A longer run has longer entries.
const SERIES_MAX: u32 = 3600;

/// Live counters of one group, shared by all threads.
#[derive(Default, Debug)]
pub(super) struct Counters {
    pub(super) live: AtomicU64,
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
    pub(super) right: AtomicU64,
    pub(super) bad: AtomicU64,
}

/// The notes.
pub(super) struct Recorder {
    outcome: GroupOutcome,
    counters: Arc<Counters>,
    until: Duration,
    interval: Duration,
    /// Latencies of the entry under way, which is the last of the series.
    recent: Distribution,
}

/// Length of a series' entries in a run of this length.
pub(super) fn interval(duration: Duration) -> Duration {
    let seconds = duration.as_secs().div_ceil(u64::from(SERIES_MAX));
    Duration::from_secs(seconds.max(1))
}

impl Recorder {
    /// Bytes and calls until `until` count for rates.
    pub(super) fn new(
        group: &Group,
        until: Duration,
        interval: Duration,
        counters: Arc<Counters>,
    ) -> Recorder {
        Recorder {
            outcome: GroupOutcome::new(group),
            counters,
            until,
            interval,
            recent: Distribution::default(),
        }
    }

    pub(super) fn moved_up(&mut self, now: Duration, len: u64) {
        self.counters.up.fetch_add(len, Ordering::Relaxed);
        self.entry(now).up += len;
        if now < self.until {
            self.outcome.bytes_up += len;
        }
    }

    pub(super) fn moved_down(&mut self, now: Duration, len: u64) {
        self.counters.down.fetch_add(len, Ordering::Relaxed);
        self.entry(now).down += len;
        if now < self.until {
            self.outcome.bytes_down += len;
        }
    }

    pub(super) fn connected(&mut self, time: Duration) {
        self.outcome.counts.connections += 1;
        self.outcome.connect.record(time);
    }

    /// A call was answered, and right. `due`: when latency begins; `begun`: when it was sent.
    pub(super) fn answered(&mut self, due: Duration, begun: Duration, now: Duration) {
        let latency = now.saturating_sub(due);
        self.counters.right.fetch_add(1, Ordering::Relaxed);
        self.outcome.counts.right += 1;
        self.outcome.counts.in_time += u64::from(now < self.until);
        self.outcome.latency.record(latency);
        if self.outcome.pace.is_open() {
            self.outcome.service.record(now.saturating_sub(begun));
        }
        self.entry(now).right += 1;
        self.recent.record(latency);
    }

    /// In open loop: how late a call was begun whose flow had been free in time.
    pub(super) fn late(&mut self, time: Duration) {
        self.outcome.lateness.record(time);
    }

    /// A call, a connect or an end of a connection that was not right.
    pub(super) fn failed(&mut self, flow: u64, now: Duration, ending: &Ending) {
        let counts = &mut self.outcome.counts;
        let counter = match ending {
            Ending::Right => return,
            Ending::Failed(_) => &mut counts.failed,
            Ending::Corrupt(_) => &mut counts.corrupt,
            Ending::Truncated(_) => &mut counts.truncated,
            Ending::Hung(_) => &mut counts.hung,
        };
        *counter += 1;
        self.counters.bad.fetch_add(1, Ordering::Relaxed);
        self.entry(now).bad += 1;
        if self.outcome.faults.len() < FAULTS_TOLD {
            self.outcome.faults.extend(Fault::new(flow, now, ending));
        }
    }

    /// The run's end found this call under way. In open loop it has waited since `due`.
    pub(super) fn cut(&mut self, due: Duration, now: Duration) {
        self.outcome.counts.cut += 1;
        self.waited(due, now);
    }

    /// Open loop: the run's end found this call not even begun.
    pub(super) fn unsent(&mut self, due: Duration, now: Duration) {
        self.outcome.counts.unsent += 1;
        self.waited(due, now);
    }

    /// It took at least this long. Leaving it out would leave out the slowest.
    fn waited(&mut self, due: Duration, now: Duration) {
        if self.outcome.pace.is_open() {
            self.outcome.latency.record(now.saturating_sub(due));
        }
    }

    pub(super) fn opened(&self) {
        self.counters.live.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.counters.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// The end. `stopped`: when somebody ended the run, if before its time.
    pub(super) fn finish(mut self, stopped: Option<Duration>) -> GroupOutcome {
        self.settle();
        let seconds = stopped.map_or(self.until, |stopped| stopped.min(self.until));
        self.outcome.seconds = seconds.as_secs_f64();
        self.outcome
    }

    fn entry(&mut self, now: Duration) -> &mut Second {
        let index = (now.as_nanos() / self.interval.as_nanos()) as usize;
        if index >= self.outcome.series.len() {
            self.settle();
            self.outcome.series.resize_with(index + 1, Second::default);
        }
        // One clock, but read before an await here and after one there: the last entry stands for
        // those before.
        self.outcome
            .series
            .last_mut()
            .expect("the series was just made long enough")
    }

    /// Notes the latencies of the last entry.
    fn settle(&mut self) {
        if let Some(last) = self.outcome.series.last_mut()
            && self.recent.count() > 0
        {
            last.latency = Sketch::of(&self.recent);
            self.recent.clear();
        }
    }
}
