//! Why sessions and flows end: the numbers on the wire, the words for people, and who is to blame.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Application error code of a closed session (QUIC CONNECTION_CLOSE, RFC 9000, section 19.19).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum SessionCode {
    /// All was said.
    Done = 0,
    /// The peer broke the protocol.
    Protocol = 1,
    /// Every registration was refused.
    NotAuthorised = 2,
    /// The process is going down.
    Draining = 3,
    /// No Hello within the deadline.
    HelloTimeout = 4,
    /// A new process of the same agent took its place.
    Replaced = 5,
    /// The version in the Hello is not spoken here.
    Version = 6,
    /// The last registration is gone, or none came within the deadline.
    NoRegistration = 7,
    /// At a limit; later may do.
    Overloaded = 8,
}

/// Application error code of a reset or stopped stream (QUIC RESET_STREAM and STOP_SENDING, RFC
/// 9000, sections 19.4 and 19.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum FlowCode {
    /// The TCP peer reset its connection.
    Reset = 1,
    /// TCP's keep-alive or retransmission gave the TCP peer up.
    Timeout = 2,
    /// A local error on the side that says this.
    Aborted = 3,
    /// The endpoint refused the connection.
    EndpointRefused = 16,
    /// The endpoint did not answer in time.
    EndpointTimedOut = 17,
    /// There is no way to the endpoint.
    EndpointUnreachable = 18,
    /// The endpoint's name is unknown where the agent runs.
    NameNotFound = 19,
    /// The agent's allow-list does not permit the endpoint.
    NotAllowed = 20,
    /// The process takes no new flows.
    Draining = 21,
    /// No agent listens.
    NoListener = 22,
    /// At the limit of flows.
    TooManyFlows = 23,
    /// The registration that the flow stood on has ended (its key was revoked, or the hybrid
    /// connection removed).
    RegistrationEnded = 24,
    /// The grace time of a drain is over.
    GraceOver = 25,
    /// The peer broke the protocol.
    Protocol = 26,
    /// The session was lost. Never on the wire: there is none left.
    SessionLost = 27,
    /// At a limit; later may do.
    Overloaded = 28,
    /// The data of this month is used up, and the namespace enforces that.
    OverQuota = 29,
    /// The agent's machine has no source port left for the endpoint.
    NoSourcePort = 30,
    /// No name server answered for the endpoint's name.
    NameServerSilent = 31,
    /// The endpoint leads back to the flow's own binding.
    Loop = 32,
}

/// Who a failure is laid to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The program that connected.
    Application,
    /// The service that was asked for.
    Endpoint,
    /// The relay.
    Relay,
    /// The agent, or that there is none.
    Agent,
    /// The sender.
    Sender,
    /// The way between relay and agent or sender.
    Network,
}

/// What ended a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cause {
    /// FIN passed in both directions.
    Clean,
    /// Anything else.
    Code(FlowCode),
}

/// How a flow ended: every flow has one, in the log and in the metrics. `Display`:
/// `endpoint: reset`, or `clean`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ending {
    /// Who ended it; of a clean one, the side that closed first.
    pub side: Side,
    /// How.
    pub cause: Cause,
}

impl SessionCode {
    const ALL: [Self; 9] = [
        Self::Done,
        Self::Protocol,
        Self::NotAuthorised,
        Self::Draining,
        Self::HelloTimeout,
        Self::Replaced,
        Self::Version,
        Self::NoRegistration,
        Self::Overloaded,
    ];

    /// The code of a number on the wire.
    #[must_use]
    pub fn from_u64(code: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| u64::from(*known as u32) == code)
    }

    /// The number on the wire.
    #[must_use]
    pub fn to_u32(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for SessionCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Done => "done",
            Self::Protocol => "protocol error",
            Self::NotAuthorised => "not authorised",
            Self::Draining => "draining",
            Self::HelloTimeout => "no Hello in time",
            Self::Replaced => "replaced by a new process of the same agent",
            Self::Version => "version not spoken",
            Self::NoRegistration => "no registration",
            Self::Overloaded => "overloaded",
        })
    }
}

impl FlowCode {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 20] = [
        Self::Reset,
        Self::Timeout,
        Self::Aborted,
        Self::EndpointRefused,
        Self::EndpointTimedOut,
        Self::EndpointUnreachable,
        Self::NameNotFound,
        Self::NotAllowed,
        Self::Draining,
        Self::NoListener,
        Self::TooManyFlows,
        Self::RegistrationEnded,
        Self::GraceOver,
        Self::Protocol,
        Self::SessionLost,
        Self::Overloaded,
        Self::OverQuota,
        Self::NoSourcePort,
        Self::NameServerSilent,
        Self::Loop,
    ];

    /// The highest number that is known to a relay that announces none.
    pub const MAX_UNANNOUNCED: u8 = 29;

    /// The highest number that is known here.
    pub const MAX: u8 = 32;

    /// The code of a number on the wire.
    #[must_use]
    pub fn from_u64(code: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| u64::from(*known as u32) == code)
    }

    /// The number on the wire.
    #[must_use]
    pub fn to_u32(self) -> u32 {
        self as u32
    }

    /// This code where the other side knows those up to `max`; else the one of its version that
    /// comes nearest.
    #[must_use]
    pub fn known_up_to(self, max: u8) -> Self {
        match self {
            known if known.to_u32() <= u32::from(max) => known,
            Self::NoSourcePort => Self::EndpointUnreachable,
            Self::NameServerSilent => Self::NameNotFound,
            // No refusal: another agent would only make the loop longer.
            Self::Loop => Self::Aborted,
            other => other,
        }
    }

    /// Whether this is an explicit word before anything reached an endpoint, so that the flow may
    /// be tried elsewhere.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(self as u32, 16..=24 | 28 | 30..=31)
    }

    /// Who failed, when `sent_by` (agent, relay or sender) says this code.
    #[must_use]
    pub fn side(self, sent_by: Side) -> Side {
        match self {
            Self::Reset | Self::Timeout if sent_by == Side::Agent => Side::Endpoint,
            Self::Reset | Self::Timeout => Side::Application,
            Self::EndpointRefused
            | Self::EndpointTimedOut
            | Self::EndpointUnreachable
            | Self::NameNotFound
            | Self::Loop => Side::Endpoint,
            Self::NotAllowed | Self::NoListener | Self::NoSourcePort | Self::NameServerSilent => {
                Side::Agent
            }
            Self::RegistrationEnded | Self::OverQuota => Side::Relay,
            Self::SessionLost => Side::Network,
            // Who complains about the protocol is not who broke it.
            Self::Protocol if sent_by == Side::Relay => Side::Agent,
            Self::Protocol => Side::Relay,
            Self::Aborted
            | Self::Draining
            | Self::TooManyFlows
            | Self::GraceOver
            | Self::Overloaded => sent_by,
        }
    }

    /// A short name that stays: for metrics, JSON and [`Ending`].
    #[must_use]
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// The short name, and the words for people.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Reset => ("reset", "the TCP peer reset the connection"),
            Self::Timeout => ("timeout", "the TCP peer stopped answering"),
            Self::Aborted => ("aborted", "local error"),
            Self::EndpointRefused => ("refused", "endpoint refused the connection"),
            Self::EndpointTimedOut => ("timed_out", "endpoint did not answer in time"),
            Self::EndpointUnreachable => ("unreachable", "endpoint is unreachable"),
            Self::NameNotFound => ("name_not_found", "endpoint's name is not found"),
            Self::NotAllowed => ("not_allowed", "endpoint is not on the agent's allow-list"),
            Self::Draining => ("draining", "draining, no new flows"),
            Self::NoListener => ("no_listener", "no agent listens"),
            Self::TooManyFlows => ("too_many_flows", "too many flows"),
            Self::RegistrationEnded => ("registration_ended", "the registration ended"),
            Self::GraceOver => ("grace_over", "the grace time of the drain is over"),
            Self::Protocol => ("protocol", "protocol error"),
            Self::SessionLost => ("session_lost", "the session was lost"),
            Self::Overloaded => ("overloaded", "overloaded"),
            Self::OverQuota => ("over_quota", "the data of this month is used up"),
            Self::NoSourcePort => (
                "no_source_port",
                "the agent's machine has no source port left for the endpoint",
            ),
            Self::NameServerSilent => (
                "name_server_silent",
                "no name server answered for the endpoint's name",
            ),
            Self::Loop => ("loop", "endpoint leads back to its own binding"),
        }
    }
}

impl fmt::Display for FlowCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.words().1)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Application => "application",
            Self::Endpoint => "endpoint",
            Self::Relay => "relay",
            Self::Agent => "agent",
            Self::Sender => "sender",
            Self::Network => "network",
        })
    }
}

impl Ending {
    /// FIN passed in both directions; `side` closed first.
    #[must_use]
    pub fn clean(side: Side) -> Self {
        Self {
            side,
            cause: Cause::Clean,
        }
    }

    /// Ended by a code that `sent_by` (agent, relay or sender) said.
    #[must_use]
    pub fn said(code: FlowCode, sent_by: Side) -> Self {
        Self {
            side: code.side(sent_by),
            cause: Cause::Code(code),
        }
    }

    /// Whether nothing failed.
    #[must_use]
    pub fn is_clean(self) -> bool {
        self.cause == Cause::Clean
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Clean => out.pad("clean"),
            Cause::Code(code) => write!(out, "{}: {}", self.side, code.name()),
        }
    }
}
