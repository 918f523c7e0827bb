//! How both ends show that they know a key without saying it, bound to their TLS session so that
//! nothing overheard or passed on is of use.
//!
//! A proof is HMAC-SHA256 (RFC 2104) with the UTF-8 of the key text as its key, over a label, the
//! fields and the TLS exporter (RFC 8446, section 7.5), each preceded by its length in two bytes,
//! big-endian. Nonces come from the caller.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::endpoint::{Endpoint, Host};
use crate::hex;
use crate::key::{Key, KeyId, Rule, Which};
use crate::name::HycoName;
use crate::snapshot::HycoKeys;
use crate::wire::Register;
use crate::wire::codec::rule_byte;

/// Label of the TLS exporter; its context is empty and its length 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-underpass/1 session";

/// First field of an agent's proof.
const LABEL_LISTENER: &[u8] = b"underpass/1 listener";
/// First field of a sender's proof.
const LABEL_SENDER: &[u8] = b"underpass/1 sender";
/// First field of a relay's proof.
const LABEL_RELAY: &[u8] = b"underpass/1 relay";

/// Stands in for keys that are not there, so that their absence takes the same time. As long as a
/// usual key.
const DECOY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Exported keying material of one TLS session, the same at both of its ends and at no other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exporter(pub [u8; 32]);

/// Random, new for each Register.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce(pub [u8; 16]);

/// The result of HMAC-SHA256. Compare with [`verify`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof(pub [u8; 32]);

/// The key that a Register was proven with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedKey {
    /// Primary or secondary.
    pub which: Which,
    /// Its identifier, under the rule of the Register.
    pub key_id: KeyId,
    /// The key itself, for the relay's own proof.
    pub key: Key,
}

/// Why a Register does not hold. For the relay's log only: the peer gets one code for all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum NotAuthorised {
    /// There is no such hybrid connection.
    #[error("unknown name")]
    UnknownName,
    /// The proof was made with no key of it, or with another session's exporter.
    #[error("wrong key")]
    WrongKey,
    /// The proof was made with a key of the other rule.
    #[error("wrong rule: the key is one of the other rule")]
    WrongRule,
    /// The keys of this rule are not known just now (a bad key file).
    #[error("no usable keys: the key file is bad or missing")]
    NoKeys,
}

impl Register {
    /// A Register with identifier and proof computed from the key.
    #[must_use]
    pub fn new(
        key: &Key,
        hyco: HycoName,
        rule: Rule,
        nonce: Nonce,
        weight: u16,
        priority: u8,
        exporter: &Exporter,
    ) -> Self {
        let mut register = Self {
            hyco,
            rule,
            key_id: KeyId::of(rule, key),
            nonce,
            weight,
            priority,
            proof: Proof([0; 32]),
        };
        register.proof = register_proof(key, &register, exporter);
        register
    }
}

/// The proof that belongs into `register`, over its other fields.
#[must_use]
pub fn register_proof(key: &Key, register: &Register, exporter: &Exporter) -> Proof {
    let mut mac = mac(key);
    field(
        &mut mac,
        match register.rule {
            Rule::Listen => LABEL_LISTENER,
            Rule::Send => LABEL_SENDER,
        },
    );
    register_fields(&mut mac, register);
    field(&mut mac, &exporter.0);
    Proof(mac.finalize().into_bytes().into())
}

/// The relay's proof that it knows the key too, over a Register, its proof included, and the
/// endpoint.
#[must_use]
pub fn relay_proof(
    key: &Key,
    register: &Register,
    endpoint: &Endpoint,
    exporter: &Exporter,
) -> Proof {
    relay_proof_over(
        key,
        register,
        &endpoint.host.to_string(),
        endpoint,
        exporter,
    )
}

/// Whether this is the relay's proof for an endpoint as it came in a frame.
#[must_use]
pub fn relay_proof_holds(
    key: &Key,
    register: &Register,
    endpoint: &Endpoint,
    exporter: &Exporter,
    got: &Proof,
) -> bool {
    let holds_over = |host: &str| {
        let expected = relay_proof_over(key, register, host, endpoint, exporter);
        verify(&expected, got)
    };
    let host = endpoint.host.to_string();
    // Interop: the proof is over the host as the frame has it. An older relay keeps the dot at the
    // end of `db01.corp.` there and in its proof; a decoded host has lost it.
    let is_name = matches!(endpoint.host, Host::Name(_));
    holds_over(&host) || is_name && holds_over(&format!("{host}."))
}

fn relay_proof_over(
    key: &Key,
    register: &Register,
    host: &str,
    endpoint: &Endpoint,
    exporter: &Exporter,
) -> Proof {
    let mut mac = mac(key);
    field(&mut mac, LABEL_RELAY);
    register_fields(&mut mac, register);
    field(&mut mac, &register.proof.0);
    field(&mut mac, host.as_bytes());
    field(&mut mac, &endpoint.port.get().to_be_bytes());
    field(&mut mac, &exporter.0);
    Proof(mac.finalize().into_bytes().into())
}

/// Whether both are the same, in constant time.
#[must_use]
pub fn verify(expected: &Proof, got: &Proof) -> bool {
    expected.0.ct_eq(&got.0).into()
}

/// Checks a Register against the keys of its hybrid connection; `None` where there is none of that
/// name.
///
/// Does the same work in every case (four keys or their stand-ins), so that a stranger cannot tell
/// by the time which names exist.
///
/// # Errors
/// [`NotAuthorised`], for the log only.
pub fn check_register(
    register: &Register,
    keys: Option<&HycoKeys>,
    exporter: &Exporter,
) -> Result<CheckedKey, NotAuthorised> {
    let decoy = Key::decoy();
    let pair = |rule: Rule| keys.and_then(|keys| keys.rule(rule));
    let other = match register.rule {
        Rule::Listen => Rule::Send,
        Rule::Send => Rule::Listen,
    };
    let candidates = [
        (register.rule, Which::Primary),
        (register.rule, Which::Secondary),
        (other, Which::Primary),
        (other, Which::Secondary),
    ]
    .map(|(rule, which)| pair(rule).and_then(|pair| pair.which(which)));

    let mut found = u8::MAX;
    for (index, candidate) in (0..).zip(candidates) {
        let holds = holds(candidate.unwrap_or(&decoy), register, exporter)
            & Choice::from(u8::from(candidate.is_some()));
        found.conditional_assign(&index, holds);
    }
    match (found, candidates) {
        (0, [Some(key), ..]) => Ok(CheckedKey {
            which: Which::Primary,
            key_id: register.key_id,
            key: key.clone(),
        }),
        (1, [_, Some(key), ..]) => Ok(CheckedKey {
            which: Which::Secondary,
            key_id: register.key_id,
            key: key.clone(),
        }),
        (2 | 3, _) => Err(NotAuthorised::WrongRule),
        _ if keys.is_none() => Err(NotAuthorised::UnknownName),
        _ if pair(register.rule).is_none() => Err(NotAuthorised::NoKeys),
        _ => Err(NotAuthorised::WrongKey),
    }
}

/// Whether identifier and proof of the Register are those of `key`.
fn holds(key: &Key, register: &Register, exporter: &Exporter) -> Choice {
    let id = KeyId::of(register.rule, key).0.ct_eq(&register.key_id.0);
    id & register_proof(key, register, exporter)
        .0
        .ct_eq(&register.proof.0)
}

fn mac(key: &Key) -> Hmac<Sha256> {
    Hmac::new_from_slice(key.expose().as_bytes()).expect("HMAC takes keys of any length")
}

fn register_fields(mac: &mut Hmac<Sha256>, register: &Register) {
    field(mac, register.hyco.as_str().as_bytes());
    field(mac, &[rule_byte(register.rule)]);
    field(mac, &register.key_id.0);
    field(mac, &register.nonce.0);
    field(mac, &register.weight.to_be_bytes());
    field(mac, &[register.priority]);
}

/// A field and its length: no two lists of fields have the same bytes.
fn field(mac: &mut Hmac<Sha256>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("every field is bounded by its type");
    mac.update(&len.to_be_bytes());
    mac.update(bytes);
}

impl Key {
    fn decoy() -> Self {
        DECOY.parse().expect("the decoy is a key")
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Exporter(…)")
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Nonce(")?;
        hex::write(&self.0, out)?;
        out.write_str(")")
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Proof(")?;
        hex::write(&self.0, out)?;
        out.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Frame, Registered};

    #[test]
    fn a_relay_that_keeps_the_dot_at_the_end_of_a_name_is_believed() {
        let (key, exporter) = (Key::from_random([7; 32]), Exporter([3; 32]));
        let register = Register::new(
            &key,
            "payroll-sql".parse().expect("a name"),
            Rule::Listen,
            Nonce([5; 16]),
            100,
            0,
            &exporter,
        );
        for (in_frame, in_proof, is_believed) in [
            ("db01.corp.", "db01.corp.", true),
            ("db01.corp", "db01.corp", true),
            ("db01.corp.", "db02.corp.", false),
            ("db01.corp.", "db01.corp..", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.1.", false),
        ] {
            let registered = registered(in_frame, |endpoint| {
                relay_proof_over(&key, &register, in_proof, endpoint, &exporter)
            });
            let (endpoint, proof) = (&registered.endpoint, &registered.relay_proof);
            let holds = |key| relay_proof_holds(key, &register, endpoint, &exporter, proof);
            assert_eq!(holds(&key), is_believed, "{in_frame}, {in_proof}");
            assert!(!holds(&Key::from_random([8; 32])), "{in_frame}, {in_proof}");
        }
    }

    /// The frame with this host, as it is decoded from its bytes.
    fn registered(host: &str, prove: impl Fn(&Endpoint) -> Proof) -> Registered {
        let endpoint = format!("{host}:1433").parse().expect("an endpoint");
        let mut body = vec![11];
        body.extend(b"payroll-sql");
        body.push(u8::try_from(host.len()).expect("short"));
        body.extend(host.as_bytes());
        body.extend(1433_u16.to_be_bytes());
        body.extend(prove(&endpoint).0);
        match Frame::decode(4, &body) {
            Ok(Frame::Registered(registered)) => registered,
            other => panic!("{other:?}"),
        }
    }
}
