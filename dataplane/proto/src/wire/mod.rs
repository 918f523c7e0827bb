//! What peers say to each other, as values: the frames. [`codec`] knows their bytes, [`reader`]
//! finds them in a stream.
//!
//! A frame is its type (one byte), the length of its body (two bytes, big-endian) and the body, at
//! most [`FRAME_MAX`] bytes. The layout of each body is told in `WIRE.md`, byte for byte, beside
//! this crate.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::code::FlowCode;
use crate::endpoint::Endpoint;
use crate::flow_id::FlowId;
use crate::hex;
use crate::key::{KeyId, Rule};
use crate::limits::{KEEP_ALIVE_MAX, PING_AFTER};
use crate::name::HycoName;
use crate::proof::{Nonce, Proof};
use crate::serde_text::serde_text;

pub mod codec;
pub mod reader;

pub use codec::FrameError;
pub use reader::FrameReader;

/// The application protocol of TLS (RFC 7301).
pub const ALPN: &[u8] = b"underpass/1";
/// The version that a Hello carries.
pub const VERSION: u16 = 1;
/// Bytes before a body: type and length.
pub const HEADER_LEN: usize = 3;
/// Most bytes of a body. The longest today is a Welcome with [`RELAYS_MAX`] relays of 253
/// characters each.
pub const FRAME_MAX: usize = 4096;
/// Most relays in a Welcome: more are not tried anyway.
pub const RELAYS_MAX: usize = 15;

const _: () = assert!(RELAYS_MAX * (1 + crate::endpoint::HOST_NAME_MAX + 1 + 2) + 16 <= FRAME_MAX);

/// Who opened a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Listens for flows, beside endpoints.
    Agent,
    /// Sends flows, beside applications.
    Sender,
}

/// Stable over restarts of one installation, and not to be guessed. Hexadecimal in serde and logs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentId(pub [u8; 16]);

/// Random per process. Sessions with one instance are one listener. Hexadecimal in serde and logs.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance(pub [u8; 16]);

/// The text is not 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an identifier has 32 hexadecimal digits")]
pub struct IdError;

/// All that can be said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// First on the control stream, from the side that dialled.
    Hello(Hello),
    /// The relay's answer to it.
    Welcome(Welcome),
    /// Peer to relay: asks for the right to one hybrid connection, with the proof. Again at any
    /// time, to prove another key.
    Register(Register),
    /// Relay to peer: granted, with the relay's own proof. Again, over the last Register, whenever
    /// the endpoint changed.
    Registered(Registered),
    /// Relay to peer: not granted.
    Refused(Refused),
    /// Relay to peer: a registration that was granted is over, and its flows with it.
    Ended(Ended),
    /// Peer to relay: a registration is no longer wanted; its live flows go on.
    Deregister(Deregister),
    /// Either way: no new flows on this session, please.
    Draining,
    /// Peer to relay: how often this process gives a sign of life.
    KeepAlive(KeepAlive),
    /// Relay to agent: dial the endpoint as for a flow, say how that went, and close it.
    Probe(Probe),
    /// The agent's answer to it.
    Probed(Probed),
    /// Relay to peer, behind Welcome: which codes it knows.
    Codes(Codes),
    /// Peer to relay, before the first Register: this session only asks whether its registrations
    /// would be granted.
    Check,
    /// First on a flow stream, from the side that opened it; the application's bytes follow at
    /// once.
    Open(Open),
    /// The answer on a flow stream: the endpoint is connected; its bytes follow.
    Opened(Opened),
    /// Relay to sender, instead of Opened: that worker has a listener's session, this one has none.
    Elsewhere(Elsewhere),
}

/// Body of [`Frame::Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// [`VERSION`]; another one is answered by closing the session with
    /// [`crate::SessionCode::Version`].
    pub version: u16,
    /// What the peer is.
    pub role: Role,
    /// Which installation it is.
    pub agent_id: AgentId,
    /// Which process of it.
    pub instance: Instance,
}

/// Body of [`Frame::Welcome`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// How many workers the relay has, from 1.
    pub workers: u8,
    /// Which of them this session is on, from 0.
    pub worker: u8,
    /// The relay's clock, milliseconds since 1970, for naming a skew; nothing is decided by it.
    pub relay_time_unix_ms: u64,
    /// All relays of the namespace, this one among them. Those beyond [`RELAYS_MAX`] are not sent.
    pub relays: Vec<Endpoint>,
}

/// Body of [`Frame::Register`]. Made by [`Register::new`](crate::proof), which computes identifier
/// and proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// The hybrid connection.
    pub hyco: HycoName,
    /// The right that is asked for.
    pub rule: Rule,
    /// Which key the proof was made with.
    pub key_id: KeyId,
    /// Random, new for each Register.
    pub nonce: Nonce,
    /// A listener's wish: its share of new flows relative to other listeners (100 is usual).
    pub weight: u16,
    /// A listener's wish: lower is preferred (0 is usual).
    pub priority: u8,
    /// Over all the fields above and the TLS exporter.
    pub proof: Proof,
}

/// Body of [`Frame::Registered`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// The hybrid connection, spelled as in the Register.
    pub hyco: HycoName,
    /// What it leads to.
    pub endpoint: Endpoint,
    /// The relay's proof that it knows the key too, over the Register and the endpoint.
    pub relay_proof: Proof,
}

/// Body of [`Frame::Refused`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The hybrid connection, spelled as in the Register.
    pub hyco: HycoName,
    /// Why.
    pub code: RefusedCode,
}

/// Why a registration was refused. One code for unknown name, wrong key and wrong rule: a stranger
/// learns nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum RefusedCode {
    /// Unknown name, wrong key or wrong rule.
    NotAuthorised = 1,
    /// The hybrid connection has as many listeners as it may have.
    TooManyListeners = 2,
    /// The relay is at a limit of its own; later may do.
    Overloaded = 3,
}

/// Body of [`Frame::Ended`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The hybrid connection.
    pub hyco: HycoName,
    /// Why.
    pub code: EndedCode,
}

/// Why a registration ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum EndedCode {
    /// The right is gone for another reason than the two below.
    NotAuthorised = 1,
    /// The limit on listeners was lowered.
    TooManyListeners = 2,
    /// The relay is at a limit of its own.
    Overloaded = 3,
    /// The key that it stood on is no longer a key of this hybrid connection.
    KeyRevoked = 4,
    /// The hybrid connection was removed.
    Removed = 5,
}

/// Body of [`Frame::Deregister`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deregister {
    /// The hybrid connection.
    pub hyco: HycoName,
}

/// Body of [`Frame::KeepAlive`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeepAlive {
    /// Time between two signs of life, milliseconds, from 1. What is above the limit counts as the
    /// limit.
    pub every_ms: u32,
}

/// Body of [`Frame::Probe`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The hybrid connection, spelled as in the Register.
    pub hyco: HycoName,
    /// Comes back in the answer.
    pub id: u64,
    /// What to dial. The agent's allow-list has the last word.
    pub endpoint: Endpoint,
}

/// Body of [`Frame::Probed`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probed {
    /// The hybrid connection, spelled as in the Probe.
    pub hyco: HycoName,
    /// That of the Probe.
    pub id: u64,
    /// Why the endpoint was not reached; `None`: it was.
    pub failed: Option<FlowCode>,
    /// How long its name took to resolve, microseconds; 0 for an address.
    pub resolve_us: u32,
    /// How long its last connection attempt took, microseconds.
    pub dial_us: u32,
    /// The address that was dialled last; `None`: none was.
    pub dialled: Option<SocketAddr>,
}

/// Body of [`Frame::Codes`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Codes {
    /// The highest number of a [`FlowCode`] that the relay knows.
    pub flow_max: u8,
}

/// Body of [`Frame::Open`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// The hybrid connection.
    pub hyco: HycoName,
    /// For the logs.
    pub flow: FlowId,
    /// What to dial. The agent's allow-list has the last word.
    pub endpoint: Endpoint,
    /// Who connected to the binding.
    pub application: SocketAddr,
}

/// Body of [`Frame::Opened`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The address that was dialled.
    pub endpoint: SocketAddr,
}

/// Body of [`Frame::Elsewhere`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Elsewhere {
    /// The worker to open a session on.
    pub worker: u8,
}

impl KeepAlive {
    /// The frame that asks for this time, in whole milliseconds.
    #[must_use]
    pub fn of(every: Duration) -> Self {
        let ms = every.min(KEEP_ALIVE_MAX).as_millis();
        let every_ms = u32::try_from(ms).unwrap_or(u32::MAX).max(1);
        Self { every_ms }
    }

    /// The time between two signs of life, within what a relay grants.
    #[must_use]
    pub fn every(self) -> Duration {
        let every = Duration::from_millis(u64::from(self.every_ms));
        every.clamp(PING_AFTER, KEEP_ALIVE_MAX)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Agent => "agent",
            Self::Sender => "sender",
        })
    }
}

impl RefusedCode {
    /// The code of a byte on the wire.
    #[must_use]
    pub fn from_u8(code: u8) -> Option<Self> {
        [
            Self::NotAuthorised,
            Self::TooManyListeners,
            Self::Overloaded,
        ]
        .into_iter()
        .find(|known| *known as u8 == code)
    }
}

impl fmt::Display for RefusedCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::NotAuthorised => "not authorised",
            Self::TooManyListeners => "too many listeners",
            Self::Overloaded => "relay overloaded",
        })
    }
}

impl EndedCode {
    /// The code of a byte on the wire.
    #[must_use]
    pub fn from_u8(code: u8) -> Option<Self> {
        let all = [
            Self::NotAuthorised,
            Self::TooManyListeners,
            Self::Overloaded,
            Self::KeyRevoked,
            Self::Removed,
        ];
        all.into_iter().find(|known| *known as u8 == code)
    }
}

impl fmt::Display for EndedCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::NotAuthorised => "not authorised",
            Self::TooManyListeners => "too many listeners",
            Self::Overloaded => "relay overloaded",
            Self::KeyRevoked => "key revoked",
            Self::Removed => "hybrid connection removed",
        })
    }
}

/// `Display`, `Debug` and serde as hexadecimal.
macro_rules! hex_id {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex::write(&self.0, out)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{}({self})", stringify!($type))
            }
        }

        impl FromStr for $type {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                hex::read(text).map(Self).ok_or(IdError)
            }
        }

        serde_text!($type);
    };
}

hex_id!(AgentId);
hex_id!(Instance);

impl fmt::Display for FlowId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}
