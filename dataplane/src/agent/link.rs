//! One worker's way to one relay: sessions are dialled, proven, watched, and renewed when they fall silent. Moves no byte of a flow.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use quinn_proto::{ConnectionError, StreamId};
use rand::Rng;
use rand::RngExt;
use tracing::{info, warn};
use underpass_proto::limits::{PING_AFTER, SUSPECT_AFTER};
use underpass_proto::proof::{relay_proof, verify};
use underpass_proto::wire::{Hello, Probe, RefusedCode, Registered, VERSION, Welcome};
use underpass_proto::{
    Endpoint, Exporter, Frame, HycoName, Nonce, Register, Role, Rule, SessionCode,
};

use super::{Connect, Plan, Relay};
use crate::control_stream::ControlStream;
use crate::quic::{Driver, SessionId, config};

/// A new attempt is made beside one that got no answer for this long.
const RENEW_AFTER: Duration = Duration::from_secs(1);

/// An attempt that got no answer for this long is given up.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// For this long after a loss attempts are close together.
const EAGER_FOR: Duration = Duration::from_secs(60);

/// Longest pause between attempts: while eager, and after.
const PAUSE_EAGER: Duration = Duration::from_secs(1);
const PAUSE_LATER: Duration = Duration::from_secs(30);

/// First pause; doubled with each attempt.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// Longest pause before a refused registration is asked for again.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);

/// How often one cause of a failure is told.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The way to one relay.
pub(crate) struct Link {
    /// Index among the plan's relays.
    pub(crate) relay: usize,
    worker: u8,
    sessions: HashMap<SessionId, Session>,
    addresses: Vec<SocketAddr>,
    /// A resolution is under way.
    pub(crate) resolving: bool,
    /// A resolution ended, with or without an address, and no attempt was made since.
    resolved: bool,
    next_address: usize,
    attempts: u32,
    alone_since: Instant,
    next_attempt: Instant,
    told: Option<Instant>,
}

struct Session {
    since: Instant,
    state: State,
    draining: bool,
    registrations: HashMap<HycoName, Registration>,
}

enum State {
    Dialling,
    Up {
        exporter: Exporter,
        control: ControlStream,
        welcomed: bool,
    },
}

struct Registration {
    asked: Option<Register>,
    /// Set once both proofs hold.
    endpoint: Option<Endpoint>,
    refusals: u32,
    ask_again: Option<Instant>,
}

/// What a worker has to tell others after a session was heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Both proofs hold.
    Registered(HycoName, Endpoint),
    /// The relay refused.
    Refused(HycoName, RefusedCode),
    /// The relay wants to know whether an endpoint is there.
    Probe(Probe),
    /// The session is of no more use.
    Broken(SessionCode, String),
}

impl Link {
    /// To the plan's relay number `relay`, from worker `worker`.
    #[must_use]
    pub(crate) fn new(relay: usize, worker: u8, now: Instant) -> Self {
        Self {
            relay,
            worker,
            sessions: HashMap::new(),
            addresses: Vec::new(),
            resolving: false,
            resolved: false,
            next_address: 0,
            attempts: 0,
            alone_since: now,
            next_attempt: now,
            told: None,
        }
    }

    /// Whether this session is one of this link.
    #[must_use]
    pub(crate) fn has(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// The relay's addresses, newly resolved.
    pub(crate) fn found(&mut self, addresses: Vec<SocketAddr>) {
        self.resolving = false;
        self.resolved = true;
        if !addresses.is_empty() {
            self.addresses = addresses;
        }
    }

    /// Whether a session is to be dialled now: none is well, and the pause is over. Worker `n` dials once the relay is known to have as many.
    #[must_use]
    pub(crate) fn wants_session(&self, quic: &Driver, relay: &Relay, now: Instant) -> bool {
        let wanted = self.worker < relay.workers.load(Ordering::Relaxed);
        let well = self
            .sessions
            .iter()
            .any(|(&id, session)| session.is_well(quic, id, now));
        wanted && !well && now >= self.next_attempt && !self.resolving
    }

    /// Whether the relay's name is to be resolved before the next attempt: at first, and after attempts without an answer.
    #[must_use]
    pub(crate) fn wants_address(&self) -> bool {
        let unanswered =
            self.attempts > 0 && self.attempts.is_multiple_of(4) && self.sessions.is_empty();
        !self.resolved && (self.addresses.is_empty() || unanswered)
    }

    /// Dials.
    pub(crate) fn dial(
        &mut self,
        quic: &mut Driver,
        relay: &Relay,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        self.next_attempt = now + self.pause(now, rng);
        self.attempts += 1;
        self.resolved = false;
        let Some(&address) = self
            .addresses
            .get(self.next_address % self.addresses.len().max(1))
        else {
            return;
        };
        self.next_address += 1;
        let dialled =
            config::client(&relay.trust, self.worker, quic.mtu_to(address)).and_then(|client| {
                let name = relay.endpoint.host.to_string();
                let name = name.trim_start_matches('[').trim_end_matches(']');
                quic.connect(now, client, address, name)
                    .map_err(|error| error.to_string())
            });
        match dialled {
            Ok(session) => {
                let fresh = Session {
                    since: now,
                    state: State::Dialling,
                    draining: false,
                    registrations: HashMap::new(),
                };
                self.sessions.insert(session, fresh);
            }
            Err(why) => self.tell_failure(relay, now, &why),
        }
    }

    /// Exponential with full jitter; an attempt in flight is given its second first.
    fn pause(&self, now: Instant, rng: &mut impl Rng) -> Duration {
        let eager = now.saturating_duration_since(self.alone_since) < EAGER_FOR;
        let longest = if eager { PAUSE_EAGER } else { PAUSE_LATER };
        let grown = PAUSE_FIRST
            .saturating_mul(1 << self.attempts.min(16))
            .min(longest);
        RENEW_AFTER.min(longest) + grown.mul_f64(rng.random::<f64>()) - PAUSE_FIRST.min(grown)
    }

    /// The handshake of a session is done: says Hello.
    pub(crate) fn up(&mut self, quic: &mut Driver, plan: &Plan, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let (Some(exporter), Some(stream)) = (quic.exporter(id), quic.open(id)) else {
            return;
        };
        let mut control = ControlStream::new(stream);
        let hello = Hello {
            version: VERSION,
            role: Role::Agent,
            agent_id: plan.agent_id,
            instance: plan.instance,
        };
        let _ = control.say(quic, id, &Frame::Hello(hello));
        if plan.check_only {
            let _ = control.say(quic, id, &Frame::Draining);
        }
        session.state = State::Up {
            exporter,
            control,
            welcomed: false,
        };
    }

    /// A session is gone: the next one is dialled at once, the ones after it with pauses.
    pub(crate) fn lost(&mut self, relay: &Relay, id: SessionId, why: &str, now: Instant) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        if matches!(session.state, State::Up { welcomed: true, .. }) {
            self.alone_since = now;
            self.attempts = 0;
            self.next_attempt = now;
            self.told = None;
        }
        self.tell_failure(relay, now, why);
    }

    fn tell_failure(&mut self, relay: &Relay, now: Instant, why: &str) {
        if self
            .told
            .is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY)
        {
            self.told = Some(now);
            warn!(relay = %relay.endpoint, %why, "no session; trying on");
        }
    }

    /// The control stream may be written again.
    pub(crate) fn writable(&mut self, quic: &mut Driver, id: SessionId) {
        if let Some(Session {
            state: State::Up { control, .. },
            ..
        }) = self.sessions.get_mut(&id)
        {
            control.write(quic, id);
        }
    }

    /// Whether this is the session's control stream.
    #[must_use]
    pub(crate) fn is_control(&self, id: SessionId, stream: StreamId) -> bool {
        let Some(session) = self.sessions.get(&id) else {
            return false;
        };
        matches!(&session.state, State::Up { control, .. } if control.stream == stream)
    }

    /// Reads and answers what the relay says.
    pub(crate) fn readable(
        &mut self,
        quic: &mut Driver,
        relay: &Relay,
        id: SessionId,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Vec<Heard> {
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
                    session.welcome(quic, relay, id, &welcome, rng);
                    self.attempts = 0;
                    self.told = None;
                }
                Frame::Registered(said) => heard.extend(session.registered(relay, said)),
                Frame::Refused(said) => {
                    session.refused(&said.hyco, now);
                    warn!(hyco = %said.hyco, relay = %relay.endpoint, why = %said.code, "registration refused");
                    heard.push(Heard::Refused(said.hyco, said.code));
                }
                // Its flows are ended by the relay.
                Frame::Ended(said) => {
                    session.refused(&said.hyco, now);
                    warn!(hyco = %said.hyco, relay = %relay.endpoint, why = %said.code, "registration ended");
                }
                Frame::Draining => session.draining = true,
                Frame::Probe(probe) => heard.push(Heard::Probe(probe)),
                _ => heard.push(Heard::Broken(
                    SessionCode::Protocol,
                    "an unexpected frame".into(),
                )),
            }
        }
        heard
    }

    /// Sessions that are given up: without an answer, or spare ones that a later one took the place of.
    pub(crate) fn stale(
        &mut self,
        quic: &Driver,
        now: Instant,
        flows: impl Fn(SessionId) -> usize,
    ) -> Vec<(SessionId, String)> {
        let newest_well = self
            .sessions
            .iter()
            .filter(|(id, session)| session.is_well(quic, **id, now))
            .max_by_key(|(_, session)| session.since)
            .map(|(&id, session)| (id, session.since));
        let stale = |(&id, session): (&SessionId, &Session)| {
            let age = now.saturating_duration_since(session.since);
            if !session.is_welcomed() && age > ATTEMPT_MAX {
                return Some((id, format!("no answer in {} s", ATTEMPT_MAX.as_secs())));
            }
            let (newest, since) = newest_well?;
            let spare = id != newest && session.since < since && flows(id) == 0;
            spare.then(|| (id, "a newer session took its place".to_string()))
        };
        self.sessions.iter().filter_map(stale).collect()
    }

    /// Asks again for registrations that were refused a while ago.
    pub(crate) fn ask_again(
        &mut self,
        quic: &mut Driver,
        relay: &Relay,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        for (&id, session) in &mut self.sessions {
            let due = |(name, registration): (&HycoName, &Registration)| {
                registration
                    .ask_again
                    .is_some_and(|at| at <= now)
                    .then(|| name.clone())
            };
            let names: Vec<_> = session.registrations.iter().filter_map(due).collect();
            for connect in &relay.connects {
                if names.contains(&connect.string.name) {
                    session.register(quic, id, connect, rng);
                }
            }
        }
    }

    /// Says Draining on every session.
    pub(crate) fn say_draining(&mut self, quic: &mut Driver) {
        for (&id, session) in &mut self.sessions {
            if let State::Up { control, .. } = &mut session.state {
                let _ = control.say(quic, id, &Frame::Draining);
            }
        }
    }

    /// Whether both proofs hold for this hybrid connection on this session.
    #[must_use]
    pub(crate) fn is_registered(&self, id: SessionId, hyco: &HycoName) -> bool {
        let registration = self
            .sessions
            .get(&id)
            .and_then(|session| session.registrations.get(hyco));
        registration.is_some_and(|registration| registration.endpoint.is_some())
    }

    /// Whether this hybrid connection was asked for on this session, and the relay has not answered yet.
    #[must_use]
    pub(crate) fn is_awaited(&self, id: SessionId, hyco: &HycoName) -> bool {
        let session = self.sessions.get(&id);
        let registration = session.and_then(|session| session.registrations.get(hyco));
        registration.is_some_and(|registration| {
            registration.endpoint.is_none() && registration.ask_again.is_none()
        })
    }

    /// Says something on a session's control stream. A stream that cannot take it is broken, and is noticed as such.
    pub(crate) fn say(&mut self, quic: &mut Driver, id: SessionId, frame: &Frame) {
        let session = self.sessions.get_mut(&id);
        if let Some(State::Up { control, .. }) = session.map(|session| &mut session.state) {
            let _ = control.say(quic, id, frame);
        }
    }

    /// All sessions.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }
}

impl Session {
    fn is_welcomed(&self) -> bool {
        matches!(self.state, State::Up { welcomed: true, .. })
    }

    fn is_well(&self, quic: &Driver, id: SessionId, now: Instant) -> bool {
        let silence = quic.silence(now, id).unwrap_or(Duration::MAX);
        self.is_welcomed() && !self.draining && silence <= PING_AFTER + SUSPECT_AFTER
    }

    fn welcome(
        &mut self,
        quic: &mut Driver,
        relay: &Relay,
        id: SessionId,
        welcome: &Welcome,
        rng: &mut impl Rng,
    ) {
        if let State::Up { welcomed, .. } = &mut self.state {
            *welcomed = true;
        }
        relay
            .workers
            .store(welcome.workers.max(1), Ordering::Relaxed);
        for connect in &relay.connects {
            self.register(quic, id, connect, rng);
        }
    }

    fn register(
        &mut self,
        quic: &mut Driver,
        id: SessionId,
        connect: &Connect,
        rng: &mut impl Rng,
    ) {
        let State::Up {
            exporter, control, ..
        } = &mut self.state
        else {
            return;
        };
        let mut nonce = Nonce([0; 16]);
        rng.fill_bytes(&mut nonce.0);
        let string = &connect.string;
        let register = Register::new(
            &string.key,
            string.name.clone(),
            Rule::Listen,
            nonce,
            connect.weight,
            connect.priority,
            exporter,
        );
        let _ = control.say(quic, id, &Frame::Register(register.clone()));
        let fresh = || Registration {
            asked: None,
            endpoint: None,
            refusals: 0,
            ask_again: None,
        };
        let registration = self
            .registrations
            .entry(string.name.clone())
            .or_insert_with(fresh);
        registration.asked = Some(register);
        registration.ask_again = None;
    }

    /// The relay's proof is checked before anything is served.
    fn registered(&mut self, relay: &Relay, said: Registered) -> Option<Heard> {
        let State::Up { exporter, .. } = &self.state else {
            return None;
        };
        let connect = relay
            .connects
            .iter()
            .find(|connect| connect.string.name == said.hyco)?;
        let registration = self.registrations.get_mut(&said.hyco)?;
        let asked = registration.asked.as_ref()?;
        let expected = relay_proof(&connect.string.key, asked, &said.endpoint, exporter);
        if !verify(&expected, &said.relay_proof) {
            let why = format!("the relay does not know the key of {}", said.hyco);
            return Some(Heard::Broken(SessionCode::NotAuthorised, why));
        }
        match &registration.endpoint {
            None => {
                info!(hyco = %said.hyco, endpoint = %said.endpoint, relay = %relay.endpoint, "listener registered");
            }
            Some(was) if *was != said.endpoint => {
                info!(hyco = %said.hyco, from = %was, to = %said.endpoint, "endpoint changed");
            }
            Some(_) => {}
        }
        registration.endpoint = Some(said.endpoint.clone());
        registration.refusals = 0;
        Some(Heard::Registered(said.hyco, said.endpoint))
    }

    fn refused(&mut self, hyco: &HycoName, now: Instant) {
        let Some(registration) = self.registrations.get_mut(hyco) else {
            return;
        };
        registration.endpoint = None;
        let pause = Duration::from_secs(1 << registration.refusals.min(8)).min(ASK_AGAIN_MAX);
        registration.refusals += 1;
        registration.ask_again = Some(now + pause);
    }
}

/// What a lost session means to a person.
#[must_use]
pub(crate) fn words(why: &ConnectionError) -> String {
    match why {
        ConnectionError::TimedOut => "no answer".into(),
        ConnectionError::Reset => {
            "the relay does not know the session any more (it was restarted)".into()
        }
        ConnectionError::ApplicationClosed(close) => {
            match SessionCode::from_u64(close.error_code.into_inner()) {
                Some(code) => format!("the relay closed the session: {code}"),
                None => "the relay closed the session".into(),
            }
        }
        ConnectionError::TransportError(error) if error.to_string().contains("certificate") => {
            format!("the relay's certificate is not the pinned or trusted one ({error})")
        }
        other => other.to_string(),
    }
}
