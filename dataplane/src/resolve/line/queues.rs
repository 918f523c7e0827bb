//! Names that wait for a thread: each asker's in the order in which they came, and how many places
//! each relay takes. Decides nothing about threads.

use std::collections::{BTreeMap, HashMap};

use underpass_proto::{Endpoint, HostName};

use super::Asker;

/// Names that may wait, each counted once for every asker.
pub(super) const QUESTIONS_MAX: usize = 4096;

/// A queue for each asker that has questions.
#[derive(Default)]
pub(super) struct Queues {
    by_asker: HashMap<Asker, AskerQueue>,
    places_by_relay: HashMap<Endpoint, usize>,
    places: usize,
}

/// The names of one asker by the numbers of their questions. Slow ones wait apart: they hold no
/// quick one up.
#[derive(Default)]
struct AskerQueue {
    quick: BTreeMap<u64, HostName>,
    slow: BTreeMap<u64, HostName>,
}

/// The first name of a queue.
pub(super) struct First<'a> {
    pub(super) asker: &'a Asker,
    pub(super) slow: bool,
    pub(super) number: u64,
    pub(super) name: &'a HostName,
}

impl Queues {
    /// Whether a relay may ask for one more name: it takes another place only while more are free
    /// than it has. Below half of all it always may.
    pub(super) fn has_room(&self, relay: &Endpoint) -> bool {
        let free = QUESTIONS_MAX - self.places;
        let of_relay = self.places_by_relay.get(relay).copied().unwrap_or(0);
        free > QUESTIONS_MAX / 2 || of_relay < free
    }

    pub(super) fn insert(&mut self, asker: &Asker, slow: bool, number: u64, name: &HostName) {
        let queue = self.by_asker.entry(asker.clone()).or_default();
        queue.of(slow).insert(number, name.clone());
        self.places += 1;
        *self.places_by_relay.entry(asker.relay.clone()).or_default() += 1;
    }

    pub(super) fn remove(&mut self, asker: &Asker, slow: bool, number: u64) {
        let Some(queue) = self.by_asker.get_mut(asker) else {
            return;
        };
        if queue.of(slow).remove(&number).is_none() {
            return;
        }
        if queue.quick.is_empty() && queue.slow.is_empty() {
            self.by_asker.remove(asker);
        }
        self.places -= 1;
        if let Some(count) = self.places_by_relay.get_mut(&asker.relay) {
            *count -= 1;
            if *count == 0 {
                self.places_by_relay.remove(&asker.relay);
            }
        }
    }

    /// The first name of each queue, of an asker's quick ones and of its slow ones.
    pub(super) fn firsts(&self) -> impl Iterator<Item = First<'_>> {
        self.by_asker.iter().flat_map(|(asker, queue)| {
            [(false, &queue.quick), (true, &queue.slow)]
                .into_iter()
                .filter_map(move |(slow, names)| {
                    let (&number, name) = names.first_key_value()?;
                    Some(First {
                        asker,
                        slow,
                        number,
                        name,
                    })
                })
        })
    }

    /// Whether nothing is left of any question.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_asker.is_empty() && self.places_by_relay.is_empty() && self.places == 0
    }
}

impl AskerQueue {
    fn of(&mut self, slow: bool) -> &mut BTreeMap<u64, HostName> {
        if slow {
            &mut self.slow
        } else {
            &mut self.quick
        }
    }
}
