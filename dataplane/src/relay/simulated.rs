//! A relay in a simulation: its workers made without threads, and told of snapshots as its
//! supervisor tells them.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::bounded;
use underpass_proto::Snapshot;

use super::plan::{Directory, Plan};
use super::role::{Message, Relay};
use super::{endpoint_keys, server};
use crate::sim::Made;
use crate::sim::crew::Crew;
use crate::sim::watched::Turn;
use crate::worker::Start;

/// What a relay's supervisor would keep.
pub(crate) struct Site {
    plan: Arc<Plan>,
    directory: Arc<Directory>,
    crew: Crew<Message>,
}

/// Starts a relay of so many workers.
pub(crate) fn start(snapshot: Snapshot, workers: u8, mut made: Made) -> (Site, Vec<Box<dyn Turn>>) {
    let served = Arc::new(server(&snapshot).expect("a certificate of use"));
    let keys = endpoint_keys(&snapshot);
    let mut site = Site {
        plan: Arc::new(Plan::new(snapshot)),
        directory: Arc::new(Directory::default()),
        crew: Crew::new(),
    };
    site.define(made.now);
    let mut turns: Vec<Box<dyn Turn>> = Vec::new();
    for worker in 0..workers {
        let place = (worker, workers);
        let (plan, directory) = (Arc::clone(&site.plan), Arc::clone(&site.directory));
        let role = |start: Start<_>| Relay::new(place, plan, directory, start.rng);
        let server = Some(Arc::clone(&served));
        turns.push(
            site.crew
                .hire(&mut made, place, |_| keys.clone(), server, role),
        );
    }
    let others = site.crew.handles.clone();
    site.crew.tell(|| Message::Others(others.clone()));
    site.bind();
    (site, turns)
}

impl Site {
    /// Goes by another snapshot.
    pub(crate) fn apply(&mut self, snapshot: Snapshot, now: Instant) {
        let served = Arc::new(server(&snapshot).expect("a certificate of use"));
        self.plan = Arc::new(Plan::new(snapshot));
        self.define(now);
        let (applied, _) = bounded(self.crew.handles.len());
        self.crew
            .tell(|| Message::Plan(Arc::clone(&self.plan), Arc::clone(&served), applied.clone()));
        self.bind();
    }

    /// Takes no new flows, and resets those that live then.
    pub(crate) fn drain(&self, until: Instant) {
        self.crew.tell(|| Message::Drain(until));
    }

    /// Flows that the limits count.
    pub(crate) fn flows(&self) -> usize {
        self.directory.flows() as usize
    }

    fn define(&self, now: Instant) {
        self.directory.define(now, &self.plan);
    }

    fn bind(&mut self) {
        let bindings = self.plan.snapshot.hycos.iter();
        let wanted = bindings.filter_map(|hyco| Some((hyco.name.clone(), hyco.bind?)));
        self.crew.bind(wanted, Message::Binding);
    }
}
