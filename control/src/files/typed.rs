//! Hosts, bindings and networks as people type them: taken where the meaning is plain, else a
//! message says what to type. Resolves nothing.
//!
//! The command line, the REST API and the files read them here, so that all three take the same and
//! use the same words.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use ipnet::IpNet;
use underpass_proto::allow::is_refused_always;
use underpass_proto::endpoint::HostError;
use underpass_proto::{Endpoint, Host};

/// The host of a service, as its agent reaches it. One that no agent ever dials is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceHost(pub Host);

/// Why a text is not the host of a service, and what to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceHostFault {
    /// It is no host.
    Host(HostError),
    /// It has a host, and more: a scheme, a port, a path.
    More {
        /// The host in it.
        host: Host,
        /// The port in it.
        port: Option<NonZeroU16>,
    },
    /// An instance of SQL Server.
    Instance(Host),
    /// An address that every agent refuses.
    NeverDialled(IpAddr),
}

impl FromStr for ServiceHost {
    type Err = ServiceHostFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        match text.parse::<Host>() {
            Ok(host) => dialled(host).map(Self),
            Err(error) => Err(fault_of(text, error)),
        }
    }
}

fn dialled(host: Host) -> Result<Host, ServiceHostFault> {
    match host.ip() {
        Some(ip) if is_refused_always(ip) => Err(ServiceHostFault::NeverDialled(ip)),
        _ => Ok(host),
    }
}

/// The host that is meant by a URL, `host:port`, SQL Server's `tcp:host,port` and `host\instance`,
/// or an IPv6 address with its zone.
fn fault_of(text: &str, error: HostError) -> ServiceHostFault {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let rest = rest.strip_prefix("tcp:").unwrap_or(rest);
    let authority = rest.split(['/', '?', '#', ';']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    if let Some((host, _)) = authority.split_once('\\')
        && let Ok(host) = host.parse()
    {
        return ServiceHostFault::Instance(host);
    }
    if let Some((address, _)) = authority.split_once('%')
        && let Ok(host @ Host::V6(_)) = address.parse()
    {
        let more = |host| ServiceHostFault::More { host, port: None };
        return dialled(host).map_or_else(|fault| fault, more);
    }
    let with_colon = authority.replacen(',', ":", 1);
    let found = match with_colon.parse::<Endpoint>() {
        Ok(Endpoint { host, port }) => Some((host, Some(port))),
        Err(_) => authority.parse::<Host>().ok().map(|host| (host, None)),
    };
    match found {
        Some((host, port)) => match dialled(host) {
            Ok(host) => ServiceHostFault::More { host, port },
            Err(fault) => fault,
        },
        // What is wrong with the host itself, not with the URL around it.
        None => ServiceHostFault::Host(authority.parse::<Host>().err().unwrap_or(error)),
    }
}

impl fmt::Display for ServiceHostFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(error) => error.fmt(out),
            Self::More { host, port: None } => write!(
                out,
                "it has more than a host in it; write {host} alone, and the port as port"
            ),
            Self::More {
                host,
                port: Some(port),
            } => write!(
                out,
                "it has more than a host in it; write {host} alone, and {port} as port"
            ),
            Self::Instance(host) => write!(
                out,
                "an instance name is no part of a host; write {host} alone, and the instance's own TCP port as port"
            ),
            Self::NeverDialled(ip) => write!(
                out,
                "no agent ever dials {ip}: unspecified, multicast, broadcast, link-local and cloud metadata addresses are refused; \
                 write the name or address of the service's machine, or localhost where the agent runs on it"
            ),
        }
    }
}

/// Where something listens: names are not looked up, so that what is bound is what is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding(pub SocketAddr);

/// What a binding looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BindingFault {
    /// It is none.
    #[error("write an IP address and a port, like 127.0.0.1:14330 or [::1]:14330")]
    Form,
    /// A port alone, or at `localhost`.
    #[error("write the address, too: 127.0.0.1:{0} for the applications of this machine")]
    Localhost(u16),
    /// All addresses, in another program's way of writing.
    #[error("for all addresses of this machine write 0.0.0.0:{0}, or [::]:{0} with IPv6")]
    All(u16),
}

impl FromStr for Binding {
    type Err = BindingFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if let Ok(address) = text.parse() {
            return Ok(Self(address));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("localhost", text));
        let port = port.parse().map_err(|_| BindingFault::Form)?;
        Err(match host {
            "" | "*" => BindingFault::All(port),
            host if host.eq_ignore_ascii_case("localhost") => BindingFault::Localhost(port),
            _ => BindingFault::Form,
        })
    }
}

/// A network, or one address, which is the network of itself alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network(pub IpNet);

/// It is neither.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it is neither a network like 10.0.0.0/8 nor an address like 10.1.2.3")]
pub struct NetworkFault;

impl FromStr for Network {
    type Err = NetworkFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let inside = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        let text = inside.unwrap_or(text);
        // As the applications' addresses are compared: IPv4 in its own form.
        let address = |ip: IpAddr| IpNet::from(ip.to_canonical());
        let network = text.parse().or_else(|_| text.parse().map(address));
        network.map(Self).map_err(|_| NetworkFault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_taken_in_every_plain_form() {
        for (typed, host) in [
            ("db01.corp", "db01.corp"),
            ("DB01.Corp.", "DB01.Corp"),
            (" db01 ", "db01"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("127.0.0.1", "127.0.0.1"),
            ("localhost", "localhost"),
        ] {
            let taken = typed.parse::<ServiceHost>().expect(typed);
            assert_eq!(taken.0.to_string(), host);
        }
    }

    #[test]
    fn what_has_more_than_a_host_in_it_is_told_what_to_write() {
        for (typed, told) in [
            ("https://db01.corp", "db01.corp alone, and the port as port"),
            (
                "http://db01.corp:8080/x?y",
                "db01.corp alone, and 8080 as port",
            ),
            ("db01.corp:1433", "db01.corp alone, and 1433 as port"),
            ("db01.corp.:1433", "db01.corp alone, and 1433 as port"),
            ("[2001:db8::7]:443", "2001:db8::7 alone, and 443 as port"),
            ("tcp:db01.corp,1433", "db01.corp alone, and 1433 as port"),
            (
                "jdbc:sqlserver://db01:1433;databaseName=x",
                "db01 alone, and 1433 as port",
            ),
            (
                "postgres://ann:secret@db01/x",
                "db01 alone, and the port as port",
            ),
            ("db01/", "db01 alone, and the port as port"),
            (
                "db01\\SQLEXPRESS",
                "db01 alone, and the instance's own TCP port as port",
            ),
            (
                "a b",
                "a host name has letters, digits, hyphens and dots only",
            ),
            ("https://", "the host is empty"),
        ] {
            let fault = typed.parse::<ServiceHost>().expect_err(typed).to_string();
            assert!(fault.ends_with(told), "{typed}: {fault}");
            assert!(!fault.contains("secret"), "{fault}");
        }
    }

    #[test]
    fn a_host_that_no_agent_dials_is_refused_by_the_agents_own_rule() {
        for typed in [
            "0.0.0.0",
            "::",
            "fe80::1",
            "fe80::1%eth0",
            "169.254.169.254",
            "169.254.169.254:80",
            "http://[fd00:ec2::254]/latest",
            "255.255.255.255",
            "224.0.0.1",
            "ff02::1",
            "::ffff:169.254.169.254",
        ] {
            let fault = typed.parse::<ServiceHost>().expect_err(typed);
            assert!(
                matches!(fault, ServiceHostFault::NeverDialled(_)),
                "{typed}: {fault}"
            );
        }
    }

    #[test]
    fn a_binding_without_an_address_is_told_which_to_write() {
        let fault = |typed: &str| typed.parse::<Binding>().expect_err(typed);
        assert_eq!(fault("localhost:14330"), BindingFault::Localhost(14330));
        assert_eq!(fault("14330"), BindingFault::Localhost(14330));
        assert_eq!(fault(":14330"), BindingFault::All(14330));
        assert_eq!(fault("*:14330"), BindingFault::All(14330));
        for form in ["127.0.0.1", "sql01:1433", "::1:5", ""] {
            assert_eq!(fault(form), BindingFault::Form, "{form}");
        }
        let binding = "[::1]:5"
            .parse::<Binding>()
            .map(|binding| binding.0.to_string());
        assert_eq!(binding.as_deref(), Ok("[::1]:5"));
    }

    #[test]
    fn an_address_is_the_network_of_itself() {
        for (typed, network) in [
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("[2001:db8::7]", "2001:db8::7/128"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ] {
            let taken = typed
                .parse::<Network>()
                .map(|network| network.0.to_string());
            assert_eq!(taken.as_deref(), Ok(network));
        }
        for typed in ["", "10.0.0.0/33", "sql01", "10.1.2", "any"] {
            assert_eq!(typed.parse::<Network>(), Err(NetworkFault), "{typed}");
        }
    }
}
