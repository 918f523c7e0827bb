//! What a simulation asks of a relay's worker.

use std::collections::BTreeSet;

use underpass_proto::{HycoName, Instance};

use super::{Relay, RelayFlow};
use crate::sim::watched::{Left, Watchable};

impl Watchable for Relay {
    fn number(flow: &RelayFlow) -> Option<u64> {
        Some(flow.id.0)
    }

    fn left(&self) -> Vec<Left> {
        vec![
            ("streams without an Open", self.openings.len()),
            ("flows to be opened", self.opening.len()),
            ("flows that wait for room", self.waiting.len()),
            (
                "sessions with flows that are held back",
                self.held_back.len(),
            ),
        ]
    }

    fn registered(&self) -> BTreeSet<(HycoName, Instance)> {
        self.peers.registered()
    }
}
