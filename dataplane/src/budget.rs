//! The memory that a process may hold for data on its way, and how sessions share it. A session's
//! peer gets credit, which grows as it is used up and stops growing where others would have too
//! little. Shared by the workers of a process, touched when credit changes, never per byte.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::quic::config::{SEND_WINDOW, SESSION_WINDOW};

/// What a relay has beside data on its way: the program, buffers of its workers, tables.
const BASE: u64 = 24 << 20;

/// A byte on its way takes 4/3 of a byte of memory: datagrams of 64 KiB lie in blocks of 80 KiB,
/// six of which the allocator has in 512 KiB.
const TAKES: (u64, u64) = (4, 3);

/// The smallest budget, whatever the limit: below this a relay could not serve anybody.
const LEAST: u64 = 8 << 20;

/// Of the budget, in eighths: what peers may send before it is read.
const TO_RECEIVE: u64 = 6;
/// What was read from one side and not yet taken by the other.
const IN_HAND: u64 = 1;
/// What sessions keep until it is acknowledged.
const TO_SEND: u64 = 1;

/// A session may have so many times what nobody has yet (dynamic thresholds, Choudhury and Hahne
/// 1998): one alone gets 4/5, two get 4/9 each, and there is always a rest for the next.
const TIMES_FREE: u64 = 4;

/// Credit of a peer that has proven no key yet: 16 of the longest frames. It is not counted.
pub(crate) const UNPROVEN: u64 = 64 << 10;

/// A new session gets this share of what is free, within these bounds: eight flows' windows where
/// there is plenty. Where next to nothing is free it keeps what it had before its proof.
const FIRST_SHARE: u64 = 1_024;
const FIRST_MIN: u64 = 256 << 10;
const FIRST_MAX: u64 = 16 << 20;

/// The least that a session keeps until it is acknowledged: a path of 20 Mbit/s at 100 ms.
const SEND_MIN: u64 = 256 << 10;

/// Where no limit is known.
const UNLIMITED: u64 = 1 << 50;

/// The budget of a process.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: AtomicU64,
    /// Credit that peers have.
    granted: AtomicU64,
    sessions: AtomicU64,
    workers: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            bytes: AtomicU64::new(UNLIMITED),
            granted: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            workers: AtomicU64::new(1),
        }
    }
}

impl Budget {
    /// For a process of so many workers that may take so much memory.
    pub(crate) fn set(&self, memory_max: u64, workers: usize) {
        let (takes, of) = TAKES;
        let bytes = memory_max.saturating_sub(BASE) / takes * of;
        self.bytes.store(bytes.max(LEAST), Ordering::Relaxed);
        let workers = u64::try_from(workers.max(1)).unwrap_or(1);
        self.workers.store(workers, Ordering::Relaxed);
    }

    /// Credit of a session whose peer has proven a key.
    pub(crate) fn begin(&self) -> u64 {
        let free = self.free();
        let first = (free / FIRST_SHARE).clamp(FIRST_MIN, FIRST_MAX);
        let first = first.min(free / TIMES_FREE).max(UNPROVEN);
        self.granted.fetch_add(first, Ordering::Relaxed);
        self.sessions.fetch_add(1, Ordering::Relaxed);
        first
    }

    /// More credit for a session whose peer has used up what it had: twice as much while there is
    /// plenty. `has` is its credit.
    pub(crate) fn more(&self, has: u64) -> CreditAnswer {
        let wanted = has.min(u64::from(SESSION_WINDOW).saturating_sub(has));
        let room = self.share().saturating_sub(has) / (TIMES_FREE + 1);
        // Of a scarce rest half, so that something is left while flows are being ended.
        let (bytes, short) = if room >= has {
            // At the largest window of a session next to nothing more can be had, whatever is free.
            (wanted, wanted < has / 16)
        } else {
            (wanted.min(room / 2), true)
        };
        // Steps that are too small would cost a round trip for a few packets.
        let bytes = if bytes < has / 16 { 0 } else { bytes };
        self.granted.fetch_add(bytes, Ordering::Relaxed);
        CreditAnswer { bytes, short }
    }

    /// The most credit that one session may have just now.
    pub(crate) fn share(&self) -> u64 {
        self.free().saturating_mul(TIMES_FREE)
    }

    /// Credit that a peer has no more.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.granted.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A session is over, which had this credit.
    pub(crate) fn end(&self, bytes: u64) {
        self.give_back(bytes);
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    /// What each session may keep until it is acknowledged, at most.
    pub(crate) fn send_window_max(&self) -> u64 {
        let sessions = self.sessions.load(Ordering::Relaxed).max(1);
        let share = self.eighths(TO_SEND) / sessions;
        share.clamp(SEND_MIN, SEND_WINDOW)
    }

    /// What a worker may have read from one side that the other has not taken yet.
    pub(crate) fn in_hand_max(&self) -> u64 {
        self.eighths(IN_HAND) / self.workers.load(Ordering::Relaxed)
    }

    /// What all sessions together may have.
    pub(crate) fn credit_max(&self) -> u64 {
        self.eighths(TO_RECEIVE)
    }

    fn free(&self) -> u64 {
        let granted = self.granted.load(Ordering::Relaxed);
        self.credit_max().saturating_sub(granted)
    }

    fn eighths(&self, count: u64) -> u64 {
        self.bytes.load(Ordering::Relaxed) / 8 * count
    }
}

/// An answer to a session that wants more credit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CreditAnswer {
    pub(crate) bytes: u64,
    /// It got less than it could use: what it holds without progress is in the way of others.
    pub(crate) short: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Asks until there is no more; what the session has then.
    fn grow(budget: &Budget, mut has: u64) -> u64 {
        loop {
            match budget.more(has).bytes {
                0 => return has,
                more => has += more,
            }
        }
    }

    #[test]
    fn credit_never_exceeds_the_budget_and_the_next_session_finds_some() {
        let budget = Budget::default();
        budget.set(256 * MIB, 1);
        let most = budget.eighths(TO_RECEIVE);
        let mut all = 0;
        let mut last = u64::MAX;
        for _ in 0..4 {
            let first = budget.begin();
            let has = grow(&budget, first);
            assert!(has > first && has < last, "{has} after {first}");
            last = has;
            all += has;
            assert!(all < most, "{all} of {most}");
        }
        // One alone has most of it.
        let alone = Budget::default();
        alone.set(256 * MIB, 1);
        let has = grow(&alone, alone.begin());
        assert!(has * 10 > most * 7, "{has} of {most}");
    }

    #[test]
    fn thousands_of_sessions_have_little_each_and_no_more_than_the_budget_for_long() {
        let budget = Budget::default();
        budget.set(256 * MIB, 1);
        let all: u64 = (0..4_096).map(|_| budget.begin()).sum();
        let most = budget.credit_max();
        assert!(all <= most + 4_096 * UNPROVEN, "{all} of {most}");
        assert_eq!(budget.begin(), UNPROVEN);
    }

    #[test]
    fn without_a_limit_a_session_grows_to_its_whole_window() {
        let budget = Budget::default();
        let first = budget.begin();
        assert_eq!(first, FIRST_MAX);
        assert_eq!(
            budget.more(first),
            CreditAnswer {
                bytes: first,
                short: false
            }
        );
        assert_eq!(grow(&budget, 2 * first), u64::from(SESSION_WINDOW));
        // The last step is smaller than the others, and nothing is short for that.
        let last = budget.more(u64::from(SESSION_WINDOW) / 8 * 7);
        assert!(last.bytes > 0 && !last.short, "{last:?}");
        assert_eq!(budget.send_window_max(), SEND_WINDOW);
    }

    #[test]
    fn credit_that_came_back_is_there_for_others() {
        let budget = Budget::default();
        budget.set(256 * MIB, 2);
        let free = budget.free();
        let has = grow(&budget, budget.begin());
        assert!(budget.free() < free / 2);
        budget.end(has);
        assert_eq!(budget.free(), free);
    }

    #[test]
    fn many_sessions_keep_less_each_until_it_is_acknowledged() {
        let budget = Budget::default();
        budget.set(256 * MIB, 1);
        for _ in 0..10 {
            let _ = budget.begin();
        }
        let each = budget.send_window_max();
        assert!((MIB..3 * MIB).contains(&each), "{each}");
        for _ in 0..1_000 {
            let _ = budget.begin();
        }
        assert_eq!(budget.send_window_max(), SEND_MIN);
    }
}
