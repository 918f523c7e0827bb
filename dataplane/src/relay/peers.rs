//! The relay's side of its sessions: who said Hello, what each is registered for, and how well it is. Decides who may listen; moves no byte of a flow.

mod probes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn_proto::StreamId;
use tracing::{debug, info, warn};
use underpass_proto::limits::{
    HELLO_DEADLINE, PING_AFTER, REGISTRATIONS_MAX, REPLACED_AFTER, SUSPECT_AFTER,
};
use underpass_proto::proof::{check_register, relay_proof};
use underpass_proto::snapshot::{RegistrationReport, SessionReport, SessionState, Standing};
use underpass_proto::wire::{
    Ended, EndedCode, Hello, Refused, RefusedCode, Registered, VERSION, Welcome,
};
use underpass_proto::{
    AgentId, Exporter, Frame, HycoName, Instance, Register, Role, Rule, SessionCode, Which,
};

pub(crate) use self::probes::Asker;
use self::probes::Probes;
use super::listeners::{Moment, Who};
use super::plan::{Directory, Plan};
use super::roster::{Entry, Health, Roster};
use super::senders;
use crate::control_stream::{Broken, ControlStream};
use crate::quic::{Driver, SessionId};

/// All sessions of one worker, from their handshake on.
pub(crate) struct Peers {
    worker: u8,
    workers: u8,
    sessions: HashMap<SessionId, Peer>,
    rosters: HashMap<HycoName, Roster>,
    directory: Arc<Directory>,
    probes: Probes,
}

struct Peer {
    exporter: Exporter,
    since: Instant,
    since_unix_ms: u64,
    control: Option<ControlStream>,
    hello: Option<Hello>,
    registrations: HashMap<HycoName, Registration>,
    draining: bool,
    /// Flows that it may open, beside its control stream: none before it proved a send key.
    flows_allowed: u32,
    /// When a newer process of the same agent said Hello.
    replaced: Option<Instant>,
    /// It was told as silent, and was not heard since.
    silent: bool,
}

struct Registration {
    register: Register,
    which: Which,
}

/// What the worker has to do about a session after it was heard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Fine,
    /// Close it with this code.
    Close(SessionCode),
}

/// What a stream that a peer opened is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// The control stream.
    Control,
    /// A sender's flow.
    Flow,
    /// None that this peer may open.
    Misplaced,
}

/// A registration that is over, and whose flows are to end.
#[derive(Debug)]
pub(crate) struct Over {
    /// On which session.
    pub(crate) session: SessionId,
    /// For what.
    pub(crate) hyco: HycoName,
}

impl Peers {
    /// None yet.
    #[must_use]
    pub(crate) fn new(worker: u8, workers: u8, directory: Arc<Directory>) -> Self {
        Self {
            worker,
            workers,
            sessions: HashMap::new(),
            rosters: HashMap::new(),
            directory,
            probes: Probes::default(),
        }
    }

    /// A handshake is done.
    pub(crate) fn up(&mut self, now: Instant, quic: &mut Driver, session: SessionId) {
        let Some(exporter) = quic.exporter(session) else {
            return;
        };
        let peer = Peer {
            exporter,
            since: now,
            since_unix_ms: unix_ms(),
            control: None,
            hello: None,
            registrations: HashMap::new(),
            draining: false,
            flows_allowed: 0,
            replaced: None,
            silent: false,
        };
        self.sessions.insert(session, peer);
    }

    /// A session is gone, and all that it was registered for. `why` is for people.
    pub(crate) fn gone(&mut self, now: Instant, quic: &Driver, session: SessionId, why: &str) {
        self.probes_lost(now, quic, session);
        let Some(peer) = self.sessions.remove(&session) else {
            return;
        };
        for name in peer.registrations.keys() {
            leave(&mut self.rosters, name, session);
            if let Some(hello) = &peer.hello {
                self.leave(now, name, hello.instance, why);
            }
        }
    }

    fn leave(&self, now: Instant, name: &HycoName, instance: Instance, why: &str) {
        let listeners = &self.directory.listeners;
        listeners.leave(Moment::at(now), name, instance, self.worker, why);
    }

    /// The first stream of a session is its control stream; the others of a sender are flows, and an agent opens no others.
    pub(crate) fn stream_opened(&mut self, session: SessionId, stream: StreamId) -> Opened {
        let Some(peer) = self.sessions.get_mut(&session) else {
            return Opened::Control;
        };
        if peer.control.is_none() {
            peer.control = Some(ControlStream::new(stream));
            return Opened::Control;
        }
        match &peer.hello {
            Some(hello) if hello.role == Role::Sender => Opened::Flow,
            // Its Hello may be behind: streams have no order among each other. A flow without a registration is of no use anyway.
            _ => Opened::Misplaced,
        }
    }

    /// A sender has `live` flows now: it may open more, up to `most`, before it has used what it was allowed.
    pub(crate) fn make_room(
        &mut self,
        quic: &mut Driver,
        session: SessionId,
        live: usize,
        most: u32,
    ) {
        if let Some(peer) = self.sessions.get_mut(&session)
            && let Some(more) = senders::more_flows(peer.flows_allowed, live, most)
        {
            peer.allow_flows(quic, session, more);
        }
    }

    /// Whether this session has proven a send key of this hybrid connection.
    #[must_use]
    pub(crate) fn may_send(&self, session: SessionId, hyco: &HycoName) -> bool {
        let peer = self.sessions.get(&session);
        let registration = peer.and_then(|peer| peer.registrations.get(hyco));
        registration.is_some_and(|registration| registration.register.rule == Rule::Send)
    }

    /// The control stream may be written again.
    pub(crate) fn writable(&mut self, quic: &mut Driver, session: SessionId) {
        if let Some(control) = self
            .sessions
            .get_mut(&session)
            .and_then(|peer| peer.control.as_mut())
        {
            control.write(quic, session);
        }
    }

    /// Reads and answers what a peer says. `hello` is told of a process that just said who it is.
    pub(crate) fn readable(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        plan: &Plan,
        session: SessionId,
        stream: StreamId,
        hello: &mut Option<(AgentId, Instance)>,
    ) -> Verdict {
        let Some(peer) = self.sessions.get_mut(&session) else {
            return Verdict::Fine;
        };
        let Some(control) = peer
            .control
            .as_mut()
            .filter(|control| control.stream == stream)
        else {
            return Verdict::Fine;
        };
        let frames = match control.read(quic, session) {
            Ok(frames) => frames,
            Err(why) => return broken(quic, session, &why),
        };
        for frame in frames {
            let verdict = match frame {
                Frame::Hello(said) => self.hello(now, quic, plan, session, said, hello),
                Frame::Register(said) => self.register(now, quic, plan, session, said),
                Frame::Deregister(said) => self.deregister(now, session, &said.hyco),
                Frame::Probed(said) => {
                    self.probed(now, quic, session, &said);
                    Verdict::Fine
                }
                Frame::Draining => self.draining(session),
                _ => Verdict::Close(SessionCode::Protocol),
            };
            if verdict != Verdict::Fine {
                return verdict;
            }
        }
        Verdict::Fine
    }

    fn hello(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        plan: &Plan,
        session: SessionId,
        hello: Hello,
        told: &mut Option<(AgentId, Instance)>,
    ) -> Verdict {
        let Some(peer) = self.sessions.get_mut(&session) else {
            return Verdict::Fine;
        };
        if peer.hello.is_some() {
            return Verdict::Close(SessionCode::Protocol);
        }
        if hello.version != VERSION {
            return Verdict::Close(SessionCode::Version);
        }
        *told = Some((hello.agent_id, hello.instance));
        let (agent_id, instance) = (hello.agent_id, hello.instance);
        peer.hello = Some(hello);
        let welcome = Frame::Welcome(Welcome {
            workers: self.workers,
            worker: self.worker,
            relay_time_unix_ms: unix_ms(),
            relays: vec![plan.snapshot.public_address.clone()],
        });
        let said = peer.say(quic, session, &welcome);
        self.replace(now, quic, agent_id, instance);
        said
    }

    /// A process of `agent_id` said Hello: older ones are asked for a sign of life, and not picked until they gave it.
    pub(crate) fn replace(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        agent_id: AgentId,
        instance: Instance,
    ) {
        for (session, peer) in &mut self.sessions {
            let Some(hello) = &peer.hello else { continue };
            if hello.agent_id == agent_id && hello.instance != instance && peer.replaced.is_none() {
                peer.replaced = Some(now);
                quic.ping(*session);
            }
        }
    }

    fn register(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        plan: &Plan,
        session: SessionId,
        register: Register,
    ) -> Verdict {
        let (Some(peer), Some(path)) = (self.sessions.get_mut(&session), quic.path(session)) else {
            return Verdict::Fine;
        };
        let Some(hello) = peer.hello.clone() else {
            return Verdict::Close(SessionCode::Protocol);
        };
        let name = register.hyco.clone();
        let definition = plan.hyco(&name);
        let checked = check_register(&register, definition.map(|hyco| &hyco.keys), &peer.exporter);
        let role_fits = matches!(
            (hello.role, register.rule),
            (Role::Agent, Rule::Listen) | (Role::Sender, Rule::Send)
        );
        let (Ok(checked), Some(definition), true) = (&checked, definition, role_fits) else {
            let why = checked.err().map_or_else(
                || "wrong rule for its role".to_string(),
                |why| why.to_string(),
            );
            warn!(hyco = %name, key = %register.key_id, agent = %hello.agent_id, %why, "registration refused");
            return peer.refuse(quic, session, name, RefusedCode::NotAuthorised);
        };
        if !peer.registrations.contains_key(&name) {
            if peer.registrations.len() >= REGISTRATIONS_MAX {
                return peer.refuse(quic, session, name, RefusedCode::Overloaded);
            }
            let who = Who {
                agent_id: hello.agent_id,
                instance: hello.instance,
                remote: path.remote,
            };
            let most = definition.limits.listeners_max;
            let listeners = &self.directory.listeners;
            if register.rule == Rule::Listen && !listeners.join(now, definition, who, self.worker) {
                warn!(hyco = %name, agent = %hello.agent_id, most, "registration refused: too many listeners");
                return peer.refuse(quic, session, name, RefusedCode::TooManyListeners);
            }
        }
        let keys = &self.directory.keys;
        keys.proven(&name, register.rule, register.key_id, unix_ms());
        let relay_proof = relay_proof(
            &checked.key,
            &register,
            &definition.endpoint,
            &peer.exporter,
        );
        let answer = Registered {
            hyco: name.clone(),
            endpoint: definition.endpoint.clone(),
            relay_proof,
        };
        if register.rule == Rule::Send && peer.flows_allowed == 0 {
            peer.allow_flows(quic, session, senders::FLOWS_FIRST);
        }
        let entry = (register.rule == Rule::Listen).then_some(Entry {
            session,
            instance: hello.instance,
            weight: register.weight,
            priority: register.priority,
        });
        info!(hyco = %name, key = %register.key_id, which = %checked.which, role = %hello.role, agent = %hello.agent_id, "registered");
        peer.registrations.insert(
            name.clone(),
            Registration {
                register,
                which: checked.which,
            },
        );
        if let Some(entry) = entry {
            self.rosters.entry(name).or_default().add(entry);
        }
        peer.say(quic, session, &Frame::Registered(answer))
    }

    fn deregister(&mut self, now: Instant, session: SessionId, name: &HycoName) -> Verdict {
        // Live flows go on; a session that has neither registrations nor flows is overdue.
        self.unregister(now, session, name, "deregistered");
        Verdict::Fine
    }

    fn draining(&mut self, session: SessionId) -> Verdict {
        if let Some(peer) = self.sessions.get_mut(&session) {
            peer.draining = true;
        }
        Verdict::Fine
    }

    fn unregister(&mut self, now: Instant, session: SessionId, name: &HycoName, why: &str) {
        let Some(peer) = self.sessions.get_mut(&session) else {
            return;
        };
        if peer.registrations.remove(name).is_none() {
            return;
        }
        leave(&mut self.rosters, name, session);
        if let Some(instance) = self.instance(session) {
            self.leave(now, name, instance, why);
        }
    }

    /// Holds every registration against a new plan. Answers which are over; tells peers of those, and of endpoints that changed.
    pub(crate) fn apply(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        old: &Plan,
        new: &Plan,
    ) -> Vec<Over> {
        let too_many = self.too_many(old, new);
        let mut over = Vec::new();
        let mut changed = Vec::new();
        for (&session, peer) in &mut self.sessions {
            let instance = peer.hello.as_ref().map(|hello| hello.instance);
            let above = |name| {
                let instances = too_many.get(name).zip(instance);
                instances.is_some_and(|(above, instance)| above.contains(&instance))
            };
            for (name, registration) in &mut peer.registrations {
                match judge(registration, old, new, name) {
                    Judged::Stands | Judged::Moved if above(name) => {
                        let code = EndedCode::TooManyListeners;
                        over.push((session, name.clone(), code));
                    }
                    Judged::Stands => {}
                    Judged::Moved => changed.push((session, name.clone())),
                    Judged::Over(code) => over.push((session, name.clone(), code)),
                }
            }
        }
        for (session, name) in changed {
            self.tell_endpoint(quic, new, session, &name);
        }
        let mut ended = Vec::new();
        for (session, name, code) in over {
            info!(hyco = %name, why = %code, "registration ended");
            self.unregister(now, session, &name, &code.to_string());
            if let Some(peer) = self.sessions.get_mut(&session) {
                let _ = peer.say(
                    quic,
                    session,
                    &Frame::Ended(Ended {
                        hyco: name.clone(),
                        code,
                    }),
                );
            }
            ended.push(Over {
                session,
                hyco: name,
            });
        }
        ended
    }

    /// Where the limit on listeners was lowered: those above it.
    fn too_many(&self, old: &Plan, new: &Plan) -> HashMap<HycoName, Vec<Instance>> {
        let most =
            |plan: &Plan, name: &HycoName| plan.hyco(name).map(|hyco| hyco.limits.listeners_max);
        let beyond = |name: &HycoName| {
            let now = most(new, name)?;
            let lowered = most(old, name).is_some_and(|was| now < was);
            lowered.then(|| (name.clone(), self.directory.listeners.beyond(name, now)))
        };
        self.rosters.keys().filter_map(beyond).collect()
    }

    /// Sends Registered again, with a proof over the last Register: the endpoint is another one now.
    fn tell_endpoint(
        &mut self,
        quic: &mut Driver,
        plan: &Plan,
        session: SessionId,
        name: &HycoName,
    ) {
        let Some(peer) = self.sessions.get_mut(&session) else {
            return;
        };
        let Some(registration) = peer.registrations.get(name) else {
            return;
        };
        let Some(definition) = plan.hyco(name) else {
            return;
        };
        let register = registration.register.clone();
        let pair = definition.keys.rule(register.rule);
        let Some(key) = pair.and_then(|pair| pair.which(registration.which)) else {
            return;
        };
        let relay_proof = relay_proof(key, &register, &definition.endpoint, &peer.exporter);
        let answer = Registered {
            hyco: register.hyco,
            endpoint: definition.endpoint.clone(),
            relay_proof,
        };
        let _ = peer.say(quic, session, &Frame::Registered(answer));
    }

    /// The session for a new flow. `without` was tried already.
    pub(crate) fn pick(
        &self,
        quic: &Driver,
        now: Instant,
        hyco: &HycoName,
        without: Option<Instance>,
        load: impl Fn(SessionId) -> usize,
    ) -> Option<SessionId> {
        let failing = self.directory.listeners.failing(hyco);
        let health = |session| match self.health(quic, now, session) {
            Health::Ready if self.is_one_of(session, &failing) => Health::Failing,
            health => health,
        };
        self.rosters
            .get(hyco)?
            .pick(health, load, without, &mut rand::rng())
    }

    /// The process behind a session.
    #[must_use]
    pub(crate) fn instance(&self, session: SessionId) -> Option<Instance> {
        self.sessions
            .get(&session)?
            .hello
            .as_ref()
            .map(|hello| hello.instance)
    }

    fn is_one_of(&self, session: SessionId, instances: &[Instance]) -> bool {
        !instances.is_empty()
            && self
                .instance(session)
                .is_some_and(|instance| instances.contains(&instance))
    }

    fn health(&self, quic: &Driver, now: Instant, session: SessionId) -> Health {
        let Some(peer) = self.sessions.get(&session) else {
            return Health::Draining;
        };
        let silence = quic.silence(now, session).unwrap_or(Duration::MAX);
        if peer.draining {
            Health::Draining
        } else if peer.replaced.is_some() || silence > PING_AFTER + SUSPECT_AFTER {
            Health::Suspect
        } else {
            Health::Ready
        }
    }

    /// Sessions that are to be closed: silent about who they are, without a registration, or replaced and silent.
    #[must_use]
    pub(crate) fn overdue(
        &mut self,
        quic: &Driver,
        now: Instant,
        load: impl Fn(SessionId) -> usize,
    ) -> Vec<(SessionId, SessionCode)> {
        let mut overdue = Vec::new();
        for (&session, peer) in &mut self.sessions {
            let age = now.saturating_duration_since(peer.since);
            if let Some(code) = peer.overdue(age, || load(session)) {
                overdue.push((session, code));
            }
            let Some(replaced) = peer.replaced else {
                continue;
            };
            let waited = now.saturating_duration_since(replaced);
            let silence = quic.silence(now, session).unwrap_or(Duration::MAX);
            if silence < waited {
                peer.replaced = None; // It lives: two processes share one configuration.
            } else if waited >= REPLACED_AFTER {
                overdue.push((session, SessionCode::Replaced));
            }
        }
        overdue
    }

    /// Sessions that do not answer any more, each once until it is heard again.
    pub(crate) fn fell_silent(&mut self, quic: &Driver, now: Instant) -> Vec<SessionId> {
        let mut fell = Vec::new();
        for (&session, peer) in &mut self.sessions {
            let silence = quic.silence(now, session).unwrap_or(Duration::MAX);
            let silent = silence > PING_AFTER + SUSPECT_AFTER;
            if silent && !peer.silent {
                fell.push(session);
            }
            peer.silent = silent;
        }
        fell
    }

    /// Says Draining to all.
    pub(crate) fn say_draining(&mut self, quic: &mut Driver) {
        for (&session, peer) in &mut self.sessions {
            let _ = peer.say(quic, session, &Frame::Draining);
        }
    }

    /// All sessions.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    /// How many there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// What the report says of each session that said Hello.
    #[must_use]
    pub(crate) fn report(&self, quic: &Driver, now: Instant) -> Vec<SessionReport> {
        let session = |(&session, peer): (&SessionId, &Peer)| {
            let hello = peer.hello.as_ref()?;
            let path = quic.path(session)?;
            Some(SessionReport {
                role: hello.role,
                agent_id: hello.agent_id,
                instance: hello.instance,
                remote: path.remote,
                worker: u16::from(self.worker),
                rtt_us: u64::try_from(path.rtt.as_micros()).unwrap_or(u64::MAX),
                mtu: path.mtu,
                state: match self.health(quic, now, session) {
                    Health::Ready | Health::Failing => SessionState::Ready,
                    Health::Suspect => SessionState::Suspect,
                    Health::Draining => SessionState::Draining,
                },
                since_unix_ms: peer.since_unix_ms,
                hycos: peer
                    .registrations
                    .iter()
                    .map(|(name, registration)| registration.report(name))
                    .collect(),
            })
        };
        self.sessions.iter().filter_map(session).collect()
    }
}

impl Peer {
    fn allow_flows(&mut self, quic: &mut Driver, session: SessionId, count: u32) {
        self.flows_allowed = count;
        quic.allow_streams(session, count + 1);
    }

    fn say(&mut self, quic: &mut Driver, session: SessionId, frame: &Frame) -> Verdict {
        let Some(control) = &mut self.control else {
            return Verdict::Fine;
        };
        match control.say(quic, session, frame) {
            Ok(()) => Verdict::Fine,
            Err(why) => broken(quic, session, &why),
        }
    }

    fn refuse(
        &mut self,
        quic: &mut Driver,
        session: SessionId,
        hyco: HycoName,
        code: RefusedCode,
    ) -> Verdict {
        self.say(quic, session, &Frame::Refused(Refused { hyco, code }))
    }

    fn overdue(&self, age: Duration, load: impl Fn() -> usize) -> Option<SessionCode> {
        if self.hello.is_none() {
            return (age > HELLO_DEADLINE).then_some(SessionCode::HelloTimeout);
        }
        let idle = self.registrations.is_empty() && age > 2 * HELLO_DEADLINE && load() == 0;
        idle.then_some(SessionCode::NoRegistration)
    }
}

impl Registration {
    fn report(&self, name: &HycoName) -> RegistrationReport {
        RegistrationReport {
            name: name.clone(),
            rule: self.register.rule,
            key_id: self.register.key_id,
            key: self.which,
        }
    }
}

enum Judged {
    Stands,
    /// The endpoint is another one.
    Moved,
    Over(EndedCode),
}

fn judge(registration: &mut Registration, old: &Plan, new: &Plan, name: &HycoName) -> Judged {
    let Some(definition) = new.hyco(name) else {
        return Judged::Over(EndedCode::Removed);
    };
    match definition
        .keys
        .standing(registration.register.rule, registration.register.key_id)
    {
        Standing::Revoked => return Judged::Over(EndedCode::KeyRevoked),
        Standing::Alive(which) => registration.which = which,
        Standing::Unknown => {}
    }
    let moved = old
        .hyco(name)
        .is_some_and(|was| was.endpoint != definition.endpoint);
    if moved { Judged::Moved } else { Judged::Stands }
}

fn broken(quic: &Driver, session: SessionId, why: &Broken) -> Verdict {
    let remote = quic.path(session).map(|path| path.remote);
    debug!(?remote, %why, "control stream broken");
    Verdict::Close(SessionCode::Protocol)
}

fn leave(rosters: &mut HashMap<HycoName, Roster>, name: &HycoName, session: SessionId) {
    if let Some(roster) = rosters.get_mut(name) {
        roster.remove(session);
        if roster.is_empty() {
            rosters.remove(name);
        }
    }
}

/// Milliseconds since 1970, for people and for naming a skew; nothing is decided by it.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
