//! A relay in a simulation: its workers made without threads, and told of snapshots as its supervisor tells them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::bounded;
use rand::SeedableRng;
use rand::rngs::StdRng;
use underpass_proto::{HycoName, Snapshot};

use super::plan::{Directory, Plan};
use super::role::{Message, Relay};
use super::{endpoint_keys, server};
use crate::io::Listener;
use crate::listening::Change;
use crate::quic::{Driver, Ground};
use crate::sim::watched::{Turn, Watched};
use crate::sim::{Made, mtu_of};
use crate::worker::{Handle, Worker};

/// What a relay's supervisor would keep.
pub(crate) struct Site {
    plan: Arc<Plan>,
    directory: Arc<Directory>,
    handles: Vec<Handle<Message>>,
    bindings: BTreeMap<HycoName, (u64, SocketAddr)>,
    next_number: u64,
}

/// Starts a relay of so many workers.
pub(crate) fn start(snapshot: Snapshot, workers: u8, mut made: Made) -> (Site, Vec<Box<dyn Turn>>) {
    let served = Arc::new(server(&snapshot).expect("a certificate of use"));
    let keys = endpoint_keys(&snapshot);
    let mut site = Site {
        plan: Arc::new(Plan::new(snapshot)),
        directory: Arc::new(Directory::default()),
        handles: Vec::new(),
        bindings: BTreeMap::new(),
        next_number: 0,
    };
    site.define(made.now);
    let mut turns: Vec<Box<dyn Turn>> = Vec::new();
    for worker in 0..workers {
        let ground = Ground {
            mtu_of,
            rng: StdRng::from_rng(&mut made.rng),
        };
        let quic = Driver::on(ground, worker, &keys, Some(Arc::clone(&served)), None);
        let (plan, directory) = (Arc::clone(&site.plan), Arc::clone(&site.directory));
        let rng = StdRng::from_rng(&mut made.rng);
        let (turn, handle) = Worker::new(made.io(), quic, (worker, workers), rng, |start| {
            Watched::new(Relay::new((worker, workers), plan, directory, start.rng))
        });
        turns.push(Box::new(turn));
        site.handles.push(handle);
    }
    let others = site.handles.clone();
    site.tell(|| Message::Others(others.clone()));
    site.bind();
    (site, turns)
}

impl Site {
    /// Goes by another snapshot.
    pub(crate) fn apply(&mut self, snapshot: Snapshot, now: Instant) {
        let served = Arc::new(server(&snapshot).expect("a certificate of use"));
        self.plan = Arc::new(Plan::new(snapshot));
        self.define(now);
        let (applied, _) = bounded(self.handles.len());
        self.tell(|| Message::Plan(Arc::clone(&self.plan), Arc::clone(&served), applied.clone()));
        self.bind();
    }

    /// Takes no new flows, and resets those that live then.
    pub(crate) fn drain(&self, until: Instant) {
        self.tell(|| Message::Drain(until));
    }

    /// Flows that the limits count.
    pub(crate) fn flows(&self) -> usize {
        self.directory.flows() as usize
    }

    fn define(&self, now: Instant) {
        self.directory.listeners.define(now, &self.plan);
        self.directory.keys.define(&self.plan);
    }

    fn bind(&mut self) {
        let wanted =
            |hyco: &underpass_proto::HybridConnection| Some((hyco.name.clone(), hyco.bind?));
        let wanted: BTreeMap<HycoName, SocketAddr> =
            self.plan.snapshot.hycos.iter().filter_map(wanted).collect();
        let gone = self
            .bindings
            .extract_if(.., |name, (_, at)| wanted.get(name) != Some(at));
        for (_, (number, _)) in gone.collect::<Vec<_>>() {
            self.tell(|| Message::Binding(Change::Unbind(number)));
        }
        for (hyco, at) in wanted {
            if !self.bindings.contains_key(&hyco) {
                self.next_number += 1;
                let number = self.next_number;
                self.bindings.insert(hyco.clone(), (number, at));
                self.tell(|| {
                    Message::Binding(Change::Bind {
                        number,
                        hyco: hyco.clone(),
                        listener: Listener::Simulated(at),
                    })
                });
            }
        }
    }

    fn tell(&self, message: impl Fn() -> Message) {
        for handle in &self.handles {
            assert!(handle.try_send(message()).is_ok(), "an inbox has a place");
        }
    }
}
