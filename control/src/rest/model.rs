//! What requests and answers of the API hold. Values only.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use underpass_proto::Rule;
use underpass_proto::key::Which;
use underpass_proto::snapshot::{self, HealthState, HycoReport, ProbeReport};
use utoipa::ToSchema;

use super::wanted::Wanted;
use crate::files::definition::Definition;
use crate::files::quota::Quota;
use crate::store::Described;
use crate::usage::Sum;

/// A hybrid connection, as it is defined and as it is doing.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HybridConnection {
    /// What its file says.
    #[serde(flatten)]
    pub described: Described,
    /// Names the content of its file: for `If-Match`.
    pub etag: String,
    /// How it is doing.
    pub state: HycoState,
    /// What it carried this month.
    pub usage: Usage,
}

impl HybridConnection {
    /// As a definition, if its file is good.
    #[must_use]
    pub fn definition(&self) -> Option<Definition> {
        let Described {
            name,
            host,
            port,
            bind,
            allow_from,
            listeners_max,
            flows_max,
            probe,
            ..
        } = self.described.clone();
        let wanted = Wanted {
            host: host?,
            port: port?.into(),
            bind: bind.map(|bind| bind.to_string()),
            allow_from,
            probe,
            listeners_max,
            flows_max,
        };
        wanted.definition(name.parse().ok()?).ok()
    }
}

/// All hybrid connections.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HybridConnections {
    /// In the order of their files.
    pub value: Vec<HybridConnection>,
}

/// How a hybrid connection is doing, as the relay said last.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct HycoState {
    /// Whether flows can be had, in a word.
    pub health: HealthWord,
    /// Since when, milliseconds since 1970.
    pub since_unix_ms: Option<u64>,
    /// Why it is not ready.
    pub why: Option<String>,
    /// The real address of its binding, while that is open.
    #[schema(value_type = Option<String>)]
    pub bound: Option<SocketAddr>,
    /// Agents that listen.
    pub listeners: u32,
    /// Flows just now.
    pub flows_live: u64,
    /// Flows since the relay started.
    pub flows_total: u64,
    /// Those of them that did not end clean.
    pub flows_failed: u64,
    /// How the last one of those ended.
    pub last_ending: Option<String>,
    /// Each agent, and whether it reaches the endpoint.
    pub agents: Vec<Agent>,
    /// Each key that was proven since the relay started.
    pub keys: Vec<KeyUse>,
}

/// Whether flows can be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthWord {
    /// Every agent answers and reaches the endpoint.
    Ready,
    /// Somebody listens, but not every agent answers and reaches the endpoint.
    Degraded,
    /// Nobody listens.
    NoListener,
    /// No relay has said.
    #[default]
    Unknown,
}

/// One agent that listens.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    /// Which installation.
    pub agent_id: String,
    /// Where it is seen to come from.
    #[schema(value_type = String)]
    pub remote: SocketAddr,
    /// ready, suspect or draining.
    pub state: String,
    /// Whether it reached the endpoint when it last dialled it.
    pub reached: Option<bool>,
    /// Why it did not.
    pub failed: Option<String>,
    /// How long that took, microseconds.
    pub latency_us: Option<u64>,
    /// When, milliseconds since 1970.
    pub dialled_unix_ms: Option<u64>,
}

/// When a key was last of use.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyUse {
    /// listen or send.
    pub rule: String,
    /// Names the key without telling it.
    pub key_id: String,
    /// Registrations that stand on it.
    pub registrations: u32,
    /// Milliseconds since 1970.
    pub last_used_unix_ms: u64,
}

/// Data of one month, UTC.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Which.
    #[schema(example = "2026-11")]
    pub month: String,
    /// Bytes from applications.
    pub bytes_to_endpoint: u64,
    /// Bytes to applications.
    pub bytes_to_application: u64,
}

/// The four keys of a hybrid connection, and a connection string with each.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct Keys {
    /// Of agents (`defaultListener`).
    pub listen: RuleKeys,
    /// Of applications (`defaultSender`).
    pub send: RuleKeys,
}

/// The keys of one rule. There may be no secondary one.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct RuleKeys {
    /// The first key.
    pub primary_key: String,
    /// The second key.
    pub secondary_key: Option<String>,
    /// With the first key.
    pub primary_connection_string: String,
    /// With the second key.
    pub secondary_connection_string: Option<String>,
}

impl Drop for RuleKeys {
    fn drop(&mut self) {
        use zeroize::Zeroize;
        self.primary_key.zeroize();
        self.secondary_key.zeroize();
        self.primary_connection_string.zeroize();
        self.secondary_connection_string.zeroize();
    }
}

/// Which key to regenerate.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Regenerate {
    /// Of agents or of applications.
    pub rule: RuleWord,
    /// The first or the second.
    pub key: KeyWord,
}

/// A rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleWord {
    /// Agents.
    Listen,
    /// Applications.
    Send,
}

/// One of two keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyWord {
    /// The first.
    Primary,
    /// The second.
    Secondary,
}

/// The namespace, and what it used.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NamespaceTold {
    /// Its name.
    pub name: String,
    /// What connection strings carry.
    pub public_address: String,
    /// Where this API is served beside its socket.
    #[schema(value_type = Option<String>)]
    pub api_address: Option<SocketAddr>,
    /// free, developer, basic, standard, premium or unlimited.
    pub edition: String,
    /// What it may have.
    pub limits: Limits,
    /// Definitions that there are.
    pub hybrid_connections: usize,
    /// Data of this month, then of those before.
    pub usage: Vec<Usage>,
    /// Whether the data of the month is used up.
    pub data_used_up: bool,
}

/// What a namespace may have; null: as much as one likes.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    /// Most hybrid connections.
    pub hybrid_connections: Option<u32>,
    /// Most data a month, GB (10^9 bytes, both directions).
    pub data_gb_month: Option<u32>,
    /// Whether new flows are refused when it is used up.
    pub enforce_data: bool,
}

/// What a probe found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Probed {
    /// Of each agent. None: nobody listens.
    pub agents: Vec<ProbedAgent>,
}

/// What one agent found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProbedAgent {
    /// Which installation.
    pub agent_id: String,
    /// Where it is seen to come from.
    #[schema(value_type = String)]
    pub remote: SocketAddr,
    /// From the relay to the agent and back, microseconds.
    pub rtt_us: u64,
    /// Whether the agent answered, and reached the endpoint.
    pub reached: bool,
    /// The address that was dialled.
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// How long the name took to resolve, microseconds.
    pub resolve_us: Option<u32>,
    /// How long the connection took, microseconds.
    pub dial_us: Option<u32>,
    /// Why it was not reached.
    pub failed: Option<String>,
    /// The same for people.
    pub why: Option<String>,
}

/// Whether a probe of the process holds.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Alive {
    /// ok.
    pub status: String,
}

impl Alive {
    pub(super) fn ok() -> Self {
        Self {
            status: "ok".into(),
        }
    }
}

impl From<HealthState> for HealthWord {
    fn from(state: HealthState) -> Self {
        match state {
            HealthState::Ready => Self::Ready,
            HealthState::Degraded => Self::Degraded,
            HealthState::NoListener => Self::NoListener,
        }
    }
}

impl From<&HycoReport> for HycoState {
    fn from(report: &HycoReport) -> Self {
        Self {
            health: match report.health.state {
                // A relay that does not watch it says only whether anybody listens.
                HealthState::NoListener if report.listeners > 0 => HealthWord::Unknown,
                state => state.into(),
            },
            since_unix_ms: Some(report.health.since_unix_ms).filter(|since| *since > 0),
            why: report.health.why.clone(),
            bound: report.bound,
            listeners: report.listeners,
            flows_live: report.flows_live,
            flows_total: report.flows_total,
            flows_failed: report.flows_failed,
            last_ending: report.last_ending.clone(),
            agents: report.agents.iter().map(Into::into).collect(),
            keys: report.keys.iter().map(Into::into).collect(),
        }
    }
}

impl From<&snapshot::ListenerReport> for Agent {
    fn from(listener: &snapshot::ListenerReport) -> Self {
        let dial = listener.dial.as_ref();
        Self {
            agent_id: listener.agent_id.to_string(),
            remote: listener.remote,
            state: listener.state.to_string(),
            reached: dial.map(|dial| dial.failed.is_none()),
            failed: dial.and_then(|dial| dial.failed.clone()),
            latency_us: dial.map(|dial| dial.latency_us),
            dialled_unix_ms: dial.map(|dial| dial.unix_ms),
        }
    }
}

impl From<&snapshot::KeyUse> for KeyUse {
    fn from(used: &snapshot::KeyUse) -> Self {
        Self {
            rule: used.rule.right().into(),
            key_id: used.key_id.to_string(),
            registrations: used.registrations,
            last_used_unix_ms: used.last_used_unix_ms,
        }
    }
}

impl From<Sum> for Usage {
    fn from(sum: Sum) -> Self {
        Self {
            month: sum.month.to_string(),
            bytes_to_endpoint: sum.data.to_endpoint,
            bytes_to_application: sum.data.to_application,
        }
    }
}

impl From<&Quota> for Limits {
    fn from(quota: &Quota) -> Self {
        Self {
            hybrid_connections: quota.hybrid_connections,
            data_gb_month: quota.data_gb_month,
            enforce_data: quota.enforce_data,
        }
    }
}

impl From<ProbeReport> for Probed {
    fn from(report: ProbeReport) -> Self {
        Self {
            agents: report.agents.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<snapshot::ProbedListener> for ProbedAgent {
    fn from(listener: snapshot::ProbedListener) -> Self {
        let dial = listener.dial.as_ref();
        Self {
            agent_id: listener.agent_id.to_string(),
            remote: listener.remote,
            rtt_us: listener.rtt_us,
            reached: dial.is_some_and(|dial| dial.failed.is_none()),
            address: dial.and_then(|dial| dial.address),
            resolve_us: dial.map(|dial| dial.resolve_us),
            dial_us: dial.map(|dial| dial.dial_us),
            failed: dial.map_or_else(|| Some("no_answer".into()), |dial| dial.failed.clone()),
            why: dial.map_or_else(
                || Some("the agent did not answer in time".into()),
                |dial| dial.why.clone(),
            ),
        }
    }
}

impl From<RuleWord> for Rule {
    fn from(word: RuleWord) -> Self {
        match word {
            RuleWord::Listen => Self::Listen,
            RuleWord::Send => Self::Send,
        }
    }
}

impl From<Rule> for RuleWord {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Listen => Self::Listen,
            Rule::Send => Self::Send,
        }
    }
}

impl From<KeyWord> for Which {
    fn from(word: KeyWord) -> Self {
        match word {
            KeyWord::Primary => Self::Primary,
            KeyWord::Secondary => Self::Secondary,
        }
    }
}

impl From<Which> for KeyWord {
    fn from(which: Which) -> Self {
        match which {
            Which::Primary => Self::Primary,
            Which::Secondary => Self::Secondary,
        }
    }
}
