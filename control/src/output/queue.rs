//! Lines on their way to a reader that may be slow, dead, or a full disk: bounded, written by one
//! thread, and counted where they are lost.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Bytes that may wait for the reader: some 20,000 lines, as thousands of flows that end at once
/// write at level debug.
const WAITING_MAX: usize = 4 * 1024 * 1024;

/// What a line costs beside its bytes: its place in the channel and the allocator's part.
const LINE_COST: usize = 64;

/// While lines are lost: how often the loss is reported, and how often a quiet process tries
/// whether output works again.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Pause where the descriptor is non-blocking (another process of the terminal made it so) and its
/// pipe is full.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// The producer's end; shared by all threads.
#[derive(Debug)]
pub(super) struct Queue {
    items: Sender<Item>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// Answered when all before it is written or lost.
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    /// Bytes that wait, with [`LINE_COST`] for each line.
    waiting: AtomicUsize,
    /// Lines that found no room, and are not reported yet.
    lost: AtomicU64,
}

impl Queue {
    /// Starts the thread that writes.
    pub(super) fn start(sink: impl Write + Send + 'static) -> io::Result<Self> {
        // The bound is in bytes, not in messages.
        let (items, received) = unbounded();
        let counts = Arc::new(Counts::default());
        let writer = LineWriter {
            sink,
            counts: Arc::clone(&counts),
            lost: 0,
            failed: None,
            torn: false,
            next_report: None,
        };
        thread::Builder::new()
            .name("output".into())
            .spawn(move || writer.run(&received))?;
        Ok(Self { items, counts })
    }

    /// Never waits: a line without room is lost.
    pub(super) fn push(&self, line: Vec<u8>) {
        let cost = line.len() + LINE_COST;
        let waiting = self.counts.waiting.fetch_add(cost, Ordering::Relaxed);
        if waiting + cost > WAITING_MAX || self.items.send(Item::Line(line)).is_err() {
            self.counts.waiting.fetch_sub(cost, Ordering::Relaxed);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all that was pushed before is written or lost, but no longer than this.
    pub(super) fn flush(&self, most: Duration) {
        let (done, flushed) = bounded(1);
        if self.items.send(Item::Flush(done)).is_ok() {
            let _ = flushed.recv_timeout(most);
        }
    }
}

/// The writing thread.
struct LineWriter<W> {
    sink: W,
    counts: Arc<Counts>,
    /// Lines lost since the last report.
    lost: u64,
    /// Why the last attempt failed.
    failed: Option<io::Error>,
    /// The last attempt left part of a line behind.
    torn: bool,
    /// No earlier than this is a loss reported again.
    next_report: Option<Instant>,
}

impl<W: Write> LineWriter<W> {
    fn run(mut self, items: &Receiver<Item>) {
        loop {
            match items.recv_timeout(REPORT_EVERY) {
                Ok(Item::Line(line)) => {
                    self.line(&line, Instant::now());
                    let cost = line.len() + LINE_COST;
                    self.counts.waiting.fetch_sub(cost, Ordering::Relaxed);
                }
                Ok(Item::Flush(done)) => {
                    self.report(Instant::now());
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => self.report(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn line(&mut self, line: &[u8], now: Instant) {
        // A line that is written after a gap comes behind the report of the gap.
        if self.failed.is_some() || self.next_report.is_none_or(|at| at <= now) {
            self.report(now);
        }
        if self.failed.is_some() {
            self.lost += 1;
        } else if let Err(error) = self.put(line) {
            self.failed = Some(error);
            self.lost += 1;
        }
    }

    /// Writes how much was lost; where that fails, nothing else can be written either.
    fn report(&mut self, now: Instant) {
        self.lost += self.counts.lost.swap(0, Ordering::Relaxed);
        if self.lost == 0 {
            return;
        }
        let text = report(self.lost, self.failed.as_ref());
        match self.put(text.as_bytes()) {
            Ok(()) => {
                self.lost = 0;
                self.failed = None;
                self.next_report = Some(now + REPORT_EVERY);
            }
            Err(error) => self.failed = Some(error),
        }
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.torn {
            self.sink.write_all(b"\n")?;
            self.torn = false;
        }
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A line like those of the log.
fn report(lost: u64, why: Option<&io::Error>) -> String {
    let mut line = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut line));
    let _ = match why {
        Some(why) => writeln!(
            line,
            "  WARN lines of the log are lost: they could not be written lost={lost} error={why}"
        ),
        None => writeln!(
            line,
            "  WARN lines of the log are lost: their reader is too slow lost={lost}"
        ),
    };
    line
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn lines_lost_to_a_full_disk_are_counted_once_it_has_room_again() {
        let sink = Sink::default();
        let queue = Queue::start(sink.clone()).expect("a thread");
        queue.push(b"first\n".to_vec());
        queue.flush(DEADLINE);
        sink.set(Mode::Fails);
        for _ in 0..3 {
            queue.push(b"lost\n".to_vec());
        }
        queue.flush(DEADLINE);
        sink.set(Mode::Takes);
        queue.push(b"last\n".to_vec());
        queue.flush(DEADLINE);
        let written = sink.written();
        let lines: Vec<_> = written.lines().collect();
        assert_eq!((lines[0], lines[2]), ("first", "last"), "{written}");
        assert!(
            lines[1].contains("lost=3 error=no storage space"),
            "{written}"
        );
        assert_eq!(lines.len(), 3, "{written}");
    }

    #[test]
    fn a_line_that_was_cut_short_does_not_run_into_the_next() {
        let sink = Sink::default();
        sink.set(Mode::TakesOneByteAndFails);
        let queue = Queue::start(sink.clone()).expect("a thread");
        queue.push(b"cut\n".to_vec());
        queue.flush(DEADLINE);
        sink.set(Mode::Takes);
        queue.push(b"whole\n".to_vec());
        queue.flush(DEADLINE);
        let written = sink.written();
        assert_eq!(written.lines().last(), Some("whole"), "{written}");
        assert!(written.starts_with("c\n"), "{written}");
    }

    #[test]
    fn a_reader_that_stopped_holds_up_nobody_and_takes_bounded_memory() {
        let sink = Sink::default();
        sink.set(Mode::Blocks);
        let queue = Queue::start(sink.clone()).expect("a thread");
        let line = vec![b'x'; 1_000];
        let pushed = 3 * WAITING_MAX / line.len();
        for _ in 0..pushed {
            queue.push(line.clone());
        }
        assert!(queue.counts.waiting.load(Ordering::Relaxed) <= WAITING_MAX);
        let began = Instant::now();
        queue.flush(Duration::from_millis(10));
        assert!(began.elapsed() < DEADLINE, "the end waits for the reader");
        sink.set(Mode::Takes);
        queue.flush(DEADLINE);
        let written = sink.written();
        let lost: usize = written
            .lines()
            .filter_map(|line| line.split_once("too slow lost=")?.1.parse::<usize>().ok())
            .sum();
        let kept = written.bytes().filter(|&byte| byte == b'x').count() / line.len();
        assert_eq!(kept + lost, pushed);
        assert!(lost > pushed / 2, "{lost}");
    }

    #[derive(Clone, Copy, PartialEq, Eq, Default)]
    enum Mode {
        #[default]
        Takes,
        Fails,
        TakesOneByteAndFails,
        Blocks,
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<(Mutex<Written>, Condvar)>);

    /// How it goes on, and what it took.
    type Written = (Mode, Vec<u8>);

    impl Sink {
        fn set(&self, mode: Mode) {
            self.0.0.lock().unwrap().0 = mode;
            self.0.1.notify_all();
        }

        fn written(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().1.clone()).unwrap()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let state = self.0.0.lock().unwrap();
            let mut state = self
                .0
                .1
                .wait_while(state, |state| state.0 == Mode::Blocks)
                .unwrap();
            let count = match state.0 {
                Mode::Takes | Mode::Blocks => bytes.len(),
                Mode::TakesOneByteAndFails => {
                    state.0 = Mode::Fails;
                    1
                }
                Mode::Fails => return Err(ErrorKind::StorageFull.into()),
            };
            state.1.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
