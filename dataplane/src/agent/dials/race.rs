//! The attempts at the addresses of one endpoint: which are under way, which come next and when,
//! and what is reported when none succeeds. Opens no sockets.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use underpass_proto::FlowCode;

use crate::addresses::ATTEMPT_EVERY;
use crate::io::SocketId;

/// One connection attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) socket: SocketId,
    pub(super) address: SocketAddr,
    pub(super) since: Instant,
}

/// All attempts of one dial.
#[derive(Debug, Default)]
pub(super) struct Race {
    /// Not tried yet.
    candidates: VecDeque<SocketAddr>,
    /// Under way, in the order in which they began.
    attempts: Vec<Attempt>,
    /// When the next candidate is tried beside them.
    next_at: Option<Instant>,
    /// What was tried first.
    first: Option<SocketAddr>,
    /// When the last attempt began, and to where.
    last: Option<(Instant, SocketAddr)>,
    /// The failure that tells most, and the attempt that it is of.
    failed: Option<(FlowCode, Instant, SocketAddr)>,
}

impl Race {
    /// Over these addresses, in their order.
    #[must_use]
    pub(super) fn over(addresses: Vec<SocketAddr>) -> Self {
        Self {
            candidates: addresses.into(),
            ..Self::default()
        }
    }

    /// The address that is tried next.
    pub(super) fn next_candidate(&mut self, now: Instant) -> Option<SocketAddr> {
        let address = self.candidates.pop_front()?;
        self.first.get_or_insert(address);
        self.last = Some((now, address));
        Some(address)
    }

    /// An attempt began. Answers when the one after it is due, where there is one.
    pub(super) fn started(
        &mut self,
        now: Instant,
        socket: SocketId,
        address: SocketAddr,
    ) -> Option<Instant> {
        self.attempts.push(Attempt {
            socket,
            address,
            since: now,
        });
        self.next_at = (!self.candidates.is_empty()).then(|| now + ATTEMPT_EVERY);
        self.next_at
    }

    /// Whether the next candidate is due at this time. False if a failed attempt has already
    /// started the next one.
    #[must_use]
    pub(super) fn is_due(&self, at: Instant) -> bool {
        self.next_at == Some(at)
    }

    /// There is no room for another attempt now. Answers when it is due instead.
    pub(super) fn put_off(&mut self, now: Instant) -> Instant {
        let at = now + ATTEMPT_EVERY;
        self.next_at = Some(at);
        at
    }

    /// Takes an attempt out that has ended.
    pub(super) fn take(&mut self, socket: SocketId) -> Option<Attempt> {
        let at = self.attempts.iter().position(|it| it.socket == socket)?;
        Some(self.attempts.remove(at))
    }

    /// Takes all out that are under way.
    pub(super) fn take_all(&mut self) -> Vec<Attempt> {
        self.next_at = None;
        std::mem::take(&mut self.attempts)
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, code: FlowCode, since: Instant, address: SocketAddr) {
        let weighs_more = |(before, ..): (FlowCode, _, _)| weight_of(code) >= weight_of(before);
        if self.failed.is_none_or(weighs_more) {
            self.failed = Some((code, since, address));
        }
    }

    /// Whether any attempt is under way.
    #[must_use]
    pub(super) fn is_running(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// Whether any address was tried.
    #[must_use]
    pub(super) fn has_begun(&self) -> bool {
        self.first.is_some()
    }

    /// Whether this address was the first one.
    #[must_use]
    pub(super) fn is_first(&self, address: SocketAddr) -> bool {
        self.first == Some(address)
    }

    /// When the newest attempt of those under way began.
    #[must_use]
    pub(super) fn newest_attempt(&self) -> Option<Instant> {
        self.attempts.last().map(|attempt| attempt.since)
    }

    /// What is reported where no attempt is under way any more, and of which one.
    #[must_use]
    pub(super) fn outcome(&self) -> (FlowCode, Option<(Instant, SocketAddr)>) {
        match self.failed {
            Some((code, since, address)) => (code, Some((since, address))),
            None => (FlowCode::EndpointUnreachable, self.last),
        }
    }

    /// As [`Self::outcome`], where attempts are still under way and have had their time.
    #[must_use]
    pub(super) fn outcome_in_time(&self) -> (FlowCode, Option<(Instant, SocketAddr)>) {
        match self.failed {
            Some((code, since, address))
                if weight_of(code) > weight_of(FlowCode::EndpointTimedOut) =>
            {
                (code, Some((since, address)))
            }
            _ => (FlowCode::EndpointTimedOut, self.last),
        }
    }
}

/// The further an attempt came, the more its failure tells: an answer of the endpoint's host,
/// silence, a limit of this machine, no way at all.
fn weight_of(code: FlowCode) -> u8 {
    match code {
        FlowCode::EndpointRefused => 3,
        FlowCode::EndpointTimedOut => 2,
        FlowCode::EndpointUnreachable => 0,
        _ => 1,
    }
}
