//! How a peer behaves on its session: how fast a sender opens flows, how many it takes back before
//! anybody answered, and how often anybody asks for a registration in vain. Each of these costs the
//! relay more than it costs the peer (a flow that is reset, an agent's work; a refusal, a line of
//! the log), so a peer that does little else is disconnected. Knows no streams.

use std::time::{Duration, Instant};

use underpass_proto::limits::REGISTRATIONS_MAX;

/// Flows that a sender may open in a second. Beyond, they are refused at once and cost nobody else
/// anything.
pub(crate) const OPENS_PER_SECOND: u32 = 5_000;

/// Flows that it may open at once after a pause: a crowd of applications that reconnects.
pub(crate) const OPENS_BURST: u32 = 10_000;

/// How long deeds are remembered.
const WINDOW: Duration = Duration::from_secs(10);

/// Flows taken back in that time before it is looked at how many were not: a few hundred health
/// checks that connect and reset are nobody's attack.
pub(crate) const WASTED_MAX: u32 = 2_000;

/// Flows refused for their rate in that time before the session is closed.
pub(crate) const REFUSED_MAX: u32 = 4 * OPENS_BURST;

/// Refused registrations in that time before the session is closed: an agent all of whose keys are
/// of no use asks for each after 1, 2 and 4 s again.
pub(crate) const REFUSALS_MAX: u32 = 5 * REGISTRATIONS_MAX as u32;

/// Granted registrations in that time before the session is closed: each key of an agent with as
/// many registrations as it may have is replaced twice.
pub(crate) const GRANTS_MAX: u32 = 3 * REGISTRATIONS_MAX as u32;

/// The deeds of one session.
#[derive(Debug)]
pub(crate) struct Abuse {
    /// Flows that may be opened now, in thousandths.
    allowance: u64,
    refilled: Instant,
    window_since: Instant,
    opened: u32,
    wasted: u32,
    refused: u32,
    in_vain: u32,
    granted: u32,
}

/// What is to be done about a deed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judged {
    /// Nothing.
    Fine,
    /// It is refused.
    Refuse,
    /// The session is closed.
    Close,
}

impl Judged {
    fn close_if(too_much: bool) -> Self {
        if too_much { Self::Close } else { Self::Fine }
    }
}

impl Abuse {
    /// Of a session that begins.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            allowance: u64::from(OPENS_BURST) * 1_000,
            refilled: now,
            window_since: now,
            opened: 0,
            wasted: 0,
            refused: 0,
            in_vain: 0,
            granted: 0,
        }
    }

    /// It opens a flow.
    pub(crate) fn opens(&mut self, now: Instant) -> Judged {
        self.turn_page(now);
        self.refill(now);
        self.opened += 1;
        if let Some(left) = self.allowance.checked_sub(1_000) {
            self.allowance = left;
            return Judged::Fine;
        }
        self.refused += 1;
        if self.refused > REFUSED_MAX {
            Judged::Close
        } else {
            Judged::Refuse
        }
    }

    /// It took a flow back before anybody answered.
    pub(crate) fn wastes(&mut self, now: Instant) -> Judged {
        self.turn_page(now);
        self.wasted += 1;
        Judged::close_if(self.wasted > WASTED_MAX && self.wasted > self.opened / 2)
    }

    /// It asks for a registration that it cannot have.
    pub(crate) fn asks_in_vain(&mut self, now: Instant) -> Judged {
        self.turn_page(now);
        self.in_vain += 1;
        Judged::close_if(self.in_vain > REFUSALS_MAX)
    }

    /// It asks for a registration that it may have. Each costs two proofs and a place in the book
    /// of listeners.
    pub(crate) fn is_granted(&mut self, now: Instant) -> Judged {
        self.turn_page(now);
        self.granted += 1;
        Judged::close_if(self.granted > GRANTS_MAX)
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled).as_millis();
        let more = u64::try_from(passed)
            .unwrap_or(u64::MAX)
            .saturating_mul(u64::from(OPENS_PER_SECOND));
        if more > 0 {
            self.refilled = now;
            let most = u64::from(OPENS_BURST) * 1_000;
            self.allowance = self.allowance.saturating_add(more).min(most);
        }
    }

    fn turn_page(&mut self, now: Instant) {
        if now.saturating_duration_since(self.window_since) >= WINDOW {
            self.window_since = now;
            (self.opened, self.wasted, self.refused) = (0, 0, 0);
            (self.in_vain, self.granted) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_reconnects_is_served_and_a_flood_is_refused_and_then_sent_away() {
        let start = Instant::now();
        let mut abuse = Abuse::new(start);
        for _ in 0..OPENS_BURST {
            assert_eq!(abuse.opens(start), Judged::Fine);
        }
        assert_eq!(abuse.opens(start), Judged::Refuse);
        let later = start + Duration::from_secs(1);
        for _ in 0..OPENS_PER_SECOND {
            assert_eq!(abuse.opens(later), Judged::Fine);
        }
        let refused = (0..).take_while(|_| abuse.opens(later) == Judged::Refuse);
        assert_eq!(refused.count(), REFUSED_MAX as usize - 1);
        assert_eq!(abuse.opens(later), Judged::Close);
    }

    #[test]
    fn who_takes_back_most_of_what_it_opens_is_sent_away_and_who_does_so_seldom_is_not() {
        let start = Instant::now();
        let mut rapid = Abuse::new(start);
        let mut honest = Abuse::new(start);
        let mut closed = false;
        for n in 0..5 * WASTED_MAX {
            let now = start + Duration::from_micros(500) * n;
            assert_eq!(rapid.opens(now), Judged::Fine);
            closed |= rapid.wastes(now) == Judged::Close;
            assert_eq!(honest.opens(now), Judged::Fine);
            if n % 3 == 0 {
                assert_eq!(honest.wastes(now), Judged::Fine);
            }
        }
        assert!(closed);
    }

    #[test]
    fn who_asks_for_registrations_without_end_is_sent_away() {
        let start = Instant::now();
        let mut abuse = Abuse::new(start);
        let refused = (0..).take_while(|_| abuse.asks_in_vain(start) == Judged::Fine);
        assert_eq!(refused.count(), REFUSALS_MAX as usize);
        let granted = (0..).take_while(|_| abuse.is_granted(start) == Judged::Fine);
        assert_eq!(granted.count(), GRANTS_MAX as usize);
        // An agent that has as many registrations as it may, and a right key for none, asks so
        // often in that time.
        assert!(4 * REGISTRATIONS_MAX as u32 <= REFUSALS_MAX);
        assert_eq!(abuse.asks_in_vain(start + WINDOW), Judged::Fine);
        assert_eq!(abuse.is_granted(start + WINDOW), Judged::Fine);
    }

    #[test]
    fn deeds_are_forgotten_after_a_while() {
        let start = Instant::now();
        let mut abuse = Abuse::new(start);
        for n in 0..10 * WASTED_MAX {
            // 150 a second, all of them taken back: a checker of health.
            let now = start + Duration::from_micros(6_600) * n;
            assert_eq!(abuse.opens(now), Judged::Fine);
            assert_eq!(abuse.wastes(now), Judged::Fine);
        }
    }
}
