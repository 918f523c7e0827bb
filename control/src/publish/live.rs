//! What control knows of the relay that dialled last, and the way to ask it something. Opens
//! nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use underpass_proto::snapshot::{HycoReport, ProbeReport, UsageReport};
use underpass_proto::{FeedMessage, Generation, HycoName, Report, Status};

use super::publisher::Published;
use crate::files::Fault;
use crate::files::namespace::Namespace;
use crate::usage::{Meter, Sum};

/// From asking a relay for a probe to its answer: a dial by the agent, and the way there and back.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// Probes of one relay that may be under way at once.
const PROBES_MAX: usize = 16;

/// The state of control and its relay, for all who serve it.
pub struct Live {
    published: watch::Receiver<Published>,
    meter: Arc<Meter>,
    view: Mutex<View>,
    /// Where the REST API is served, or what keeps it from that.
    api: Mutex<Result<SocketAddr, Option<Fault>>>,
    next_probe: AtomicU64,
}

/// What is known of the relay that dialled last.
#[derive(Default)]
pub(super) struct View {
    relay: Option<u64>,
    report: Option<Arc<Report>>,
    applied: Option<Generation>,
    rejected: Option<(Generation, String)>,
    ask: Option<mpsc::Sender<FeedMessage>>,
    probes: HashMap<u64, oneshot::Sender<Option<Box<ProbeReport>>>>,
}

/// Why there is no answer to a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody to ask.
    #[error("no relay is connected to control")]
    NoRelay,
    /// Too many at once.
    #[error("{PROBES_MAX} probes are under way already")]
    Busy,
    /// It was asked.
    #[error("the relay did not answer in {PROBE_DEADLINE:?}")]
    Silent,
}

impl Live {
    pub(super) fn new(published: watch::Receiver<Published>, meter: Arc<Meter>) -> Self {
        Self {
            published,
            meter,
            view: Mutex::default(),
            api: Mutex::new(Err(None)),
            next_probe: AtomicU64::new(1),
        }
    }

    /// What is known where no relay ever dials: for an API by itself.
    #[must_use]
    pub fn alone(namespace: Namespace, meter: Arc<Meter>) -> Self {
        let (_, published) = watch::channel(Published::nothing(namespace));
        Self::new(published, meter)
    }

    /// All that the command line is told.
    #[must_use]
    pub fn status(&self) -> Status {
        let published = self.published.borrow();
        let view = self.view();
        let newest = published.generation;
        let api_fault = self.api().clone().err().flatten();
        Status {
            generation: newest,
            relay: view.report.as_deref().cloned(),
            applied: view.applied,
            rejected: view
                .rejected
                .as_ref()
                .filter(|(generation, _)| *generation == newest)
                .map(|(_, why)| why.clone()),
            faults: published
                .faults
                .iter()
                .chain(api_fault.as_ref())
                .map(Into::into)
                .collect(),
            usage: Some(usage(&published.namespace, &self.meter)),
        }
    }

    /// The relay's last report.
    #[must_use]
    pub fn report(&self) -> Option<Arc<Report>> {
        self.view().report.clone()
    }

    /// What the relay's last report says of one hybrid connection.
    #[must_use]
    pub fn hyco(&self, name: &HycoName) -> Option<HycoReport> {
        let report = self.report()?;
        report.hycos.iter().find(|hyco| hyco.name == *name).cloned()
    }

    /// Whether a relay works by the newest snapshot.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let newest = self.published.borrow().generation;
        self.view().applied == Some(newest)
    }

    /// The namespace that is in force.
    #[must_use]
    pub fn namespace(&self) -> Arc<Namespace> {
        self.published.borrow().namespace.clone()
    }

    /// What is published, and when there is something new.
    pub(crate) fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }

    /// Data use.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Notes where the REST API is served, or what keeps it from that.
    pub(crate) fn set_api(&self, api: Result<SocketAddr, Fault>) {
        *self.api() = api.map_err(Some);
    }

    /// Where the REST API is served.
    #[must_use]
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api().as_ref().ok().copied()
    }

    /// Has every agent of a hybrid connection dial its endpoint, now.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub async fn probe(&self, hyco: &HycoName) -> Result<ProbeReport, ProbeError> {
        let id = self.next_probe.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        let ask = {
            let mut view = self.view();
            // Those that nobody waits for any more.
            view.probes.retain(|_, waiting| !waiting.is_closed());
            if view.probes.len() >= PROBES_MAX {
                return Err(ProbeError::Busy);
            }
            let ask = view.ask.clone().ok_or(ProbeError::NoRelay)?;
            view.probes.insert(id, tell);
            ask
        };
        let hyco = hyco.clone();
        ask.try_send(FeedMessage::Probe { id, hyco })
            .map_err(|_| ProbeError::Busy)?;
        match timeout(PROBE_DEADLINE, told).await {
            Ok(Ok(Some(report))) => Ok(*report),
            Ok(Ok(None) | Err(_)) => Err(ProbeError::NoRelay),
            Err(_) => Err(ProbeError::Silent),
        }
    }

    /// Begins with a relay: what was known of the one before is forgotten. Gives what it is to be
    /// asked.
    pub(super) fn begin(&self, relay: u64) -> mpsc::Receiver<FeedMessage> {
        let (ask, asked) = mpsc::channel(PROBES_MAX);
        *self.view() = View {
            relay: Some(relay),
            ask: Some(ask),
            ..View::default()
        };
        asked
    }

    /// The relay is gone.
    pub(super) fn end(&self, relay: u64) {
        let mut view = self.view();
        if view.relay == Some(relay) {
            *view = View::default();
        }
    }

    pub(super) fn hear_applied(&self, relay: u64, generation: Generation) {
        self.of(relay, |view| {
            view.applied = Some(generation);
            view.rejected = None;
        });
    }

    pub(super) fn hear_rejected(&self, relay: u64, generation: Generation, why: String) {
        self.of(relay, |view| view.rejected = Some((generation, why)));
    }

    /// What a relay carried counts even when another dialled since.
    pub(super) fn hear_report(&self, relay: u64, report: Report) {
        self.meter.count(&report);
        self.of(relay, |view| view.report = Some(Arc::new(report)));
    }

    pub(super) fn hear_probed(&self, relay: u64, id: u64, report: Option<Box<ProbeReport>>) {
        self.of(relay, |view| {
            if let Some(waiting) = view.probes.remove(&id) {
                let _ = waiting.send(report);
            }
        });
    }

    /// Another relay may have dialled since; then this one is on its way out.
    fn of(&self, relay: u64, note: impl FnOnce(&mut View)) {
        let mut view = self.view();
        if view.relay == Some(relay) {
            note(&mut view);
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self) -> MutexGuard<'_, Result<SocketAddr, Option<Fault>>> {
        self.api.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn usage(namespace: &Namespace, meter: &Meter) -> UsageReport {
    let Sum { month, data } = meter.current();
    UsageReport {
        month: month.to_string(),
        bytes_to_endpoint: data.to_endpoint,
        bytes_to_application: data.to_application,
        edition: namespace.quota.edition.to_string(),
        bytes_max: namespace.quota.data_bytes_month(),
        enforced: namespace.quota.enforce_data,
    }
}
