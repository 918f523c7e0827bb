//! Who listens on a hybrid connection, and who gets the next flow. Knows no sockets and no clock.
//!
//! Health orders the choice and never empties it: a failing or suspect listener is picked when
//! there is no better one.

use rand::{Rng, RngExt};
use underpass_proto::snapshot::HycoLimits;
use underpass_proto::{Instance, Register};

use crate::quic::SessionId;

/// The most that a listener's weight counts, four times the usual one: a listener with a stolen key
/// has at most four fifths of the flows by its weight beside one that asks for the usual.
pub(crate) const WEIGHT_MAX: u16 = 400;

/// Of so many picks one follows the weights alone. A listener that ends its flows at once never has
/// load, and would have all flows by that.
const BY_WEIGHT_ONE_IN: u32 = 2;

/// One session that listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// The session.
    pub(crate) session: SessionId,
    /// Its process: sessions of one instance are one listener.
    pub(crate) instance: Instance,
    /// Its share of new flows relative to others, from 1 to [`WEIGHT_MAX`].
    pub(crate) weight: u16,
    /// Lower is preferred.
    pub(crate) priority: u8,
}

/// How well a session is, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Health {
    /// Answers.
    Ready,
    /// Answers, but did not reach the endpoint when it was last dialled.
    Failing,
    /// Was silent for too long, or a newer process of its agent is there.
    Suspect,
    /// Said that it takes no new flows.
    Draining,
}

/// The listeners of one hybrid connection on one worker.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    entries: Vec<Entry>,
}

impl Entry {
    /// Of a session by what its Register asks for, as far as the definition and the bound permit.
    pub(crate) fn new(
        session: SessionId,
        instance: Instance,
        register: &Register,
        limits: &HycoLimits,
    ) -> Self {
        let weight = limits.weight.unwrap_or(register.weight);
        Self {
            session,
            instance,
            weight: weight.clamp(1, WEIGHT_MAX),
            priority: limits.priority.unwrap_or(register.priority),
        }
    }
}

impl Roster {
    /// Adds a listener, or renews its wishes.
    pub(crate) fn add(&mut self, entry: Entry) {
        self.remove(entry.session);
        self.entries.push(entry);
    }

    /// Removes a listener.
    pub(crate) fn remove(&mut self, session: SessionId) {
        self.entries.retain(|entry| entry.session != session);
    }

    /// Whether another process listens, too.
    #[must_use]
    pub(crate) fn has_another(&self, than: Instance) -> bool {
        self.entries.iter().any(|entry| entry.instance != than)
    }

    /// Whether nobody listens.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Each listener's process, once for each session.
    #[cfg(test)]
    pub(crate) fn instances(&self) -> impl Iterator<Item = Instance> {
        self.entries.iter().map(|entry| entry.instance)
    }

    /// All sessions.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.entries.iter().map(|entry| entry.session)
    }

    /// The sessions of one process.
    pub(crate) fn sessions_of(&self, instance: Instance) -> impl Iterator<Item = SessionId> + '_ {
        self.entries
            .iter()
            .filter(move |entry| entry.instance == instance)
            .map(|entry| entry.session)
    }

    /// The session for the next flow, of those in best health and preferred: by weight alone, or
    /// the one with less load for its weight of two picked at random. `without` was tried already.
    pub(crate) fn pick(
        &self,
        health: impl Fn(SessionId) -> Health,
        load: impl Fn(SessionId) -> usize,
        without: Option<Instance>,
        rng: &mut impl Rng,
    ) -> Option<SessionId> {
        let candidates = || {
            self.entries
                .iter()
                .filter(|entry| Some(entry.instance) != without)
        };
        let rank = |entry: &Entry| (health(entry.session), entry.priority);
        let best = candidates().map(rank).min()?;
        let count = candidates().filter(|entry| rank(entry) == best).count();
        let nth = |n: usize| candidates().filter(|entry| rank(entry) == best).nth(n);
        if count > 1 && rng.random_ratio(1, BY_WEIGHT_ONE_IN) {
            let weight = |entry: &Entry| u64::from(entry.weight);
            let of_best = || candidates().filter(|entry| rank(entry) == best);
            let mut left = rng.random_range(0..of_best().map(weight).sum::<u64>().max(1));
            let mut by_weight = of_best();
            let picked = by_weight.find(|entry| match left.checked_sub(weight(entry)) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            });
            return picked.map(|entry| entry.session);
        }
        let first = rng.random_range(0..count);
        // The second is another one, where there is another.
        let second = if count > 1 {
            (first + rng.random_range(1..count)) % count
        } else {
            first
        };
        let (first, second) = (nth(first)?, nth(second)?);
        let burden = |entry: &Entry| {
            (load(entry.session) as u64 + 1) * 1_000_000 / u64::from(entry.weight.max(1))
        };
        Some(if burden(second) < burden(first) {
            second.session
        } else {
            first.session
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Picks of which the shares are counted.
    const PICKS: usize = 2_000;

    fn entry(number: u32, weight: u16, priority: u8) -> Entry {
        Entry {
            session: SessionId::of_test(number),
            instance: Instance([u8::try_from(number).expect("few"); 16]),
            weight,
            priority,
        }
    }

    fn roster(entries: &[Entry]) -> Roster {
        Roster {
            entries: entries.to_vec(),
        }
    }

    fn pick(
        roster: &Roster,
        health: impl Fn(SessionId) -> Health,
        without: Option<Instance>,
    ) -> Option<SessionId> {
        roster.pick(health, |_| 0, without, &mut rand::rng())
    }

    #[test]
    fn nobody_is_picked_of_nobody() {
        assert_eq!(pick(&Roster::default(), |_| Health::Ready, None), None);
    }

    #[test]
    fn the_healthy_come_first_and_the_sick_when_there_is_no_other() {
        let (well, sick) = (entry(1, 1, 9), entry(2, 1, 0));
        let both = roster(&[sick.clone(), well.clone()]);
        let health = |session| {
            if session == well.session {
                Health::Ready
            } else {
                Health::Suspect
            }
        };
        assert_eq!(pick(&both, health, None), Some(well.session));
        assert_eq!(pick(&both, health, Some(well.instance)), Some(sick.session));
    }

    #[test]
    fn who_does_not_reach_the_endpoint_comes_after_the_ready_and_before_the_silent() {
        let (ready, failing, suspect) = (entry(1, 1, 2), entry(2, 1, 1), entry(3, 1, 0));
        let health = |session| match session {
            session if session == ready.session => Health::Ready,
            session if session == failing.session => Health::Failing,
            _ => Health::Suspect,
        };
        let all = roster(&[suspect.clone(), failing.clone(), ready.clone()]);
        assert_eq!(pick(&all, health, None), Some(ready.session));
        assert_eq!(
            pick(&all, health, Some(ready.instance)),
            Some(failing.session)
        );
        let sick = roster(&[suspect.clone(), failing.clone()]);
        assert_eq!(
            pick(&sick, health, Some(failing.instance)),
            Some(suspect.session)
        );
        let alone = roster(std::slice::from_ref(&failing));
        assert_eq!(pick(&alone, health, None), Some(failing.session));
    }

    #[test]
    fn a_lower_priority_number_is_preferred() {
        let both = roster(&[entry(1, 1, 1), entry(2, 1, 0)]);
        assert_eq!(
            pick(&both, |_| Health::Ready, None),
            Some(SessionId::of_test(2))
        );
    }

    #[test]
    fn who_refused_is_not_asked_again() {
        let one = roster(&[entry(1, 1, 0)]);
        assert_eq!(pick(&one, |_| Health::Ready, Some(Instance([1; 16]))), None);
    }

    #[test]
    fn load_follows_weight() {
        let entries = [entry(1, 1, 0), entry(2, 3, 0), entry(3, 1, 0)];
        let roster = roster(&entries);
        let mut loads = [0_usize; 4];
        for _ in 0..PICKS {
            let load = |session| {
                loads[(1..4)
                    .find(|&n| session == SessionId::of_test(n))
                    .expect("one of three") as usize]
            };
            let picked = roster
                .pick(|_| Health::Ready, load, None, &mut rand::rng())
                .expect("three listen");
            loads[(1..4)
                .find(|&n| picked == SessionId::of_test(n))
                .expect("one of three") as usize] += 1;
        }
        // Weights 1, 3, 1: shares 400, 1,200, 400, kept close by the choice of two.
        assert!(loads[1].abs_diff(400) < 40, "{loads:?}");
        assert!(loads[2].abs_diff(1_200) < 80, "{loads:?}");
        assert!(loads[3].abs_diff(400) < 40, "{loads:?}");
    }

    #[test]
    fn neither_weight_nor_quick_ends_take_every_flow() {
        let limits = HycoLimits::default();
        let greedy = Entry::new(
            SessionId::of_test(1),
            Instance([1; 16]),
            &register(u16::MAX),
            &limits,
        );
        assert_eq!(greedy.weight, WEIGHT_MAX);
        let roster = roster(&[greedy, entry(2, 100, 0)]);
        let honest = SessionId::of_test(2);
        // It has no flow for longer than a moment; the honest one keeps all that it gets.
        let mut kept = 0;
        for _ in 0..PICKS {
            let load = |session| if session == honest { kept } else { 0 };
            let picked = roster.pick(|_| Health::Ready, load, None, &mut rand::rng());
            kept += usize::from(picked == Some(honest));
        }
        // Half of the picks by 100 of 500: 200.
        assert!(kept > 130, "{kept}");

        let fixed = HycoLimits {
            weight: Some(100),
            priority: Some(3),
            ..limits
        };
        let entry = Entry::new(
            SessionId::of_test(1),
            Instance([1; 16]),
            &register(u16::MAX),
            &fixed,
        );
        assert_eq!((entry.weight, entry.priority), (100, 3));
    }

    fn register(weight: u16) -> Register {
        Register::new(
            &underpass_proto::Key::from_random([7; 32]),
            "payroll-sql".parse().expect("a name"),
            underpass_proto::Rule::Listen,
            underpass_proto::Nonce([0; 16]),
            weight,
            0,
            &underpass_proto::Exporter([0; 32]),
        )
    }

    #[test]
    fn a_session_is_listed_once() {
        let mut roster = Roster::default();
        roster.add(entry(1, 1, 0));
        roster.add(entry(1, 2, 0));
        assert_eq!(roster.entries, [entry(1, 2, 0)]);
        roster.remove(SessionId::of_test(1));
        assert!(roster.is_empty());
    }
}
