//! Flows that senders ask for: each is joined to a listener here, sent to the worker that has one,
//! or refused with a code.

use std::sync::Arc;

use bytes::Bytes;
use quinn_proto::StreamId;
use tracing::debug;
use underpass_proto::limits::OPEN_DEADLINE;
use underpass_proto::wire::Elsewhere;
use underpass_proto::{FlowCode, Frame, HybridConnection};

use super::flows::Choice;
use super::queue::Waiter;
use super::relief::Source;
use super::{Key, Opening, Relay, RelayFlow};
use crate::core::Core;
use crate::io::Io;
use crate::join::{JoinEnd, JoinKey, Toward};
use crate::opening::{Asked, Head};
use crate::quic::SessionId;
use crate::relay::plan::Place;

impl Relay {
    /// A sender asks for a flow: it is joined to a listener here, or sent to the worker that has
    /// one.
    pub(super) fn begin_joined<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, asked: Asked) {
        let (session, stream, open) = (asked.session, asked.stream, &asked.open);
        let plan = Arc::clone(&self.plan);
        let refuse = |core: &mut Core<I, RelayFlow>, code| core.quic.abort(session, stream, code);
        let hyco = plan.hyco(&open.hyco);
        let Some(hyco) = hyco.filter(|_| self.peers.may_send(session, &open.hyco)) else {
            return refuse(core, FlowCode::RegistrationEnded);
        };
        if self.drain.is_some() {
            return refuse(core, FlowCode::Draining);
        }
        let credit_max = self.directory.resources.budget.credit_max();
        let source = Source::Sender(session);
        let refused = self
            .relief
            .refuses(core.now, &hyco.name, source, credit_max);
        if refused || self.directory.resources.is_tight() {
            self.relief.note_overload(core.now);
            self.note_refusal(core, &hyco.name, open.application, FlowCode::Overloaded);
            return refuse(core, FlowCode::Overloaded);
        }
        if hyco.over_quota {
            self.note_refusal(core, &hyco.name, open.application, FlowCode::OverQuota);
            return refuse(core, FlowCode::OverQuota);
        }
        let limits = &plan.snapshot.limits;
        let place = self
            .directory
            .place(&hyco.name, hyco.limits.flows_max, limits.flows_max);
        let Some(place) = place else {
            self.note_refusal(core, &hyco.name, open.application, FlowCode::TooManyFlows);
            return refuse(core, FlowCode::TooManyFlows);
        };
        let chosen = self.choose(core, &hyco.name, None);
        let listeners = &self.directory.listeners;
        let elsewhere = || listeners.worker_with(&hyco.name, core.worker);
        let (agent, to_agent) = match chosen {
            Choice::Stream(agent, to_agent) => (agent, to_agent),
            Choice::Full if !self.waiting.is_full() => {
                let waiter = Waiter::Sender(asked, place);
                return self.waiting.push(core.now, waiter);
            }
            Choice::Full => {
                self.note_refusal(core, &hyco.name, open.application, FlowCode::Overloaded);
                return refuse(core, FlowCode::Overloaded);
            }
            Choice::Nobody => {
                if let Some(worker) = elsewhere() {
                    return say_elsewhere(core, session, stream, worker);
                }
                self.note_refusal(core, &hyco.name, open.application, FlowCode::NoListener);
                return refuse(core, FlowCode::NoListener);
            }
        };
        self.start_joined(core, hyco, asked, place, (agent, to_agent));
    }

    /// A sender's flow begins on this stream of a listener.
    pub(super) fn start_joined<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HybridConnection,
        asked: Asked,
        place: Place,
        (agent, to_agent): (SessionId, StreamId),
    ) {
        let Asked {
            session,
            stream,
            open,
            first,
        } = asked;
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
            live: None,
            _place: place,
        };
        self.counts.entry(hyco.name.clone()).or_default().total += 1;
        self.relief.note_begun(&hyco.name, Source::Sender(session));
        let frame = data.open_frame();
        let held = self.opens_alone(core, &hyco.name, agent);
        let ends = ((session, stream), (agent, to_agent));
        let key = core.join(data, ends.0, ends.1, frame, (first, held));
        if held {
            self.held_back
                .entry(agent)
                .or_default()
                .push(Key::Join(key));
        }
        let live = core.joins.count_of_session(session);
        let most = self.plan.snapshot.limits.flows_per_session_max;
        self.peers.make_room(&mut core.quic, session, live, most);
        self.opening
            .push_back((core.now + OPEN_DEADLINE, Key::Join(key)));
    }

    /// An agent refused a join: tried once elsewhere, then the sender is told.
    pub(super) fn join_refused<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        key: JoinKey,
        code: FlowCode,
    ) {
        let Some(join) = core.joins.get(key) else {
            return;
        };
        self.note(core.now, &join.data, Some(code));
        let opening = join.data.opening.as_deref();
        let first_time = opening.is_some_and(|opening| opening.refused_by.is_none());
        if code.is_refusal() && first_time && self.join_elsewhere(core, key) {
            return;
        }
        core.fail_join(key, JoinEnd::Said(Toward::Agent, code));
    }

    fn join_elsewhere<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: JoinKey) -> bool {
        let Some(join) = core.joins.get(key) else {
            return false;
        };
        let opening = join.data.opening.as_deref();
        let (name, asked) = (
            join.data.hyco.clone(),
            opening.and_then(|opening| opening.asked),
        );
        let Choice::Stream(session, stream) = self.choose(core, &name, asked) else {
            return false;
        };
        let now_asked = self.peers.instance(session);
        let Some(join) = core.joins.get_mut(key) else {
            return false;
        };
        join.data.opening = Some(Box::new(Opening {
            refused_by: asked,
            asked: now_asked,
            asked_at: Some(core.now),
        }));
        debug!(hyco = %name, flow = join.data.id.0, "tried elsewhere");
        let open = join.data.open_frame();
        core.rejoin(key, (session, stream), open);
        true
    }

    /// The joins among what [`Self::rescue`] is about.
    pub(super) fn rescue_joined<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        session: SessionId,
    ) {
        for key in core.joins.of_session(session) {
            let untouched = core
                .joins
                .get(key)
                .is_some_and(|join| join.agent.0 == session && join.is_untouched());
            if untouched && !self.join_elsewhere(core, key) {
                core.release_join(key);
            }
        }
    }

    /// The listener answered, perhaps not whole yet.
    pub(super) fn answered_join<I: Io>(&mut self, core: &mut Core<I, RelayFlow>, key: JoinKey) {
        match core.read_join_answer(key) {
            Head::Partial => {}
            Head::Frame(opened @ Frame::Opened(_), first) => {
                if let Some(join) = core.joins.get_mut(key) {
                    join.data.live = self.note(core.now, &join.data, None);
                    join.data.opening = None;
                }
                core.joined(key, Bytes::from(opened.to_vec()), first);
            }
            Head::Reset(code) => self.join_refused(core, key, code),
            Head::Frame(..) | Head::Broken => self.join_refused(core, key, FlowCode::Protocol),
        }
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
    core.quic
        .say_last(session, stream, Bytes::from(frame.to_vec()));
    core.quic.stop(session, stream, FlowCode::Aborted);
}
