//! The ends of connections: what is written, read, finished, reset; what arrives, and what then can
//! be completed.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rand::RngExt;
use rand::rngs::StdRng;

use super::{Defect, End, Found, Owner, Passing, Plan, Signal, Tcp};
use crate::io::READ_SIZE;
use crate::io::sim::Wire;
use crate::sim::world::Event;

impl Tcp {
    pub(in crate::sim) fn receive(&mut self, plan: &mut Plan, rng: &mut StdRng, wire: Wire) {
        if let Some(end) = self.ends.get_mut(&wire) {
            end.receiving = true;
            end.watching = false;
            self.readable(plan, rng, wire);
        }
    }

    pub(in crate::sim) fn watch(&mut self, wire: Wire) {
        let Some(end) = self.ends.get_mut(&wire) else {
            return;
        };
        match end.failed {
            Some(kind) => self.signals.push(Signal::HungUp(end.owner, kind)),
            None => end.watching = true,
        }
    }

    pub(in crate::sim) fn send(
        &mut self,
        plan: &mut Plan,
        rng: &mut StdRng,
        wire: Wire,
        mut chunks: Vec<Bytes>,
    ) {
        if let Some((left, defect)) = &mut self.defect_in {
            *left = left.saturating_sub(1);
            if *left == 0 && defect.spoil(&mut chunks) {
                self.defect_in = None;
            }
        }
        if let Some(end) = self.ends.get_mut(&wire) {
            end.sending = chunks.into();
            end.is_sending = true;
            self.push(plan, rng, wire);
        }
    }

    /// A peer's write: how many bytes the kernel took.
    pub(in crate::sim) fn write(
        &mut self,
        plan: &mut Plan,
        rng: &mut StdRng,
        wire: Wire,
        bytes: Vec<u8>,
    ) -> usize {
        let Some(end) = self.ends.get_mut(&wire) else {
            return 0;
        };
        if end.failed.is_some() || end.shut {
            return 0;
        }
        let room = self.room(wire).min(bytes.len());
        if room == 0 {
            return 0;
        }
        let bytes = Bytes::from(bytes).split_to(room);
        self.depart(plan, rng, wire, bytes);
        room
    }

    /// A peer's read.
    pub(in crate::sim) fn read(
        &mut self,
        plan: &mut Plan,
        rng: &mut StdRng,
        wire: Wire,
        most: usize,
    ) -> Found {
        let Some(end) = self.ends.get_mut(&wire) else {
            return Found::Failed(ErrorKind::NotConnected);
        };
        if let Some(bytes) = end.take(most) {
            self.push(plan, rng, wire ^ 1);
            return Found::Bytes(bytes);
        }
        match (end.failed, end.fin_arrived) {
            (Some(kind), _) => Found::Failed(kind),
            (None, true) => Found::End,
            (None, false) => Found::Nothing,
        }
    }

    /// Whether this end failed, read or not.
    pub(in crate::sim) fn failed(&self, wire: Wire) -> Option<ErrorKind> {
        self.ends.get(&wire)?.failed
    }

    pub(in crate::sim) fn shutdown(&mut self, plan: &mut Plan, wire: Wire) {
        let Some(end) = self.ends.get_mut(&wire) else {
            return;
        };
        if !end.shut && end.failed.is_none() {
            end.shut = true;
            let at = end.arrival(plan.now());
            plan.at(at, Event::Tcp(Passing::Fin(wire ^ 1)));
        }
    }

    /// RST: what is queued here is discarded.
    pub(in crate::sim) fn reset(&mut self, plan: &mut Plan, wire: Wire) {
        let Some(end) = self.ends.get_mut(&wire) else {
            return;
        };
        if end.failed.is_none() {
            let at = end.arrival(plan.now());
            plan.at(at, Event::Tcp(Passing::Rst(wire ^ 1)));
        }
        self.close(wire);
    }

    /// The kernel goes on delivering what was sent; what comes now, or was not read, is answered by
    /// RST.
    pub(in crate::sim) fn close_clean(&mut self, plan: &mut Plan, wire: Wire) {
        let Some(end) = self.ends.get_mut(&wire) else {
            return;
        };
        if end.arrived_len > 0 {
            return self.reset(plan, wire);
        }
        self.shutdown(plan, wire);
        self.close(wire);
    }

    fn close(&mut self, wire: Wire) {
        let Some(end) = self.ends.get_mut(&wire) else {
            return;
        };
        end.closed = true;
        end.owner = Owner::Nobody;
        end.sending.clear();
        end.is_sending = false;
        end.receiving = false;
        end.watching = false;
        end.arrived.clear();
        end.arrived_len = 0;
        let other = self.ends.get(&(wire ^ 1));
        if other.is_none_or(|other| other.closed) {
            self.ends.remove(&wire);
            self.ends.remove(&(wire ^ 1));
        }
    }

    pub(super) fn bytes(&mut self, plan: &mut Plan, rng: &mut StdRng, wire: Wire, bytes: Bytes) {
        if let Some(other) = self.ends.get_mut(&(wire ^ 1)) {
            other.in_flight -= bytes.len();
        }
        let Some(end) = self.ends.get_mut(&wire) else {
            return;
        };
        if end.closed {
            // Nobody is here to read it.
            let at = end.arrival(plan.now());
            return plan.at(at, Event::Tcp(Passing::Rst(wire ^ 1)));
        }
        if end.failed.is_none() {
            end.arrived_len += bytes.len();
            end.arrived.push_back(bytes);
            self.readable(plan, rng, wire);
        }
    }

    pub(super) fn rst(&mut self, rng: &mut StdRng, wire: Wire) {
        let Some(end) = self.ends.get_mut(&wire) else {
            return;
        };
        if end.closed || end.failed.is_some() {
            return;
        }
        let kind = ErrorKind::ConnectionReset;
        end.failed = Some(kind);
        end.sending.clear();
        // Some kernels drop what was not read yet, some do not.
        if rng.random_ratio(1, 3) {
            end.arrived.clear();
            end.arrived_len = 0;
        }
        if std::mem::take(&mut end.is_sending) {
            self.signals.push(Signal::Sent(end.owner, Err(kind)));
        }
        if std::mem::take(&mut end.watching) {
            self.signals.push(Signal::HungUp(end.owner, kind));
        }
        if end.arrived_len == 0 && std::mem::take(&mut end.receiving) {
            self.signals.push(Signal::Received(end.owner, Err(kind)));
        }
        self.stir(wire);
    }

    /// Completes the armed receive, if it can be.
    pub(super) fn readable(&mut self, plan: &mut Plan, rng: &mut StdRng, wire: Wire) {
        self.stir(wire);
        let Some(end) = self.ends.get_mut(&wire) else {
            return;
        };
        if !end.receiving {
            return;
        }
        let most = if rng.random_ratio(1, 4) {
            rng.random_range(1..=READ_SIZE)
        } else {
            READ_SIZE
        };
        let result = match (end.take(most), end.failed) {
            (Some(bytes), _) => Ok(bytes),
            (None, Some(kind)) => Err(kind),
            (None, None) if end.fin_arrived => Ok(Bytes::new()),
            (None, None) => return,
        };
        end.receiving = false;
        self.signals.push(Signal::Received(end.owner, result));
        self.push(plan, rng, wire ^ 1);
    }

    fn stir(&mut self, wire: Wire) {
        if let Some(End {
            owner: Owner::Peer(number),
            ..
        }) = self.ends.get(&wire)
        {
            self.signals.push(Signal::Stirred(*number));
        }
    }

    /// Lets what is being sent from here depart, as far as there is room.
    fn push(&mut self, plan: &mut Plan, rng: &mut StdRng, wire: Wire) {
        loop {
            let room = self.room(wire);
            let Some(end) = self.ends.get_mut(&wire) else {
                return;
            };
            if let Some(kind) = end.failed {
                if std::mem::take(&mut end.is_sending) {
                    self.signals.push(Signal::Sent(end.owner, Err(kind)));
                }
                return;
            }
            let Some(chunk) = end.sending.front_mut() else {
                if std::mem::take(&mut end.is_sending) {
                    self.signals.push(Signal::Sent(end.owner, Ok(())));
                }
                return self.stir(wire);
            };
            if room == 0 {
                return;
            }
            let bytes = chunk.split_to(chunk.len().min(room));
            if chunk.is_empty() {
                end.sending.pop_front();
            }
            self.depart(plan, rng, wire, bytes);
        }
    }

    fn depart(&mut self, plan: &mut Plan, rng: &mut StdRng, wire: Wire, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let Some(end) = self.ends.get_mut(&wire) else {
                return;
            };
            let most = if rng.random_ratio(1, 8) {
                rng.random_range(1..=bytes.len())
            } else {
                bytes.len()
            };
            let segment = bytes.split_to(most);
            end.in_flight += segment.len();
            let at = end.arrival(plan.now());
            plan.at(at, Event::Tcp(Passing::Bytes(wire ^ 1, segment)));
        }
    }

    /// What the buffers of the way from here still take.
    fn room(&self, wire: Wire) -> usize {
        let (Some(end), Some(other)) = (self.ends.get(&wire), self.ends.get(&(wire ^ 1))) else {
            return 0;
        };
        let full = end.in_flight + if other.closed { 0 } else { other.arrived_len };
        end.capacity.saturating_sub(full)
    }
}

impl End {
    pub(super) fn new(now: Instant, capacity: usize, delay: Duration) -> Self {
        Self {
            owner: Owner::Nobody,
            arrived: VecDeque::new(),
            arrived_len: 0,
            fin_arrived: false,
            failed: None,
            in_flight: 0,
            next: now,
            shut: false,
            closed: false,
            capacity,
            delay,
            receiving: false,
            watching: false,
            sending: VecDeque::new(),
            is_sending: false,
        }
    }

    /// When what is sent now arrives: never before what was sent earlier.
    pub(super) fn arrival(&mut self, now: Instant) -> Instant {
        self.next = self.next.max(now + self.delay);
        self.next
    }

    fn take(&mut self, most: usize) -> Option<Bytes> {
        let only = self.arrived.len() == 1;
        let first = self.arrived.front_mut()?;
        let taken = if only || first.len() >= most {
            let taken = first.split_to(first.len().min(most));
            if self.arrived.front().is_some_and(Bytes::is_empty) {
                self.arrived.pop_front();
            }
            taken
        } else {
            let mut taken = BytesMut::new();
            while taken.len() < most
                && let Some(mut first) = self.arrived.pop_front()
            {
                taken.extend_from_slice(&first.split_to(first.len().min(most - taken.len())));
                if !first.is_empty() {
                    self.arrived.push_front(first);
                }
            }
            taken.freeze()
        };
        self.arrived_len -= taken.len();
        Some(taken)
    }
}

impl Defect {
    fn spoil(self, chunks: &mut Vec<Bytes>) -> bool {
        let len = chunks.last().map_or(0, Bytes::len);
        match self {
            _ if len < 2 => return false,
            Self::Swapped if chunks.len() < 2 => return false,
            Self::Swapped => chunks.swap(0, 1),
            Self::Lost => {
                let short = chunks.pop().map(|last| last.slice(..len - 1));
                chunks.extend(short);
            }
            Self::Twice => {
                let again = chunks.last().map(|last| last.slice(len - 1..));
                chunks.extend(again);
            }
        }
        true
    }
}
