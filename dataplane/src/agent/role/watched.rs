//! What a simulation asks of an agent's worker.

use std::collections::BTreeSet;

use underpass_proto::{HycoName, Instance};

use super::{Agent, AgentFlow};
use crate::sim::watched::{Left, Watchable};

impl Watchable for Agent {
    fn number(_: &AgentFlow) -> Option<u64> {
        None // A sender may ask for a flow again, by the same number.
    }

    fn left(&self) -> Vec<Left> {
        vec![
            ("streams without an Open", self.openings.len()),
            ("flows before their registration", self.early.len()),
            ("dials", self.dials.len()),
        ]
    }

    fn registered(&self) -> BTreeSet<(HycoName, Instance)> {
        let instance = self.plan.identity.instance;
        let names = self.links.iter().flat_map(|link| link.names_registered());
        names.map(|name| (name, instance)).collect()
    }
}
