//! Who may begin a handshake, and when. One costs the relay about a millisecond and 100 KiB before
//! anybody is known, so they are counted: a few are begun without a question, more where the
//! address was proven (Retry, RFC 9000, section 8.1.2), the next wait for their turn, and the rest
//! hears nothing. Live sessions have theirs meanwhile. Knows no sockets and no packets.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::network::Network;

/// Handshakes in flight for addresses that may be false. Beyond, a newcomer must first show that it
/// reads what is sent to it.
pub(super) const UNPROVEN_MAX: usize = 64;

/// Handshakes in flight on one worker: 25 MiB, and as much as one core does in a quarter of a
/// second.
pub(super) const UNDER_WAY_MAX: usize = 256;

/// Of these, handshakes with one network. Many agents may be behind one address, and no address may
/// take every place.
pub(super) const UNDER_WAY_OF_ONE: usize = UNDER_WAY_MAX / 2;

/// Proven newcomers that wait for their turn on one worker, a datagram or two each: all agents of a
/// relay that was restarted.
pub(super) const WAITING_MAX: usize = 2_048;

/// Of these, newcomers from one network.
pub(super) const WAITING_OF_ONE: usize = WAITING_MAX / 2;

/// Handshakes begun in one turn of the loop: live sessions are served again after some
/// milliseconds.
pub(super) const BEGUN_IN_A_TURN: usize = 8;

/// Whoever waited for so long has given up by now.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// Newcomers that the protocol core holds: those that wait, and what one turn brings.
pub(super) const HELD_MAX: usize = 2 * WAITING_MAX;

/// Of so many newcomers it is remembered that they were asked to prove their address.
const ASKED_MAX: usize = 1_024;

const _: () = assert!(UNPROVEN_MAX < UNDER_WAY_OF_ONE);

/// Those of one worker. `T` is a newcomer, as the protocol core has it.
pub(super) struct Admission<T> {
    under_way: FxHashMap<Network, usize>,
    count: usize,
    waiting: VecDeque<(Instant, Network, T)>,
    begun_in_turn: usize,
    /// Connection IDs of those that were asked to prove their address: the latest, and those
    /// before.
    asked: [FxHashSet<u64>; 2],
    told: Handshakes,
}

/// What is to be done with a newcomer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// Its handshake begins.
    Begin,
    /// It is asked to prove its address.
    Prove,
    /// Its turn comes later.
    Wait,
    /// It hears nothing, and may try again.
    Ignore,
}

/// What became of newcomers since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Handshakes {
    /// Begun.
    pub begun: u64,
    /// Asked to prove their address first.
    pub asked: u64,
    /// Not answered, because too many were there or they waited for too long.
    pub ignored: u64,
    /// Given up, because they were not done in time.
    pub unfinished: u64,
}

impl<T> Default for Admission<T> {
    fn default() -> Self {
        Self {
            under_way: FxHashMap::default(),
            count: 0,
            waiting: VecDeque::new(),
            begun_in_turn: 0,
            asked: [FxHashSet::default(), FxHashSet::default()],
            told: Handshakes::default(),
        }
    }
}

impl<T> Admission<T> {
    /// What is to be done with a newcomer from this address. [`Self::begun`] or [`Self::wait`]
    /// follows where it says so. `unproven` is what a newcomer without a proof is known by: what it
    /// says first takes two datagrams, and the second of one that was asked is no newcomer.
    pub(super) fn judge(&mut self, from: IpAddr, unproven: Option<u64>) -> Answer {
        let network = Network::of(from);
        let has_turn = self.waiting.is_empty() && self.begun_in_turn < BEGUN_IN_A_TURN;
        let was_asked = unproven.is_some_and(|id| self.asked.iter().any(|ids| ids.contains(&id)));
        if has_turn && !was_asked && self.has_place(network, unproven.is_none()) {
            return Answer::Begin;
        }
        if let Some(id) = unproven {
            self.told.asked += 1;
            self.remember_asked(id);
            return Answer::Prove;
        }
        let of_network = |(_, of, _): &&(Instant, Network, T)| *of == network;
        let full = self.waiting.len() >= WAITING_MAX
            || (self.waiting.len() >= WAITING_OF_ONE
                && self.waiting.iter().filter(of_network).count() >= WAITING_OF_ONE);
        if full {
            self.told.ignored += 1;
            return Answer::Ignore;
        }
        Answer::Wait
    }

    fn remember_asked(&mut self, id: u64) {
        if self.asked[0].len() >= ASKED_MAX {
            self.asked.swap(0, 1);
            self.asked[0].clear();
        }
        self.asked[0].insert(id);
    }

    fn has_place(&self, network: Network, proven: bool) -> bool {
        let of_one = self.under_way.get(&network).copied().unwrap_or_default();
        let (most, most_of_one) = if proven {
            (UNDER_WAY_MAX, UNDER_WAY_OF_ONE)
        } else {
            (UNPROVEN_MAX, UNPROVEN_MAX)
        };
        self.count < most && of_one < most_of_one
    }

    /// A newcomer waits for its turn.
    pub(super) fn wait(&mut self, now: Instant, from: IpAddr, newcomer: T) {
        self.waiting
            .push_back((now + WAIT_MAX, Network::of(from), newcomer));
    }

    /// The next one whose handshake may begin in this turn. [`Self::begun`] follows.
    pub(super) fn next(&mut self) -> Option<T> {
        if self.begun_in_turn >= BEGUN_IN_A_TURN {
            return None;
        }
        let at = self.first_with_place()?;
        self.waiting.remove(at).map(|(_, _, newcomer)| newcomer)
    }

    fn first_with_place(&self) -> Option<usize> {
        if self.count >= UNDER_WAY_MAX {
            return None;
        }
        let mut waiting = self.waiting.iter();
        waiting.position(|(_, network, _)| self.has_place(*network, true))
    }

    /// One that waited for too long. Call until there is none.
    pub(super) fn expired(&mut self, now: Instant) -> Option<T> {
        let (_, _, newcomer) = self.waiting.pop_front_if(|(until, ..)| *until <= now)?;
        self.told.ignored += 1;
        Some(newcomer)
    }

    /// A handshake began. What is returned is to be given to [`Self::over`].
    pub(super) fn begun(&mut self, from: IpAddr) -> Network {
        let network = Network::of(from);
        self.count += 1;
        self.begun_in_turn += 1;
        self.told.begun += 1;
        *self.under_way.entry(network).or_default() += 1;
        network
    }

    /// A handshake is over, done or not.
    pub(super) fn over(&mut self, network: Network) {
        self.count -= 1;
        let of_one = self.under_way.entry(network).or_default();
        *of_one = of_one.saturating_sub(1);
        if *of_one == 0 {
            self.under_way.remove(&network);
        }
    }

    /// A handshake was given up.
    pub(super) fn unfinished(&mut self) {
        self.told.unfinished += 1;
    }

    /// A turn of the loop is over. Whether somebody who waits has a place in the next one.
    pub(super) fn end_turn(&mut self) -> bool {
        self.begun_in_turn = 0;
        self.first_with_place().is_some()
    }

    /// What became of newcomers.
    pub(super) fn told(&self) -> Handshakes {
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> IpAddr {
        IpAddr::from([
            10,
            0,
            u8::try_from(n / 250).unwrap(),
            u8::try_from(n % 250).unwrap(),
        ])
    }

    /// Begins as many as may begin without a wait, a turn each.
    fn begin(
        admission: &mut Admission<usize>,
        proven: bool,
        from: impl Fn(usize) -> IpAddr,
    ) -> usize {
        (0..)
            .take_while(|&n| {
                admission.end_turn();
                let begins =
                    admission.judge(from(n), (!proven).then_some(n as u64)) == Answer::Begin;
                if begins {
                    admission.begun(from(n));
                }
                begins
            })
            .count()
    }

    #[test]
    fn beyond_some_handshakes_a_newcomer_proves_its_address() {
        let mut admission = Admission::<usize>::default();
        assert_eq!(begin(&mut admission, false, address), UNPROVEN_MAX);
        assert_eq!(admission.judge(address(9), Some(900)), Answer::Prove);
        assert_eq!(admission.judge(address(9), None), Answer::Begin);
        assert_eq!(admission.told().asked, 1 + 1);
    }

    #[test]
    fn the_second_datagram_of_one_that_was_asked_begins_nothing() {
        let mut admission = Admission::<usize>::default();
        for n in 0..BEGUN_IN_A_TURN {
            admission.judge(address(n), Some(n as u64));
            admission.begun(address(n));
        }
        assert_eq!(admission.judge(address(9), Some(9)), Answer::Prove);
        admission.end_turn();
        assert_eq!(admission.judge(address(9), Some(9)), Answer::Prove);
        assert_eq!(admission.judge(address(9), None), Answer::Begin);
        for id in 0..2 * ASKED_MAX as u64 {
            admission.remember_asked(id + 1_000);
        }
        assert!(admission.asked.iter().map(FxHashSet::len).sum::<usize>() <= 2 * ASKED_MAX);
        admission.end_turn();
        assert_eq!(admission.judge(address(9), Some(9)), Answer::Begin);
    }

    #[test]
    fn one_network_leaves_places_for_others() {
        let mut admission = Admission::<usize>::default();
        let site = |n: usize| -> IpAddr { format!("2001:db8::{n:x}").parse().unwrap() };
        assert_eq!(begin(&mut admission, true, site), UNDER_WAY_OF_ONE);
        assert_eq!(admission.judge(site(7), None), Answer::Wait);
        assert_eq!(
            begin(&mut admission, true, address),
            UNDER_WAY_MAX - UNDER_WAY_OF_ONE
        );
    }

    #[test]
    fn who_waits_is_next_and_whoever_has_no_place_is_passed_over() {
        let now = Instant::now();
        let mut admission = Admission::default();
        let crowd = begin(&mut admission, true, |_| address(0));
        assert_eq!(crowd, UNDER_WAY_OF_ONE);
        admission.wait(now, address(0), 0);
        admission.wait(now, address(1), 1);
        // Nobody overtakes those that wait.
        assert_eq!(admission.judge(address(2), None), Answer::Wait);
        assert!(admission.end_turn());
        assert_eq!(admission.next(), Some(1));
        admission.begun(address(1));
        assert_eq!(admission.next(), None);
        assert!(!admission.end_turn());
        admission.over(Network::of(address(0)));
        assert!(admission.end_turn());
        assert_eq!(admission.next(), Some(0));
    }

    #[test]
    fn a_turn_begins_only_some() {
        let mut admission = Admission::<usize>::default();
        for n in 0..BEGUN_IN_A_TURN {
            assert_eq!(admission.judge(address(n), None), Answer::Begin);
            admission.begun(address(n));
        }
        assert_eq!(admission.judge(address(90), None), Answer::Wait);
        assert_eq!(admission.judge(address(91), Some(91)), Answer::Prove);
        admission.end_turn();
        assert_eq!(admission.judge(address(90), None), Answer::Begin);
    }

    #[test]
    fn those_that_wait_are_bounded_and_not_for_ever() {
        let now = Instant::now();
        let mut admission = Admission::default();
        begin(&mut admission, true, |_| address(0));
        let mut waiting = 0;
        while admission.judge(address(0), None) == Answer::Wait {
            admission.wait(now, address(0), waiting);
            waiting += 1;
        }
        assert_eq!(waiting, WAITING_OF_ONE);
        for n in 0..WAITING_MAX - WAITING_OF_ONE {
            assert_eq!(admission.judge(address(1 + n), None), Answer::Wait);
            admission.wait(now, address(1 + n), n);
        }
        assert_eq!(admission.judge(address(4_000), None), Answer::Ignore);
        let before = admission.told().ignored;
        assert_eq!(admission.expired(now), None);
        let mut expired = 0;
        while admission.expired(now + WAIT_MAX).is_some() {
            expired += 1;
        }
        assert_eq!(expired, WAITING_MAX);
        assert_eq!(admission.told().ignored, before + WAITING_MAX as u64);
    }
}
