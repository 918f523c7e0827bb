//! A snapshot made ready for the workers, and what they share about it. Changes with each snapshot,
//! never per byte.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustc_hash::FxHashMap;
use underpass_proto::{HybridConnection, HycoName, Snapshot};

use super::keys::KeyBook;
use super::listeners::Book;
use super::pulses::Pulses;
use super::resources::Resources;

/// One snapshot, as the workers use it.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What control said.
    pub(crate) snapshot: Snapshot,
    by_name: FxHashMap<HycoName, usize>,
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
            probe_always: false,
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

/// What workers must know of each other: who listens where, which keys are in use, and how many
/// flows there are. Touched once per registration and once per flow.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// Who listens where, and whether endpoints are reached.
    pub(crate) listeners: Book,
    /// Which keys were proven.
    pub(crate) keys: KeyBook,
    /// Signs of life of the processes that have sessions.
    pub(crate) pulses: Pulses,
    /// What the machine gives.
    pub(crate) resources: Resources,
    flows: Mutex<FxHashMap<HycoName, Arc<AtomicU32>>>,
    flows_all: AtomicU32,
}

impl Directory {
    /// Goes by a plan: what was known of names that it does not have is forgotten.
    pub(crate) fn define(&self, now: Instant, plan: &Plan) {
        self.listeners.define(now, plan);
        self.keys.define(plan);
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        // Flows that live on keep their number.
        flows.retain(|name, live| plan.hyco(name).is_some() || Arc::strong_count(live) > 1);
    }

    /// Names of which flows were counted.
    #[cfg(test)]
    pub(crate) fn names(&self) -> usize {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.len()
    }

    /// Flows that the limits count.
    #[cfg(test)]
    pub(crate) fn flows(&self) -> u32 {
        self.flows_all.load(Ordering::Relaxed)
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
    use super::*;

    #[test]
    fn names_that_are_gone_are_forgotten_once_their_last_flow_is() {
        let now = Instant::now();
        let directory = Arc::new(Directory::default());
        let (gone, stays) = ("gone-way".parse().unwrap(), "other-way".parse().unwrap());
        let flow = directory.place(&gone, 10, 10).unwrap();
        drop(directory.place(&stays, 10, 10).unwrap());
        let plan = Plan::of_test(&[("other-way", "127.0.0.1:1", false)]);
        directory.define(now, &plan);
        assert_eq!(directory.names(), 2, "a flow lives on");
        drop(flow);
        directory.define(now, &plan);
        assert_eq!(directory.names(), 1);
        assert_eq!(directory.flows(), 0);
    }
}
