//! Handshakes of those who dial this process: begun as `admission` says, each for its path, and
//! given up when it is not done in time.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::Incoming;
use rustc_hash::FxBuildHasher;
use underpass_proto::SessionCode;
use underpass_proto::limits::HANDSHAKE_DEADLINE;

use super::admission::{Answer, Handshakes};
use super::credit::Credit;
use super::{Driver, SESSIONS_MAX, SessionId, lookup};
use crate::budget::UNPROVEN;
use crate::io::Io;

impl Driver {
    /// Somebody wants a session.
    pub(super) fn incoming(&mut self, now: Instant, incoming: Incoming, io: &mut impl Io) {
        if self.live >= SESSIONS_MAX {
            return self.refuse(incoming, io);
        }
        let from = incoming.remote_address().ip();
        let id = || FxBuildHasher.hash_one(&incoming.orig_dst_cid()[..]);
        let unproven = (!incoming.remote_address_validated()).then(id);
        match self.admission.judge(from, unproven) {
            Answer::Begin => self.begin(now, incoming, io),
            Answer::Prove => self.ask_for_proof(incoming, io),
            Answer::Wait => self.admission.wait(now, from, incoming),
            Answer::Ignore => self.endpoint.ignore(incoming),
        }
    }

    fn refuse(&mut self, incoming: Incoming, io: &mut impl Io) {
        self.scratch.clear();
        let transmit = self.endpoint.refuse(incoming, &mut self.scratch);
        self.respond(transmit, io);
    }

    /// Sends a Retry: its token comes back only from an address that is real, and from somebody who
    /// still waits.
    fn ask_for_proof(&mut self, incoming: Incoming, io: &mut impl Io) {
        self.scratch.clear();
        match self.endpoint.retry(incoming, &mut self.scratch) {
            Ok(transmit) => self.respond(transmit, io),
            // One that has proven its address is not asked.
            Err(refused) => self.endpoint.ignore(refused.into_incoming()), // LCOV_EXCL_LINE
        }
    }

    fn begin(&mut self, now: Instant, incoming: Incoming, io: &mut impl Io) {
        let remote = incoming.remote_address();
        let mtu = self.mtu_to(remote);
        let credit = Credit::new(Arc::clone(&self.budget), now);
        let server = self.server.as_ref();
        let config = server.map(|server| server.quic(Some(mtu), UNPROVEN));
        let network = self.admission.begun(remote.ip());
        self.scratch.clear();
        match self
            .endpoint
            .accept(incoming, now, &mut self.scratch, config)
        {
            Ok((handle, connection)) => {
                let id = self.insert(now, handle, connection, Some(network), Some(credit));
                self.unfinished.push_back((now + HANDSHAKE_DEADLINE, id));
            }
            Err(error) => {
                self.admission.over(network);
                if let Some(transmit) = error.response {
                    self.respond(transmit, io);
                }
            }
        }
    }

    /// Begins handshakes of those that waited. True when more of them may begin in the next turn.
    pub(super) fn admit(&mut self, now: Instant, io: &mut impl Io) -> bool {
        while let Some(late) = self.admission.expired(now) {
            self.endpoint.ignore(late);
        }
        while let Some(incoming) = self.admission.next() {
            self.begin(now, incoming, io);
        }
        self.admission.end_turn()
    }

    /// Gives those up that were not done in time.
    pub(super) fn end_unfinished(&mut self, now: Instant) {
        while let Some((_, id)) = self.unfinished.pop_front_if(|(until, _)| *until <= now) {
            let late = lookup(&mut self.sessions, id).is_some_and(|s| s.newcomer.is_some());
            if late {
                self.admission.unfinished();
                self.close(now, id, SessionCode::HelloTimeout);
            }
        }
    }

    /// A session's handshake is over, if it was under way.
    pub(super) fn note_handshake(&mut self, id: SessionId) {
        if let Some(session) = lookup(&mut self.sessions, id)
            && (session.lost || !session.connection.is_handshaking())
            && let Some(network) = session.newcomer.take()
        {
            self.admission.over(network);
        }
    }

    /// What became of newcomers since the start.
    #[must_use]
    pub fn handshakes(&self) -> Handshakes {
        self.admission.told()
    }
}
