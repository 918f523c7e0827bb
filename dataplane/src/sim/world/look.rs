//! What must hold: counters that agree at every moment; and once everything is mended, that every
//! conversation is over, nothing is left, everybody is registered, and flows go through as if
//! nothing had been.

use std::collections::BTreeSet;

use underpass_proto::{HycoName, Instance};

use super::{
    Kind, LAST_WITHIN, Phase, QUIET_WITHIN, REGISTERED_WITHIN, SILENT_MAX, UNDER_WAY_MAX, World,
};
use crate::sim::Summary;
use crate::sim::faults;
use crate::sim::machine::{Machine, Site};
use crate::sim::peer::Over;

impl World {
    /// Looks whether all holds; true when all is over.
    pub(super) fn look(&mut self) -> Result<bool, String> {
        self.bounds()?;
        let age = self.queue.age();
        let heard = self.peers.values().map(|peer| peer.listener.heard()).sum();
        let nobody_waits = self.peers.values().all(|peer| peer.over.is_some());
        if heard != self.heard.0 || nobody_waits {
            self.silent_since = age;
        }
        self.silence = self.silence.max(age - self.silent_since);
        if heard != self.heard.0 {
            self.heard = (heard, age);
        }
        let silent = age - self.heard.1 >= SILENT_MAX;
        match self.phase {
            Phase::Storm(until) if age >= until + REGISTERED_WITHIN => {
                self.note(format_args!("everything is mended"));
                faults::mend(self);
                self.phase = Phase::Quiet(age + QUIET_WITHIN);
            }
            Phase::Storm(_) => {}
            Phase::Quiet(until) => match self.unrest() {
                None => self.begin_last(),
                Some(why) if age >= until && silent => return Err(format!("not at rest: {why}")),
                Some(_) => {}
            },
            Phase::Last(until) => match self.unrest() {
                None => return self.last_were_clean().map(|()| true),
                Some(why) if age >= until && silent => {
                    return Err(format!("not at rest in the end: {why}"));
                }
                Some(_) => {}
            },
        }
        Ok(false)
    }

    /// Counters that agree at every moment, and what is under way: nobody says more than there is
    /// credit for.
    fn bounds(&mut self) -> Result<(), String> {
        let heard = |number| {
            let mut peers = self.peers.values();
            let other = peers.find(|other| other.listener.speaker() == Some(number));
            other.map_or(0, |other| other.listener.heard())
        };
        let live = self.peers.values().filter(|peer| peer.over.is_none());
        let most = live.map(|peer| (peer.said - heard(peer.number), peer.number));
        if let Some((under_way, number)) = most.max() {
            self.under_way = self.under_way.max(under_way);
            let hops = if self.has_sender() { 2 } else { 1 };
            if under_way > hops * UNDER_WAY_MAX {
                return Err(format!("{under_way} bytes of peer {number} are under way"));
            }
        }
        let relay = &self.machines[0];
        let Some(Site::Relay(site)) = &relay.site else {
            return Ok(());
        };
        let left = relay.left();
        let of = |wanted| {
            let of = left.iter().filter(|(what, _)| *what == wanted);
            of.map(|(_, count)| count).sum::<usize>()
        };
        let live = of("flows") + of("joins") + of("flows that wait for room");
        if live != site.flows() {
            return Err(format!(
                "{live} flows live, and the limits count {}",
                site.flows()
            ));
        }
        Ok(())
    }

    /// What is not at rest yet.
    fn unrest(&self) -> Option<String> {
        if let Some(peer) = self.peers.values().find(|peer| peer.over.is_none()) {
            let flows: String = self.machines.iter().map(Machine::flows).collect();
            return Some(format!(
                "hung: peer {} said {} of {}, heard {}, since {:?}{flows}",
                peer.number,
                peer.said,
                peer.manner.says,
                peer.listener.heard(),
                self.queue.now() - peer.since,
            ));
        }
        for machine in &self.machines {
            if !machine.is_up() {
                return Some(format!("{:?} {} is down", machine.kind, machine.number));
            }
            if let Some((what, count)) = machine.left().first() {
                return Some(format!(
                    "{:?} {}: {count} {what}",
                    machine.kind, machine.number
                ));
            }
        }
        if self.tcp.open() > 0 {
            return Some(format!("{} ends of TCP are open", self.tcp.open()));
        }
        self.rosters()
    }

    /// The relay's rosters and what agents believe are the same, and all that is defined.
    fn rosters(&self) -> Option<String> {
        let listed = self.machines[0].registered();
        let mut wanted: BTreeSet<(HycoName, Instance)> = BTreeSet::new();
        let mut sessions = 0;
        for machine in &self.machines[1..] {
            let believed = machine.registered();
            for definition in &self.scene.definitions {
                let own = (definition.name.clone(), machine.instance);
                if !believed.contains(&own) {
                    return Some(format!(
                        "{:?} {} is not registered for {}",
                        machine.kind, machine.number, own.0
                    ));
                }
                if machine.kind == Kind::Agent {
                    wanted.insert(own);
                }
            }
            sessions += machine.sessions();
        }
        if listed != wanted {
            return Some(format!("the relay lists {listed:?}, and {wanted:?} listen"));
        }
        let at_relay = self.machines[0].sessions();
        (at_relay != sessions)
            .then(|| format!("the relay has {at_relay} sessions, the others {sessions}"))
    }

    /// Flows through every binding, which nothing disturbs.
    fn begin_last(&mut self) {
        self.note(format_args!("all is at rest; the last flows"));
        self.phase = Phase::Last(self.queue.age() + LAST_WITHIN);
        for hyco in 0..self.scene.definitions.len() {
            for beside_sender in [false, true] {
                if !beside_sender || self.has_sender() {
                    let manner = self.manner(true);
                    let number = self.connect(hyco, beside_sender, manner);
                    self.last.push(number);
                }
            }
        }
    }

    fn last_were_clean(&self) -> Result<(), String> {
        let all = self.peers.values().filter(|peer| peer.application);
        let wanted = all.filter(|peer| {
            let in_storm = self.friendly && self.manners.is_none();
            in_storm || self.last.contains(&peer.number)
        });
        for peer in wanted {
            let mut peers = self.peers.values();
            let endpoint = peers.find(|other| other.listener.speaker() == Some(peer.number));
            let endpoint = endpoint.and_then(|other| other.over);
            if [peer.over, endpoint] != [Some(Over::Clean); 2] {
                return Err(format!(
                    "peer {} was undisturbed and ended {:?}, its endpoint {endpoint:?}",
                    peer.number, peer.over
                ));
            }
        }
        Ok(())
    }

    pub(super) fn summary(&self) -> Summary {
        let applications = || self.peers.values().filter(|peer| peer.application);
        Summary {
            sum: self.log.sum(),
            flows: applications().count(),
            clean: applications()
                .filter(|peer| peer.over == Some(Over::Clean))
                .count(),
            faults: self.faults,
            bytes: self.peers.values().map(|peer| peer.listener.heard()).sum(),
            under_way: self.under_way,
            silence: self.silence,
            virtual_ms: self.queue.age().as_millis(),
        }
    }
}
