//! How a probe leaves. Some services speak first and take a visitor who says nothing for an
//! attacker: they log it, count it, and lock its host out in the end. The greeting is read, an
//! answer says goodbye where the protocol has one, and to a service that speaks first only so many
//! probes are made without a real flow between, whatever a relay asks for.

use std::collections::HashMap;
use std::io;
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

/// Probes of a service that speaks first, without a flow between. MySQL locks a host out after 100
/// (`max_connect_errors`).
const PROBES_MAX: u32 = 60;

/// Endpoints that are remembered. An agent serves no more hybrid connections.
const ENDPOINTS_MAX: usize = 4_096;

/// Set in the number of a leaving probe's socket: those of dials are smaller.
const LEAVING: u64 = 1 << 63;

/// What the workers of an agent know of endpoints.
#[derive(Clone, Debug, Default)]
pub(crate) struct Visited(Arc<Mutex<HashMap<Endpoint, Visits>>>);

#[derive(Clone, Copy, Debug, Default)]
struct Visits {
    /// Probes since a flow last reached it.
    probes: u32,
    speaks_first: bool,
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
    fn open(&self) -> MutexGuard<'_, HashMap<Endpoint, Visits>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn visits(&self, endpoint: &Endpoint, change: impl FnOnce(&mut Visits)) {
        let mut visited = self.open();
        if visited.len() < ENDPOINTS_MAX || visited.contains_key(endpoint) {
            change(visited.entry(endpoint.clone()).or_default());
        }
    }
}

impl Manners {
    pub(crate) fn new(visited: Visited) -> Self {
        Self {
            visited,
            leaving: FxHashMap::default(),
            next: LEAVING,
        }
    }

    /// Whether a probe may be made.
    pub(crate) fn may_probe(&self, endpoint: &Endpoint) -> bool {
        let visits = self
            .visited
            .open()
            .get(endpoint)
            .copied()
            .unwrap_or_default();
        if visits.speaks_first && visits.probes == PROBES_MAX {
            warn!(%endpoint, probes = PROBES_MAX, "not probed: the endpoint speaks first, and may lock this host out after so many visits without a real one");
            // Said once: the next ones are refused as well.
            self.visited.visits(endpoint, |visits| visits.probes += 1);
        }
        !visits.speaks_first || visits.probes < PROBES_MAX
    }

    /// A flow reached the endpoint.
    pub(crate) fn flow_reached(&self, endpoint: &Endpoint) {
        if let Some(visits) = self.visited.open().get_mut(endpoint) {
            visits.probes = 0;
        }
    }

    /// A probe is connected and was answered for: its socket waits for a greeting, briefly.
    pub(crate) fn leave<I: Io>(
        &mut self,
        core: &mut Core<I, AgentFlow>,
        endpoint: &Endpoint,
        socket: SocketId,
    ) {
        self.visited.visits(endpoint, |visits| {
            visits.probes = visits.probes.saturating_add(1);
        });
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
        self.visited
            .visits(endpoint, |visits| visits.speaks_first = true);
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
        if let Some(Leaving { socket, .. }) = self.leaving.remove(&number) {
            core.disown(socket);
            core.io.close(socket, Close::Clean);
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
    fn each_protocol_has_its_goodbye_and_who_is_not_known_is_left_in_silence() {
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
        let (first, quiet) = ("db.corp:3306", "web.corp:80");
        let [first, quiet] =
            [first, quiet].map(|text| text.parse::<Endpoint>().expect("an endpoint"));
        let visited = Visited::default();
        let manners = Manners::new(visited.clone());
        visited.visits(&first, |visits| visits.speaks_first = true);
        let count = |endpoint: &Endpoint| {
            let probes = (0..1_000).take_while(|_| {
                let may = manners.may_probe(endpoint);
                visited.visits(endpoint, |visits| visits.probes += 1);
                may
            });
            probes.count()
        };
        assert_eq!(count(&first), PROBES_MAX as usize);
        assert_eq!(count(&quiet), 1_000);
        manners.flow_reached(&first);
        assert!(manners.may_probe(&first));
    }
}
