//! A sender in a simulation: its workers made without threads, and told of configurations as its supervisor tells them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::bounded;
use rand::SeedableRng;
use rand::rngs::StdRng;
use underpass_proto::{HycoName, Instance, Role as PeerRole};

use super::role::{Message, Sender};
use super::{Config, Plan};
use crate::io::Listener;
use crate::link::wants::Identity;
use crate::listening::Change;
use crate::quic::{Driver, Ground, config::EndpointKeys};
use crate::resolve::Resolver;
use crate::sim::watched::{Turn, Watched};
use crate::sim::{Made, mtu_of};
use crate::worker::{Handle, Worker};

/// What a sender's supervisor would keep.
pub(crate) struct Site {
    plan: Arc<Plan>,
    handles: Vec<Handle<Message>>,
    bindings: BTreeMap<HycoName, (u64, SocketAddr)>,
    next_number: u64,
}

/// Starts a sender of so many workers.
pub(crate) fn start(
    config: Config,
    instance: Instance,
    workers: u8,
    mut made: Made,
) -> (Site, Vec<Box<dyn Turn>>) {
    let identity = Identity {
        role: PeerRole::Sender,
        agent_id: config.agent_id,
        instance,
        check_only: false,
    };
    let plan = Arc::new(Plan::new(config, identity, &[]).expect("a configuration of use"));
    let (resolver, _) = Resolver::queue();
    let (say, _) = bounded(1);
    let mut site = Site {
        plan: Arc::clone(&plan),
        handles: Vec::new(),
        bindings: BTreeMap::new(),
        next_number: 0,
    };
    let mut turns: Vec<Box<dyn Turn>> = Vec::new();
    for worker in 0..workers {
        let ground = Ground {
            mtu_of,
            rng: StdRng::from_rng(&mut made.rng),
        };
        let keys = EndpointKeys::of_test(&mut made.rng);
        let quic = Driver::on(ground, worker, &keys, None, None);
        let rng = StdRng::from_rng(&mut made.rng);
        let (plan, resolver, say) = (Arc::clone(&plan), resolver.clone(), say.clone());
        let (turn, handle) = Worker::new(made.io(), quic, (worker, 1), rng, |start| {
            Watched::new(Sender::new(worker, plan, resolver, start, say))
        });
        turns.push(Box::new(turn));
        site.handles.push(handle);
    }
    site.bind();
    (site, turns)
}

impl Site {
    /// Goes by another configuration.
    pub(crate) fn apply(&mut self, config: Config) {
        let plan = Plan::new(config, self.plan.identity, &self.plan.relays);
        self.plan = Arc::new(plan.expect("a configuration of use"));
        self.tell(|| Message::Plan(Arc::clone(&self.plan)));
        self.bind();
    }

    /// Takes no new flows, and resets those that live then.
    pub(crate) fn drain(&self, until: Instant) {
        self.tell(|| Message::Drain(until));
    }

    fn bind(&mut self) {
        let wanted: BTreeMap<HycoName, SocketAddr> = self.plan.binds.iter().cloned().collect();
        let gone = self
            .bindings
            .extract_if(.., |name, (_, at)| wanted.get(name) != Some(at));
        for (_, (number, _)) in gone.collect::<Vec<_>>() {
            self.tell(|| Message::Own(Change::Unbind(number)));
        }
        for (hyco, at) in wanted {
            if !self.bindings.contains_key(&hyco) {
                self.next_number += 1;
                let number = self.next_number;
                self.bindings.insert(hyco.clone(), (number, at));
                self.tell(|| {
                    Message::Own(Change::Bind {
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
