//! What flows did, for the log and the report: each flow that ends is counted once, and one that
//! failed says why and whose fault it was.

use std::net::SocketAddr;

use rustc_hash::FxHashMap;
use tracing::{debug, info};
use underpass_proto::snapshot::{Pressure, SessionReport};
use underpass_proto::{Cause, Ending, FlowCode, HycoName, Side};

use super::{Relay, RelayFlow};
use crate::core::Core;
use crate::flow::End;
use crate::io::Io;
use crate::join::{JoinEnd, Toward};
use crate::log_limit::{LogCause, Permit};

/// One worker's share of a report.
#[derive(Debug, Default)]
pub(crate) struct WorkerReport {
    /// Its sessions.
    pub(crate) sessions: Vec<SessionReport>,
    /// What its flows moved, by hybrid connection.
    pub(crate) counts: FxHashMap<HycoName, Counts>,
    /// What it turned away.
    pub(crate) pressure: Pressure,
    /// Whether somebody was refused or ended for want of memory lately.
    pub(crate) overloaded: bool,
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

impl Relay {
    pub(super) fn note_refusal<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        hyco: &HycoName,
        application: SocketAddr,
        code: FlowCode,
    ) {
        let ending = Ending::said(code, Side::Relay);
        if let Some(counts) = self.counts_of(hyco) {
            counts.total += 1;
            counts.failed += 1;
            counts.last_ending = Some(ending.to_string());
        }
        let (cause, source) = (LogCause::new("flow refused", code), application.ip());
        let log = &mut core.log;
        if let Some(Permit { left_out }) = log.permits(core.now, cause, Some(hyco), Some(source)) {
            info!(%hyco, %application, why = %code, left_out, "flow refused");
        }
    }

    /// `moved`: bytes to the endpoint, and to the application.
    pub(super) fn note_end<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        data: &RelayFlow,
        ending: Ending,
        moved: (u64, u64),
    ) {
        let (to_endpoint, to_application) = moved;
        if let Some(counts) = self.counts_of(&data.hyco) {
            counts.to_endpoint += to_endpoint;
            counts.to_application += to_application;
            if ending.cause != Cause::Clean {
                counts.failed += 1;
                counts.last_ending = Some(ending.to_string());
            }
        }
        let ms = core.now.saturating_duration_since(data.since).as_millis();
        match ending.cause {
            Cause::Clean => debug!(
                hyco = %data.hyco, flow = data.id.0, application = %data.application, endpoint = %data.endpoint,
                %ending, first = %ending.side, to_endpoint, to_application, ms, "flow ended"
            ),
            Cause::Code(why) => {
                let (cause, source) = (LogCause::new("flow failed", ending), data.application.ip());
                let log = &mut core.log;
                let permit = log.permits(core.now, cause, Some(&data.hyco), Some(source));
                let Some(Permit { left_out }) = permit else {
                    return;
                };
                info!(
                    hyco = %data.hyco, flow = data.id.0, application = %data.application, endpoint = %data.endpoint,
                    %ending, %why, to_endpoint, to_application, ms, left_out, "flow failed"
                );
            }
        }
    }

    /// The counts of a hybrid connection, while it is defined: those of one that is gone are
    /// forgotten.
    fn counts_of(&mut self, hyco: &HycoName) -> Option<&mut Counts> {
        let defined = self.plan.hyco(hyco).is_some();
        defined.then(|| self.counts.entry(hyco.clone()).or_default())
    }

    fn pressure<I: Io>(&self, core: &Core<I, RelayFlow>) -> Pressure {
        let handshakes = core.quic.handshakes();
        Pressure {
            handshakes_begun: handshakes.begun,
            handshakes_asked: handshakes.asked,
            handshakes_ignored: handshakes.ignored,
            handshakes_unfinished: handshakes.unfinished,
            panics: core.panics + core.quic.panics(),
            ..self.pressure
        }
    }

    /// Names that are gone are forgotten here and not when they go: control forgets what it has
    /// counted of a name with the first report that lacks it.
    pub(super) fn report<I: Io>(&mut self, core: &Core<I, RelayFlow>) -> WorkerReport {
        self.counts.retain(|name, _| self.plan.hyco(name).is_some());
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
            pressure: self.pressure(core),
            overloaded: self.relief.is_overloaded(core.now),
            counts,
            complete: true,
        }
    }
}

/// Lays the end of a flow to the right side, seen from the relay.
pub(super) fn ending(end: End) -> Ending {
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
pub(super) fn joined_ending(end: JoinEnd) -> Ending {
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
