//! Data use: counted from the relays' reports, kept in `usage/MONTH.json`, judged against the quota.
//!
//! The figures go to the month that the clock says. One month is open at a time; what is counted of each relay travels with it, so a
//! clock that jumps neither subtracts nor counts twice, and a control process that is killed loses nothing.

mod files;
mod ledger;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use underpass_proto::{HycoName, Report};

use crate::clock::Clock;
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
}

struct State {
    files: Files,
    ledger: Ledger,
    changed: bool,
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
        let (files, found, faults) = Files::open(directory);
        let month = Month::of(clock());
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
                changed: false,
                rest_until: None,
                faults,
                unwritten: None,
            }),
        })
    }

    /// Counts what is new in a report.
    pub fn count(&self, report: &Report) {
        let mut state = self.now();
        state.changed |= state.ledger.count(report);
    }

    /// What one hybrid connection carried this month.
    #[must_use]
    pub fn of(&self, name: &HycoName) -> Sum {
        let state = self.now();
        Sum {
            month: state.ledger.month,
            data: state.ledger.of(name),
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
        let mut sums = state.files.sums();
        sums.retain(|sum| sum.month != current.month);
        sums.sort_by_key(|sum| std::cmp::Reverse(sum.month));
        sums.insert(0, current);
        sums.truncate(MONTHS_MAX);
        sums
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

    /// Writes what is new, unless it was written a moment ago. Blocks for the disk.
    pub fn keep(&self) {
        let mut state = self.now();
        let resting = state.rest_until.is_some_and(|until| Instant::now() < until);
        if state.changed && !resting {
            state.write();
        }
    }

    /// Writes what is new. For the end.
    pub fn close(&self) {
        let mut state = self.now();
        if state.changed {
            state.write();
        }
    }

    /// The state, in the month that the clock says.
    fn now(&self) -> MutexGuard<'_, State> {
        let month = Month::of((self.clock)());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ledger.month != month {
            state.turn_to(month);
        }
        state
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
        let sum = self.current();
        self.files.close(sum);
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
        let began = Instant::now();
        self.ledger.sequence += 1;
        match self.files.write(&self.ledger) {
            Ok(()) => {
                self.changed = false;
                self.unwritten = None;
            }
            Err(fault) => {
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
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::ledger::tests::report;
    use super::*;
    use crate::files::quota::Edition;

    const OCTOBER: u64 = 1_792_800_000;
    const NOVEMBER: u64 = 1_795_392_000;
    const GB: u64 = crate::files::quota::GB;

    #[test]
    fn what_was_counted_survives_a_kill_and_what_was_not_is_counted_afterwards() {
        let place = Place::new(NOVEMBER);
        let meter = place.open();
        meter.count(&report(1, &[("payroll-sql", 100, 1)]));
        meter.keep();
        meter.count(&report(1, &[("payroll-sql", 170, 2)]));
        drop(meter); // Killed: the last report is in no file.
        let meter = place.open();
        assert_eq!(place.of(&meter), (100, 1));
        meter.count(&report(1, &[("payroll-sql", 200, 2)]));
        assert_eq!(place.of(&meter), (200, 2));
    }

    #[test]
    fn use_goes_to_the_month_that_the_clock_says_whichever_way_it_jumps() {
        let place = Place::new(OCTOBER);
        let meter = place.open();
        meter.count(&report(1, &[("payroll-sql", 100, 0)]));
        place.set(NOVEMBER);
        meter.count(&report(1, &[("payroll-sql", 130, 0)]));
        assert_eq!(place.of(&meter), (30, 0));
        place.set(OCTOBER);
        meter.count(&report(1, &[("payroll-sql", 135, 0)]));
        assert_eq!(place.of(&meter), (105, 0));
        meter.keep();
        place.set(NOVEMBER + 10 * 365 * 86_400);
        meter.count(&report(1, &[("payroll-sql", 136, 0)]));
        place.set(NOVEMBER);
        let told: Vec<(String, u64)> = meter
            .sums()
            .iter()
            .map(|sum| (sum.month.to_string(), sum.data.sum()))
            .collect();
        let expected = [("2026-11", 30), ("2036-11", 1), ("2026-10", 105)];
        assert_eq!(told, expected.map(|(month, sum)| (month.to_owned(), sum)));

        meter.close();
        let meter = place.open();
        meter.count(&report(1, &[("payroll-sql", 140, 0)]));
        assert_eq!(
            (
                place.of(&meter),
                meter.sums().iter().map(|sum| sum.data.sum()).sum::<u64>()
            ),
            ((34, 0), 140),
            "all that the relay carried, once"
        );
    }

    #[test]
    fn thirteen_months_are_kept() {
        let place = Place::new(OCTOBER);
        let meter = place.open();
        for month in 0..20 {
            place.set(OCTOBER + month * 31 * 86_400);
            meter.count(&report(1, &[("payroll-sql", month + 1, 0)]));
            meter.keep();
        }
        assert_eq!(meter.sums().len(), MONTHS_MAX);
        assert_eq!(
            std::fs::read_dir(place.directory.usage()).unwrap().count(),
            MONTHS_MAX
        );
        drop(meter);
        assert_eq!(place.open().sums().len(), MONTHS_MAX);
    }

    #[test]
    fn a_person_is_warned_at_80_and_100_percent() {
        let place = Place::new(NOVEMBER);
        let meter = place.open();
        let mut quota = Edition::Free.quota();
        let told = |used: u64| {
            meter.count(&report(1, &[("payroll-sql", used, 0)]));
            meter
                .faults(&quota)
                .iter()
                .map(Fault::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(told(4 * GB - 1), Vec::<String>::new());
        assert_eq!(
            told(4 * GB),
            [
                "namespace.toml: 80 % of the data of 2026-11 is used: 5 GB (edition free); set `edition` or `data_gb_month` if that will not do"
            ]
        );
        assert_eq!(
            told(5 * GB),
            [
                "namespace.toml: the data of 2026-11 is used up: 5 GB (edition free); flows go on; set `edition` or `data_gb_month`"
            ]
        );
        assert!(meter.is_used_up(&quota));
        quota.enforce_data = true;
        assert!(
            meter.faults(&quota)[0]
                .what
                .contains("no new flows until the month ends")
        );
        place.set(NOVEMBER + 20 * 86_400);
        assert!(!meter.is_used_up(&quota) && meter.faults(&quota).is_empty());
        assert!(!meter.is_used_up(&Quota::default()));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_put_aside_and_told() {
        let place = Place::new(NOVEMBER);
        let meter = place.open();
        meter.count(&report(1, &[("payroll-sql", 100, 0)]));
        meter.keep();
        drop(meter);
        let path = place.directory.usage().join("2026-11.json");
        std::fs::write(&path, "{\"month\":").unwrap();
        let meter = place.open();
        let told = meter.faults(&Quota::default())[0].to_string();
        assert!(
            told.starts_with("usage/2026-11.json: cannot be used: ")
                && told
                    .ends_with("put aside as 2026-11.json.broken, and that month is counted anew"),
            "{told}"
        );
        meter.count(&report(2, &[("payroll-sql", 5, 0)]));
        meter.keep();
        drop(meter);
        let meter = place.open();
        assert_eq!(
            (place.of(&meter), meter.faults(&Quota::default()).len()),
            ((5, 0), 0)
        );
    }

    /// A directory and a clock that stands where it is put.
    struct Place {
        _folder: tempfile::TempDir,
        directory: Directory,
        time: Arc<AtomicU64>,
    }

    impl Place {
        fn new(time: u64) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let directory = Directory::new(folder.path());
            Self {
                _folder: folder,
                directory,
                time: Arc::new(AtomicU64::new(time)),
            }
        }

        fn open(&self) -> Arc<Meter> {
            let time = Arc::clone(&self.time);
            Meter::open(
                &self.directory,
                Arc::new(move || time.load(Ordering::SeqCst)),
            )
        }

        fn set(&self, time: u64) {
            self.time.store(time, Ordering::SeqCst);
        }

        fn of(&self, meter: &Meter) -> (u64, u64) {
            let data = meter.of(&"payroll-sql".parse().unwrap()).data;
            (data.to_endpoint, data.to_application)
        }
    }
}
