//! Connections to endpoints that are under way: the name is resolved beside the worker, each
//! address is checked against the allow-list, and exactly what was checked is dialled. Where there
//! are several, they are raced (`race`). A flow and a probe take the same way. Knows no links and
//! moves no byte of a flow.

mod race;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::StreamId;
use rustc_hash::FxHashMap;
use underpass_proto::limits::{ANSWER_DEADLINE, DIAL_DEADLINE};
use underpass_proto::wire::{Open, Probe};
use underpass_proto::{AllowList, Endpoint, FlowCode, Host, HycoName};

use self::race::{Attempt, Race};
use super::own_dials::Hops;
use super::role::{AgentFlow, EndpointFound, Message};
use crate::addresses::{Worked, arranged};
use crate::core::{Core, Owner};
use crate::io::{self, Close, Io, SocketId};
use crate::quic::SessionId;
use crate::resolve::{self, Answer, Asked, Asker, Failure, Found, Resolver};
use crate::worker::Handle;

/// Connections that may be under way at once on one worker.
const DIALS_MAX: usize = 10_000;

/// Sockets that these may have at once: beyond, an address is tried when the one before it failed.
const SOCKETS_MAX: usize = DIALS_MAX + 2_000;

/// What a connection is wanted for.
#[derive(Debug)]
pub(crate) enum DialPurpose {
    /// A flow. `first` came behind its Open.
    Flow {
        /// Its stream.
        stream: StreamId,
        /// What the relay said.
        open: Open,
        /// The application's first bytes, if they came already.
        first: Bytes,
        /// The chain of hybrid connections that it continues.
        hops: Hops,
    },
    /// To see whether the endpoint is there.
    Probe(Probe),
}

/// A connection under way.
#[derive(Debug)]
pub(crate) struct Dial {
    /// Who asked for it.
    pub(crate) session: SessionId,
    /// What for.
    pub(crate) purpose: DialPurpose,
    /// When it was asked for.
    pub(crate) since: Instant,
    /// How long the name took to resolve.
    pub(crate) resolve: Duration,
    /// The attempt that the result is of: when it began, and to where.
    pub(crate) last: Option<(Instant, SocketAddr)>,
    race: Race,
}

/// A connection attempt that is over.
#[derive(Debug)]
pub(crate) struct Done {
    /// What it was.
    pub(crate) dial: Dial,
    /// The connected socket and its address, or why there is none.
    pub(crate) result: Result<(SocketId, SocketAddr), FlowCode>,
}

/// All connections under way on a worker.
pub(crate) struct Dials {
    resolver: Resolver,
    handle: Handle<Message>,
    by_number: FxHashMap<u64, Dial>,
    number_by_stream: FxHashMap<(SessionId, StreamId), u64>,
    /// When each has had the time of one attempt from its start.
    deadlines: VecDeque<(Instant, u64)>,
    /// Those that go on after that, because their name took long or their first addresses were
    /// silent. Each tick looks at all of them.
    late: Vec<u64>,
    /// When the next address is tried beside one that has not answered.
    steps: VecDeque<(Instant, u64)>,
    worked: Worked,
    /// Sockets of all attempts under way.
    sockets: usize,
    next: u64,
}

impl Dials {
    /// None yet. Answers of the resolver come to `handle`.
    #[must_use]
    pub(crate) fn new(resolver: Resolver, handle: Handle<Message>) -> Self {
        Self {
            resolver,
            handle,
            by_number: FxHashMap::default(),
            number_by_stream: FxHashMap::default(),
            deadlines: VecDeque::new(),
            late: Vec::new(),
            steps: VecDeque::new(),
            worked: Worked::default(),
            sockets: 0,
            next: 0,
        }
    }

    /// Whether none is under way.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// How many are under way.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_number.len().max(self.number_by_stream.len())
    }

    /// Whether no more may be begun.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        self.by_number.len() >= DIALS_MAX
    }

    /// Whether this stream's flow waits for its endpoint.
    #[must_use]
    pub(crate) fn of_stream(&self, session: SessionId, stream: StreamId) -> Option<u64> {
        self.number_by_stream.get(&(session, stream)).copied()
    }

    /// Who asked for the dial of this number, and for which hybrid connection.
    #[must_use]
    pub(crate) fn origin(&self, number: u64) -> Option<(SessionId, &HycoName)> {
        let dial = self.by_number.get(&number)?;
        Some((dial.session, dial.hyco()))
    }

    /// How many a session waits for.
    #[must_use]
    pub(crate) fn count_of_session(&self, session: SessionId) -> usize {
        let dials = self.by_number.values();
        dials.filter(|dial| dial.session == session).count()
    }

    /// Begins one, for this session to this relay.
    pub(crate) fn begin<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        allow: &AllowList,
        (relay, session): (&Endpoint, SessionId),
        purpose: DialPurpose,
    ) -> Option<Done> {
        self.next += 1;
        let number = self.next;
        if let DialPurpose::Flow { stream, .. } = &purpose {
            self.number_by_stream.insert((session, *stream), number);
        }
        let dial = Dial {
            session,
            purpose,
            since: core.now,
            resolve: Duration::ZERO,
            last: None,
            race: Race::default(),
        };
        let asked = resolve::name_or_literal(dial.endpoint()).map(|name| {
            let hyco = Some(dial.hyco().clone());
            let relay = relay.clone();
            (name.clone(), Asker { relay, hyco })
        });
        self.by_number.insert(number, dial);
        self.deadlines.push_back((core.now + DIAL_DEADLINE, number));
        let (name, asker) = match asked {
            Ok(asked) => asked,
            Err(literal) => return self.candidates(core, allow, number, &[literal]),
        };
        let handle = self.handle.clone();
        let later = move |answer| {
            let _ = handle.send(Message::Own(EndpointFound(number, answer)));
        };
        let give_up = core.now + ANSWER_DEADLINE;
        let asked = self.resolver.ask(core.now, &name, &asker, give_up, later);
        match asked {
            Ok(Asked::Known(answer)) => self.found(core, allow, number, &answer),
            Ok(Asked::Later) => None,
            Err(code) => self.fail(core, number, code),
        }
    }

    /// The name of an endpoint was resolved.
    pub(crate) fn found<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        allow: &AllowList,
        number: u64,
        answer: &Answer,
    ) -> Option<Done> {
        match answer {
            Ok(found) => self.candidates(core, allow, number, found),
            Err(Failure::NotFound) => self.fail(core, number, FlowCode::NameNotFound),
            Err(Failure::Silent) => self.fail(core, number, FlowCode::NameServerSilent),
            Err(Failure::OwnEntry) => self.fail(core, number, FlowCode::Loop),
            Err(Failure::Exhausted) => self.fail(core, number, FlowCode::Overloaded),
        }
    }

    fn candidates<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        allow: &AllowList,
        number: u64,
        found: &[Found],
    ) -> Option<Done> {
        let dial = self.by_number.get_mut(&number)?;
        dial.resolve = core.now.saturating_duration_since(dial.since);
        match permitted(allow, dial.endpoint(), found) {
            Ok(addresses) => {
                let worked = match addresses.len() {
                    1 => None, // There is nothing to choose.
                    _ => self.worked.of(core.now, dial.endpoint()),
                };
                dial.race = Race::over(arranged(addresses, worked));
                self.dial_next(core, number)
            }
            Err(code) => self.fail(core, number, code),
        }
    }

    /// A connection attempt ended: the first one that succeeds wins, and a failed one makes way for
    /// the next at once.
    pub(crate) fn connected<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        socket: SocketId,
        result: std::io::Result<()>,
    ) -> Option<Done> {
        let dial = self.by_number.get_mut(&number)?;
        let Attempt { address, since, .. } = dial.race.take(socket)?;
        self.sockets -= 1;
        if let Err(error) = result {
            core.disown(socket);
            core.io.close(socket, Close::Reset);
            dial.race.failed(code_of(&error, address), since, address);
            return self.dial_next(core, number);
        }
        let mut dial = self.take(core, number)?;
        dial.last = Some((since, address));
        if !dial.race.is_first(address) {
            self.worked
                .remember(core.now, dial.endpoint(), address.ip());
        }
        Some(Done {
            dial,
            result: Ok((socket, address)),
        })
    }

    /// Dials exactly the next address that was checked, beside those under way; with none at all
    /// left it failed.
    fn dial_next<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64) -> Option<Done> {
        let dial = self.by_number.get_mut(&number)?;
        while let Some(address) = dial.race.next_candidate(core.now) {
            match core.io.connect(address) {
                Ok(socket) => {
                    core.own(socket, Owner::Role(number));
                    self.sockets += 1;
                    let next_at = dial.race.started(core.now, socket, address);
                    self.steps.extend(next_at.map(|at| (at, number)));
                    return None;
                }
                Err(error) => dial
                    .race
                    .failed(code_of(&error, address), core.now, address),
            }
        }
        if dial.race.is_running() {
            return None;
        }
        let (code, last) = dial.race.outcome();
        dial.last = last;
        self.unreached(core, number, code)
    }

    /// Goes on where an address was silent for a while, and gives those up that took too long.
    /// Called at each tick, so all of it is late by up to 100 ms.
    pub(crate) fn expire<I: Io>(&mut self, core: &mut Core<I, AgentFlow>) -> Vec<Done> {
        let mut over = Vec::new();
        while let Some(&(at, number)) = self.steps.front()
            && at <= core.now
        {
            self.steps.pop_front();
            over.extend(self.step(core, at, number));
        }
        while let Some(&(deadline, number)) = self.deadlines.front()
            && deadline <= core.now
        {
            self.deadlines.pop_front();
            self.late.push(number);
        }
        for number in std::mem::take(&mut self.late) {
            match self.by_number.get(&number).map(Dial::end) {
                Some(end) if end <= core.now => over.extend(self.give_up(core, number)),
                Some(_) => self.late.push(number),
                None => {}
            }
        }
        over
    }

    /// An address was silent for a while: the next one is tried beside it.
    fn step<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        at: Instant,
        number: u64,
    ) -> Option<Done> {
        let dial = self.by_number.get_mut(&number)?;
        if !dial.race.is_due(at) {
            return None;
        }
        if self.sockets >= SOCKETS_MAX {
            self.steps.push_back((dial.race.put_off(core.now), number));
            return None;
        }
        self.dial_next(core, number)
    }

    fn give_up<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64) -> Option<Done> {
        let dial = self.by_number.get_mut(&number)?;
        if !dial.race.has_begun() {
            return self.fail(core, number, FlowCode::NameServerSilent);
        }
        let (code, last) = dial.race.outcome_in_time();
        dial.last = last;
        self.unreached(core, number, code)
    }

    /// No address could be reached: what is known of them may be out of date.
    fn unreached<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        code: FlowCode,
    ) -> Option<Done> {
        let endpoint = self.by_number.get(&number)?.endpoint();
        if let Host::Name(name) = &endpoint.host {
            self.resolver.forget(core.now, name);
            self.worked.forget(endpoint);
        }
        self.fail(core, number, code)
    }

    /// Gives all up.
    pub(crate) fn fail_all<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        code: FlowCode,
    ) -> Vec<Done> {
        let numbers: Vec<_> = self.by_number.keys().copied().collect();
        numbers
            .into_iter()
            .filter_map(|number| self.fail(core, number, code))
            .collect()
    }

    /// Forgets one that nobody waits for any more.
    pub(crate) fn abandon<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64) {
        let _ = self.fail(core, number, FlowCode::Aborted);
    }

    /// Forgets all of a session that is gone.
    pub(crate) fn session_gone<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        session: SessionId,
    ) {
        let of_session =
            |(&number, dial): (&u64, &Dial)| (dial.session == session).then_some(number);
        for number in self
            .by_number
            .iter()
            .filter_map(of_session)
            .collect::<Vec<_>>()
        {
            self.abandon(core, number);
        }
    }

    fn fail<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        code: FlowCode,
    ) -> Option<Done> {
        let dial = self.take(core, number)?;
        Some(Done {
            dial,
            result: Err(code),
        })
    }

    /// Takes a dial out, and closes what of it is under way: nothing was sent there.
    fn take<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64) -> Option<Dial> {
        let mut dial = self.by_number.remove(&number)?;
        if let DialPurpose::Flow { stream, .. } = &dial.purpose {
            self.number_by_stream.remove(&(dial.session, *stream));
        }
        for Attempt { socket, .. } in dial.race.take_all() {
            self.sockets -= 1;
            core.disown(socket);
            core.io.close(socket, Close::Reset);
        }
        Some(dial)
    }
}

impl Dial {
    /// When it is given up: when its last attempt has had its time, as far as the relay waits.
    fn end(&self) -> Instant {
        let answer_by = self.since + ANSWER_DEADLINE;
        let last = self.race.newest_attempt();
        last.map_or(answer_by, |began| answer_by.min(began + DIAL_DEADLINE))
    }

    fn endpoint(&self) -> &Endpoint {
        match &self.purpose {
            DialPurpose::Flow { open, .. } => &open.endpoint,
            DialPurpose::Probe(probe) => &probe.endpoint,
        }
    }

    fn hyco(&self) -> &HycoName {
        self.purpose.hyco()
    }
}

impl DialPurpose {
    /// For which hybrid connection.
    #[must_use]
    pub(crate) fn hyco(&self) -> &HycoName {
        match self {
            Self::Flow { open, .. } => &open.hyco,
            Self::Probe(probe) => &probe.hyco,
        }
    }
}

/// What a failed connection attempt to this address means.
fn code_of(error: &std::io::Error, to: SocketAddr) -> FlowCode {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused | Kind::ConnectionReset => FlowCode::EndpointRefused,
        Kind::TimedOut => FlowCode::EndpointTimedOut,
        // Linux reports both by one number: all ports are in use, or there is no address to connect
        // from.
        Kind::AddrNotAvailable if io::socket::has_source_address(to) => FlowCode::NoSourcePort,
        _ if io::is_exhaustion(error) => FlowCode::Overloaded,
        // Among them: no route, no interface, no IPv6 at all, a local firewall's refusal.
        _ => FlowCode::EndpointUnreachable,
    }
}

/// The addresses that may be dialled, in order.
///
/// # Errors
/// The name has no address, or none of its addresses is permitted.
fn permitted(
    allow: &AllowList,
    endpoint: &Endpoint,
    found: &[Found],
) -> Result<Vec<SocketAddr>, FlowCode> {
    if found.is_empty() {
        return Err(FlowCode::NameNotFound);
    }
    let allowed = found
        .iter()
        .filter(|found| allow.permits_ip(endpoint, found.ip, found.from_hosts_file));
    let addresses: Vec<_> = allowed
        .map(|found| SocketAddr::new(found.ip, endpoint.port.get()))
        .collect();
    if addresses.is_empty() {
        Err(FlowCode::NotAllowed)
    } else {
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests;
