//! UDP between the relay and those who dial it: delay, jitter, loss, order, copies, flipped bits, a
//! rate with a queue, a path MTU, black holes, and translated addresses that change. One path for
//! each machine that dials, alike in both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rand::RngExt;
use rand::rngs::StdRng;

use super::queue::Queue;
use super::world::{Event, Place};
use crate::io::{Datagrams, Transmit};

/// Where the relay listens.
pub(super) const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 4433);

/// How a path treats datagrams. Shares are of one million.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    pub(super) lost: u32,
    pub(super) late: u32,
    pub(super) twice: u32,
    pub(super) flipped: u32,
    /// Bytes a second; what waits for longer than `queue` is dropped.
    pub(super) rate: Option<u32>,
    pub(super) queue: Duration,
    pub(super) mtu: usize,
    /// A black hole.
    pub(super) dead: bool,
}

/// How long a datagram may wait where a path has a rate, mostly.
const QUEUE: Duration = Duration::from_millis(200);

/// Of one million.
const ALL: u32 = 1_000_000;

impl Path {
    /// A good one.
    pub(super) fn good(rng: &mut StdRng) -> Self {
        Self {
            delay: Duration::from_micros(rng.random_range(100..40_000)),
            jitter: Duration::from_micros(rng.random_range(1..500)),
            lost: 0,
            late: 0,
            twice: 0,
            flipped: 0,
            rate: None,
            queue: QUEUE,
            mtu: rng.random_range(1200..=1472),
            dead: false,
        }
    }
}

/// One batch on its way.
#[derive(Debug)]
pub(super) struct Flight {
    /// Where it goes: the relay, or an address that a machine had when it left.
    pub(super) to: SocketAddr,
    pub(super) batch: Datagrams,
}

/// The network.
pub(super) struct Net {
    /// By the number of the machine that dials.
    pub(super) paths: BTreeMap<usize, Path>,
    /// Workers that dial, by machine, of whose sockets nothing comes through.
    pub(super) holes: BTreeSet<(usize, u8)>,
    outer: BTreeMap<Place, SocketAddr>,
    by_outer: BTreeMap<SocketAddr, Place>,
    /// When the next datagram may leave, and when the last one arrives: by machine and direction.
    busy: BTreeMap<(usize, bool), (Instant, Instant)>,
    next_port: u16,
}

impl Net {
    pub(super) fn new() -> Self {
        Self {
            paths: BTreeMap::new(),
            holes: BTreeSet::new(),
            outer: BTreeMap::new(),
            by_outer: BTreeMap::new(),
            busy: BTreeMap::new(),
            next_port: 20_000,
        }
    }

    /// A worker that dials has a socket now.
    pub(super) fn attach(&mut self, place: Place) {
        self.next_port += 1;
        let ip = Ipv4Addr::new(
            203,
            0,
            113,
            u8::try_from(place.machine).expect("few machines"),
        );
        let outer = SocketAddr::from((ip, self.next_port));
        self.outer.insert(place, outer);
        self.by_outer.insert(outer, place);
    }

    /// A machine's sockets are gone.
    pub(super) fn detach(&mut self, machine: usize) {
        self.outer.retain(|place, _| place.machine != machine);
        self.by_outer.retain(|_, place| place.machine != machine);
    }

    /// The translation of a machine's addresses is another one now.
    pub(super) fn rebind(&mut self, machine: usize) {
        let places: Vec<Place> = self
            .outer
            .keys()
            .filter(|place| place.machine == machine)
            .copied()
            .collect();
        self.detach(machine);
        for place in places {
            self.attach(place);
        }
    }

    /// Who has this address now.
    pub(super) fn place(&self, outer: SocketAddr) -> Option<Place> {
        self.by_outer.get(&outer).copied()
    }

    /// A worker sends; `relay` says whether it is one of the relay. Answers how many datagrams will
    /// arrive.
    pub(super) fn depart(
        &mut self,
        plan: &mut Queue<Event>,
        rng: &mut StdRng,
        from: Place,
        relay: bool,
        transmit: &Transmit,
        data: &[u8],
    ) -> usize {
        let (dialler, remote) = if relay {
            let Some(place) = self.place(transmit.destination) else {
                return 0; // Nobody has that address any more.
            };
            (place, RELAY)
        } else {
            let outer = self
                .outer
                .get(&from)
                .filter(|_| transmit.destination == RELAY);
            let Some(&outer) = outer else { return 0 };
            (from, outer)
        };
        let machine = dialler.machine;
        if self.holes.contains(&(machine, dialler.worker)) {
            return 0;
        }
        let Some(path) = self.paths.get(&machine) else {
            return 0;
        };
        let leave = self
            .busy
            .entry((machine, relay))
            .or_insert((plan.now(), plan.now()));
        let passing = Passing {
            path,
            remote,
            to: transmit.destination,
            ecn: transmit.ecn,
        };
        let size = transmit.segment_size.unwrap_or(data.len()).max(1);
        passing.send(plan, rng, leave, data.chunks(size))
    }
}

struct Passing<'a> {
    path: &'a Path,
    remote: SocketAddr,
    to: SocketAddr,
    ecn: Option<quinn_proto::EcnCodepoint>,
}

impl Passing<'_> {
    fn send<'a>(
        &self,
        plan: &mut Queue<Event>,
        rng: &mut StdRng,
        (leave, last): &mut (Instant, Instant),
        datagrams: impl Iterator<Item = &'a [u8]>,
    ) -> usize {
        let path = self.path;
        let jitter = path.jitter.mul_f64(rng.random());
        let mut arrived = 0;
        let mut joined: Option<(Instant, usize, BytesMut)> = None;
        for datagram in datagrams {
            let mut draw = |share: u32| share > 0 && rng.random_range(0..ALL) < share;
            if path.dead || datagram.len() > path.mtu || draw(path.lost) {
                continue;
            }
            let (late, twice, flipped) = (draw(path.late), draw(path.twice), draw(path.flipped));
            let now = plan.now();
            *leave = (*leave).max(now);
            if let Some(rate) = path.rate {
                if *leave > now + path.queue {
                    continue;
                }
                *leave += Duration::from_secs_f64(datagram.len() as f64 / f64::from(rate));
            }
            // Paths keep the order, but for what is late.
            *last = (*last).max(*leave + path.delay + jitter);
            let mut at = *last;
            if late {
                at += path.delay + Duration::from_millis(1);
            }
            let mut bytes = BytesMut::from(datagram);
            if flipped {
                let bit = rng.random_range(0..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            arrived += 1;
            if twice {
                let again = at + Duration::from_micros(rng.random_range(1..5_000));
                self.fly(plan, again, bytes.len(), bytes.clone());
            }
            // Equal ones that arrive together are joined, as kernels do; a shorter one ends the
            // batch.
            match &mut joined {
                Some((together, stride, batch))
                    if *together == at && batch.len() % *stride == 0 && bytes.len() <= *stride =>
                {
                    batch.extend_from_slice(&bytes);
                }
                _ => {
                    let len = bytes.len();
                    if let Some((at, stride, batch)) = joined.replace((at, len, bytes)) {
                        self.fly(plan, at, stride, batch);
                    }
                }
            }
        }
        if let Some((at, stride, batch)) = joined {
            self.fly(plan, at, stride, batch);
        }
        arrived
    }

    fn fly(&self, plan: &mut Queue<Event>, at: Instant, stride: usize, data: BytesMut) {
        let batch = Datagrams {
            remote: self.remote,
            local_ip: None,
            ecn: self.ecn,
            stride,
            data,
        };
        plan.at(at, Event::Flight(Flight { to: self.to, batch }));
    }
}
