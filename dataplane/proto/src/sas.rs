//! SAS tokens: what a request to the REST API shows instead of a key, as Azure's clients make them.
//! Knows no clock: `now` is an argument.
//!
//! `SharedAccessSignature sr=…&sig=…&se=…&skn=…`, where the signature is HMAC-SHA256 with the UTF-8
//! of the key text as its key, over `sr` as it stands (some clients write lower-case hexadecimal),
//! a line feed and `se`. No error repeats a part of a token.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::byte_serialize;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::key::{Key, KeyPair, Rule};

/// Most bytes of a token. Azure's have some 250; a longer one has a resource that no request has.
pub const SAS_MAX: usize = 4096;
/// What a token begins with.
pub const SCHEME: &str = "SharedAccessSignature";
/// Name of the rule of the namespace's manage keys.
pub const MANAGE: &str = "manage";
/// The name that Azure's users know for the same.
const MANAGE_ALIAS: &str = "RootManageSharedAccessKey";
/// Bytes of a signature.
const SIGNATURE_LEN: usize = 32;

/// Whose key signed a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SasRule {
    /// The namespace's own: may manage.
    Manage,
    /// That of a hybrid connection: may listen or send, and manages nothing.
    Hyco(Rule),
}

/// A parsed token that is not verified yet. `Debug` omits the signature, with which the token could
/// be used.
#[derive(Clone, PartialEq, Eq)]
pub struct SasToken {
    /// `sr` as received: what is signed.
    resource_as_received: String,
    /// The same, decoded.
    resource: String,
    /// `se` as received: what is signed.
    expires_as_received: String,
    /// Seconds since 1970.
    expires: u64,
    signature: [u8; SIGNATURE_LEN],
    rule: SasRule,
}

/// Why a text is no token. Fields are counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SasError {
    /// Over [`SAS_MAX`].
    #[error("a token has at most {SAS_MAX} bytes")]
    TooLong,
    /// It does not begin as a token does.
    #[error("a token is of the form SharedAccessSignature sr=…&sig=…&se=…&skn=…")]
    Scheme,
    /// A field without `=`.
    #[error("field {0} of the token is not of the form name=value")]
    NoValue(usize),
    /// A field that is none of the four.
    #[error("field {0} of the token is unknown; known are sr, sig, se and skn")]
    Unknown(usize),
    /// A field that was there before.
    #[error("{0} stands twice in the token")]
    Twice(&'static str),
    /// A field that must be there.
    #[error("{0} is missing in the token")]
    Missing(&'static str),
    /// `sig` is not the base64 of a signature.
    #[error("sig of the token is not a URL-encoded base64 of 32 bytes")]
    Signature,
    /// `se` is no time.
    #[error("se of the token is not a whole number of seconds since 1970")]
    Expiry,
    /// `skn` is no rule.
    #[error("skn of the token is none of manage, defaultListener and defaultSender")]
    Rule,
}

/// A token whose time is over, and by how much.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the token expired {} ago by this machine's clock", Span(*.by_secs))]
pub struct Expired {
    /// Seconds between its expiry and now.
    pub by_secs: u64,
}

use SasError as Error;

/// Makes a token for everything below `uri`, good until `expires` (seconds since 1970).
#[must_use]
pub fn make(uri: &str, rule: SasRule, key: &Key, expires: u64) -> Zeroizing<String> {
    let resource: String = byte_serialize(uri.as_bytes()).collect();
    let expires = expires.to_string();
    let signature = Zeroizing::new(STANDARD.encode(sign(key, &resource, &expires)));
    let signature: Zeroizing<String> =
        Zeroizing::new(byte_serialize(signature.as_bytes()).collect());
    Zeroizing::new(format!(
        "{SCHEME} sr={resource}&sig={}&se={expires}&skn={rule}",
        *signature
    ))
}

impl SasToken {
    /// Whose key it says it was signed with.
    #[must_use]
    pub fn rule(&self) -> SasRule {
        self.rule
    }

    /// The last part of the resource's path: of an agent's or a sender's token the hybrid
    /// connection.
    #[must_use]
    pub fn last_segment(&self) -> Option<&str> {
        let (_, path) = split(&self.resource);
        segments(path).last()
    }

    /// Whether one of these keys signed it. In constant time.
    #[must_use]
    pub fn is_signed_by(&self, keys: &KeyPair) -> bool {
        let by = |key: &Key| {
            sign(key, &self.resource_as_received, &self.expires_as_received).ct_eq(&self.signature)
        };
        let primary = by(&keys.primary);
        let secondary = keys.secondary.as_ref().map_or(0.into(), by);
        (primary | secondary).into()
    }

    /// Whether it is good for a request with this Host header and path: the host equal, port and
    /// all, and the path below the resource's by whole segments; the scheme does not matter. Case
    /// does not either: neither hosts nor names have one.
    #[must_use]
    pub fn covers(&self, host: &str, path: &str) -> bool {
        let (own_host, own_path) = split(&self.resource);
        let mut asked = segments(path);
        own_host.eq_ignore_ascii_case(host)
            && segments(own_path).all(|own| {
                asked
                    .next()
                    .is_some_and(|asked| asked.eq_ignore_ascii_case(own))
            })
    }

    /// Whether its time is not over yet.
    ///
    /// # Errors
    /// By how much it is over, `now` being seconds since 1970.
    pub fn check_time(&self, now: u64) -> Result<(), Expired> {
        match now.checked_sub(self.expires) {
            Some(by_secs) => Err(Expired { by_secs }),
            None => Ok(()),
        }
    }
}

/// Host with port, and path.
fn split(resource: &str) -> (&str, &str) {
    let from_host = resource
        .split_once("://")
        .map_or(resource, |(_, rest)| rest);
    let end = from_host.find(['?', '#']).unwrap_or(from_host.len());
    let from_host = &from_host[..end];
    from_host.split_at(from_host.find('/').unwrap_or(from_host.len()))
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

fn sign(key: &Key, resource: &str, expires: &str) -> [u8; SIGNATURE_LEN] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(resource.as_bytes());
    mac.update(b"\n");
    mac.update(expires.as_bytes());
    mac.finalize().into_bytes().into()
}

/// The fields as they stand, each at most once.
#[derive(Default)]
struct Fields<'a> {
    sr: Option<&'a str>,
    sig: Option<&'a str>,
    se: Option<&'a str>,
    skn: Option<&'a str>,
}

impl FromStr for SasToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fields = Fields::read(text)?;
        let resource = fields.sr.ok_or(Error::Missing("sr"))?;
        let signature = decoded(fields.sig.ok_or(Error::Missing("sig"))?);
        let expires = fields.se.ok_or(Error::Missing("se"))?;
        let rule = decoded(fields.skn.ok_or(Error::Missing("skn"))?);
        Ok(Self {
            resource: decoded(resource).into_owned(),
            resource_as_received: resource.to_owned(),
            expires: parse_seconds(expires).ok_or(Error::Expiry)?,
            expires_as_received: expires.to_owned(),
            signature: STANDARD
                .decode(signature.as_bytes())
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or(Error::Signature)?,
            rule: rule.parse()?,
        })
    }
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, Error> {
        if text.len() > SAS_MAX {
            return Err(Error::TooLong);
        }
        let (scheme, fields) = text.trim().split_once(' ').ok_or(Error::Scheme)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(Error::Scheme);
        }
        let mut read = Self::default();
        for (field, number) in fields.trim_start().split('&').zip(1..) {
            let (name, value) = field.split_once('=').ok_or(Error::NoValue(number))?;
            let (slot, name) = match name {
                "sr" => (&mut read.sr, "sr"),
                "sig" => (&mut read.sig, "sig"),
                "se" => (&mut read.se, "se"),
                "skn" => (&mut read.skn, "skn"),
                _ => return Err(Error::Unknown(number)),
            };
            if slot.replace(value).is_some() {
                return Err(Error::Twice(name));
            }
        }
        Ok(read)
    }
}

/// Digits alone: no sign, no space.
fn parse_seconds(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// From form URL-encoding; what is not UTF-8 becomes a text that equals nothing.
fn decoded(value: &str) -> Cow<'_, str> {
    // One value is a form with a nameless field; `&` and `=` cannot stand in it any more.
    form_urlencoded::parse(value.as_bytes())
        .next()
        .map_or(Cow::Borrowed(""), |(name, _)| name)
}

impl FromStr for SasRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if [MANAGE, MANAGE_ALIAS]
            .iter()
            .any(|name| name.eq_ignore_ascii_case(text))
        {
            return Ok(Self::Manage);
        }
        text.parse().map(Self::Hyco).map_err(|_| Error::Rule)
    }
}

impl fmt::Display for SasRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manage => out.pad(MANAGE),
            Self::Hyco(rule) => rule.fmt(out),
        }
    }
}

impl fmt::Debug for SasToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "SasToken({} for {}, until {})",
            self.rule, self.resource, self.expires
        )
    }
}

/// Seconds for people: one unit, rounded down.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        const DAY: u64 = 24 * HOUR;
        const YEAR: u64 = 365 * DAY;
        match self.0 {
            secs if secs < 2 * MINUTE => write!(out, "{secs} s"),
            secs if secs < 2 * HOUR => write!(out, "{} min", secs / MINUTE),
            secs if secs < 2 * DAY => write!(out, "{} h", secs / HOUR),
            secs if secs < 2 * YEAR => write!(out, "{} days", secs / DAY),
            secs => write!(out, "{} years", secs / YEAR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with an independent client library: uri, rule, key, expiry, token.
    const VECTORS: [(&str, &str, &str, u64, &str); 2] = [
        (
            "http://contoso.servicebus.windows.net/payroll-sql",
            "defaultListener",
            "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=",
            1_800_000_000,
            "SharedAccessSignature sr=http%3A%2F%2Fcontoso.servicebus.windows.net%2Fpayroll-sql&sig=2IKih6rUCm9wNFNZ6nHzjZBtUTXIA3nRxn23gcgmYUs%3D&se=1800000000&skn=defaultListener",
        ),
        (
            "http://relay.example.com/Crm Reports/ünï",
            "defaultSender",
            "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
            4_102_444_800,
            "SharedAccessSignature sr=http%3A%2F%2Frelay.example.com%2FCrm+Reports%2F%C3%BCn%C3%AF&sig=%2Fv%2FOl323AKTYdUHx3A6jGD4ce2a8ZREuimdVRe0S9MI%3D&se=4102444800&skn=defaultSender",
        ),
    ];

    const URI: &str = "http://relay.example.com:8480/v1/hybridconnections/payroll-sql";

    #[test]
    fn tokens_are_those_of_an_independent_client() {
        for (uri, rule, key, expires, token) in VECTORS {
            let rule: SasRule = rule.parse().unwrap();
            let key: Key = key.parse().unwrap();
            assert_eq!(make(uri, rule, &key, expires).as_str(), token);
            let read: SasToken = token.parse().unwrap();
            assert_eq!(
                (read.rule(), read.resource.as_str(), read.expires),
                (rule, uri, expires)
            );
            assert!(read.is_signed_by(&pair(&key)));
        }
        let read: SasToken = VECTORS[0].4.parse().unwrap();
        assert_eq!(read.last_segment(), Some("payroll-sql"));
    }

    #[test]
    fn a_signature_is_checked_over_the_resource_as_received() {
        let key = key(1);
        let lower = "http%3a%2f%2frelay.example.com%2f";
        let signature = STANDARD.encode(sign(&key, lower, "7"));
        let signature: String = byte_serialize(signature.as_bytes()).collect();
        let read: SasToken =
            format!("sharedaccesssignature skn=MANAGE&se=7&sig={signature}&sr={lower}")
                .parse()
                .unwrap();
        assert!(read.is_signed_by(&pair(&key)));
        assert!(read.covers("relay.example.com", "/v1/namespace"));
    }

    #[test]
    fn either_key_signs_and_no_other_key_does() {
        let token: SasToken = make(URI, SasRule::Manage, &key(1), 7).parse().unwrap();
        let keys = |primary, secondary: Option<u8>| KeyPair {
            primary: key(primary),
            secondary: secondary.map(key),
        };
        assert!(token.is_signed_by(&keys(1, Some(2))) && token.is_signed_by(&keys(2, Some(1))));
        assert!(!token.is_signed_by(&keys(2, None)) && !token.is_signed_by(&keys(2, Some(3))));
        for (part, other) in [
            ("se=7", "se=8"),
            ("payroll-sql", "payroll-sqm"),
            ("sig=", "sig=%2B"),
        ] {
            let forged = make(URI, SasRule::Manage, &key(1), 7).replace(part, other);
            assert!(
                !forged
                    .parse::<SasToken>()
                    .is_ok_and(|token| token.is_signed_by(&keys(1, None))),
                "{forged}"
            );
        }
    }

    #[test]
    fn a_token_is_good_below_its_resource_by_whole_segments() {
        let covers = |uri: &str, host: &str, path: &str| {
            let token: SasToken = make(uri, SasRule::Manage, &key(1), 7).parse().unwrap();
            token.covers(host, path)
        };
        let host = "relay.example.com:8480";
        let path = "/v1/hybridconnections/payroll-sql";
        for uri in [
            URI,
            "https://relay.example.com:8480/v1",
            "sb://RELAY.example.com:8480/",
            "relay.example.com:8480",
            &format!("{URI}/?x#y"),
        ] {
            assert!(
                covers(uri, host, path) && covers(uri, host, &format!("{path}/listKeys")),
                "{uri}"
            );
        }
        assert!(covers(URI, host, "/v1/hybridconnections/PAYROLL-sql"));
        for uri in [
            "http://relay.example.com/v1",
            "http://other.example.com:8480/",
            "http://relay.example.com:8480@evil/",
            "",
        ] {
            assert!(!covers(uri, host, path), "{uri}");
        }
        for other in [
            "/v1/hybridconnections/payroll-sql2",
            "/v1/hybridconnections",
            "/v1/hybridconnections/payroll%2Dsql",
            "/",
        ] {
            assert!(!covers(URI, host, other), "{other}");
        }
    }

    #[test]
    fn an_expired_token_names_the_skew() {
        let token: SasToken = make(URI, SasRule::Manage, &key(1), 1_800_000_000)
            .parse()
            .unwrap();
        assert_eq!(token.check_time(1_799_999_999), Ok(()));
        assert_eq!(token.check_time(0), Ok(()));
        for (by_secs, told) in [
            (0, "0 s"),
            (119, "119 s"),
            (3_599, "59 min"),
            (3 * 3_600 + 5, "3 h"),
            (20 * 86_400, "20 days"),
            (10 * 365 * 86_400, "10 years"),
        ] {
            let expired = token.check_time(1_800_000_000 + by_secs).unwrap_err();
            assert_eq!(
                expired.to_string(),
                format!("the token expired {told} ago by this machine's clock")
            );
        }
    }

    #[test]
    fn what_is_no_token_is_named_and_not_repeated() {
        for (text, error) in [
            ("", Error::Scheme),
            ("Bearer abc", Error::Scheme),
            ("SharedAccessSignature sr", Error::NoValue(1)),
            ("SharedAccessSignature sr=a&x=b", Error::Unknown(2)),
            ("SharedAccessSignature sr=a&sr=b", Error::Twice("sr")),
            (
                "SharedAccessSignature sr=a&sig=AAAA&se=1",
                Error::Missing("skn"),
            ),
            (
                "SharedAccessSignature sr=a&sig=AAAA&se=1&skn=manage",
                Error::Signature,
            ),
            (
                "SharedAccessSignature sr=a&sig=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%3D&se=+1&skn=manage",
                Error::Expiry,
            ),
            (
                "SharedAccessSignature sr=a&sig=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%3D&se=1&skn=root",
                Error::Rule,
            ),
        ] {
            assert_eq!(text.parse::<SasToken>(), Err(error), "{text}");
        }
        let long = format!("SharedAccessSignature sr={}", "a".repeat(SAS_MAX));
        assert_eq!(long.parse::<SasToken>(), Err(Error::TooLong));
    }

    #[test]
    fn debug_shows_no_signature() {
        let token = make(URI, SasRule::Manage, &key(1), 7);
        let read: SasToken = token.parse().unwrap();
        assert_eq!(
            format!("{read:?}"),
            format!("SasToken(manage for {URI}, until 7)")
        );
    }

    fn key(number: u8) -> Key {
        Key::from_random([number; 32])
    }

    fn pair(key: &Key) -> KeyPair {
        KeyPair {
            primary: key.clone(),
            secondary: None,
        }
    }
}
