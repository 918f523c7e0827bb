//! The system's own resolver (nsswitch.conf: hosts file, DNS, mDNS), and what the hosts file says.
//! Blocks.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};

use underpass_proto::HostName;
use underpass_proto::endpoint::HOSTS_LINE_END;

use super::{Answer, Failure, Found};
use crate::io::is_exhaustion;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// What the C libraries say when no name server answered (EAI_AGAIN): glibc and musl. Rust passes
/// on the text alone.
const SILENT: [&str; 2] = ["Temporary failure in name resolution", "Try again"];

/// What they say without memory (EAI_MEMORY): glibc and musl.
const NO_MEMORY: [&str; 2] = ["Memory allocation failure", "Out of memory"];

/// Resolves by the system: blocks.
pub(super) fn look_up(name: &HostName) -> Answer {
    // Any port will do: none is looked up.
    let addresses = (name.as_str(), 1_u16)
        .to_socket_addrs()
        .map_err(|error| failure(&error))?;
    let mut ips: Vec<IpAddr> = Vec::new();
    for address in addresses {
        let ip = address.ip().to_canonical();
        if !ips.contains(&ip) && ips.len() < ADDRESSES_MAX {
            ips.push(ip);
        }
    }
    if ips.is_empty() {
        return Err(Failure::NotFound);
    }
    // The file matters only for loopback, and is read only then.
    let hosts = match ips.iter().any(IpAddr::is_loopback) {
        true => match std::fs::read_to_string("/etc/hosts") {
            Err(error) if is_exhaustion(&error) => return Err(Failure::Exhausted),
            hosts => Some(hosts.unwrap_or_default()),
        },
        false => None,
    };
    let in_hosts = |ip: IpAddr| {
        hosts
            .as_deref()
            .is_some_and(|hosts| hosts_file_says(hosts, name.as_str(), ip))
    };
    let of_sender = |ip: &IpAddr| {
        let hosts = hosts.as_deref().filter(|_| ip.is_loopback());
        hosts.is_some_and(|hosts| is_senders(hosts, name.as_str(), *ip))
    };
    ips.retain(|ip| !of_sender(ip));
    if ips.is_empty() {
        return Err(Failure::OwnEntry);
    }
    let found = |ip: IpAddr| Found {
        ip,
        from_hosts_file: ip.is_loopback() && in_hosts(ip),
    };
    Ok(ips.into_iter().map(found).collect())
}

/// Whether a hosts file gives this address for this name by entries of a sender alone, which
/// `sender run --hosts write` marks so. They lead applications into a tunnel: an agent that
/// followed them would come back to itself.
fn is_senders(hosts: &str, name: &str, ip: IpAddr) -> bool {
    let (of_senders, of_others): (Vec<&str>, Vec<&str>) = hosts
        .lines()
        .partition(|line| line.trim_end().ends_with(HOSTS_LINE_END));
    hosts_file_says(&of_senders.join("\n"), name, ip)
        && !hosts_file_says(&of_others.join("\n"), name, ip)
}

fn failure(error: &io::Error) -> Failure {
    let text = error.to_string();
    // EAI_SYSTEM comes as the error of the system call that failed.
    if is_exhaustion(error) || NO_MEMORY.iter().any(|it| text.contains(it)) {
        Failure::Exhausted
    } else if SILENT.iter().any(|silent| text.contains(silent)) {
        Failure::Silent
    } else {
        Failure::NotFound
    }
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
    fn a_name_that_is_not_found_differs_from_a_look_up_that_could_not_be_made() {
        let says = |text: &str| {
            let text = format!("failed to lookup address information: {text}");
            failure(&io::Error::other(text))
        };
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(failure(&error), Failure::Exhausted, "errno {errno}");
        }
        for text in NO_MEMORY {
            assert_eq!(says(text), Failure::Exhausted);
        }
        for text in SILENT {
            assert_eq!(says(text), Failure::Silent);
        }
        assert_eq!(says("Name or service not known"), Failure::NotFound);
    }

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

    #[test]
    fn an_entry_of_a_sender_is_no_answer_unless_another_line_gives_it_too() {
        let hosts = "127.0.0.1 localhost\n# underpass begin (sender 1)\n127.0.0.7 db.corp # by underpass\n127.0.0.8 web.corp # by underpass\n# underpass end\n127.0.0.8 web.corp\n";
        let says = |name: &str, ip: &str| is_senders(hosts, name, ip.parse().expect("an address"));
        assert!(says("DB.corp.", "127.0.0.7"));
        assert!(!says("web.corp", "127.0.0.8"));
        assert!(!says("localhost", "127.0.0.1"));
        assert!(!says("db.corp", "127.0.0.8"));
    }
}
