//! What control tells the relay, and what the relay tells back: whole snapshots down (here),
//! reports up (`report.rs`). Values only; [`crate::feed`] has their bytes.
//!
//! Fields that this version does not know are ignored, so that control and relay can be upgraded
//! one after the other.

mod report;

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::endpoint::Endpoint;
use crate::key::{KeyId, KeyPair, Rule, Secret, Secret32, Which};
use crate::limits;
use crate::name::HycoName;

pub use report::{
    DialReport, Health, HealthState, HycoReport, KeyUse, ListenerReport, Pressure, ProbeReport,
    ProbedDial, ProbedListener, RegistrationReport, Report, SessionReport, SessionState, Status,
    UsageReport,
};

/// Numbers snapshots. A later start of control is a later generation, whatever its number.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Generation {
    /// When control started, nanoseconds since 1970.
    pub start: u64,
    /// Counts from 1 since then.
    pub number: u64,
}

/// The whole of what a relay knows: never a difference to an earlier one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number.
    pub generation: Generation,
    /// Name of the namespace.
    pub namespace: String,
    /// UDP address for agents and senders.
    pub listen: SocketAddr,
    /// What connection strings carry, and agents are told in Welcome.
    pub public_address: Endpoint,
    /// Number of workers; `None`: one for every two cores.
    #[serde(default)]
    pub workers: Option<u16>,
    /// The relay's certificate and its key.
    pub tls: Tls,
    /// Keys that outlive the relay's process.
    pub relay_keys: RelayKeys,
    /// Bounds of the whole relay.
    #[serde(default)]
    pub limits: RelayLimits,
    /// All hybrid connections.
    pub hycos: Vec<HybridConnection>,
}

/// The relay's TLS identity.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tls {
    /// DER, the relay's own certificate first, then those that lead to a CA, if any.
    #[serde(with = "base64_list")]
    pub certificates: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    pub key: Secret,
}

/// Keys that must be the same after a restart, so that old sessions are told at once that they are
/// over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RelayKeys {
    /// For stateless reset tokens (RFC 9000, section 10.3).
    pub reset: Secret32,
    /// For address validation tokens (RFC 9000, section 8.1).
    pub token: Secret32,
    /// For connection IDs.
    pub connection_id: Secret32,
}

/// Bounds of the whole relay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RelayLimits {
    /// Sessions at once.
    pub sessions_max: u32,
    /// Live flows of one session.
    pub flows_per_session_max: u32,
    /// Live flows of the relay.
    pub flows_max: u32,
    /// Memory of the relay's process, MiB; `None`: three quarters of the machine's.
    pub memory_mib_max: Option<u32>,
}

/// One definition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HybridConnection {
    /// Its name.
    pub name: HycoName,
    /// What it leads to, resolved by the agent.
    pub endpoint: Endpoint,
    /// Where applications connect on the relay's host; `None`: only senders reach it. Port 0 takes
    /// a free one.
    #[serde(default)]
    pub bind: Option<SocketAddr>,
    /// Networks that may connect to the binding. Must be there when the binding is not loopback.
    #[serde(default)]
    pub allow_from: Vec<IpNet>,
    /// Its keys.
    pub keys: HycoKeys,
    /// Its bounds.
    #[serde(default)]
    pub limits: HycoLimits,
    /// Whether the relay may dial the endpoint to learn its health.
    #[serde(default = "yes")]
    pub probe: bool,
    /// Whether it may do so each minute without end, although no flow confirms the endpoint
    /// between.
    #[serde(default)]
    pub probe_always: bool,
    /// The data of this month is used up and that is enforced: no new flows.
    #[serde(default)]
    pub over_quota: bool,
}

/// Keys of one hybrid connection. A rule that is `None` takes no new registration (a bad key file);
/// those that stand go on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HycoKeys {
    /// Keys of agents.
    pub listen: Option<KeyPair>,
    /// Keys of senders.
    pub send: Option<KeyPair>,
}

/// What became of the key that a registration stands on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyStatus {
    /// It is still a key of this rule.
    Alive(Which),
    /// It is none any more: the registration ends.
    Revoked,
    /// The keys of this rule are not known just now: the registration stands, no new one does.
    Unknown,
}

/// Bounds of one hybrid connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct HycoLimits {
    /// Listeners at once. Sessions of one process are one listener.
    pub listeners_max: u32,
    /// Live flows at once.
    pub flows_max: u32,
    /// The weight of each listener, whatever it asks for; `None`: what it asks for, up to the
    /// relay's bound.
    pub weight: Option<u16>,
    /// The priority of each listener, whatever it asks for.
    pub priority: Option<u8>,
}

/// Something that a person has to put right.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// The hybrid connection that suffers from it, if it is one.
    pub hyco: Option<HycoName>,
    /// What, and what to write instead.
    pub what: String,
}

/// Why a snapshot cannot be applied at all.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No certificate.
    #[error("the snapshot has no certificate")]
    NoCertificate,
    /// More than [`limits::WORKERS_MAX`], or none.
    #[error("{0} workers: a relay has 1 to {max}", max = limits::WORKERS_MAX)]
    Workers(u16),
    /// Two definitions of one name.
    #[error("hybrid connection {0} is defined twice")]
    NameTwice(HycoName),
}

impl Snapshot {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// [`SnapshotError`]: the snapshot is of no use as a whole. What is wrong with one hybrid
    /// connection alone is told by [`HybridConnection::fault`].
    pub fn check(&self) -> Result<(), SnapshotError> {
        if self.tls.certificates.is_empty() {
            return Err(SnapshotError::NoCertificate);
        }
        if let Some(workers) = self
            .workers
            .filter(|workers| !(1..=limits::WORKERS_MAX).contains(workers))
        {
            return Err(SnapshotError::Workers(workers));
        }
        let mut names = HashSet::new();
        match self.hycos.iter().find(|hyco| !names.insert(&hyco.name)) {
            Some(twice) => Err(SnapshotError::NameTwice(twice.name.clone())),
            None => Ok(()),
        }
    }
}

impl HybridConnection {
    /// Why its binding must not be opened, if so: it is an open door to the endpoint for everybody
    /// who reaches it.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        let bind = self
            .bind
            .filter(|bind| !bind.ip().to_canonical().is_loopback() && self.allow_from.is_empty())?;
        let what = format!(
            "bind = \"{bind}\" is not loopback and allow_from is missing; write allow_from = [\"192.0.2.0/24\"] with the networks that may connect"
        );
        Some(Fault {
            hyco: Some(self.name.clone()),
            what,
        })
    }

    /// Whether an application at this address may connect to the binding. An empty `allow_from`
    /// means loopback alone.
    #[must_use]
    pub fn admits(&self, application: SocketAddr) -> bool {
        let ip = application.ip().to_canonical();
        if self.allow_from.is_empty() {
            return ip.is_loopback();
        }
        self.allow_from.iter().any(|net| net.contains(&ip))
    }
}

impl HycoKeys {
    /// The keys of one rule, if they are known.
    #[must_use]
    pub fn rule(&self, rule: Rule) -> Option<&KeyPair> {
        match rule {
            Rule::Listen => self.listen.as_ref(),
            Rule::Send => self.send.as_ref(),
        }
    }

    /// What became of the key with this identifier.
    #[must_use]
    pub fn status(&self, rule: Rule, id: KeyId) -> KeyStatus {
        let Some(pair) = self.rule(rule) else {
            return KeyStatus::Unknown;
        };
        pair.find(rule, id)
            .map_or(KeyStatus::Revoked, KeyStatus::Alive)
    }
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            sessions_max: limits::SESSIONS_MAX_DEFAULT,
            flows_per_session_max: limits::SESSION_FLOWS_MAX_DEFAULT,
            flows_max: limits::RELAY_FLOWS_MAX_DEFAULT,
            memory_mib_max: None,
        }
    }
}

impl Default for HycoLimits {
    fn default() -> Self {
        Self {
            listeners_max: limits::LISTENERS_MAX_DEFAULT,
            flows_max: limits::FLOWS_MAX_DEFAULT,
            weight: None,
            priority: None,
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.start, self.number)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hyco {
            Some(hyco) => write!(out, "{hyco}: {}", self.what),
            None => out.write_str(&self.what),
        }
    }
}

fn yes() -> bool {
    true
}

/// A list of byte strings as a list of base64 texts.
mod base64_list {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        list: &[Vec<u8>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|bytes| STANDARD.encode(bytes)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts
            .iter()
            .map(|text| {
                STANDARD
                    .decode(text)
                    .map_err(|_| serde::de::Error::custom("not base64"))
            })
            .collect()
    }
}
