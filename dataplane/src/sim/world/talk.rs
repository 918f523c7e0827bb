//! Applications connect, endpoints serve, and what either hears is held against what the other
//! said.

use std::net::SocketAddr;

use rand::RngExt;

use super::{ENDPOINTS, Event, Phase, World};
use crate::sim::faults;
use crate::sim::pattern;
use crate::sim::peer::{Manner, Over, Peer, Stage, binding};
use crate::sim::tcp::Owner;

impl World {
    pub(super) fn manner(&mut self, application: bool) -> Manner {
        let plain = Manner::plain(&mut self.rng);
        if let (Some((applications, endpoints)), Phase::Storm(_)) = (&self.manners, self.phase) {
            let given = if application { applications } else { endpoints };
            return given.clone();
        }
        if self.friendly || !matches!(self.phase, Phase::Storm(_)) {
            return plain;
        }
        faults::manner(plain, application, &mut self.rng)
    }

    pub(super) fn connect(&mut self, hyco: usize, beside_sender: bool, manner: Manner) -> u64 {
        self.next_peer += 1;
        let number = self.next_peer;
        self.note(format_args!(
            "application {number} connects for {hyco}, beside a sender: {beside_sender}; {manner:?}"
        ));
        let peer = Peer::new(number, hyco, true, manner, self.queue.now());
        self.peers.insert(number, peer);
        let port = 30_000 + u16::try_from(number).expect("few peers");
        let from = SocketAddr::from(([127, 0, 0, 9], port));
        let to = binding(hyco, beside_sender);
        self.tcp.connect(
            &mut self.queue,
            &mut self.rng,
            Owner::Peer(number),
            from,
            to,
        );
        number
    }

    pub(super) fn connected(
        &mut self,
        number: u64,
        result: Result<u64, std::io::ErrorKind>,
    ) -> Result<(), String> {
        let Some(peer) = self.peers.get_mut(&number) else {
            return Ok(());
        };
        match result {
            Ok(wire) => {
                peer.wire = Some(wire);
                peer.since = self.queue.now();
                if let Some(leaves) = peer.manner.leaves {
                    self.queue.after(leaves, Event::Peer(number));
                }
                self.tcp.own(wire, Owner::Peer(number));
                self.act(number)
            }
            Err(kind) => {
                peer.over = Some(Over::Failed(kind));
                self.note(format_args!("application {number}: {kind:?}"));
                Ok(())
            }
        }
    }

    /// A connection came to an endpoint.
    pub(super) fn serve(&mut self, listener: u64, wire: u64) -> Result<(), String> {
        self.next_peer += 1;
        let (number, hyco) = (
            self.next_peer,
            usize::try_from(listener - ENDPOINTS).unwrap_or(0),
        );
        let mut manner = self.manner(false);
        if manner.is_plain() && self.rng.random_ratio(1, 2) {
            manner.after = pattern::HEADER; // It answers.
        }
        self.note(format_args!(
            "endpoint {number} of {hyco} is {wire}; {manner:?}"
        ));
        if let Some(leaves) = manner.leaves {
            self.queue.after(leaves, Event::Peer(number));
        }
        let mut peer = Peer::new(number, hyco, false, manner, self.queue.now());
        peer.wire = Some(wire);
        self.peers.insert(number, peer);
        self.tcp.own(wire, Owner::Peer(number));
        self.act(number)
    }

    pub(super) fn act(&mut self, number: u64) -> Result<(), String> {
        let Some(mut peer) = self.peers.remove(&number) else {
            return Ok(());
        };
        let before = (peer.over, peer.heard_end, peer.listener.speaker());
        let mut stage = Stage {
            plan: &mut self.queue,
            rng: &mut self.rng,
            tcp: &mut self.tcp,
        };
        let acted = peer.act(&mut stage);
        let (over, heard_end) = (peer.over, peer.heard_end);
        let (said, heard, speaker) = (peer.said, peer.listener.heard(), peer.listener.speaker());
        self.peers.insert(number, peer);
        acted.map_err(|why| format!("corrupt: peer {number}: {why}"))?;
        if speaker != before.2 {
            self.pairing(number)?;
        }
        if heard_end && !before.1 {
            self.heard_all(number)?;
        }
        if over != before.0 {
            self.note(format_args!(
                "peer {number}: {over:?}, said {said}, heard {heard}"
            ));
        }
        Ok(())
    }

    /// Whoever hears somebody hears the peer of the own conversation, and that one hears nobody
    /// else.
    fn pairing(&self, number: u64) -> Result<(), String> {
        let Some(peer) = self.peers.get(&number) else {
            return Ok(());
        };
        let Some(speaker) = peer.listener.speaker() else {
            return Ok(());
        };
        let Some(other) = self.peers.get(&speaker) else {
            return Err(format!("peer {number} hears {speaker}, who does not exist"));
        };
        if other.application == peer.application || other.hyco != peer.hyco {
            return Err(format!(
                "peer {number} hears {speaker} of another hybrid connection"
            ));
        }
        let back = other.listener.speaker();
        if back.is_some_and(|back| back != number) {
            return Err(format!("peer {number} hears {speaker}, who hears {back:?}"));
        }
        let twice = self
            .peers
            .values()
            .find(|third| third.number != number && third.listener.speaker() == Some(speaker));
        match twice {
            Some(third) => Err(format!(
                "{speaker} is heard by {number} and by {}",
                third.number
            )),
            None => Ok(()),
        }
    }

    /// A clean end comes after every byte.
    fn heard_all(&self, number: u64) -> Result<(), String> {
        let peer = &self.peers[&number];
        let heard = peer.listener.heard();
        let Some(speaker) = peer.listener.speaker() else {
            if heard == 0 && !peer.application {
                return Ok(()); // A probe.
            }
            return Err(format!(
                "truncated: peer {number} hears an end after {heard} bytes"
            ));
        };
        let other = &self.peers[&speaker];
        if !other.finished || other.said != heard {
            return Err(format!(
                "truncated: peer {number} hears an end after {heard} bytes; {speaker} said {}, finished: {}",
                other.said, other.finished
            ));
        }
        Ok(())
    }
}
