//! From a name to its addresses, on threads of their own, because the system's resolver blocks. Decides nothing about them.

use std::net::{IpAddr, ToSocketAddrs};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use underpass_proto::{Endpoint, FlowCode, Host};

/// Threads that resolve names: as many slow answers of a name server may be under way at once.
const THREADS: usize = 4;

/// Names that may wait for a thread; a flow beyond is refused as overloaded.
const QUEUE_MAX: usize = 1024;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// A name to resolve, and where the answer goes.
struct Question {
    endpoint: Endpoint,
    answer: Box<dyn FnOnce(Vec<Found>) + Send>,
}

/// One address of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// The address, unmapped.
    pub(crate) ip: IpAddr,
    /// Whether this machine's hosts file makes it of the name.
    pub(crate) from_hosts_file: bool,
}

/// Resolves names beside the workers.
#[derive(Clone)]
pub(crate) struct Resolver(Sender<Question>);

impl Resolver {
    /// Starts its threads. They end with the last clone.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (questions, asked) = bounded(QUEUE_MAX);
        for number in 0..THREADS {
            let asked: Receiver<Question> = asked.clone();
            std::thread::Builder::new()
                .name(format!("resolve-{number}"))
                .spawn(move || {
                    for question in asked {
                        (question.answer)(resolve(&question.endpoint));
                    }
                })?;
        }
        Ok(Self(questions))
    }

    /// One that resolves nothing: a simulation has addresses only.
    #[cfg(test)]
    pub(crate) fn of_nothing() -> Self {
        Self(bounded(QUEUE_MAX).0)
    }

    /// Resolves `endpoint` on another thread; `answer` is called there, with nothing when the name is not found.
    ///
    /// # Errors
    /// Too many names wait.
    pub(crate) fn ask(
        &self,
        endpoint: Endpoint,
        answer: impl FnOnce(Vec<Found>) + Send + 'static,
    ) -> Result<(), FlowCode> {
        let question = Question {
            endpoint,
            answer: Box::new(answer),
        };
        self.0.try_send(question).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => FlowCode::Overloaded,
        })
    }
}

/// What an endpoint that needs no resolution leads to.
#[must_use]
pub(crate) fn literal(endpoint: &Endpoint) -> Option<Vec<Found>> {
    endpoint.host.ip().map(|ip| {
        vec![Found {
            ip,
            from_hosts_file: false,
        }]
    })
}

/// Resolves by the system: blocks.
#[must_use]
pub(crate) fn resolve(endpoint: &Endpoint) -> Vec<Found> {
    let Host::Name(name) = &endpoint.host else {
        return literal(endpoint).unwrap_or_default();
    };
    let Ok(addresses) = (name.as_str(), endpoint.port.get()).to_socket_addrs() else {
        return Vec::new();
    };
    let mut ips: Vec<IpAddr> = Vec::new();
    for address in addresses {
        let ip = address.ip().to_canonical();
        if !ips.contains(&ip) && ips.len() < ADDRESSES_MAX {
            ips.push(ip);
        }
    }
    // The file matters only for loopback, and is read only then.
    let hosts = ips
        .iter()
        .any(IpAddr::is_loopback)
        .then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    let in_hosts = |ip: IpAddr| {
        hosts
            .as_deref()
            .is_some_and(|hosts| hosts_file_says(hosts, name.as_str(), ip))
    };
    ips.into_iter()
        .map(|ip| Found {
            ip,
            from_hosts_file: ip.is_loopback() && in_hosts(ip),
        })
        .collect()
}

/// Whether a hosts file (hosts(5)) gives `ip` for `name`.
fn hosts_file_says(hosts: &str, name: &str, ip: IpAddr) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    hosts.lines().any(|line| {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let same_ip = words
            .next()
            .and_then(|word| word.parse::<IpAddr>().ok())
            .is_some_and(|it| it.to_canonical() == ip);
        same_ip && words.any(|word| word.eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = "127.0.0.1 localhost\n# 127.0.0.1 commented\n127.0.1.1\tdb.corp db # the database\n::1 six\n";

    #[test]
    fn the_hosts_file_is_read_as_the_system_reads_it() {
        let says =
            |name: &str, ip: &str| hosts_file_says(HOSTS, name, ip.parse().expect("an address"));
        assert!(says("localhost", "127.0.0.1"));
        assert!(says("DB.corp.", "127.0.1.1"));
        assert!(says("db", "127.0.1.1"));
        assert!(says("six", "::1"));
        assert!(!says("db", "127.0.0.1"));
        assert!(!says("commented", "127.0.0.1"));
        assert!(!says("database", "127.0.1.1"));
    }
}
