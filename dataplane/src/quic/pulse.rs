//! Signs of life of one process, shared by all sessions with it, on whatever worker they are.
//!
//! A process is alive when any of its sessions gives a sign of life, so the sessions of one process
//! take turns: together they ping no more often than one alone would. Knows no sockets; time is an
//! argument.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the session that is next may leave it: its worker may be busy. Two ticks of a
/// worker.
const TURN_LEFT_MAX: Duration = Duration::from_millis(200);

/// What the sessions with one process share.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// When anything last came from the process, microseconds since `start`.
    received_us: AtomicU64,
    /// When one of the sessions was lost: the others are asked at once whether they still are.
    alarm_us: AtomicU64,
    turns: Mutex<Turns>,
}

/// Whose turn it is to ping.
#[derive(Debug, Default)]
struct Turns {
    pinged: Option<Instant>,
    /// When each member last pinged, or joined.
    members: Vec<(u64, Instant)>,
    next: u64,
}

/// A session's share in a pulse, given back when dropped.
#[derive(Debug)]
pub(super) struct Member {
    pulse: Arc<Pulse>,
    number: u64,
}

impl Pulse {
    /// One that begins now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            received_us: AtomicU64::new(0),
            alarm_us: AtomicU64::new(0),
            turns: Mutex::default(),
        }
    }

    /// Something came from the process.
    pub(super) fn received(&self, now: Instant) {
        self.received_us.fetch_max(self.us(now), Ordering::Relaxed);
    }

    /// One of the sessions was lost: the process may be another one by now, and the others are
    /// asked at once.
    pub(crate) fn alarm(&self, now: Instant) {
        self.alarm_us.fetch_max(self.us(now), Ordering::Relaxed);
    }

    /// Since when every session is to have shown that it still is.
    pub(super) fn last_alarm(&self) -> Instant {
        self.start + Duration::from_micros(self.alarm_us.load(Ordering::Relaxed))
    }

    fn us(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// When anything last came from the process.
    pub(super) fn last_received(&self) -> Instant {
        self.start + Duration::from_micros(self.received_us.load(Ordering::Relaxed))
    }
}

impl Member {
    /// A session that has just been proven to be one of the process.
    pub(super) fn new(pulse: &Arc<Pulse>, now: Instant) -> Self {
        pulse.received(now);
        let mut turns = pulse.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let number = turns.next;
        turns.next += 1;
        turns.members.push((number, now));
        drop(turns);
        Self {
            pulse: Arc::clone(pulse),
            number,
        }
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Whether this session is to ping now: a ping is due, and no other session has been without
    /// one for longer. True means that it does.
    pub(super) fn takes_turn(&self, now: Instant, every: Duration) -> bool {
        let turns = &self.pulse.turns;
        let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = turns
            .pinged
            .map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        if waited < every {
            return false;
        }
        let longest = turns.members.iter().min_by_key(|(_, pinged)| *pinged);
        let own_turn = longest.is_some_and(|(number, _)| *number == self.number);
        if !own_turn && waited < every + TURN_LEFT_MAX {
            return false;
        }
        turns.pinged = Some(now);
        let members = &mut turns.members;
        if let Some((_, pinged)) = members.iter_mut().find(|(n, _)| *n == self.number) {
            *pinged = now;
        }
        true
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let turns = &self.pulse.turns;
        let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.members.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    #[test]
    fn sessions_of_one_process_ping_in_turn_and_together_as_often_as_one() {
        let start = Instant::now();
        let pulse = Arc::new(Pulse::new(start));
        let members = [0; 4].map(|_| Member::new(&pulse, start));
        let mut pings = [0; 4];
        for tick in 1..=400_u32 {
            let now = start + tick * Duration::from_millis(100);
            for (member, pings) in members.iter().zip(&mut pings) {
                *pings += u32::from(member.takes_turn(now, EVERY));
            }
        }
        assert_eq!(pings, [10; 4]);
    }

    #[test]
    fn a_turn_that_is_left_is_taken_by_another_and_who_is_gone_has_none() {
        let start = Instant::now();
        let pulse = Arc::new(Pulse::new(start));
        let first = Member::new(&pulse, start);
        let second = Member::new(&pulse, start);
        let at = |times: u32| start + times * EVERY;
        assert!(first.takes_turn(at(1), EVERY));
        assert!(!first.takes_turn(at(2), EVERY), "it is the second's");
        assert!(first.takes_turn(at(2) + TURN_LEFT_MAX, EVERY));
        drop(second);
        assert!(first.takes_turn(at(4), EVERY));
    }

    #[test]
    fn what_came_on_one_session_is_known_to_all_and_never_goes_back() {
        let start = Instant::now();
        let pulse = Pulse::new(start);
        pulse.received(start + 2 * EVERY);
        pulse.received(start + EVERY);
        assert_eq!(pulse.last_received(), start + 2 * EVERY);
    }
}
