//! A restarted agent or sender takes the place of its process before. Only a proven registration
//! starts this: what a peer claims before its proof changes no other session. One that is proven
//! and refused because all places are taken starts it, too: the older process may hold the last
//! place, and be dead.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use underpass_proto::limits::REPLACED_AFTER;
use underpass_proto::{AgentId, HycoName, Instance, Rule};

use super::{Peer, Peers};
use crate::quic::{Driver, SessionId};

/// A contested session may be silent for so many of its round trips: its answer to the ping, and
/// one loss of either.
const ROUND_TRIPS: u32 = 4;

/// A session that answered is not contested again for so long: two agents that share one identity
/// do not disturb each other.
pub(super) const CONTEST_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A process, and what it has proven in one turn. Every worker compares it with its own sessions.
#[derive(Clone, Debug)]
pub(crate) struct Successor {
    /// Which installation.
    pub(super) agent_id: AgentId,
    /// Which process of it.
    pub(super) instance: Instance,
    /// Which right it has proven.
    pub(super) rule: Rule,
    /// For what.
    pub(super) names: Vec<HycoName>,
}

/// Registrations of a session that a newer process of the same agent has proven, too.
#[derive(Debug)]
pub(super) struct Contested {
    since: Instant,
    names: BTreeSet<HycoName>,
}

impl Successor {
    /// One more name for which this session has proven `rule`.
    pub(super) fn add(successor: &mut Option<Self>, peer: &Peer, rule: Rule, name: HycoName) {
        let Some(hello) = &peer.hello else { return };
        let all = successor.get_or_insert_with(|| Self {
            agent_id: hello.agent_id,
            instance: hello.instance,
            rule,
            names: Vec::new(),
        });
        all.names.push(name);
    }
}

impl Peers {
    /// Asks older processes of the same agent for a sign of life; until it comes, they are not
    /// picked for what the newer one has proven.
    pub(crate) fn contest(&mut self, now: Instant, quic: &mut Driver, successor: &Successor) {
        for (&session, peer) in &mut self.sessions {
            let Some(hello) = &peer.hello else { continue };
            if hello.agent_id == successor.agent_id && hello.instance != successor.instance {
                peer.contest(now, quic, session, successor);
            }
        }
    }
}

impl Peer {
    fn contest(
        &mut self,
        now: Instant,
        quic: &mut Driver,
        session: SessionId,
        successor: &Successor,
    ) {
        let answered = self.answered_contest;
        if answered.is_some_and(|at| now.saturating_duration_since(at) < CONTEST_AGAIN_AFTER) {
            return;
        }
        let is_same = |name: &&HycoName| {
            let registration = self.registrations.get(*name);
            registration.is_some_and(|it| it.register.rule == successor.rule)
        };
        let same: Vec<HycoName> = successor.names.iter().filter(is_same).cloned().collect();
        if same.is_empty() {
            return;
        }
        let contested = self.contested.get_or_insert_with(|| {
            quic.ping(now, session);
            Contested {
                since: now,
                names: BTreeSet::new(),
            }
        });
        contested.names.extend(same);
    }

    /// Whether a newer process has this registration, too, and this one has not answered since.
    pub(super) fn is_contested(&self, name: &HycoName) -> bool {
        let contested = self.contested.as_ref();
        contested.is_some_and(|contested| contested.names.contains(name))
    }

    /// Whether the session is to be closed: a newer process has proven all that it is registered
    /// for, and it does not answer.
    pub(super) fn is_replaced(&mut self, now: Instant, silence: Duration, rtt: Duration) -> bool {
        let Some(contested) = &self.contested else {
            return false;
        };
        let waited = now.saturating_duration_since(contested.since);
        if silence < waited {
            // It lives: two processes share one identity, for example by a copied machine image.
            self.answered_contest = Some(now);
            self.contested = None;
            return false;
        }
        let all = self
            .registrations
            .keys()
            .all(|name| contested.names.contains(name));
        all && waited >= REPLACED_AFTER.max(rtt * ROUND_TRIPS)
    }
}
