//! The worker: one thread, one loop, its own sessions and flows. What a process is for, its role,
//! hears of what the loop does not decide itself.

mod role;
mod spawn;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use quinn_proto::ConnectionError;
use rand::rngs::StdRng;
use tracing::error;
use underpass_proto::{FlowCode, SessionCode};

pub(crate) use self::role::Role;
pub(crate) use self::spawn::{Handle, Parts, Running, Start, spawn, usual_count};
use crate::core::{Core, Owner};
use crate::flow::{End, Flow};
use crate::guard::guarded;
use crate::io::{Completion, Io, SocketId};
use crate::join::{Join, JoinEnd, JoinKey, Toward};
use crate::linger::Linger;
use crate::log_limit::{LogCause, Permit};
use crate::quic::{Driver, Event, SessionId, cid};

/// How often a role looks after deadlines of its own.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Messages that may wait for a worker. More than all of 10,000 definitions changing at once need,
/// for they travel together.
const INBOX_MAX: usize = 4096;

/// Messages that a worker takes in one turn.
const MESSAGES_PER_TURN: usize = 256;

/// A worker: turned on a thread of its own, or by a simulation.
pub(crate) struct Worker<I: Io, R: Role> {
    pub(crate) core: Core<I, R::Flow>,
    pub(crate) role: R,
    workers: u8,
    messages: Receiver<R::Message>,
    completions: Vec<Completion>,
    events: VecDeque<(SessionId, Event)>,
    next_tick: Instant,
    linger: Linger,
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
        let handle = Handle::new(inbox, io.waker());
        let core = Core::new(worker, io, quic);
        let role = role(Start {
            handle: handle.clone(),
            now: core.now,
            rng,
        });
        let worker = Self {
            next_tick: core.now + TICK,
            linger: Linger::new(core.now),
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
        while !self.role.is_done() {
            let deadline = if self.linger.goes_on(self.core.now) {
                self.core.now
            } else {
                self.deadline()
            };
            self.wait(deadline)?;
            if deadline > self.core.now && !self.completions.is_empty() {
                self.linger.woke(|| self.core.io.now());
            }
            if self.act() {
                self.linger.happened(self.core.now);
            } else if self.linger.goes_on(self.core.now) {
                self.linger.give_way(|| self.core.io.now());
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

    /// One turn: what came in until `deadline`, what it means, what goes out. Whether anything came
    /// in.
    pub(crate) fn turn(&mut self, deadline: Instant) -> std::io::Result<bool> {
        self.wait(deadline)?;
        Ok(self.act())
    }

    fn wait(&mut self, deadline: Instant) -> std::io::Result<()> {
        self.core.io.wait(Some(deadline), &mut self.completions)?;
        self.core.hurried = false;
        Ok(())
    }

    /// What came in, what it means, what goes out.
    fn act(&mut self) -> bool {
        self.core.now = self.core.io.now();
        let mut completions = std::mem::take(&mut self.completions);
        let any = !completions.is_empty();
        for completion in completions.drain(..) {
            self.linger.saw(&completion);
            self.complete_guarded(completion);
        }
        self.completions = completions;
        self.core.quic.take_later(&mut self.events);
        self.core.quic.fire_timers(self.core.now);
        if guarded(|| self.tick()).is_none() {
            self.core.panics += 1;
        }
        self.settle();
        // Everything that became ready leaves together: full datagrams, one submit.
        self.unsent = self.core.quic.flush(self.core.now, &mut self.core.io);
        any
    }

    /// When it has something to do, whatever comes.
    pub(crate) fn deadline(&mut self) -> Instant {
        let quic = &self.core.quic;
        if self.unsent || self.core.hurried || quic.reads_later() || !self.messages.is_empty() {
            return self.core.now;
        }
        let deadlines = [self.core.quic.next_deadline(), self.role.next_recheck()];
        let first = deadlines.into_iter().flatten().min();
        first.map_or(self.next_tick, |deadline| deadline.min(self.next_tick))
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
                Owner::Role(number) => self.role.received(core, number, result),
                Owner::None => {}
            },
            Completion::Sent { socket, result } => match core.owner(socket) {
                Owner::Flow(key) => core.socket_sent(key, result),
                Owner::Role(number) => self.role.sent(core, number, &result),
                Owner::None => {}
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
            self.core.settle_young();
            self.core.watch_paused();
            self.core.log.report(self.core.now);
            self.role.tick(&mut self.core);
        } else if self
            .role
            .next_recheck()
            .is_some_and(|at| at <= self.core.now)
        {
            self.role.recheck(&mut self.core);
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
        let cause = LogCause::new("a defect ended a session", ());
        let core = &mut self.core;
        if let Some(Permit { left_out }) = core.log.permits(core.now, cause, None, None) {
            error!(
                left_out,
                "a defect ended a session; please report it, with the message of the panic above"
            );
        }
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
            Event::Answered => self.role.session_answered(core, session),
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
            Event::Opened(_)
            | Event::Connected
            | Event::Lost(_)
            | Event::Available
            | Event::Answered => {}
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
mod tests;
