//! Everything of Underpass that is decidable without a socket, a clock or chance: names, connection
//! strings, wire frames, handshake proofs, snapshots and their framing, allow-lists, limits and
//! close codes.
//!
//! Refuses: tokio, quinn, sockets, `Instant::now`, random numbers. Nonces, exporters and keys are
//! arguments, so that the whole crate is a set of functions from bytes to values and can be fuzzed
//! as such. What stands on the wire is told byte for byte in `WIRE.md`, beside this crate.

pub mod allow;
pub mod code;
pub mod connection_string;
pub mod endpoint;
pub mod feed;
pub mod flow_id;
pub mod hex;
pub mod key;
pub mod limits;
pub mod name;
pub mod printable;
pub mod proof;
pub mod sas;
mod serde_text;
pub mod snapshot;
pub mod wire;

pub use allow::{AllowEntry, AllowList};
pub use code::{Cause, Ending, FlowCode, SessionCode, Side};
pub use connection_string::{ConnectionString, ConnectionStringError, Pin};
pub use endpoint::{Endpoint, Host, HostName};
pub use feed::{FeedMessage, FeedReader};
pub use flow_id::{FlowId, Locality};
pub use key::{Key, KeyId, KeyPair, Rule, Secret, Secret32, Which};
pub use name::HycoName;
pub use printable::PeerText;
pub use proof::{CheckedKey, Exporter, Nonce, NotAuthorised, Proof};
pub use sas::{SasRule, SasToken};
pub use snapshot::{Fault, Generation, HybridConnection, HycoKeys, Report, Snapshot, Status};
pub use wire::{AgentId, Frame, FrameError, FrameReader, Instance, Register, Role};
