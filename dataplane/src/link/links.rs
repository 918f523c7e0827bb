//! All links of one worker: kept up, renewed, and brought in line with a new configuration. Tells
//! the supervisor what became of them. Knows no sockets but through the driver of sessions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use quinn_proto::StreamId;
use rand::rngs::StdRng;
use underpass_proto::wire::RefusedCode;
use underpass_proto::{AllowList, Endpoint, FlowCode, Frame, HycoName, SessionCode};

use super::supervise::Said;
use super::wants::{Identity, Relay};
use super::{Heard, Link, Message};
use crate::core::Core;
use crate::io::Io;
use crate::quic::{Driver, SessionId};
use crate::resolve::{self, Answer, Asked, Asker, Resolver};
use crate::worker::Start;

/// A relay's name that found no free thread for this long counts as not found.
pub(super) const RESOLVE_MAX: Duration = Duration::from_secs(10);

/// Brings the addresses of the relay of the link of this number to the worker.
type Bring = Arc<dyn Fn(u64, Vec<SocketAddr>) + Send + Sync>;

/// The links of a worker.
pub(crate) struct Links {
    links: Vec<Link>,
    identity: Identity,
    /// This worker, which dials the relay's worker of the same number.
    worker: u8,
    resolver: Resolver,
    bring: Bring,
    say: Sender<Said>,
    next_number: u64,
    rng: StdRng,
}

impl Links {
    /// One to each relay. What the resolver finds comes to the worker by its handle, what the
    /// supervisor should know goes to `say`.
    #[must_use]
    pub(crate) fn new<P, M>(
        relays: &[Arc<Relay>],
        worker: u8,
        identity: Identity,
        resolver: Resolver,
        start: Start<Message<P, M>>,
        say: Sender<Said>,
    ) -> Self
    where
        Message<P, M>: Send + 'static,
    {
        let Start { handle, now, rng } = start;
        let bring = move |number, addresses| {
            let _ = handle.send(Message::RelayFound(number, addresses));
        };
        let mut links = Self {
            links: Vec::new(),
            identity,
            worker,
            resolver,
            bring: Arc::new(bring),
            say,
            next_number: 0,
            rng,
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
            link.adopt(quic, relay, &mut self.rng);
        }
        for relay in relays {
            if !self.links.iter().any(|link| link.relay.is_same(relay)) {
                self.add(Arc::clone(relay), self.worker, now);
            }
        }
    }

    /// The link of a session.
    fn of(&mut self, session: SessionId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.has(session))
    }

    /// The relay that this session is to.
    #[must_use]
    pub(crate) fn relay_of(&self, session: SessionId) -> Option<&Endpoint> {
        let link = self.links.iter().find(|link| link.has(session));
        link.map(|link| &link.relay.endpoint)
    }

    /// This code, or the one that comes nearest where the relay of this session does not know it.
    #[must_use]
    pub(crate) fn known_code(&self, session: SessionId, code: FlowCode) -> FlowCode {
        let max = self
            .links
            .iter()
            .find_map(|link| link.flow_code_max(session));
        code.known_up_to(max.unwrap_or(FlowCode::MAX_UNANNOUNCED))
    }

    /// Makes sure that there is a link to this worker of the relay where the hybrid connection is
    /// asked for. False: the relay has no such worker.
    #[must_use]
    pub(crate) fn ensure(&mut self, hyco: &HycoName, relay_worker: u8, now: Instant) -> bool {
        let asks = |link: &&Link| link.relay.want(hyco).is_some();
        let Some(link) = self.links.iter().find(asks) else {
            return false;
        };
        let relay = Arc::clone(&link.relay);
        if relay_worker >= relay.workers() {
            return false;
        }
        let mut asking = self.links.iter().filter(asks);
        if asking.all(|link| link.relay_worker != relay_worker) {
            self.add(relay, relay_worker, now);
        }
        true
    }

    /// Every link.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    /// The relay's worker that this session is on.
    #[must_use]
    pub(crate) fn relay_worker(&mut self, session: SessionId) -> Option<u8> {
        self.of(session).map(|link| link.relay_worker)
    }

    /// Says something on one session.
    pub(crate) fn say(&mut self, quic: &mut Driver, session: SessionId, frame: &Frame) {
        if let Some(link) = self.of(session) {
            link.say(quic, session, frame);
        }
    }

    /// Says on every session that no new flows are wanted.
    pub(crate) fn say_draining(&mut self, quic: &mut Driver) {
        for link in &mut self.links {
            link.say_to_all(quic, &Frame::Draining);
        }
    }

    /// The handshake of a session is done.
    pub(crate) fn up(&mut self, quic: &mut Driver, session: SessionId) {
        if let Some(link) = self.of(session) {
            link.up(quic, session);
        }
    }

    /// A session is gone.
    pub(crate) fn lost(&mut self, session: SessionId, why: &str, now: Instant) {
        let Some(link) = self.of(session) else {
            return;
        };
        link.lost(session, why, now);
        let said = Said::Lost {
            relay: link.relay.endpoint.clone(),
            why: why.to_string(),
            has_one_address: link.addresses.len() < 2,
        };
        let _ = self.say.try_send(said);
    }

    /// A stream may be read: what the relay said, where it is a control stream.
    pub(crate) fn readable(
        &mut self,
        quic: &mut Driver,
        session: SessionId,
        stream: StreamId,
        now: Instant,
    ) -> Vec<Heard> {
        let mut links = self.links.iter_mut();
        match links.find(|link| link.has(session)) {
            Some(link) if link.is_control(session, stream) => {
                link.readable(quic, session, now, &mut self.rng)
            }
            _ => Vec::new(),
        }
    }

    /// A control stream may be written again.
    pub(crate) fn writable(&mut self, quic: &mut Driver, session: SessionId) {
        if let Some(link) = self.of(session) {
            link.writable(quic, session);
        }
    }

    /// Tells the supervisor that a registration stands.
    pub(crate) fn tell_registered(
        &self,
        quic: &Driver,
        session: SessionId,
        hyco: HycoName,
        endpoint: Endpoint,
    ) {
        let Some(relay) = self.relay_of(session).cloned() else {
            return;
        };
        let path = quic.path(session);
        let _ = self.say.try_send(Said::Registered {
            relay,
            hyco,
            endpoint,
            rtt: path.map_or(Duration::ZERO, |path| path.rtt),
        });
    }

    /// Tells the supervisor that a registration was refused.
    pub(crate) fn report_refused(&self, session: SessionId, hyco: HycoName, code: RefusedCode) {
        let Some(relay) = self.relay_of(session).cloned() else {
            return;
        };
        let _ = self.say.try_send(Said::Refused { relay, hyco, code });
    }

    /// What this hybrid connection leads to, where both proofs hold on this session.
    #[must_use]
    pub(crate) fn registered(&self, session: SessionId, hyco: &HycoName) -> Option<&Endpoint> {
        self.links
            .iter()
            .find_map(|link| link.registered(session, hyco))
    }

    /// What may be dialled for this hybrid connection, by its own connection string. `None`: it is
    /// not wanted on this session.
    #[must_use]
    pub(crate) fn allow(&self, session: SessionId, hyco: &HycoName) -> Option<&AllowList> {
        let link = self.links.iter().find(|link| link.has(session))?;
        Some(&link.relay.want(hyco)?.allow)
    }

    /// Whether this hybrid connection was asked for on this session, nothing stands, and the relay
    /// has not answered yet.
    #[must_use]
    pub(crate) fn is_awaited(&self, session: SessionId, hyco: &HycoName) -> bool {
        self.links.iter().any(|link| link.is_awaited(session, hyco))
    }

    /// Closes sessions that are of no more use, and carry no flow nor what is to become one
    /// (`begins`). Which, and why; each is to be followed by [`Self::lost`].
    #[must_use]
    pub(crate) fn close_stale<I: Io, D>(
        &mut self,
        core: &mut Core<I, D>,
        begins: impl Fn(SessionId) -> usize,
    ) -> Vec<(SessionId, String)> {
        for link in &mut self.links {
            for session in link.take_needless(&core.quic, core.now) {
                core.quic.close(core.now, session, SessionCode::Done);
            }
            link.retire(&mut core.quic, core.now);
        }
        let flows = |id| core.flows.count_of_session(id) + begins(id);
        let stale = |link: &mut Link| link.stale(&core.quic, core.now, flows);
        let stale: Vec<_> = self.links.iter_mut().flat_map(stale).collect();
        for (session, _) in &stale {
            core.quic.close(core.now, *session, SessionCode::Done);
        }
        self.links.retain(|link| !link.is_over());
        stale
    }

    /// Closes every session.
    pub(crate) fn close_all<I: Io, D>(&self, core: &mut Core<I, D>, code: SessionCode) {
        for session in self.links.iter().flat_map(Link::all) {
            core.quic.close(core.now, session, code);
        }
    }

    /// Asks again, resolves and dials where it is time.
    pub(crate) fn keep_up(&mut self, quic: &mut Driver, now: Instant, may_dial: bool) {
        for link in &mut self.links {
            link.log.report(now);
            link.ask_again(quic, now, &mut self.rng);
            link.keep_alive(quic, now);
            if !may_dial || !link.wants_session(quic, now) {
                continue;
            }
            if link.wants_address(now) {
                resolve(link, &self.resolver, &self.bring, now);
            }
            if !link.awaits_address() {
                link.dial(quic, now, &mut self.rng);
            } // Else the answer wakes this worker.
        }
    }

    /// A relay's addresses were resolved.
    pub(crate) fn found(&mut self, now: Instant, number: u64, addresses: Vec<SocketAddr>) {
        if let Some(link) = self.links.iter_mut().find(|link| link.number == number) {
            link.found(now, addresses);
        }
    }
}

fn resolve(link: &mut Link, resolver: &Resolver, bring: &Bring, now: Instant) {
    let endpoint = link.relay.endpoint.clone();
    let port = endpoint.port.get();
    let name = match resolve::name_or_literal(&endpoint) {
        Ok(name) => name,
        Err(literal) => return link.found(now, vec![SocketAddr::new(literal.ip, port)]),
    };
    let addresses = move |answer: Answer| -> Vec<SocketAddr> {
        let found = answer.iter().flat_map(|found| found.iter());
        found.map(|found| SocketAddr::new(found.ip, port)).collect()
    };
    let asker = Asker {
        relay: endpoint.clone(),
        hyco: None,
    };
    let (number, bring) = (link.number, Arc::clone(bring));
    let later = move |answer| bring(number, addresses(answer));
    match resolver.ask(now, name, &asker, now + RESOLVE_MAX, later) {
        Ok(Asked::Known(answer)) => link.found(now, addresses(answer)),
        Ok(Asked::Later) => link.resolving = true,
        Err(_) => {} // Asked for again before the next attempt.
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, bounded};
    use rand::SeedableRng;
    use underpass_proto::{Key, Rule};

    use super::super::wants::{Want, by_relay};
    use super::*;
    use crate::worker::Handle;

    const NAME: &str = "payroll-sql";

    #[test]
    fn another_worker_of_the_relay_is_dialled_once_where_there_is_one() {
        let (mut links, _said) = links();
        let (hyco, now) = (name(NAME), Instant::now());
        assert!(!links.ensure(&name("no-such-name"), 0, now));
        // It has not said yet how many it has.
        assert!(!links.ensure(&hyco, 2, now));
        links.links[0].relay.has_workers(3);
        for _ in 0..2 {
            assert!(links.ensure(&hyco, 2, now));
            let dialled: Vec<_> = links.iter().map(|link| link.relay_worker).collect();
            assert_eq!(dialled, [0, 2]);
        }
        assert!(!links.ensure(&hyco, 3, now));
    }

    #[test]
    fn the_end_of_a_session_that_no_link_has_is_not_told() {
        let (mut links, said) = links();
        links.lost(SessionId::of_test(1), "gone", Instant::now());
        assert!(said.is_empty());
    }

    /// One link, and what its supervisor hears.
    fn links() -> (Links, Receiver<Said>) {
        let want = Want::of_test("relay.test", NAME, &Key::from_random([7; 32]));
        let relays = by_relay(vec![want], Rule::Listen, &[], &[]).expect("a relay");
        let identity = Identity::of_test();
        let start = Start::<Message<(), ()>> {
            handle: Handle::to_inbox().0,
            now: Instant::now(),
            rng: StdRng::seed_from_u64(7),
        };
        let (say, said) = bounded(8);
        let links = Links::new(&relays, 0, identity, Resolver::of_nothing(), start, say);
        (links, said)
    }

    fn name(text: &str) -> HycoName {
        text.parse().expect("a name")
    }
}
