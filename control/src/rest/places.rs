//! Who has a place among the connections of one listener. Knows no sockets and no clock.
//!
//! A connection without a request costs little, so nobody waits for one: when places run short, the
//! one that has been without a request for longest makes room, first of the newcomer's own address,
//! then of the address that has most of them. A few more places serve `/healthz` and `/readyz`
//! alone, so that a supervisor gets an answer while every place is busy.
//!
//! On `run/api.sock` all callers are one address, and may take every place; a newcomer waits there
//! until one is free before it takes that of another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::failures::Source;

/// Connections of one listener: people and their scripts, not the world.
const CONNECTIONS_MAX: usize = 256;

/// Of these, those of one address (IPv6: one network), so that four at least are served.
const OF_SOURCE_MAX: usize = 64;

/// Connections beyond those, that are served health checks and nothing else.
const PROBES_MAX: usize = 32;

/// Of these, those of one address.
const PROBES_OF_SOURCE_MAX: usize = 16;

const _: () = assert!(OF_SOURCE_MAX * 4 <= CONNECTIONS_MAX);
const _: () = assert!(PROBES_OF_SOURCE_MAX * 2 <= PROBES_MAX);

/// The connections of a listener.
#[derive(Clone)]
pub(super) struct Places(Arc<Room>);

struct Room {
    book: Mutex<Book>,
    freed: Notify,
}

/// One connection's place, until it is dropped.
pub(super) struct Place {
    places: Places,
    id: u64,
    only_probes: bool,
}

struct Book {
    held: HashMap<u64, Held>,
    of_source_max: usize,
    /// Numbers connections and the moments at which they became idle.
    last: u64,
}

struct Held {
    source: Source,
    only_probes: bool,
    /// Since when it is without a request; `None`: one is being served.
    idle_since: Option<u64>,
    /// Dropped with the entry: then the connection is closed.
    _open: oneshot::Sender<()>,
}

impl Places {
    /// Of a listener on the network: each source has a share.
    pub(super) fn of_many() -> Self {
        Self::new(OF_SOURCE_MAX)
    }

    /// Of a listener whose callers are all one source.
    pub(super) fn of_one() -> Self {
        Self::new(CONNECTIONS_MAX)
    }

    fn new(of_source_max: usize) -> Self {
        let book = Book {
            held: HashMap::new(),
            of_source_max,
            last: 0,
        };
        Self(Arc::new(Room {
            book: Mutex::new(book),
            freed: Notify::new(),
        }))
    }

    /// Resolves when a place is free. Cancel safe. One waits at a time: who accepts.
    pub(super) async fn free(&self) {
        while self.book().is_full() {
            // A place that became free before this line left its notice.
            self.0.freed.notified().await;
        }
    }

    /// A place for a newcomer, and what resolves when it has to give it up. `None`: everybody is
    /// being served.
    pub(super) fn admit(&self, source: Source) -> Option<(Place, oneshot::Receiver<()>)> {
        let mut book = self.book();
        let only_probes = match book.make_room(source, false) {
            true => false,
            false if book.make_room(source, true) => true,
            false => return None,
        };
        let (open, closed) = oneshot::channel();
        let id = book.next();
        let held = Held {
            source,
            only_probes,
            idle_since: Some(id),
            _open: open,
        };
        book.held.insert(id, held);
        let place = Place {
            places: self.clone(),
            id,
            only_probes,
        };
        Some((place, closed))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        let book = self.0.book.lock();
        book.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whether this connection is for health checks alone.
    pub(super) fn is_only_for_probes(&self) -> bool {
        self.only_probes
    }

    /// A request came.
    pub(super) fn busy(&self) {
        if let Some(held) = self.places.book().held.get_mut(&self.id) {
            held.idle_since = None;
        }
    }

    /// It was answered.
    pub(super) fn idle(&self) {
        let mut book = self.places.book();
        let now = book.next();
        if let Some(held) = book.held.get_mut(&self.id) {
            held.idle_since = Some(now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.book().held.remove(&self.id);
        self.places.0.freed.notify_one();
    }
}

impl Book {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn is_full(&self) -> bool {
        let served = self.held.values().filter(|held| !held.only_probes);
        served.count() >= CONNECTIONS_MAX
    }

    /// Whether there is a place of this kind for a source; an idle connection is closed where that
    /// is needed.
    fn make_room(&mut self, source: Source, probes: bool) -> bool {
        let (most, of_source_most) = match probes {
            true => (PROBES_MAX, PROBES_OF_SOURCE_MAX),
            false => (CONNECTIONS_MAX, self.of_source_max),
        };
        let all = || self.held.values().filter(|held| held.only_probes == probes);
        let whose = if all().filter(|held| held.source == source).count() >= of_source_most {
            Some(source)
        } else if all().count() >= most {
            self.source_with_most_idle(probes)
        } else {
            return true;
        };
        let of_whose = self
            .held
            .iter()
            .filter(|(_, held)| held.only_probes == probes && Some(held.source) == whose)
            .filter_map(|(id, held)| Some((held.idle_since?, *id)));
        let oldest = of_whose.min().map(|(_, id)| id);
        oldest.is_some_and(|id| self.held.remove(&id).is_some())
    }

    fn source_with_most_idle(&self, probes: bool) -> Option<Source> {
        let mut counts: HashMap<Source, usize> = HashMap::new();
        for held in self.held.values() {
            if held.only_probes == probes && held.idle_since.is_some() {
                *counts.entry(held.source).or_default() += 1;
            }
        }
        counts
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map(|(source, _)| source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Admitted = (Place, oneshot::Receiver<()>);

    fn is_closed(admitted: &mut Admitted) -> bool {
        admitted.1.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    async fn is_ready(mut future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(future.as_mut().poll(context).is_ready())
        })
        .await
    }

    fn fill(places: &Places, source: u8, count: usize) -> Vec<Admitted> {
        let admit = |_| places.admit([source; 8]).expect("a place");
        (0..count).map(admit).collect()
    }

    #[test]
    fn a_source_beyond_its_share_loses_its_oldest_idle_connection() {
        let places = Places::of_many();
        let mut other = fill(&places, 2, 1);
        let mut own = fill(&places, 1, OF_SOURCE_MAX);
        own[0].0.busy();
        own[1].0.busy();
        own[1].0.idle(); // The youngest now.
        let (newcomer, _open) = places.admit([1; 8]).expect("a place");
        assert!(!newcomer.is_only_for_probes());
        let closed: Vec<bool> = own.iter_mut().map(is_closed).collect();
        assert_eq!(closed.iter().position(|closed| *closed), Some(2));
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 1);
        assert!(!is_closed(&mut other[0]));
    }

    #[test]
    fn when_all_places_are_taken_the_source_with_most_idle_ones_makes_room() {
        let places = Places::of_many();
        let mut all: Vec<Admitted> = (1..=4)
            .flat_map(|source| fill(&places, source, OF_SOURCE_MAX))
            .collect();
        for (place, _) in all.iter().take(OF_SOURCE_MAX * 2) {
            place.busy();
        }
        all[OF_SOURCE_MAX * 2].0.busy();
        let newcomer = places.admit([9; 8]);
        assert!(newcomer.is_some_and(|(place, _)| !place.is_only_for_probes()));
        let closed = all.iter_mut().position(is_closed);
        assert_eq!(closed, Some(OF_SOURCE_MAX * 3), "the oldest of the fourth");
    }

    #[tokio::test]
    async fn callers_of_the_local_socket_have_no_share_and_wait_for_a_place() {
        let places = Places::of_one();
        let mut all = fill(&places, 0, CONNECTIONS_MAX);
        assert!(all.iter().all(|(place, _)| !place.is_only_for_probes()));
        all.iter().for_each(|(place, _)| place.busy());
        let mut waiting = std::pin::pin!(places.free());
        assert!(!is_ready(waiting.as_mut()).await);
        all.pop();
        waiting.await;
        let next = places.admit([0; 8]).expect("a place");
        assert!(!next.0.is_only_for_probes());
        assert!(!is_ready(std::pin::pin!(places.free())).await);
    }

    #[test]
    fn while_every_place_is_busy_health_checks_have_their_own() {
        let places = Places::of_many();
        let own = fill(&places, 1, OF_SOURCE_MAX);
        own.iter().for_each(|(place, _)| place.busy());
        let probes = fill(&places, 1, PROBES_OF_SOURCE_MAX);
        assert!(probes.iter().all(|(place, _)| place.is_only_for_probes()));
        let next = places.admit([1; 8]).expect("an idle one makes room");
        assert!(next.0.is_only_for_probes());
        probes.iter().for_each(|(place, _)| place.busy());
        next.0.busy();
        assert!(places.admit([1; 8]).is_none());
        let other = places.admit([2; 8]).expect("another's share is its own");
        assert!(!other.0.is_only_for_probes());
        drop(own);
        let again = places.admit([1; 8]).expect("a place");
        assert!(!again.0.is_only_for_probes());
    }
}
