//! Questions to the resolver that wait for a thread, and answers that are still fresh. Equal
//! questions are one, every relay and hybrid connection has a share, and what nobody waits for any
//! more takes no thread. Knows no threads and no clock; resolves nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use underpass_proto::{Endpoint, HostName, HycoName};

use super::Answer;

/// Threads that the names of one hybrid connection may hold. It has one endpoint, and two while
/// that changes.
const HYCO_THREADS_MAX: usize = 4;

/// Of the threads, the share that names may hold whose last answer was slow: they leave room for
/// those that are quick.
const SLOW_SHARE: usize = 4;

/// An answer that took this long was slow. Far above a name server that is well, far below the 5 s
/// after which the C library asks the next one.
const SLOW: Duration = Duration::from_secs(1);

/// For this long a slow name is known as one.
const SLOW_FOR: Duration = Duration::from_secs(60);

/// Answers that are kept; beyond, the oldest one goes.
const KNOWN_MAX: usize = 1024;

/// Different questions that may wait. Each look for the next one passes over all of them.
const QUESTIONS_MAX: usize = 4096;

/// Askers that may wait in all: more flows than one worker dials at once.
const WAITERS_MAX: usize = 16_384;

/// Who asks: a share is counted by relay, and within it by hybrid connection. `None`: the relay's
/// own name is asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Asker {
    /// The relay that wants the name dialled, or whose name it is.
    pub(crate) relay: Endpoint,
    /// For which of its hybrid connections.
    pub(crate) hyco: Option<HycoName>,
}

/// How a line is bounded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Names that are resolved at once.
    pub(super) threads_max: usize,
    /// How long an answer with addresses is given again.
    pub(super) found_for: Duration,
    /// How long a failure is given again.
    pub(super) failed_for: Duration,
}

/// What becomes of a question.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// It was answered a moment ago.
    Known(Answer),
    /// The answer comes later.
    Waits,
    /// The asker's share of the line is used up.
    Refused,
}

/// The line. `W` waits for an answer.
pub(super) struct Line<W> {
    bounds: Bounds,
    questions: HashMap<(Asker, HostName), Question<W>>,
    under_way: HashMap<HostName, UnderWay<W>>,
    known: HashMap<HostName, Known>,
    waiters: usize,
    waiters_by_relay: HashMap<Endpoint, usize>,
    /// Questions that came so far.
    count: u64,
}

struct Question<W> {
    number: u64,
    waiters: Vec<Waiter<W>>,
}

struct Waiter<W> {
    relay: Endpoint,
    give_up: Instant,
    waits: W,
}

struct UnderWay<W> {
    asker: Asker,
    slow: bool,
    waiters: Vec<Waiter<W>>,
}

struct Known {
    answer: Answer,
    until: Instant,
    slow_until: Instant,
}

/// How many threads are held, by relay and by asker.
struct Held<'a> {
    all: usize,
    slow: usize,
    by_relay: FxHashMap<&'a Endpoint, usize>,
    by_asker: FxHashMap<&'a Asker, usize>,
}

impl<W> Line<W> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            questions: HashMap::new(),
            under_way: HashMap::new(),
            known: HashMap::new(),
            waiters: 0,
            waiters_by_relay: HashMap::new(),
            count: 0,
        }
    }

    /// A question, answered by `give_up` or not at all. `waits` is kept only where the answer comes
    /// later.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        name: &HostName,
        asker: &Asker,
        give_up: Instant,
        waits: impl FnOnce() -> W,
    ) -> Place {
        if let Some(known) = self.known.get(name).filter(|known| now < known.until) {
            return Place::Known(known.answer.clone());
        }
        let of_relay = self.waiters_by_relay.get(&asker.relay).copied();
        // A relay takes another place only while more are free than it has: one that floods leaves
        // half to all others.
        if of_relay.unwrap_or(0) >= WAITERS_MAX - self.waiters {
            return Place::Refused;
        }
        let waiter = |waits| Waiter {
            relay: asker.relay.clone(),
            give_up,
            waits,
        };
        if let Some(under_way) = self.under_way.get_mut(name) {
            under_way.waiters.push(waiter(waits()));
        } else {
            let key = (asker.clone(), name.clone());
            if !self.questions.contains_key(&key) && !self.has_room(&asker.relay) {
                return Place::Refused;
            }
            self.count += 1;
            let question = self.questions.entry(key).or_insert(Question {
                number: self.count,
                waiters: Vec::new(),
            });
            question.waiters.push(waiter(waits()));
        }
        self.waiters += 1;
        *self
            .waiters_by_relay
            .entry(asker.relay.clone())
            .or_default() += 1;
        Place::Waits
    }

    /// Whether a relay may ask for one more name: as with waiters, it takes another place only
    /// while more are free than it has. Below half of all it always may.
    fn has_room(&self, relay: &Endpoint) -> bool {
        let free = QUESTIONS_MAX - self.questions.len();
        let is_its = |(asker, _): &&(Asker, HostName)| asker.relay == *relay;
        free > QUESTIONS_MAX / 2 || self.questions.keys().filter(is_its).count() < free
    }

    /// Takes those out that waited for a thread for too long.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<W> {
        let mut expired = Vec::new();
        for question in self.questions.values_mut() {
            let late = question
                .waiters
                .extract_if(.., |waiter| waiter.give_up <= now);
            expired.extend(late);
        }
        self.questions
            .retain(|_, question| !question.waiters.is_empty());
        self.take_callbacks(expired)
    }

    /// The name that is resolved next, where one may be; [`Self::answered`] follows. The relay and
    /// the hybrid connection that hold the fewest threads come first, then who came first.
    pub(super) fn next(&mut self, now: Instant) -> Option<HostName> {
        let (asker, name) = self.pick(now).cloned()?;
        let mut waiters = Vec::new();
        // Others may wait for the same name.
        for (_, question) in self.questions.extract_if(|(_, other), _| *other == name) {
            waiters.extend(question.waiters);
        }
        let under_way = UnderWay {
            asker,
            slow: self.is_slow(&name, now),
            waiters,
        };
        self.under_way.insert(name.clone(), under_way);
        Some(name)
    }

    /// Whether [`Self::next`] has one.
    pub(super) fn has_next(&self, now: Instant) -> bool {
        self.pick(now).is_some()
    }

    fn pick(&self, now: Instant) -> Option<&(Asker, HostName)> {
        let held = self.held();
        self.questions
            .iter()
            .filter(|((asker, name), _)| self.may_start(&held, asker, self.is_slow(name, now)))
            .min_by_key(|((asker, _), question)| held.rank(asker, question.number))
            .map(|(key, _)| key)
    }

    /// A name was resolved, since `began`: who waited for it.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        began: Instant,
        name: &HostName,
        answer: &Answer,
    ) -> Vec<W> {
        let keep = match answer {
            Ok(_) => self.bounds.found_for,
            Err(_) => self.bounds.failed_for,
        };
        let slow = now.saturating_duration_since(began) >= SLOW;
        let known = Known {
            answer: answer.clone(),
            until: now + keep,
            slow_until: if slow { now + SLOW_FOR } else { now },
        };
        self.make_room(now);
        self.known.insert(name.clone(), known);
        let under_way = self.under_way.remove(name);
        self.take_callbacks(under_way.map_or_else(Vec::new, |it| it.waiters))
    }

    /// The addresses of a name could not be reached: the next question is asked again.
    pub(super) fn forget(&mut self, now: Instant, name: &HostName) {
        if let Some(known) = self.known.get_mut(name) {
            known.until = known.until.min(now);
        }
    }

    /// Gives the places of these waiters back.
    fn take_callbacks(&mut self, waiters: Vec<Waiter<W>>) -> Vec<W> {
        self.waiters -= waiters.len();
        for waiter in &waiters {
            if let Some(count) = self.waiters_by_relay.get_mut(&waiter.relay) {
                *count -= 1;
            }
        }
        self.waiters_by_relay.retain(|_, count| *count > 0);
        waiters.into_iter().map(|waiter| waiter.waits).collect()
    }

    fn make_room(&mut self, now: Instant) {
        if self.known.len() < KNOWN_MAX {
            return;
        }
        self.known
            .retain(|_, known| now < known.until.max(known.slow_until));
        if self.known.len() >= KNOWN_MAX {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.until);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.known.remove(&name);
            }
        }
    }

    fn is_slow(&self, name: &HostName, now: Instant) -> bool {
        let known = self.known.get(name);
        known.is_some_and(|known| now < known.slow_until)
    }

    fn held(&self) -> Held<'_> {
        let mut held = Held {
            all: self.under_way.len(),
            slow: 0,
            by_relay: FxHashMap::default(),
            by_asker: FxHashMap::default(),
        };
        for under_way in self.under_way.values() {
            held.slow += usize::from(under_way.slow);
            *held.by_relay.entry(&under_way.asker.relay).or_default() += 1;
            *held.by_asker.entry(&under_way.asker).or_default() += 1;
        }
        held
    }

    fn may_start(&self, held: &Held<'_>, asker: &Asker, slow: bool) -> bool {
        let free = self.bounds.threads_max - held.all;
        let of_relay = held.by_relay.get(&asker.relay).copied().unwrap_or(0);
        let of_asker = held.by_asker.get(asker).copied().unwrap_or(0);
        let slow_max = self.bounds.threads_max / SLOW_SHARE;
        // As with places in the line: a relay with many silent names leaves threads to every other.
        of_relay < free && of_asker < HYCO_THREADS_MAX && !(slow && held.slow >= slow_max)
    }
}

impl Held<'_> {
    fn rank(&self, asker: &Asker, number: u64) -> (usize, usize, u64) {
        let of_relay = self.by_relay.get(&asker.relay).copied();
        let of_asker = self.by_asker.get(asker).copied();
        (of_relay.unwrap_or(0), of_asker.unwrap_or(0), number)
    }
}

#[cfg(test)]
mod tests;
