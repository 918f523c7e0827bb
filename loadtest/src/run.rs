//! A run: many verified flows, some at once, on one or more threads; and what came of them.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::flow::{self, Ending, Task, Times};
use crate::io::{self as way, Choice, Job, Kind, Socket};
use crate::pattern::derive;
use crate::scenario::Stop;
use crate::wire::{Header, Style};

/// Longest message of ping-pong, bytes: both socket buffers hold it, so that writing it whole
/// before reading cannot block for ever.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// Faults that are told in words; the others are counted only.
const FAULTS_TOLD: usize = 20;

/// How often the caller of [`run`] is told how far it is.
const TICK: Duration = Duration::from_millis(100);

/// Upper end of the histograms, microseconds: an hour. Longer times count as this.
const TIME_MAX_US: u64 = 3_600_000_000;

/// What the flows do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Mode {
    /// Bytes go up and come back.
    Echo,
    /// Bytes go up.
    Upload,
    /// Bytes come down.
    Download,
    /// Different bytes go up and down at once.
    Both,
    /// One message goes up and comes back before the next.
    PingPong,
}

/// A run to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the flows go: an endpoint, or a way that leads to one.
    pub target: SocketAddr,
    /// What they do.
    pub mode: Mode,
    /// Flows at once.
    pub flows: u64,
    /// Flows in all; `None`: as many as at once, or, where there are `bytes` and a `duration`, as
    /// many as fit.
    pub total: Option<u64>,
    /// Bytes each way in one flow; `None`: as many as fit into `duration`.
    pub bytes: Option<u64>,
    /// Length of a message of ping-pong, bytes, at most [`MESSAGE_MAX`].
    pub message: usize,
    /// No flow opens, and none without a length goes on, after this.
    pub duration: Option<Duration>,
    /// A flow in which no byte moves for this long hangs.
    pub stall: Duration,
    /// Seed of the run: the same seed gives the same bytes.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// How to talk to sockets.
    pub io: Choice,
    /// Ends the run early: no flow opens any more, and what has no length ends.
    pub stop: Stop,
}

/// Live counters of a run.
#[derive(Default, Debug)]
pub struct Counters {
    up: AtomicU64,
    down: AtomicU64,
    live: AtomicU64,
    ended: AtomicU64,
    bad: AtomicU64,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The io that was taken.
    pub kind: Kind,
    /// From the first connect to the last close.
    pub elapsed: Duration,
    /// Bytes sent, headers aside.
    pub bytes_up: u64,
    /// Bytes received, the endpoint's verdicts included (40 bytes a flow).
    pub bytes_down: u64,
    /// Flows by ending, and times.
    pub tally: Tally,
}

/// Flows counted by how they ended.
#[derive(Debug)]
pub struct Tally {
    /// All bytes came and were right.
    pub right: u64,
    /// An explicit error.
    pub failed: u64,
    /// Wrong bytes.
    pub corrupt: u64,
    /// A clean end after missing bytes.
    pub truncated: u64,
    /// No progress within the deadline.
    pub hung: u64,
    /// The first [`FAULTS_TOLD`] endings that were not right: flow number and what was seen.
    pub faults: Vec<(u64, Ending)>,
    /// Time to connect, microseconds.
    pub connect_us: Histogram<u64>,
    /// From the start of the connect to the first byte from the endpoint, microseconds.
    pub first_byte_us: Histogram<u64>,
    /// Time of a message there and back, microseconds (ping-pong).
    pub round_trip_us: Histogram<u64>,
    /// Whole flows that were right, microseconds.
    pub flow_us: Histogram<u64>,
    /// The longest time of each flow in which no byte moved, its connect aside, microseconds.
    pub silence_us: Histogram<u64>,
}

/// Runs it. `tick` is called about ten times a second.
///
/// # Errors
/// The plan makes no sense, or the io is not permitted here. What happens to flows is in the
/// outcome.
pub fn run(plan: &Plan, mut tick: impl FnMut(&Counters)) -> io::Result<Outcome> {
    plan.check()?;
    let kind = plan.io.resolve()?;
    let counters = Arc::new(Counters::default());
    let start = Instant::now();
    let tickets = Arc::new(Tickets::new(plan, start));
    let (sender, receiver) = mpsc::channel();
    let threads = plan
        .threads
        .max(1)
        .min(usize::try_from(plan.flows).unwrap_or(usize::MAX));
    for n in 0..threads {
        let slots =
            plan.flows / threads as u64 + u64::from((n as u64) < plan.flows % threads as u64);
        let worker = Worker {
            plan: plan.clone(),
            slots,
            tickets: Arc::clone(&tickets),
            counters: Arc::clone(&counters),
        };
        let sender = sender.clone();
        std::thread::Builder::new()
            .name("load".into())
            .spawn(move || {
                // Fails only when the run was given up.
                let _ = sender.send(way::drive(kind, worker));
            })?;
    }
    drop(sender);
    let mut tally = Tally::new();
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(part) => tally.add(&part?),
            Err(mpsc::RecvTimeoutError::Timeout) => tick(&counters),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    // Who was asked to end before any flow began has nothing to tell, and that is no error.
    if tally.flows() == 0 && !plan.stop.is_stopped() {
        return Err(io::Error::other("no flow ran: a thread failed"));
    }
    Ok(Outcome {
        kind,
        elapsed: start.elapsed(),
        bytes_up: counters.bytes_up(),
        bytes_down: counters.bytes_down(),
        tally,
    })
}

impl Plan {
    /// A small default: one flow of 64 MiB each way.
    pub fn new(target: SocketAddr, mode: Mode) -> Plan {
        Plan {
            target,
            mode,
            flows: 1,
            total: None,
            bytes: Some(64 << 20),
            message: 1,
            duration: None,
            stall: Duration::from_secs(30),
            seed: 1,
            threads: 1,
            io: Choice::Auto,
            stop: Stop::default(),
        }
    }

    fn check(&self) -> io::Result<()> {
        let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if self.bytes.is_none() && self.duration.is_none() {
            return wrong("give a number of bytes, a duration, or both");
        }
        if self.flows == 0 || self.total == Some(0) {
            return wrong("at least one flow is needed");
        }
        if self.message == 0 || self.message > MESSAGE_MAX {
            return wrong("a message is 1 to 65536 bytes long");
        }
        Ok(())
    }

    fn header(&self, flow: u64) -> Header {
        let (style, up, down) = match self.mode {
            Mode::Echo | Mode::PingPong => (Style::Echo, self.bytes, Some(0)),
            Mode::Upload => (Style::Exchange, self.bytes, Some(0)),
            Mode::Download => (Style::Exchange, Some(0), self.bytes),
            Mode::Both => (Style::Exchange, self.bytes, self.bytes),
        };
        Header {
            style,
            seed: derive(self.seed, flow),
            up,
            down,
        }
    }
}

impl Counters {
    /// Bytes sent so far.
    pub fn bytes_up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Bytes received so far.
    pub fn bytes_down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// Flows that are under way.
    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Flows that ended, in any way.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Flows that ended in any way but the right one.
    pub fn bad(&self) -> u64 {
        self.bad.load(Ordering::Relaxed)
    }

    pub(crate) fn moved_up(&self, len: usize) {
        self.up.fetch_add(len as u64, Ordering::Relaxed);
    }

    pub(crate) fn moved_down(&self, len: usize) {
        self.down.fetch_add(len as u64, Ordering::Relaxed);
    }

    fn opened(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    fn closed(&self, ending: &Ending) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.bad
            .fetch_add(u64::from(*ending != Ending::Right), Ordering::Relaxed);
    }
}

impl Tally {
    fn new() -> Tally {
        // Two significant digits: a percent is finer than any figure here repeats.
        let histogram = || {
            Histogram::new_with_bounds(1, TIME_MAX_US, 2)
                .expect("bounds and digits are in the permitted range")
        };
        Tally {
            right: 0,
            failed: 0,
            corrupt: 0,
            truncated: 0,
            hung: 0,
            faults: Vec::new(),
            connect_us: histogram(),
            first_byte_us: histogram(),
            round_trip_us: histogram(),
            flow_us: histogram(),
            silence_us: histogram(),
        }
    }

    /// Flows in all.
    pub fn flows(&self) -> u64 {
        self.right + self.failed + self.corrupt + self.truncated + self.hung
    }

    /// Flows that ended as none ever may: corrupt, truncated or hung.
    pub fn violations(&self) -> u64 {
        self.corrupt + self.truncated + self.hung
    }

    fn take(&mut self, flow: u64, ending: Ending, times: &Times) {
        let counter = match ending {
            Ending::Right => &mut self.right,
            Ending::Failed(_) => &mut self.failed,
            Ending::Corrupt(_) => &mut self.corrupt,
            Ending::Truncated(_) => &mut self.truncated,
            Ending::Hung(_) => &mut self.hung,
        };
        *counter += 1;
        record(&mut self.connect_us, times.connect);
        record(&mut self.first_byte_us, times.first_byte);
        record(&mut self.silence_us, times.silence);
        if ending == Ending::Right {
            record(&mut self.flow_us, Some(times.whole));
        } else if self.faults.len() < FAULTS_TOLD {
            self.faults.push((flow, ending));
        }
    }

    fn add(&mut self, part: &Tally) {
        self.right += part.right;
        self.failed += part.failed;
        self.corrupt += part.corrupt;
        self.truncated += part.truncated;
        self.hung += part.hung;
        let room = FAULTS_TOLD.saturating_sub(self.faults.len());
        self.faults.extend(part.faults.iter().take(room).cloned());
        for (whole, part) in [
            (&mut self.connect_us, &part.connect_us),
            (&mut self.first_byte_us, &part.first_byte_us),
            (&mut self.round_trip_us, &part.round_trip_us),
            (&mut self.flow_us, &part.flow_us),
            (&mut self.silence_us, &part.silence_us),
        ] {
            whole
                .add(part)
                .expect("all histograms have the same bounds");
        }
    }
}

fn record(histogram: &mut Histogram<u64>, time: Option<Duration>) {
    if let Some(time) = time {
        histogram.saturating_record(
            u64::try_from(time.as_micros())
                .unwrap_or(TIME_MAX_US)
                .max(1),
        );
    }
}

/// Who may open the next flow, and which it is. Shared by all threads, so that quick slots do more.
struct Tickets {
    next: AtomicU64,
    total: u64,
    until: Option<Instant>,
    stop: Stop,
}

impl Tickets {
    fn new(plan: &Plan, start: Instant) -> Tickets {
        let repeats = plan.bytes.is_some() && plan.duration.is_some();
        let total = plan
            .total
            .unwrap_or(if repeats { u64::MAX } else { plan.flows });
        Tickets {
            next: AtomicU64::new(0),
            total,
            until: plan.duration.map(|duration| start + duration),
            stop: plan.stop.clone(),
        }
    }

    fn take(&self) -> Option<u64> {
        if self.stop.is_stopped() || self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        (ticket < self.total).then_some(ticket)
    }
}

/// One thread's share of a run.
struct Worker {
    plan: Plan,
    slots: u64,
    tickets: Arc<Tickets>,
    counters: Arc<Counters>,
}

impl Job for Worker {
    type Output = Tally;

    async fn run<S: Socket>(self) -> Tally {
        let worker = Rc::new(self);
        // One for all slots: its histograms weigh more than a flow.
        let tally = Rc::new(RefCell::new(Tally::new()));
        let mut slots = JoinSet::new();
        for _ in 0..worker.slots {
            slots.spawn_local(slot::<S>(Rc::clone(&worker), Rc::clone(&tally)));
        }
        while let Some(ended) = slots.join_next().await {
            ended.expect("a slot is never cancelled, and does not panic");
        }
        tally.replace(Tally::new())
    }
}

/// One flow after another, while there are tickets.
async fn slot<S: Socket>(worker: Rc<Worker>, tally: Rc<RefCell<Tally>>) {
    let Worker {
        plan,
        tickets,
        counters,
        ..
    } = &*worker;
    while let Some(flow) = tickets.take() {
        let task = Task {
            target: plan.target,
            header: plan.header(flow),
            ping_pong: (plan.mode == Mode::PingPong).then_some(plan.message),
            until: tickets
                .until
                .filter(|_| plan.bytes.is_none())
                .map(Into::into),
            stop: plan.stop.clone(),
            stall: plan.stall,
        };
        counters.opened();
        let round_trip = |time| record(&mut tally.borrow_mut().round_trip_us, Some(time));
        let (ending, times) = flow::run::<S>(&task, counters, round_trip).await;
        counters.closed(&ending);
        if matches!(ending, Ending::Failed(_)) {
            way::pause().await; // A target that refuses is asked again, but not hammered.
        }
        tally.borrow_mut().take(flow, ending, &times);
    }
}
