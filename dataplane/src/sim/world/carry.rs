//! Carries out what workers ask of their machines, and delivers the events of network and TCP.

use std::net::SocketAddr;

use super::{Kind, Place, WAITING_MAX, World};
use crate::io::sim::{Op, Sim};
use crate::io::{Close, SocketId};
use crate::quic::cid;
use crate::sim::net::{Flight, RELAY};
use crate::sim::tcp::{Owner, Signal};

/// A connection between two workers: none of their sockets.
const NO_SOCKET: SocketId = SocketId {
    index: u32::MAX,
    generation: 0,
};

impl World {
    pub(super) fn carry_out(&mut self, place: Place, kind: Kind, op: Op) {
        let (plan, rng, tcp) = (&mut self.queue, &mut self.rng, &mut self.tcp);
        let owner = |socket| Owner::Worker(place, socket);
        match op {
            Op::Listen(socket, at) => tcp.listen(at, owner(socket)),
            Op::Unlisten(socket, at) => tcp.unlisten(at, owner(socket)),
            Op::Connect(socket, to) => {
                let from = SocketAddr::from(([10, 8, 0, place.worker], 0));
                tcp.connect(plan, rng, owner(socket), from, to);
            }
            Op::Abandon(socket) => tcp.abandon(owner(socket)),
            Op::Adopt(socket, wire) => tcp.own(wire, owner(socket)),
            Op::Release(wire) => tcp.own(wire, owner(NO_SOCKET)),
            Op::Receive(wire) => tcp.receive(plan, rng, wire),
            Op::Watch(wire) => tcp.watch(wire),
            Op::Send(wire, chunks) => tcp.send(plan, rng, wire, chunks),
            Op::Shutdown(wire) => tcp.shutdown(plan, wire),
            Op::Close(wire, Close::Reset) => tcp.reset(plan, wire),
            Op::Close(wire, Close::Clean) => tcp.close_clean(plan, wire),
            Op::Datagrams(buffer, transmit) => {
                let relay = kind == Kind::Relay;
                let arrive = self
                    .net
                    .depart(plan, rng, place, relay, &transmit, &buffer.data);
                let (len, size) = (buffer.data.len(), transmit.segment_size.unwrap_or(0));
                let to = transmit.destination;
                if let Some(sim) = self.machines[place.machine].sim(place) {
                    sim.sent(buffer);
                }
                self.note(format_args!(
                    "udp {}.{} to {to}: {len} bytes by {size}, {arrive} arrive",
                    place.machine, place.worker
                ));
            }
        }
    }

    /// Datagrams arrive where they were sent, if anybody is there.
    pub(super) fn land(&mut self, flight: Flight) {
        let Flight { to, batch } = flight;
        let place = if to == RELAY {
            let worker = cid::worker_of(&batch.data, self.workers).unwrap_or(0);
            Some(self.machines[0].place(usize::from(worker)))
        } else {
            self.net.place(to)
        };
        let Some(place) = place else { return };
        if let Some(sim) = self.machines[place.machine].sim(place)
            && sim.waiting() < WAITING_MAX
        {
            sim.arrived(batch);
        }
    }

    /// Tells everybody what TCP has to say.
    pub(super) fn tell(&mut self) -> Result<(), String> {
        while !self.tcp.signals.is_empty() {
            for signal in std::mem::take(&mut self.tcp.signals) {
                self.signal(signal)?;
            }
        }
        Ok(())
    }

    fn signal(&mut self, signal: Signal) -> Result<(), String> {
        match signal {
            Signal::Stirred(number) => return self.act(number),
            Signal::Accepted {
                listener,
                wire,
                from,
            } => match listener {
                Owner::Worker(place, listener) => {
                    let sim = self.machines[place.machine].sim(place);
                    match sim.and_then(|sim| sim.accepted(listener, wire, from)) {
                        Some(socket) => self.tcp.own(wire, Owner::Worker(place, socket)),
                        None => self.tcp.reset(&mut self.queue, wire),
                    }
                }
                Owner::Peer(number) => return self.serve(number, wire),
                Owner::Nobody => self.tcp.reset(&mut self.queue, wire),
            },
            Signal::Connected(Owner::Peer(number), result) => {
                return self.connected(number, result);
            }
            Signal::Connected(owner, result) => {
                let wire = result.ok();
                if let Some(wire) = wire {
                    self.tcp.own(wire, owner);
                }
                let told = self.worker(owner, |sim, socket| {
                    sim.connected(socket, result.map_err(std::io::Error::from))
                });
                if let (Some(wire), None | Some(false)) = (wire, told) {
                    self.tcp.reset(&mut self.queue, wire);
                }
            }
            Signal::Received(owner, result) => {
                self.worker(owner, |sim, socket| {
                    sim.received(socket, result.map_err(Into::into));
                });
            }
            Signal::Sent(owner, result) => {
                self.worker(owner, |sim, socket| {
                    sim.sent_all(socket, result.map_err(Into::into));
                });
            }
            Signal::HungUp(owner, kind) => {
                self.worker(owner, |sim, socket| sim.hung_up(socket, kind.into()));
            }
        }
        Ok(())
    }

    fn worker<T>(&mut self, owner: Owner, tell: impl FnOnce(&mut Sim, SocketId) -> T) -> Option<T> {
        let Owner::Worker(place, socket) = owner else {
            return None;
        };
        let sim = self.machines[place.machine].sim(place)?;
        Some(tell(sim, socket))
    }
}
