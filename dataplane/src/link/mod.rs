//! One worker's way to one worker of one relay: sessions are dialled, proven, watched, and renewed
//! when they fall silent. Agents and senders dial alike; what flows on a session is theirs. Moves
//! no byte of a flow.

pub(crate) mod links;
mod session;
pub(crate) mod supervise;
pub(crate) mod wants;
mod words;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::StreamId;
use rand::{Rng, RngExt};
use rustc_hash::FxHashMap;
use tracing::warn;
use underpass_proto::limits::{IDLE_MAX, PING_AFTER};
use underpass_proto::wire::{Hello, KeepAlive, Probe, RefusedCode, VERSION};
use underpass_proto::{Endpoint, Frame, HycoName, Role, SessionCode};

use self::session::{Session, State};
use self::wants::{Identity, Relay};
pub(crate) use self::words::{WRONG_CERTIFICATE, words};
use crate::addresses::{ATTEMPT_EVERY, arranged};
use crate::control_stream::ControlStream;
use crate::log_limit::{LogCause, LogLimit, Permit};
use crate::quic::{Driver, SessionId, Side, cid, config};

/// A new attempt is made beside one that got no answer for this long. An answer of any kind is one:
/// a relay that is busy tells those apart from which it has heard, and a second attempt would only
/// be more of what it is busy with.
const RENEW_AFTER: Duration = Duration::from_secs(1);

/// Attempts under way at once at each address: as many as are begun while one is given time for an
/// answer.
const ATTEMPTS_MAX: usize = 3;

/// An attempt that got no answer for this long is given up; also how long an answer may be the last
/// one before another attempt is made.
const UNANSWERED_MAX: Duration = Duration::from_secs(3);

/// An attempt that was answered and is not done by then is given up: the wait at a busy relay, its
/// handshake, and its Welcome.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);

/// From saying that no more flows are wanted on a session to closing it: the relay has heard it by
/// then, and what it opened before has come. After an outage what was lost is sent again only after
/// a pause as long as the outage, so no less than a session survives.
const RETIRE_AFTER: Duration = IDLE_MAX;

/// For this long after a loss rounds of attempts are close together.
const EAGER_FOR: Duration = Duration::from_secs(60);

/// Longest pause between rounds: while eager, and after.
const PAUSE_EAGER: Duration = Duration::from_secs(1);
const PAUSE_LATER: Duration = Duration::from_secs(30);

/// First pause; doubled with each round of attempts.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

const _: () = assert!(RENEW_AFTER.as_millis() * ATTEMPTS_MAX as u128 >= UNANSWERED_MAX.as_millis());

/// Why an attempt is given up that nobody said anything to.
const NO_ANSWER: &str = "no answer";

/// The same where there is no address to try.
const NOT_FOUND: &str = "its name is not found";

/// While no session is healthy, the relay's name is resolved before an attempt, at most this often.
const RESOLVE_EVERY: Duration = Duration::from_secs(2);

/// How often one cause of a failure is logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Causes that are told apart: a relay that fails in turn in more ways than these is logged no more
/// often for it.
const CAUSES_MAX: usize = 8;

/// The way to one worker of one relay.
pub(crate) struct Link {
    /// Names it on its worker; never reused.
    pub(crate) number: u64,
    /// The relay, and what is asked for there.
    pub(crate) relay: Arc<Relay>,
    /// The relay's worker that is asked for.
    pub(crate) relay_worker: u8,
    identity: Identity,
    sessions: FxHashMap<SessionId, Session>,
    /// In the order in which they are tried. The resolver gives eight at most.
    addresses: Vec<SocketAddr>,
    /// The address of the last session that was welcomed.
    worked: Option<IpAddr>,
    /// A resolution is under way.
    pub(crate) resolving: bool,
    /// When one last ended, with or without an address.
    resolved: Option<Instant>,
    /// Which of them is tried next. A round of attempts begins at the first one.
    next_address: usize,
    /// Rounds since a session was welcomed or lost.
    rounds: u32,
    alone_since: Instant,
    next_attempt: Instant,
    /// Causes of failures that were logged since the last session, and when.
    logged: Vec<(String, Instant)>,
    /// Which lines about this relay are written: one that is hostile hides nothing of another.
    pub(super) log: LogLimit,
}

/// What a worker of a process that dials is told: by its supervisor, by the resolver, and (`M`)
/// what only this kind of process is told.
pub(crate) enum Message<P, M> {
    /// Go by this from now on.
    Plan(Arc<P>),
    /// Addresses of the relay of the link of this number.
    RelayFound(u64, Vec<SocketAddr>),
    /// Take no new flows; reset those that live at this time.
    Drain(Instant),
    /// End now.
    Stop,
    /// What this kind of process is told.
    Own(M),
}

/// What a worker has to act on after a session was heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Both proofs hold.
    Registered(HycoName, Endpoint),
    /// The relay refused, and nothing stands.
    Refused(HycoName, RefusedCode),
    /// A registration is over.
    Ended(HycoName),
    /// The relay wants to know whether an endpoint is there.
    Probe(Probe),
    /// The session is of no more use.
    Broken(SessionCode, String),
}

impl Link {
    /// To this worker of this relay.
    #[must_use]
    pub(crate) fn new(
        number: u64,
        relay: Arc<Relay>,
        relay_worker: u8,
        identity: Identity,
        now: Instant,
    ) -> Self {
        Self {
            number,
            relay,
            relay_worker,
            identity,
            sessions: FxHashMap::default(),
            addresses: Vec::new(),
            worked: None,
            resolving: false,
            resolved: None,
            next_address: 0,
            rounds: 0,
            alone_since: now,
            next_attempt: now,
            logged: Vec::new(),
            log: LogLimit::default(),
        }
    }

    /// Whether this session is one of this link.
    #[must_use]
    pub(crate) fn has(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// Whether it has no session and wants none.
    #[must_use]
    pub(crate) fn is_over(&self) -> bool {
        self.relay.wants.is_empty() && self.sessions.is_empty()
    }

    /// What is wanted of the relay is another list now.
    pub(crate) fn adopt(&mut self, quic: &mut Driver, relay: Arc<Relay>, rng: &mut impl Rng) {
        self.relay = relay;
        for (&id, session) in &mut self.sessions {
            session.adopt(quic, &self.relay, id, rng);
        }
    }

    /// The relay's addresses, newly resolved. A name that is not found just now leaves what is
    /// known; others than before are tried at once.
    pub(crate) fn found(&mut self, now: Instant, addresses: Vec<SocketAddr>) {
        self.resolving = false;
        self.resolved = Some(now);
        let is_same = addresses.len() == self.addresses.len()
            && addresses.iter().all(|it| self.addresses.contains(it));
        if addresses.is_empty() || is_same {
            return;
        }
        self.addresses = arranged(addresses, self.worked);
        self.next_address = 0;
        self.next_attempt = self.next_attempt.min(now);
    }

    /// Whether there is no address yet, and one may come.
    #[must_use]
    pub(crate) fn awaits_address(&self) -> bool {
        self.resolving && self.addresses.is_empty()
    }

    /// Whether a session is to be dialled now: none is well, and the pause is over. A worker of the
    /// relay is dialled once the relay is known to have it; a sender, each of whose workers takes
    /// applications in, dials another one where it has not.
    #[must_use]
    pub(crate) fn wants_session(&self, quic: &Driver, now: Instant) -> bool {
        let there = self.relay_worker < self.relay.workers();
        let any = self.identity.role == Role::Sender && self.relay.is_known();
        let wanted = (there || any) && !self.relay.wants.is_empty();
        let well = self
            .sessions
            .iter()
            .any(|(&id, session)| session.is_well(quic, id, now));
        wanted && !well && now >= self.next_attempt && self.may_try(quic, now)
    }

    /// Whether another attempt is of use: few are under way, and none of them is being answered.
    fn may_try(&self, quic: &Driver, now: Instant) -> bool {
        let under_way = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.is_welcomed());
        let (mut count, mut answered) = (0, false);
        for (&id, _) in under_way {
            count += 1;
            answered |= quic.is_answering(now, id, UNANSWERED_MAX);
        }
        count < ATTEMPTS_MAX * self.addresses.len().max(1) && !answered
    }

    /// Whether the relay's name is to be resolved, beside an attempt that goes to what is known: it
    /// may lead elsewhere by now.
    #[must_use]
    pub(crate) fn wants_address(&self, now: Instant) -> bool {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= RESOLVE_EVERY;
        !self.resolving && self.resolved.is_none_or(is_old)
    }

    /// Dials the next address. In a round each address is tried beside those before it; the pause
    /// is between rounds.
    pub(crate) fn dial(&mut self, quic: &mut Driver, now: Instant, rng: &mut impl Rng) {
        let address = self.addresses.get(self.next_address).copied();
        self.next_address += 1;
        if self.next_address < self.addresses.len() {
            self.next_attempt = now + ATTEMPT_EVERY;
        } else {
            self.next_attempt = now + self.pause(now, rng);
            self.next_address = 0;
            self.rounds += 1;
        }
        self.relay_worker %= self.relay.workers();
        let Some(address) = address else {
            return self.tell_failure(now, NOT_FOUND);
        };
        let mtu = quic.mtu_to(address);
        let first = cid::towards(self.relay_worker, rng);
        let dialled = config::client(&self.relay.trust, first, mtu).and_then(|client| {
            let name = self.relay.endpoint.host.to_string();
            let name = name.trim_start_matches('[').trim_end_matches(']');
            quic.connect(now, client, address, name)
                .map_err(|error| error.to_string())
        });
        match dialled {
            Ok(session) => {
                self.sessions.insert(session, Session::new(now));
            }
            Err(why) => self.tell_failure(now, &why),
        }
    }

    /// Exponential with full jitter; an attempt in flight is given its second first.
    fn pause(&self, now: Instant, rng: &mut impl Rng) -> Duration {
        let eager = now.saturating_duration_since(self.alone_since) < EAGER_FOR;
        let longest = if eager { PAUSE_EAGER } else { PAUSE_LATER };
        let grown = PAUSE_FIRST
            .saturating_mul(1 << self.rounds.min(16))
            .min(longest);
        RENEW_AFTER.min(longest) + grown.mul_f64(rng.random::<f64>()) - PAUSE_FIRST.min(grown)
    }

    /// The handshake of a session is done: says Hello.
    pub(crate) fn up(&mut self, quic: &mut Driver, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let (Some(exporter), Some(stream)) = (quic.exporter(id), quic.open(id)) else {
            return;
        };
        session.state = State::Up {
            exporter,
            control: ControlStream::new(stream),
            welcomed: false,
        };
        let hello = Hello {
            version: VERSION,
            role: self.identity.role,
            agent_id: self.identity.agent_id,
            instance: self.identity.instance,
        };
        session.say(quic, id, &Frame::Hello(hello));
        if self.identity.keep_alive != PING_AFTER {
            let frame = KeepAlive::of(self.identity.keep_alive);
            session.say(quic, id, &Frame::KeepAlive(frame));
        }
        if self.identity.check_only {
            session.say(quic, id, &Frame::Check);
            // A relay that does not know Check would give it flows.
            session.say(quic, id, &Frame::Draining);
        }
    }

    /// A session is gone: the next one is dialled at once, the ones after it with pauses.
    pub(crate) fn lost(&mut self, id: SessionId, why: &str, now: Instant) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        if session.is_welcomed() {
            self.relay.pulse(now).alarm(now);
            self.alone_since = now;
            self.rounds = 0;
            self.next_address = 0;
            self.next_attempt = now;
            self.logged.clear();
        }
        if !self.relay.wants.is_empty() {
            self.tell_failure(now, why);
        }
    }

    fn tell_failure(&mut self, now: Instant, why: &str) {
        let is_recent =
            |(_, at): &mut (String, Instant)| now.saturating_duration_since(*at) < TELL_EVERY;
        self.logged.retain_mut(is_recent);
        // A new cause is logged at once: it must not hide behind the one before.
        if self.logged.len() < CAUSES_MAX && self.logged.iter().all(|(known, _)| known != why) {
            self.logged.push((why.to_owned(), now));
            // A relay that takes sessions and drops them at once makes a line each time.
            let cause = LogCause::new("cannot connect to relay; retrying", why);
            if let Some(Permit { left_out }) = self.log.permits(now, cause, None, None) {
                warn!(relay = %self.relay.endpoint, %why, left_out, "cannot connect to relay; retrying");
            }
        }
    }

    /// The control stream may be written again.
    pub(crate) fn writable(&mut self, quic: &mut Driver, id: SessionId) {
        let session = self.sessions.get_mut(&id);
        if let Some(State::Up { control, .. }) = session.map(|session| &mut session.state) {
            control.write(quic, id);
        }
    }

    /// Whether this is the session's control stream.
    #[must_use]
    pub(crate) fn is_control(&self, id: SessionId, stream: StreamId) -> bool {
        let state = self.sessions.get(&id).map(|session| &session.state);
        matches!(state, Some(State::Up { control, .. }) if control.stream == stream)
    }

    /// Reads and answers what the relay says.
    pub(crate) fn readable(
        &mut self,
        quic: &mut Driver,
        id: SessionId,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Vec<Heard> {
        let relay = Arc::clone(&self.relay);
        let Some(session) = self.sessions.get_mut(&id) else {
            return Vec::new();
        };
        let State::Up { control, .. } = &mut session.state else {
            return Vec::new();
        };
        let frames = match control.read(quic, id) {
            Ok(frames) => frames,
            Err(why) => return vec![Heard::Broken(SessionCode::Protocol, why.to_string())],
        };
        let mut heard = Vec::new();
        for frame in frames {
            match frame {
                Frame::Welcome(welcome) => {
                    session.welcome(quic, &relay, id, welcome.workers, rng);
                    self.worked = quic.path(id).map(|path| path.remote.ip());
                    self.addresses = arranged(std::mem::take(&mut self.addresses), self.worked);
                    self.rounds = 0;
                    self.next_address = 0;
                    self.logged.clear();
                }
                Frame::Registered(said) => {
                    let proven = session.registered(&relay, said, (&mut self.log, now));
                    if matches!(proven, Some(Heard::Registered(..))) {
                        session.share_pulse(quic, &relay, id, now);
                    }
                    heard.extend(proven);
                }
                Frame::Refused(said) => {
                    heard.extend(session.refused(&relay, said, (&mut self.log, now)));
                }
                Frame::Ended(said) => {
                    heard.extend(session.ended(&relay, said, (&mut self.log, now)));
                }
                Frame::Draining => session.draining = true,
                Frame::Codes(codes) => session.flow_code_max = codes.flow_max,
                Frame::Probe(probe) => heard.push(Heard::Probe(probe)),
                _ => heard.push(Heard::Broken(
                    SessionCode::Protocol,
                    "an unexpected frame".into(),
                )),
            }
        }
        heard
    }

    /// Attempts that are of no use any more, and are forgotten: nothing is wanted, a session is
    /// well, or another attempt was answered.
    pub(crate) fn take_needless(&mut self, quic: &Driver, now: Instant) -> Vec<SessionId> {
        let answering = |id| quic.is_answering(now, id, UNANSWERED_MAX);
        let (mut well, mut answered) = (false, false);
        for (&id, session) in &self.sessions {
            well |= session.is_well(quic, id, now);
            answered |= !session.is_welcomed() && answering(id);
        }
        let needless_all = well || self.relay.wants.is_empty();
        let needless = |&id: &SessionId, session: &mut Session| {
            let is_worse = answered && !answering(id);
            !session.is_welcomed() && (needless_all || is_worse)
        };
        self.sessions
            .extract_if(needless)
            .map(|(id, _)| id)
            .collect()
    }

    /// Says on sessions that a later one took the place of that no more flows are wanted on them:
    /// what the relay opens meanwhile is still served. A later one takes the place once all that
    /// stands on the earlier stands on it, too.
    pub(crate) fn retire(&mut self, quic: &mut Driver, now: Instant) {
        let newest = self.newest_well(quic, now);
        let Some(newest) = newest.and_then(|(id, _)| self.sessions.get(&id)) else {
            return;
        };
        let is_replaced = |(_, session): &(&SessionId, &Session)| {
            let earlier = session.is_welcomed() && session.since < newest.since;
            earlier && session.retired.is_none() && session.stands_on(newest)
        };
        let replaced = self.sessions.iter().filter(is_replaced);
        for id in replaced.map(|(&id, _)| id).collect::<Vec<_>>() {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.retired = Some(now);
                session.say(quic, id, &Frame::Draining);
            }
        }
    }

    fn newest_well(&self, quic: &Driver, now: Instant) -> Option<(SessionId, Instant)> {
        self.sessions
            .iter()
            .filter(|(id, session)| session.is_well(quic, **id, now))
            .max_by_key(|(_, session)| session.since)
            .map(|(&id, session)| (id, session.since))
    }

    /// Sessions that are given up: without an answer, no longer wanted, or spare ones that a later
    /// one took the place of.
    pub(crate) fn stale(
        &mut self,
        quic: &Driver,
        now: Instant,
        flows: impl Fn(SessionId) -> usize,
    ) -> Vec<(SessionId, String)> {
        let newest_well = self.newest_well(quic, now);
        let unwanted = self.relay.wants.is_empty();
        let stale = |(&id, session): (&SessionId, &Session)| {
            let age = now.saturating_duration_since(session.since);
            if !session.is_welcomed() {
                let answering = quic.is_answering(now, id, UNANSWERED_MAX);
                let most = if answering {
                    ATTEMPT_MAX
                } else {
                    UNANSWERED_MAX
                };
                return (age > most).then(|| (id, NO_ANSWER.to_string()));
            }
            if quic.is_dead(now, id) {
                return Some((id, NO_ANSWER.to_string()));
            }
            if unwanted && flows(id) == 0 {
                return Some((id, "nothing is asked for there any more".to_string()));
            }
            let (_, since) = newest_well?;
            let retired = session.retired?;
            let over = now.saturating_duration_since(retired) >= RETIRE_AFTER;
            let spare = over && session.since < since && flows(id) == 0;
            spare.then(|| (id, "a newer session took its place".to_string()))
        };
        self.sessions.iter().filter_map(stale).collect()
    }

    /// Gives the relay signs of life, and asks for its own.
    pub(crate) fn keep_alive(&self, quic: &mut Driver, now: Instant) {
        let welcomed = |(_, session): &(&SessionId, &Session)| session.is_welcomed();
        for (&id, _) in self.sessions.iter().filter(welcomed) {
            quic.keep_alive(now, id, Side::Dialled, self.identity.keep_alive);
        }
    }

    /// Asks again for registrations that were refused a while ago.
    pub(crate) fn ask_again(&mut self, quic: &mut Driver, now: Instant, rng: &mut impl Rng) {
        for (&id, session) in &mut self.sessions {
            for name in session.due(now) {
                if let Some(want) = self.relay.want(&name) {
                    session.register(quic, id, want, rng);
                }
            }
        }
    }

    /// Says something on every session.
    pub(crate) fn say_to_all(&mut self, quic: &mut Driver, frame: &Frame) {
        for (&id, session) in &mut self.sessions {
            session.say(quic, id, frame);
        }
    }

    /// Says something on one session.
    pub(crate) fn say(&mut self, quic: &mut Driver, id: SessionId, frame: &Frame) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.say(quic, id, frame);
        }
    }

    /// The highest flow code that the relay knows, if this session is one of this link.
    #[must_use]
    pub(crate) fn flow_code_max(&self, id: SessionId) -> Option<u8> {
        self.sessions.get(&id).map(|session| session.flow_code_max)
    }

    /// What this hybrid connection leads to, where both proofs hold on this session.
    #[must_use]
    pub(crate) fn registered(&self, id: SessionId, hyco: &HycoName) -> Option<&Endpoint> {
        self.sessions.get(&id)?.endpoint(hyco)
    }

    /// All that is registered on any session.
    #[cfg(test)]
    pub(crate) fn names_registered(&self) -> Vec<HycoName> {
        let sessions = self.sessions.values();
        sessions.flat_map(Session::standing).cloned().collect()
    }

    /// Whether this hybrid connection was asked for on this session, nothing stands, and the relay
    /// has not answered yet.
    #[must_use]
    pub(crate) fn is_awaited(&self, id: SessionId, hyco: &HycoName) -> bool {
        self.sessions
            .get(&id)
            .is_some_and(|session| session.is_awaited(hyco))
    }

    /// The best session for a new flow: one that is well and newest, else the newest; registered in
    /// any case.
    #[must_use]
    pub(crate) fn session_for(
        &self,
        quic: &Driver,
        now: Instant,
        hyco: &HycoName,
    ) -> Option<(SessionId, &Endpoint)> {
        let registered = self.sessions.iter().filter_map(|(&id, session)| {
            let endpoint = session.endpoint(hyco)?;
            Some((session.is_well(quic, id, now), session.since, id, endpoint))
        });
        registered
            .max_by_key(|(well, since, ..)| (*well, *since))
            .map(|(_, _, id, endpoint)| (id, endpoint))
    }

    /// Since when there is this session, if it is one of this link.
    #[must_use]
    pub(crate) fn since(&self, session: SessionId) -> Option<Instant> {
        self.sessions.get(&session).map(|session| session.since)
    }

    /// All sessions.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests;
