//! Rows about amounts and speeds: sizes around a buffer's edge, bulk, many flows, slow peers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use underpass_loadtest::pattern::{Pattern, derive};

use super::Fault;
use super::stage::{Speaker, Stage};
use crate::conversation::{Conversation, gravest};
use crate::deadline::{LOOK_EACH, pause};

/// What a tunnel may take from a writer whose reader has stopped, bytes: generous beside the
/// windows of kernels and tunnels (tens of MiB), far from "without limit".
const HOARD_MAX: u64 = 64 << 20;

/// A writer that gets nothing more into a tunnel for this long has felt its reader.
const STALL: Duration = Duration::from_millis(750);

/// Bytes of each flow and direction where many flows live at once.
const EACH_OF_MANY: u64 = 64 * 1024;

/// Stack of a thread that serves one of many flows: its chunks are on the heap.
const STACK: usize = 256 * 1024;

/// Single bytes that a slow writer sends.
const SINGLE_BYTES: u64 = 300;

/// The most that a single byte may be under way by the median: far above a busy machine, below any
/// timer that waits for more bytes.
const SINGLE_BYTE_MAX: Duration = Duration::from_millis(100);

/// How long a slow writer waits between its bytes when it is at its slowest.
const PAUSE: Duration = Duration::from_millis(10);

/// Neither end begins to close before it has all bytes, so this row is passed even where
/// half-closed flows are cut.
pub(super) fn size<const LEN: u64>(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (mut application, mut endpoint) = stage.open()?.application_first();
    application.line.send(&application.says, 0..LEN)?;
    endpoint.line.receive(&application.says, 0..LEN)?;
    endpoint.line.send(&endpoint.says, 0..LEN)?;
    endpoint.line.finish()?;
    application.line.receive(&endpoint.says, 0..LEN)?;
    application.line.receive_end()?;
    // A tunnel that closed both directions has reset none: closing is the same to both.
    application.line.close();
    endpoint.line.receive_end()
}

pub(super) fn bulk_both_ways(stage: &mut Stage<'_>) -> Result<(), Fault> {
    stage.renew(4);
    let len = stage.options.bulk_bytes;
    let (application, endpoint) = stage.open()?.application_first();
    let (up, down) = (application.says, endpoint.says);
    thread::scope(|scope| {
        let mut ends = Vec::new();
        for (speaker, hears) in [(application, down), (endpoint, up)] {
            let mut ear = speaker.line.share()?;
            let mut speaker = speaker;
            ends.push(scope.spawn(move || {
                speaker.line.send(&speaker.says, 0..len)?;
                speaker.line.finish()
            }));
            ends.push(scope.spawn(move || {
                ear.receive(&hears, 0..len)?;
                ear.receive_end()
            }));
        }
        gravest(
            ends.into_iter()
                .map(|end| end.join().expect("an end does not panic")),
        )
    })
}

/// All flows are open, and have spoken, before the first of them goes on.
pub(super) fn many_flows(stage: &mut Stage<'_>) -> Result<(), Fault> {
    stage.renew(2);
    let (count, seed, until) = (stage.options.flows, stage.options.seed, stage.until());
    let address = stage.listen_address();
    let all_open = Gate::new(count);
    thread::scope(|scope| {
        let start = |play: Box<dyn FnOnce() -> Result<(), Fault> + Send>| {
            thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, play)
                .map_err(|error| Fault::Other(format!("no thread: {error}")))
        };
        let mut ends = Vec::new();
        for index in 0..count as u64 {
            let all_open = &all_open;
            let play = move || {
                one_application(
                    Conversation::connect(address, "application", until)?,
                    seed,
                    index,
                    all_open,
                )
            };
            ends.push(start(Box::new(play))?);
        }
        for _ in 0..count {
            let endpoint = stage.accept()?;
            ends.push(start(Box::new(move || one_endpoint(endpoint, seed)))?);
        }
        gravest(
            ends.into_iter()
                .map(|end| end.join().expect("an end does not panic")),
        )
    })
}

fn one_application(
    mut line: Conversation,
    seed: u64,
    index: u64,
    all_open: &Gate,
) -> Result<(), Fault> {
    let pattern = Pattern::new(derive(seed, u64::MAX - index));
    line.send_bytes(&index.to_be_bytes())?;
    line.receive(&pattern, 0..1)?;
    all_open.pass(line.deadline())?;
    line.send(&pattern, 0..EACH_OF_MANY)?;
    line.receive(&pattern, 1..EACH_OF_MANY)?;
    line.receive_end()
}

fn one_endpoint(mut line: Conversation, seed: u64) -> Result<(), Fault> {
    let index = u64::from_be_bytes(line.receive_bytes()?);
    let pattern = Pattern::new(derive(seed, u64::MAX - index));
    line.send(&pattern, 0..1)?;
    line.receive(&pattern, 0..EACH_OF_MANY)?;
    line.send(&pattern, 1..EACH_OF_MANY)?;
    line.finish()?;
    line.receive_end()
}

pub(super) fn slow_reader_at_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    slow_reader(stage, application, endpoint)
}

pub(super) fn slow_reader_at_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    slow_reader(stage, endpoint, application)
}

/// The reader stops; the writer must come to a halt. Then the reader takes a little at a time, then
/// all of it, and nothing is missing.
fn slow_reader(stage: &Stage<'_>, mut reader: Speaker, mut writer: Speaker) -> Result<(), Fault> {
    const STEP: u64 = 64 * 1024;
    const SLOWLY: u64 = 20;
    reader.line.keep_little()?;
    let (written, says) = (AtomicU64::new(0), writer.says);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for start in (0..HOARD_MAX).step_by(STEP as usize) {
                writer.line.send(&writer.says, start..start + STEP)?;
                written.store(start + STEP, Ordering::Relaxed);
            }
            writer.line.finish()
        });
        let stalled = wait_for_stall(&written, stage.until());
        let read = (0..SLOWLY)
            .try_for_each(|step| {
                pause(PAUSE);
                reader.line.receive(&says, step * STEP..(step + 1) * STEP)
            })
            .and_then(|()| reader.line.receive(&says, SLOWLY * STEP..HOARD_MAX))
            .and_then(|()| reader.line.receive_end());
        // Closed before the writer is joined: it must not be left writing to nobody.
        drop(reader);
        gravest([
            read,
            stalled,
            writing.join().expect("a writer does not panic"),
        ])
    })
}

fn wait_for_stall(written: &AtomicU64, until: Instant) -> Result<(), Fault> {
    let (mut seen, mut since) = (0, Instant::now());
    while Instant::now() < until {
        let now = written.load(Ordering::Relaxed);
        if now >= HOARD_MAX {
            return Err(Fault::Other(format!(
                "the tunnel took {HOARD_MAX} bytes that nobody read"
            )));
        }
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if seen > 0 && since.elapsed() > STALL {
            return Ok(());
        }
        pause(LOOK_EACH);
    }
    Err(Fault::Hung("the writer neither halts nor goes on".into()))
}

pub(super) fn slow_writer_at_application(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (application, endpoint) = stage.open()?.application_first();
    slow_writer(application, endpoint)
}

pub(super) fn slow_writer_at_endpoint(stage: &mut Stage<'_>) -> Result<(), Fault> {
    let (endpoint, application) = stage.open()?.endpoint_first();
    slow_writer(endpoint, application)
}

/// Each byte must arrive although no other follows it.
fn slow_writer(mut writer: Speaker, mut reader: Speaker) -> Result<(), Fault> {
    let mut under_way = Vec::new();
    for position in 0..SINGLE_BYTES {
        let sent = Instant::now();
        writer.line.send(&writer.says, position..position + 1)?;
        reader.line.receive(&writer.says, position..position + 1)?;
        under_way.push(sent.elapsed());
        if position % 4 == 0 {
            pause(PAUSE);
        }
    }
    under_way.sort_unstable();
    let median = under_way[under_way.len() / 2];
    if median > SINGLE_BYTE_MAX {
        return Err(Fault::Other(format!(
            "a single byte is under way for {median:?} by the median"
        )));
    }
    writer.line.close();
    reader.line.receive_end()
}

/// Opens when as many have come as were expected.
struct Gate {
    missing: Mutex<usize>,
    opened: Condvar,
}

impl Gate {
    fn new(count: usize) -> Self {
        Self {
            missing: Mutex::new(count),
            opened: Condvar::new(),
        }
    }

    fn pass(&self, until: Instant) -> Result<(), Fault> {
        let mut missing = self.missing.lock().expect("nobody panics with the lock");
        *missing -= 1;
        if *missing == 0 {
            self.opened.notify_all();
        }
        let left = until.saturating_duration_since(Instant::now());
        let (missing, _) = self
            .opened
            .wait_timeout_while(missing, left, |missing| *missing > 0)
            .expect("nobody panics with the lock");
        if *missing == 0 {
            Ok(())
        } else {
            Err(Fault::Hung(format!(
                "{} of the flows did not open",
                *missing
            )))
        }
    }
}
