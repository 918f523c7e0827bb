//! What an agent's worker does with what its loop hears: sessions kept up, Opens checked against the allow-list, endpoints dialled.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use quinn_proto::{ConnectionError, StreamId};
use tracing::{debug, info, warn};
use underpass_proto::limits::DIAL_DEADLINE;
use underpass_proto::wire::{Open, Opened, RefusedCode};
use underpass_proto::{
    Ending, Endpoint, FlowCode, Frame, FrameReader, HycoName, SessionCode, Side,
};

use super::Plan;
use super::dialler::{self, Found, Resolver};
use super::link::{Heard, Link, words};
use crate::core::{Core, Owner};
use crate::flow::{End, Flow, FlowKey};
use crate::io::{Close, Datagrams, Io, SocketId};
use crate::quic::{Read, SessionId};
use crate::worker::{Handle, Role};

/// Flows that may wait for their endpoint at once on one worker.
const DIALS_MAX: usize = 10_000;

/// What the supervisor and the resolver tell a worker.
pub(crate) enum Message {
    /// Addresses of the plan's relay of this number.
    RelayFound(usize, Vec<SocketAddr>),
    /// Addresses of the endpoint that dial of this number waits for.
    EndpointFound(u64, Vec<Found>),
    /// Take no new flows; reset those that live at this time.
    Drain(Instant),
    /// End now.
    Stop,
}

/// What a worker tells the supervisor.
#[derive(Debug)]
pub(crate) enum Said {
    /// A listener is registered.
    Registered {
        /// For what.
        hyco: HycoName,
        /// What it leads to.
        endpoint: Endpoint,
        /// Round trip to the relay.
        rtt: Duration,
    },
    /// A registration was refused because of its key or name.
    Refused {
        /// For what.
        hyco: HycoName,
    },
    /// A session could not be had, or was lost.
    Lost {
        /// To which relay.
        relay: Endpoint,
        /// Why.
        why: String,
    },
}

/// What an agent keeps with each flow.
pub(crate) struct AgentFlow {
    open: Open,
    dialled: SocketAddr,
    since: Instant,
}

/// The role of an agent's worker.
pub(crate) struct Agent {
    plan: Arc<Plan>,
    links: Vec<Link>,
    resolver: Resolver,
    handle: Handle<Message>,
    say: Sender<Said>,
    /// Streams whose Open has not come whole.
    opening: HashMap<(SessionId, StreamId), FrameReader>,
    dials: HashMap<u64, Dial>,
    dial_of_stream: HashMap<(SessionId, StreamId), u64>,
    dial_deadlines: VecDeque<(Instant, u64)>,
    next_dial: u64,
    drain: Option<Instant>,
    done: bool,
}

/// A flow whose endpoint is being resolved or dialled.
struct Dial {
    session: SessionId,
    stream: StreamId,
    open: Open,
    /// What came behind Open.
    first: Bytes,
    candidates: VecDeque<SocketAddr>,
    socket: Option<(SocketId, SocketAddr)>,
    since: Instant,
}

impl Agent {
    /// For one worker.
    #[must_use]
    pub(crate) fn new(
        worker: u8,
        plan: Arc<Plan>,
        resolver: Resolver,
        handle: Handle<Message>,
        say: Sender<Said>,
    ) -> Self {
        let now = Instant::now();
        let links = (0..plan.relays.len())
            .map(|relay| Link::new(relay, worker, now))
            .collect();
        Self {
            plan,
            links,
            resolver,
            handle,
            say,
            opening: HashMap::new(),
            dials: HashMap::new(),
            dial_of_stream: HashMap::new(),
            dial_deadlines: VecDeque::new(),
            next_dial: 0,
            drain: None,
            done: false,
        }
    }

    fn link(&mut self, session: SessionId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.has(session))
    }

    fn keep_links<I: Io>(&mut self, core: &mut Core<I, AgentFlow>) {
        let plan = Arc::clone(&self.plan);
        for at in 0..self.links.len() {
            let relay = &plan.relays[self.links[at].relay];
            let stale =
                self.links[at].stale(&core.quic, core.now, |id| core.flows.count_of_session(id));
            for (session, why) in stale {
                core.quic.close(core.now, session, SessionCode::Done);
                self.lose(core, session, &why);
            }
            let link = &mut self.links[at];
            link.ask_again(&mut core.quic, relay, core.now, &mut rand::rng());
            if self.drain.is_some() || !link.wants_session(&core.quic, relay, core.now) {
                continue;
            }
            if link.wants_address() {
                link.resolving = true;
                self.resolve_relay(at);
            }
            let link = &mut self.links[at];
            if link.resolving {
                continue; // The answer wakes this worker.
            }
            link.dial(&mut core.quic, relay, core.now, &mut rand::rng());
        }
    }

    fn resolve_relay(&mut self, at: usize) {
        let endpoint = self.plan.relays[at].endpoint.clone();
        let port = endpoint.port.get();
        let addresses = move |found: Vec<Found>| {
            found
                .into_iter()
                .map(|found| SocketAddr::new(found.ip, port))
                .collect()
        };
        if let Some(found) = dialler::literal(&endpoint) {
            return self.links[at].found(addresses(found));
        }
        let handle = self.handle.clone();
        let asked = self.resolver.ask(endpoint, move |found| {
            let _ = handle.send(Message::RelayFound(at, addresses(found)));
        });
        self.links[at].resolving = asked.is_ok();
    }

    fn lose<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, session: SessionId, why: &str) {
        self.opening.retain(|(of, _), _| *of != session);
        let dials: Vec<_> = self
            .dials
            .iter()
            .filter(|(_, dial)| dial.session == session)
            .map(|(&number, _)| number)
            .collect();
        for number in dials {
            self.drop_dial(core, number);
        }
        core.session_gone(session);
        let plan = Arc::clone(&self.plan);
        let Some(link) = self.link(session) else {
            return;
        };
        let relay = &plan.relays[link.relay];
        link.lost(relay, session, why, core.now);
        let _ = self.say.try_send(Said::Lost {
            relay: relay.endpoint.clone(),
            why: why.to_string(),
        });
    }

    fn heard<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, session: SessionId, heard: Heard) {
        match heard {
            Heard::Registered(hyco, endpoint) => {
                if !self.plan.allow.permits(&endpoint) {
                    warn!(%hyco, %endpoint, "the endpoint is not on this agent's allow-list: its flows are refused; \
                        add it to `allow` in the agent's file");
                }
                let rtt = core
                    .quic
                    .path(session)
                    .map_or(Duration::ZERO, |path| path.rtt);
                let _ = self.say.try_send(Said::Registered {
                    hyco,
                    endpoint,
                    rtt,
                });
            }
            Heard::Refused(hyco, RefusedCode::NotAuthorised) => {
                let _ = self.say.try_send(Said::Refused { hyco });
            }
            Heard::Refused(..) => {}
            Heard::Broken(code, why) => {
                core.quic.close(core.now, session, code);
                self.lose(core, session, &why);
            }
        }
    }

    /// Reads the Open of a new flow, and whatever the application sent behind it.
    fn read_open<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        let Some(reader) = self.opening.get_mut(&(session, stream)) else {
            return;
        };
        loop {
            let mut chunks = Vec::new();
            // One chunk at a time: what follows Open stays where it is until the endpoint is there.
            let read = core.quic.read(session, stream, 1, usize::MAX, &mut chunks);
            for chunk in chunks {
                reader.push(chunk);
            }
            match (reader.next(), read) {
                (Ok(Some(Frame::Open(open))), Ok(_)) => {
                    let first = reader.rest();
                    self.opening.remove(&(session, stream));
                    return self.open(core, session, stream, open, first);
                }
                (Ok(None), Ok(Read::More)) => {}
                (Ok(None), Ok(Read::Empty)) => return,
                (Ok(Some(_)) | Err(_), _) | (_, Ok(Read::End) | Err(_)) => {
                    self.opening.remove(&(session, stream));
                    return core.quic.abort(session, stream, FlowCode::Protocol);
                }
            }
        }
    }

    fn open<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        stream: StreamId,
        open: Open,
        first: Bytes,
    ) {
        let registered = self
            .links
            .iter()
            .any(|link| link.is_registered(session, &open.hyco));
        let verdict = if !registered {
            Err(FlowCode::RegistrationEnded)
        } else if self.drain.is_some() || self.plan.check_only {
            Err(FlowCode::Draining)
        } else if !self.plan.allow.permits(&open.endpoint) {
            Err(FlowCode::NotAllowed)
        } else if self.dials.len() >= DIALS_MAX {
            Err(FlowCode::Overloaded)
        } else {
            Ok(())
        };
        if let Err(code) = verdict {
            return refuse(core, session, stream, &open, code);
        }
        self.next_dial += 1;
        let number = self.next_dial;
        let endpoint = open.endpoint.clone();
        let dial = Dial {
            session,
            stream,
            open,
            first,
            candidates: VecDeque::new(),
            socket: None,
            since: core.now,
        };
        self.dials.insert(number, dial);
        self.dial_of_stream.insert((session, stream), number);
        self.dial_deadlines
            .push_back((core.now + DIAL_DEADLINE, number));
        match dialler::literal(&endpoint) {
            Some(found) => self.endpoint_found(core, number, &found),
            None => self.resolve_endpoint(core, number, endpoint),
        }
    }

    fn resolve_endpoint<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        endpoint: Endpoint,
    ) {
        let handle = self.handle.clone();
        let asked = self.resolver.ask(endpoint, move |found| {
            let _ = handle.send(Message::EndpointFound(number, found));
        });
        if let Err(code) = asked {
            self.fail_dial(core, number, code);
        }
    }

    fn endpoint_found<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        found: &[Found],
    ) {
        let Some(dial) = self.dials.get_mut(&number) else {
            return;
        };
        match dialler::permitted(&self.plan.allow, &dial.open.endpoint, found) {
            Ok(addresses) => {
                dial.candidates = addresses.into();
                self.dial_next(core, number, FlowCode::EndpointUnreachable);
            }
            Err(code) => self.fail_dial(core, number, code),
        }
    }

    /// Dials exactly the next address that was checked; with none left the flow is refused for what the last one said.
    fn dial_next<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64, mut code: FlowCode) {
        let Some(dial) = self.dials.get_mut(&number) else {
            return;
        };
        while let Some(address) = dial.candidates.pop_front() {
            match core.io.connect(address) {
                Ok(socket) => {
                    core.own(socket, Owner::Role(number));
                    dial.socket = Some((socket, address));
                    return;
                }
                Err(error) => code = code_of(&error),
            }
        }
        self.fail_dial(core, number, code);
    }

    fn fail_dial<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64, code: FlowCode) {
        if let Some(dial) = self.drop_dial(core, number) {
            refuse(core, dial.session, dial.stream, &dial.open, code);
        }
    }

    fn drop_dial<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64) -> Option<Dial> {
        let mut dial = self.dials.remove(&number)?;
        self.dial_of_stream.remove(&(dial.session, dial.stream));
        if let Some((socket, _)) = dial.socket.take() {
            core.disown(socket);
            core.io.close(socket, Close::Reset);
        }
        Some(dial)
    }

    fn begin<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64, socket: SocketId) {
        let Some(mut dial) = self.dials.remove(&number) else {
            return;
        };
        self.dial_of_stream.remove(&(dial.session, dial.stream));
        let Some((_, dialled)) = dial.socket.take() else {
            return;
        };
        let opened = Bytes::from(Frame::Opened(Opened { endpoint: dialled }).to_vec());
        let data = AgentFlow {
            open: dial.open,
            dialled,
            since: dial.since,
        };
        core.start_opened(data, socket, dial.session, dial.stream, opened, dial.first);
    }

    fn end<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, code: SessionCode) {
        for session in self.links.iter().flat_map(Link::all) {
            core.quic.close(core.now, session, code);
        }
        self.done = true;
    }

    fn cut_flows<I: Io>(&mut self, core: &mut Core<I, AgentFlow>) {
        for key in core.flows.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            core.fail(key, End::Here(FlowCode::GraceOver));
        }
        for number in self.dials.keys().copied().collect::<Vec<_>>() {
            self.fail_dial(core, number, FlowCode::Draining);
        }
    }
}

impl Role for Agent {
    type Flow = AgentFlow;
    type Message = Message;

    fn message<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, message: Message) {
        match message {
            Message::RelayFound(at, addresses) => {
                self.links[at].found(addresses);
                self.keep_links(core);
            }
            Message::EndpointFound(number, found) => self.endpoint_found(core, number, &found),
            Message::Drain(until) => {
                self.links
                    .iter_mut()
                    .for_each(|link| link.say_draining(&mut core.quic));
                self.drain = Some(until);
            }
            Message::Stop => {
                self.cut_flows(core);
                self.end(core, SessionCode::Done);
            }
        }
    }

    fn accepted<I: Io>(
        &mut self,
        _: &mut Core<I, AgentFlow>,
        _: u64,
        _: std::io::Result<(SocketId, SocketAddr)>,
    ) {
        // An agent never listens.
    }

    fn connected<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        dial: u64,
        socket: SocketId,
        result: std::io::Result<()>,
    ) {
        match result {
            Ok(()) => self.begin(core, dial, socket),
            Err(error) => {
                core.disown(socket);
                core.io.close(socket, Close::Reset);
                if let Some(dial) = self.dials.get_mut(&dial) {
                    dial.socket = None;
                }
                self.dial_next(core, dial, code_of(&error));
            }
        }
    }

    fn session_up<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, session: SessionId) {
        let plan = Arc::clone(&self.plan);
        if let Some(link) = self.link(session) {
            link.up(&mut core.quic, &plan, session);
        }
    }

    fn session_lost<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
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
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        self.opening.insert((session, stream), FrameReader::new());
        self.read_open(core, session, stream);
    }

    fn stream_readable<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        if self.opening.contains_key(&(session, stream)) {
            return self.read_open(core, session, stream);
        }
        if let Some(&number) = self.dial_of_stream.get(&(session, stream)) {
            // Data waits until the endpoint is there; a reset ends the dial.
            if core.quic.reset_of(session, stream).is_some() {
                self.drop_dial(core, number);
                core.quic.abort(session, stream, FlowCode::Reset);
            }
            return;
        }
        let plan = Arc::clone(&self.plan);
        let now = core.now;
        let Some(link) = self
            .link(session)
            .filter(|link| link.is_control(session, stream))
        else {
            return;
        };
        let relay = &plan.relays[link.relay];
        for heard in link.readable(&mut core.quic, relay, session, now, &mut rand::rng()) {
            self.heard(core, session, heard);
        }
    }

    fn stream_writable<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        _: StreamId,
    ) {
        if let Some(link) = self.link(session) {
            link.writable(&mut core.quic, session);
        }
    }

    fn unopened_readable<I: Io>(&mut self, _: &mut Core<I, AgentFlow>, _: FlowKey) {
        // An agent's flows are opened from their first moment.
    }

    fn flow_ended<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        flow: Flow<AgentFlow>,
        end: End,
    ) {
        let data = &flow.data;
        debug!(
            hyco = %data.open.hyco, flow = data.open.flow.0, application = %data.open.application, dialled = %data.dialled,
            ending = %ending(end), from_endpoint = flow.bytes_from_socket, to_endpoint = flow.bytes_to_socket,
            ms = core.now.saturating_duration_since(data.since).as_millis(), "flow ended"
        );
    }

    fn tick<I: Io>(&mut self, core: &mut Core<I, AgentFlow>) {
        while self
            .dial_deadlines
            .front()
            .is_some_and(|(deadline, _)| *deadline <= core.now)
        {
            if let Some((_, number)) = self.dial_deadlines.pop_front() {
                self.fail_dial(core, number, FlowCode::EndpointTimedOut);
            }
        }
        self.keep_links(core);
        if let Some(until) = self.drain {
            if core.now >= until {
                self.cut_flows(core);
            }
            if core.flows.is_empty() && self.dials.is_empty() {
                info!("drained");
                self.end(core, SessionCode::Draining);
            }
        }
    }

    fn misdirected(&mut self, _: u8, _: Datagrams) {
        // Each worker of an agent has a port of its own.
    }

    fn is_done(&self) -> bool {
        self.done
    }
}

fn refuse<I: Io>(
    core: &mut Core<I, AgentFlow>,
    session: SessionId,
    stream: StreamId,
    open: &Open,
    code: FlowCode,
) {
    let ending = Ending::said(code, Side::Agent);
    info!(
        hyco = %open.hyco, flow = open.flow.0, endpoint = %open.endpoint, application = %open.application, %ending,
        "flow refused"
    );
    core.quic.abort(session, stream, code);
}

/// What a failed connection attempt means.
fn code_of(error: &std::io::Error) -> FlowCode {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused | Kind::ConnectionReset => FlowCode::EndpointRefused,
        Kind::TimedOut => FlowCode::EndpointTimedOut,
        Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::AddrNotAvailable
        | Kind::PermissionDenied => FlowCode::EndpointUnreachable,
        _ => FlowCode::Overloaded, // No descriptor, no memory, no port.
    }
}

/// Lays the end of a flow to the right side, seen from the agent.
fn ending(end: End) -> Ending {
    match end {
        End::Clean { socket_first: true } => Ending::clean(Side::Endpoint),
        End::Clean {
            socket_first: false,
        } => Ending::clean(Side::Application),
        End::Here(code) => Ending::said(code, Side::Agent),
        End::There(code) => Ending::said(code, Side::Relay),
        End::Lost => Ending::said(FlowCode::SessionLost, Side::Network),
    }
}
