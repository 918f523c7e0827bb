//! An agent in a simulation: its workers made without threads, and told of configurations as its
//! supervisor tells them.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::bounded;
use underpass_proto::limits::PING_AFTER;
use underpass_proto::{Instance, Role as PeerRole};

use super::manners::{Manners, Visited};
use super::role::{Agent, Message};
use super::{Config, Plan};
use crate::link::wants::Identity;
use crate::quic::config::EndpointKeys;
use crate::resolve::Resolver;
use crate::sim::Made;
use crate::sim::crew::Crew;
use crate::sim::watched::Turn;

/// What an agent's supervisor would keep.
pub(crate) struct Site {
    plan: Arc<Plan>,
    crew: Crew<Message>,
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
        keep_alive: PING_AFTER,
    };
    let plan = Arc::new(Plan::new(config, identity, &[]).expect("a configuration of use"));
    let resolver = Resolver::of_nothing();
    let (say, _) = bounded(1);
    let mut site = Site {
        plan: Arc::clone(&plan),
        crew: Crew::new(),
    };
    let visited = Visited::default();
    let mut turns: Vec<Box<dyn Turn>> = Vec::new();
    for worker in 0..workers {
        let (plan, resolver, say) = (Arc::clone(&plan), resolver.clone(), say.clone());
        let place = (worker, 1);
        let manners = Manners::new(visited.clone());
        let role = |start| Agent::new(worker, plan, resolver, manners, start, say);
        turns.push(
            site.crew
                .hire(&mut made, place, EndpointKeys::by, None, role),
        );
    }
    (site, turns)
}

impl Site {
    /// Goes by another configuration.
    pub(crate) fn apply(&mut self, config: Config) {
        let plan = Plan::new(config, self.plan.identity, &self.plan.relays);
        self.plan = Arc::new(plan.expect("a configuration of use"));
        self.crew.tell(|| Message::Plan(Arc::clone(&self.plan)));
    }

    /// Takes no new flows, and resets those that live then.
    pub(crate) fn drain(&self, until: Instant) {
        self.crew.tell(|| Message::Drain(until));
    }
}
