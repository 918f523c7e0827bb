//! The flows of a sender's worker: opened at the relay for each application, followed to the
//! relay's worker that has a listener, and asked for again where nothing can be lost by that.

use std::time::Instant;

use bytes::Bytes;
use tracing::{debug, info};
use underpass_proto::limits::OPEN_DEADLINE;
use underpass_proto::wire::Open;
use underpass_proto::{Ending, FlowCode, FlowId, Frame, HycoName, Side};

use super::{Application, Parked, Place, Sender, SenderFlow};
use crate::core::Core;
use crate::flow::{End, Flow, FlowKey};
use crate::io::{Close, Io};
use crate::link::Link;
use crate::locality;
use crate::log_limit::{LogCause, Permit};
use crate::opening::Head;
use crate::waiting::WAIT_MAX;

impl Sender {
    /// An application connected: its flow is opened at the relay, or it waits for a session.
    pub(super) fn begin<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        application: Application,
    ) {
        let chosen = self.choose(core, &application.hyco, None);
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
        self.next_flow = self.next_flow.wrapping_add(1);
        let Application {
            hyco,
            socket,
            address,
        } = application;
        let data = SenderFlow {
            id: FlowId::of_connection(
                self.next_flow,
                address,
                core.io.local_address(socket),
                locality::here(),
            ),
            hyco,
            application: address,
            endpoint,
            since: core.now,
        };
        let open = data.open_frame();
        let key = core.start_unopened(data, socket, session, stream, open, false);
        self.opening.push_back((core.now + OPEN_DEADLINE, key));
    }

    /// A session with a stream on it: to this worker of the relay, or to the one that has a
    /// listener if that is known, or to any.
    fn choose<I: Io>(
        &self,
        core: &mut Core<I, SenderFlow>,
        hyco: &HycoName,
        at: Option<u8>,
    ) -> Option<Place> {
        let there = |link: &Link| {
            let (session, endpoint) = link.session_for(&core.quic, core.now, hyco)?;
            Some((session, endpoint.clone()))
        };
        let at_worker = |worker| {
            let mut links = self.links.iter().filter(|link| link.relay_worker == worker);
            links.find_map(there)
        };
        let (session, endpoint) = match (at, self.elsewhere.get(hyco)) {
            (Some(worker), _) => at_worker(worker)?,
            (None, Some(&worker)) => {
                at_worker(worker).or_else(|| self.links.iter().find_map(there))?
            }
            (None, None) => self.links.iter().find_map(there)?,
        };
        let stream = core.quic.open(session)?;
        Some((session, stream, endpoint))
    }

    /// The relay answered, perhaps not whole yet.
    pub(super) fn answered<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, key: FlowKey) {
        match core.read_answer(key) {
            Head::Partial => {}
            Head::Frame(Frame::Opened(_), first) => core.opened(key, first),
            Head::Frame(Frame::Elsewhere(there), _) => self.follow(core, key, there.worker),
            Head::Reset(code) => {
                let end = End::There(code);
                match self.may_find_a_listener(core, key) {
                    Some(until) if code == FlowCode::NoListener => {
                        self.park(core, key, None, until, end);
                    }
                    _ => core.fail(key, end),
                }
            }
            Head::Frame(..) | Head::Broken => core.fail(key, End::There(FlowCode::Protocol)),
        }
    }

    /// The relay named a worker that has a listener: the flow goes on there, when there is a
    /// session with room for it.
    fn follow<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, key: FlowKey, worker: u8) {
        let Some(flow) = core.flows.get(key) else {
            return;
        };
        let hyco = flow.data.hyco.clone();
        debug!(%hyco, flow = flow.data.id.0, worker, "the relay's listener is on another worker");
        let end = End::There(FlowCode::NoListener);
        if !self.links.ensure(&hyco, worker, core.now) {
            return core.fail(key, end);
        }
        self.elsewhere.insert(hyco, worker);
        self.park(core, key, Some(worker), core.now + WAIT_MAX, end);
        self.resume(core);
        self.keep_links(core);
    }

    /// Takes a flow from its stream: it is asked for again as soon as that may help.
    pub(super) fn park<I: Io>(
        &mut self,
        core: &mut Core<I, SenderFlow>,
        flow: FlowKey,
        at: Option<u8>,
        until: Instant,
        end: End,
    ) {
        core.detach(flow);
        self.parked.push(Parked {
            flow,
            at,
            until,
            end,
        });
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
    pub(super) fn resume<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
        for parked in std::mem::take(&mut self.parked) {
            self.ask_again(core, parked);
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let served = waiting.served(|waits| self.choose(core, &waits.hyco, None));
        self.waiting = waiting;
        for (application, place) in served {
            self.start(core, application, place);
        }
    }

    /// Asks for a flow again, keeps it parked, or gives it up.
    fn ask_again<I: Io>(&mut self, core: &mut Core<I, SenderFlow>, parked: Parked) {
        let Some(flow) = core.flows.get(parked.flow) else {
            return;
        };
        if parked.until <= core.now {
            return core.fail(parked.flow, parked.end);
        }
        let hyco = flow.data.hyco.clone();
        let Some((session, stream, endpoint)) = self.choose(core, &hyco, parked.at) else {
            return self.parked.push(parked);
        };
        if let Some(flow) = core.flows.get_mut(parked.flow) {
            flow.data.endpoint = endpoint;
            let open = flow.data.open_frame();
            core.reroute(parked.flow, session, stream, open);
        }
    }

    /// Applications and flows that waited for too long.
    pub(super) fn expire<I: Io>(&mut self, core: &mut Core<I, SenderFlow>) {
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

/// Refuses an application that no flow was begun for.
pub(super) fn turn_away<I: Io>(
    core: &mut Core<I, SenderFlow>,
    application: &Application,
    code: FlowCode,
) {
    core.io.close(application.socket, Close::Reset);
    let ending = Ending::said(code, Side::Sender);
    let (cause, source) = (
        LogCause::new("flow refused", code),
        application.address.ip(),
    );
    let (log, hyco) = (&mut core.log, &application.hyco);
    if let Some(Permit { left_out }) = log.permits(core.now, cause, Some(hyco), Some(source)) {
        info!(%hyco, application = %application.address, %ending, left_out, "flow refused");
    }
}
