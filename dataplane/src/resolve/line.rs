//! Questions to the resolver that wait for a thread, and answers that are still fresh. Equal
//! questions are one, every relay and hybrid connection has a share, and what nobody waits for any
//! more takes no thread. Knows no threads and no clock; resolves nothing.

mod queues;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use underpass_proto::{Endpoint, HostName, HycoName};

use self::queues::{First, Queues};
use super::{Answer, Failure};

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

/// Askers that may wait in all: more flows than one worker dials at once.
const WAITERS_MAX: usize = 16_384;

/// Between two looks at all waiters for those that are late. A look passes over all of them.
const EXPIRE_EVERY: Duration = Duration::from_millis(100);

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
    /// The answer comes later: the name waits for a thread.
    Waits,
    /// The answer comes later: the name is being resolved.
    Joined,
    /// The asker's share of the line is used up.
    Refused,
}

/// The line. `W` waits for an answer.
pub(super) struct Line<W> {
    bounds: Bounds,
    /// Names that wait for a thread.
    questions: HashMap<HostName, Question<W>>,
    /// The same names, in the order in which each asker's are resolved.
    queues: Queues,
    under_way: HashMap<HostName, UnderWay<W>>,
    known: HashMap<HostName, Known>,
    waiters: usize,
    waiters_by_relay: HashMap<Endpoint, usize>,
    /// No waiter gives up before this.
    earliest: Option<Instant>,
    /// Those whose names came up for a thread too late.
    late: Vec<Waiter<W>>,
    /// Questions that came so far.
    count: u64,
}

/// A name, and who wants it. One thread resolves it for all of them.
struct Question<W> {
    /// Whether the name was slow before.
    slow: bool,
    by_asker: HashMap<Asker, Queued<W>>,
}

struct Queued<W> {
    /// Its place in the asker's queue.
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
    slow_by_relay: FxHashMap<&'a Endpoint, usize>,
    by_relay: FxHashMap<&'a Endpoint, usize>,
    by_asker: FxHashMap<&'a Asker, usize>,
}

impl<W> Line<W> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            questions: HashMap::new(),
            queues: Queues::default(),
            under_way: HashMap::new(),
            known: HashMap::new(),
            waiters: 0,
            waiters_by_relay: HashMap::new(),
            earliest: None,
            late: Vec::new(),
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
        let mut place = Place::Waits;
        if let Some(under_way) = self.under_way.get_mut(name) {
            under_way.waiters.push(waiter(waits()));
            place = Place::Joined;
        } else if let Some(queued) = self.queued(name, asker) {
            queued.waiters.push(waiter(waits()));
        } else if self.queues.has_room(&asker.relay) {
            self.queue(now, name, asker, waiter(waits()));
        } else {
            return Place::Refused;
        }
        self.waiters += 1;
        *self
            .waiters_by_relay
            .entry(asker.relay.clone())
            .or_default() += 1;
        self.earliest = Some(self.earliest.map_or(give_up, |at| at.min(give_up)));
        place
    }

    fn queued(&mut self, name: &HostName, asker: &Asker) -> Option<&mut Queued<W>> {
        self.questions.get_mut(name)?.by_asker.get_mut(asker)
    }

    fn queue(&mut self, now: Instant, name: &HostName, asker: &Asker, waiter: Waiter<W>) {
        self.count += 1;
        let slow = self.is_slow(name, now);
        let question = self.questions.entry(name.clone());
        let question = question.or_insert_with(|| Question {
            slow,
            by_asker: HashMap::new(),
        });
        let queued = Queued {
            number: self.count,
            waiters: vec![waiter],
        };
        question.by_asker.insert(asker.clone(), queued);
        self.queues.insert(asker, question.slow, self.count, name);
    }

    /// Whether [`Self::expired`] may have any.
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.earliest.is_some_and(|at| at <= now)
    }

    /// Takes those out that waited for too long: for a thread, or for a look-up that hangs.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<W> {
        let mut late = std::mem::take(&mut self.late);
        if self.has_expired(now) {
            self.extract_late(now, &mut late);
        }
        self.take_callbacks(late)
    }

    fn extract_late(&mut self, now: Instant, late: &mut Vec<Waiter<W>>) {
        let mut earliest: Option<Instant> = None;
        let mut extract = |waiters: &mut Vec<Waiter<W>>| {
            late.extend(waiters.extract_if(.., |waiter| waiter.give_up <= now));
            let left = waiters.iter().map(|waiter| waiter.give_up);
            earliest = earliest.into_iter().chain(left).min();
        };
        for under_way in self.under_way.values_mut() {
            extract(&mut under_way.waiters);
        }
        let queues = &mut self.queues;
        self.questions.retain(|_, question| {
            let slow = question.slow;
            question.by_asker.retain(|asker, queued| {
                extract(&mut queued.waiters);
                let is_wanted = !queued.waiters.is_empty();
                if !is_wanted {
                    queues.remove(asker, slow, queued.number);
                }
                is_wanted
            });
            !question.by_asker.is_empty()
        });
        self.earliest = earliest.map(|at| at.max(now + EXPIRE_EVERY));
    }

    /// The name that is resolved next, where one may be, and whether another one may be beside it;
    /// [`Self::answered`] follows. The relay and the hybrid connection that hold the fewest threads
    /// come first, then who came first.
    pub(super) fn next(&mut self, now: Instant) -> Option<(HostName, bool)> {
        loop {
            let First {
                asker, name, slow, ..
            } = self.pick()?;
            let (asker, name) = (asker.clone(), name.clone());
            let waiters = self.take_question(&name);
            if waiters.iter().all(|waiter| waiter.give_up <= now) {
                self.late.extend(waiters);
                continue;
            }
            let under_way = UnderWay {
                asker,
                slow,
                waiters,
            };
            self.under_way.insert(name.clone(), under_way);
            return Some((name, self.pick().is_some()));
        }
    }

    fn pick(&self) -> Option<First<'_>> {
        let held = self.held();
        self.queues
            .firsts()
            .filter(|first| self.may_start(&held, first.asker, first.slow))
            .min_by_key(|first| held.rank(first.asker, first.number))
    }

    /// Takes a name out of the queues of all who asked for it.
    fn take_question(&mut self, name: &HostName) -> Vec<Waiter<W>> {
        let mut waiters = Vec::new();
        if let Some(question) = self.questions.remove(name) {
            for (asker, queued) in question.by_asker {
                self.queues.remove(&asker, question.slow, queued.number);
                waiters.extend(queued.waiters);
            }
        }
        waiters
    }

    /// Takes out all who wait for a thread.
    pub(super) fn take_all(&mut self) -> Vec<W> {
        let mut waiters = std::mem::take(&mut self.late);
        let names: Vec<_> = self.questions.keys().cloned().collect();
        for name in names {
            waiters.extend(self.take_question(&name));
        }
        self.take_callbacks(waiters)
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
        // Exhaustion says nothing about the name.
        if *answer != Err(Failure::Exhausted) {
            let slow = now.saturating_duration_since(began) >= SLOW;
            let known = Known {
                answer: answer.clone(),
                until: now + keep,
                slow_until: if slow { now + SLOW_FOR } else { now },
            };
            self.make_room(now);
            self.known.insert(name.clone(), known);
        }
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
            slow_by_relay: FxHashMap::default(),
            by_relay: FxHashMap::default(),
            by_asker: FxHashMap::default(),
        };
        for under_way in self.under_way.values() {
            if under_way.slow {
                held.slow += 1;
                let relay = &under_way.asker.relay;
                *held.slow_by_relay.entry(relay).or_default() += 1;
            }
            *held.by_relay.entry(&under_way.asker.relay).or_default() += 1;
            *held.by_asker.entry(&under_way.asker).or_default() += 1;
        }
        held
    }

    fn may_start(&self, held: &Held<'_>, asker: &Asker, slow: bool) -> bool {
        let free = self.bounds.threads_max - held.all;
        let of_relay = held.by_relay.get(&asker.relay).copied().unwrap_or(0);
        let of_asker = held.by_asker.get(asker).copied().unwrap_or(0);
        let slow_free = self.bounds.threads_max / SLOW_SHARE - held.slow;
        let slow_of_relay = held.slow_by_relay.get(&asker.relay).copied().unwrap_or(0);
        // As with places in the line: a relay with many silent names leaves threads to every other,
        // and of those for slow names, too.
        of_relay < free && of_asker < HYCO_THREADS_MAX && (!slow || slow_of_relay < slow_free)
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
