//! How well a session is: when its peer last sent something, whether it owes an answer, and what
//! its path looks like.
//!
//! A session is judged by its own answer alone, but it is asked for one only once the whole process
//! has been silent ([`Pulse`]), or the session itself for so long that its path may be gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use underpass_proto::limits::{
    BINDING_MAX, IDLE_MAX, KEEP_ALIVE_MAX, PING_AFTER, PING_MARGIN, SUSPECT_AFTER,
};

use super::pulse::{Member, Pulse};
use super::session::Session;
use super::{Driver, SessionId};

/// From a ping without an answer to the end of the session.
const UNANSWERED_MAX: Duration = IDLE_MAX.saturating_sub(PING_AFTER);

/// An unanswered ping is sent again after this long: the protocol core alone doubles its pauses,
/// and would notice late that a path is back.
const PING_AGAIN: Duration = Duration::from_secs(1);

/// Where round trips take long, an answer may take one and a half, and no longer than this.
const PATIENCE_MAX: Duration = Duration::from_secs(3);

/// Half a tick of a worker: a ping that is due before the middle of the way to the next tick is
/// sent now.
const EARLY: Duration = Duration::from_millis(50);

/// What one process does not say within this time of a sign of life costs no atomic operation more.
const SHARE_EVERY: Duration = Duration::from_millis(100);

/// What came from a peer within this time counts as a sign that it is there now; two round trips
/// between these bounds. Short, for what is sent to one that has frozen is lost to its flow for
/// long; and not shorter than a busy peer is silent by itself.
const RECENT_MIN: Duration = Duration::from_millis(20);
const RECENT_MAX: Duration = Duration::from_millis(300);

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

/// Who gives signs of life by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// This one: it dialled.
    Dialled,
    /// The peer: this side asks only when signs of life are missing.
    Accepted,
}

/// What is known of a session's life.
#[derive(Debug)]
pub(super) struct Vitals {
    /// When its peer last sent something on it; its beginning where it has not.
    pub(super) last_received: Instant,
    /// Something came from the peer.
    pub(super) received: bool,
    /// Since when the peer owes an answer.
    pub(super) asked: Option<Instant>,
    /// It was asked, and has answered since that was last taken.
    pub(super) answered: bool,
    pinged: Instant,
    member: Option<Member>,
    shared: Instant,
}

impl Vitals {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last_received: now,
            received: false,
            asked: None,
            answered: false,
            pinged: now,
            member: None,
            shared: now,
        }
    }

    /// A datagram came.
    pub(super) fn receives(&mut self, now: Instant) {
        self.last_received = now;
        self.received = true;
        if let Some(member) = &self.member
            && now.saturating_duration_since(self.shared) >= SHARE_EVERY
        {
            self.shared = now;
            member.pulse().received(now);
        }
        self.answered |= self.asked.take().is_some();
    }

    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_received)
    }

    /// How long nothing came on any session of the process.
    fn silence_of_all(&self, now: Instant) -> Duration {
        let own = self.last_received;
        let last = self
            .member
            .as_ref()
            .map_or(own, |member| own.max(member.pulse().last_received()));
        now.saturating_duration_since(last)
    }

    /// Whether another session of the process was lost since this one last gave a sign of life.
    fn is_alarmed(&self) -> bool {
        let alarm = self
            .member
            .as_ref()
            .map(|member| member.pulse().last_alarm());
        alarm.is_some_and(|alarm| alarm > self.last_received && alarm > self.pinged)
    }

    fn unanswered(&self, now: Instant) -> Duration {
        self.asked
            .map_or(Duration::ZERO, |asked| now.saturating_duration_since(asked))
    }

    /// Whether it is to ping now. `every` is how often the process that dialled gives a sign of
    /// life.
    fn is_due(&self, now: Instant, side: Side, every: Duration, rtt: Duration) -> bool {
        let pinged = now.saturating_duration_since(self.pinged);
        if self.asked.is_some() {
            return pinged >= PING_AGAIN;
        }
        let (all, own) = (self.silence_of_all(now), self.silence(now));
        let binding = BINDING_MAX.max(every);
        if side == Side::Accepted {
            return all >= every + PING_MARGIN || own >= binding + 4 * PING_AFTER;
        }
        // An answer takes a round trip: the next ping is due a whole interval after the last one,
        // not after its answer.
        let due = every.saturating_sub(EARLY);
        let is_missing = all >= every + PING_MARGIN + rtt;
        let is_turn = || match &self.member {
            Some(member) => member.takes_turn(now, due),
            None => pinged >= due,
        };
        is_missing || own >= binding || self.is_alarmed() || (all + rtt >= due && is_turn())
    }
}

impl Driver {
    /// A session is proven to be one of the process of this pulse: a sign of life on any counts for
    /// all.
    pub fn share_pulse(&mut self, now: Instant, id: SessionId, pulse: &Arc<Pulse>) {
        if let Some(session) = self.session(id) {
            session.vitals.member = Some(Member::new(pulse, now));
        }
    }

    /// Pings where it is time. To be called at each tick; `every` is how often the process that
    /// dialled gives a sign of life.
    pub fn keep_alive(&mut self, now: Instant, id: SessionId, side: Side, every: Duration) {
        let every = every.clamp(PING_AFTER, KEEP_ALIVE_MAX);
        let Some(session) = self.session(id) else {
            return;
        };
        let rtt = session.connection.rtt();
        if session.vitals.is_due(now, side, every, rtt) {
            self.ping(now, id);
        }
    }

    /// Asks the peer for a sign of life.
    pub fn ping(&mut self, now: Instant, id: SessionId) {
        if let Some(session) = self.session(id) {
            session.connection.ping();
            session.vitals.pinged = now;
            session.vitals.asked.get_or_insert(now);
            self.mark(id);
        }
    }

    /// How long nothing came on this session.
    #[must_use]
    pub fn silence(&self, now: Instant, id: SessionId) -> Option<Duration> {
        Some(self.look_at(id)?.vitals.silence(now))
    }

    /// Whether something came on this session within two round trips: then it is not worth asking
    /// whether the peer is there.
    #[must_use]
    pub fn was_just_there(&self, now: Instant, id: SessionId) -> bool {
        self.look_at(id).is_some_and(|session| {
            let recent = (2 * session.connection.rtt()).clamp(RECENT_MIN, RECENT_MAX);
            session.vitals.silence(now) <= recent
        })
    }

    /// Whether the peer owes an answer for too long, or the session is gone.
    #[must_use]
    pub fn is_suspect(&self, now: Instant, id: SessionId) -> bool {
        self.look_at(id).is_none_or(|session| {
            // An answer takes a round trip, and a little longer where the path is uneven.
            let usual = session.connection.rtt().mul_f64(1.5).min(PATIENCE_MAX);
            session.vitals.unanswered(now) > SUSPECT_AFTER.max(usual)
        })
    }

    /// Whether the peer owes an answer for so long that the session is over.
    #[must_use]
    pub fn is_dead(&self, now: Instant, id: SessionId) -> bool {
        let session = self.look_at(id);
        session.is_some_and(|session| session.vitals.unanswered(now) > UNANSWERED_MAX)
    }

    /// Whether the peer has answered at all, and not stopped to for longer than `patience`.
    #[must_use]
    pub fn is_answering(&self, now: Instant, id: SessionId, patience: Duration) -> bool {
        let vitals = self.look_at(id).map(|session| &session.vitals);
        vitals.is_some_and(|vitals| vitals.received && vitals.silence(now) <= patience)
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
