//! What the relay tells control each second, what a probe found, and what control makes of it for
//! the command line.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Fault, Generation};
use crate::endpoint::Endpoint;
use crate::key::{KeyId, Rule, Which};
use crate::name::HycoName;
use crate::wire::{AgentId, Instance, Role};

/// What a relay says each second.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Random per process: counts are since its start.
    pub instance: Instance,
    /// The snapshot that it works by.
    pub generation: Generation,
    /// `ring` or `poll`.
    pub io: String,
    /// Why that one.
    pub io_why: String,
    /// Number of workers.
    pub workers: u16,
    /// All sessions, or as many as fit.
    pub sessions: Vec<SessionReport>,
    /// All hybrid connections, or as many as fit.
    pub hycos: Vec<HycoReport>,
    /// What is wrong just now.
    pub faults: Vec<Fault>,
    /// What was turned away.
    pub pressure: Pressure,
    /// Why the relay is overloaded, while it refuses or ends flows or sessions for want of memory.
    pub overloaded: Option<String>,
    /// Whether something was left out to stay under [`REPORT_MAX`](crate::limits::REPORT_MAX).
    pub truncated: bool,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
}

/// What a relay turned away since it started, to stay within its limits. All are counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// Handshakes begun.
    pub handshakes_begun: u64,
    /// Newcomers that were asked to prove their address first (Retry, RFC 9000, section 8.1.2).
    pub handshakes_asked: u64,
    /// Newcomers that heard nothing, because too many were there.
    pub handshakes_ignored: u64,
    /// Handshakes that were not done in time.
    pub handshakes_unfinished: u64,
    /// Flows of senders that opened more in a second than they may.
    pub opens_refused: u64,
    /// Sessions closed because they did little but harm.
    pub sessions_sent_away: u64,
    /// Connections that could not be accepted: no descriptors, no memory.
    pub accepts_failed: u64,
    /// Flows ended because they held memory that others needed.
    pub flows_ended: u64,
    /// Defects of this program that cost somebody a session or a flow, and nobody else anything.
    pub panics: u64,
}

impl Pressure {
    /// Kinds of trouble.
    pub const TROUBLES: usize = 8;

    /// How often each kind of trouble happened: all that is counted but handshakes that began.
    #[must_use]
    pub fn troubles(&self) -> [u64; Self::TROUBLES] {
        // Without `..`, so that a new count is not forgotten here.
        let Self {
            handshakes_begun: _,
            handshakes_asked,
            handshakes_ignored,
            handshakes_unfinished,
            opens_refused,
            sessions_sent_away,
            accepts_failed,
            flows_ended,
            panics,
        } = *self;
        [
            handshakes_asked,
            handshakes_ignored,
            handshakes_unfinished,
            opens_refused,
            sessions_sent_away,
            accepts_failed,
            flows_ended,
            panics,
        ]
    }

    /// With what another worker turned away.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    /// What came since an earlier look.
    #[must_use]
    pub fn since(self, earlier: &Self) -> Self {
        self.each(earlier, u64::saturating_sub)
    }

    /// Whether anybody lost anything, which a person should know.
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        self.troubles().iter().any(|count| *count > 0)
    }

    fn each(self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            handshakes_begun: with(self.handshakes_begun, other.handshakes_begun),
            handshakes_asked: with(self.handshakes_asked, other.handshakes_asked),
            handshakes_ignored: with(self.handshakes_ignored, other.handshakes_ignored),
            handshakes_unfinished: with(self.handshakes_unfinished, other.handshakes_unfinished),
            opens_refused: with(self.opens_refused, other.opens_refused),
            sessions_sent_away: with(self.sessions_sent_away, other.sessions_sent_away),
            accepts_failed: with(self.accepts_failed, other.accepts_failed),
            flows_ended: with(self.flows_ended, other.flows_ended),
            panics: with(self.panics, other.panics),
        }
    }
}

/// One session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionReport {
    /// Agent or sender.
    pub role: Role,
    /// Which installation.
    pub agent_id: AgentId,
    /// Which process of it.
    pub instance: Instance,
    /// Where it is seen to come from.
    pub remote: SocketAddr,
    /// Which worker it is on.
    pub worker: u16,
    /// Round-trip time, microseconds, smoothed (RFC 9002, section 5.3).
    pub rtt_us: u64,
    /// Largest UDP payload that the path was found to carry, bytes.
    pub mtu: u16,
    /// How it is.
    pub state: SessionState,
    /// Since when, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// What it is registered for.
    pub hycos: Vec<RegistrationReport>,
}

/// How a session is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Takes new flows.
    Ready,
    /// Has not answered for a while: picked only when no other is there.
    Suspect,
    /// Takes no new flows.
    Draining,
}

/// One registration of a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RegistrationReport {
    /// The hybrid connection.
    pub name: HycoName,
    /// The right.
    pub rule: Rule,
    /// The key that was proven last.
    pub key_id: KeyId,
    /// Which of the two that is.
    pub key: Which,
}

/// One hybrid connection, as the relay sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HycoReport {
    /// Its name.
    pub name: HycoName,
    /// The real address of its binding (port 0 resolved), while it is open.
    pub bound: Option<SocketAddr>,
    /// Listeners just now.
    pub listeners: u32,
    /// Flows just now.
    pub flows_live: u64,
    /// Flows since the relay started.
    pub flows_total: u64,
    /// Those of them that did not end clean.
    pub flows_failed: u64,
    /// Bytes from applications.
    pub bytes_to_endpoint: u64,
    /// Bytes to applications.
    pub bytes_to_application: u64,
    /// How the last flow that did not end clean did.
    pub last_ending: Option<String>,
    /// Whether flows can be had, since when, and why not.
    #[serde(default)]
    pub health: Health,
    /// Each process that listens, and whether it reaches the endpoint.
    #[serde(default)]
    pub agents: Vec<ListenerReport>,
    /// Each key that was proven since the relay started.
    #[serde(default)]
    pub keys: Vec<KeyUse>,
}

/// Whether flows of a hybrid connection can be had.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Health {
    /// In a word.
    pub state: HealthState,
    /// Since when, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Why it is not ready.
    pub why: Option<String>,
}

/// Whether flows of a hybrid connection can be had, in a word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// Every listener answers and reached the endpoint when it was last dialled.
    Ready,
    /// Somebody listens, but not every listener answers and reaches the endpoint.
    Degraded,
    /// Nobody listens.
    #[default]
    NoListener,
}

/// One process that listens on a hybrid connection. Its sessions are one listener.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListenerReport {
    /// Which installation.
    pub agent_id: AgentId,
    /// Which process of it.
    pub instance: Instance,
    /// Where its sessions are seen to come from.
    pub remote: SocketAddr,
    /// How the best of its sessions is.
    pub state: SessionState,
    /// How the endpoint was last dialled, by a flow or a probe; `None`: not yet.
    pub dial: Option<DialReport>,
}

/// How an endpoint was last dialled by one agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DialReport {
    /// Why it was not reached ([`FlowCode::name`](crate::FlowCode::name)); `None`: it was.
    pub failed: Option<String>,
    /// How long the connection took, microseconds: of a probe as the agent measured it, of a flow
    /// with the way there and back.
    pub latency_us: u64,
    /// Whether a flow or a probe says so.
    pub by_flow: bool,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
}

/// One key, and when it was last of use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyUse {
    /// The right.
    pub rule: Rule,
    /// Its identifier.
    pub key_id: KeyId,
    /// Registrations that stand on it just now.
    pub registrations: u32,
    /// When it was last proven or stood on, milliseconds since 1970.
    pub last_used_unix_ms: u64,
}

/// What a probe of a hybrid connection found, hop by hop.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Whether the relay knows the hybrid connection.
    pub known: bool,
    /// What each listener found. Empty: nobody listens.
    pub agents: Vec<ProbedListener>,
}

/// What one listener found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProbedListener {
    /// Which installation.
    pub agent_id: AgentId,
    /// Which process of it.
    pub instance: Instance,
    /// Where it is seen to come from.
    pub remote: SocketAddr,
    /// From the relay to the agent and back, microseconds: the session's smoothed round-trip time.
    pub rtt_us: u64,
    /// `None`: the agent did not answer in time.
    pub dial: Option<ProbedDial>,
}

/// How a probe's dial went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProbedDial {
    /// What was dialled, as defined.
    pub endpoint: Endpoint,
    /// The address that was dialled last; `None`: none was.
    pub address: Option<SocketAddr>,
    /// How long the name took to resolve, microseconds.
    pub resolve_us: u32,
    /// How long the connection took, microseconds.
    pub dial_us: u32,
    /// Why the endpoint was not reached ([`FlowCode::name`](crate::FlowCode::name)); `None`: it
    /// was.
    pub failed: Option<String>,
    /// The same for people.
    pub why: Option<String>,
}

/// What control answers to the command line.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The newest snapshot.
    pub generation: Generation,
    /// The relay's last report; `None` while no relay is there.
    pub relay: Option<Report>,
    /// The newest snapshot that a relay has applied.
    pub applied: Option<Generation>,
    /// Why the relay rejected the newest one, if it did.
    pub rejected: Option<String>,
    /// What is wrong with the files.
    pub faults: Vec<Fault>,
    /// Data of this month.
    #[serde(default)]
    pub usage: Option<UsageReport>,
}

/// Data of the namespace in one calendar month, UTC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UsageReport {
    /// Which, like `2026-11`.
    pub month: String,
    /// Bytes from applications.
    pub bytes_to_endpoint: u64,
    /// Bytes to applications.
    pub bytes_to_application: u64,
    /// The edition's name.
    pub edition: String,
    /// The most that both may be together; `None`: no limit.
    pub bytes_max: Option<u64>,
    /// Whether new flows are refused beyond that.
    pub enforced: bool,
}

impl HycoReport {
    /// Of a hybrid connection of which nothing is known but its name.
    #[must_use]
    pub fn new(name: HycoName) -> Self {
        Self {
            name,
            bound: None,
            listeners: 0,
            flows_live: 0,
            flows_total: 0,
            flows_failed: 0,
            bytes_to_endpoint: 0,
            bytes_to_application: 0,
            last_ending: None,
            health: Health::default(),
            agents: Vec::new(),
            keys: Vec::new(),
        }
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Draining => "draining",
        })
    }
}
