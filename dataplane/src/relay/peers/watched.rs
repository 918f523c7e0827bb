//! What a simulation asks of the sessions of a relay's worker.

use std::collections::BTreeSet;

use underpass_proto::{HycoName, Instance};

use super::Peers;

impl Peers {
    /// Who listens for what, by the rosters.
    pub(crate) fn registered(&self) -> BTreeSet<(HycoName, Instance)> {
        let of = |(name, roster): (&HycoName, &super::Roster)| {
            let entries = roster.instances();
            entries
                .map(|instance| (name.clone(), instance))
                .collect::<Vec<_>>()
        };
        self.rosters.iter().flat_map(of).collect()
    }
}
