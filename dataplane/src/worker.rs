//! The worker: one thread, one loop, its own sessions and flows. What a process is for, its role, hears of what the loop does not decide itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};
use quinn_proto::{ConnectionError, StreamId};
use rand::rngs::StdRng;
use tracing::error;
use underpass_proto::{FlowCode, SessionCode};

use crate::core::{Core, Owner};
use crate::flow::{End, Flow, FlowKey};
use crate::guard::guarded;
#[cfg(target_os = "linux")]
use crate::io::Ring;
use crate::io::udp::Udp;
use crate::io::{Completion, Io, Kind, Poll, SocketId, Waker as _};
use crate::join::{Join, JoinEnd, JoinKey, Toward};
use crate::linger::Linger;
use crate::quic::{Driver, Event, SessionId, cid};

/// How often a role looks after deadlines of its own.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Messages that may wait for a worker. More than all of 10,000 definitions changing at once need, for they travel together.
const INBOX_MAX: usize = 4096;

/// Messages that a worker takes in one turn.
const MESSAGES_PER_TURN: usize = 256;

/// How long another thread waits for a place in a full inbox before it gives the worker up.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// What a process does with its sessions, sockets and flows.
pub(crate) trait Role: Sized {
    /// What it keeps with each flow.
    type Flow;
    /// What other threads tell it.
    type Message: Send + 'static;

    /// Another thread says something.
    fn message<I: Io>(&mut self, core: &mut Core<I, Self::Flow>, message: Self::Message);

    /// A listener of the role took a connection. `listener` is the number it was owned by.
    fn accepted<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        listener: u64,
        socket: std::io::Result<(SocketId, SocketAddr)>,
    );

    /// A connection attempt of the role ended. `dial` is the number it was owned by.
    fn connected<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        dial: u64,
        socket: SocketId,
        result: std::io::Result<()>,
    );

    /// The handshake of a session is done.
    fn session_up<I: Io>(&mut self, core: &mut Core<I, Self::Flow>, session: SessionId);

    /// A session is over; its flows have ended.
    fn session_lost<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        session: SessionId,
        why: &ConnectionError,
    );

    /// The peer opened a stream.
    fn stream_opened<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        session: SessionId,
        stream: StreamId,
    );

    /// A stream that is no opened flow's may be read, or was reset or stopped.
    fn stream_readable<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        session: SessionId,
        stream: StreamId,
    );

    /// A stream that is no flow's may be written again.
    fn stream_writable<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        session: SessionId,
        stream: StreamId,
    );

    /// A peer allows more streams than before.
    fn streams_available<I: Io>(&mut self, _: &mut Core<I, Self::Flow>) {}

    /// An unopened flow's stream may be read, or was reset.
    fn unopened_readable<I: Io>(&mut self, core: &mut Core<I, Self::Flow>, key: FlowKey);

    /// A join's agent may have answered, or was reset.
    fn join_answered<I: Io>(&mut self, core: &mut Core<I, Self::Flow>, key: JoinKey);

    /// A join ended.
    fn join_ended<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        join: Join<Self::Flow>,
        end: JoinEnd,
    );

    /// A flow ended.
    fn flow_ended<I: Io>(
        &mut self,
        core: &mut Core<I, Self::Flow>,
        flow: Flow<Self::Flow>,
        end: End,
    );

    /// Time for deadlines: each [`TICK`].
    fn tick<I: Io>(&mut self, core: &mut Core<I, Self::Flow>);

    /// Datagrams of another worker's session, where the kernel does not steer.
    fn misdirected(&mut self, worker: u8, datagrams: crate::io::Datagrams);

    /// Whether all is done and the worker may end.
    fn is_done(&self) -> bool;
}

/// How other threads reach a worker.
pub(crate) struct Handle<M> {
    inbox: Sender<M>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<M> Handle<M> {
    /// Tells the worker; waits for a place, boundedly. False when the worker is gone or stuck.
    #[must_use]
    pub(crate) fn send(&self, message: M) -> bool {
        match self.inbox.send_timeout(message, SEND_DEADLINE) {
            Ok(()) => {
                (self.wake)();
                true
            }
            Err(SendTimeoutError::Timeout(_) | SendTimeoutError::Disconnected(_)) => false,
        }
    }

    /// Tells the worker if there is a place now; gives the message back otherwise. For other workers, which must not wait.
    ///
    /// # Errors
    /// The message, when the inbox is full or the worker gone.
    pub(crate) fn try_send(&self, message: M) -> Result<(), M> {
        self.inbox.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
        })?;
        (self.wake)();
        Ok(())
    }
}

/// What a worker is made of.
pub(crate) struct Parts {
    /// Its index.
    pub(crate) worker: u8,
    /// How many there are on its port.
    pub(crate) workers: u8,
    /// Its socket.
    pub(crate) udp: Udp,
    /// Its backend.
    pub(crate) kind: Kind,
    /// Its sessions.
    pub(crate) quic: Driver,
}

/// Workers of a process that was told no number: one for every two cores. The kernel's half of the work, and whoever else is on the machine,
/// have the others; more workers batch less and wake each other more (measured, ARCHITECTURE.md).
pub(crate) fn usual_count() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores / 2).unwrap_or(u16::MAX).max(1)
}

/// What a role is made with.
pub(crate) struct Start<M> {
    /// The handle that reaches its worker.
    pub(crate) handle: Handle<M>,
    /// The time, as the worker sees it.
    pub(crate) now: Instant,
    /// Where its chance comes from.
    pub(crate) rng: StdRng,
}

/// A running worker.
pub(crate) struct Running<M> {
    /// How to reach it.
    pub(crate) handle: Handle<M>,
    /// Its thread; ends with an error when the kernel refused to go on.
    pub(crate) thread: JoinHandle<std::io::Result<()>>,
}

/// Starts a worker on a thread of its own. `role` is made there.
///
/// # Errors
/// The backend or the thread cannot be had.
pub(crate) fn spawn<R, F>(parts: Parts, role: F) -> std::io::Result<Running<R::Message>>
where
    R: Role,
    F: FnOnce(Start<R::Message>) -> R + Send + 'static,
{
    let (ready, started) = bounded(1);
    let name = format!("worker-{}", parts.worker);
    let thread = std::thread::Builder::new()
        .name(name)
        .spawn(move || match parts.kind {
            #[cfg(target_os = "linux")]
            Kind::Ring => begin(
                Ring::new(parts.udp),
                parts.quic,
                (parts.worker, parts.workers),
                ready,
                role,
            ),
            Kind::Poll => begin(
                Poll::new(parts.udp),
                parts.quic,
                (parts.worker, parts.workers),
                ready,
                role,
            ),
        })?;
    match started.recv() {
        Ok(handle) => Ok(Running { handle, thread }),
        Err(_) => match thread.join() {
            Ok(Err(error)) => Err(error),
            _ => Err(std::io::Error::other("the worker's thread ended at once")),
        },
    }
}

fn begin<I: Io, R: Role>(
    io: std::io::Result<I>,
    quic: Driver,
    place: (u8, u8),
    ready: Sender<Handle<R::Message>>,
    role: impl FnOnce(Start<R::Message>) -> R,
) -> std::io::Result<()> {
    let io = io?;
    seed_randomness();
    let (worker, handle) = Worker::new(io, quic, place, rand::make_rng(), role);
    let _ = ready.send(handle);
    drop(ready);
    worker.run()
}

/// aws-lc seeds its generator in each thread at the first use, which takes 70 ms. Done here, it is not in the first handshake's round-trip time.
fn seed_randomness() {
    // Where this fails, the handshake fails, and says so.
    let _ = aws_lc_rs::rand::fill(&mut [0]);
}

/// A worker: turned on a thread of its own, or by a simulation.
pub(crate) struct Worker<I: Io, R: Role> {
    pub(crate) core: Core<I, R::Flow>,
    pub(crate) role: R,
    workers: u8,
    messages: Receiver<R::Message>,
    completions: Vec<Completion>,
    events: VecDeque<(SessionId, Event)>,
    next_tick: Instant,
    /// More is ready to be sent than one turn may send.
    unsent: bool,
}

impl<I: Io, R: Role> Worker<I, R> {
    /// Made, and not turned yet. `worker` of `workers` on its port.
    pub(crate) fn new(
        io: I,
        quic: Driver,
        (worker, workers): (u8, u8),
        rng: StdRng,
        role: impl FnOnce(Start<R::Message>) -> R,
    ) -> (Self, Handle<R::Message>) {
        let (inbox, messages) = bounded(INBOX_MAX);
        let waker = io.waker();
        let handle = Handle {
            inbox,
            wake: Arc::new(move || waker.wake()),
        };
        let core = Core::new(worker, io, quic);
        let role = role(Start {
            handle: handle.clone(),
            now: core.now,
            rng,
        });
        let worker = Self {
            next_tick: core.now + TICK,
            core,
            role,
            workers,
            messages,
            completions: Vec::new(),
            events: VecDeque::new(),
            unsent: false,
        };
        (worker, handle)
    }

    fn run(mut self) -> std::io::Result<()> {
        let mut linger = Linger::new(self.core.now);
        while !self.role.is_done() {
            let deadline = if linger.goes_on(self.core.now) {
                self.core.now
            } else {
                self.deadline()
            };
            if self.turn(deadline)? {
                linger.happened(self.core.now);
            } else if linger.goes_on(self.core.now) {
                linger.give_way(|| self.core.io.now());
            }
        }
        self.finish()
    }

    /// What was queued last, the closes of sessions, leaves before the socket does.
    pub(crate) fn finish(&mut self) -> std::io::Result<()> {
        self.core.quic.flush(self.core.now, &mut self.core.io);
        self.core
            .io
            .wait(Some(self.core.now), &mut self.completions)
    }

    /// One turn: what came in until `deadline`, what it means, what goes out. Whether anything came in.
    pub(crate) fn turn(&mut self, deadline: Instant) -> std::io::Result<bool> {
        let mut completions = std::mem::take(&mut self.completions);
        self.core.io.wait(Some(deadline), &mut completions)?;
        self.core.now = self.core.io.now();
        let any = !completions.is_empty();
        for completion in completions.drain(..) {
            self.complete_guarded(completion);
        }
        self.completions = completions;
        self.core.quic.fire_timers(self.core.now);
        if guarded(|| self.tick()).is_none() {
            self.core.panics += 1;
        }
        self.settle();
        // Everything that became ready leaves together: full datagrams, one submit.
        self.unsent = self.core.quic.flush(self.core.now, &mut self.core.io);
        Ok(any)
    }

    /// When it has something to do, whatever comes.
    pub(crate) fn deadline(&self) -> Instant {
        if self.unsent || !self.messages.is_empty() {
            return self.core.now;
        }
        let quic = self.core.quic.next_deadline();
        quic.map_or(self.next_tick, |deadline| deadline.min(self.next_tick))
    }

    /// A defect that a completion lays bare ends the flow that it is about.
    fn complete_guarded(&mut self, completion: Completion) {
        let owner = completion.socket().map(|socket| self.core.owner(socket));
        if guarded(|| self.complete(completion)).is_some() {
            return;
        }
        self.core.panics += 1;
        if let Some(Owner::Flow(key)) = owner {
            let _ = guarded(|| self.core.fail(key, End::Here(FlowCode::Aborted)));
        }
    }

    fn complete(&mut self, completion: Completion) {
        let core = &mut self.core;
        match completion {
            Completion::Datagrams(batch) => self.datagrams(batch),
            Completion::Received { socket, result } => match core.owner(socket) {
                Owner::Flow(key) => core.socket_received(key, result),
                Owner::Role(_) | Owner::None => {}
            },
            Completion::Sent { socket, result } => match core.owner(socket) {
                Owner::Flow(key) => core.socket_sent(key, result),
                Owner::Role(_) | Owner::None => {}
            },
            Completion::HungUp { socket, error } => match core.owner(socket) {
                Owner::Flow(key) => core.socket_hung_up(key, &error),
                Owner::Role(_) | Owner::None => {}
            },
            Completion::Accepted { listener, socket } => match core.owner(listener) {
                Owner::Role(number) => self.role.accepted(core, number, socket),
                Owner::Flow(_) | Owner::None => refuse_stale(core, socket),
            },
            Completion::Connected { socket, result } => match core.owner(socket) {
                Owner::Role(number) => self.role.connected(core, number, socket, result),
                Owner::Flow(_) | Owner::None => {}
            },
            Completion::Woken => self.read_inbox(),
            Completion::BufferFree => {}
        }
    }

    fn datagrams(&mut self, batch: crate::io::Datagrams) {
        if self.workers > 1
            && let Some(worker) = cid::worker_of(&batch.data, self.workers)
            && worker != self.core.worker
        {
            return self.role.misdirected(worker, batch);
        }
        self.core
            .quic
            .receive(self.core.now, batch, &mut self.core.io);
    }

    fn read_inbox(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Ok(message) = self.messages.try_recv() else {
                return;
            };
            self.role.message(&mut self.core, message);
        }
    }

    fn tick(&mut self) {
        if !self.messages.is_empty() {
            self.read_inbox();
        }
        if self.core.now >= self.next_tick {
            self.next_tick = self.core.now + TICK;
            self.core.watch_paused();
            self.role.tick(&mut self.core);
        }
    }

    /// Carries out what the sessions have to say, until they have no more.
    fn settle(&mut self) {
        loop {
            self.core.quic.poll(&mut self.events);
            let quiet = self.events.is_empty();
            while let Some((session, event)) = self.events.pop_front() {
                self.event_guarded(session, event);
            }
            if guarded(|| self.tell_endings()).is_none() {
                self.core.panics += 1;
            }
            if quiet {
                return;
            }
        }
    }

    /// A defect that an event lays bare ends the session that it is about.
    fn event_guarded(&mut self, session: SessionId, event: Event) {
        if guarded(|| self.event(session, event)).is_some() {
            return;
        }
        self.core.panics += 1;
        error!("a defect ended a session; please report it, with the message of the panic above");
        let _ = guarded(|| {
            let why = ConnectionError::LocallyClosed;
            self.role.session_lost(&mut self.core, session, &why);
        });
        let _ = guarded(|| self.core.session_gone(session));
        let code = SessionCode::Overloaded;
        self.core.quic.close(self.core.now, session, code);
    }

    fn event(&mut self, session: SessionId, event: Event) {
        if let Some(stream) = event.stream()
            && let Some((key, of)) = self.core.joins.of_stream(session, stream)
        {
            return self.join_event(key, of, &event);
        }
        let core = &mut self.core;
        match event {
            Event::Readable(stream) => match core.flows.of_stream(session, stream) {
                Some(key) if core.flows.get(key).is_some_and(Flow::is_unopened) => {
                    self.role.unopened_readable(core, key);
                }
                Some(key) => core.stream_readable(key),
                None => self.role.stream_readable(core, session, stream),
            },
            Event::Writable(stream) => match core.flows.of_stream(session, stream) {
                Some(key) => core.stream_writable(key),
                None => self.role.stream_writable(core, session, stream),
            },
            Event::Finished(stream) => {
                if let Some(key) = core.flows.of_stream(session, stream) {
                    core.stream_delivered(key);
                }
            }
            Event::Stopped(stream, code) => match core.flows.of_stream(session, stream) {
                // Its reset says the same, and the role may have another way.
                Some(key) if core.flows.get(key).is_some_and(Flow::is_unopened) => {}
                Some(key) => core.stream_stopped(key, code),
                None => self.role.stream_readable(core, session, stream),
            },
            Event::Opened(stream) => self.role.stream_opened(core, session, stream),
            Event::Connected => self.role.session_up(core, session),
            Event::Lost(why) => {
                // The role first: it may have another way for flows that nobody has seen yet.
                self.role.session_lost(core, session, &why);
                core.session_gone(session);
                self.tell_endings();
            }
            Event::Available => self.role.streams_available(core),
        }
    }

    fn join_event(&mut self, key: JoinKey, of: Toward, event: &Event) {
        let core = &mut self.core;
        let unopened = core.joins.get(key).is_some_and(Join::is_unopened) && of == Toward::Agent;
        match event {
            Event::Readable(_) if unopened => self.role.join_answered(core, key),
            Event::Readable(_) => core.join_readable(key, of),
            Event::Writable(_) => core.join_writable(key, of),
            Event::Finished(_) => core.join_delivered(key, of),
            // Its reset says the same, and the role may have another way.
            Event::Stopped(..) if unopened => {}
            Event::Stopped(_, code) => core.fail_join(key, JoinEnd::Said(of, *code)),
            Event::Opened(_) | Event::Connected | Event::Lost(_) | Event::Available => {}
        }
    }

    fn tell_endings(&mut self) {
        for (join, end) in std::mem::take(&mut self.core.ended_joins) {
            self.role.join_ended(&mut self.core, join, end);
        }
        let mut ended = std::mem::take(&mut self.core.ended);
        for (flow, end) in ended.drain(..) {
            self.role.flow_ended(&mut self.core, flow, end);
        }
        self.core.ended.append(&mut ended);
    }
}

/// A connection that arrived while its listener was being closed.
fn refuse_stale<I: Io, D>(core: &mut Core<I, D>, socket: std::io::Result<(SocketId, SocketAddr)>) {
    if let Ok((socket, _)) = socket {
        core.io.close(socket, crate::io::Close::Reset);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quinn_proto::VarInt;

    use super::*;
    use crate::io::udp;
    use crate::quic::config::{self, EndpointKeys, Server, Trust};

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Panics at what one session says, and tells what it sees of others.
    struct Touchy(Sender<String>);

    impl Touchy {
        fn tell(&self, what: impl Into<String>) {
            let _ = self.0.try_send(what.into());
        }
    }

    impl Role for Touchy {
        type Flow = ();
        type Message = ();

        fn message<I: Io>(&mut self, _: &mut Core<I, ()>, (): ()) {
            self.tell("woken");
        }

        fn accepted<I: Io>(
            &mut self,
            _: &mut Core<I, ()>,
            _: u64,
            _: std::io::Result<(SocketId, SocketAddr)>,
        ) {
        }

        fn connected<I: Io>(
            &mut self,
            _: &mut Core<I, ()>,
            _: u64,
            _: SocketId,
            _: std::io::Result<()>,
        ) {
        }

        fn session_up<I: Io>(&mut self, _: &mut Core<I, ()>, _: SessionId) {}

        fn session_lost<I: Io>(
            &mut self,
            core: &mut Core<I, ()>,
            _: SessionId,
            _: &ConnectionError,
        ) {
            self.tell(format!("lost one after {} panics", core.panics));
        }

        fn stream_opened<I: Io>(
            &mut self,
            core: &mut Core<I, ()>,
            session: SessionId,
            stream: StreamId,
        ) {
            self.stream_readable(core, session, stream);
        }

        fn stream_readable<I: Io>(
            &mut self,
            core: &mut Core<I, ()>,
            session: SessionId,
            stream: StreamId,
        ) {
            let mut chunks = Vec::new();
            let _ = core.quic.read(session, stream, 1, 100, &mut chunks);
            for chunk in chunks {
                assert_ne!(&chunk[..], b"a defect", "the defect that is wanted here");
                self.tell(String::from_utf8_lossy(&chunk));
            }
        }

        fn stream_writable<I: Io>(&mut self, _: &mut Core<I, ()>, _: SessionId, _: StreamId) {}

        fn unopened_readable<I: Io>(&mut self, _: &mut Core<I, ()>, _: FlowKey) {}

        fn join_answered<I: Io>(&mut self, _: &mut Core<I, ()>, _: JoinKey) {}

        fn join_ended<I: Io>(&mut self, _: &mut Core<I, ()>, _: Join<()>, _: JoinEnd) {}

        fn flow_ended<I: Io>(&mut self, _: &mut Core<I, ()>, _: Flow<()>, _: End) {}

        fn tick<I: Io>(&mut self, _: &mut Core<I, ()>) {}

        fn misdirected(&mut self, _: u8, _: crate::io::Datagrams) {}

        fn is_done(&self) -> bool {
            false
        }
    }

    /// The other end, driven by the test's own thread.
    struct Peer {
        io: Poll,
        quic: Driver,
        events: VecDeque<(SessionId, Event)>,
    }

    impl Peer {
        /// Waits for an event of a session.
        fn until(&mut self, session: SessionId, is_it: impl Fn(&Event) -> bool) {
            self.drive(|events| {
                let found = |(of, event): (SessionId, Event)| of == session && is_it(&event);
                events.drain(..).any(found)
            });
        }

        /// Goes on until it is so.
        fn drive(&mut self, mut is_so: impl FnMut(&mut VecDeque<(SessionId, Event)>) -> bool) {
            let end = Instant::now() + PATIENCE;
            while !is_so(&mut self.events) {
                let now = self.io.now();
                assert!(now < end, "waited in vain");
                let mut completions = Vec::new();
                let soon = now + Duration::from_millis(10);
                self.io.wait(Some(soon), &mut completions).expect("waits");
                for completion in completions {
                    if let Completion::Datagrams(batch) = completion {
                        self.quic.receive(now, batch, &mut self.io);
                    }
                }
                self.quic.fire_timers(now);
                self.quic.poll(&mut self.events);
                self.quic.flush(now, &mut self.io);
            }
        }

        fn say(&mut self, session: SessionId, what: &'static str) {
            let stream = self.quic.open(session).expect("a stream");
            let mut chunks = [Bytes::from_static(what.as_bytes())];
            self.quic
                .write(session, stream, &mut chunks)
                .expect("written");
        }
    }

    #[test]
    fn a_defect_that_one_session_lays_bare_costs_that_session_alone() {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let certificate = certified.cert.der().to_vec();
        let key = certified.signing_key.serialize_der();
        let server = Server::new(vec![certificate.clone()], key, [7; 32]).expect("a server");
        let udp = udp::bind(([127, 0, 0, 1], 0).into(), false).expect("bound");
        let address = udp.address();
        let (tell, told) = bounded(100);
        let parts = Parts {
            worker: 0,
            workers: 1,
            udp,
            kind: Kind::Poll,
            quic: Driver::new(0, &EndpointKeys::ephemeral(), Some(Arc::new(server)), None),
        };
        let running = spawn(parts, move |_: Start<()>| Touchy(tell)).expect("started");
        let mut peer = Peer {
            io: Poll::new(udp::bind(([127, 0, 0, 1], 0).into(), false).expect("bound"))
                .expect("polls"),
            quic: Driver::new(0, &EndpointKeys::ephemeral(), None, None),
            events: VecDeque::new(),
        };
        let trust = Trust::Authorities(vec![certificate]);
        let dial = |peer: &mut Peer| {
            let client = config::client(&trust, cid::towards(0, &mut rand::rng()), config::MTU_MIN)
                .expect("a client");
            let session = peer
                .quic
                .connect(Instant::now(), client, address, "localhost");
            let session = session.expect("dialled");
            peer.until(session, |event| matches!(event, Event::Connected));
            session
        };
        let (struck, other) = (dial(&mut peer), dial(&mut peer));
        peer.say(struck, "a defect");
        peer.until(struck, |event| {
            let overloaded = VarInt::from_u32(SessionCode::Overloaded.to_u32());
            matches!(event, Event::Lost(ConnectionError::ApplicationClosed(close)) if close.error_code == overloaded)
        });
        peer.say(other, "all is well");
        peer.drive(|_| told.len() == 2);
        assert_eq!(told.recv().as_deref(), Ok("lost one after 1 panics"));
        assert_eq!(told.recv().as_deref(), Ok("all is well"));
        assert!(running.handle.send(()));
        assert_eq!(told.recv_timeout(PATIENCE).as_deref(), Ok("woken"));
    }
}
