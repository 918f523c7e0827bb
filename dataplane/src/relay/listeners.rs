//! Who listens where, and whether endpoints are reached: how each listener's endpoint was last
//! dialled, by a flow or by a probe, and when it is to be probed next.
//!
//! One book for all workers, touched once per flow and per probe, never per byte. Real flows count
//! first: a probe is due only where no flow says more, and few are sent in a row without a flow
//! between, because some services lock a host out that connects and says nothing. Knows no sockets;
//! time and chance are arguments.

mod due;
mod thrift;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use underpass_proto::{AgentId, Endpoint, FlowCode, HybridConnection, HycoName, Instance};

use self::due::{Due, retry};
pub(crate) use self::thrift::{Live, PROBES_ASKED_MAX, Probing};
use self::thrift::{PROBES_JOINED_MAX, Spent};
use super::plan::Plan;

/// A moment, for reckoning and for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// For reckoning.
    pub(crate) now: Instant,
    /// For people, milliseconds since 1970.
    pub(crate) unix_ms: u64,
}

/// How an endpoint was dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dial {
    /// Why it was not reached; `None`: it was.
    pub(crate) failed: Option<FlowCode>,
    /// How long that took.
    pub(crate) latency: Duration,
    /// By a flow, or by a probe.
    pub(crate) by_flow: bool,
}

/// Who listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Who {
    /// Which installation.
    pub(crate) agent_id: AgentId,
    /// Which process of it.
    pub(crate) instance: Instance,
    /// Where it was seen to come from when it registered.
    pub(crate) remote: SocketAddr,
}

/// A probe to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PendingProbe {
    /// Of which hybrid connection.
    pub(crate) hyco: HycoName,
    /// From which listener.
    pub(crate) instance: Instance,
    /// What to dial.
    pub(crate) endpoint: Endpoint,
}

/// All that the book says of one hybrid connection.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// What it leads to.
    pub(crate) endpoint: Endpoint,
    /// Whether it may be probed.
    pub(crate) probing: Probing,
    /// Who listens.
    pub(crate) listeners: Vec<Seen>,
    /// When the last listener left, and why; `None`: there was none.
    pub(crate) left: Option<(Moment, String)>,
}

/// A listener, as the book knows it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Who it is.
    pub(crate) who: Who,
    /// A worker that has a session of it.
    pub(crate) worker: u8,
    /// How it last dialled the endpoint, and when.
    pub(crate) last: Option<(Dial, Moment)>,
    /// Connections of probes since a flow last reached the endpoint.
    pub(crate) probes: u32,
    /// No probe is due until something changes, and no flow is live.
    pub(crate) rests: bool,
}

/// The book.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pages: Mutex<Pages>,
    /// Listeners whose last dial failed: while there is none, no flow asks which.
    failing: AtomicUsize,
}

#[derive(Debug, Default)]
struct Pages {
    by_name: HashMap<HycoName, Page>,
    due: Due,
    /// Listeners that ever joined.
    joined: u64,
}

#[derive(Debug)]
struct Page {
    endpoint: Endpoint,
    probing: Probing,
    listeners: HashMap<Instance, Listener>,
    spent: Spent,
    left: Option<(Moment, String)>,
}

#[derive(Debug)]
struct Listener {
    who: Who,
    /// Later ones have higher numbers.
    joined: u64,
    sessions_by_worker: BTreeMap<u8, u32>,
    last: Option<(Dial, Moment)>,
    /// Something connected since a flow was found to lead back here. What it connected to may be
    /// the own binding.
    connected_since_loop: bool,
    /// Probes in a row that did not reach the endpoint.
    in_vain: u32,
    /// Probes since a flow last reached the endpoint, less those that did not reach it.
    probes: u32,
    /// One is under way.
    probed_now: bool,
    /// Flows that reached the endpoint and have not ended.
    live: Arc<AtomicU32>,
    /// When the next probe is due, and who sends it; `None`: one is under way, or none may be sent.
    due: Option<(u8, Instant)>,
}

impl Moment {
    /// `now`, with the wall clock's time beside it.
    #[must_use]
    pub(crate) fn at(now: Instant) -> Self {
        Self {
            now,
            unix_ms: super::peers::unix_ms(),
        }
    }
}

impl Book {
    /// A new plan: what it defines anew is probed at once, and what an old endpoint was found to be
    /// is forgotten.
    pub(crate) fn define(&self, now: Instant, plan: &Plan) {
        let mut pages = self.open();
        let Pages { by_name, due, .. } = &mut *pages;
        by_name.retain(|name, page| {
            let stays = plan.hyco(name).is_some();
            if !stays {
                page.listeners
                    .iter_mut()
                    .for_each(|(_, listener)| due.set(name, listener, None));
            }
            stays
        });
        for hyco in &plan.snapshot.hycos {
            let Some(page) = by_name.get_mut(&hyco.name) else {
                by_name.insert(hyco.name.clone(), Page::new(hyco));
                continue;
            };
            let moved = page.endpoint != hyco.endpoint;
            let probing = Probing::of(hyco);
            if !moved && page.probing == probing {
                continue;
            }
            page.endpoint = hyco.endpoint.clone();
            page.probing = probing;
            if moved {
                page.spent.clear();
            }
            for listener in page.listeners.values_mut() {
                // What a probe said is not renewed where none may be sent.
                listener.last = listener
                    .last
                    .take()
                    .filter(|(dial, _)| !moved && (hyco.probe || dial.by_flow));
                listener.in_vain = 0;
                if moved {
                    listener.probes = 0;
                }
                let may = probing.may(listener.probes, PROBES_JOINED_MAX);
                due.set(&hyco.name, listener, may.then_some(now));
            }
        }
        let failing = by_name.values().flat_map(|page| page.listeners.values());
        let failing = failing.filter(|listener| listener.is_failing()).count();
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// A listener registers on a worker, unless that makes more than the definition permits. The
    /// first session of a process is probed at once.
    #[must_use]
    pub(crate) fn join(
        &self,
        now: Instant,
        definition: &HybridConnection,
        who: Who,
        worker: u8,
    ) -> bool {
        let mut pages = self.open();
        let Pages {
            by_name,
            due,
            joined,
        } = &mut *pages;
        let name = &definition.name;
        let Some(page) = by_name.get_mut(name) else {
            return true; // Removed meanwhile: the worker is about to hear of it.
        };
        let known = page.listeners.contains_key(&who.instance);
        if !known && page.listeners.len() >= definition.limits.listeners_max as usize {
            return false;
        }
        let (spent, probing) = (&mut page.spent, page.probing);
        let listener = page.listeners.entry(who.instance).or_insert_with(|| {
            *joined += 1;
            let mut listener = Listener::new(who, *joined);
            listener.probes = spent.take(who.agent_id);
            listener
        });
        *listener.sessions_by_worker.entry(worker).or_default() += 1;
        if !known && probing.may(listener.probes, PROBES_JOINED_MAX) {
            due.set(name, listener, Some(now));
        }
        true
    }

    /// The listeners above a limit that was lowered: the newest ones. Whichever worker asks is told
    /// the same.
    #[must_use]
    pub(crate) fn beyond(&self, name: &HycoName, most: u32) -> Vec<Instance> {
        let pages = self.open();
        let Some(page) = pages.by_name.get(name) else {
            return Vec::new();
        };
        let by_age = |(&instance, listener): (&Instance, &Listener)| (listener.joined, instance);
        let mut by_age: Vec<_> = page.listeners.iter().map(by_age).collect();
        by_age.sort_unstable();
        let newest = by_age.into_iter().skip(most as usize);
        newest.map(|(_, instance)| instance).collect()
    }

    /// Another worker than `but` where somebody listens.
    #[must_use]
    pub(crate) fn worker_with(&self, name: &HycoName, but: u8) -> Option<u8> {
        let pages = self.open();
        let listeners = pages.by_name.get(name)?.listeners.values();
        listeners
            .flat_map(|listener| listener.sessions_by_worker.keys())
            .copied()
            .find(|worker| *worker != but)
    }

    /// A listener's session left a worker.
    pub(crate) fn leave(
        &self,
        moment: Moment,
        name: &HycoName,
        instance: Instance,
        worker: u8,
        why: &str,
    ) {
        let mut pages = self.open();
        let Pages { by_name, due, .. } = &mut *pages;
        let Some(page) = by_name.get_mut(name) else {
            return;
        };
        let Some(listener) = page.listeners.get_mut(&instance) else {
            return;
        };
        if let Some(sessions) = listener.sessions_by_worker.get_mut(&worker) {
            *sessions -= 1;
            if *sessions == 0 {
                listener.sessions_by_worker.remove(&worker);
            }
        }
        if listener.sessions_by_worker.is_empty() {
            self.count(listener.is_failing(), false);
            due.set(name, listener, None);
            page.spent.keep(listener.who.agent_id, listener.probes);
            page.listeners.remove(&instance);
            if page.listeners.is_empty() {
                page.left = Some((moment, why.to_owned()));
            }
        } else if let Some((_, at)) = listener.due {
            // By another worker, if this one has no session any more.
            due.set(name, listener, Some(at));
        }
    }

    /// The probes that a worker has to send now, at most `most`. Each is followed by
    /// [`Self::dialled`] or [`Self::unsaid`].
    #[must_use]
    pub(crate) fn due(
        &self,
        worker: u8,
        now: Instant,
        most: usize,
        rng: &mut impl Rng,
    ) -> Vec<PendingProbe> {
        let mut pages = self.open();
        let Pages { by_name, due, .. } = &mut *pages;
        let mut pending_probes = Vec::new();
        while pending_probes.len() < most
            && let Some((name, instance)) = due.pop(worker, now)
        {
            let Some(page) = by_name.get_mut(&name) else {
                continue;
            };
            let Some(listener) = page.listeners.get_mut(&instance) else {
                continue;
            };
            listener.due = None;
            if listener.has_live_flow() {
                // It says as much as a probe would.
                let later = page.probing.next_idle(0, rng);
                due.set(&name, listener, later.map(|wait| now + wait));
                continue;
            }
            listener.probes = listener.probes.saturating_add(1);
            listener.probed_now = true;
            pending_probes.push(PendingProbe {
                hyco: name,
                instance,
                endpoint: page.endpoint.clone(),
            });
        }
        pending_probes
    }

    /// A probe that a person asked for was sent; [`Self::dialled`] follows where it is answered.
    pub(crate) fn probe_requested(&self, name: &HycoName, instance: Instance) {
        let mut pages = self.open();
        let page = pages.by_name.get_mut(name);
        if let Some(listener) = page.and_then(|page| page.listeners.get_mut(&instance)) {
            listener.probes = listener.probes.saturating_add(1);
        }
    }

    /// A listener dialled `endpoint`. What says nothing about the endpoint is no dial. Answers what
    /// is to be kept while the flow that reached it lives.
    pub(crate) fn dialled(
        &self,
        moment: Moment,
        name: &HycoName,
        instance: Instance,
        endpoint: &Endpoint,
        dial: Dial,
        rng: &mut impl Rng,
    ) -> Option<Live> {
        if !dial.failed.is_none_or(says_of_endpoint) {
            if !dial.by_flow {
                self.unsaid(moment.now, name, instance, rng);
            }
            return None;
        }
        let mut pages = self.open();
        let Pages { by_name, due, .. } = &mut *pages;
        let page = by_name.get_mut(name)?;
        let listener = page
            .listeners
            .get_mut(&instance)
            .filter(|_| page.endpoint == *endpoint)?;
        // One that a person asked for: what it found is not renewed, so it is no health.
        if !dial.by_flow && page.probing == Probing::Off {
            return None;
        }
        if listener.may_loop_still(dial) {
            if dial.by_flow {
                return Some(Live::new(&listener.live));
            }
            listener.probed_now = false;
            let wait = listener.again(rng);
            let wait = page.probing.next_retry(listener.probes, wait);
            due.set(name, listener, wait.map(|wait| moment.now + wait));
            return None;
        }
        let was_failing = listener.is_failing();
        listener.last = Some((dial, moment));
        self.count(was_failing, listener.is_failing());
        listener.count_probe(dial);
        let wait = match (dial.failed, dial.by_flow) {
            (None, _) => page.probing.next_idle(listener.probes, rng),
            // Many flows that fail at once are one failure: the next probe stays where it is.
            (Some(_), true) if was_failing => return None,
            (Some(_), true) => {
                listener.in_vain = 1;
                page.probing.next_retry(listener.probes, retry(1, rng))
            }
            (Some(_), false) => {
                let wait = listener.again(rng);
                page.probing.next_retry(listener.probes, wait)
            }
        };
        due.set(name, listener, wait.map(|wait| moment.now + wait));
        let reached_by_flow = dial.by_flow && dial.failed.is_none();
        reached_by_flow.then(|| Live::new(&listener.live))
    }

    /// A probe came to nothing: it could not be sent, its session was lost, or the answer says
    /// nothing about the endpoint.
    pub(crate) fn unsaid(
        &self,
        now: Instant,
        name: &HycoName,
        instance: Instance,
        rng: &mut impl Rng,
    ) {
        let mut pages = self.open();
        let Pages { by_name, due, .. } = &mut *pages;
        let Some(page) = by_name.get_mut(name) else {
            return;
        };
        if let Some(listener) = page.listeners.get_mut(&instance) {
            listener.probed_now = false;
            let wait = listener.again(rng);
            let wait = page.probing.next_retry(listener.probes, wait);
            due.set(name, listener, wait.map(|wait| now + wait));
        }
    }

    /// The listeners whose last dial failed.
    #[must_use]
    pub(crate) fn failing(&self, name: &HycoName) -> Vec<Instance> {
        if self.failing.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let pages = self.open();
        let listeners = pages.by_name.get(name).map(|page| &page.listeners);
        let failing = |(&instance, listener): (&Instance, &Listener)| {
            listener.is_failing().then_some(instance)
        };
        listeners
            .into_iter()
            .flatten()
            .filter_map(failing)
            .collect()
    }

    /// What the book says of a hybrid connection; `None`: it is not defined. Listeners in the order
    /// of their identifiers.
    #[must_use]
    pub(crate) fn view(&self, name: &HycoName) -> Option<View> {
        let pages = self.open();
        let page = pages.by_name.get(name)?;
        let seen = |listener: &Listener| {
            Some(Seen {
                who: listener.who,
                worker: *listener.sessions_by_worker.keys().next()?,
                last: listener.last,
                probes: listener.probes,
                rests: listener.due.is_none() && !listener.probed_now && !listener.has_live_flow(),
            })
        };
        let mut listeners: Vec<Seen> = page.listeners.values().filter_map(seen).collect();
        listeners.sort_by_key(|seen| (seen.who.agent_id, seen.who.instance));
        Some(View {
            endpoint: page.endpoint.clone(),
            probing: page.probing,
            listeners,
            left: page.left.clone(),
        })
    }

    fn open(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the number of failing listeners; called with the pages open.
    fn count(&self, was: bool, is: bool) {
        match (was, is) {
            (false, true) => self.failing.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.failing.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }
}

impl Page {
    fn new(hyco: &HybridConnection) -> Self {
        Self {
            endpoint: hyco.endpoint.clone(),
            probing: Probing::of(hyco),
            listeners: HashMap::new(),
            spent: Spent::default(),
            left: None,
        }
    }
}

impl Listener {
    fn new(who: Who, joined: u64) -> Self {
        Self {
            who,
            joined,
            sessions_by_worker: BTreeMap::new(),
            last: None,
            connected_since_loop: false,
            in_vain: 0,
            probes: 0,
            probed_now: false,
            live: Arc::default(),
            due: None,
        }
    }

    fn is_failing(&self) -> bool {
        self.last.is_some_and(|(dial, _)| dial.failed.is_some())
    }

    fn has_live_flow(&self) -> bool {
        !self.is_failing() && self.live.load(Ordering::Relaxed) > 0
    }

    /// What a dial says of the probes that were sent.
    fn count_probe(&mut self, dial: Dial) {
        match (dial.failed, dial.by_flow) {
            // A real connection: services that count those that say nothing begin again.
            (None, true) => (self.in_vain, self.probes) = (0, 0),
            (None, false) => (self.in_vain, self.probed_now) = (0, false),
            // It made no connection.
            (Some(_), false) => {
                self.probed_now = false;
                self.probes = self.probes.saturating_sub(1);
            }
            (Some(_), true) => {}
        }
    }

    /// Whether a dial that connected says nothing yet: each connection of a loop is made, and the
    /// loop is found a moment later. Flows of a ring's other members pass here, too, so a flow
    /// decides only where no probe is going to.
    fn may_loop_still(&mut self, dial: Dial) -> bool {
        let looped = matches!(self.last, Some((last, _)) if last.failed == Some(FlowCode::Loop));
        if dial.failed.is_some() || !looped {
            self.connected_since_loop = false;
            return false;
        }
        if dial.by_flow && (self.due.is_some() || self.probed_now) {
            return true;
        }
        !std::mem::replace(&mut self.connected_since_loop, true)
    }

    /// From one more probe in vain to the next.
    fn again(&mut self, rng: &mut impl Rng) -> Duration {
        self.in_vain = self.in_vain.saturating_add(1);
        retry(self.in_vain, rng)
    }
}

/// Whether a refusal tells how the endpoint is. What an agent or relay says of itself does not.
fn says_of_endpoint(code: FlowCode) -> bool {
    matches!(
        code,
        FlowCode::EndpointRefused
            | FlowCode::EndpointTimedOut
            | FlowCode::EndpointUnreachable
            | FlowCode::NameNotFound
            | FlowCode::NotAllowed
            | FlowCode::NoSourcePort
            | FlowCode::NameServerSilent
            | FlowCode::Loop
    )
}

#[cfg(test)]
mod tests;
