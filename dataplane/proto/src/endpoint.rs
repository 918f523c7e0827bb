//! Hosts and endpoints as text: checked once, trusted after. Resolves nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use crate::serde_text::serde_text;

/// Most characters of a host name (RFC 1035, section 2.3.4, as text without the root).
pub const HOST_NAME_MAX: usize = 253;
/// Most characters between two dots (RFC 1035, section 2.3.4).
pub const LABEL_MAX: usize = 63;

/// Ends each line that a sender writes into a hosts file. An agent does not follow such a line: it
/// would lead back into a tunnel.
pub const HOSTS_LINE_END: &str = "# by underpass";

/// A name that a resolver is asked for: fully qualified or short, by RFC 1123 (underscores are let
/// through, because Windows hosts have them).
///
/// Keeps its spelling, less the dot of the root at its end: hosts files have names without it, so
/// `db01.corp.` would pass them by. [`Host::matches`] compares without case. A clone costs a
/// reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// A host as a person writes it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Host {
    /// To be resolved where the host is reached, never elsewhere.
    Name(HostName),
    /// An IPv4 literal.
    V4(Ipv4Addr),
    /// An IPv6 literal; in brackets wherever a port follows.
    V6(Ipv6Addr),
}

/// `host:port`, or `[v6]:port`: what a hybrid connection leads to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// Name or literal.
    pub host: Host,
    /// TCP port; zero is no port.
    pub port: NonZeroU16,
}

/// Why a text is not a host. Does not repeat the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostError {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// Over [`HOST_NAME_MAX`].
    #[error("a host name has at most {HOST_NAME_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// A part between dots is empty or over [`LABEL_MAX`].
    #[error("each part of a host name between dots has 1 to {LABEL_MAX} characters")]
    Label,
    /// A character that no host name has.
    #[error("a host name has letters, digits, hyphens and dots only")]
    Character,
    /// A part begins or ends with a hyphen.
    #[error("no part of a host name begins or ends with a hyphen")]
    Hyphen,
    /// It looks like an IPv4 address and is none.
    #[error("this is neither an IPv4 address (four numbers from 0 to 255) nor a host name")]
    Numeric,
    /// Brackets or colons around what is no IPv6 address.
    #[error("this is not an IPv6 address")]
    V6,
}

/// Why a text is not an endpoint. Does not repeat the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EndpointError {
    /// The part before the port.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No port at all.
    #[error("a port is missing: write host:port")]
    NoPort,
    /// Not a number from 1 to 65535.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// An IPv6 address and a port without brackets between them.
    #[error("write an IPv6 address with a port as [address]:port")]
    Brackets,
}

impl HostName {
    /// The name as it was spelled, without a dot at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both name the same host: without case, and without the dot of the root at the end.
    #[must_use]
    pub fn matches(&self, other: &str) -> bool {
        self.0.eq_ignore_ascii_case(without_root(other))
    }

    /// Whether it means the machine that asks, whatever a name server says: `localhost`, or a name
    /// below it (RFC 6761, section 6.3).
    #[must_use]
    pub fn is_localhost(&self) -> bool {
        let last = self.0.rsplit('.').next();
        last.is_some_and(|label| label.eq_ignore_ascii_case("localhost"))
    }
}

impl Host {
    /// The address, when this is a literal. An IPv4 address mapped into IPv6 is given as the IPv4
    /// address that it is.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Name(_) => None,
            Self::V4(ip) => Some(IpAddr::V4(*ip)),
            Self::V6(ip) => Some(IpAddr::V6(*ip).to_canonical()),
        }
    }

    /// Whether both mean the same host: names without case, literals by value.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(a), Self::Name(b)) => a.matches(b),
            _ => self.ip().is_some() && self.ip() == other.ip(),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => Self::V6(ip),
        }
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Some(inside) = text.strip_prefix('[') {
            let inside = inside.strip_suffix(']').ok_or(HostError::V6)?;
            return inside.parse().map(Self::V6).map_err(|_| HostError::V6);
        }
        if text.contains(':') {
            return text.parse().map(Self::V6).map_err(|_| HostError::V6);
        }
        match text.parse() {
            Ok(ip) => Ok(Self::V4(ip)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl FromStr for HostName {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let name = without_root(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > HOST_NAME_MAX {
            return Err(HostError::TooLong(name.len()));
        }
        name.split('.').try_for_each(check_label)?;
        // RFC 1123, section 2.1: the last label of a name is not a number, so that names and
        // addresses cannot be taken for each other.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(HostError::Numeric);
        }
        Ok(Self(name.into()))
    }
}

fn check_label(label: &str) -> Result<(), HostError> {
    if !label
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    {
        return Err(HostError::Character);
    }
    if label.is_empty() || label.len() > LABEL_MAX {
        return Err(HostError::Label);
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(HostError::Hyphen);
    }
    Ok(())
}

fn without_root(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = split_port(text)?;
        let host = host.parse()?;
        let port = port.ok_or(EndpointError::NoPort)?;
        Ok(Self {
            host,
            port: parse_port(port).ok_or(EndpointError::Port)?,
        })
    }
}

/// Splits `host`, `host:port`, `[v6]` or `[v6]:port`; the host keeps its brackets.
pub(crate) fn split_port(text: &str) -> Result<(&str, Option<&str>), EndpointError> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or(HostError::V6)? + 1;
        let (host, rest) = text.split_at(end);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(EndpointError::NoPort),
        };
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((_, rest)) if rest.contains(':') => Err(EndpointError::Brackets),
        Some((host, port)) => Ok((host, Some(port))),
    }
}

/// Digits alone, from 1 to 65535: no sign, no space.
pub(crate) fn parse_port(text: &str) -> Option<NonZeroU16> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl Deref for HostName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, out)
    }
}

/// The host alone: an IPv6 address stands without brackets.
impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(out),
            Self::V4(ip) => ip.fmt(out),
            Self::V6(ip) => ip.fmt(out),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::V6(ip) => write!(out, "[{ip}]:{}", self.port),
            host => write!(out, "{host}:{}", self.port),
        }
    }
}

serde_text!(HostName);
serde_text!(Host);
serde_text!(Endpoint);
