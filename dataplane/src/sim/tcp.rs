//! TCP between the machines and the peers of a world: connections with two ends, bytes on their way
//! in order, buffers that fill, FIN and RST. Knows nobody: an end's owner is told by [`Signal`]s.

mod ends;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;

use super::queue::Queue;
use super::world::{Event, Place};
use crate::io::SocketId;
use crate::io::sim::Wire;

/// Who has an end, or a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// Nobody, or nobody yet.
    Nobody,
    /// A worker of a machine.
    Worker(Place, SocketId),
    /// A peer, by its number.
    Peer(u64),
}

/// What an owner is told.
#[derive(Debug)]
pub(super) enum Signal {
    /// A listener took a connection.
    Accepted {
        listener: Owner,
        wire: Wire,
        from: SocketAddr,
    },
    /// A connection attempt ended.
    Connected(Owner, Result<Wire, ErrorKind>),
    /// The armed receive ended.
    Received(Owner, Result<Bytes, ErrorKind>),
    /// The send under way ended.
    Sent(Owner, Result<(), ErrorKind>),
    /// A watched end failed.
    HungUp(Owner, ErrorKind),
    /// Something happened to this peer's end.
    Stirred(u64),
}

/// What happens on the way.
#[derive(Debug)]
pub(super) enum Passing {
    /// A connection attempt arrives.
    Syn(u64),
    /// … and is answered.
    SynAck(u64, Result<(), ErrorKind>),
    /// Bytes arrive at this end.
    Bytes(Wire, Bytes),
    /// FIN arrives at this end.
    Fin(Wire),
    /// RST arrives at this end.
    Rst(Wire),
}

/// What one read finds.
#[derive(Debug)]
pub(super) enum Found {
    Bytes(Bytes),
    Nothing,
    End,
    Failed(ErrorKind),
}

/// What a backend could do wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Defect {
    /// Two chunks change places.
    Swapped,
    /// A byte is lost.
    Lost,
    /// A byte is said twice.
    Twice,
}

struct Attempt {
    owner: Owner,
    from: SocketAddr,
    to: SocketAddr,
}

struct End {
    owner: Owner,
    /// Bytes that came and were not read.
    arrived: VecDeque<Bytes>,
    arrived_len: usize,
    fin_arrived: bool,
    failed: Option<ErrorKind>,
    /// On their way from here.
    in_flight: usize,
    /// What is sent from here now arrives no sooner.
    next: Instant,
    shut: bool,
    closed: bool,
    capacity: usize,
    delay: Duration,
    receiving: bool,
    watching: bool,
    sending: VecDeque<Bytes>,
    is_sending: bool,
}

/// All connections of a world.
pub(super) struct Tcp {
    ends: BTreeMap<Wire, End>,
    attempts: BTreeMap<u64, Attempt>,
    listeners: BTreeMap<SocketAddr, Vec<Owner>>,
    /// Addresses that answer nothing, for a while.
    deaf: BTreeSet<SocketAddr>,
    next: u64,
    pub(super) signals: Vec<Signal>,
    /// A planted defect: this many sends from now, it strikes.
    pub(super) defect_in: Option<(u32, Defect)>,
}

type Plan = Queue<Event>;

impl Tcp {
    pub(super) fn new() -> Self {
        Self {
            ends: BTreeMap::new(),
            attempts: BTreeMap::new(),
            listeners: BTreeMap::new(),
            deaf: BTreeSet::new(),
            next: 0,
            signals: Vec::new(),
            defect_in: None,
        }
    }

    /// Ends that somebody still has.
    pub(super) fn open(&self) -> usize {
        self.ends.values().filter(|end| !end.closed).count()
    }

    pub(super) fn listen(&mut self, at: SocketAddr, owner: Owner) {
        self.listeners.entry(at).or_default().push(owner);
    }

    pub(super) fn unlisten(&mut self, at: SocketAddr, owner: Owner) {
        if let Some(owners) = self.listeners.get_mut(&at) {
            owners.retain(|it| *it != owner);
        }
    }

    pub(super) fn set_deaf(&mut self, at: SocketAddr, deaf: bool) {
        if deaf {
            self.deaf.insert(at);
        } else {
            self.deaf.remove(&at);
        }
    }

    pub(super) fn connect(
        &mut self,
        plan: &mut Plan,
        rng: &mut StdRng,
        owner: Owner,
        from: SocketAddr,
        to: SocketAddr,
    ) {
        self.next += 1;
        self.attempts.insert(self.next, Attempt { owner, from, to });
        plan.after(delay(rng), Event::Tcp(Passing::Syn(self.next)));
    }

    /// Nobody waits for this attempt any more.
    pub(super) fn abandon(&mut self, owner: Owner) {
        for attempt in self.attempts.values_mut() {
            if attempt.owner == owner {
                attempt.owner = Owner::Nobody;
            }
        }
    }

    /// A machine is gone, and the kernel ends what it had: linger is zero.
    pub(super) fn gone(&mut self, plan: &mut Plan, place: Place) {
        let of = |owner: &Owner| matches!(owner, Owner::Worker(at, _) if at.is_same(place));
        for owners in self.listeners.values_mut() {
            owners.retain(|owner| !of(owner));
        }
        for attempt in self.attempts.values_mut() {
            if of(&attempt.owner) {
                attempt.owner = Owner::Nobody;
            }
        }
        let wires: Vec<Wire> = self
            .ends
            .iter()
            .filter(|(_, end)| of(&end.owner))
            .map(|(&wire, _)| wire)
            .collect();
        for wire in wires {
            self.reset(plan, wire);
        }
    }

    pub(super) fn pass(&mut self, plan: &mut Plan, rng: &mut StdRng, passing: Passing) {
        match passing {
            Passing::Syn(number) => self.syn(plan, rng, number),
            Passing::SynAck(number, result) => self.syn_ack(plan, number, result),
            Passing::Bytes(wire, bytes) => self.bytes(plan, rng, wire, bytes),
            Passing::Fin(wire) => {
                if let Some(end) = self.ends.get_mut(&wire) {
                    end.fin_arrived = true;
                    self.readable(plan, rng, wire);
                }
            }
            Passing::Rst(wire) => self.rst(rng, wire),
        }
    }

    fn syn(&mut self, plan: &mut Plan, rng: &mut StdRng, number: u64) {
        let Some(attempt) = self.attempts.get(&number) else {
            return;
        };
        if self.deaf.contains(&attempt.to) {
            self.attempts.remove(&number);
            return; // The caller's own deadline ends it.
        }
        let owners = self
            .listeners
            .get(&attempt.to)
            .filter(|owners| !owners.is_empty());
        let back = delay(rng);
        let Some(owners) = owners else {
            let refused = Passing::SynAck(number, Err(ErrorKind::ConnectionRefused));
            return plan.after(back, Event::Tcp(refused));
        };
        let listener = owners[rng.random_range(0..owners.len())];
        let from = attempt.from;
        let capacity = 1 << rng.random_range(14..19_u32);
        for wire in [2 * number, 2 * number + 1] {
            self.ends.insert(wire, End::new(plan.now(), capacity, back));
        }
        plan.after(back, Event::Tcp(Passing::SynAck(number, Ok(()))));
        let wire = 2 * number + 1;
        self.signals.push(Signal::Accepted {
            listener,
            wire,
            from,
        });
    }

    fn syn_ack(&mut self, plan: &mut Plan, number: u64, result: Result<(), ErrorKind>) {
        let Some(attempt) = self.attempts.remove(&number) else {
            return;
        };
        let wire = 2 * number;
        if attempt.owner == Owner::Nobody {
            if result.is_ok() {
                self.reset(plan, wire);
            }
            return;
        }
        let result = result.map(|()| wire);
        self.signals.push(Signal::Connected(attempt.owner, result));
    }

    /// Says who has an end.
    pub(super) fn own(&mut self, wire: Wire, owner: Owner) {
        if let Some(end) = self.ends.get_mut(&wire) {
            end.owner = owner;
        }
    }
}

/// A trip over a local network.
fn delay(rng: &mut StdRng) -> Duration {
    Duration::from_micros(rng.random_range(20..400))
}
