//! What a simulation asks of a sender's worker.

use std::collections::BTreeSet;

use underpass_proto::{HycoName, Instance};

use super::{Sender, SenderFlow};
use crate::sim::watched::{Left, Watchable};

impl Watchable for Sender {
    fn number(flow: &SenderFlow) -> Option<u64> {
        Some(flow.id.0)
    }

    fn left(&self) -> Vec<Left> {
        vec![
            ("applications that wait", self.waiting.len()),
            ("parked flows", self.parked.len()),
            ("flows to be opened", self.opening.len()),
        ]
    }

    fn registered(&self) -> BTreeSet<(HycoName, Instance)> {
        let instance = self.plan.identity.instance;
        let names = self.links.iter().flat_map(|link| link.names_registered());
        names.map(|name| (name, instance)).collect()
    }
}
