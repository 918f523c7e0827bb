//! Ends of sessions: closed by this side, broken by a defect, and forgotten in time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{ConnectionHandle, EndpointEvent, VarInt};
use underpass_proto::SessionCode;

use super::{Driver, SessionId, lookup};
use crate::guard::guarded;

/// How long a session that is over is remembered, for what of it is still on its way. RFC 9000,
/// section 10.2, has three probe timeouts; after a peer that stood still for some seconds those are
/// minutes.
pub(super) const CLOSING_MAX: Duration = Duration::from_secs(10);

impl Driver {
    /// Ends a session. [`Lost`](super::Event::Lost) does not follow.
    pub fn close(&mut self, now: Instant, id: SessionId, code: SessionCode) {
        let Some(session) = self.session(id) else {
            return;
        };
        session.lost = true;
        session.connection.close(
            now,
            VarInt::from_u32(code.to_u32()),
            Bytes::from(code.to_string()),
        );
        self.closing.push_back((now + CLOSING_MAX, id));
        self.note_handshake(id);
        self.mark(id);
    }

    /// Forgets a session whose peer does not answer any more; nothing more is sent to it.
    /// [`Lost`](super::Event::Lost) does not follow.
    pub fn abandon(&mut self, id: SessionId) {
        if lookup(&mut self.sessions, id).is_some() {
            self.note_handshake(id);
            self.forget(id);
        }
    }

    /// A defect of the protocol core, which one session laid bare: what is left of the session is
    /// thrown away, and [`Lost`](super::Event::Lost) follows.
    pub(super) fn break_off(&mut self, id: SessionId) {
        self.panics += 1;
        let Some(session) = lookup(&mut self.sessions, id) else {
            return;
        };
        if !session.lost {
            self.broken.push(id);
        }
        if let Some(network) = session.newcomer.take() {
            self.admission.over(network);
        }
        self.forget(id);
    }

    /// Forgets sessions that have been over for long enough.
    pub(super) fn end_closing(&mut self, now: Instant) {
        while let Some((_, id)) = self.closing.pop_front_if(|(until, _)| *until <= now) {
            if lookup(&mut self.sessions, id).is_some() {
                self.forget(id);
            }
        }
    }

    /// A session is no more, and what comes for it is answered with a stateless reset.
    fn forget(&mut self, id: SessionId) {
        self.sessions[id.index as usize] = None;
        self.live -= 1;
        let handle = ConnectionHandle(id.index as usize);
        // The core's own books, which may be what is broken.
        let endpoint = &mut self.endpoint;
        let _ = guarded(|| endpoint.handle_event(handle, EndpointEvent::drained()));
    }

    /// Defects that cost a session or a datagram.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics
    }
}
