//! What an agent's worker does with what its loop hears: sessions kept up, Opens checked against
//! the allow-list, endpoints dialled.

#[cfg(test)]
mod watched;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use quinn_proto::{ConnectionError, StreamId};
use tracing::{debug, info, warn};
use underpass_proto::limits::DIAL_DEADLINE;
use underpass_proto::wire::{Open, Opened, Probe, Probed};
use underpass_proto::{
    AllowList, Ending, Endpoint, FlowCode, FlowId, Frame, HycoName, SessionCode, Side,
};

use super::Plan;
use super::dials::{Dial, DialPurpose, Dials, Done};
use super::early::Early;
use super::manners::Manners;
use super::own_dials::Hops;
use crate::core::Core;
use crate::flow::{End, Flow, FlowKey};
use crate::io::{Datagrams, Io, SocketId};
use crate::join::{Join, JoinEnd, JoinKey};
use crate::link::links::Links;
use crate::link::supervise::Said;
use crate::link::{self, Heard, words};
use crate::log_limit::{LogCause, Permit};
use crate::opening::{Asked, Openings};
use crate::quic::SessionId;
use crate::resolve::{Answer, Resolver};
use crate::worker::{Role, Start};

/// Flows whose Open has not come whole, on one worker: as many as may be dialled at once.
const PARTIAL_MAX: usize = 10_000;

/// Permits nothing.
static NOTHING: AllowList = AllowList(Vec::new());

/// Addresses of the endpoint that the dial of this number waits for, or why there are none.
pub(crate) struct EndpointFound(pub(crate) u64, pub(crate) Answer);

/// What a worker of an agent is told.
pub(crate) type Message = link::Message<Plan, EndpointFound>;

/// What an agent keeps with each flow.
pub(crate) struct AgentFlow {
    open: Open,
    dialled: SocketAddr,
    since: Instant,
}

/// The role of an agent's worker.
pub(crate) struct Agent {
    plan: Arc<Plan>,
    links: Links,
    openings: Openings,
    early: Early,
    dials: Dials,
    manners: Manners,
    drain: Option<Instant>,
    done: bool,
}

impl Agent {
    /// For one worker.
    #[must_use]
    pub(crate) fn new(
        worker: u8,
        plan: Arc<Plan>,
        resolver: Resolver,
        manners: Manners,
        start: Start<Message>,
        say: Sender<Said>,
    ) -> Self {
        let dials = Dials::new(resolver.clone(), start.handle.clone());
        let (relays, identity) = (&plan.relays, plan.identity);
        let links = Links::new(relays, worker, identity, resolver, start, say);
        Self {
            plan,
            links,
            openings: Openings::new(PARTIAL_MAX, DIAL_DEADLINE),
            early: Early::default(),
            dials,
            manners,
            drain: None,
            done: false,
        }
    }

    fn keep_links<I: Io>(&mut self, core: &mut Core<I, AgentFlow>) {
        let begins =
            |session| self.dials.count_of_session(session) + self.early.count_of_session(session);
        for (session, why) in self.links.close_stale(core, begins) {
            self.lose(core, session, &why);
        }
        let may_dial = self.drain.is_none();
        self.links.keep_up(&mut core.quic, core.now, may_dial);
    }

    fn lose<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, session: SessionId, why: &str) {
        self.openings.session_gone(session);
        self.early.session_gone(session);
        self.dials.session_gone(core, session);
        core.session_gone(session);
        self.links.lost(session, why, core.now);
    }

    fn heard<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, session: SessionId, heard: Heard) {
        match heard {
            Heard::Registered(hyco, endpoint) => {
                let cause = LogCause::new("the endpoint is not on this agent's allow-list", ());
                if !self.permits(session, &hyco, &endpoint)
                    && let Some(Permit { left_out }) =
                        core.log.permits(core.now, cause, Some(&hyco), None)
                {
                    warn!(%hyco, %endpoint, left_out, "the endpoint is not on this agent's allow-list: its flows are refused; \
                        add it to `allow` in the agent's file");
                }
                for asked in self.early.ready(session, &hyco) {
                    self.open(core, asked);
                }
                let links = &self.links;
                links.tell_registered(&core.quic, session, hyco, endpoint);
            }
            Heard::Refused(hyco, code) => {
                self.refuse_early(core, session, &hyco);
                self.links.report_refused(session, hyco, code);
            }
            Heard::Ended(hyco) => self.refuse_early(core, session, &hyco),
            Heard::Probe(probe) => self.probe(core, session, probe),
            Heard::Broken(code, why) => {
                core.quic.close(core.now, session, code);
                self.lose(core, session, &why);
            }
        }
    }

    fn refuse_early<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        hyco: &HycoName,
    ) {
        for asked in self.early.ready(session, hyco) {
            let (stream, code) = (asked.stream, FlowCode::RegistrationEnded);
            refuse(core, session, stream, &asked.open, code);
        }
    }

    /// Reads the Open of a new flow, and whatever the application sent behind it.
    fn read_open<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        let Some(asked) = self.openings.read(&mut core.quic, session, stream) else {
            return;
        };
        if !self.links.is_awaited(session, &asked.open.hyco) {
            return self.open(core, asked);
        }
        if self.early.is_full() {
            return refuse(core, session, stream, &asked.open, FlowCode::Overloaded);
        }
        self.early.wait(core.now, asked);
    }

    fn open<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, asked: Asked) {
        let Asked {
            session,
            stream,
            open,
            first,
        } = asked;
        let hops = match self.admit(core.now, session, &open) {
            Ok(hops) => hops,
            Err(code) => return refuse(core, session, stream, &open, code),
        };
        let purpose = DialPurpose::Flow {
            stream,
            open,
            first,
            hops,
        };
        self.dial(core, session, purpose);
    }

    fn dial<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        purpose: DialPurpose,
    ) {
        let Some(relay) = self.links.relay_of(session) else {
            return; // The session is gone, and its streams with it.
        };
        let allow = self.links.allow(session, purpose.hyco());
        let allow = allow.unwrap_or(&NOTHING);
        let done = self.dials.begin(core, allow, (relay, session), purpose);
        self.dialled(core, done);
    }

    /// Whether this endpoint may be dialled for this hybrid connection of this relay.
    fn permits(&self, session: SessionId, hyco: &HycoName, endpoint: &Endpoint) -> bool {
        let allow = self.links.allow(session, hyco);
        allow.is_some_and(|allow| allow.permits(endpoint))
    }

    /// Whether a flow may be dialled: the chain of hybrid connections that it continues.
    fn admit(&self, now: Instant, session: SessionId, open: &Open) -> Result<Hops, FlowCode> {
        if self.links.registered(session, &open.hyco).is_none() {
            Err(FlowCode::RegistrationEnded)
        } else if self.drain.is_some() || self.plan.identity.check_only {
            Err(FlowCode::Draining)
        } else if !self.permits(session, &open.hyco, &open.endpoint) {
            Err(FlowCode::NotAllowed)
        } else if self.dials.is_full() {
            Err(FlowCode::Overloaded)
        } else {
            self.hops(
                now,
                session,
                &open.hyco,
                Some((open.flow, open.application)),
            )
        }
    }

    /// The chain of hybrid connections that this connection is part of; an error where it is a
    /// loop.
    fn hops(
        &self,
        now: Instant,
        session: SessionId,
        hyco: &HycoName,
        begun_by: Option<(FlowId, SocketAddr)>,
    ) -> Result<Hops, FlowCode> {
        let relay = self.links.relay_of(session);
        let relay = relay.ok_or(FlowCode::RegistrationEnded)?;
        self.plan.own_dials.hops(now, relay, hyco, begun_by)
    }

    /// A connection was made: should it lead back here, the flow that it becomes is known by the
    /// two addresses of the connection.
    fn remember<I: Io>(&self, core: &mut Core<I, AgentFlow>, dial: &Dial, socket: SocketId) {
        let hops = match &dial.purpose {
            DialPurpose::Flow { hops, .. } => Ok(*hops),
            DialPurpose::Probe(probe) => self.hops(core.now, dial.session, &probe.hyco, None),
        };
        if let Some(local) = core.io.local_address(socket)
            && let Some((_, dialled)) = dial.last
            && let Ok(hops) = hops
        {
            let own_dials = &self.plan.own_dials;
            own_dials.record(core.now, local, dialled, hops);
        }
    }

    /// The relay wants to know whether the endpoint is there.
    fn probe<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, session: SessionId, probe: Probe) {
        let failed = if self.links.registered(session, &probe.hyco).is_none() {
            FlowCode::RegistrationEnded
        } else if !self.permits(session, &probe.hyco, &probe.endpoint) {
            FlowCode::NotAllowed
        } else if self.dials.is_full() || !self.manners.begin_probe(&probe.endpoint) {
            FlowCode::Overloaded
        } else {
            let purpose = DialPurpose::Probe(probe);
            return self.dial(core, session, purpose);
        };
        let said = Probed {
            hyco: probe.hyco,
            id: probe.id,
            failed: Some(failed),
            resolve_us: 0,
            dial_us: 0,
            dialled: None,
        };
        self.say_probed(core, session, said);
    }

    /// A connection attempt is over: its flow begins or is refused, its probe is answered.
    fn dialled<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, done: Option<Done>) {
        let Some(Done { dial, result }) = done else {
            return;
        };
        let session = dial.session;
        if let Ok((socket, _)) = result {
            self.remember(core, &dial, socket);
        }
        match (dial.purpose, result) {
            (
                DialPurpose::Flow {
                    stream,
                    open,
                    first,
                    ..
                },
                Ok((socket, dialled)),
            ) => {
                self.manners.flow_reached(&open.endpoint);
                let opened = Frame::Opened(Opened { endpoint: dialled }).to_vec();
                let data = AgentFlow {
                    open,
                    dialled,
                    since: dial.since,
                };
                core.start_opened(data, socket, session, stream, Bytes::from(opened), first);
            }
            (DialPurpose::Flow { stream, open, .. }, Err(code)) => {
                log_refusal(core, &open, code);
                let known = self.links.known_code(session, code);
                core.quic.abort(session, stream, known);
            }
            (DialPurpose::Probe(ref probe), ref result) => {
                match *result {
                    Ok((socket, _)) => self.manners.leave(core, &probe.endpoint, socket),
                    Err(_) => self.manners.not_reached(&probe.endpoint),
                }
                let said = probed(
                    core.now,
                    probe,
                    &dial.last,
                    dial.resolve,
                    result.as_ref().err(),
                );
                self.say_probed(core, session, said);
            }
        }
    }

    fn say_probed<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        mut said: Probed,
    ) {
        debug!(hyco = %said.hyco, failed = ?said.failed, dialled = ?said.dialled, dial_us = said.dial_us, "probed");
        let failed = said.failed;
        said.failed = failed.map(|code| self.links.known_code(session, code));
        self.links
            .say(&mut core.quic, session, &Frame::Probed(said));
    }

    fn end<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, code: SessionCode) {
        self.links.close_all(core, code);
        self.done = true;
    }

    fn cut_flows<I: Io>(&mut self, core: &mut Core<I, AgentFlow>) {
        for key in core.flows.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            core.fail(key, End::Here(FlowCode::GraceOver));
        }
        for done in self.dials.fail_all(core, FlowCode::Draining) {
            self.dialled(core, Some(done));
        }
    }
}

impl Role for Agent {
    type Flow = AgentFlow;
    type Message = Message;

    fn message<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, message: Message) {
        match message {
            Message::Plan(plan) => {
                self.links.adopt(&mut core.quic, &plan.relays, core.now);
                self.plan = plan;
                self.keep_links(core);
            }
            Message::RelayFound(number, addresses) => {
                self.links.found(core.now, number, addresses);
                self.keep_links(core);
            }
            Message::Own(EndpointFound(number, answer)) => {
                let origin = self.dials.origin(number);
                let allow = origin.and_then(|(session, hyco)| self.links.allow(session, hyco));
                // A string that was taken out meanwhile permits nothing.
                let allow = allow.unwrap_or(&NOTHING);
                let done = self.dials.found(core, allow, number, &answer);
                self.dialled(core, done);
            }
            Message::Drain(until) => {
                self.links.say_draining(&mut core.quic);
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
        let done = self.dials.connected(core, dial, socket, result);
        self.dialled(core, done);
    }

    fn received<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        result: std::io::Result<Bytes>,
    ) {
        self.manners.received(core, number, result);
    }

    fn sent<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        result: &std::io::Result<usize>,
    ) {
        self.manners.sent(core, number, result);
    }

    fn session_up<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, session: SessionId) {
        self.links.up(&mut core.quic, session);
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
        self.openings
            .stream_opened(&mut core.quic, core.now, session, stream);
        self.read_open(core, session, stream);
    }

    fn stream_readable<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        stream: StreamId,
    ) {
        if self.openings.is_partial(session, stream) {
            return self.read_open(core, session, stream);
        }
        // Data waits until the endpoint is there; a reset ends the wait.
        let dial = self.dials.of_stream(session, stream);
        if dial.is_some() || self.early.has(session, stream) {
            if core.quic.reset_of(session, stream).is_some() {
                self.early.forget(session, stream);
                if let Some(number) = dial {
                    self.dials.abandon(core, number);
                }
                core.quic.abort(session, stream, FlowCode::Reset);
            }
            return;
        }
        let heard = self
            .links
            .readable(&mut core.quic, session, stream, core.now);
        for heard in heard {
            self.heard(core, session, heard);
        }
    }

    fn stream_writable<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
        _: StreamId,
    ) {
        self.links.writable(&mut core.quic, session);
    }

    fn unopened_readable<I: Io>(&mut self, _: &mut Core<I, AgentFlow>, _: FlowKey) {
        // An agent's flows are opened from their first moment.
    }

    fn join_answered<I: Io>(&mut self, _: &mut Core<I, AgentFlow>, _: JoinKey) {
        // An agent joins no streams.
    }

    fn join_ended<I: Io>(&mut self, _: &mut Core<I, AgentFlow>, _: Join<AgentFlow>, _: JoinEnd) {
        // As above.
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
        for done in self.dials.expire(core) {
            self.dialled(core, Some(done));
        }
        self.manners.expire(core);
        self.openings.expire(&mut core.quic, core.now);
        for asked in self.early.expired(core.now) {
            let Asked {
                session,
                stream,
                open,
                ..
            } = asked;
            refuse(core, session, stream, &open, FlowCode::RegistrationEnded);
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
    log_refusal(core, open, code);
    core.quic.abort(session, stream, code);
}

fn log_refusal<I: Io>(core: &mut Core<I, AgentFlow>, open: &Open, code: FlowCode) {
    let ending = Ending::said(code, Side::Agent);
    let (cause, source) = (LogCause::new("flow refused", code), open.application.ip());
    let log = &mut core.log;
    if let Some(Permit { left_out }) = log.permits(core.now, cause, Some(&open.hyco), Some(source))
    {
        info!(
            hyco = %open.hyco, flow = open.flow.0, endpoint = %open.endpoint, application = %open.application, %ending, why = %code,
            left_out, "flow refused"
        );
    }
}

/// What a probe's dial found.
fn probed(
    now: Instant,
    probe: &Probe,
    last: &Option<(Instant, SocketAddr)>,
    resolve: Duration,
    failed: Option<&FlowCode>,
) -> Probed {
    let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    let dialled = last.map(|(at, _)| now.saturating_duration_since(at));
    Probed {
        hyco: probe.hyco.clone(),
        id: probe.id,
        failed: failed.copied(),
        resolve_us: us(resolve),
        dial_us: dialled.map_or(0, us),
        dialled: last.map(|(_, address)| address),
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
