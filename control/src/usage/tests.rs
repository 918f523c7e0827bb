//! Use over months, kills, jumps of the clock, and disks that fail or take their time.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::ledger::tests::report;
use super::*;
use crate::files::disk::Attributes;
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
fn a_name_that_was_removed_and_defined_again_is_counted_from_zero() {
    let place = Place::new(NOVEMBER);
    let meter = place.open();
    meter.count(&report(1, &[("payroll-sql", 100, 1)]));
    meter.count(&report(1, &[("archive-sql", 5, 0)]));
    meter.count(&report(1, &[("payroll-sql", 30, 0), ("archive-sql", 5, 0)]));
    assert_eq!(place.of(&meter), (130, 1));
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
            && told.ends_with("put aside as 2026-11.json.broken, and that month is counted anew"),
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

#[test]
fn a_slow_disk_keeps_nobody_waiting_and_loses_nothing_when_the_month_turns_meanwhile() {
    let place = Place::new(OCTOBER);
    let (begun, wait_until_begun) = channel();
    let (go_on, waiting) = channel();
    let meter = place.open_on(Arc::new(Slow {
        begun,
        waiting: Mutex::new(waiting),
    }));
    meter.count(&report(1, &[("payroll-sql", 100, 0)]));
    let on_its_way = thread::spawn({
        let meter = Arc::clone(&meter);
        move || meter.keep()
    });
    wait_until_begun.recv_timeout(MOMENT).unwrap();
    let (told, hear) = channel();
    thread::spawn({
        let meter = Arc::clone(&meter);
        move || {
            meter.count(&report(1, &[("payroll-sql", 130, 0)]));
            told.send(meter.current().data.sum()).unwrap();
        }
    });
    assert_eq!(hear.recv_timeout(MOMENT), Ok(130));

    place.set(NOVEMBER);
    let turning = thread::spawn({
        let meter = Arc::clone(&meter);
        move || meter.count(&report(1, &[("payroll-sql", 135, 0)]))
    });
    // One for each write: that of `keep`, of the month that ends, and of `close`.
    (0..3).for_each(|_| go_on.send(()).unwrap());
    on_its_way.join().unwrap();
    turning.join().unwrap();
    meter.close();
    for meter in [meter, place.open()] {
        let figures: Vec<u64> = meter.sums().iter().map(|sum| sum.data.sum()).collect();
        assert_eq!(figures, [5, 130]);
    }
}

/// The longest that anything may take on a busy machine.
const MOMENT: Duration = Duration::from_secs(20);

/// Says that a write has begun, and is told when to go on.
struct Slow {
    begun: Sender<()>,
    waiting: Mutex<Receiver<()>>,
}

impl FileSystem for Slow {
    fn write_new(&self, path: &Path, text: &[u8], attributes: &Attributes) -> io::Result<()> {
        let _ = self.begun.send(());
        self.waiting.lock().unwrap().recv_timeout(MOMENT).unwrap();
        System.write_new(path, text, attributes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        System.sync(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        System.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        System.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        System.remove(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        System.sync_folder(path)
    }
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
        self.open_on(Arc::new(System))
    }

    fn open_on(&self, system: Arc<dyn FileSystem>) -> Arc<Meter> {
        let time = Arc::clone(&self.time);
        let clock = Arc::new(move || time.load(Ordering::SeqCst));
        Meter::on(&self.directory, clock, system)
    }

    fn set(&self, time: u64) {
        self.time.store(time, Ordering::SeqCst);
    }

    fn of(&self, meter: &Meter) -> (u64, u64) {
        let data = meter.of("payroll-sql".parse().ok().as_ref()).data;
        (data.to_endpoint, data.to_application)
    }
}
