//! What a relay's worker does with what its loop hears: plans taken over, sessions judged, bindings
//! opened, drains followed. Flows of applications are in `flows`, those of senders in `joined`,
//! those that wait for room in `queue`, what is told of all in `tally`.

mod flows;
mod joined;
mod queue;
mod relief;
mod sockets;
mod tally;
#[cfg(test)]
mod watched;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use quinn_proto::{ConnectionError, StreamId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustc_hash::FxHashMap;
use tracing::field::display;
use tracing::{debug, info, warn};
use underpass_proto::limits::HELLO_DEADLINE;
use underpass_proto::snapshot::Pressure;
use underpass_proto::wire::Open;
use underpass_proto::{Endpoint, FlowCode, FlowId, Frame, HycoName, Instance, SessionCode};

use self::queue::Waiter;
use self::relief::{Relief, Source};
use self::sockets::Sockets;
pub(crate) use self::tally::{Counts, WorkerReport};
use self::tally::{ending, joined_ending};
use super::listeners::{Live, PendingProbe};
use super::peers::{Asker, Opened, Over, Peers, Successor, Verdict};
use super::plan::{Directory, Place, Plan};
use crate::core::Core;
use crate::flow::{End, Flow, FlowKey};
use crate::held::Key;
use crate::io::{Close, Datagrams, Io, SocketId, Stream};
use crate::join::{Join, JoinEnd, JoinKey, Toward};
use crate::listening::{Change, Drain, Listening};
use crate::log_limit::{LogCause, Permit};
use crate::opening::Openings;
use crate::quic::{SessionId, config, kind, reason};
use crate::waiting::Waiting;
use crate::worker::{Handle, Role};

/// Flows of senders whose Open has not come whole, on one worker.
const PARTIAL_MAX: usize = 4096;

/// One of so many sessions may be without a proof. A peer is for two round trips; a stranger would
/// be for as long as it may.
const UNPROVEN_SHARE: usize = 4;

/// How often sessions give back credit that they do not need.
const SHRINK_EVERY: Duration = Duration::from_secs(1);

/// What the supervisor and other workers tell a worker.
pub(crate) enum Message {
    /// Work by this plan from now on.
    Plan(Arc<Plan>, Arc<config::Server>, Sender<()>),
    /// Open or close a binding.
    Binding(Change),
    /// A connection that another worker accepted, and has no listener for.
    Adopt {
        /// For what.
        hyco: HycoName,
        /// The application.
        socket: Stream,
        /// Its address.
        application: SocketAddr,
    },
    /// Datagrams that came to another worker's socket.
    Misdirected(Datagrams),
    /// A process on another worker has proven what an older one of its agent may be registered for.
    Successor(Successor),
    /// All workers of this relay, by index.
    Others(Vec<Handle<Message>>),
    /// Ask a listener to dial its endpoint, now.
    Probe(PendingProbe, Asker),
    /// Say what there is to report.
    Report(Sender<WorkerReport>),
    /// Take no new flows; reset those that live at this time.
    Drain(Instant),
    /// End now.
    Stop,
}

/// What a relay keeps with each flow.
pub(crate) struct RelayFlow {
    id: FlowId,
    hyco: HycoName,
    application: SocketAddr,
    endpoint: Endpoint,
    since: Instant,
    /// Until Opened.
    opening: Option<Box<Opening>>,
    /// From Opened on: the endpoint is reached while this lives.
    live: Option<Live>,
    _place: Place,
}

#[derive(Default)]
struct Opening {
    /// The listener that refused already.
    refused_by: Option<Instance>,
    asked: Option<Instance>,
    /// When that one was asked.
    asked_at: Option<Instant>,
}

/// The role of a relay's worker.
pub(crate) struct Relay {
    plan: Arc<Plan>,
    directory: Arc<Directory>,
    peers: Peers,
    openings: Openings,
    listening: Listening,
    others: Vec<Handle<Message>>,
    counts: FxHashMap<HycoName, Counts>,
    /// Flows without Opened yet, by their deadline.
    opening: VecDeque<(Instant, Key)>,
    /// Flows whose Open went alone, by the session that is to give a sign of life first.
    held_back: FxHashMap<SessionId, Vec<Key>>,
    /// Flows for which there is a listener and no room.
    waiting: Waiting<Waiter>,
    next_flow: u32,
    /// What it turned away since it began.
    pressure: Pressure,
    /// Who holds too much.
    relief: Relief,
    /// Whose the sockets of live flows are.
    sockets: Sockets,
    next_shrink: Option<Instant>,
    drain: Option<Drain>,
    done: bool,
    rng: StdRng,
}

impl Relay {
    /// For one worker.
    #[must_use]
    pub(crate) fn new(
        (worker, workers): (u8, u8),
        plan: Arc<Plan>,
        directory: Arc<Directory>,
        mut rng: StdRng,
    ) -> Self {
        let peers_rng = StdRng::from_rng(&mut rng);
        Self {
            plan,
            peers: Peers::new((worker, workers), Arc::clone(&directory), peers_rng),
            directory,
            openings: Openings::new(PARTIAL_MAX, HELLO_DEADLINE),
            listening: Listening::default(),
            others: Vec::new(),
            counts: FxHashMap::default(),
            opening: VecDeque::new(),
            held_back: FxHashMap::default(),
            waiting: Waiting::default(),
            // Unlike those of other workers and before a restart, so that logs of several do not
            // mix.
            next_flow: rng.random::<u32>(),
            pressure: Pressure::default(),
            relief: Relief::default(),
            sockets: Sockets::default(),
            next_shrink: None,
            drain: None,
            done: false,
            rng,
        }
    }

    fn apply<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, plan: Arc<Plan>) {
        let old = std::mem::replace(&mut self.plan, plan);
        let over = self.peers.apply(core.now, &mut core.quic, &old, &self.plan);
        for Over { session, hyco } in over {
            for key in core.flows.of_session(session) {
                if core
                    .flows
                    .get(key)
                    .is_some_and(|flow| flow.data.hyco == hyco)
                {
                    core.fail(key, End::Here(FlowCode::RegistrationEnded));
                }
            }
            for key in core.joins.of_session(session) {
                if core
                    .joins
                    .get(key)
                    .is_some_and(|join| join.data.hyco == hyco)
                {
                    core.fail_join(key, JoinEnd::Here(FlowCode::RegistrationEnded));
                }
            }
        }
    }

    fn heed<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId, verdict: Verdict) {
        if let Verdict::Close(code) = verdict {
            // A verdict has this code for abuse only.
            self.pressure.sessions_sent_away += u64::from(code == SessionCode::Overloaded);
            self.close(core, session, code);
        }
    }

    fn close<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
        code: SessionCode,
    ) {
        let (remote, agent) = self.peers.who(&core.quic, session);
        let source = remote.map(|remote| remote.ip());
        let cause = LogCause::new("session closed", code);
        if let Some(Permit { left_out }) = core.log.permits(core.now, cause, None, source) {
            let (remote, agent) = (remote.map(display), agent.map(display));
            info!(remote, agent, why = %code, left_out, "session closed");
        }
        self.peers
            .gone(core.now, &core.quic, session, &code.to_string());
        self.session_over(core, session);
        core.session_gone(session);
        core.quic.close(core.now, session, code);
    }

    /// A session that does little but harm.
    fn send_away<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId) {
        self.pressure.sessions_sent_away += 1;
        let (remote, agent) = self.peers.who(&core.quic, session);
        let source = remote.map(|remote| remote.ip());
        let cause = LogCause::new("a sender floods", ());
        if let Some(Permit { left_out }) = core.log.permits(core.now, cause, None, source) {
            let (remote, agent) = (remote.map(display), agent.map(display));
            warn!(
                remote,
                agent, left_out, "a sender floods; its session is closed"
            );
        }
        self.close(core, session, SessionCode::Overloaded);
    }

    /// A sender took a flow back before anybody answered.
    fn wasted<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId) {
        if self.peers.wasted(core.now, session) != Verdict::Fine {
            self.send_away(core, session);
        }
    }

    /// What is still open of a session that is over.
    fn session_over<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId) {
        self.openings.session_gone(session);
        self.waiting.forget(|waiter| waiter.is_of(session));
        self.rescue(core, session);
    }

    fn drain_on<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        let Some(drain) = &mut self.drain else { return };
        let Some(over) = drain.tick(core, &mut self.listening) else {
            return;
        };
        if over {
            self.cut_flows(core);
        }
        if core.is_idle() && self.waiting.is_empty() {
            self.end(core);
        }
    }

    fn cut_flows<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        for waiter in self.waiting.take_all() {
            self.give_up(core, waiter, FlowCode::GraceOver);
        }
        for key in core.flows.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            core.fail(key, End::Here(FlowCode::GraceOver));
        }
        for key in core.joins.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            core.fail_join(key, JoinEnd::Here(FlowCode::GraceOver));
        }
    }

    fn end<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        for session in self.peers.all() {
            core.quic.close(core.now, session, SessionCode::Draining);
        }
        self.done = true;
    }
}

impl Role for Relay {
    type Flow = RelayFlow;
    type Message = Message;

    fn message<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, message: Message) {
        match message {
            Message::Plan(plan, server, applied) => {
                core.quic.set_server(server);
                self.apply(core, plan);
                let _ = applied.send(());
            }
            Message::Binding(change) => self.listening.change(core, change),
            Message::Adopt {
                hyco,
                socket,
                application,
            } => {
                if let Ok(socket) = core.io.adopt(socket) {
                    self.begin(core, &hyco, socket, application, false);
                }
            }
            Message::Misdirected(datagrams) => core.quic.receive(core.now, datagrams, &mut core.io),
            Message::Successor(successor) => {
                self.peers.contest(core.now, &mut core.quic, &successor);
            }
            Message::Others(others) => self.others = others,
            Message::Probe(pending, asker) => {
                self.peers
                    .probe_asked(core.now, &mut core.quic, pending, asker);
            }
            Message::Report(answer) => {
                let _ = answer.try_send(self.report(core));
            }
            Message::Drain(until) => {
                self.peers.say_draining(&mut core.quic);
                self.drain = Some(Drain::new(until));
            }
            Message::Stop => {
                self.cut_flows(core);
                self.end(core);
            }
        }
    }

    fn accepted<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        listener: u64,
        socket: std::io::Result<(SocketId, SocketAddr)>,
    ) {
        let hyco = self.listening.hyco(listener).cloned();
        match (socket, hyco) {
            (Ok((socket, application)), Some(hyco)) => {
                self.begin(core, &hyco, socket, application, true);
            }
            (Ok((socket, _)), None) => core.io.close(socket, Close::Reset),
            (Err(error), hyco) => {
                self.pressure.accepts_failed += 1;
                debug!(hyco = ?hyco.map(|name| name.to_string()), %error, "cannot accept");
            }
        }
    }

    fn connected<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        _: u64,
        socket: SocketId,
        _: std::io::Result<()>,
    ) {
        core.io.close(socket, Close::Reset); // A relay dials nobody.
    }

    fn session_up<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId) {
        let sessions_max = self.plan.snapshot.limits.sessions_max as usize;
        let unproven_max = (sessions_max / UNPROVEN_SHARE).max(1);
        if let Some(oldest) = self.peers.unproven_beyond(unproven_max) {
            self.close(core, oldest, SessionCode::Overloaded);
        }
        let tight = self.directory.resources.is_tight();
        if tight {
            self.relief.note_overload(core.now);
        }
        if tight || self.peers.len() >= sessions_max {
            return core.quic.close(core.now, session, SessionCode::Overloaded);
        }
        if self.drain.is_some() {
            return core.quic.close(core.now, session, SessionCode::Draining);
        }
        self.peers.up(core.now, &mut core.quic, session);
    }

    fn session_lost<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
        why: &ConnectionError,
    ) {
        let (address, agent) = self.peers.who(&core.quic, session);
        let (remote, agent) = (address.map(display), agent.map(display));
        let left = departure(why);
        let code = said(why);
        let known = self.peers.gone(core.now, &core.quic, session, &left);
        let Some(registrations) = known else {
            debug!(remote, why = %reason(why), "a handshake came to nothing");
            return self.session_over(core, session);
        };
        // A stranger chooses the code that it closes with.
        let cause = LogCause::new("session lost", (registrations > 0).then(|| kind(why)));
        let source = address.map(|address| address.ip());
        if let Some(Permit { left_out }) = core.log.permits(core.now, cause, None, source) {
            match code {
                None => info!(
                    remote, agent, registrations, why = %reason(why), left_out, "session lost"
                ),
                Some(code) => {
                    info!(remote, agent, registrations, %code, left_out, "session ended by its peer");
                }
            }
        }
        self.session_over(core, session);
    }

    fn stream_opened<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        match self.peers.stream_opened(core.now, session, stream) {
            Opened::Control => {}
            Opened::TooFast => {
                self.pressure.opens_refused += 1;
                return core.quic.abort(session, stream, FlowCode::Overloaded);
            }
            Opened::Flood => return self.send_away(core, session),
            Opened::Flow => self
                .openings
                .stream_opened(&mut core.quic, core.now, session, stream),
            Opened::Misplaced => {
                self.heed(core, session, Verdict::Close(SessionCode::Protocol));
            }
        }
        self.stream_readable(core, session, stream);
    }

    fn stream_readable<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        if self.openings.is_partial(session, stream) {
            match self.openings.read(&mut core.quic, session, stream) {
                Some(asked) => self.begin_joined(core, asked),
                None if self.openings.is_partial(session, stream) => {}
                None => self.wasted(core, session),
            }
            return;
        }
        if self.waiting_was_taken_back(core, session, stream) {
            return self.wasted(core, session);
        }
        let mut successor = None;
        let plan = Arc::clone(&self.plan);
        let verdict = self.peers.readable(
            core.now,
            &mut core.quic,
            &plan,
            session,
            stream,
            &mut successor,
        );
        if let Some(successor) = successor {
            let others = self
                .others
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != usize::from(core.worker));
            for (_, other) in others {
                let _ = other.try_send(Message::Successor(successor.clone()));
            }
        }
        self.heed(core, session, verdict);
    }

    fn stream_writable<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
        _: StreamId,
    ) {
        self.peers.writable(&mut core.quic, session);
    }

    fn streams_available<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        self.resume(core);
    }

    fn session_answered<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId) {
        self.release(core, session);
    }

    fn unopened_readable<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: FlowKey) {
        self.answered(core, key);
    }

    fn join_answered<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: JoinKey) {
        self.answered_join(core, key);
    }

    fn join_ended<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        join: Join<RelayFlow>,
        end: JoinEnd,
    ) {
        let moved = (join.bytes_to_agent(), join.bytes_to_sender());
        let source = Source::Sender(join.sender.0);
        self.relief.note_over(&join.data.hyco, source);
        self.note_end(core, &join.data, joined_ending(end), moved);
        if join.is_unopened() && matches!(end, JoinEnd::Said(Toward::Sender, _)) {
            self.wasted(core, join.sender.0);
        }
    }

    fn flow_ended<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        flow: Flow<RelayFlow>,
        end: End,
    ) {
        let moved = (flow.bytes_from_socket, flow.bytes_to_socket);
        let source = flow.data.application.ip();
        self.sockets.remove(&flow.data.hyco, source);
        self.relief.note_over(&flow.data.hyco, Source::of(source));
        self.note_end(core, &flow.data, ending(end), moved);
    }

    fn tick<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        let load = |session| core.load(session);
        for (session, code) in self.peers.overdue(&core.quic, core.now, load) {
            self.close(core, session, code);
        }
        for session in self.peers.keep_alive(&mut core.quic, core.now) {
            self.session_lost(core, session, &ConnectionError::TimedOut);
            core.session_gone(session);
            core.quic.abandon(session);
        }
        for session in self.peers.fell_silent(&core.quic, core.now) {
            self.rescue(core, session);
        }
        self.peers.log.report(core.now);
        if self.next_shrink.is_none_or(|next| next <= core.now) {
            self.next_shrink = Some(core.now + SHRINK_EVERY);
            core.quic.shrink_credit(core.now);
        }
        self.relieve(core);
        self.openings.expire(&mut core.quic, core.now);
        self.expire_opening(core);
        self.expire_waiting(core);
        if self.drain.is_none() {
            self.peers.keep_probing(core.now, &mut core.quic);
        }
        self.drain_on(core);
    }

    fn next_recheck(&self) -> Option<Instant> {
        self.relief.next_recheck()
    }

    fn recheck<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        self.relieve(core);
    }

    fn misdirected(&mut self, worker: u8, datagrams: Datagrams) {
        if let Some(other) = self.others.get(usize::from(worker)) {
            // A full inbox drops them, as a full socket would.
            let _ = other.try_send(Message::Misdirected(datagrams));
        }
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

impl RelayFlow {
    fn open_frame(&self) -> Bytes {
        let open = Open {
            hyco: self.hyco.clone(),
            flow: self.id,
            endpoint: self.endpoint.clone(),
            application: self.application,
        };
        Bytes::from(Frame::Open(open).to_vec())
    }
}

/// The code with which the peer ended its session, where that is how it ended.
fn said(why: &ConnectionError) -> Option<SessionCode> {
    match why {
        ConnectionError::ApplicationClosed(close) => {
            SessionCode::from_u64(close.error_code.into_inner())
        }
        _ => None,
    }
}

/// Why a listener's session ended, in words for people.
fn departure(why: &ConnectionError) -> String {
    said(why).map_or_else(
        || format!("session lost: {}", reason(why)),
        |code| format!("it ended its session: {code}"),
    )
}
