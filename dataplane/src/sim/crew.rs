//! The workers of one process, made without threads, and told what a supervisor would tell them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use underpass_proto::HycoName;

use super::Made;
use super::watched::{Turn, Watchable, Watched};
use crate::io::{Listener, sim::Sim};
use crate::listening::Change;
use crate::quic::config::{EndpointKeys, Server};
use crate::quic::{Driver, DriverContext};
use crate::worker::{Handle, Start, Worker};

/// The workers of one process, and its bindings.
pub(crate) struct Crew<M> {
    pub(crate) handles: Vec<Handle<M>>,
    bindings: BTreeMap<HycoName, (u64, SocketAddr)>,
    next_number: u64,
}

impl<M: Send + 'static> Crew<M> {
    /// Nobody yet.
    pub(crate) fn new() -> Self {
        Self {
            handles: Vec::new(),
            bindings: BTreeMap::new(),
            next_number: 0,
        }
    }

    /// One worker more. `place` is its index, and how many there are on its port.
    pub(crate) fn hire<R: Watchable<Message = M> + 'static>(
        &mut self,
        made: &mut Made,
        place: (u8, u8),
        keys: impl FnOnce(&mut StdRng) -> EndpointKeys,
        server: Option<Arc<Server>>,
        role: impl FnOnce(Start<M>) -> R,
    ) -> Box<dyn Turn> {
        let context = DriverContext {
            mtu_of,
            rng: StdRng::from_rng(&mut made.rng),
        };
        let keys = keys(&mut made.rng);
        let quic = Driver::on(context, place.0, &keys, server, None);
        let rng = StdRng::from_rng(&mut made.rng);
        let io = Sim::new(made.now, made.segments);
        let (turn, handle) = Worker::new(io, quic, place, rng, |start| Watched::new(role(start)));
        self.handles.push(handle);
        Box::new(turn)
    }

    /// Tells every worker.
    pub(crate) fn tell(&self, message: impl Fn() -> M) {
        for handle in &self.handles {
            assert!(handle.try_send(message()).is_ok(), "an inbox has a place");
        }
    }

    /// Opens and closes bindings, as wanted.
    pub(crate) fn bind(
        &mut self,
        wanted: impl Iterator<Item = (HycoName, SocketAddr)>,
        message: impl Fn(Change) -> M,
    ) {
        let wanted: BTreeMap<_, _> = wanted.collect();
        let gone = self
            .bindings
            .extract_if(.., |name, (_, at)| wanted.get(name) != Some(at));
        for (_, (number, _)) in gone.collect::<Vec<_>>() {
            self.tell(|| message(Change::Unbind(number)));
        }
        for (hyco, at) in wanted {
            if !self.bindings.contains_key(&hyco) {
                self.next_number += 1;
                let number = self.next_number;
                self.bindings.insert(hyco.clone(), (number, at));
                self.tell(|| {
                    message(Change::Bind {
                        number,
                        hyco: hyco.clone(),
                        listener: Listener::Simulated(at),
                    })
                });
            }
        }
    }
}

/// The widest datagram towards anybody: an Ethernet's.
fn mtu_of(_: SocketAddr) -> u16 {
    1472
}
