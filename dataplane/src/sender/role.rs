//! What a sender's worker does with what its loop hears: sessions kept up, bindings opened, drains
//! followed. Its flows are in `flows`.

mod flows;
#[cfg(test)]
mod watched;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender as Say;
use quinn_proto::{ConnectionError, StreamId};
use rand::RngExt;
use tracing::{debug, info, warn};
use underpass_proto::{Ending, Endpoint, FlowCode, FlowId, HycoName, SessionCode, Side};

use self::flows::turn_away;
use super::Plan;
use crate::core::Core;
use crate::flow::{End, Flow, FlowKey};
use crate::io::{Close, Datagrams, Io, SocketId};
use crate::join::{Join, JoinEnd, JoinKey};
use crate::link::links::Links;
use crate::link::supervise::Said;
use crate::link::{self, Heard, words};
use crate::listening::{Change, Drain, Listening};
use crate::log_limit::{LogCause, Permit};
use crate::quic::SessionId;
use crate::resolve::Resolver;
use crate::waiting::{WAIT_MAX, Waiting};
use crate::worker::{Role, Start};

/// What a worker of a sender is told.
pub(crate) type Message = link::Message<Plan, Change>;

/// What a sender keeps with each flow.
pub(crate) struct SenderFlow {
    id: FlowId,
    hyco: HycoName,
    application: SocketAddr,
    endpoint: Endpoint,
    since: Instant,
}

/// An application without a session.
#[derive(Debug)]
struct Application {
    hyco: HycoName,
    socket: SocketId,
    address: SocketAddr,
}

/// The role of a sender's worker.
pub(crate) struct Sender {
    plan: Arc<Plan>,
    links: Links,
    listening: Listening,
    /// The relay's worker that has a listener, where that is not the one of this worker's own
    /// session.
    elsewhere: HashMap<HycoName, u8>,
    waiting: Waiting<Application>,
    /// Flows that are to be asked for again.
    parked: Vec<Parked>,
    /// Flows without Opened yet, by their deadline.
    opening: VecDeque<(Instant, FlowKey)>,
    next_flow: u32,
    drain: Option<Drain>,
    done: bool,
}

/// A session, a stream on it, and the endpoint as the relay told it.
type Place = (SessionId, StreamId, Endpoint);

/// A flow that is asked for again as soon as that may help.
struct Parked {
    flow: FlowKey,
    /// The relay's worker that has a listener; `None`: any may have.
    at: Option<u8>,
    /// When it is given up, and how it ends then.
    until: Instant,
    end: End,
}

impl Sender {
    /// For one worker.
    #[must_use]
    pub(crate) fn new(
        worker: u8,
        plan: Arc<Plan>,
        resolver: Resolver,
        mut start: Start<Message>,
        say: Say<Said>,
    ) -> Self {
        let (relays, identity) = (&plan.relays, plan.identity);
        let next_flow = start.rng.random::<u32>();
        let links = Links::new(relays, worker, identity, resolver, start, say);
        Self {
            plan,
            links,
            listening: Listening::default(),
            elsewhere: HashMap::new(),
            waiting: Waiting::default(),
            parked: Vec::new(),
            opening: VecDeque::new(),
            // Unlike those of other workers and senders, so that logs of several do not mix.
            next_flow,
            drain: None,
            done: false,
        }
    }

    fn keep_links<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        for (session, why) in self.links.close_stale(core, |_| 0) {
            self.lose(core, session, &why);
        }
        let may_dial = self.drain.is_none();
        self.links.keep_up(&mut core.quic, core.now, may_dial);
    }

    fn lose<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, session: SessionId, why: &str) {
        for key in core.flows.of_session(session) {
            let flow = core.flows.get(key);
            // Nothing that an application said can have reached an endpoint.
            if flow.is_some_and(|flow| flow.is_unopened() && flow.bytes_from_socket == 0) {
                self.park(core, key, None, core.now + WAIT_MAX, End::Lost);
            }
        }
        core.session_gone(session);
        // A listener may be found on any worker when the relay is back.
        let lost = self.links.relay_worker(session);
        self.elsewhere.retain(|_, worker| Some(*worker) != lost);
        self.links.lost(session, why, core.now);
    }

    fn heard<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, session: SessionId, heard: Heard) {
        match heard {
            Heard::Registered(hyco, endpoint) => {
                self.resume(core);
                let links = &self.links;
                links.tell_registered(&core.quic, session, hyco, endpoint);
            }
            Heard::Refused(hyco, code) => self.links.report_refused(session, hyco, code),
            Heard::Ended(_) => {}
            Heard::Probe(_) => debug!("a relay asked a sender for a probe"),
            Heard::Broken(code, why) => {
                core.quic.close(core.now, session, code);
                self.lose(core, session, &why);
            }
        }
    }

    fn drain_on<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        let Some(drain) = &mut self.drain else { return };
        let Some(over) = drain.tick(core, &mut self.listening) else {
            return;
        };
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
        self.links.close_all(core, code);
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
                self.links.found(core.now, number, addresses);
                self.keep_links(core);
            }
            Message::Own(change) => self.listening.change(core, change),
            Message::Drain(until) => {
                self.links.say_draining(&mut core.quic);
                self.drain = Some(Drain::new(until));
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
        match (socket, self.listening.hyco(listener).cloned()) {
            (Ok((socket, address)), Some(hyco)) => {
                let application = Application {
                    hyco,
                    socket,
                    address,
                };
                self.begin(core, application);
            }
            (Ok((socket, _)), None) => core.io.close(socket, Close::Reset),
            (Err(error), hyco) => {
                let cause = LogCause::new("cannot accept", error.kind());
                if let Some(Permit { left_out }) =
                    core.log.permits(core.now, cause, hyco.as_ref(), None)
                {
                    warn!(hyco = ?hyco.map(|name| name.to_string()), %error, left_out, "cannot accept");
                }
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
        self.links.up(&mut core.quic, session);
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
        let heard = self
            .links
            .readable(&mut core.quic, session, stream, core.now);
        for heard in heard {
            self.heard(core, session, heard);
        }
    }

    fn stream_writable<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        session: SessionId,
        _: StreamId,
    ) {
        self.links.writable(&mut core.quic, session);
    }

    fn streams_available<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        self.resume(core);
    }

    fn unopened_readable<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, key: FlowKey) {
        self.answered(core, key);
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
            let (cause, source) = (LogCause::new("flow failed", ending), data.application.ip());
            let permit = core
                .log
                .permits(core.now, cause, Some(&data.hyco), Some(source));
            let Some(Permit { left_out }) = permit else {
                return;
            };
            info!(
                hyco = %data.hyco, flow = data.id.0, application = %data.application, endpoint = %data.endpoint, %ending,
                to_endpoint = up, to_application = down, ms, left_out, "flow failed"
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
