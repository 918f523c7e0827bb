//! The machines of a world: one process each, of some workers. A process that is killed is gone
//! with all that it had; the next one is another life.

use std::collections::BTreeSet;
use std::time::Instant;

use underpass_proto::{HycoName, Instance};

use super::watched::{Left, Turn};
use super::world::Place;
use crate::io::sim::Sim;
use crate::{agent, relay, sender};

/// What a process is.
pub(super) enum Site {
    Relay(relay::simulated::Site),
    Agent(agent::simulated::Site),
    Sender(sender::simulated::Site),
}

/// What a machine is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Relay,
    Agent,
    Sender,
}

/// A worker and when it is turned next.
pub(super) struct Slot {
    pub(super) turn: Box<dyn Turn>,
    pub(super) planned: Option<Instant>,
    pub(super) done: bool,
}

/// One machine.
pub(super) struct Machine {
    pub(super) kind: Kind,
    pub(super) number: usize,
    pub(super) life: u32,
    /// Of the process that runs.
    pub(super) instance: Instance,
    pub(super) site: Option<Site>,
    pub(super) slots: Vec<Slot>,
    /// It is stopped, and goes on then.
    pub(super) asleep: Option<Instant>,
    pub(super) draining: bool,
}

impl Machine {
    pub(super) fn new(kind: Kind, number: usize) -> Self {
        Self {
            kind,
            number,
            life: 0,
            instance: Instance([0; 16]),
            site: None,
            slots: Vec::new(),
            asleep: None,
            draining: false,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.site.is_some()
    }

    pub(super) fn place(&self, worker: usize) -> Place {
        Place {
            machine: self.number,
            life: self.life,
            worker: u8::try_from(worker).expect("few workers"),
        }
    }

    /// Its process, alive.
    pub(super) fn lives(&mut self, site: Site, turns: Vec<Box<dyn Turn>>) {
        let slot = |turn| Slot {
            turn,
            planned: None,
            done: false,
        };
        self.site = Some(site);
        self.slots = turns.into_iter().map(slot).collect();
    }

    /// Its process, gone.
    pub(super) fn dies(&mut self) {
        self.site = None;
        self.slots.clear();
        self.asleep = None;
        self.draining = false;
    }

    pub(super) fn sim(&mut self, place: Place) -> Option<&mut Sim> {
        if place.life != self.life {
            return None;
        }
        let slot = self.slots.get_mut(usize::from(place.worker))?;
        (!slot.done).then(|| slot.turn.sim())
    }

    /// What it still holds.
    pub(super) fn left(&self) -> Vec<Left> {
        self.slots
            .iter()
            .flat_map(|slot| slot.turn.left())
            .collect()
    }

    /// Who is registered for what, as it sees it.
    pub(super) fn registered(&self) -> BTreeSet<(HycoName, Instance)> {
        self.slots
            .iter()
            .flat_map(|slot| slot.turn.registered())
            .collect()
    }

    /// How far its flows are, for people.
    pub(super) fn flows(&self) -> String {
        let flows: Vec<String> = self
            .slots
            .iter()
            .flat_map(|slot| slot.turn.flows())
            .collect();
        flows
            .iter()
            .map(|flow| format!("\n  {:?} {}: {flow}", self.kind, self.number))
            .collect()
    }

    pub(super) fn sessions(&self) -> usize {
        self.slots.iter().map(|slot| slot.turn.sessions()).sum()
    }
}
