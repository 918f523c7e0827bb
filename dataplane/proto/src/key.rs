//! Secrets and what may be said about them: the text of a key, its identifier, the rules that keys
//! stand for.
//!
//! No `Debug`, `Display` or error of this file shows a secret; memory is wiped when a secret is
//! dropped.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::hex;
use crate::serde_text::serde_text;

/// Most characters of a key. Azure's have 44 (base64 of 32 bytes); longer ones than this are a
/// pasted file.
pub const KEY_MAX: usize = 256;

/// The text of a key, as it stands in files and connection strings: usually base64 of 32 random
/// bytes. The text is the secret, not the decoded bytes.
///
/// Compared in constant time. Wiped on drop. `Debug` prints `Key(…)`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key(String);

/// Why a text is not a key. Does not repeat the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// Empty or over [`KEY_MAX`].
    #[error("a key has 1 to {KEY_MAX} characters, this one has {0}")]
    Length(usize),
    /// A space, a control character, a `;` (it would end the field of a connection string), or
    /// beyond ASCII.
    #[error("a key has visible ASCII characters only, without `;`")]
    Character,
}

/// What a key gives the right to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// `defaultListener`: agents, on-premises.
    Listen,
    /// `defaultSender`: senders, beside applications.
    Send,
}

/// The name is none of the rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the key rule is neither defaultListener nor defaultSender")]
pub struct RuleError;

/// Which of a rule's two keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// The first.
    Primary,
    /// The second, there for rotation.
    Secondary,
}

/// The keys of one rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyPair {
    /// The first key.
    pub primary: Key,
    /// The second key, there for rotation.
    #[serde(default)]
    pub secondary: Option<Key>,
}

/// Names a key without telling it: the first 8 bytes of SHA-256(label ‖ 0 ‖ key text). Safe to log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 8]);

/// The text is not 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a key identifier has 16 hexadecimal digits")]
pub struct KeyIdError;

/// Secret bytes of any length, base64 in serde (the relay's TLS key). Wiped on drop, `Debug` shows
/// only the length.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(Vec<u8>);

/// 32 secret bytes, base64 in serde (the relay's reset, token and connection-ID keys). Wiped on
/// drop.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret32([u8; 32]);

impl Key {
    /// A new key from 32 random bytes: their base64.
    #[must_use]
    pub fn from_random(mut random: [u8; 32]) -> Self {
        let key = Self(STANDARD.encode(random));
        random.zeroize();
        key
    }

    /// The secret text. Every use of this is a place to look at.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if !(1..=KEY_MAX).contains(&text.len()) {
            return Err(KeyError::Length(text.len()));
        }
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b';')
        {
            return Err(KeyError::Character);
        }
        Ok(Self(text.to_owned()))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Key(…)")
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Rule {
    /// The name that users know from Azure.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Listen => "defaultListener",
            Self::Send => "defaultSender",
        }
    }

    /// The right itself: `listen` or `send`.
    #[must_use]
    pub fn right(self) -> &'static str {
        match self {
            Self::Listen => "listen",
            Self::Send => "send",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        [Self::Listen, Self::Send]
            .into_iter()
            .find(|rule| rule.name().eq_ignore_ascii_case(text))
            .ok_or(RuleError)
    }
}

impl fmt::Display for Which {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        })
    }
}

impl KeyPair {
    /// The asked one of the two.
    #[must_use]
    pub fn which(&self, which: Which) -> Option<&Key> {
        match which {
            Which::Primary => Some(&self.primary),
            Which::Secondary => self.secondary.as_ref(),
        }
    }

    /// Which of the two has this identifier under `rule`.
    #[must_use]
    pub fn find(&self, rule: Rule, id: KeyId) -> Option<Which> {
        [Which::Primary, Which::Secondary]
            .into_iter()
            .find(|which| {
                self.which(*which)
                    .is_some_and(|key| KeyId::of(rule, key) == id)
            })
    }
}

impl KeyId {
    /// The identifier of a key under a rule. The label holds the rule, so that one key text used
    /// for both has two identifiers.
    #[must_use]
    pub fn of(rule: Rule, key: &Key) -> Self {
        let digest = Sha256::new()
            .chain_update(b"underpass/1 key-id ")
            .chain_update(rule.right())
            .chain_update([0])
            .chain_update(key.expose())
            .finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, out)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "KeyId({self})")
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;

    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        hex::read(text).map(Self).ok_or(KeyIdError)
    }
}

serde_text!(KeyId);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The secret bytes. Every use of this is a place to look at.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Secret32 {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret bytes. Every use of this is a place to look at.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Secret({} bytes)", self.0.len())
    }
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret32(…)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&self.0)))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        secret_bytes(deserializer).map(Self)
    }
}

impl Serialize for Secret32 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(self.0)))
    }
}

impl<'de> Deserialize<'de> for Secret32 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Zeroizing::new(secret_bytes(deserializer)?);
        bytes
            .as_slice()
            .try_into()
            .map(Self)
            .map_err(|_| serde::de::Error::custom("not base64 of 32 bytes"))
    }
}

/// Base64 text to bytes; the error does not repeat the text.
fn secret_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Zeroizing::new(String::deserialize(deserializer)?);
    STANDARD
        .decode(text.as_bytes())
        .map_err(|_| serde::de::Error::custom("not base64"))
}
