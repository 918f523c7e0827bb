//! A snapshot made ready for the workers, and what they share about it. Changes with each snapshot, never per byte.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use underpass_proto::{HybridConnection, HycoName, Instance, Snapshot};

use super::health::{Book, Moment, Who};
use super::keys::KeyBook;

/// One snapshot, as the workers use it.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What control said.
    pub(crate) snapshot: Snapshot,
    by_name: HashMap<HycoName, usize>,
}

impl Plan {
    /// Indexes a checked snapshot.
    #[must_use]
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        let by_name = snapshot
            .hycos
            .iter()
            .enumerate()
            .map(|(at, hyco)| (hyco.name.clone(), at))
            .collect();
        Self { snapshot, by_name }
    }

    /// The definition of this name.
    #[must_use]
    pub(crate) fn hyco(&self, name: &HycoName) -> Option<&HybridConnection> {
        self.by_name.get(name).map(|at| &self.snapshot.hycos[*at])
    }
}

#[cfg(test)]
impl Plan {
    /// Of these names, endpoints, and whether they may be probed.
    pub(crate) fn of_test(hycos: &[(&str, &str, bool)]) -> Self {
        use underpass_proto::snapshot::{HycoKeys, HycoLimits, RelayKeys, RelayLimits, Tls};
        use underpass_proto::{Generation, Secret, Secret32};
        let hyco = |&(name, endpoint, probe): &(&str, &str, bool)| HybridConnection {
            name: name.parse().expect("a name"),
            endpoint: endpoint.parse().expect("an endpoint"),
            bind: None,
            allow_from: Vec::new(),
            keys: HycoKeys::default(),
            limits: HycoLimits::default(),
            probe,
            over_quota: false,
        };
        Self::new(Snapshot {
            generation: Generation::default(),
            namespace: "tests".to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            public_address: "relay.example.com:4433".parse().expect("an endpoint"),
            workers: None,
            tls: Tls {
                certificates: Vec::new(),
                key: Secret::new(Vec::new()),
            },
            relay_keys: RelayKeys {
                reset: Secret32::new([0; 32]),
                token: Secret32::new([0; 32]),
                connection_id: Secret32::new([0; 32]),
            },
            limits: RelayLimits::default(),
            hycos: hycos.iter().map(hyco).collect(),
        })
    }
}

/// The listeners of a hybrid connection.
type Listeners = HashMap<Instance, Listener>;

#[derive(Debug, Default)]
struct Listener {
    /// Later ones have higher numbers.
    joined: u64,
    /// How many sessions it has on which worker.
    sessions_by_worker: HashMap<u8, usize>,
}

/// What workers must know of each other: who listens where, and how many flows there are. Touched once per registration and once per flow.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// Whether endpoints are reached.
    pub(crate) health: Book,
    /// Which keys were proven.
    pub(crate) keys: KeyBook,
    listeners: Mutex<HashMap<HycoName, Listeners>>,
    joined: AtomicU64,
    flows: Mutex<HashMap<HycoName, Arc<AtomicU32>>>,
    flows_all: AtomicU32,
}

impl Directory {
    /// Notes a listener's session on a worker, unless that makes more than `most` listeners.
    pub(crate) fn listen(
        &self,
        now: Instant,
        hyco: &HycoName,
        who: Who,
        worker: u8,
        most: u32,
    ) -> bool {
        let instance = who.instance;
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let instances = listeners.entry(hyco.clone()).or_default();
        if !instances.contains_key(&instance) && instances.len() >= most as usize {
            return false;
        }
        let listener = instances.entry(instance).or_insert_with(|| Listener {
            joined: self.joined.fetch_add(1, Ordering::Relaxed),
            sessions_by_worker: HashMap::new(),
        });
        *listener.sessions_by_worker.entry(worker).or_default() += 1;
        self.health.join(now, hyco, who, worker);
        true
    }

    /// The listeners above a limit that was lowered: the newest ones. Whichever worker asks is told the same.
    #[must_use]
    pub(crate) fn beyond(&self, hyco: &HycoName, most: u32) -> Vec<Instance> {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(instances) = listeners.get(hyco) else {
            return Vec::new();
        };
        let mut by_age: Vec<_> = instances
            .iter()
            .map(|(&instance, listener)| (listener.joined, instance))
            .collect();
        by_age.sort_unstable();
        by_age
            .into_iter()
            .skip(most as usize)
            .map(|(_, instance)| instance)
            .collect()
    }

    /// Takes such a note back.
    pub(crate) fn leave(
        &self,
        moment: Moment,
        hyco: &HycoName,
        instance: Instance,
        worker: u8,
        why: &str,
    ) {
        self.health.leave(moment, hyco, instance, worker, why);
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(instances) = listeners.get_mut(hyco) else {
            return;
        };
        if let Some(listener) = instances.get_mut(&instance) {
            let workers = &mut listener.sessions_by_worker;
            if let Some(count) = workers.get_mut(&worker) {
                *count -= 1;
                if *count == 0 {
                    workers.remove(&worker);
                }
            }
            if workers.is_empty() {
                instances.remove(&instance);
            }
        }
        if instances.is_empty() {
            listeners.remove(hyco);
        }
    }

    /// Another worker than `but` where somebody listens.
    #[must_use]
    pub(crate) fn worker_with(&self, hyco: &HycoName, but: u8) -> Option<u8> {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners
            .get(hyco)?
            .values()
            .flat_map(|listener| listener.sessions_by_worker.keys())
            .copied()
            .find(|worker| *worker != but)
    }

    /// How many listen.
    #[must_use]
    pub(crate) fn listeners(&self, hyco: &HycoName) -> u32 {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.get(hyco).map_or(0, |instances| {
            u32::try_from(instances.len()).unwrap_or(u32::MAX)
        })
    }

    /// A place for one more flow, or `None` at a limit. Given back when dropped.
    #[must_use]
    pub(crate) fn place(
        self: &Arc<Self>,
        hyco: &HycoName,
        most: u32,
        most_all: u32,
    ) -> Option<Place> {
        let live = {
            let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(flows.entry(hyco.clone()).or_default())
        };
        if self.flows_all.fetch_add(1, Ordering::Relaxed) >= most_all {
            self.flows_all.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        if live.fetch_add(1, Ordering::Relaxed) >= most {
            live.fetch_sub(1, Ordering::Relaxed);
            self.flows_all.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place {
            live,
            directory: Arc::clone(self),
        })
    }
}

/// One flow's place under the limits.
#[derive(Debug)]
pub(crate) struct Place {
    live: Arc<AtomicU32>,
    directory: Arc<Directory>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        self.directory.flows_all.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use underpass_proto::AgentId;

    use super::*;

    fn name() -> HycoName {
        "payroll-sql".parse().expect("a name")
    }

    fn listen(directory: &Directory, instance: Instance, worker: u8) -> bool {
        let who = Who {
            agent_id: AgentId(instance.0),
            instance,
            remote: ([192, 0, 2, 7], 40_112).into(),
        };
        directory.listen(Instant::now(), &name(), who, worker, 3)
    }

    #[test]
    fn above_a_lowered_limit_are_the_newest() {
        let directory = Directory::default();
        let [first, second, third] = [3, 1, 2].map(|number| Instance([number; 16]));
        for instance in [first, second, third] {
            assert!(listen(&directory, instance, 0));
        }
        assert!(
            listen(&directory, first, 1),
            "one more session is no listener more"
        );
        assert!(!listen(&directory, Instance([9; 16]), 0));
        assert_eq!(directory.beyond(&name(), 3), []);
        assert_eq!(directory.beyond(&name(), 1), [second, third]);
        let moment = Moment::at(Instant::now());
        directory.leave(moment, &name(), second, 0, "deregistered");
        assert_eq!(directory.beyond(&name(), 1), [third]);
    }
}
