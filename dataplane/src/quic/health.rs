//! How well a session is: when its peer was heard, and what its path looks like.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::session::Session;
use super::{Driver, SessionId};

/// What a session's path looks like.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// The peer's address, as it is now.
    pub remote: SocketAddr,
    /// Smoothed round-trip time (RFC 9002, section 5.3).
    pub rtt: Duration,
    /// Bytes of one datagram.
    pub mtu: u16,
    /// When the session began.
    pub since: Instant,
}

impl Driver {
    /// Asks the peer for a sign of life.
    pub fn ping(&mut self, id: SessionId) {
        if let Some(session) = self.session(id) {
            session.connection.ping();
            self.mark(id);
        }
    }

    /// How long nothing was heard.
    #[must_use]
    pub fn silence(&self, now: Instant, id: SessionId) -> Option<Duration> {
        let session = self.look_at(id)?;
        Some(now.saturating_duration_since(session.last_heard))
    }

    /// Whether the peer has answered at all, and not stopped to for longer than `patience`.
    #[must_use]
    pub fn is_answering(&self, now: Instant, id: SessionId, patience: Duration) -> bool {
        let heard = self.look_at(id).filter(|session| session.heard);
        heard.is_some_and(|session| now.saturating_duration_since(session.last_heard) <= patience)
    }

    /// What a report says of a session.
    #[must_use]
    pub fn path(&self, id: SessionId) -> Option<Path> {
        let session = self.look_at(id)?;
        Some(Path {
            remote: session.connection.remote_address(),
            rtt: session.connection.rtt(),
            mtu: session.connection.current_mtu(),
            since: session.since,
        })
    }

    fn look_at(&self, id: SessionId) -> Option<&Session> {
        let session = self.sessions.get(id.index as usize)?.as_ref()?;
        (session.generation == id.generation).then_some(session)
    }
}
