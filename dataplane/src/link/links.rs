//! All links of one worker: kept up, renewed, and brought in line with a new configuration. Knows no sockets but through the driver of sessions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use underpass_proto::{Endpoint, HycoName};

use super::Link;
use super::wants::{Identity, Relay};
use crate::quic::{Driver, SessionId};
use crate::resolve::{self, Found, Resolver};

/// What is called with the addresses of a link's relay.
pub(crate) type Answer = Box<dyn FnOnce(Vec<SocketAddr>) + Send>;

/// The links of a worker.
pub(crate) struct Links {
    links: Vec<Link>,
    identity: Identity,
    /// This worker, which dials the relay's worker of the same number.
    worker: u8,
    resolver: Resolver,
    next_number: u64,
}

impl Links {
    /// One to each relay.
    #[must_use]
    pub(crate) fn new(
        relays: &[Arc<Relay>],
        worker: u8,
        identity: Identity,
        resolver: Resolver,
        now: Instant,
    ) -> Self {
        let mut links = Self {
            links: Vec::new(),
            identity,
            worker,
            resolver,
            next_number: 0,
        };
        for relay in relays {
            links.add(Arc::clone(relay), worker, now);
        }
        links
    }

    fn add(&mut self, relay: Arc<Relay>, relay_worker: u8, now: Instant) -> &mut Link {
        self.next_number += 1;
        let link = Link::new(self.next_number, relay, relay_worker, self.identity, now);
        self.links.push(link);
        let at = self.links.len() - 1;
        &mut self.links[at]
    }

    /// Goes by another list of relays: links to those that are gone end with their last flow.
    pub(crate) fn adopt(&mut self, quic: &mut Driver, relays: &[Arc<Relay>], now: Instant) {
        for link in &mut self.links {
            let same = relays.iter().find(|relay| relay.is_same(&link.relay));
            let relay = same.map_or_else(|| Arc::new(link.relay.without_wants()), Arc::clone);
            link.adopt(quic, relay, &mut rand::rng());
        }
        for relay in relays {
            if !self.links.iter().any(|link| link.relay.is_same(relay)) {
                self.add(Arc::clone(relay), self.worker, now);
            }
        }
    }

    /// The link of a session.
    pub(crate) fn of(&mut self, session: SessionId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.has(session))
    }

    /// The link to another worker of the relay where this hybrid connection is asked for; made if need be.
    pub(crate) fn at_worker(
        &mut self,
        hyco: &HycoName,
        relay_worker: u8,
        now: Instant,
    ) -> Option<&mut Link> {
        let wanted = |link: &&mut Link| link.relay.want(hyco).is_some();
        let there =
            |link: &Link| link.relay.want(hyco).is_some() && link.relay_worker == relay_worker;
        if let Some(at) = self.links.iter().position(there) {
            return Some(&mut self.links[at]);
        }
        let relay = Arc::clone(&self.links.iter_mut().find(wanted)?.relay);
        (relay_worker < relay.workers()).then(|| self.add(relay, relay_worker, now))
    }

    /// Every link.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    /// Every link.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.links.iter_mut()
    }

    /// What this hybrid connection leads to, where both proofs hold on this session.
    #[must_use]
    pub(crate) fn registered(&self, session: SessionId, hyco: &HycoName) -> Option<&Endpoint> {
        self.links
            .iter()
            .find_map(|link| link.registered(session, hyco))
    }

    /// Whether this hybrid connection was asked for on this session, nothing stands, and the relay has not answered yet.
    #[must_use]
    pub(crate) fn is_awaited(&self, session: SessionId, hyco: &HycoName) -> bool {
        self.links.iter().any(|link| link.is_awaited(session, hyco))
    }

    /// Sessions that are to be given up, and why.
    pub(crate) fn stale(
        &mut self,
        quic: &Driver,
        now: Instant,
        flows: impl Fn(SessionId) -> usize,
    ) -> Vec<(SessionId, String)> {
        let stale = |link: &mut Link| link.stale(quic, now, &flows);
        let stale = self.links.iter_mut().flat_map(stale).collect();
        self.links.retain(|link| !link.is_over());
        stale
    }

    /// Asks again, resolves and dials where it is time. `answer` makes the receiver of the addresses for the link of a number.
    pub(crate) fn keep_up(
        &mut self,
        quic: &mut Driver,
        now: Instant,
        may_dial: bool,
        answer: impl Fn(u64) -> Answer,
    ) {
        for link in &mut self.links {
            link.ask_again(quic, now, &mut rand::rng());
            if !may_dial || !link.wants_session(quic, now) {
                continue;
            }
            if link.wants_address() {
                resolve(link, &self.resolver, &answer);
            }
            if !link.resolving {
                link.dial(quic, now, &mut rand::rng());
            } // Else the answer wakes this worker.
        }
    }

    /// A relay's addresses were resolved.
    pub(crate) fn found(&mut self, number: u64, addresses: Vec<SocketAddr>) {
        if let Some(link) = self.links.iter_mut().find(|link| link.number == number) {
            link.found(addresses);
        }
    }

    /// All sessions.
    #[must_use]
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.links.iter().flat_map(Link::all).collect()
    }
}

fn resolve(link: &mut Link, resolver: &Resolver, answer: &impl Fn(u64) -> Answer) {
    let endpoint = link.relay.endpoint.clone();
    let port = endpoint.port.get();
    let addresses = move |found: Vec<Found>| -> Vec<SocketAddr> {
        let address = |found: Found| SocketAddr::new(found.ip, port);
        found.into_iter().map(address).collect()
    };
    if let Some(found) = resolve::literal(&endpoint) {
        return link.found(addresses(found));
    }
    let answer = answer(link.number);
    let asked = resolver.ask(endpoint, move |found| answer(addresses(found)));
    link.resolving = asked.is_ok();
}
