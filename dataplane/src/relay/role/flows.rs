//! Flows of applications that connected here: each goes to a listener, is handed to a worker that
//! has one, or is turned away; an explicit refusal is tried once elsewhere, never after bytes may
//! have reached an endpoint.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::StreamId;
use tracing::{debug, warn};
use underpass_proto::limits::OPEN_DEADLINE;
use underpass_proto::{FlowCode, FlowId, Frame, HybridConnection, HycoName, Instance};

use super::queue::Waiter;
use super::relief::Source;
use super::{Key, Message, Opening, Relay, RelayFlow};
use crate::core::Core;
use crate::flow::{End, FlowKey};
use crate::io::{Close, Io, SocketId};
use crate::join::{JoinEnd, Toward};
use crate::locality;
use crate::log_limit::{LogCause, Permit};
use crate::opening::Head;
use crate::quic::SessionId;
use crate::relay::listeners::{Dial, Live, Moment};
use crate::relay::peers::Peers;
use crate::relay::plan::Place;

/// What there is for a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// A stream on a listener's session.
    Stream(SessionId, StreamId),
    /// Listeners, none of whose sessions takes one more flow just now.
    Full,
    /// No listener on this worker.
    Nobody,
}

impl Relay {
    /// An application connected: its flow goes to a listener here, or the socket to a worker that
    /// has one.
    pub(super) fn begin<I: Io>(
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
            let cause = LogCause::new("not in allow_from", ());
            let (log, source) = (&mut core.log, application.ip());
            if let Some(Permit { left_out }) =
                log.permits(core.now, cause, Some(name), Some(source))
            {
                warn!(hyco = %name, %application, left_out, "refused: not in allow_from");
            }
            return core.io.close(socket, Close::Reset);
        }
        if hyco.over_quota {
            return self.turn_away(core, name, socket, application, FlowCode::OverQuota);
        }
        let source = Source::of(application.ip());
        let credit_max = self.directory.resources.budget.credit_max();
        if !self.has_resources(core, name, application.ip())
            || self.relief.refuses(core.now, name, source, credit_max)
        {
            self.relief.note_overload(core.now);
            self.pressure.accepts_failed += 1;
            return self.turn_away(core, name, socket, application, FlowCode::Overloaded);
        }
        let Some(place) =
            self.directory
                .place(name, hyco.limits.flows_max, plan.snapshot.limits.flows_max)
        else {
            return self.turn_away(core, name, socket, application, FlowCode::TooManyFlows);
        };
        // One session's path may be dead alone: the same agent has others.
        if may_hand_over
            && self.peers.are_all_silent(&core.quic, core.now, name)
            && self.hand_over(core, name, socket, application)
        {
            return;
        }
        let chosen = match self.choose(core, name, None) {
            Choice::Stream(session, stream) => (session, stream),
            _ if may_hand_over && self.hand_over(core, name, socket, application) => return,
            Choice::Nobody => {
                return self.turn_away(core, name, socket, application, FlowCode::NoListener);
            }
            Choice::Full if self.waiting.is_full() => {
                return self.turn_away(core, name, socket, application, FlowCode::Overloaded);
            }
            Choice::Full => {
                let waiter = Waiter::Application {
                    hyco: name.clone(),
                    socket,
                    application,
                    place,
                };
                return self.waiting.push(core.now, waiter);
            }
        };
        self.start(core, hyco, (socket, application), place, chosen);
    }

    /// Whether there are memory and descriptors for one more application.
    fn has_resources<I: Io>(
        &self,
        core: &Core<I, RelayFlow>,
        hyco: &HycoName,
        source: IpAddr,
    ) -> bool {
        let resources = &self.directory.resources;
        let sockets = core.flows.len() + self.waiting.len();
        let left = resources.sockets_max().saturating_sub(sockets);
        !resources.is_tight() && self.sockets.has_room(hyco, source, left)
    }

    /// A flow begins on this stream.
    pub(super) fn start<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HybridConnection,
        (socket, application): (SocketId, SocketAddr),
        place: Place,
        (session, stream): (SessionId, StreamId),
    ) {
        let name = &hyco.name;
        self.next_flow = self.next_flow.wrapping_add(1);
        // Asking the kernel costs a system call: only a binding to all addresses needs it.
        let is_exact = |bind: &SocketAddr| !bind.ip().is_unspecified() && bind.port() != 0;
        let bound = hyco.bind.filter(is_exact);
        let bound = bound.or_else(|| core.io.local_address(socket));
        let id = FlowId::of_connection(self.next_flow, application, bound, locality::here());
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
            live: None,
            _place: place,
        };
        self.sockets.add(name, application.ip());
        self.relief.note_begun(name, Source::of(application.ip()));
        self.counts.entry(name.clone()).or_default().total += 1;
        let open = data.open_frame();
        let held = self.opens_alone(core, name, session);
        let key = Key::Flow(core.start_unopened(data, socket, session, stream, open, held));
        if held {
            self.held_back.entry(session).or_default().push(key);
        }
        self.opening.push_back((core.now + OPEN_DEADLINE, key));
    }

    /// Whether a new flow sends its Open alone at first. A process that has just frozen would keep
    /// what came behind it, which could then be sent to no other. The rest follows when a sign of
    /// life came, or goes to another listener.
    ///
    /// The session is pinged in any case: nothing else would find soon that its path alone is dead.
    pub(super) fn opens_alone<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HycoName,
        session: SessionId,
    ) -> bool {
        let (now, quic) = (core.now, &mut core.quic);
        if quic.was_just_there(now, session) {
            return false;
        }
        quic.ping(now, session);
        self.peers.has_another(hyco, session)
    }

    /// The process of a session gave a sign of life: what was held back follows.
    pub(super) fn release<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId) {
        for key in self.held_back.remove(&session).into_iter().flatten() {
            // One that went to another listener meanwhile is held no longer.
            match key {
                Key::Flow(key) => core.release(key),
                Key::Join(key) => core.release_join(key),
            }
        }
    }

    /// A listener's session with a stream on it: the best one, or that of another process where the
    /// best has no room.
    pub(super) fn choose<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HycoName,
        without: Option<Instance>,
    ) -> Choice {
        let pick = |peers: &mut Peers, core: &Core<I, RelayFlow>, without| {
            let load = |session| core.load(session);
            peers.pick(&core.quic, core.now, hyco, without, load)
        };
        let Some(best) = pick(&mut self.peers, core, without) else {
            return Choice::Nobody;
        };
        if let Some(stream) = self.open_on(core, best) {
            return Choice::Stream(best, stream);
        }
        let other = match without {
            None => {
                let asked = self.peers.instance(best);
                pick(&mut self.peers, core, asked)
            }
            Some(_) => None,
        };
        let stream = other.and_then(|other| Some((other, self.open_on(core, other)?)));
        stream.map_or(Choice::Full, |(other, stream)| {
            Choice::Stream(other, stream)
        })
    }

    fn open_on<I: Io>(
        &self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
    ) -> Option<StreamId> {
        let most = self.plan.snapshot.limits.flows_per_session_max as usize;
        (core.load(session) < most).then(|| core.quic.open(session))?
    }

    /// Gives an application to another worker that has a listener. False: there is none, and the
    /// socket is still here.
    pub(super) fn hand_over<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HycoName,
        socket: SocketId,
        application: SocketAddr,
    ) -> bool {
        let Some(worker) = self.directory.listeners.worker_with(hyco, core.worker) else {
            return false;
        };
        let Some(other) = self.others.get(usize::from(worker)) else {
            return false;
        };
        let Some(stream) = core.io.release(socket) else {
            return false;
        };
        let message = Message::Adopt {
            hyco: hyco.clone(),
            socket: stream,
            application,
        };
        if other.try_send(message).is_err() {
            // A full inbox drops the socket, whose linger makes that an RST.
            self.note_refusal(core, hyco, application, FlowCode::Overloaded);
        }
        true
    }

    pub(super) fn turn_away<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HycoName,
        socket: SocketId,
        application: SocketAddr,
        code: FlowCode,
    ) {
        core.io.close(socket, Close::Reset);
        self.note_refusal(core, hyco, application, code);
    }

    /// An explicit refusal is tried once elsewhere, with all that the application sent so far.
    pub(super) fn refused<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        key: FlowKey,
        code: FlowCode,
    ) {
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

    /// A listener dialled for a flow, or refused to. Answers what is kept with the flow while it
    /// lives.
    pub(super) fn note(
        &mut self,
        now: Instant,
        flow: &RelayFlow,
        failed: Option<FlowCode>,
    ) -> Option<Live> {
        let opening = flow.opening.as_deref()?;
        let (instance, asked_at) = (opening.asked?, opening.asked_at?);
        let dial = Dial {
            failed,
            latency: now.saturating_duration_since(asked_at),
            by_flow: true,
        };
        let (hyco, endpoint) = (&flow.hyco, &flow.endpoint);
        let moment = Moment::at(now);
        self.directory
            .listeners
            .dialled(moment, hyco, instance, endpoint, dial, &mut self.rng)
    }

    pub(super) fn try_elsewhere<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        key: FlowKey,
    ) -> bool {
        let Some(flow) = core.flows.get(key) else {
            return false;
        };
        let asked = flow
            .data
            .opening
            .as_deref()
            .and_then(|opening| opening.asked);
        let name = flow.data.hyco.clone();
        let Choice::Stream(session, stream) = self.choose(core, &name, asked) else {
            return false;
        };
        let now_asked = self.peers.instance(session);
        let Some(flow) = core.flows.get_mut(key) else {
            return false;
        };
        let opening = Opening {
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
    pub(super) fn expire_opening<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
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

    /// The session is gone or does not answer. Flows that sent nothing yet lose nothing by another
    /// listener; all others stay with it.
    pub(super) fn rescue<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, session: SessionId) {
        self.rescue_joined(core, session);
        for key in core.flows.of_session(session) {
            let untouched = core
                .flows
                .get(key)
                .is_some_and(|flow| flow.is_unopened() && flow.bytes_from_socket == 0);
            if untouched && !self.try_elsewhere(core, key) {
                core.release(key);
            }
        }
        self.held_back.remove(&session);
    }

    /// The listener answered, perhaps not whole yet.
    pub(super) fn answered<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: FlowKey) {
        match core.read_answer(key) {
            Head::Partial => {}
            Head::Frame(Frame::Opened(_), first) => {
                if let Some(flow) = core.flows.get_mut(key) {
                    flow.data.live = self.note(core.now, &flow.data, None);
                    flow.data.opening = None;
                }
                core.opened(key, first);
            }
            Head::Reset(code) => self.refused(core, key, code),
            Head::Frame(..) | Head::Broken => core.fail(key, End::There(FlowCode::Protocol)),
        }
    }
}
