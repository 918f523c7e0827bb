//! What a relay's worker does with what its loop hears: applications in, flows to listeners, refusals tried once elsewhere.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::Sender;
use quinn_proto::{ConnectionError, StreamId};
use tracing::{debug, info, warn};
use underpass_proto::limits::OPEN_DEADLINE;
use underpass_proto::snapshot::SessionReport;
use underpass_proto::wire::{Elsewhere, Open};
use underpass_proto::{
    AgentId, Cause, Ending, Endpoint, FlowCode, FlowId, Frame, FrameReader, HycoName, Instance,
    SessionCode, Side,
};

use super::health::{Dial, Errand, Moment};
use super::peers::{Asker, Opened, Over, Peers, Verdict};
use super::plan::{Directory, Place, Plan};
use super::senders::{self, Senders};
use crate::core::{Core, Owner};
use crate::flow::{End, Flow, FlowKey};
use crate::io::{Close, Datagrams, Io, SocketId};
use crate::join::{Answer, Join, JoinEnd, JoinKey, Toward};
use crate::quic::{Read, SessionId, config};
use crate::worker::{Handle, Role};

/// What the supervisor and other workers tell a worker.
pub(crate) enum Message {
    /// Work by this plan from now on.
    Plan(Arc<Plan>, Arc<config::Server>, Sender<()>),
    /// Take connections of this hybrid connection.
    Bind {
        /// Names the binding in later messages.
        number: u64,
        /// Whose.
        hyco: HycoName,
        /// Bound and listening.
        listener: TcpListener,
    },
    /// Close a binding.
    Unbind(u64),
    /// A connection that another worker accepted, and has no listener for.
    Adopt {
        /// For what.
        hyco: HycoName,
        /// The application.
        socket: TcpStream,
        /// Its address.
        application: SocketAddr,
    },
    /// Datagrams that came to another worker's socket.
    Misdirected(Datagrams),
    /// A process said Hello on another worker.
    Hello(AgentId, Instance),
    /// All workers of this relay, by index.
    Others(Vec<Handle<Message>>),
    /// Ask a listener to dial its endpoint, now.
    Probe(Errand, Asker),
    /// Say what there is to report.
    Report(Sender<WorkerReport>),
    /// Take no new flows; reset those that live at this time.
    Drain(Instant),
    /// End now.
    Stop,
}

/// One worker's share of a report.
#[derive(Debug, Default)]
pub(crate) struct WorkerReport {
    /// Its sessions.
    pub(crate) sessions: Vec<SessionReport>,
    /// What its flows moved, by hybrid connection.
    pub(crate) counts: HashMap<HycoName, Counts>,
    /// Whether nobody's share is missing.
    pub(crate) complete: bool,
}

/// What flows did since the worker began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Live now.
    pub(crate) live: u64,
    /// Ever begun.
    pub(crate) total: u64,
    /// Ended other than clean.
    pub(crate) failed: u64,
    /// Bytes from applications.
    pub(crate) to_endpoint: u64,
    /// Bytes to applications.
    pub(crate) to_application: u64,
    /// The last ending that was not clean.
    pub(crate) last_ending: Option<String>,
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
    _place: Place,
}

#[derive(Default)]
struct Opening {
    reader: FrameReader,
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
    senders: Senders,
    bindings: HashMap<u64, Binding>,
    others: Vec<Handle<Message>>,
    counts: HashMap<HycoName, Counts>,
    /// Flows without Opened yet, by their deadline.
    opening: VecDeque<(Instant, Key)>,
    next_flow: u64,
    drain: Option<Drain>,
    done: bool,
}

/// A flow of an application that is here, or of one that is beside a sender.
#[derive(Clone, Copy, Debug)]
enum Key {
    Flow(FlowKey),
    Join(JoinKey),
}

struct Binding {
    socket: SocketId,
    hyco: HycoName,
}

struct Drain {
    /// Bindings are open until the tick after the backlog was accepted.
    closing: bool,
    until: Instant,
}

impl Relay {
    /// For one worker.
    #[must_use]
    pub(crate) fn new(worker: u8, workers: u8, plan: Arc<Plan>, directory: Arc<Directory>) -> Self {
        Self {
            plan,
            peers: Peers::new(worker, workers, Arc::clone(&directory)),
            directory,
            senders: Senders::default(),
            bindings: HashMap::new(),
            others: Vec::new(),
            counts: HashMap::new(),
            opening: VecDeque::new(),
            // The worker and the start are part of the number, so that logs of several never mix.
            next_flow: (u64::from(worker) << 56)
                | ((crate::relay::peers::unix_ms() & 0xffff_ffff) << 20),
            drain: None,
            done: false,
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

    fn bind<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        number: u64,
        hyco: HycoName,
        listener: TcpListener,
    ) {
        match core.io.listen(listener) {
            Ok(socket) => {
                core.own(socket, Owner::Role(number));
                self.bindings.insert(number, Binding { socket, hyco });
            }
            Err(error) => warn!(%hyco, %error, "binding cannot be watched"),
        }
    }

    fn unbind<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, number: u64) {
        if let Some(binding) = self.bindings.remove(&number) {
            core.disown(binding.socket);
            core.io.close(binding.socket, Close::Clean);
        }
    }

    /// An application connected: its flow goes to a listener here, or the socket to a worker that has one.
    fn begin<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        name: &HycoName,
        socket: SocketId,
        application: SocketAddr,
        may_hand_over: bool,
    ) {
        let plan = Arc::clone(&self.plan);
        let Some(hyco) = plan.hyco(name) else {
            return core.io.close(socket, Close::Reset);
        };
        if !hyco.admits(application) {
            warn!(hyco = %name, %application, "refused: not in allow_from");
            return core.io.close(socket, Close::Reset);
        }
        if hyco.over_quota {
            return self.turn_away(core, name, socket, application, FlowCode::OverQuota);
        }
        let Some(place) =
            self.directory
                .place(name, hyco.limits.flows_max, plan.snapshot.limits.flows_max)
        else {
            return self.turn_away(core, name, socket, application, FlowCode::TooManyFlows);
        };
        let Some((session, stream)) = self.choose(core, name, None) else {
            drop(place);
            if may_hand_over && self.hand_over(core, name, socket, application) {
                return;
            }
            return self.turn_away(core, name, socket, application, FlowCode::NoListener);
        };
        self.next_flow += 1;
        let id = FlowId(self.next_flow);
        let opening = Opening {
            asked: self.peers.instance(session),
            asked_at: Some(core.now),
            ..Opening::default()
        };
        let data = RelayFlow {
            id,
            hyco: name.clone(),
            application,
            endpoint: hyco.endpoint.clone(),
            since: core.now,
            opening: Some(Box::new(opening)),
            _place: place,
        };
        self.counts.entry(name.clone()).or_default().total += 1;
        let open = data.open_frame();
        let key = core.start_unopened(data, socket, session, stream, open);
        self.opening
            .push_back((core.now + OPEN_DEADLINE, Key::Flow(key)));
    }

    /// A sender asks for a flow: it is joined to a listener here, or sent to the worker that has one.
    fn begin_joined<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, asked: senders::Asked) {
        let senders::Asked {
            session,
            stream,
            open,
            first,
        } = asked;
        let plan = Arc::clone(&self.plan);
        let refuse = |core: &mut Core<I, RelayFlow>, code| core.quic.abort(session, stream, code);
        let hyco = plan.hyco(&open.hyco);
        let Some(hyco) = hyco.filter(|_| self.peers.may_send(session, &open.hyco)) else {
            return refuse(core, FlowCode::RegistrationEnded);
        };
        if self.drain.is_some() {
            return refuse(core, FlowCode::Draining);
        }
        if hyco.over_quota {
            self.note_refusal(&hyco.name, open.application, FlowCode::OverQuota);
            return refuse(core, FlowCode::OverQuota);
        }
        let limits = &plan.snapshot.limits;
        let place = self
            .directory
            .place(&hyco.name, hyco.limits.flows_max, limits.flows_max);
        let Some(place) = place else {
            self.note_refusal(&hyco.name, open.application, FlowCode::TooManyFlows);
            return refuse(core, FlowCode::TooManyFlows);
        };
        let Some((agent, to_agent)) = self.choose(core, &hyco.name, None) else {
            if let Some(worker) = self.directory.worker_with(&hyco.name, core.worker) {
                return say_elsewhere(core, session, stream, worker);
            }
            self.note_refusal(&hyco.name, open.application, FlowCode::NoListener);
            return refuse(core, FlowCode::NoListener);
        };
        let opening = Opening {
            asked: self.peers.instance(agent),
            asked_at: Some(core.now),
            ..Opening::default()
        };
        let data = RelayFlow {
            id: open.flow,
            hyco: hyco.name.clone(),
            application: open.application,
            endpoint: hyco.endpoint.clone(),
            since: core.now,
            opening: Some(Box::new(opening)),
            _place: place,
        };
        self.counts.entry(hyco.name.clone()).or_default().total += 1;
        let frame = data.open_frame();
        let key = core.join(data, (session, stream), (agent, to_agent), frame, first);
        let live = core.joins.count_of_session(session);
        let most = limits.flows_per_session_max;
        self.peers.make_room(&mut core.quic, session, live, most);
        self.opening
            .push_back((core.now + OPEN_DEADLINE, Key::Join(key)));
    }

    /// An agent refused a join: tried once elsewhere, then the sender is told.
    fn join_refused<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: JoinKey, code: FlowCode) {
        let Some(join) = core.joins.get(key) else {
            return;
        };
        self.note(core.now, &join.data, Some(code));
        let opening = join.data.opening.as_deref();
        let first_time = opening.filter(|opening| opening.refused_by.is_none());
        let Some(refused_by) = first_time.and_then(|opening| opening.asked) else {
            return core.fail_join(key, JoinEnd::Said(Toward::Agent, code));
        };
        let name = join.data.hyco.clone();
        let other = code
            .is_refusal()
            .then(|| self.choose(core, &name, Some(refused_by)))
            .flatten();
        let Some((session, stream)) = other else {
            return core.fail_join(key, JoinEnd::Said(Toward::Agent, code));
        };
        let asked = self.peers.instance(session);
        let Some(join) = core.joins.get_mut(key) else {
            return;
        };
        join.data.opening = Some(Box::new(Opening {
            reader: FrameReader::new(),
            refused_by: Some(refused_by),
            asked,
            asked_at: Some(core.now),
        }));
        debug!(hyco = %name, flow = join.data.id.0, "tried elsewhere");
        let open = join.data.open_frame();
        core.rejoin(key, (session, stream), open);
    }

    /// A listener's session with a stream on it, or none.
    fn choose<I: Io>(
        &self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HycoName,
        without: Option<Instance>,
    ) -> Option<(SessionId, StreamId)> {
        let session = {
            let load = |session| core.load(session);
            self.peers.pick(&core.quic, core.now, hyco, without, load)?
        };
        if core.load(session) >= self.plan.snapshot.limits.flows_per_session_max as usize {
            return None;
        }
        core.quic.open(session).map(|stream| (session, stream))
    }

    fn hand_over<I: Io>(
        &self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HycoName,
        socket: SocketId,
        application: SocketAddr,
    ) -> bool {
        let Some(worker) = self.directory.worker_with(hyco, core.worker) else {
            return false;
        };
        let Some(other) = self.others.get(usize::from(worker)) else {
            return false;
        };
        let Some(stream) = core.io.release(socket) else {
            return false;
        };
        // A full inbox drops the socket, whose linger makes that an RST.
        let message = Message::Adopt {
            hyco: hyco.clone(),
            socket: stream,
            application,
        };
        other.try_send(message).is_ok()
    }

    fn turn_away<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HycoName,
        socket: SocketId,
        application: SocketAddr,
        code: FlowCode,
    ) {
        core.io.close(socket, Close::Reset);
        self.note_refusal(hyco, application, code);
    }

    fn note_refusal(&mut self, hyco: &HycoName, application: SocketAddr, code: FlowCode) {
        let ending = Ending::said(code, Side::Relay);
        let counts = self.counts.entry(hyco.clone()).or_default();
        counts.total += 1;
        counts.failed += 1;
        counts.last_ending = Some(ending.to_string());
        info!(%hyco, %application, why = %code, "flow refused");
    }

    /// An explicit refusal is tried once elsewhere, with all that the application sent so far.
    fn refused<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: FlowKey, code: FlowCode) {
        let Some(flow) = core.flows.get(key) else {
            return;
        };
        self.note(core.now, &flow.data, Some(code));
        let opening = flow.data.opening.as_deref();
        let first_time = opening.is_some_and(|opening| opening.refused_by.is_none());
        if code.is_refusal() && first_time && self.try_elsewhere(core, key) {
            return;
        }
        core.fail(key, End::There(code));
    }

    /// A listener dialled for a flow, or refused to.
    fn note(&self, now: Instant, flow: &RelayFlow, failed: Option<FlowCode>) {
        let Some(opening) = flow.opening.as_deref() else {
            return;
        };
        let (Some(instance), Some(asked_at)) = (opening.asked, opening.asked_at) else {
            return;
        };
        let dial = Dial {
            failed,
            latency: now.saturating_duration_since(asked_at),
            by_flow: true,
        };
        let (hyco, endpoint) = (&flow.hyco, &flow.endpoint);
        let moment = Moment::at(now);
        self.directory
            .health
            .dialled(moment, hyco, instance, endpoint, dial, &mut rand::rng());
    }

    fn try_elsewhere<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: FlowKey) -> bool {
        let Some(flow) = core.flows.get(key) else {
            return false;
        };
        let asked = flow
            .data
            .opening
            .as_deref()
            .and_then(|opening| opening.asked);
        let name = flow.data.hyco.clone();
        let Some((session, stream)) = self.choose(core, &name, asked) else {
            return false;
        };
        let now_asked = self.peers.instance(session);
        let Some(flow) = core.flows.get_mut(key) else {
            return false;
        };
        let opening = Opening {
            reader: FrameReader::new(),
            refused_by: asked,
            asked: now_asked,
            asked_at: Some(core.now),
        };
        flow.data.opening = Some(Box::new(opening));
        debug!(hyco = %name, flow = flow.data.id.0, "tried elsewhere");
        let open = flow.data.open_frame();
        core.reroute(key, session, stream, open);
        true
    }

    /// Ends flows that no listener answered in time, and forgets those that were answered.
    fn expire_opening<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        while let Some(&(deadline, key)) = self.opening.front() {
            let unopened = match key {
                Key::Flow(key) => core
                    .flows
                    .get(key)
                    .filter(|flow| flow.is_unopened())
                    .map(|flow| &flow.data),
                Key::Join(key) => core
                    .joins
                    .get(key)
                    .filter(|join| join.is_unopened())
                    .map(|join| &join.data),
            };
            if unopened.is_some() && deadline > core.now {
                return;
            }
            self.opening.pop_front();
            let Some(data) = unopened else { continue };
            let code = FlowCode::EndpointTimedOut;
            self.note(core.now, data, Some(code));
            match key {
                Key::Flow(key) => core.fail(key, End::There(code)),
                Key::Join(key) => core.fail_join(key, JoinEnd::Said(Toward::Agent, code)),
            }
        }
    }

    /// Flows that sent nothing yet lose nothing by another listener; all others end with their session.
    fn rescue<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId) {
        for key in core.flows.of_session(session) {
            let untouched = core
                .flows
                .get(key)
                .is_some_and(|flow| flow.is_unopened() && flow.bytes_from_socket == 0);
            if untouched {
                self.try_elsewhere(core, key);
            }
        }
    }

    fn heed<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId, verdict: Verdict) {
        if let Verdict::Close(code) = verdict {
            self.close(core, session, code);
        }
    }

    fn close<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
        code: SessionCode,
    ) {
        let remote = core.quic.path(session).map(|path| path.remote);
        info!(?remote, why = %code, "session closed");
        self.peers
            .gone(core.now, &core.quic, session, &code.to_string());
        self.senders.session_gone(session);
        self.rescue(core, session);
        core.session_gone(session);
        core.quic.close(core.now, session, code);
    }

    fn drain_on<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        let Some(drain) = &mut self.drain else { return };
        if !std::mem::replace(&mut drain.closing, true) {
            return; // The backlog is accepted until the next tick.
        }
        let over = core.now >= drain.until;
        for number in self.bindings.keys().copied().collect::<Vec<_>>() {
            self.unbind(core, number);
        }
        if over {
            self.cut_flows(core);
        }
        if core.is_idle() {
            self.end(core);
        }
    }

    fn cut_flows<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
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

    /// `moved`: bytes to the endpoint, and to the application.
    fn note_end(&mut self, now: Instant, data: &RelayFlow, ending: Ending, moved: (u64, u64)) {
        let (to_endpoint, to_application) = moved;
        let counts = self.counts.entry(data.hyco.clone()).or_default();
        counts.to_endpoint += to_endpoint;
        counts.to_application += to_application;
        let ms = now.saturating_duration_since(data.since).as_millis();
        match ending.cause {
            Cause::Clean => debug!(
                hyco = %data.hyco, flow = data.id.0, application = %data.application, endpoint = %data.endpoint,
                %ending, first = %ending.side, to_endpoint, to_application, ms, "flow ended"
            ),
            Cause::Code(why) => {
                counts.failed += 1;
                counts.last_ending = Some(ending.to_string());
                info!(
                    hyco = %data.hyco, flow = data.id.0, application = %data.application, endpoint = %data.endpoint,
                    %ending, %why, to_endpoint, to_application, ms, "flow failed"
                );
            }
        }
    }

    fn report<I: Io>(&self, core: &Core<I, RelayFlow>) -> WorkerReport {
        let mut counts = self.counts.clone();
        for (_, flow) in core.flows.iter() {
            let counts = counts.entry(flow.data.hyco.clone()).or_default();
            counts.live += 1;
            counts.to_endpoint += flow.bytes_from_socket;
            counts.to_application += flow.bytes_to_socket;
        }
        for (_, join) in core.joins.iter() {
            let counts = counts.entry(join.data.hyco.clone()).or_default();
            counts.live += 1;
            counts.to_endpoint += join.bytes_to_agent();
            counts.to_application += join.bytes_to_sender();
        }
        WorkerReport {
            sessions: self.peers.report(&core.quic, core.now),
            counts,
            complete: true,
        }
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
            Message::Bind {
                number,
                hyco,
                listener,
            } => self.bind(core, number, hyco, listener),
            Message::Unbind(number) => self.unbind(core, number),
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
            Message::Hello(agent_id, instance) => {
                self.peers
                    .replace(core.now, &mut core.quic, agent_id, instance);
            }
            Message::Others(others) => self.others = others,
            Message::Probe(errand, asker) => {
                self.peers
                    .probe_asked(core.now, &mut core.quic, errand, asker);
            }
            Message::Report(answer) => {
                let _ = answer.try_send(self.report(core));
            }
            Message::Drain(until) => {
                self.peers.say_draining(&mut core.quic);
                self.drain = Some(Drain {
                    closing: false,
                    until,
                });
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
        let hyco = self
            .bindings
            .get(&listener)
            .map(|binding| binding.hyco.clone());
        match (socket, hyco) {
            (Ok((socket, application)), Some(hyco)) => {
                self.begin(core, &hyco, socket, application, true);
            }
            (Ok((socket, _)), None) => core.io.close(socket, Close::Reset),
            (Err(error), hyco) => {
                warn!(hyco = ?hyco.map(|name| name.to_string()), %error, "cannot accept");
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
        if self.peers.len() >= self.plan.snapshot.limits.sessions_max as usize {
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
        let remote = core
            .quic
            .path(session)
            .map_or_else(|| "unknown".to_owned(), |path| path.remote.to_string());
        info!(remote, %why, "session lost");
        self.peers
            .gone(core.now, &core.quic, session, &departure(why));
        self.senders.session_gone(session);
        self.rescue(core, session);
    }

    fn stream_opened<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        match self.peers.stream_opened(session, stream) {
            Opened::Control => {}
            Opened::Flow => self
                .senders
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
        if let Some(asked) = self.senders.read(&mut core.quic, session, stream) {
            return self.begin_joined(core, asked);
        }
        let mut hello = None;
        let plan = Arc::clone(&self.plan);
        let verdict =
            self.peers
                .readable(core.now, &mut core.quic, &plan, session, stream, &mut hello);
        if let Some((agent_id, instance)) = hello {
            let others = self
                .others
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != usize::from(core.worker));
            for (_, other) in others {
                let _ = other.try_send(Message::Hello(agent_id, instance));
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

    fn unopened_readable<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: FlowKey) {
        let Some(flow) = core.flows.get_mut(key) else {
            return;
        };
        let mut chunks = Vec::new();
        // One chunk at a time: what follows Opened belongs to the application.
        let read = core
            .quic
            .read(flow.session, flow.stream, 1, usize::MAX, &mut chunks);
        let Some(opening) = flow.data.opening.as_deref_mut() else {
            return;
        };
        for chunk in chunks {
            opening.reader.push(chunk);
        }
        match (opening.reader.next(), read) {
            (Ok(Some(Frame::Opened(_))), Ok(_)) => {
                let first = opening.reader.rest();
                self.note(core.now, &flow.data, None);
                flow.data.opening = None;
                core.opened(key, first);
            }
            (Ok(Some(_)) | Err(_), _) | (_, Ok(Read::End)) => {
                core.fail(key, End::There(FlowCode::Protocol));
            }
            (_, Err(code)) => self.refused(core, key, code),
            (Ok(None), Ok(Read::More)) => self.unopened_readable(core, key),
            (Ok(None), Ok(Read::Empty)) => {}
        }
    }

    fn join_answered<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: JoinKey) {
        match core.read_answer(key) {
            None => {}
            Some(Answer::Opened(frame, first)) => {
                if let Some(join) = core.joins.get_mut(key) {
                    self.note(core.now, &join.data, None);
                    join.data.opening = None;
                }
                core.joined(key, Bytes::from(frame.to_vec()), first);
            }
            Some(Answer::Refused(code)) => self.join_refused(core, key, code),
        }
    }

    fn join_ended<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        join: Join<RelayFlow>,
        end: JoinEnd,
    ) {
        let moved = (join.bytes_to_agent(), join.bytes_to_sender());
        self.note_end(core.now, &join.data, joined_ending(end), moved);
    }

    fn flow_ended<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        flow: Flow<RelayFlow>,
        end: End,
    ) {
        let moved = (flow.bytes_from_socket, flow.bytes_to_socket);
        self.note_end(core.now, &flow.data, ending(end), moved);
    }

    fn tick<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        for (session, code) in self.peers.overdue(&core.quic, core.now) {
            self.close(core, session, code);
        }
        self.senders.expire(&mut core.quic, core.now);
        self.expire_opening(core);
        if self.drain.is_none() {
            self.peers.keep_probing(core.now, &mut core.quic);
        }
        self.drain_on(core);
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

/// Why a listener's session ended, in words for people.
fn departure(why: &ConnectionError) -> String {
    let code = match why {
        ConnectionError::ApplicationClosed(close) => {
            SessionCode::from_u64(close.error_code.into_inner())
        }
        _ => None,
    };
    code.map_or_else(
        || format!("session lost: {why}"),
        |code| format!("it ended its session: {code}"),
    )
}

/// Lays the end of a flow to the right side, seen from the relay.
fn ending(end: End) -> Ending {
    match end {
        End::Clean { socket_first: true } => Ending::clean(Side::Application),
        End::Clean {
            socket_first: false,
        } => Ending::clean(Side::Endpoint),
        End::Here(code) => Ending::said(code, Side::Relay),
        End::There(code) => Ending::said(code, Side::Agent),
        End::Lost => Ending::said(FlowCode::SessionLost, Side::Network),
    }
}

/// The same for a join.
fn joined_ending(end: JoinEnd) -> Ending {
    let side = |toward| match toward {
        Toward::Sender => Side::Sender,
        Toward::Agent => Side::Agent,
    };
    match end {
        JoinEnd::Clean(Toward::Sender) => Ending::clean(Side::Application),
        JoinEnd::Clean(Toward::Agent) => Ending::clean(Side::Endpoint),
        JoinEnd::Said(toward, code) => Ending::said(code, side(toward)),
        JoinEnd::Here(code) => Ending::said(code, Side::Relay),
        JoinEnd::Lost(_) => Ending::said(FlowCode::SessionLost, Side::Network),
    }
}

/// That worker has a listener's session, this one has none.
fn say_elsewhere<I: Io>(
    core: &mut Core<I, RelayFlow>,
    session: SessionId,
    stream: StreamId,
    worker: u8,
) {
    let frame = Frame::Elsewhere(Elsewhere { worker });
    // A stream that was just opened has credit for four bytes.
    let _ = core
        .quic
        .write(session, stream, &mut [Bytes::from(frame.to_vec())]);
    core.quic.finish(session, stream);
    core.quic.stop(session, stream, FlowCode::Aborted);
}
