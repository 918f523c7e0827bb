//! One flow of a group: waits until its calls are due, carries them over one connection or many,
//! and notes how each ended.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::Group;
use super::alarm::{Alarm, Woken};
use super::connection::{Connection, Observer, Throttle};
use super::recorder::Recorder;
use super::schedule::{Due, Schedule};
use crate::flow::{Ending, Fault};
use crate::io::{self as way, Socket, or_abort};
use crate::pattern::derive;

/// Receive buffer of a slow reader, bytes: small, so that its slowness reaches the sender soon. The
/// kernel doubles it.
const SLOW_READER_BUFFER: u32 = 32 * 1024;

/// How far a run is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Phase {
    /// Somebody ended the run at this time: no call begins any more, those under way may end.
    pub(super) stopped: Option<Duration>,
    /// What is still under way is given up.
    pub(super) cut: bool,
}

/// What all flows of one group on one thread share.
pub(super) struct Context {
    pub(super) group: Group,
    pub(super) targets: Vec<SocketAddr>,
    pub(super) sources: Vec<IpAddr>,
    /// Parts of the whole run: a flow's number steps by this from one flow of this part to the
    /// next.
    pub(super) parts: u64,
    pub(super) seed: u64,
    pub(super) deadline: Duration,
    pub(super) start: Instant,
    pub(super) until: Duration,
    pub(super) alarm: Rc<Alarm>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) permits: Option<Arc<Semaphore>>,
    pub(super) recorder: RefCell<Recorder>,
}

/// Runs flow `index` of the group to its end.
pub(super) async fn run<S: Socket>(context: &Context, index: u64) {
    let schedule = Schedule::new(&context.group, index, context.until);
    let begin = schedule.begin();
    if begin >= context.until || context.wait(begin).await == Woken::Ended {
        return;
    }
    let mut flow = Flow {
        context,
        index,
        seed: derive(context.seed, index),
        connections: 0,
        free_since: begin,
        over: false,
        schedule,
        rng: SmallRng::seed_from_u64(derive(context.seed, !index)),
    };
    // The first connection is made at once, so that flows are there before their calls; a later one
    // when a call needs it.
    let mut next = None;
    loop {
        flow.connection::<S>(next).await;
        flow.free_since = context.now();
        next = flow.due().await;
        if next.is_none() {
            break;
        }
    }
    flow.count_unsent();
}

impl Context {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    async fn wait(&self, at: Duration) -> Woken {
        self.alarm.wait(self.start + at).await
    }

    /// Waits until the run is cut. A cut run has ended, for whoever hears of it first: else a flow
    /// that lost its call to the cut begins those that have waited, and they count as under way
    /// too.
    async fn cut(&self) {
        let mut phase = self.phase.clone();
        // An error means that nobody runs us: cut as well.
        let _ = phase.wait_for(|phase| phase.cut).await;
        self.alarm.end();
    }
}

struct Flow<'a> {
    context: &'a Context,
    index: u64,
    seed: u64,
    connections: u64,
    /// When the flow was last done with something.
    free_since: Duration,
    /// No call is to come any more.
    over: bool,
    schedule: Schedule,
    rng: SmallRng,
}

/// A call that may begin.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// From when its latency counts.
    due: Duration,
    /// When it was sent.
    at: Duration,
}

impl Flow<'_> {
    /// Waits for the next call. `None`: there is none any more.
    async fn due(&mut self) -> Option<Begun> {
        let context = self.context;
        if self.over {
            return None;
        }
        let next = self.schedule.next(context.now(), &mut self.rng);
        let Some(due @ (Due::At(at) | Due::After(at))) = next else {
            self.over = true;
            return None;
        };
        if context.wait(at).await == Woken::Ended {
            self.over = true;
            self.unsent(due);
            return None;
        }
        let now = context.now();
        match due {
            Due::After(_) => Some(Begun { due: now, at: now }),
            Due::At(at) => {
                if self.free_since <= at {
                    context.recorder.borrow_mut().late(now.saturating_sub(at));
                }
                Some(Begun { due: at, at: now })
            }
        }
    }

    /// One connection, to its end or to that of its calls. `first`: a call that waits for it
    /// already.
    async fn connection<S: Socket>(&mut self, first: Option<Begun>) {
        let context = self.context;
        let stream = match self.connect().await {
            Ok(stream) => stream,
            Err(None) => return self.cut(first),
            Err(Some(ending)) => {
                self.failed(&ending);
                // A target that refuses is asked again, but not hammered.
                return way::pause().await;
            }
        };
        let socket = match S::adopt(stream) {
            Ok(socket) => socket,
            Err(error) => return self.failed(&Ending::Failed(format!("socket: {error}"))),
        };
        let pulse = Pulse {
            context,
            last: Cell::new(Instant::now()),
            busy: Cell::new(false),
            hung: Cell::new(false),
        };
        let under_way = Cell::new(None);
        context.recorder.borrow().opened();
        let conversation = self.converse(&socket, first, &pulse, &under_way);
        let trigger = async {
            tokio::select! {
                () = pulse.hung() => pulse.hung.set(true),
                () = context.cut() => {}
            }
        };
        let (result, triggered) = or_abort(&socket, conversation, trigger).await;
        context.recorder.borrow().closed();
        match result {
            _ if pulse.hung.get() => {
                let deadline = context.deadline;
                self.failed(&Ending::Hung(format!("no byte for {deadline:?}")));
            }
            Ok(()) => {}
            Err(_) if triggered => self.cut(under_way.get()),
            Err(fault) => {
                socket.abort();
                self.failed(&fault.into());
                way::pause().await;
            }
        }
    }

    /// `Err(None)`: the run was cut.
    async fn connect(&mut self) -> Result<TcpStream, Option<Ending>> {
        let context = self.context;
        let begun = context.now();
        let failed = |error| Some(Ending::Failed(format!("connect: {error}")));
        let attempt = async {
            let target = context.targets[self.index as usize % context.targets.len()];
            let socket = if target.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }?;
            if context.group.read_rate.is_some() {
                socket.set_recv_buffer_size(SLOW_READER_BUFFER)?;
            }
            if !context.sources.is_empty() {
                let nth = (self.index / context.parts) as usize;
                let source = context.sources[nth % context.sources.len()];
                socket.bind(SocketAddr::new(source, 0))?;
            }
            socket.connect(target).await
        };
        tokio::select! {
            result = attempt => {
                let stream = result.map_err(failed)?;
                let time = context.now() - begun;
                context.recorder.borrow_mut().connected(time);
                Ok(stream)
            }
            () = tokio::time::sleep(context.deadline) => {
                let deadline = context.deadline;
                Err(Some(Ending::Hung(format!("no connection within {deadline:?}"))))
            }
            () = context.cut() => Err(None),
        }
    }

    /// Calls until the connection has had its share, and its end.
    async fn converse<S: Socket>(
        &mut self,
        socket: &S,
        mut first: Option<Begun>,
        pulse: &Pulse<'_>,
        under_way: &Cell<Option<Begun>>,
    ) -> Result<(), Fault> {
        let context = self.context;
        let group = &context.group;
        let seed = derive(self.seed, self.connections);
        self.connections += 1;
        let throttle = group
            .read_rate
            .map(|rate| Throttle::new(rate, &context.alarm));
        let mut connection = Connection::new(group.protocol, seed, group.verify, throttle, pulse);
        let mut left = group.churn.unwrap_or(u64::MAX);
        while left > 0 {
            left -= 1;
            let next = match first.take() {
                Some(begun) => Some(begun),
                None => self.due().await,
            };
            let Some(mut begun) = next else { break };
            let request = group.request.pick(&mut self.rng);
            let response = group.response.pick(&mut self.rng);
            let permit = match &context.permits {
                None => None,
                Some(permits) => {
                    let permit = permits.acquire().await;
                    if context.alarm.has_ended() || context.now() >= context.until {
                        self.over = true;
                        break;
                    }
                    begun.at = context.now();
                    begun.due = begun.at; // Only closed loops have permits: service time.
                    Some(permit)
                }
            };
            under_way.set(Some(begun));
            pulse.begin();
            connection.call(socket, request, response).await?;
            pulse.end();
            under_way.set(None);
            drop(permit);
            let now = context.now();
            self.free_since = now;
            let mut recorder = context.recorder.borrow_mut();
            recorder.answered(begun.due, begun.at, now);
        }
        pulse.begin();
        connection.close(socket).await
    }

    fn failed(&self, ending: &Ending) {
        let context = self.context;
        let now = context.now();
        context
            .recorder
            .borrow_mut()
            .failed(self.index, now, ending);
    }

    fn cut(&self, call: Option<Begun>) {
        let context = self.context;
        if let Some(begun) = call {
            context.recorder.borrow_mut().cut(begun.due, context.now());
        }
    }

    /// An open loop that did not keep up has calls left that were due.
    fn count_unsent(&mut self) {
        let now = self.context.now();
        while let Some(due @ Due::At(_)) = self.schedule.next(now, &mut self.rng) {
            if !self.unsent(due) {
                break;
            }
        }
    }

    /// Whether this one was due before the end.
    fn unsent(&self, due: Due) -> bool {
        let context = self.context;
        let now = context.now();
        let end = context.phase.borrow().stopped.unwrap_or(now);
        match due {
            Due::At(at) if at < end => {
                context.recorder.borrow_mut().unsent(at, now);
                true
            }
            _ => false,
        }
    }
}

/// Life signs of a connection.
struct Pulse<'a> {
    context: &'a Context,
    last: Cell<Instant>,
    /// Whether a call is under way: silence between calls is no hang.
    busy: Cell<bool>,
    hung: Cell<bool>,
}

impl Pulse<'_> {
    fn begin(&self) {
        self.last.set(Instant::now());
        self.busy.set(true);
    }

    fn end(&self) {
        self.busy.set(false);
    }

    /// Ends when no byte has moved for the deadline while a call was under way.
    async fn hung(&self) {
        let limit = self.context.deadline;
        loop {
            let due = self.last.get() + limit;
            let now = Instant::now();
            match (now >= due, self.busy.get()) {
                (true, true) => return,
                (true, false) => tokio::time::sleep(limit).await,
                (false, _) => tokio::time::sleep_until(due.into()).await,
            }
        }
    }
}

impl Observer for &Pulse<'_> {
    fn moved_up(&self, len: usize) {
        let now = Instant::now();
        self.last.set(now);
        let mut recorder = self.context.recorder.borrow_mut();
        recorder.moved_up(now - self.context.start, len as u64);
    }

    fn moved_down(&self, len: usize) {
        let now = Instant::now();
        self.last.set(now);
        let mut recorder = self.context.recorder.borrow_mut();
        recorder.moved_down(now - self.context.start, len as u64);
    }

    fn paused(&self) {
        self.last.set(Instant::now());
    }
}
