//! What a sender's worker does with what its loop hears: sessions kept up, applications in, flows opened at the relay and followed to the worker of
//! it that has a listener.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender as Say;
use quinn_proto::{ConnectionError, StreamId};
use tracing::{debug, info, warn};
use underpass_proto::limits::OPEN_DEADLINE;
use underpass_proto::wire::{Open, RefusedCode};
use underpass_proto::{
    Ending, Endpoint, FlowCode, FlowId, Frame, FrameReader, HycoName, SessionCode, Side,
};

use super::Plan;
use super::waiting::{Application, WAIT_MAX, Waiting};
use crate::core::{Core, Owner};
use crate::flow::{End, Flow, FlowKey};
use crate::io::{Close, Datagrams, Io, SocketId};
use crate::join::{Join, JoinEnd, JoinKey};
use crate::link::links::{Answer, Links};
use crate::link::supervise::{Said, Told};
use crate::link::{Heard, Link, words};
use crate::quic::{Read, SessionId};
use crate::resolve::Resolver;
use crate::worker::{Handle, Role};

/// What the supervisor and the resolver tell a worker.
pub(crate) enum Message {
    /// Go by this from now on.
    Plan(Arc<Plan>),
    /// Addresses of the relay of the link of this number.
    RelayFound(u64, Vec<SocketAddr>),
    /// Take connections for this hybrid connection.
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
    /// Take no new flows; reset those that live at this time.
    Drain(Instant),
    /// End now.
    Stop,
}

impl Told for Message {
    type Plan = Plan;

    fn plan(plan: Arc<Plan>) -> Self {
        Self::Plan(plan)
    }

    fn drain(until: Instant) -> Self {
        Self::Drain(until)
    }

    fn stop() -> Self {
        Self::Stop
    }
}

/// What a sender keeps with each flow.
pub(crate) struct SenderFlow {
    id: FlowId,
    hyco: HycoName,
    application: SocketAddr,
    endpoint: Endpoint,
    since: Instant,
    /// The relay's answer, as far as it came; `None` once it said Opened.
    answer: Option<FrameReader>,
}

/// The role of a sender's worker.
pub(crate) struct Sender {
    plan: Arc<Plan>,
    links: Links,
    handle: Handle<Message>,
    say: Say<Said>,
    bindings: HashMap<u64, Binding>,
    /// The relay's worker that has a listener, where that is not the one of this worker's own session.
    elsewhere: HashMap<HycoName, u8>,
    waiting: Waiting,
    /// Flows that are to go on at another worker of the relay, once there is a session to it.
    moving: Vec<(FlowKey, u8)>,
    /// Flows that are to be asked for again, until then; and how they end when that was in vain.
    parked: Vec<(Instant, FlowKey, End)>,
    /// Flows without Opened yet, by their deadline.
    opening: VecDeque<(Instant, FlowKey)>,
    next_flow: u64,
    drain: Option<Drain>,
    done: bool,
}

/// A session, a stream on it, and the endpoint as the relay told it.
type Place = (SessionId, StreamId, Endpoint);

struct Binding {
    socket: SocketId,
    hyco: HycoName,
}

struct Drain {
    /// Bindings are open until the tick after the backlog was accepted.
    closing: bool,
    until: Instant,
}

impl Sender {
    /// For one worker.
    #[must_use]
    pub(crate) fn new(
        worker: u8,
        plan: Arc<Plan>,
        resolver: Resolver,
        handle: Handle<Message>,
        say: Say<Said>,
    ) -> Self {
        let (relays, identity) = (&plan.relays, plan.identity);
        let links = Links::new(relays, worker, identity, resolver, Instant::now());
        Self {
            plan,
            links,
            handle,
            say,
            bindings: HashMap::new(),
            elsewhere: HashMap::new(),
            waiting: Waiting::default(),
            moving: Vec::new(),
            parked: Vec::new(),
            opening: VecDeque::new(),
            // Unlike those of other workers and senders, so that logs of several do not mix.
            next_flow: rand::random::<u64>() << 24,
            drain: None,
            done: false,
        }
    }

    fn keep_links<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        let flows = |id| core.flows.count_of_session(id);
        for (session, why) in self.links.stale(&core.quic, core.now, flows) {
            core.quic.close(core.now, session, SessionCode::Done);
            self.lose(core, session, &why);
        }
        let handle = self.handle.clone();
        let answer = |number| -> Answer {
            let handle = handle.clone();
            Box::new(move |found| {
                let _ = handle.send(Message::RelayFound(number, found));
            })
        };
        let may_dial = self.drain.is_none();
        self.links
            .keep_up(&mut core.quic, core.now, may_dial, answer);
    }

    fn lose<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, session: SessionId, why: &str) {
        for key in core.flows.of_session(session) {
            let flow = core.flows.get(key);
            // Nothing that an application said can have reached an endpoint.
            if flow.is_some_and(|flow| flow.is_unopened() && flow.bytes_from_socket == 0) {
                self.park(core, key, core.now + WAIT_MAX, End::Lost);
            }
        }
        core.session_gone(session);
        let Some(link) = self.links.of(session) else {
            return;
        };
        link.lost(session, why, core.now);
        // A listener may be found on any worker when the relay is back.
        let lost = link.relay_worker;
        self.elsewhere.retain(|_, worker| *worker != lost);
        let _ = self.say.try_send(Said::Lost {
            relay: link.relay.endpoint.clone(),
            why: why.to_string(),
        });
    }

    fn heard<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, session: SessionId, heard: Heard) {
        match heard {
            Heard::Registered(hyco, endpoint) => self.registered(core, session, hyco, endpoint),
            Heard::Refused(hyco, RefusedCode::NotAuthorised) => {
                let _ = self.say.try_send(Said::Refused { hyco });
            }
            Heard::Refused(..) | Heard::Ended(_) => {}
            Heard::Probe(_) => debug!("a relay asked a sender for a probe"),
            Heard::Broken(code, why) => {
                core.quic.close(core.now, session, code);
                self.lose(core, session, &why);
            }
        }
    }

    /// What waited for this goes on.
    fn registered<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        session: SessionId,
        hyco: HycoName,
        endpoint: Endpoint,
    ) {
        let relay_worker = self.links.of(session).map(|link| link.relay_worker);
        for (key, worker) in std::mem::take(&mut self.moving) {
            let flow = core.flows.get(key);
            if flow.is_some_and(|flow| flow.data.hyco == hyco) && relay_worker == Some(worker) {
                self.move_to(core, key, worker);
            } else if flow.is_some() {
                self.moving.push((key, worker));
            }
        }
        self.resume(core);
        let path = core.quic.path(session);
        let rtt = path.map_or(Duration::ZERO, |path| path.rtt);
        let _ = self.say.try_send(Said::Registered {
            hyco,
            endpoint,
            rtt,
        });
    }

    /// An application connected: its flow is opened at the relay, or it waits for a session.
    fn begin<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, application: Application) {
        let chosen = self.choose(core, &application.hyco);
        let Some((session, stream, endpoint)) = chosen else {
            if self.waiting.is_full() {
                return turn_away(core, &application, FlowCode::Overloaded);
            }
            return self.waiting.push(core.now, application);
        };
        self.start(core, application, (session, stream, endpoint));
    }

    fn start<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        application: Application,
        (session, stream, endpoint): Place,
    ) {
        self.next_flow += 1;
        let Application {
            hyco,
            socket,
            address,
        } = application;
        let data = SenderFlow {
            id: FlowId(self.next_flow),
            hyco,
            application: address,
            endpoint,
            since: core.now,
            answer: Some(FrameReader::new()),
        };
        let open = data.open_frame();
        let key = core.start_unopened(data, socket, session, stream, open);
        self.opening.push_back((core.now + OPEN_DEADLINE, key));
    }

    /// A session with a stream on it, to the relay's worker that has a listener if that is known.
    fn choose<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, hyco: &HycoName) -> Option<Place> {
        let preferred = self.elsewhere.get(hyco).copied();
        let is_preferred = |link: &&Link| Some(link.relay_worker) == preferred;
        let there = |link: &Link| {
            let (session, endpoint) = link.session_for(&core.quic, core.now, hyco)?;
            Some((session, endpoint.clone()))
        };
        let (session, endpoint) = self
            .links
            .iter()
            .filter(is_preferred)
            .find_map(there)
            .or_else(|| self.links.iter().find_map(there))?;
        let stream = core.quic.open(session)?;
        Some((session, stream, endpoint))
    }

    /// The relay named a worker that has a listener: the flow goes on there, when there is a session.
    fn follow<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, key: FlowKey, worker: u8) {
        let Some(flow) = core.flows.get_mut(key) else {
            return;
        };
        let hyco = flow.data.hyco.clone();
        flow.data.answer = Some(FrameReader::new());
        debug!(%hyco, flow = flow.data.id.0, worker, "the relay's listener is on another worker");
        self.elsewhere.insert(hyco.clone(), worker);
        if self.move_to(core, key, worker) {
            return;
        }
        if self.links.at_worker(&hyco, worker, core.now).is_none() {
            return core.fail(key, End::There(FlowCode::NoListener));
        }
        self.moving.push((key, worker));
        self.keep_links(core);
    }

    fn move_to<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, key: FlowKey, worker: u8) -> bool {
        let Some(flow) = core.flows.get(key) else {
            return true;
        };
        let (hyco, open) = (&flow.data.hyco, flow.data.open_frame());
        let mut links = self.links.iter();
        let there =
            links.find(|link| link.relay_worker == worker && link.relay.want(hyco).is_some());
        let session = there
            .and_then(|link| link.session_for(&core.quic, core.now, hyco))
            .map(|(session, _)| session);
        let stream = session.and_then(|session| core.quic.open(session));
        let (Some(session), Some(stream)) = (session, stream) else {
            return false;
        };
        core.reroute(key, session, stream, open);
        true
    }

    /// Takes a flow from its stream: it is asked for again as soon as that may help.
    fn park<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        key: FlowKey,
        until: Instant,
        end: End,
    ) {
        self.moving.retain(|(other, _)| *other != key);
        if let Some(flow) = core.flows.get_mut(key) {
            flow.data.answer = Some(FrameReader::new());
        }
        core.detach(key);
        self.parked.push((until, key, end));
    }

    /// A relay that has just started does not know its agents yet: they are back within a moment.
    fn may_find_a_listener<I: Io>(
        &self,
        core: &Core<I, SenderFlow>,
        key: FlowKey,
    ) -> Option<Instant> {
        let session = core.flows.get(key)?.session;
        let since = self.links.iter().find_map(|link| link.since(session))?;
        Some(since + WAIT_MAX).filter(|until| *until > core.now)
    }

    /// Whoever waits goes on, where there is a session with room for one more.
    fn resume<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        for (until, key, end) in std::mem::take(&mut self.parked) {
            let Some(hyco) = core.flows.get(key).map(|flow| flow.data.hyco.clone()) else {
                continue;
            };
            if until <= core.now {
                core.fail(key, end);
                continue;
            }
            let Some((session, stream, endpoint)) = self.choose(core, &hyco) else {
                self.parked.push((until, key, end));
                continue;
            };
            if let Some(flow) = core.flows.get_mut(key) {
                flow.data.endpoint = endpoint;
                let open = flow.data.open_frame();
                core.reroute(key, session, stream, open);
            }
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let served = waiting.served(|hyco| self.choose(core, hyco));
        self.waiting = waiting;
        for (application, place) in served {
            self.start(core, application, place);
        }
    }

    fn unbind<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, number: u64) {
        if let Some(binding) = self.bindings.remove(&number) {
            core.disown(binding.socket);
            core.io.close(binding.socket, Close::Clean);
        }
    }

    /// Applications and flows that waited for too long.
    fn expire<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        self.resume(core);
        for application in self.waiting.expired(core.now) {
            turn_away(core, &application, FlowCode::SessionLost);
        }
        while let Some(&(deadline, key)) = self.opening.front() {
            let unopened = core.flows.get(key).is_some_and(Flow::is_unopened);
            if unopened && deadline > core.now {
                break;
            }
            self.opening.pop_front();
            if unopened {
                core.fail(key, End::There(FlowCode::EndpointTimedOut));
            }
        }
        self.moving
            .retain(|(key, _)| core.flows.get(*key).is_some());
    }

    fn drain_on<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
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
        if core.flows.is_empty() && self.waiting.is_empty() {
            info!("drained");
            self.end(core, SessionCode::Draining);
        }
    }

    fn cut_flows<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        for key in core.flows.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            core.fail(key, End::Here(FlowCode::GraceOver));
        }
        for application in self.waiting.take_all() {
            turn_away(core, &application, FlowCode::Draining);
        }
    }

    fn end<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, code: SessionCode) {
        for session in self.links.sessions() {
            core.quic.close(core.now, session, code);
        }
        self.done = true;
    }
}

impl Role for Sender {
    type Flow = SenderFlow;
    type Message = Message;

    fn message<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, message: Message) {
        match message {
            Message::Plan(plan) => {
                self.links.adopt(&mut core.quic, &plan.relays, core.now);
                self.plan = plan;
                self.keep_links(core);
            }
            Message::RelayFound(number, addresses) => {
                self.links.found(number, addresses);
                self.keep_links(core);
            }
            Message::Bind {
                number,
                hyco,
                listener,
            } => match core.io.listen(listener) {
                Ok(socket) => {
                    core.own(socket, Owner::Role(number));
                    self.bindings.insert(number, Binding { socket, hyco });
                }
                Err(error) => warn!(%hyco, %error, "binding cannot be watched"),
            },
            Message::Unbind(number) => self.unbind(core, number),
            Message::Drain(until) => {
                for link in self.links.iter_mut() {
                    link.say_to_all(&mut core.quic, &Frame::Draining);
                }
                self.drain = Some(Drain {
                    closing: false,
                    until,
                });
            }
            Message::Stop => {
                self.cut_flows(core);
                self.end(core, SessionCode::Done);
            }
        }
    }

    fn accepted<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        listener: u64,
        socket: std::io::Result<(SocketId, SocketAddr)>,
    ) {
        let binding = self.bindings.get(&listener);
        match (socket, binding) {
            (Ok((socket, address)), Some(binding)) => {
                let application = Application {
                    hyco: binding.hyco.clone(),
                    socket,
                    address,
                };
                self.begin(core, application);
            }
            (Ok((socket, _)), None) => core.io.close(socket, Close::Reset),
            (Err(error), binding) => {
                warn!(hyco = ?binding.map(|binding| binding.hyco.as_str()), %error, "cannot accept");
            }
        }
    }

    fn connected<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        _: u64,
        socket: SocketId,
        _: std::io::Result<()>,
    ) {
        core.io.close(socket, Close::Reset); // A sender dials nobody.
    }

    fn session_up<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, session: SessionId) {
        if let Some(link) = self.links.of(session) {
            link.up(&mut core.quic, session);
        }
    }

    fn session_lost<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        session: SessionId,
        why: &ConnectionError,
    ) {
        self.lose(core, session, &words(why));
        if self.drain.is_none() {
            self.keep_links(core);
        }
    }

    fn stream_opened<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        // A relay opens no streams towards a sender.
        core.quic.abort(session, stream, FlowCode::Protocol);
    }

    fn stream_readable<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        let (quic, now) = (&mut core.quic, core.now);
        let Some(link) = self
            .links
            .of(session)
            .filter(|link| link.is_control(session, stream))
        else {
            return;
        };
        for heard in link.readable(quic, session, now, &mut rand::rng()) {
            self.heard(core, session, heard);
        }
    }

    fn stream_writable<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        session: SessionId,
        _: StreamId,
    ) {
        if let Some(link) = self.links.of(session) {
            link.writable(&mut core.quic, session);
        }
    }

    fn streams_available<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        self.resume(core);
    }

    fn unopened_readable<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, key: FlowKey) {
        let Some(flow) = core.flows.get_mut(key) else {
            return;
        };
        let Some(reader) = &mut flow.data.answer else {
            return;
        };
        loop {
            let mut chunks = Vec::new();
            // One chunk at a time: what follows Opened belongs to the application.
            let read = core
                .quic
                .read(flow.session, flow.stream, 1, usize::MAX, &mut chunks);
            for chunk in chunks {
                reader.push(chunk);
            }
            return match (reader.next(), read) {
                (Ok(Some(Frame::Opened(_))), Ok(_)) => {
                    let first = reader.rest();
                    flow.data.answer = None;
                    core.opened(key, first);
                }
                (Ok(Some(Frame::Elsewhere(there))), Ok(_)) => {
                    self.follow(core, key, there.worker);
                }
                (Ok(None), Ok(Read::More)) => continue,
                (Ok(None), Ok(Read::Empty)) => {}
                (Ok(_), Err(FlowCode::NoListener)) => {
                    let end = End::There(FlowCode::NoListener);
                    match self.may_find_a_listener(core, key) {
                        Some(until) => self.park(core, key, until, end),
                        None => core.fail(key, end),
                    }
                }
                (Ok(_), Err(code)) => core.fail(key, End::There(code)),
                (Ok(Some(_)) | Err(_), _) | (_, Ok(Read::End)) => {
                    core.fail(key, End::There(FlowCode::Protocol));
                }
            };
        }
    }

    fn join_answered<I: Io>(&mut self, _: &mut Core<I, SenderFlow>, _: JoinKey) {
        // A sender joins no streams.
    }

    fn join_ended<I: Io>(&mut self, _: &mut Core<I, SenderFlow>, _: Join<SenderFlow>, _: JoinEnd) {
        // As above.
    }

    fn flow_ended<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        flow: Flow<SenderFlow>,
        end: End,
    ) {
        let (data, ending) = (&flow.data, ending(end));
        let ms = core.now.saturating_duration_since(data.since).as_millis();
        let (up, down) = (flow.bytes_from_socket, flow.bytes_to_socket);
        if ending.is_clean() {
            debug!(
                hyco = %data.hyco, flow = data.id.0, application = %data.application, endpoint = %data.endpoint, %ending,
                to_endpoint = up, to_application = down, ms, "flow ended"
            );
        } else {
            info!(
                hyco = %data.hyco, flow = data.id.0, application = %data.application, endpoint = %data.endpoint, %ending,
                to_endpoint = up, to_application = down, ms, "flow failed"
            );
        }
    }

    fn tick<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        self.expire(core);
        self.keep_links(core);
        self.drain_on(core);
    }

    fn misdirected(&mut self, _: u8, _: Datagrams) {
        // Each worker of a sender has a port of its own.
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

impl SenderFlow {
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

fn turn_away<I: Io>(core: &mut Core<I, SenderFlow>, application: &Application, code: FlowCode) {
    core.io.close(application.socket, Close::Reset);
    let ending = Ending::said(code, Side::Sender);
    info!(hyco = %application.hyco, application = %application.address, %ending, "flow refused");
}

/// Lays the end of a flow to the right side, seen from the sender.
fn ending(end: End) -> Ending {
    match end {
        End::Clean { socket_first: true } => Ending::clean(Side::Application),
        End::Clean {
            socket_first: false,
        } => Ending::clean(Side::Endpoint),
        End::Here(code) => Ending::said(code, Side::Sender),
        End::There(code @ (FlowCode::Reset | FlowCode::Timeout)) => Ending::said(code, Side::Agent),
        End::There(code) => Ending::said(code, Side::Relay),
        End::Lost => Ending::said(FlowCode::SessionLost, Side::Network),
    }
}
