//! The relay's side of its sessions: what each has proven and is registered for, and how well it
//! is. Decides who may listen; moves no byte of a flow.

mod probes;
mod registrations;
mod signs;
mod succession;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod watched;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn_proto::StreamId;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustc_hash::FxHashMap;
use tracing::field::display;
use tracing::{debug, warn};
use underpass_proto::limits::HELLO_DEADLINE;
use underpass_proto::snapshot::{SessionReport, SessionState};
use underpass_proto::wire::{Codes, Hello, Refused, RefusedCode, Register, VERSION, Welcome};
use underpass_proto::{
    AgentId, Exporter, FlowCode, Frame, HycoName, Instance, Role, Rule, SessionCode,
};

pub(crate) use self::probes::Asker;
use self::probes::Probes;
pub(crate) use self::registrations::Over;
use self::registrations::{Registration, leave};
use self::succession::Contested;
pub(crate) use self::succession::Successor;
use super::abuse::{self, Abuse};
use super::listeners::Moment;
use super::plan::{Directory, Plan};
use super::roster::{Health, Roster};
use super::senders;
use crate::control_stream::{Broken, ControlStream};
use crate::log_limit::{LogCause, LogLimit, Permit};
use crate::quic::{Driver, SessionId};

/// All sessions of one worker, from their handshake on.
pub(crate) struct Peers {
    worker: u8,
    workers: u8,
    sessions: FxHashMap<SessionId, Peer>,
    /// Those without a proof yet, the oldest first; some may have proven a key, or be gone,
    /// meanwhile.
    unproven: VecDeque<SessionId>,
    rosters: FxHashMap<HycoName, Roster>,
    directory: Arc<Directory>,
    probes: Probes,
    /// Which lines about registrations are written.
    pub(crate) log: LogLimit,
    rng: StdRng,
}

struct Peer {
    exporter: Exporter,
    /// Where it came from: its session may be forgotten before its end is reported.
    remote: SocketAddr,
    since: Instant,
    since_unix_ms: u64,
    control: Option<ControlStream>,
    hello: Option<Hello>,
    /// In the order of their names, in which they are told when they end together.
    registrations: BTreeMap<HycoName, Registration>,
    draining: bool,
    /// Flows that it may open, beside its control stream: none before it proved a send key.
    flows_allowed: u32,
    abuse: Abuse,
    /// It has proven a key.
    proven: bool,
    /// It only asks whether its registrations would be granted.
    check_only: bool,
    /// A newer process of the same agent has proven what this one is registered for.
    contested: Option<Contested>,
    /// When it last answered after that.
    answered_contest: Option<Instant>,
    /// It was told as silent, and was not heard since.
    silent: bool,
    /// How often its process wants to give a sign of life.
    keep_alive: Option<Duration>,
    /// Its signs of life count for all sessions of its process.
    shares_pulse: bool,
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
    /// A sender's flow, and one too many for this second.
    TooFast,
    /// The same, of a sender that has been refused more than enough.
    Flood,
    /// None that this peer may open.
    Misplaced,
}

impl Peers {
    /// None yet.
    #[must_use]
    pub(crate) fn new((worker, workers): (u8, u8), directory: Arc<Directory>, rng: StdRng) -> Self {
        Self {
            worker,
            workers,
            sessions: FxHashMap::default(),
            unproven: VecDeque::new(),
            rosters: FxHashMap::default(),
            directory,
            probes: Probes::default(),
            log: LogLimit::default(),
            rng,
        }
    }

    /// A handshake is done.
    pub(crate) fn up(&mut self, now: Instant, quic: &mut Driver, session: SessionId) {
        let (Some(exporter), Some(path)) = (quic.exporter(session), quic.path(session)) else {
            return;
        };
        let peer = Peer {
            exporter,
            remote: path.remote,
            since: now,
            since_unix_ms: unix_ms(),
            control: None,
            hello: None,
            registrations: BTreeMap::new(),
            draining: false,
            flows_allowed: 0,
            abuse: Abuse::new(now),
            proven: false,
            check_only: false,
            contested: None,
            answered_contest: None,
            silent: false,
            keep_alive: None,
            shares_pulse: false,
        };
        self.sessions.insert(session, peer);
        self.unproven.push_back(session);
    }

    /// The oldest session without a proof, where there are `most` of them or more: strangers give
    /// way to newcomers, and leave room for peers.
    pub(crate) fn unproven_beyond(&mut self, most: usize) -> Option<SessionId> {
        if self.unproven.len() < most {
            return None;
        }
        let sessions = &self.sessions;
        let is_unproven = |session: &SessionId| {
            let peer = sessions.get(session);
            peer.is_some_and(|peer| !peer.proven)
        };
        self.unproven.retain(is_unproven);
        let crowded = self.unproven.len() >= most;
        crowded.then(|| self.unproven.pop_front())?
    }

    /// Who a session is, for the log: its address, `None` only where its handshake was never done
    /// and it is forgotten; and its agent or sender, once it has proven a key.
    pub(crate) fn who(
        &self,
        quic: &Driver,
        session: SessionId,
    ) -> (Option<SocketAddr>, Option<AgentId>) {
        let peer = self.sessions.get(&session);
        let path = quic.path(session).map(|path| path.remote);
        let remote = path.or_else(|| peer.map(|peer| peer.remote));
        let proven = peer.filter(|peer| peer.proven);
        let agent = proven.and_then(|peer| Some(peer.hello.as_ref()?.agent_id));
        (remote, agent)
    }

    /// A session is gone, and all that it was registered for. `why` is for people. How much that
    /// was; `None` where its handshake was never done.
    pub(crate) fn gone(
        &mut self,
        now: Instant,
        quic: &Driver,
        session: SessionId,
        why: &str,
    ) -> Option<usize> {
        self.probes_lost(now, quic, session);
        let peer = self.sessions.remove(&session)?;
        for (name, registration) in &peer.registrations {
            leave(&mut self.rosters, name, session);
            if let Some(hello) = &peer.hello {
                self.leave(now, name, registration, hello.instance, why);
            }
        }
        Some(peer.registrations.len())
    }

    fn leave(
        &self,
        now: Instant,
        name: &HycoName,
        registration: &Registration,
        instance: Instance,
        why: &str,
    ) {
        // The book has listeners alone, and a sender may claim the instance of one of them.
        if registration.register.rule == Rule::Listen {
            let listeners = &self.directory.listeners;
            listeners.leave(Moment::at(now), name, instance, self.worker, why);
        }
    }

    /// The first stream of a session is its control stream; the others of a sender are flows, and
    /// an agent opens no others.
    pub(crate) fn stream_opened(
        &mut self,
        now: Instant,
        session: SessionId,
        stream: StreamId,
    ) -> Opened {
        let Some(peer) = self.sessions.get_mut(&session) else {
            return Opened::Control;
        };
        if peer.control.is_none() {
            peer.control = Some(ControlStream::new(stream));
            return Opened::Control;
        }
        match &peer.hello {
            Some(hello) if hello.role == Role::Sender => match peer.abuse.opens(now) {
                abuse::Judged::Fine => Opened::Flow,
                abuse::Judged::Refuse => Opened::TooFast,
                abuse::Judged::Close => Opened::Flood,
            },
            // Its Hello may be behind: streams have no order among each other. A flow without a
            // registration is of no use anyway.
            _ => Opened::Misplaced,
        }
    }

    /// A sender took a flow back before anybody answered.
    pub(crate) fn wasted(&mut self, now: Instant, session: SessionId) -> Verdict {
        let peer = self.sessions.get_mut(&session);
        let judged = peer.map(|peer| peer.abuse.wastes(now));
        if judged == Some(abuse::Judged::Close) {
            Verdict::Close(SessionCode::Overloaded)
        } else {
            Verdict::Fine
        }
    }

    /// A sender has `live` flows now: it may open more, up to `most`, before it has used what it
    /// was allowed.
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

    /// Reads and answers what a peer says. `successor` receives what it has newly proven.
    pub(crate) fn readable(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        plan: &Plan,
        session: SessionId,
        stream: StreamId,
        successor: &mut Option<Successor>,
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
                Frame::Hello(hello) => self.hello(quic, plan, session, hello),
                Frame::Register(said) => self.register(now, quic, plan, session, said, successor),
                Frame::Deregister(said) => self.deregister(now, session, &said.hyco),
                Frame::Probed(said) => {
                    self.probed(now, quic, session, &said);
                    Verdict::Fine
                }
                Frame::Draining => self.draining(session),
                Frame::KeepAlive(frame) => self.wants_keep_alive(session, frame),
                Frame::Check => self.check(session),
                _ => Verdict::Close(SessionCode::Protocol),
            };
            if verdict != Verdict::Fine {
                return verdict;
            }
        }
        if let Some(successor) = successor {
            self.contest(now, quic, successor);
        }
        Verdict::Fine
    }

    /// Nothing of it is proven: it changes this session alone.
    fn hello(
        &mut self,
        quic: &mut Driver,
        plan: &Plan,
        session: SessionId,
        hello: Hello,
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
        peer.hello = Some(hello);
        let welcome = Frame::Welcome(Welcome {
            workers: self.workers,
            worker: self.worker,
            relay_time_unix_ms: unix_ms(),
            relays: vec![plan.snapshot.public_address.clone()],
        });
        let codes = Frame::Codes(Codes {
            flow_max: FlowCode::MAX,
        });
        match peer.say(quic, session, &welcome) {
            Verdict::Fine => peer.say(quic, session, &codes),
            verdict => verdict,
        }
    }

    /// The session for a new flow. `without` was tried already.
    pub(crate) fn pick(
        &mut self,
        quic: &Driver,
        now: Instant,
        hyco: &HycoName,
        without: Option<Instance>,
        load: impl Fn(SessionId) -> usize,
    ) -> Option<SessionId> {
        let mut rng = StdRng::from_rng(&mut self.rng);
        let failing = self.directory.listeners.failing(hyco);
        let health = |session| match self.health(quic, now, session) {
            Health::Ready if self.is_contested(session, hyco) => Health::Suspect,
            Health::Ready if self.is_one_of(session, &failing) => Health::Failing,
            health => health,
        };
        self.rosters
            .get(hyco)?
            .pick(health, load, without, &mut rng)
    }

    /// Whether another process than that of this session listens, too.
    #[must_use]
    pub(crate) fn has_another(&self, hyco: &HycoName, session: SessionId) -> bool {
        let (roster, instance) = (self.rosters.get(hyco), self.instance(session));
        let both = roster.zip(instance);
        both.is_some_and(|(roster, instance)| roster.has_another(instance))
    }

    /// Whether there are sessions that listen here, and each owes an answer for too long.
    #[must_use]
    pub(crate) fn are_all_silent(&self, quic: &Driver, now: Instant, hyco: &HycoName) -> bool {
        let silent = |session| quic.is_suspect(now, session);
        let roster = self.rosters.get(hyco);
        roster.is_some_and(|roster| roster.sessions().all(silent))
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

    fn is_contested(&self, session: SessionId, hyco: &HycoName) -> bool {
        let peer = self.sessions.get(&session);
        peer.is_some_and(|peer| peer.is_contested(hyco))
    }

    fn health(&self, quic: &Driver, now: Instant, session: SessionId) -> Health {
        let Some(peer) = self.sessions.get(&session) else {
            return Health::Draining;
        };
        if peer.draining {
            Health::Draining
        } else if quic.is_suspect(now, session) {
            Health::Suspect
        } else {
            Health::Ready
        }
    }

    /// Sessions that are to be closed: silent about who they are, without a registration, or
    /// replaced and silent.
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
            if peer.contested.is_none() {
                continue;
            }
            let silence = quic.silence(now, session).unwrap_or(Duration::MAX);
            let rtt = quic.path(session).map_or(Duration::ZERO, |path| path.rtt);
            if peer.is_replaced(now, silence, rtt) {
                overdue.push((session, SessionCode::Replaced));
            }
        }
        overdue
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

    /// What the report says of each session that has proven a key. Strangers are not listed: they
    /// would leave no room for others.
    #[must_use]
    pub(crate) fn report(&self, quic: &Driver, now: Instant) -> Vec<SessionReport> {
        let session = |(&session, peer): (&SessionId, &Peer)| {
            let hello = peer.hello.as_ref().filter(|_| peer.proven)?;
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

    /// Refuses a registration. A peer that asks in vain again and again is sent away in the end.
    fn refuse(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        log: &mut LogLimit,
        session: SessionId,
        register: &Register,
        (code, why): (RefusedCode, &str),
    ) -> Verdict {
        let hyco = register.hyco.clone();
        let source = quic.path(session).map(|path| path.remote.ip());
        let cause = LogCause::new("registration refused", why);
        if let Some(Permit { left_out }) = log.permits(now, cause, Some(&hyco), source) {
            let agent = self.hello.as_ref().map(|hello| display(hello.agent_id));
            warn!(%hyco, key = %register.key_id, agent, %why, left_out, "registration refused");
        }
        if self.abuse.asks_in_vain(now) == abuse::Judged::Close {
            return Verdict::Close(SessionCode::Overloaded);
        }
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

fn broken(quic: &Driver, session: SessionId, why: &Broken) -> Verdict {
    let remote = quic.path(session).map(|path| path.remote);
    debug!(?remote, %why, "control stream broken");
    Verdict::Close(SessionCode::Protocol)
}

/// Milliseconds since 1970, for people and for naming a skew; nothing is decided by it.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
