//! An agent in a simulation: its workers made without threads, and told of configurations as its supervisor tells them.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::bounded;
use rand::SeedableRng;
use rand::rngs::StdRng;
use underpass_proto::{Instance, Role as PeerRole};

use super::role::{Agent, Message};
use super::{Config, Plan};
use crate::link::wants::Identity;
use crate::quic::{Driver, Ground, config::EndpointKeys};
use crate::resolve::Resolver;
use crate::sim::watched::{Turn, Watched};
use crate::sim::{Made, mtu_of};
use crate::worker::{Handle, Worker};

/// What an agent's supervisor would keep.
pub(crate) struct Site {
    plan: Arc<Plan>,
    handles: Vec<Handle<Message>>,
}

/// Starts an agent of so many workers.
pub(crate) fn start(
    config: Config,
    instance: Instance,
    workers: u8,
    mut made: Made,
) -> (Site, Vec<Box<dyn Turn>>) {
    let identity = Identity {
        role: PeerRole::Agent,
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
            Watched::new(Agent::new(worker, plan, resolver, start, say))
        });
        turns.push(Box::new(turn));
        site.handles.push(handle);
    }
    (site, turns)
}

impl Site {
    /// Goes by another configuration.
    pub(crate) fn apply(&mut self, config: Config) {
        let plan = Plan::new(config, self.plan.identity, &self.plan.relays);
        self.plan = Arc::new(plan.expect("a configuration of use"));
        self.tell(|| Message::Plan(Arc::clone(&self.plan)));
    }

    /// Takes no new flows, and resets those that live then.
    pub(crate) fn drain(&self, until: Instant) {
        self.tell(|| Message::Drain(until));
    }

    fn tell(&self, message: impl Fn() -> Message) {
        for handle in &self.handles {
            assert!(handle.try_send(message()).is_ok(), "an inbox has a place");
        }
    }
}
