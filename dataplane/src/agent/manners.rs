//! How a probe leaves. Some services speak first and take a visitor who says nothing for an
//! attacker: they log it, count it, and lock its host out in the end. The greeting is read, an
//! answer says goodbye where the protocol has one, and to a service that speaks first only so many
//! probes are made without a real flow between, whatever a relay asks for.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tracing::{debug, warn};
use underpass_proto::Endpoint;

use super::role::AgentFlow;
use crate::core::{Core, Owner};
use crate::io::{Close, Io, SocketId};

/// How long a greeting is waited for. What speaks first does so in a round trip; a service that
/// serves one at a time is held up no longer.
const GREETING_MAX: Duration = Duration::from_millis(300);

/// How long a goodbye may take.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// Probes that may be leaving at once on one worker. Others close at once.
const LEAVING_MAX: usize = 1_024;

/// Probes of a service that speaks first, without a flow between; also how many may be under way
/// while it is not known whether it does. MySQL locks a host out after 100 (`max_connect_errors`).
const PROBES_MAX: u32 = 60;

/// Endpoints that are remembered. Of one that is not, nothing is probed.
const ENDPOINTS_MAX: usize = 4_096;

/// Set in the number of a leaving probe's socket: those of dials are smaller.
const LEAVING: u64 = 1 << 63;

/// What the workers of an agent know of endpoints, by host in lower case and port: a service counts
/// visitors, however its name is spelled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Visited(Arc<Endpoints>);

type VisitsByEndpoint = HashMap<(String, NonZeroU16), Visits>;

#[derive(Debug, Default)]
struct Endpoints {
    visits: Mutex<VisitsByEndpoint>,
    /// Whether a flow to any of them would set something back.
    any_awaits_flow: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Visits {
    /// Probes since a flow last reached it, those under way among them.
    probes: u32,
    speaks_first: SpeaksFirst,
    /// The warning about the probe that was refused was logged since a flow last reached it.
    is_warned: bool,
}

/// Whether a service greets its visitors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum SpeaksFirst {
    /// No probe has ended yet.
    #[default]
    Unknown,
    No,
    Yes,
}

/// Why a probe is not made: there were too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ProbeRefused {
    /// Whether a person is to be warned of it: true for the first refusal alone.
    warn: bool,
}

/// Probes that were answered for and are leaving.
pub(crate) struct Manners {
    visited: Visited,
    leaving: FxHashMap<u64, Leaving>,
    next: u64,
}

#[derive(Debug)]
struct Leaving {
    socket: SocketId,
    endpoint: Endpoint,
    until: Instant,
    greeted: bool,
}

impl Visited {
    fn open(&self) -> MutexGuard<'_, VisitsByEndpoint> {
        self.0.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called with the lock held, after each change.
    fn note_changed(&self, visited: &VisitsByEndpoint) {
        let any = visited.values().any(Visits::awaits_flow);
        self.0.any_awaits_flow.store(any, Ordering::Release);
    }

    fn any_awaits_flow(&self) -> bool {
        self.0.any_awaits_flow.load(Ordering::Acquire)
    }

    /// Counts a probe that is about to be made, or refuses it.
    fn begin_probe(&self, endpoint: &Endpoint) -> Result<(), ProbeRefused> {
        let key = key(endpoint);
        let mut visited = self.open();
        if visited.len() >= ENDPOINTS_MAX && !visited.contains_key(&key) {
            visited.retain(|_, visits| visits.is_counted());
            if visited.len() >= ENDPOINTS_MAX {
                return Err(ProbeRefused { warn: false });
            }
        }
        let visits = visited.entry(key).or_default();
        if visits.speaks_first == SpeaksFirst::No || visits.probes < PROBES_MAX {
            visits.probes = visits.probes.saturating_add(1);
            self.note_changed(&visited);
            return Ok(());
        }
        let warn = visits.speaks_first == SpeaksFirst::Yes && !visits.is_warned;
        visits.is_warned |= warn;
        Err(ProbeRefused { warn })
    }

    /// Changes what is known of an endpoint that is remembered.
    fn update(&self, endpoint: &Endpoint, change: impl FnOnce(&mut Visits)) {
        let key = key(endpoint);
        let mut visited = self.open();
        let Some(visits) = visited.get_mut(&key) else {
            return;
        };
        let before = *visits;
        change(visits);
        if *visits != before {
            self.note_changed(&visited);
        }
    }

    /// A probe has ended: the service spoke, or it did not. One that spoke once may be slow to
    /// speak the next time.
    fn learn(&self, endpoint: &Endpoint, spoke: bool) {
        self.update(endpoint, |visits| match spoke {
            true => visits.speaks_first = SpeaksFirst::Yes,
            false if visits.speaks_first == SpeaksFirst::Unknown => {
                visits.speaks_first = SpeaksFirst::No;
            }
            false => {}
        });
    }
}

impl Visits {
    /// Whether a flow would set something back that bounds its probes.
    fn awaits_flow(&self) -> bool {
        self.speaks_first != SpeaksFirst::No && (self.probes > 0 || self.is_warned)
    }

    /// Whether its count bounds the probes to come, so that it must not be forgotten.
    fn is_counted(&self) -> bool {
        match self.speaks_first {
            SpeaksFirst::Unknown => self.probes > 0,
            SpeaksFirst::No => false,
            SpeaksFirst::Yes => true,
        }
    }
}

fn key(endpoint: &Endpoint) -> (String, NonZeroU16) {
    let host = match endpoint.host.ip() {
        Some(ip) => ip.to_string(),
        None => endpoint.host.to_string().to_ascii_lowercase(),
    };
    (host, endpoint.port)
}

impl Manners {
    pub(crate) fn new(visited: Visited) -> Self {
        Self {
            visited,
            leaving: FxHashMap::default(),
            next: LEAVING,
        }
    }

    /// Counts a probe that is about to be made. False: there were too many, and it is not made.
    ///
    /// Counted before the connection, so that any number of requests at once is bounded. Followed
    /// by [`Self::leave`], or by [`Self::not_reached`]; a probe whose session is gone before either
    /// stays counted, as its connection may have been made.
    #[must_use]
    pub(crate) fn begin_probe(&self, endpoint: &Endpoint) -> bool {
        let begun = self.visited.begin_probe(endpoint);
        if let Err(ProbeRefused { warn: true }) = begun {
            warn!(%endpoint, probes = PROBES_MAX, "probe skipped: the endpoint speaks first and may block this host after so many connections without a login");
        }
        begun.is_ok()
    }

    /// The connection of a probe failed: the service has not seen it.
    pub(crate) fn not_reached(&self, endpoint: &Endpoint) {
        self.visited.update(endpoint, |visits| {
            visits.probes = visits.probes.saturating_sub(1);
        });
    }

    /// A flow reached the endpoint.
    pub(crate) fn flow_reached(&self, endpoint: &Endpoint) {
        // Every new flow comes here, and most services do not speak first.
        if !self.visited.any_awaits_flow() {
            return;
        }
        self.visited.update(endpoint, |visits| {
            visits.probes = 0;
            visits.is_warned = false;
        });
    }

    /// A probe is connected and was answered for: its socket waits for a greeting, briefly.
    pub(crate) fn leave<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        endpoint: &Endpoint,
        socket: SocketId,
    ) {
        core.disown(socket);
        if self.leaving.len() >= LEAVING_MAX {
            return core.io.close(socket, Close::Clean);
        }
        self.next += 1;
        let leaving = Leaving {
            socket,
            endpoint: endpoint.clone(),
            until: core.now + GREETING_MAX,
            greeted: false,
        };
        self.leaving.insert(self.next, leaving);
        core.own(socket, Owner::Role(self.next));
        core.io.receive(socket);
    }

    /// Bytes of a leaving probe's socket, or its end.
    pub(crate) fn received<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        result: io::Result<Bytes>,
    ) {
        let Some(leaving) = self.leaving.get_mut(&number) else {
            return;
        };
        let bytes = result.unwrap_or_default();
        if bytes.is_empty() {
            return self.close(core, number);
        }
        if std::mem::replace(&mut leaving.greeted, true) {
            // The answer to the goodbye.
            return core.io.receive(leaving.socket);
        }
        let (socket, endpoint) = (leaving.socket, &leaving.endpoint);
        debug!(%endpoint, len = bytes.len(), "the endpoint speaks first");
        if is_locked_out(&bytes) {
            warn!(%endpoint, "MySQL or MariaDB at the endpoint has locked this host out, after too many connections that said nothing; \
                `mysqladmin flush-hosts` there lifts that");
        }
        self.visited.learn(endpoint, true);
        match goodbye(&bytes) {
            Some(words) => {
                leaving.until = core.now + GOODBYE_MAX;
                core.io.send(socket, vec![Bytes::from_static(words)]);
            }
            None => self.close(core, number),
        }
    }

    /// A goodbye was sent: the service closes.
    pub(crate) fn sent<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        number: u64,
        result: &io::Result<usize>,
    ) {
        match self.leaving.get(&number) {
            Some(leaving) if result.is_ok() => {
                core.io.shutdown(leaving.socket);
                core.io.receive(leaving.socket);
            }
            _ => self.close(core, number),
        }
    }

    /// Closes those that said nothing, or did not close.
    pub(crate) fn expire<I: Io>(&mut self, core: &mut Core<I, AgentFlow>) {
        let now = core.now;
        let over = |(&number, leaving): (&u64, &Leaving)| (leaving.until <= now).then_some(number);
        for number in self.leaving.iter().filter_map(over).collect::<Vec<_>>() {
            self.close(core, number);
        }
    }

    fn close<I: Io>(&mut self, core: &mut Core<I, AgentFlow>, number: u64) {
        if let Some(leaving) = self.leaving.remove(&number) {
            // One that closes without a word, as a proxy without a server does, is taken for quiet.
            self.visited.learn(&leaving.endpoint, leaving.greeted);
            core.disown(leaving.socket);
            core.io.close(leaving.socket, Close::Clean);
        }
    }
}

/// What ends a conversation that this greeting begins; `None`: closing is all that there is.
fn goodbye(greeting: &[u8]) -> Option<&'static [u8]> {
    match greeting {
        // SMTP (RFC 5321) and FTP (RFC 959), on one or several lines.
        [b'2', b'2', b'0', b' ' | b'-', ..] => Some(b"QUIT\r\n"),
        // POP3 (RFC 1939).
        [b'+', b'O', b'K', ..] => Some(b"QUIT\r\n"),
        // IMAP (RFC 9051).
        [b'*', b' ', b'O', b'K', ..] => Some(b"a LOGOUT\r\n"),
        // SSH (RFC 4253): to one that names itself sshd says less in its log.
        [b'S', b'S', b'H', b'-', ..] => Some(b"SSH-2.0-underpass_probe\r\n"),
        _ => None,
    }
}

/// Whether this is MySQL's error 1129, `ER_HOST_IS_BLOCKED`, in the place of its greeting.
fn is_locked_out(greeting: &[u8]) -> bool {
    const HOST_IS_BLOCKED: u16 = 1_129;
    // A packet: length (3 bytes), sequence number 0, kind, code.
    let [_, _, _, 0, 0xff, low, high, ..] = greeting else {
        return false;
    };
    u16::from_le_bytes([*low, *high]) == HOST_IS_BLOCKED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_has_its_goodbye_and_an_unknown_one_is_closed_without_a_reply() {
        for (greeting, words) in [
            ("220 mail.corp ESMTP\r\n", Some("QUIT\r\n")),
            ("220-welcome\r\n220 ftp\r\n", Some("QUIT\r\n")),
            ("+OK ready\r\n", Some("QUIT\r\n")),
            ("* OK [CAPABILITY IMAP4rev1]\r\n", Some("a LOGOUT\r\n")),
            (
                "SSH-2.0-OpenSSH_9.6\r\n",
                Some("SSH-2.0-underpass_probe\r\n"),
            ),
            ("Y\0\0\0\n11.8.2-MariaDB\0", None),
            ("", None),
        ] {
            assert_eq!(
                goodbye(greeting.as_bytes()),
                words.map(str::as_bytes),
                "{greeting:?}"
            );
        }
    }

    #[test]
    fn a_host_that_is_locked_out_is_known_by_the_error() {
        assert!(is_locked_out(
            b"J\0\0\0\xff\x69\x04Host '192.0.2.7' is blocked"
        ));
        assert!(!is_locked_out(b"J\0\0\0\xff\x10\x04Too many connections"));
        assert!(!is_locked_out(b"Y\0\0\0\n11.8.2-MariaDB\0"));
    }

    #[test]
    fn a_service_that_speaks_first_is_probed_so_many_times_and_again_after_a_flow() {
        let (first, quiet) = (endpoint("db.corp:3306"), endpoint("web.corp:80"));
        let manners = Manners::new(Visited::default());
        for (endpoint, speaks) in [(&first, true), (&quiet, false)] {
            assert!(manners.begin_probe(endpoint));
            manners.visited.learn(endpoint, speaks);
        }
        assert_eq!(begun(&manners, &first, 1_000), PROBES_MAX - 1);
        assert_eq!(begun(&manners, &quiet, 1_000), 1_000);
        manners.flow_reached(&first);
        assert_eq!(begun(&manners, &first, 1_000), PROBES_MAX);
        // A greeting that is late once makes it no quiet one.
        manners.visited.learn(&first, false);
        assert!(!manners.begin_probe(&first));
        // No flow sets a quiet one back: what was quiet and speaks now has had its probes.
        manners.visited.learn(&quiet, true);
        assert!(!manners.begin_probe(&quiet));
    }

    #[test]
    fn probes_at_once_are_counted_before_they_connect_and_given_back_where_they_do_not() {
        let (manners, endpoint) = (Manners::new(Visited::default()), endpoint("db.corp:3306"));
        assert_eq!(begun(&manners, &endpoint, 200), PROBES_MAX);
        for _ in 0..10 {
            manners.not_reached(&endpoint);
        }
        assert_eq!(begun(&manners, &endpoint, 200), 10);
        // The first of them is greeted, or has waited in vain for a greeting.
        manners.visited.learn(&endpoint, true);
        assert_eq!(begun(&manners, &endpoint, 200), 0);
        manners.flow_reached(&endpoint);
        manners.not_reached(&endpoint);
        assert_eq!(begun(&manners, &endpoint, 200), PROBES_MAX);
    }

    #[test]
    fn an_endpoint_is_counted_once_however_it_is_spelled() {
        for (one, other) in [
            ("db.corp:3306", "DB.Corp.:3306"),
            ("10.0.0.1:3306", "[::ffff:10.0.0.1]:3306"),
        ] {
            let manners = Manners::new(Visited::default());
            let (one, other) = (endpoint(one), endpoint(other));
            assert_eq!(begun(&manners, &one, 30), 30);
            assert_eq!(begun(&manners, &other, 200), PROBES_MAX - 30);
            manners.flow_reached(&other);
            assert!(manners.begin_probe(&one));
        }
    }

    #[test]
    fn a_full_table_drops_who_does_not_speak_first_and_else_refuses_new_ones() {
        let manners = Manners::new(Visited::default());
        let number = |number: usize| endpoint(&format!("s{number}.corp:25"));
        for at in 0..ENDPOINTS_MAX {
            assert!(manners.begin_probe(&number(at)));
            manners.visited.learn(&number(at), at % 2 == 0);
        }
        for at in ENDPOINTS_MAX..ENDPOINTS_MAX * 3 / 2 {
            assert_eq!(begun(&manners, &number(at), 200), PROBES_MAX);
        }
        let beyond = number(ENDPOINTS_MAX * 2);
        assert!(!manners.begin_probe(&beyond));
        assert_eq!(begun(&manners, &number(0), 200), PROBES_MAX - 1);
        assert_eq!(manners.visited.open().len(), ENDPOINTS_MAX);
        // Unreached ones, too, make room.
        for _ in 0..PROBES_MAX {
            manners.not_reached(&number(ENDPOINTS_MAX));
        }
        assert!(manners.begin_probe(&beyond));
    }

    #[test]
    fn the_warning_is_given_once_each_time_that_the_bound_is_crossed() {
        let (visited, endpoint) = (Visited::default(), endpoint("db.corp:3306"));
        let manners = Manners::new(visited.clone());
        let warnings = || {
            let refused = (0..200).filter_map(|_| visited.begin_probe(&endpoint).err());
            refused.filter(|refused| refused.warn).count()
        };
        // All of them under way before the greeting of the first.
        assert_eq!(warnings(), 0);
        visited.learn(&endpoint, true);
        assert_eq!([warnings(), warnings()], [1, 0]);
        manners.not_reached(&endpoint);
        assert_eq!(warnings(), 0);
        manners.flow_reached(&endpoint);
        assert_eq!([warnings(), warnings()], [1, 0]);
    }

    /// How many of so many probes are begun.
    fn begun(manners: &Manners, endpoint: &Endpoint, count: u32) -> u32 {
        (0..count)
            .map(|_| u32::from(manners.begin_probe(endpoint)))
            .sum()
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse().expect("an endpoint")
    }
}
