//! The agent's allow-list: what may be dialled at all, whatever a relay asks for. Resolves nothing;
//! is asked before and after.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::endpoint::{Endpoint, Host, HostError, HostName, parse_port};
use crate::serde_text::serde_text;

/// One line of an allow-list: `host:port`, `*.corp:1433`, `10.0.0.0/8:443`, `[fd00::/8]:443`,
/// `localhost:8080`. The port is a number, `a-b`, or `*`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AllowEntry {
    hosts: Hosts,
    ports: Ports,
}

/// What an agent may dial: all that any entry permits, less what is refused always. An empty list
/// permits nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AllowList(pub Vec<AllowEntry>);

/// Why a text is not an entry. Each says what to write instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllowError {
    /// No port.
    #[error("a port is missing: write host:port, host:low-high or host:*")]
    NoPort,
    /// The port is no number, range or `*`.
    #[error("the port is not a number from 1 to 65535, a range low-high, or *")]
    Port,
    /// An IPv6 address or network without brackets.
    #[error("write an IPv6 address or network in brackets: [fd00::/8]:443")]
    Brackets,
    /// A network that is none.
    #[error("this is not a network: write 10.0.0.0/8 or [fd00::/8]")]
    Net,
    /// A network whose address has bits beyond its prefix.
    #[error(
        "the address has bits beyond the prefix: write the first address of the network, such as 10.0.0.0/8"
    )]
    HostBits,
    /// IPv4 dressed up as IPv6.
    #[error("write the IPv4 address or network itself, not its form mapped into IPv6")]
    Mapped,
    /// A URL.
    #[error("write host:port alone, without the scheme and a path")]
    Url,
    /// A `*` elsewhere than in front.
    #[error(
        "a * stands only for all in front of a name: *.corp (for any address, write 0.0.0.0/0)"
    )]
    Star,
    /// The host is none.
    #[error(transparent)]
    Host(#[from] HostError),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Hosts {
    /// Exactly this name.
    Name(HostName),
    /// Every name that ends in a dot and this one.
    Under(HostName),
    /// Every address in this network, and where it is more than one address, every name that
    /// resolves into it.
    Net(IpNet),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ports {
    Any,
    /// From the first to the second, both included.
    Range(u16, u16),
}

impl AllowList {
    /// What one connection string permits: the entries for all strings and its own; exactly its
    /// target where there are none.
    ///
    /// A target never counts for another string: another relay, or another hybrid connection, has
    /// no right to it.
    #[must_use]
    pub fn of_connection(for_all: &Self, own: &Self, target: Option<&Endpoint>) -> Self {
        if for_all.0.is_empty() && own.0.is_empty() {
            return target.map(AllowEntry::from).into_iter().collect();
        }
        for_all.0.iter().chain(&own.0).cloned().collect()
    }

    /// Whether any entry could permit this endpoint, before its name is resolved. A network admits
    /// names: their addresses are checked after.
    #[must_use]
    pub fn permits(&self, endpoint: &Endpoint) -> bool {
        match endpoint.host.ip() {
            Some(ip) => self.permits_ip(endpoint, ip, false),
            None => self
                .on_port(endpoint)
                .any(|hosts| hosts.concerns(&endpoint.host)),
        }
    }

    /// Whether `ip` may be dialled for this endpoint; `from_hosts_file` says that the machine's own
    /// hosts file made it of the name.
    ///
    /// Dial exactly the address that was asked about. Refused always: see [`is_refused_always`].
    /// Loopback needs an entry that means it: `localhost`, an address or network within loopback,
    /// or a name that the hosts file resolves so.
    #[must_use]
    pub fn permits_ip(&self, endpoint: &Endpoint, ip: IpAddr, from_hosts_file: bool) -> bool {
        let ip = ip.to_canonical();
        !is_refused_always(ip)
            && self
                .on_port(endpoint)
                .any(|hosts| hosts.permit(&endpoint.host, ip, from_hosts_file))
    }

    /// Whether an entry names this very host, or the domain that it is in: what a sender goes by
    /// before it takes a name and a port.
    ///
    /// A network names the addresses in it and no name: what a name resolves to is not the sender's
    /// to check.
    #[must_use]
    pub fn names(&self, endpoint: &Endpoint) -> bool {
        self.on_port(endpoint)
            .any(|hosts| match (hosts, endpoint.host.ip()) {
                (Hosts::Net(net), Some(ip)) => net.contains(&ip),
                (Hosts::Net(_), None) => false,
                _ => hosts.concerns(&endpoint.host),
            })
    }

    fn on_port(&self, endpoint: &Endpoint) -> impl Iterator<Item = &Hosts> {
        let port = endpoint.port.get();
        self.0
            .iter()
            .filter(move |entry| entry.ports.contain(port))
            .map(|entry| &entry.hosts)
    }
}

impl AllowEntry {
    /// Whether all addresses that it names are refused always: see [`is_refused_always`]. Such an
    /// entry permits nothing.
    #[must_use]
    pub fn is_in_vain(&self) -> bool {
        let Hosts::Net(net) = &self.hosts else {
            return false;
        };
        let single = net.prefix_len() == net.max_prefix_len();
        single && is_refused_always(net.addr()) || REFUSED_NETS.iter().any(|all| all.contains(net))
    }
}

impl FromIterator<AllowEntry> for AllowList {
    fn from_iter<I: IntoIterator<Item = AllowEntry>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

/// Exactly this endpoint: how the target of a connection string becomes an entry.
impl From<&Endpoint> for AllowEntry {
    fn from(endpoint: &Endpoint) -> Self {
        let hosts = match &endpoint.host {
            Host::Name(name) => Hosts::Name(name.clone()),
            Host::V4(ip) => Hosts::Net(IpNet::from(IpAddr::V4(*ip))),
            Host::V6(ip) => Hosts::Net(IpNet::from(IpAddr::V6(*ip).to_canonical())),
        };
        let port = endpoint.port.get();
        Self {
            hosts,
            ports: Ports::Range(port, port),
        }
    }
}

/// Whether no entry can permit this address: unspecified, multicast, broadcast, link-local, cloud
/// metadata, and IPv6 addresses that carry such an IPv4 address, or a loopback one, through a
/// translator.
#[must_use]
pub fn is_refused_always(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    REFUSED_NETS.iter().any(|net| net.contains(&ip))
        || match ip {
            IpAddr::V4(ip) => ip.is_broadcast() || METADATA_V4.contains(&ip),
            IpAddr::V6(ip) => {
                METADATA_V6.contains(&ip)
                    || ip.is_unspecified()
                    || carried_v4(ip)
                        .is_some_and(|inner| inner.is_loopback() || is_refused_always(inner.into()))
            }
        }
}

/// Networks of which every address is refused always: this host (all of 0.0.0.0/8, by RFC 1122,
/// section 3.2.1.3), link-local, multicast.
const REFUSED_NETS: [IpNet; 5] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
        10,
    )),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
        8,
    )),
];

/// Addresses inside the link-local range need no mention. Alibaba, Azure's host, Oracle's older
/// service.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// Amazon, Google, Oracle.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];

/// The IPv4 address inside NAT64 (RFC 6052, 64:ff9b::/96), 6to4 (RFC 3056, 2002::/16) and
/// IPv4-compatible (RFC 4291, ::/96) addresses.
fn carried_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let inner = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => None, // Loopback itself.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0, 0, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => inner(high, low),
        _ => None,
    }
}

impl Hosts {
    fn permit(&self, host: &Host, ip: IpAddr, from_hosts_file: bool) -> bool {
        self.concerns(host)
            && match self {
                // A network that is wider than loopback does not mean loopback.
                Self::Net(net) => {
                    net.contains(&ip)
                        && (!ip.is_loopback()
                            || net.network().is_loopback() && net.broadcast().is_loopback())
                }
                Self::Name(name) if name.matches("localhost") => ip.is_loopback(),
                Self::Name(_) | Self::Under(_) => !ip.is_loopback() || from_hosts_file,
            }
    }

    /// Whether an address of this host may be permitted by this entry.
    fn concerns(&self, host: &Host) -> bool {
        match (self, host) {
            // One address means itself: resolving any name to see whether it leads there would tell
            // who asks what names there are.
            (Self::Net(net), Host::Name(_)) => net.prefix_len() < net.max_prefix_len(),
            (Self::Net(_), _) => true,
            (Self::Name(name), Host::Name(host)) => name.matches(host),
            (Self::Under(parent), Host::Name(host)) => is_under(host, parent),
            _ => false,
        }
    }
}

/// Whether `host` ends in a dot and `parent`, with something in front.
fn is_under(host: &str, parent: &str) -> bool {
    let (host, parent) = (
        host.strip_suffix('.').unwrap_or(host),
        parent.strip_suffix('.').unwrap_or(parent),
    );
    let Some(front) = host.len().checked_sub(parent.len() + 1) else {
        return false;
    };
    front > 0 && host.as_bytes()[front] == b'.' && host[front + 1..].eq_ignore_ascii_case(parent)
}

impl Ports {
    fn contain(self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Range(low, high) => (low..=high).contains(&port),
        }
    }
}

impl FromStr for AllowEntry {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        if text.contains("://") {
            return Err(AllowError::Url);
        }
        let (hosts, ports) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inside, port) = rest.split_once(']').ok_or(AllowError::Brackets)?;
                (
                    read_v6(inside)?,
                    port.strip_prefix(':').ok_or(AllowError::NoPort)?,
                )
            }
            None => {
                let (host, port) = text.rsplit_once(':').ok_or(AllowError::NoPort)?;
                (read_hosts(host)?, port)
            }
        };
        Ok(Self {
            hosts,
            ports: ports.parse()?,
        })
    }
}

fn read_v6(text: &str) -> Result<Hosts, AllowError> {
    let net = match text.contains('/') {
        true => text.parse::<Ipv6Net>().map_err(|_| AllowError::Net)?,
        false => text.parse::<Ipv6Addr>().map_err(|_| HostError::V6)?.into(),
    };
    if net.addr().to_ipv4_mapped().is_some() {
        return Err(AllowError::Mapped);
    }
    checked_net(IpNet::V6(net))
}

fn read_hosts(text: &str) -> Result<Hosts, AllowError> {
    if text.contains(':') {
        return Err(AllowError::Brackets);
    }
    if text.contains('/') {
        let net = text.parse::<Ipv4Net>().map_err(|_| AllowError::Net)?;
        return checked_net(IpNet::V4(net));
    }
    if let Some(parent) = text.strip_prefix("*.") {
        return Ok(Hosts::Under(parent.parse()?));
    }
    if text.contains('*') {
        return Err(AllowError::Star);
    }
    Ok(match text.parse()? {
        Host::Name(name) => Hosts::Name(name),
        Host::V4(ip) => Hosts::Net(IpAddr::V4(ip).into()),
        Host::V6(ip) => Hosts::Net(IpAddr::V6(ip).into()), // LCOV_EXCL_LINE: it has colons
    })
}

fn checked_net(net: IpNet) -> Result<Hosts, AllowError> {
    if net.trunc() == net {
        Ok(Hosts::Net(net))
    } else {
        Err(AllowError::HostBits)
    }
}

impl FromStr for Ports {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        match (parse_port(low), parse_port(high)) {
            (Some(low), Some(high)) if low <= high => Ok(Self::Range(low.get(), high.get())),
            _ => Err(AllowError::Port),
        }
    }
}

impl fmt::Display for AllowEntry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Name(name) => write!(out, "{name}")?,
            Hosts::Under(parent) => write!(out, "*.{parent}")?,
            Hosts::Net(net) => write_net(*net, out)?,
        }
        match self.ports {
            Ports::Any => out.write_str(":*"),
            Ports::Range(low, high) if low == high => write!(out, ":{low}"),
            Ports::Range(low, high) => write!(out, ":{low}-{high}"),
        }
    }
}

/// A network of one address is written as the address; IPv6 stands in brackets.
fn write_net(net: IpNet, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let single = net.prefix_len() == net.max_prefix_len();
    match net {
        IpNet::V4(net) if single => write!(out, "{}", net.addr()),
        IpNet::V4(net) => write!(out, "{net}"),
        IpNet::V6(net) if single => write!(out, "[{}]", net.addr()),
        IpNet::V6(net) => write!(out, "[{net}]"),
    }
}

serde_text!(AllowEntry);

/// The entries, with commas between.
impl fmt::Display for AllowList {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.0.iter().enumerate() {
            write!(out, "{}{entry}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
