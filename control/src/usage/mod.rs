//! Data use: counted from the relays' reports, kept in `usage/MONTH.json`, judged against the
//! quota.
//!
//! The figures go to the month that the clock says. One month is open at a time; what is counted of
//! each relay travels with it, so a clock that jumps neither subtracts nor counts twice, and a
//! control process that is killed loses nothing.

mod files;
mod ledger;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use underpass_proto::{HycoName, Report};

use crate::clock::Clock;
use crate::files::disk::{FileSystem, System};
use crate::files::quota::Quota;
use crate::files::{Directory, Fault};
use files::Files;
use ledger::Ledger;

pub use ledger::{Data, Month};

/// Months that are kept: this one, and a year to compare with.
pub const MONTHS_MAX: usize = 13;

/// Percent of the month's data at which a person is warned.
const WARN_AT_PERCENT: u64 = 80;

/// Writing may take this part of the time: a ledger of thousands is written less often.
const WRITING_PART: u32 = 20;

/// Counts, keeps and judges. Shared by the feed, which counts, and by all who ask.
pub struct Meter {
    clock: Clock,
    state: Mutex<State>,
    /// A write has ended.
    written: Condvar,
}

struct State {
    files: Files,
    ledger: Ledger,
    /// What the closed months came to.
    sums: BTreeMap<Month, Data>,
    changed: bool,
    /// A copy of the ledger is on its way to the disk: nobody but another writer waits for that.
    writing: bool,
    /// Not written again before.
    rest_until: Option<Instant>,
    /// What went wrong with the files.
    faults: Vec<Fault>,
    unwritten: Option<Fault>,
}

/// One month in sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sum {
    /// Which.
    pub month: Month,
    /// All hybrid connections together.
    pub data: Data,
}

impl Meter {
    /// Goes on from what the files say.
    #[must_use]
    pub fn open(directory: &Directory, clock: Clock) -> Arc<Self> {
        Self::on(directory, clock, Arc::new(System))
    }

    /// The same, writing through a file system.
    fn on(directory: &Directory, clock: Clock, system: Arc<dyn FileSystem>) -> Arc<Self> {
        let (files, found, faults) = Files::open(directory, system);
        let month = Month::of(clock());
        let sums = found.iter().map(|ledger| (ledger.month, ledger.total()));
        let sums = sums.collect();
        let mut ledger = Ledger::new(month);
        for other in found {
            if other.month == month {
                let mut of_month = other.clone();
                std::mem::swap(&mut ledger, &mut of_month);
                ledger.learn(of_month);
            } else {
                ledger.learn(other);
            }
        }
        Arc::new(Self {
            clock,
            state: Mutex::new(State {
                files,
                ledger,
                sums,
                changed: false,
                writing: false,
                rest_until: None,
                faults,
                unwritten: None,
            }),
            written: Condvar::new(),
        })
    }

    /// Counts what is new in a report.
    pub fn count(&self, report: &Report) {
        let mut state = self.now();
        state.changed |= state.ledger.count(report);
    }

    /// What one hybrid connection carried this month. One without a name carries nothing.
    #[must_use]
    pub fn of(&self, name: Option<&HycoName>) -> Sum {
        let state = self.now();
        Sum {
            month: state.ledger.month,
            data: name.map_or_else(Data::default, |name| state.ledger.of(name)),
        }
    }

    /// What all carried this month.
    #[must_use]
    pub fn current(&self) -> Sum {
        self.now().current()
    }

    /// What all carried, this month first, then those before.
    #[must_use]
    pub fn sums(&self) -> Vec<Sum> {
        let state = self.now();
        let current = state.current();
        let closed = state.sums.iter().rev();
        let closed = closed.filter(|(month, _)| **month != current.month);
        let closed = closed.map(|(&month, &data)| Sum { month, data });
        std::iter::once(current)
            .chain(closed)
            .take(MONTHS_MAX)
            .collect()
    }

    /// Whether the data of the month is used up.
    #[must_use]
    pub fn is_used_up(&self, quota: &Quota) -> bool {
        let used = self.now().ledger.total().sum();
        quota.data_bytes_month().is_some_and(|limit| used >= limit)
    }

    /// What a person should know. The same words until something changes.
    #[must_use]
    pub fn faults(&self, quota: &Quota) -> Vec<Fault> {
        let state = self.now();
        let mut faults = state.faults.clone();
        faults.extend(state.unwritten.clone());
        faults.extend(judge(quota, state.ledger.month, state.ledger.total().sum()));
        faults
    }

    /// Writes what is new, unless it was written a moment ago. Blocks for the disk, and keeps
    /// nobody else waiting for it.
    pub fn keep(&self) {
        let mut state = self.now();
        let resting = state.rest_until.is_some_and(|until| Instant::now() < until);
        if !state.changed || state.writing || resting {
            return;
        }
        let ledger = state.begin_write();
        let files = state.files.clone();
        state.writing = true;
        drop(state);
        let began = Instant::now();
        let written = files.write(&ledger);
        let mut state = self.lock();
        state.end_write(began, written);
        state.writing = false;
        self.written.notify_all();
    }

    /// Writes what is new. For the end.
    pub fn close(&self) {
        let mut state = self.idle(self.now());
        if state.changed {
            state.write();
        }
    }

    /// The state, in the month that the clock says. Waits for the disk when that is another.
    fn now(&self) -> MutexGuard<'_, State> {
        let month = Month::of((self.clock)());
        let mut state = self.lock();
        if state.ledger.month != month {
            state = self.idle(state);
            // Somebody else may have turned meanwhile.
            if state.ledger.month != month {
                state.turn_to(month);
            }
        }
        state
    }

    /// The state, once nothing of it is on its way to the disk: an older copy must not land upon a
    /// newer one.
    fn idle<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.written
            .wait_while(state, |state| state.writing)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn current(&self) -> Sum {
        Sum {
            month: self.ledger.month,
            data: self.ledger.total(),
        }
    }

    fn turn_to(&mut self, month: Month) {
        if self.changed {
            self.write();
        }
        let Sum { month: was, data } = self.current();
        if data != Data::default() {
            self.sums.insert(was, data);
        }
        let other = match self.files.read(month) {
            Ok(other) => other.unwrap_or_else(|| Ledger::new(month)),
            Err(fault) => {
                self.faults.push(fault);
                Ledger::new(month)
            }
        };
        self.ledger.turn_to(other);
    }

    fn write(&mut self) {
        let ledger = self.begin_write();
        let began = Instant::now();
        let written = self.files.write(&ledger);
        self.end_write(began, written);
    }

    /// What is to be written. What is counted from here on is new again.
    fn begin_write(&mut self) -> Ledger {
        self.changed = false;
        self.ledger.sequence += 1;
        self.ledger.clone()
    }

    fn end_write(&mut self, began: Instant, written: Result<Vec<Month>, Fault>) {
        match written {
            Ok(removed) => {
                self.sums.retain(|month, _| !removed.contains(month));
                self.unwritten = None;
            }
            Err(fault) => {
                self.changed = true;
                if self.unwritten.as_ref() != Some(&fault) {
                    warn!("{fault}");
                }
                self.unwritten = Some(fault);
            }
        }
        self.rest_until = Some(Instant::now() + began.elapsed() * WRITING_PART);
    }
}

/// Once a second, for as long as it is polled.
pub(crate) async fn keep(meter: Arc<Meter>) {
    let mut each_second = tokio::time::interval(Duration::from_secs(1));
    each_second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        each_second.tick().await;
        let meter = Arc::clone(&meter);
        let _ = tokio::task::spawn_blocking(move || meter.keep()).await;
    }
}

fn judge(quota: &Quota, month: Month, used: u64) -> Option<Fault> {
    let limit = quota.data_bytes_month()?;
    let gb = quota.data_gb_month.unwrap_or_default();
    let edition = quota.edition;
    let what = if used >= limit {
        let then = if quota.enforce_data {
            "no new flows until the month ends"
        } else {
            "flows go on"
        };
        format!(
            "the data of {month} is used up: {gb} GB (edition {edition}); {then}; set `edition` or `data_gb_month`"
        )
    } else if u128::from(used) * 100 >= u128::from(limit) * u128::from(WARN_AT_PERCENT) {
        format!(
            "{WARN_AT_PERCENT} % of the data of {month} is used: {gb} GB (edition {edition}); set `edition` or `data_gb_month` if that will not do"
        )
    } else {
        return None;
    };
    Some(Fault::whole("namespace.toml", what))
}

#[cfg(test)]
mod tests;
