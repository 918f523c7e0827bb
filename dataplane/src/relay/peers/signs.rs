//! Signs of life of sessions: how often a peer gives them, who owes one, and who is given up.

use std::time::{Duration, Instant};

use underpass_proto::limits::PING_AFTER;
use underpass_proto::wire::KeepAlive;

use super::{Peer, Peers, Verdict};
use crate::quic::{Driver, SessionId, Side};

impl Peers {
    /// A peer says how often its process gives a sign of life.
    pub(super) fn wants_keep_alive(&mut self, session: SessionId, frame: KeepAlive) -> Verdict {
        if let Some(peer) = self.sessions.get_mut(&session) {
            peer.keep_alive = Some(frame.every());
        }
        Verdict::Fine
    }

    /// Sessions that do not answer any more, each once until it is heard again.
    pub(crate) fn fell_silent(&mut self, quic: &Driver, now: Instant) -> Vec<SessionId> {
        let mut fell = Vec::new();
        for (&session, peer) in &mut self.sessions {
            let silent = quic.is_suspect(now, session);
            if silent && !peer.silent {
                fell.push(session);
            }
            peer.silent = silent;
        }
        fell
    }

    /// Asks for signs of life where they are missing. Sessions that have owed one for too long, and
    /// are over.
    pub(crate) fn keep_alive(&self, quic: &mut Driver, now: Instant) -> Vec<SessionId> {
        let mut dead = Vec::new();
        for (&session, peer) in &self.sessions {
            if quic.is_dead(now, session) {
                dead.push(session);
            } else {
                quic.keep_alive(now, session, Side::Accepted, peer.keep_alive());
            }
        }
        dead
    }
}

impl Peer {
    /// How often its process gives a sign of life. Its own wish counts once a key is proven.
    fn keep_alive(&self) -> Duration {
        let wish = self.keep_alive.filter(|_| !self.registrations.is_empty());
        wish.unwrap_or(PING_AFTER)
    }
}
