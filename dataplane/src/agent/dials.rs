//! Connections to endpoints that are under way: the name is resolved beside the worker, each address is checked against the allow-list, and exactly
//! what was checked is dialled. A flow and a probe take the same way. Knows no links and moves no byte of a flow.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::StreamId;
use rustc_hash::FxHashMap;
use underpass_proto::limits::DIAL_DEADLINE;
use underpass_proto::wire::{Open, Probe};
use underpass_proto::{AllowList, Endpoint, FlowCode, Host, HycoName};

use super::role::{AgentFlow, EndpointFound, Message};
use crate::core::{Core, Owner};
use crate::io::{Close, Io, SocketId};
use crate::quic::SessionId;
use crate::resolve::{self, Answer, Asked, Asker, Failure, Found, Resolver};
use crate::worker::Handle;

/// Connections that may be under way at once on one worker.
const DIALS_MAX: usize = 10_000;

/// What a connection is wanted for.
#[derive(Debug)]
pub(crate) enum Errand {
    /// A flow. `first` came behind its Open.
    Flow {
        /// Its stream.
        stream: StreamId,
        /// What the relay said.
        open: Open,
        /// The application's first bytes, if they came already.
        first: Bytes,
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
    pub(crate) errand: Errand,
    /// When it was asked for.
    pub(crate) since: Instant,
    /// How long the name took to resolve.
    pub(crate) resolve: Duration,
    /// When the last address was dialled, and which.
    pub(crate) last: Option<(Instant, SocketAddr)>,
    candidates: VecDeque<SocketAddr>,
    socket: Option<SocketId>,
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
    deadlines: VecDeque<(Instant, u64)>,
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
        errand: Errand,
    ) -> Option<Done> {
        self.next += 1;
        let number = self.next;
        if let Errand::Flow { stream, .. } = &errand {
            self.number_by_stream.insert((session, *stream), number);
        }
        let dial = Dial {
            session,
            errand,
            since: core.now,
            resolve: Duration::ZERO,
            last: None,
            candidates: VecDeque::new(),
            socket: None,
        };
        let endpoint = dial.endpoint().clone();
        let asker = Asker {
            relay: relay.clone(),
            hyco: Some(dial.hyco().clone()),
        };
        self.by_number.insert(number, dial);
        self.deadlines.push_back((core.now + DIAL_DEADLINE, number));
        let name = match resolve::name_or_literal(&endpoint) {
            Ok(name) => name,
            Err(literal) => return self.candidates(core, allow, number, &[literal]),
        };
        let handle = self.handle.clone();
        let later = move |answer| {
            let _ = handle.send(Message::Own(EndpointFound(number, answer)));
        };
        let give_up = core.now + DIAL_DEADLINE;
        match self.resolver.ask(core.now, name, &asker, give_up, later) {
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
            Err(Failure::NotFound | Failure::Silent) => {
                self.fail(core, number, FlowCode::NameNotFound)
            }
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
                dial.candidates = addresses.into();
                self.dial_next(core, number, FlowCode::EndpointUnreachable)
            }
            Err(code) => self.fail(core, number, code),
        }
    }

    /// A connection attempt ended.
    pub(crate) fn connected<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        socket: SocketId,
        result: std::io::Result<()>,
    ) -> Option<Done> {
        if let Err(error) = result {
            core.disown(socket);
            core.io.close(socket, Close::Reset);
            self.by_number.get_mut(&number)?.socket = None;
            return self.dial_next(core, number, code_of(&error));
        }
        let mut dial = self.take(number)?;
        let (socket, (_, address)) = (dial.socket.take()?, dial.last?);
        Some(Done {
            dial,
            result: Ok((socket, address)),
        })
    }

    /// Dials exactly the next address that was checked; with none left it failed for what the last one said.
    fn dial_next<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        mut code: FlowCode,
    ) -> Option<Done> {
        let dial = self.by_number.get_mut(&number)?;
        while let Some(address) = dial.candidates.pop_front() {
            dial.last = Some((core.now, address));
            match core.io.connect(address) {
                Ok(socket) => {
                    core.own(socket, Owner::Role(number));
                    dial.socket = Some(socket);
                    return None;
                }
                Err(error) => code = code_of(&error),
            }
        }
        self.fail(core, number, code)
    }

    /// Gives those up that took too long.
    pub(crate) fn expire<I: Io>(&mut self, core: &mut Core<I, AgentFlow>) -> Vec<Done> {
        let mut over = Vec::new();
        while let Some(&(deadline, number)) = self.deadlines.front()
            && deadline <= core.now
        {
            self.deadlines.pop_front();
            over.extend(self.fail(core, number, FlowCode::EndpointTimedOut));
        }
        over
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
        let mut dial = self.take(number)?;
        if let Some(socket) = dial.socket.take() {
            core.disown(socket);
            core.io.close(socket, Close::Reset);
        }
        if dial.last.is_some()
            && let Host::Name(name) = &dial.endpoint().host
        {
            // It may have moved.
            self.resolver.forget(core.now, name);
        }
        Some(Done {
            dial,
            result: Err(code),
        })
    }

    fn take(&mut self, number: u64) -> Option<Dial> {
        let dial = self.by_number.remove(&number)?;
        if let Errand::Flow { stream, .. } = &dial.errand {
            self.number_by_stream.remove(&(dial.session, *stream));
        }
        Some(dial)
    }
}

impl Dial {
    fn endpoint(&self) -> &Endpoint {
        match &self.errand {
            Errand::Flow { open, .. } => &open.endpoint,
            Errand::Probe(probe) => &probe.endpoint,
        }
    }

    fn hyco(&self) -> &HycoName {
        match &self.errand {
            Errand::Flow { open, .. } => &open.hyco,
            Errand::Probe(probe) => &probe.hyco,
        }
    }
}

/// What a failed connection attempt means.
fn code_of(error: &std::io::Error) -> FlowCode {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused | Kind::ConnectionReset => FlowCode::EndpointRefused,
        Kind::TimedOut => FlowCode::EndpointTimedOut,
        Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::AddrNotAvailable
        | Kind::PermissionDenied => FlowCode::EndpointUnreachable,
        _ => FlowCode::Overloaded, // No descriptor, no memory, no port.
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
mod tests {
    use super::*;

    #[test]
    fn a_name_without_an_address_is_told_from_one_that_may_not_be_dialled() {
        let endpoint: Endpoint = "db.corp:1433".parse().expect("an endpoint");
        let allow: AllowList = ["db.corp:1433".parse().expect("an entry")]
            .into_iter()
            .collect();
        assert_eq!(
            permitted(&allow, &endpoint, &[]),
            Err(FlowCode::NameNotFound)
        );
        let metadata = Found {
            ip: "169.254.169.254".parse().expect("an address"),
            from_hosts_file: false,
        };
        assert_eq!(
            permitted(&allow, &endpoint, &[metadata]),
            Err(FlowCode::NotAllowed)
        );
        let fine = Found {
            ip: "10.1.2.3".parse().expect("an address"),
            from_hosts_file: false,
        };
        let only = "10.1.2.3:1433".parse().expect("an address");
        assert_eq!(
            permitted(&allow, &endpoint, &[metadata, fine]),
            Ok(vec![only])
        );
    }
}
