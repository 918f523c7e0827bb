//! Connection strings: what an administrator copies from one side to the other. Both forms that
//! Azure's users know are read, the first is written.
//!
//! No error of this file repeats any part of the string: what stands at a wrong place may be the
//! key.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::endpoint::{Endpoint, EndpointError, Host, parse_port, split_port};
use crate::hex;
use crate::key::{Key, KeyError, Rule};
use crate::name::{HycoName, NameError};
use crate::serde_text::serde_text;

/// The relay's UDP port where a connection string names none.
pub const RELAY_PORT_DEFAULT: u16 = 4433;
/// Most pins in one string: the certificate of today and the one of tomorrow.
pub const PINS_MAX: usize = 2;
/// Most bytes of a connection string; the longest possible one has under 1,300.
pub const CONNECTION_STRING_MAX: usize = 4096;

/// Names of the fields of a string, as they are written. They are read in any case.
pub const FIELDS: [&str; 6] = [
    "Endpoint",
    "SharedAccessKeyName",
    "SharedAccessKey",
    "EntityPath",
    "Pin",
    "Target",
];

/// Where a relay is, which hybrid connection is meant, and the key that proves a right to it.
///
/// `Display` and `Debug` leave the key out; [`ConnectionString::emit`] alone writes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionString {
    /// Host of the relay.
    pub relay_host: Host,
    /// UDP port of the relay.
    pub relay_port: u16,
    /// The hybrid connection.
    pub name: HycoName,
    /// What the key gives the right to.
    pub rule: Rule,
    /// The key.
    pub key: Key,
    /// Accepted public keys of the relay, at most [`PINS_MAX`]. None: the relay's certificate is
    /// checked by a CA.
    pub pins: Vec<Pin>,
    /// The endpoint, as it was when the string was made: what an agent may dial and a sender may
    /// take, where a file there says nothing else.
    pub target: Option<Endpoint>,
}

/// SHA-256 of a public key, over its SubjectPublicKeyInfo (RFC 7469, section 2.4). Written
/// `sha256:HEX`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

/// The text is not `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a pin is sha256: and 64 hexadecimal digits")]
pub struct PinError;

/// Why a text is not a connection string. Fields are counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectionStringError {
    /// Over [`CONNECTION_STRING_MAX`].
    #[error("a connection string has at most {CONNECTION_STRING_MAX} bytes")]
    TooLong,
    /// A field without `=`.
    #[error("field {0} is not of the form Name=value")]
    NoValue(usize),
    /// A field that is none of the known ones.
    #[error(
        "field {0} is unknown; known are Endpoint, SharedAccessKeyName, SharedAccessKey, EntityPath, Pin and Target"
    )]
    Unknown(usize),
    /// A field that was there before.
    #[error("{0} stands twice")]
    Twice(&'static str),
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// The endpoint is no URL of a known scheme.
    #[error("Endpoint is not of the form hc://host/name or sb://host/")]
    Scheme,
    /// The relay's host.
    #[error("Endpoint: {0}")]
    Relay(EndpointError),
    /// Neither the URL nor `EntityPath` has the name.
    #[error(
        "the name of the hybrid connection is missing: Endpoint=hc://host/NAME, or EntityPath=NAME"
    )]
    NoName,
    /// Both the URL and `EntityPath` have a name.
    #[error("the name of the hybrid connection stands twice: in Endpoint and in EntityPath")]
    NameTwice,
    /// The name is none.
    #[error("name of the hybrid connection: {0}")]
    Name(NameError),
    /// The rule can manage only.
    #[error(
        "SharedAccessKeyName: this key manages the namespace and can neither listen nor send; take a string of defaultListener or defaultSender"
    )]
    ManageRule,
    /// The rule is none.
    #[error("SharedAccessKeyName is neither defaultListener nor defaultSender")]
    Rule,
    /// The key is none.
    #[error("SharedAccessKey: {0}")]
    Key(KeyError),
    /// A pin is none, or there are too many.
    #[error("Pin is one or two times sha256: and 64 hexadecimal digits, with a comma between")]
    Pin,
    /// The target is no endpoint.
    #[error("Target: {0}")]
    Target(EndpointError),
}

use ConnectionStringError as Error;

impl ConnectionString {
    /// The string with its key, in the first form. Wiped when it is dropped.
    #[must_use]
    pub fn emit(&self) -> Zeroizing<String> {
        // Roomy from the start: a string that grows leaves copies of the key behind.
        let mut out = Zeroizing::new(String::with_capacity(CONNECTION_STRING_MAX));
        let written = self.write(&mut *out, self.key.expose());
        debug_assert!(written.is_ok(), "writing to a String does not fail");
        out
    }

    /// Where the relay is, as `host:port` or `[v6]:port`.
    #[must_use]
    pub fn relay(&self) -> String {
        match &self.relay_host {
            Host::V6(ip) => format!("[{ip}]:{}", self.relay_port),
            host => format!("{host}:{}", self.relay_port),
        }
    }

    fn write(&self, out: &mut impl fmt::Write, key: &str) -> fmt::Result {
        let (relay, name, rule) = (self.relay(), &self.name, self.rule.name());
        write!(
            out,
            "Endpoint=hc://{relay}/{name};SharedAccessKeyName={rule};SharedAccessKey={key}"
        )?;
        for (index, pin) in self.pins.iter().enumerate() {
            write!(out, "{}{pin}", if index == 0 { ";Pin=" } else { "," })?;
        }
        match &self.target {
            Some(target) => write!(out, ";Target={target}"),
            None => Ok(()),
        }
    }
}

/// The string without its key.
impl fmt::Display for ConnectionString {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(out, "…")
    }
}

/// The fields as they stand, each at most once.
#[derive(Default)]
struct Fields<'a> {
    endpoint: Option<&'a str>,
    rule: Option<&'a str>,
    key: Option<&'a str>,
    entity_path: Option<&'a str>,
    pin: Option<&'a str>,
    target: Option<&'a str>,
}

impl FromStr for ConnectionString {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fields = Fields::read(text)?;
        let (relay_host, relay_port, path) =
            read_url(fields.endpoint.ok_or(Error::Missing("Endpoint"))?)?;
        let name = match (path, fields.entity_path) {
            ("", None) => return Err(Error::NoName),
            ("", Some(name)) | (name, None) => name.parse().map_err(Error::Name)?,
            _ => return Err(Error::NameTwice),
        };
        Ok(Self {
            relay_host,
            relay_port,
            name,
            rule: read_rule(fields.rule.ok_or(Error::Missing("SharedAccessKeyName"))?)?,
            key: fields
                .key
                .ok_or(Error::Missing("SharedAccessKey"))?
                .parse()
                .map_err(Error::Key)?,
            pins: fields.pin.map_or(Ok(Vec::new()), read_pins)?,
            target: fields
                .target
                .map(str::parse)
                .transpose()
                .map_err(Error::Target)?,
        })
    }
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, Error> {
        if text.len() > CONNECTION_STRING_MAX {
            return Err(Error::TooLong);
        }
        let mut fields = Self::default();
        for (index, field) in text.trim().split(';').enumerate() {
            if field.trim().is_empty() {
                continue; // A `;` at the end.
            }
            // The value is all after the first `=`: base64 ends with more of them.
            let (name, value) = field.split_once('=').ok_or(Error::NoValue(index + 1))?;
            let (slot, known) = fields.slot(name.trim()).ok_or(Error::Unknown(index + 1))?;
            if slot.replace(value.trim()).is_some() {
                return Err(Error::Twice(known));
            }
        }
        Ok(fields)
    }

    fn slot(&mut self, name: &str) -> Option<(&mut Option<&'a str>, &'static str)> {
        let slots = [
            &mut self.endpoint,
            &mut self.rule,
            &mut self.key,
            &mut self.entity_path,
            &mut self.pin,
            &mut self.target,
        ];
        slots
            .into_iter()
            .zip(FIELDS)
            .find(|(_, known)| known.eq_ignore_ascii_case(name))
    }
}

/// Host, port and path of `hc://host[:port]/path` or `sb://…`; the path without slashes at its
/// ends.
fn read_url(url: &str) -> Result<(Host, u16, &str), Error> {
    let (scheme, rest) = url.split_once("://").ok_or(Error::Scheme)?;
    if !["hc", "sb"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(scheme))
    {
        return Err(Error::Scheme);
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = split_port(authority).map_err(Error::Relay)?;
    let host = host
        .parse()
        .map_err(|error| Error::Relay(EndpointError::Host(error)))?;
    let port = match port {
        Some(port) => parse_port(port)
            .ok_or(Error::Relay(EndpointError::Port))?
            .get(),
        None => RELAY_PORT_DEFAULT,
    };
    Ok((host, port, path.strip_suffix('/').unwrap_or(path)))
}

fn read_rule(text: &str) -> Result<Rule, Error> {
    let manage = ["RootManageSharedAccessKey", "manage"];
    if manage.iter().any(|name| name.eq_ignore_ascii_case(text)) {
        return Err(Error::ManageRule);
    }
    text.parse().map_err(|_| Error::Rule)
}

fn read_pins(text: &str) -> Result<Vec<Pin>, Error> {
    let pins = text
        .split(',')
        .map(|pin| pin.trim().parse())
        .collect::<Result<Vec<Pin>, _>>()
        .map_err(|_| Error::Pin)?;
    if pins.len() > PINS_MAX {
        return Err(Error::Pin);
    }
    Ok(pins)
}

impl Pin {
    /// The pin of a public key, given as the DER of its SubjectPublicKeyInfo.
    #[must_use]
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let (kind, digits) = text.split_once(':').ok_or(PinError)?;
        if !kind.eq_ignore_ascii_case("sha256") {
            return Err(PinError);
        }
        hex::read(digits).map(Self).ok_or(PinError)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("sha256:")?;
        hex::write(&self.0, out)
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Pin({self})")
    }
}

serde_text!(Pin);
